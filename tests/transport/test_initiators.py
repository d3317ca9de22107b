# SPDX-License-Identifier: MIT
"""Our frontends: buffers anywhere, many commands at once, aborts, what cannot cross."""

import asyncio
import errno
import itertools
import threading

import pytest

from vscsi.target.base import Attribute, Function, ServiceResponse, Status
from vscsi.target.taskset import Fate
from vscsi.transport import frontend as frontend_module
from vscsi.transport.hba import ScsiError
from vscsi.transport.initiator import Command, ManagementCommand, TransportError
from vscsi.wire.cdb import build
from vscsi.wire.lun import REPORT_LUNS_WLUN, encode
from vscsi.wire.sense import parse_sense

RINGS = ["srp", "vscsiif", "blkif", "srp?queues=3", "blkif?queues=3"]
MANAGED = ["srp", "vscsiif", "srp?queues=3"]
HANG_S = 30


@pytest.fixture
def server(serve):
    return serve(workers=4, queues=3)


@pytest.fixture(params=RINGS)
def hba(request, server):
    with server.connect(request.param) as hba:
        hba.lun(0).capacity()
        yield hba


@pytest.fixture(params=MANAGED)
def managed(request, server):
    """A path with task management, whose unit attentions are seen."""
    with server.connect(request.param) as hba:
        hba.lun(0).capacity()
        yield hba


def execute(initiator, cdb, *, lun=bytes(8), **fields):
    """Run one command with buffers of our own."""
    done = threading.Event()
    command = Command(lun=lun, cdb=cdb, done=lambda _: done.set(), **fields)
    initiator.submit(command)
    assert done.wait(HANG_S)
    return command


# Data


@pytest.mark.parametrize("offset", [0, 1, 7, 511, 512, 513, 4095])
@pytest.mark.parametrize("blocks", [1, 9, 130])
def test_buffers_begin_anywhere(hba, server, offset, blocks):
    path = hba.initiator
    length = blocks * 512
    whole = path.alloc(length + 2 * 4096)
    whole.view[:] = b"\xa5" * len(whole)
    buffer = whole[offset : offset + length]
    data = bytes(n % 249 for n in range(length))
    buffer.view[:] = data
    before = path.statistics.staged_bytes
    assert execute(path, build("WRITE(10)", lba=3, blocks=blocks), data_out=[buffer]).status == 0
    assert server.store.content[3 * 512 : 3 * 512 + length] == data
    buffer.view[:] = bytes(length)
    assert execute(path, build("READ(10)", lba=3, blocks=blocks), data_in=[buffer]).status == 0
    assert buffer.view == data
    assert set(whole.view[:offset]) | set(whole.view[offset + length :]) == {0xA5}
    staged = path.statistics.staged_bytes - before
    assert staged == (2 * length if path.kind == "vbd" and offset % 512 else 0)
    path.free(whole)


@pytest.mark.parametrize("cuts", [(1, 2, 3), (512, 512, 600, 4096), range(0, 8192, 64)])
def test_buffers_are_lists_of_any_pieces(hba, server, cuts):
    path = hba.initiator
    whole = path.alloc(8192)
    whole.view[:] = bytes(n % 253 for n in range(8192))
    pieces = [whole[a:b] for a, b in itertools.pairwise([0, *cuts, 8192])][::-1]
    data = b"".join(bytes(piece.view) for piece in pieces)
    assert execute(path, build("WRITE(10)", lba=0, blocks=16), data_out=pieces).status == 0
    assert server.store.content[:8192] == data
    path.free(whole)


def test_the_largest_transfer_of_a_path(hba, server):
    blocks = 1 << 11  # 1 MiB: 256 pages
    data = bytes(range(256)) * (blocks * 2)
    lun = hba.lun(0)
    lun.write(0, data)
    assert server.store.content == data
    assert lun.read(0, blocks) == data


@pytest.mark.parametrize("kind", RINGS)
def test_a_store_s_error_arrives_as_sense_and_nothing_is_acknowledged(server, kind):
    with server.connect(kind) as hba:
        lun = hba.lun(0)
        lun.capacity()
        server.store.errors = {"read": errno.EIO, "write": errno.ENOSPC, "flush": errno.EIO}
        for cdb, fields, codes in (
            (build("READ(10)", blocks=1), {"data_in": 512}, {(3, 0x11)}),
            (build("WRITE(10)", blocks=1), {"data_out": bytes(512)}, {(7, 0x27), (3, 0x0C)}),
            (build("SYNCHRONIZE CACHE(10)"), {}, {(3, 0x0C)}),
        ):
            with pytest.raises(ScsiError) as error:
                lun.command(cdb, **fields)
            sense = error.value.reply.decoded_sense
            assert (sense.key, sense.asc) in codes


def test_force_unit_access_is_durable_when_it_is_answered(hba, server):
    hba.lun(0).write(0, bytes(512), fua=True)
    assert server.store.log[-2:] == [("write", 0, 512), ("flush",)]


# Many at once


def test_more_commands_than_slots(hba, server):
    futures = []
    for n in range(300):
        data = n.to_bytes(2, "big") * 256
        futures.append(hba.start(hba.lun(0), build("WRITE(10)", lba=n, blocks=1), data_out=data))
    assert all(future.result(HANG_S).status is Status.GOOD for future in futures)
    for n in range(300):
        assert server.store.content[n * 512 : n * 512 + 2] == n.to_bytes(2, "big")
    assert hba.initiator.statistics.most_in_flight <= hba.parameters()["slots"]


def test_commands_of_many_threads(hba):
    wrong = []

    def work(lba):
        lun = hba.lun(0)
        for n in range(20):
            data = bytes([lba, n]) * 256
            lun.write(lba, data)
            if lun.read(lba, 1) != data:
                wrong.append((lba, n))

    threads = [threading.Thread(target=work, args=(lba,)) for lba in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_futures_can_be_awaited(hba):
    async def main():
        reads = [hba.start(hba.lun(0), build("READ(10)", blocks=1), data_in=512) for _ in range(9)]
        return await asyncio.gather(*map(asyncio.wrap_future, reads))

    assert {reply.status for reply in asyncio.run(main())} == {Status.GOOD}


def test_a_done_that_fails_costs_nobody_else(hba, nothing_left, eventually):
    def done(_command):
        raise RuntimeError("an owner's mistake")

    buffer = hba.initiator.alloc(512)
    cdb = build("READ(10)", blocks=1)
    hba.initiator.submit(Command(lun=bytes(8), cdb=cdb, done=done, data_in=[buffer]))
    assert hba.lun(0).read(0, 1)
    eventually(lambda: nothing_left, "the log's record")
    assert "an owner's mistake" in nothing_left.pop()


# Order


@pytest.mark.parametrize("hba", [each for each in RINGS if each != "vscsiif"], indirect=True)
def test_ordered_commands_keep_their_place(hba, server):
    """What came before an ORDERED command is done before it, what came after, after it."""
    server.store.log.clear()
    server.store.hold("write")
    lun = hba.lun(0)

    def write(lba, attribute):
        cdb = build("WRITE(10)", lba=lba, blocks=1)
        return hba.start(lun, cdb, data_out=bytes(512), attribute=attribute)

    simple, ordered = Attribute.SIMPLE, Attribute.ORDERED
    kinds = [simple, simple, ordered, simple, simple, ordered, ordered, simple]
    futures = [write(lba, kind) for lba, kind in enumerate(kinds)]
    server.store.wait_held()
    server.store.release()
    for future in futures:
        assert future.result(HANG_S).status is Status.GOOD
    order = [entry[1] // 512 for entry in server.store.log]
    assert sorted(order[:2]) == [0, 1]
    assert order[2] == 2
    assert sorted(order[3:5]) == [3, 4]
    assert order[5:] == [5, 6, 7]


def test_many_ordered_commands_all_end_when_the_channel_fails(hba, server):
    """Hundreds that fail one after the other must not nest."""
    server.store.hold("read")
    futures = [
        hba.start(hba.lun(0), build("READ(10)", blocks=1), data_in=512, attribute=Attribute.ORDERED)
        for _ in range(1000)
    ]
    server.store.wait_held()
    hba.initiator._fail_all("the test ends the channel")
    for future in futures:
        with pytest.raises(TransportError, match="the test ends the channel"):
            future.result(HANG_S)
    server.store.release()


# Task management


def test_a_command_in_flight_is_aborted(managed, server):
    server.store.hold()
    lun = managed.lun(0)
    future = managed.start(lun, build("READ(10)", blocks=1), data_in=512)
    server.store.wait_held()
    finished = threading.Event()
    request = ManagementCommand(
        lun.address, Function.ABORT_TASK, lambda _: finished.set(), managed=future.command
    )
    managed.initiator.manage(request)
    assert managed.lun(0).command(build("TEST UNIT READY")) == b""  # the abort was taken
    server.store.release()
    assert finished.wait(HANG_S)
    assert request.response is ServiceResponse.FUNCTION_COMPLETE
    with pytest.raises(TransportError):
        future.result(HANG_S)


def test_a_command_that_waits_for_a_slot_is_aborted_where_it_is(managed, server):
    """And no other: it has no tag yet that could be named."""
    server.store.hold()
    lun = managed.lun(0)
    told = managed.parameters()
    room = (told.get("request_limit", told["slots"]) - 1) * told.get("queues", 1)
    futures = [
        managed.start(lun, build("READ(10)", blocks=1), data_in=512) for _ in range(room + 2)
    ]
    server.store.wait_held(4)
    victim = futures[-1]
    response = managed.manage(lun, Function.ABORT_TASK, managed=victim.command)
    assert response is ServiceResponse.FUNCTION_COMPLETE
    with pytest.raises(TransportError, match="aborted"):
        victim.result(0)
    server.store.release()
    for future in futures[:-1]:
        assert future.result(HANG_S).status is Status.GOOD


def test_an_abort_of_what_is_done_meets_nobody_else(managed, server):
    """vscsiif's ids are used again at once: the id may be another command's by now."""
    lun = managed.lun(0)
    old = managed.start(lun, build("READ(10)", blocks=1), data_in=512)
    old.result(HANG_S)
    server.store.hold()
    new = managed.start(lun, build("READ(10)", blocks=1), data_in=512)
    server.store.wait_held()
    response = managed.manage(lun, Function.ABORT_TASK, managed=old.command)
    assert response is ServiceResponse.FUNCTION_COMPLETE
    server.store.release()
    assert new.result(HANG_S).status is Status.GOOD


def test_a_reset_ends_what_is_in_flight(managed, server, eventually):
    server.store.hold()
    lun = managed.lun(0)
    futures = [managed.start(lun, build("READ(10)", blocks=1), data_in=512) for _ in range(3)]
    server.store.wait_held(3)
    finished = threading.Event()
    managed.initiator.manage(
        ManagementCommand(lun.address, Function.LOGICAL_UNIT_RESET, lambda _: finished.set())
    )
    running = server.export.router._places[0].tasks._tasks._running
    eventually(lambda: set(running.values()) == {Fate.SILENT}, "the reset")
    server.store.release()
    assert finished.wait(HANG_S)
    for future in futures:
        with pytest.raises(TransportError):
            future.result(HANG_S)
    reply = managed.command(lun, build("TEST UNIT READY"))
    assert parse_sense(reply.sense).asc == 0x29


def test_a_command_that_takes_too_long_is_aborted(managed, server):
    server.store.hold()
    started = threading.Event()

    def release():
        server.store.wait_held()
        started.wait(HANG_S)
        server.store.release()

    thread = threading.Thread(target=release)
    thread.start()
    manage = managed.initiator.manage

    def watched(request):
        manage(request)
        started.set()

    managed.initiator.manage = watched
    with pytest.raises(TransportError, match="no answer to READ"):
        managed.command(managed.lun(0), build("READ(10)", blocks=1), data_in=512, timeout_s=0.05)
    thread.join()


def test_functions_that_a_path_has_not(server):
    with server.connect("vscsiif") as hba:
        for function in (Function.ABORT_TASK_SET, Function.CLEAR_TASK_SET, Function.CLEAR_ACA):
            assert hba.manage(hba.lun(0), function) is ServiceResponse.NOT_SUPPORTED
    with server.connect("blkif") as hba:
        for function in Function:
            assert hba.manage(hba.lun(0), function) is ServiceResponse.NOT_SUPPORTED
    with server.connect("srp") as hba:
        came_to = hba.manage(hba.lun(9), Function.LOGICAL_UNIT_RESET)
        assert came_to is ServiceResponse.INCORRECT_LOGICAL_UNIT


# What cannot cross


@pytest.mark.parametrize(
    "lun", [REPORT_LUNS_WLUN, encode(0x10000), bytes.fromhex("0101000000000000"), b"\0"]
)
def test_a_lun_that_vscsiif_cannot_name_is_not_another_one(server, lun):
    with server.connect("vscsiif") as hba:
        with pytest.raises(TransportError, match="LUN"):
            hba.command(lun, build("INQUIRY", allocation_length=36), data_in=36)
        with pytest.raises(TransportError, match="LUN"):
            hba.manage(lun, Function.LOGICAL_UNIT_RESET)
        assert hba.lun(0).inquiry()


def test_srp_reaches_the_well_known_logical_unit(server):
    with server.connect("srp") as hba:
        cdb = build("INQUIRY", allocation_length=36)
        reply = hba.command(REPORT_LUNS_WLUN, cdb, data_in=36)
        assert reply.data[0] == 0x1E


def test_long_cdbs(server):
    with server.connect("srp") as hba:
        reply = hba.command(hba.lun(0), b"\x7f" + bytes(31))
        assert reply.status is Status.CHECK_CONDITION
        for length in (16 + 77, 16 + 256):
            with pytest.raises(TransportError, match="does not fit"):
                hba.command(hba.lun(0), b"\x7f" + bytes(length - 1))
        assert hba.lun(0).read(0, 1)
    with server.connect("vscsiif") as hba, pytest.raises(TransportError, match="16 bytes"):
        hba.command(hba.lun(0), b"\x7f" + bytes(31))


def test_both_directions_at_once(server):
    fields = {"data_out": bytes(9), "data_in": 8}
    with server.connect("srp") as hba:
        path = hba.initiator
        whole = path.alloc(4096)
        pieces = [whole[n : n + 1] for n in range(0, 40, 2)]
        used = path._arena._used.count(1)
        for _ in range(2):  # the first is told of a unit attention
            command = execute(path, bytes(6), data_out=pieces, data_in=pieces)
            assert (command.error, command.residual) == (None, 20)
        assert path._arena._used.count(1) == used  # both tables are given back
    with server.connect("vscsiif") as hba, pytest.raises(TransportError, match="one way"):
        hba.command(hba.lun(0), bytes(6), **fields)


def test_a_transfer_beyond_the_segments_of_vscsiif(server):
    with server.connect("vscsiif") as hba:
        with pytest.raises(TransportError, match="more than the 256 segments"):
            hba.command(hba.lun(0), build("READ(10)", blocks=2049), data_in=2049 * 512)
        assert hba.lun(0).read(0, 1)


# Memory


@pytest.mark.parametrize("kind", RINGS)
def test_memory_that_is_used_up_is_said_and_comes_back(server, kind):
    with server.connect(kind) as hba:
        lun = hba.lun(0)
        lun.capacity()
        cdb = build("READ(10)", blocks=2048)
        server.store.hold("read")
        futures = [hba.start(lun, cdb, data_in=1 << 20) for _ in range(4)]
        with pytest.raises(TransportError, match="pages"):
            futures.extend(hba.start(lun, cdb, data_in=1 << 20) for _ in range(64))
        server.store.wait_held()
        server.store.release()
        for future in futures:
            assert future.result(HANG_S).status is Status.GOOD
        assert len(lun.read(0, 2048)) == 1 << 20


@pytest.mark.parametrize("kind", ["vscsiif", "blkif"])
def test_commands_wait_for_memory_that_describes_them(server, monkeypatch, kind):
    """Tables of segments need pages as well: those in flight give some back."""
    monkeypatch.setattr(frontend_module, "MEMORY_BYTES", 4 << 20)
    with server.connect(kind) as hba:
        path = hba.initiator
        hba.lun(0).capacity()
        buffer = path.alloc(100 * 4096)
        spare = []
        while path.guest.memory._used.count(0) > 1:
            spare.append(path.alloc(4096))
        done = threading.Semaphore(0)
        commands = [
            Command(
                lun=bytes(8),
                cdb=build("READ(10)", blocks=800),
                done=lambda _: done.release(),
                data_in=[buffer],
            )
            for _ in range(4)
        ]
        server.store.hold("read")
        for command in commands:
            path.submit(command)
        server.store.wait_held()
        server.store.release()
        for _ in commands:
            assert done.acquire(timeout=HANG_S)
        assert [command.error for command in commands] == [None] * 4
        # With nothing in flight nothing comes back: then it is an error, and not for ever.
        last = path.alloc(4096)
        assert "pages" in str(execute(path, build("READ(10)", blocks=800), data_in=[buffer]).error)
        path.free(last)
        assert execute(path, build("READ(10)", blocks=800), data_in=[buffer]).error is None


@pytest.mark.parametrize("kind", ["vscsiif", "blkif"])
def test_pages_that_a_failed_channel_left_granted_are_not_used_again(server, kind):
    """The backend may write to them yet."""
    with server.connect(kind) as hba:
        hba.lun(0).capacity()
        path = hba.initiator
        buffer = path.alloc(4096)
        server.store.hold("read")
        done = threading.Event()
        cdb = build("READ(10)", blocks=8)
        path.submit(Command(bytes(8), cdb, lambda _: done.set(), data_in=[buffer]))
        server.store.wait_held()
        path._fail("the test ends the channel")
        assert done.wait(HANG_S)
        path.free(buffer)
        assert path.alloc(4096).address != buffer.address
        server.store.release()


def test_after_the_close_everything_is_refused(hba):
    hba.close()
    hba.close()
    with pytest.raises(TransportError):
        hba.lun(0).read(0, 1)
    with pytest.raises(TransportError):
        hba.command(hba.lun(0), bytes(6))
