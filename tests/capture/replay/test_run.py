# SPDX-License-Identifier: MIT
"""Replays over initiators that answer as they are told, and over a real target by a call."""

import os
import threading
from pathlib import Path

import pytest

from vscsi.capture.commands import Disk, Event, Fate
from vscsi.capture.replay.order import InOrder
from vscsi.capture.replay.report import report
from vscsi.capture.replay.run import CHANGES, GONE, How, Replay
from vscsi.capture.replay.step import Steps
from vscsi.capture.replay.translate import NO_DATA, NO_RANGES
from vscsi.capture.replay.units import Units
from vscsi.capture.sources.columns import replaced
from vscsi.domain.memory import OutOfMemoryError
from vscsi.target.base import Attribute, Function, Nexus, Status
from vscsi.target.disk import Disk as TargetDisk
from vscsi.target.router import TaskRouter
from vscsi.target.stores.memory import MemoryStore
from vscsi.transport.call import CallInitiator
from vscsi.transport.hba import Hba
from vscsi.transport.initiator import TransportError
from vscsi.wire import cdb as cdbs
from vscsi.wire.parameters import build_unmap
from vscsi.wire.sense import Sense, SenseKey

HANG_S = 60
RESET_ATTENTION = Sense(SenseKey.UNIT_ATTENTION, 0x29, 0x03)
MEDIUM_ERROR = Sense(SenseKey.MEDIUM_ERROR, 0x11, 0x00)


@pytest.fixture
def disk():
    """A disk of 4 MiB, called: the HBA and the store."""
    store = MemoryStore(4 << 20)
    router = TaskRouter()
    router.add(0, TargetDisk(store, identity="a test's"))
    hba = Hba(CallInitiator(router, Nexus("a", "b")))
    yield hba, store
    hba.close()
    router.close()
    store.close()


class Running:
    """A replay in a thread of its own."""

    def __init__(self, hba, source, **how):
        how.setdefault("speed", None)
        self.replay = Replay(
            hba, Units(hba), Steps(InOrder(source), source.events), source.disks, How(**how)
        )
        self._thread = threading.Thread(target=self.replay.run)
        self._thread.start()

    def join(self):
        self._thread.join(HANG_S)
        assert not self._thread.is_alive()
        return self.replay


def lbas(commands):
    return [cdbs.decode(command.cdb).lba for command in commands]


def test_commands_go_as_they_were_with_their_attributes_and_data(
    fake, source, batch, transfer, run_replay
):
    rows = [
        transfer("WRITE", 8, data=b"w" * 512, attribute=int(Attribute.ORDERED)),
        transfer("READ", 8, attribute=int(Attribute.HEAD_OF_QUEUE)),
        {"cdb": cdbs.build("SYNCHRONIZE CACHE(10)"), "status": 0, "latency_ns": 9},
        transfer("READ", 1 << 19, 8),
    ]
    rows[3]["cdb"] = bytearray(rows[3]["cdb"])
    rows[3]["cdb"][1] |= 0x08  # FUA
    rows[3]["cdb"] = bytes(rows[3]["cdb"])
    hba, initiator = fake()
    replay = run_replay(hba, source([batch(rows)]))
    assert [command.cdb for command in initiator.commands] == [row["cdb"] for row in rows]
    assert [command.attribute for command in initiator.commands[:3]] == [
        Attribute.ORDERED,
        Attribute.HEAD_OF_QUEUE,
        Attribute.SIMPLE,
    ]
    assert bytes(initiator.commands[0].data_out[0].view) == b"w" * 512
    assert initiator.in_use == 0
    assert replay.sent == 4
    assert not replay.left_out


def test_order_of_completion_does_not_matter(fake, source, batch, transfer, run_replay):
    rows = [transfer("READ", lba, serial=lba, time_ns=10 * lba, latency_ns=1) for lba in range(50)]
    hba, initiator = fake()
    run_replay(hba, source([batch(rows[25:][::-1]), batch(rows[:25])]))
    assert lbas(initiator.commands) == list(range(50))


def test_what_came_after_an_answer_waits_for_it_and_what_was_concurrent_does_not(
    fake, source, batch, transfer
):
    rows = [
        transfer("WRITE", 0, time_ns=0, latency_ns=100),
        transfer("WRITE", 1, time_ns=50, latency_ns=1000),
        transfer("READ", 0, time_ns=100, latency_ns=10),  # after the first's end
    ]
    hba, initiator = fake(at_once=False)
    running = Running(hba, source([batch(rows)]))
    for _ in range(2):
        assert initiator.arrived.acquire(timeout=HANG_S)
    assert lbas(initiator.held) == [0, 1]
    initiator.answer(initiator.held[1])
    assert not initiator.arrived.acquire(blocking=False)
    initiator.answer(initiator.held[0])
    assert initiator.arrived.acquire(timeout=HANG_S)
    initiator.answer(initiator.held[2])
    replay = running.join()
    assert lbas(initiator.commands) == [0, 1, 0]
    assert replay.pace.most_in_flight == 2


def test_times_are_kept_and_lag_is_told(fake, source, batch, transfer):
    now = [0]

    def clock():
        now[0] += 1000
        return now[0]

    hba, initiator = fake()
    source_ = source([batch([transfer("READ", at, time_ns=at * 50_000) for at in range(20)])])
    at = []
    initiator._reply = lambda _command: at.append(now[0])
    replay = Replay(
        hba,
        Units(hba),
        Steps(InOrder(source_), source_.events),
        source_.disks,
        How(speed=10.0),
        clock=clock,
    )
    replay.run()
    assert all(when - at[0] >= number * 5000 for number, when in enumerate(at))
    lag = report(replay, late_rows=0)["lag_us"]
    assert 0 <= lag["p50"] <= lag["p99"] <= lag["max"] < 200


def test_abort_goes_to_the_command_that_has_the_tag_now(fake, source, batch, transfer):
    rows = [
        transfer("READ", 0, tag=77, fate=int(Fate.ABORTED), status=None, latency_ns=None),
        transfer("READ", 1, time_ns=5000, tag=78, latency_ns=10),
    ]
    abort = Event(1000, 0, "ABORT TASK", "", Function.ABORT_TASK, 0, 77, 100)
    reset = Event(2000, 0, "RESET", "", Function.LOGICAL_UNIT_RESET, 0, None, 100)
    late = Event(9000, 0, "ABORT TASK", "", Function.ABORT_TASK, 0, 78, 100)
    hba, initiator = fake(at_once=False)

    def manage(request):
        initiator.managed.append(request)
        if request.function is Function.ABORT_TASK:
            request.managed.error = TransportError("aborted by task management")
            request.managed.done(request.managed)
        request.done(request)

    initiator.manage = manage
    running = Running(hba, source([batch(rows)], events=[abort, reset, late]))
    assert initiator.arrived.acquire(timeout=HANG_S)
    assert initiator.arrived.acquire(timeout=HANG_S)
    initiator.answer(initiator.held[1])
    replay = running.join()
    first, second = initiator.managed
    assert (first.function, first.managed) == (Function.ABORT_TASK, initiator.commands[0])
    assert (second.function, second.managed) == (Function.LOGICAL_UNIT_RESET, None)
    assert replay.failure == ""
    assert replay.aborted == 1
    assert replay.left_out == {GONE: 1}
    assert replay.management == {
        "ABORT TASK: FUNCTION COMPLETE": 1,
        "LOGICAL UNIT RESET: FUNCTION COMPLETE": 1,
    }


def test_a_command_that_meets_a_unit_attention_is_sent_again(
    fake, source, batch, transfer, run_replay
):
    hba, initiator = fake()

    def reply(command):
        if len(initiator.commands) <= 2:
            command.status, command.sense = Status.CHECK_CONDITION, RESET_ATTENTION.build()

    initiator._reply = reply
    replay = run_replay(hba, source([batch([transfer("WRITE", 5)])]))
    assert lbas(initiator.commands) == [5, 5, 5]
    assert replay.sent_again == 2
    assert not replay.judge.counts


def test_every_answer_that_differs_is_told(fake, source, batch, transfer, run_replay):
    recorded = {"status": 2, "sense_key": 3, "asc": 0x11, "ascq": 0}
    rows = [
        transfer("READ", 0),  # GOOD, now CHECK CONDITION
        transfer("READ", 1, **recorded),  # the same
        transfer("READ", 2, **{**recorded, "asc": 0x0C}),  # another sense
        transfer("READ", 3, **recorded),  # now GOOD
        transfer("READ", 4, residual=512),  # another residual
        transfer("READ", 5, fate=int(Fate.OPEN), status=None),  # nothing to compare
    ]
    hba, initiator = fake()

    def reply(command):
        if cdbs.decode(command.cdb).lba < 3:
            command.status, command.sense = Status.CHECK_CONDITION, MEDIUM_ERROR.build()

    initiator._reply = reply
    replay = run_replay(hba, source([batch(rows)]))
    assert replay.judge.counts == {"status": 2, "sense": 1, "residual": 1}
    assert [(each.serial, each.kind) for each in replay.judge.differences] == [
        (0, "status"),
        (2, "sense"),
        (3, "status"),
        (4, "residual"),
    ]
    assert replay.judge.compared == 5
    assert replay.judge.not_comparable == 1
    first = replay.judge.differences[0]
    assert (first.recorded, "MEDIUM ERROR" in first.replayed) == ("GOOD", True)


def test_the_list_of_differences_is_bounded(fake, source, batch, transfer, run_replay):
    rows = [transfer("READ", at, residual=512) for at in range(500)]
    replay = run_replay(fake()[0], source([batch(rows)]))
    assert replay.judge.counts == {"residual": 500}
    assert len(replay.judge.differences) == 100


def test_what_cannot_be_sent_is_left_out_with_its_reason(fake, source, batch, transfer, run_replay):
    rows = [
        {"cdb": cdbs.build("UNMAP", parameter_list_length=40), "data_out": 40, "status": 0},
        {"cdb": cdbs.build("MODE SELECT(6)", parameter_list_length=12), "data_out": 12},
        {"cdb": cdbs.build("TEST UNIT READY"), "status": 0},
        transfer("WRITE", 1),
    ]
    replay = run_replay(fake()[0], source([batch(rows)]))
    assert replay.left_out == {NO_RANGES: 1, NO_DATA: 1}
    assert replay.sent == 2
    replay = run_replay(fake()[0], source([batch(rows)]), read_only=True)
    assert replay.left_out == {CHANGES: 3}


def test_a_path_that_fails_ends_the_replay_in_one_line(fake, source, batch, transfer):
    hba, initiator = fake(at_once=False)
    running = Running(hba, source([batch([transfer("READ", at) for at in range(9)])]))
    assert initiator.arrived.acquire(timeout=HANG_S)
    initiator.held[0].error = TransportError("the server is gone")
    initiator.held[0].done(initiator.held[0])
    assert running.join().failure == "the server is gone"


def test_a_command_without_an_answer_is_a_failure_after_the_timeout(fake, source, batch, transfer):
    hba, _ = fake(at_once=False)
    running = Running(hba, source([batch([transfer("READ", 3)])]), timeout_s=0.01)
    assert running.join().failure == "no answer to READ(10) lba 3 blocks 1 within 0.01 s"


def test_stop_ends_after_what_is_in_flight(fake, source, batch, transfer):
    hba, initiator = fake(at_once=False)
    running = Running(hba, source([batch([transfer("READ", at) for at in range(9)])]))
    assert initiator.arrived.acquire(timeout=HANG_S)
    running.replay.stop()
    initiator.answer(initiator.held[0])
    replay = running.join()
    assert (replay.sent, replay.stopped, replay.failure) == (1, True, "")


def test_memory_for_data_that_is_not_there_yet_is_waited_for(fake, source, batch, transfer):
    hba, initiator = fake(at_once=False)
    alloc = initiator.alloc

    def bounded(length):
        if initiator.in_use + length > 1024:
            raise OutOfMemoryError("used up")
        return alloc(length)

    initiator.alloc = bounded
    rows = [transfer("READ", at, time_ns=at, latency_ns=1000) for at in range(4)]
    rows.append(transfer("READ", 9, 4, time_ns=5000))
    running = Running(hba, source([batch(rows)]))
    for turn in range(4):
        assert initiator.arrived.acquire(timeout=HANG_S)
        assert initiator.in_use <= 1024
        initiator.answer(initiator.held[turn])
    replay = running.join()
    assert replay.left_out == {"the path has no memory for its data": 1}
    assert lbas(initiator.commands) == [0, 1, 2, 3]


def test_made_up_data_verify_and_damage_is_found(disk, source, batch, transfer, run_replay):
    hba, _store = disk
    first = [transfer("WRITE", at * 8, 8) for at in range(16)]
    replay = run_replay(hba, source([batch(first)]), verify=True)
    assert replay.judge.made_up == 16
    again = first + [transfer("READ", at * 8, 8, time_ns=10**9 + at * 1000) for at in range(16)]
    replay = run_replay(hba, source([batch(again)]), verify=True)
    assert not replay.judge.counts
    assert replay.judge.checked_bytes == 16 * 8 * 512

    damage = {"cdb": cdbs.build("WRITE(10)", lba=13, blocks=1)}
    hole = bytearray(b"x" * 512)

    def then_damaged():
        yield batch(first)
        hba.command(hba.lun(0), damage["cdb"], data_out=hole)
        yield batch(
            [
                transfer("READ", at * 8, 8, serial=100 + at, time_ns=10**9 + at * 1000)
                for at in range(16)
            ]
        )

    # The window would read both batches before anything is sent.
    damaged = source(then_damaged())
    steps = Steps(damaged, damaged.events)
    replay = Replay(hba, Units(hba), steps, damaged.disks, How(None, verify=True))
    replay.run()
    assert replay.judge.counts == {"data": 1}
    (found,) = replay.judge.differences
    assert found.serial == 101
    assert "block 13" in found.replayed


def test_captured_data_are_written_and_compared(disk, source, batch, transfer, run_replay):
    hba, _store = disk
    rows = [
        transfer("WRITE", 2, 2, data=b"a" * 1024),
        transfer("READ", 3, 1, data=b"a" * 512),
        transfer("READ", 2, 1, data=b"a" * 100 + b"b"),  # a cut one, that was another
    ]
    unmap = build_unmap([(2, 1)])
    rows += [
        {
            "cdb": cdbs.build("UNMAP", parameter_list_length=len(unmap)),
            "data_out": len(unmap),
            "data": unmap,
            "status": 0,
            "latency_ns": 10,
        },
        transfer("READ", 2, 2, data=bytes(512) + b"a" * 512),
    ]
    replay = run_replay(hba, source([batch(rows)]), verify=True)
    assert replay.judge.counts == {"data": 1}
    assert replay.judge.differences[0].serial == 2
    assert "from byte 100" in replay.judge.differences[0].replayed
    assert replay.judge.made_up == 0


def test_many_disks_and_many_units_keep_apart(source, batch, transfer, run_replay):
    stores = [MemoryStore(1 << 20) for _ in range(2)]
    router = TaskRouter()
    for number, store in enumerate(stores):
        router.add(number, TargetDisk(store, identity=f"disk {number}"))
    disks = [Disk(f"lun {n}", lun=bytes((0, n)) + bytes(6)) for n in range(2)]
    rows = [transfer("WRITE", n, data=bytes([n + 1]) * 512, disk=n) for n in (0, 1)]
    with Hba(CallInitiator(router, Nexus("a", "b"))) as hba:
        run_replay(hba, source([batch(rows)], disks=disks))
        assert hba.lun(0).read(0, 2) == b"\1" * 512 + bytes(512)
        assert hba.lun(1).read(0, 2) == bytes(512) + b"\2" * 512
        run_replay(hba, source([batch(rows)], disks=disks), lun=0)
        assert hba.lun(0).read(0, 2) == b"\1" * 512 + b"\2" * 512
    router.close()
    for store in stores:
        store.close()


def test_memory_does_not_grow_with_the_capture(fake, source, batch, transfer):
    """200,000 commands with 100 MB of data take no more than 20,000 did."""
    block = batch([transfer("WRITE", at, data=bytes(512), tag=at) for at in range(1000)])
    most = 0

    def batches(count):
        nonlocal most
        for at in range(0, count, 1000):
            most = max(most, resident_bytes())
            places = list(range(at, at + 1000))
            yield replaced(block, {"serial": places, "time_ns": places})

    for count in (20_000, 200_000):
        hba, initiator = fake()
        initiator.commands = Forgetful()
        made = source(batches(count))
        before, most = most, 0
        order = InOrder(made, rows=2000)
        replay = Replay(
            hba, Units(hba), Steps(order, made.events), made.disks, How(None, verify=True)
        )
        replay.run()
        assert replay.sent == count
    assert most - before < 16 << 20


def resident_bytes():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


class Forgetful(list):
    def append(self, _item):
        pass
