# SPDX-License-Identifier: MIT
"""Several queues a device: each its ring, its event channel and its thread; one nexus, one disk."""

import contextlib
import os
import threading

import pytest

from vscsi.domain.keys import XenbusState
from vscsi.domain.toolstack import VBD, VSRP
from vscsi.target.base import Attribute, Function, Status
from vscsi.target.taskset import Fate
from vscsi.transport.batch import Batch
from vscsi.transport.initiator import TransportError
from vscsi.wire.cdb import build
from vscsi.wire.sense import parse_sense
from vscsi.wire.srp import IuType, build_iu
from vscsi.wire.srp_ring import SlotFormat

HANG_S = 30
QUEUES = 3
both = pytest.mark.parametrize(("kind", "device"), [("srp", VSRP), ("blkif", VBD)])


@pytest.fixture
def server(serve):
    return serve(workers=4, queues=QUEUES)


def ends(server, hba, device):
    devices = server.guest(hba.initiator.guest.domain).devices
    return next(each.queues.ends for each in devices if each.device.kind == device)


def read(hba, lba=0):
    return hba.start(hba.lun(0), build("READ(10)", lba=lba, blocks=1), data_in=512)


@both
@pytest.mark.parametrize(("wish", "used"), [(1, 1), (2, 2), (QUEUES, QUEUES), (4, QUEUES)])
def test_a_frontend_uses_as_many_as_it_wants_and_the_backend_has(server, kind, device, wish, used):
    with server.connect(f"{kind}?queues={wish}") as hba:
        assert [end.connection is not None for end in ends(server, hba, device)] == [
            number < used for number in range(QUEUES)
        ]
        assert hba.parameters().get("queues", 1) == used
        assert hba.lun(0).read(5, 1) == bytes(512)


@both
def test_the_keys_are_those_of_xen_s_block_protocol(server, kind, device):
    """With one queue none of them is there; io/blkif.h, "multi-queue"."""
    for wish in (1, 2):
        with server.connect(f"{kind}?queues={wish}") as hba:
            store, path = hba.initiator.guest.store, hba.initiator._device.frontend_path
            names = set(store.directory(path))
            per_queue = {"event-channel", "ring-ref0"}
            if wish == 1:
                assert per_queue <= names
                assert not any("queue" in name for name in names)
            else:
                assert store.read(f"{path}/multi-queue-num-queues") == "2"
                assert {"queue-0", "queue-1"} <= names
                assert not per_queue & names
                for number in range(2):
                    assert per_queue <= set(store.directory(f"{path}/queue-{number}"))


@pytest.mark.parametrize("count", ["0", str(QUEUES + 1), "-1", "x"])
def test_more_queues_than_offered_are_refused(raw, count):
    frontend = raw("blkif")
    frontend.wait(XenbusState.INIT_WAIT)
    assert frontend.published("multi-queue-max-queues") == str(QUEUES)
    frontend.connect(multi_queue_num_queues=count)
    assert "multi-queue-num-queues" in frontend.closed()


def test_a_queue_without_its_keys_ends_the_device_and_leaves_nothing(raw, server):
    frontend = raw("blkif")
    frontend.wait(XenbusState.INIT_WAIT)
    keys = {f"queue-0/{name}": value for name, value in frontend.keys().items()}
    frontend.publish(
        XenbusState.INITIALISED,
        {**keys, "protocol": "x86_64-abi", "multi-queue-num-queues": "2"},
    )
    assert "queue-1/" in frontend.closed()
    assert not server.mapped(frontend.domain)


@both
def test_commands_at_the_same_time_take_different_rings(server, kind, device):
    with server.connect(f"{kind}?queues={QUEUES}") as hba:
        hba.lun(0).capacity()
        server.store.hold()
        futures = [read(hba, lba) for lba in range(QUEUES)]
        requests = [end for end in ends(server, hba, device) if end.statistics.requests]
        server.store.wait_held(QUEUES)
        assert len(requests) <= QUEUES
        assert [queue.load for queue in hba.initiator.queues] == [1] * QUEUES
        server.store.release()
        assert all(future.result(HANG_S).status is Status.GOOD for future in futures)
        told = hba.initiator.backend_statistics()
        assert len(told["queues"]) == QUEUES
        assert told["requests"] == sum(each["requests"] for each in told["queues"])
        assert all(each["requests"] for each in told["queues"])


@both
def test_a_queue_that_breaks_the_rules_ends_the_device(server, kind, device, checker, eventually):
    with server.connect(f"{kind}?queues={QUEUES}") as hba:
        hba.lun(0).capacity()
        server.store.hold()
        future = read(hba)
        server.store.wait_held()
        last = hba.initiator.queues[-1]
        with last._lock:
            if kind == "srp":
                last.ring.put(b"\xff" * 32)
                last._publish()
            else:  # where a request may be anything: its producer index is what cannot be
                memory = last.guest.memory.view(last._pages[0][0][0])
                memory[:4] = (1 << 31).to_bytes(4, "little")
                last._events.notify()
        eventually(lambda: ends(server, hba, device)[-1].statistics.wire_errors, "the error")
        server.store.release()
        with contextlib.suppress(TransportError):  # unless it was answered just before
            future.result(HANG_S)
        for queue in hba.initiator.queues:
            eventually(lambda queue=queue: queue._failure, "the end of the queue")
    checker()


def test_one_channel_that_logs_out_takes_its_own_commands_along(server, eventually):
    """The nexus, its other channels and what is on them stay."""
    with server.connect(f"srp?queues={QUEUES}") as hba:
        lun = hba.lun(0)
        lun.capacity()
        server.store.hold()
        futures = [read(hba, lba) for lba in range(QUEUES)]
        server.store.wait_held(QUEUES)
        leaving = hba.initiator.queues[1]
        with leaving._lock:
            leaving.send(SlotFormat.SRP, build_iu(IuType.I_LOGOUT, tag=1))
            leaving._publish()
        running = server.export.router._places[0].tasks._tasks._running
        eventually(lambda: Fate.SILENT in running.values(), "the logout")
        server.store.release()
        for future in (futures[0], futures[2]):
            assert future.result(HANG_S).status is Status.GOOD
        # No power on or nexus loss is reported: the nexus is the same one.
        assert hba.command(lun, build("TEST UNIT READY")).status is Status.GOOD
        assert not futures[1].done()
    with pytest.raises(TransportError):
        futures[1].result(HANG_S)


def test_a_reset_of_one_unit_does_not_hold_up_another(serve, watched_store):
    server = serve(watched_store(), watched_store(), workers=4, queues=2)
    with server.connect("srp?queues=2") as hba:
        for number in range(2):
            hba.lun(number).capacity()
        server.store.hold()
        stuck = [read(hba) for _ in range(2)]
        server.store.wait_held(2)
        came_to = []
        thread = threading.Thread(
            target=lambda: came_to.append(hba.manage(hba.lun(0), Function.LOGICAL_UNIT_RESET))
        )
        thread.start()
        assert hba.lun(1).read(0, 1) == bytes(512)
        server.store.release()
        thread.join(HANG_S)
        assert [each.name for each in came_to] == ["FUNCTION_COMPLETE"]
        for future in stuck:
            with pytest.raises(TransportError, match="aborted"):
                future.result(HANG_S)
        reply = hba.command(hba.lun(0), build("TEST UNIT READY"))
        assert parse_sense(reply.sense).asc == 0x29


def test_a_command_behind_an_ordered_one_is_aborted_where_it_waits(server):
    with server.connect(f"srp?queues={QUEUES}") as hba:
        lun = hba.lun(0)
        lun.capacity()
        server.store.hold()
        cdb = build("READ(10)", blocks=1)
        first = hba.start(lun, cdb, data_in=512, attribute=Attribute.ORDERED)
        server.store.wait_held()
        waits = hba.start(lun, cdb, data_in=512)
        hba.manage(lun, Function.ABORT_TASK, managed=waits.command)
        with pytest.raises(TransportError, match="aborted"):
            waits.result(0)
        server.store.release()
        assert first.result(HANG_S).status is Status.GOOD


@both
def test_the_threads_run_where_they_are_told_to(serve, kind, device):
    ours = sorted(os.sched_getaffinity(0))
    cpus = [ours[-1], ours[0]]
    server = serve(queues=2, cpus=cpus)
    with server.connect(f"{kind}?queues=2") as hba:
        hba.lun(0).capacity()
        futures = [read(hba, lba) for lba in range(8)]
        assert all(future.result(HANG_S).status is Status.GOOD for future in futures)
        for end, cpu in zip(ends(server, hba, device), cpus, strict=True):
            assert os.sched_getaffinity(end._thread.native_id) == {cpu}


@pytest.mark.parametrize("ordered_every", [0, 20])
@pytest.mark.parametrize(
    "function", [Function.LOGICAL_UNIT_RESET, Function.ABORT_TASK_SET, Function.CLEAR_TASK_SET]
)
def test_a_function_among_more_commands_than_the_rings_take_leaves_none_behind(
    server, function, ordered_every
):
    """On rings, waiting for rings, and behind ORDERED ones: each ends, aborted or answered."""
    with server.connect(f"srp?queues={QUEUES}") as hba:
        lun = hba.lun(0)
        lun.capacity()
        server.store.hold()
        attributes = [
            Attribute.ORDERED
            if ordered_every and n % ordered_every == ordered_every - 1
            else Attribute.SIMPLE
            for n in range(300)
        ]
        cdb = build("READ(10)", blocks=1)
        futures = [hba.start(lun, cdb, data_in=512, attribute=each) for each in attributes]
        server.store.wait_held(4)
        releaser = threading.Timer(0.0, server.store.release)
        releaser.start()
        assert hba.manage(lun, function).name == "FUNCTION_COMPLETE"
        releaser.join()
        ended = [future.exception(HANG_S) for future in futures]
        assert all(error is None or "aborted" in str(error) for error in ended)
        assert hba.initiator._gate._inside == 0
        hba.command(lun, build("TEST UNIT READY"))
        assert lun.read(0, 1) == bytes(512)


def test_loads_on_the_queues_of_one_nexus_have_tags_of_their_own(server):
    """Else the target takes two of them for one command (SAM-6 5.11, overlapped commands)."""
    with server.connect("srp?queues=2") as hba:
        lun = hba.lun(0)
        block = lun.capacity().block_length
        batches = [
            Batch(queue, lun.address, block, length=512, depth=4) for queue in hba.initiator.queues
        ]
        outcomes = []
        server.store.hold()
        threads = [
            threading.Thread(target=lambda each=each: outcomes.append(each.run([(False, 0)] * 2)))
            for each in batches
        ]
        for thread in threads:
            thread.start()
        server.store.wait_held(4)
        server.store.release()
        for thread in threads:
            thread.join(HANG_S)
        assert outcomes == [{}, {}]
        for batch in batches:
            batch.close()
