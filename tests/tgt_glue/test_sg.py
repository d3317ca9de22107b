# SPDX-License-Identifier: MIT
"""Commands through an sg node: what the kernel is told, and which of its bytes are believed."""

import errno
import itertools
import os
import threading

import pytest

from tgt_glue import sg
from tgt_glue.sg_file import runs
from vscsi.wire.errors import SetupError

READ_2 = bytes.fromhex("28000000000000000200")
WRITE_2 = bytes.fromhex("2a000000000000000200")
TO_DEVICE, FROM_DEVICE, NO_DATA = -2, -3, -1
DIRECT_IO, MMAP_IO, AT_TAIL = 0x01, 0x04, 0x10
CHECK_CONDITION = 2


def views(data, *cuts):
    """Cut memory into separate views."""
    whole = memoryview(data)
    edges = [0, *cuts, len(whole)]
    return [whole[start:end] for start, end in itertools.pairwise(edges)]


def test_a_command_without_data(make_node, make_device):
    node = make_node()
    answer = make_device(node).execute(bytes(6), timeout_s=2.5)
    assert (answer.status, answer.host_status, answer.sense, answer.arrived) == (0, 0, b"", 0)
    (sent,) = node.sent
    assert (sent.cdb, sent.direction, sent.length) == (bytes(6), NO_DATA, 0)
    assert sent.timeout_ms == 2500
    assert sent.flags == AT_TAIL  # sg's own default would overtake what was sent before


def test_data_out_goes_from_where_it_is_in_one_list(make_node, make_device):
    node, data = make_node(), bytes(range(256)) * 4
    parts = [memoryview(bytearray(data[start:end])) for start, end in ((0, 100), (100, 1024))]
    device = make_device(node)
    device.execute(WRITE_2, timeout_s=20, out=parts)
    (sent,) = node.sent
    assert (sent.direction, sent.data, sent.iovecs) == (TO_DEVICE, data, 2)
    assert device.staged_bytes == 0


def test_pieces_that_adjoin_are_one(make_node, make_device):
    node, data = make_node(), bytes(range(256)) * 4
    make_device(node).execute(WRITE_2, timeout_s=20, out=views(data, 5, 6, 700))
    (sent,) = node.sent
    assert (sent.data, sent.iovecs) == (data, 0)


def test_more_pieces_than_the_kernel_takes_are_copied(make_node, make_device):
    node, data = make_node(), bytes(range(256)) * 12
    device = make_device(node)
    device.execute(
        WRITE_2, timeout_s=20, out=[memoryview(data)[at:][:1] for at in range(0, 3072, 2)]
    )
    (sent,) = node.sent
    assert sent.data == data[::2]
    assert device.staged_bytes == 1536


def test_data_in_comes_through_the_reserve_buffer(make_node, make_device, reply):
    data = os.urandom(1024)
    node = make_node(lambda sent: reply(data))
    room = bytearray(1024)
    device = make_device(node)
    answer = device.execute(READ_2, timeout_s=20, into=views(room, 3, 600), wanted=1024)
    assert (answer.arrived, room) == (1024, data)
    assert node.sent[0].flags == MMAP_IO | AT_TAIL
    assert device.staged_bytes == 1024


def test_what_did_not_arrive_is_not_passed_on(make_node, make_device, reply):
    node = make_node(lambda sent: reply(b"new"))
    room = bytearray(b"." * 8)
    answer = make_device(node).execute(READ_2, timeout_s=20, into=[memoryview(room)], wanted=8)
    assert (answer.arrived, room) == (3, b"new.....")


def test_nothing_is_passed_on_of_a_command_that_failed(make_node, make_device, reply):
    sense = bytes.fromhex("700005000000000a000000002400000000000000")
    node = make_node(lambda sent: reply(b"", CHECK_CONDITION, sense, driver=8, residual=0))
    room = bytearray(b"." * 8)
    answer = make_device(node).execute(READ_2, timeout_s=20, into=[memoryview(room)], wanted=8)
    assert (answer.status, answer.sense, answer.arrived) == (CHECK_CONDITION, sense, 0)
    assert room == b"." * 8


@pytest.mark.parametrize(("residual", "arrived"), [(-5, 8), (0, 8), (8, 0), (9000, 0)])
def test_a_residual_out_of_range_is_put_right(make_node, make_device, reply, residual, arrived):
    node = make_node(lambda sent: reply(b"12345678", residual=residual))
    answer = make_device(node).execute(READ_2, timeout_s=20, wanted=8)
    assert answer.arrived == arrived


def test_a_buffer_that_is_short_takes_what_fits(make_node, make_device, reply):
    node = make_node(lambda sent: reply(b"12345678"))
    room = bytearray(3)
    answer = make_device(node).execute(READ_2, timeout_s=20, into=[memoryview(room)], wanted=8)
    assert (answer.arrived, room) == (8, b"123")


def test_reserve_buffers_grow_to_what_is_wanted(make_node, make_device, reply):
    node = make_node(lambda sent: reply(bytes([sent.length >> 10 & 0xFF]) * sent.length))
    device = make_device(node)
    for wanted in (512, 200 << 10, 1 << 20, 512):
        room = bytearray(wanted)
        device.execute(READ_2, timeout_s=20, into=[memoryview(room)], wanted=wanted)
        assert room == bytes([wanted >> 10 & 0xFF]) * wanted
    assert node.opened == 2


def test_without_a_reserve_buffer_stale_bytes_stay_here_too(make_node, make_device, reply):
    """sd_mod lowers the limit of what can be mapped while it looks at a disk."""
    node = make_node(lambda sent: reply(b"new"), max_reserve=65536)
    device = make_device(node)
    for wanted, flags in ((100_000, AT_TAIL), (8, AT_TAIL)):
        room = bytearray(b"." * wanted)
        answer = device.execute(
            READ_2, timeout_s=20, into=[memoryview(room)], wanted=wanted, all_or_nothing=True
        )
        assert (answer.arrived, room) == (3, b"new".ljust(wanted, b"."))
        assert node.sent[-1].flags == flags


def test_direct_io_takes_one_aligned_run_of_a_command_that_moves_all(
    make_node, make_device, reply, page_buffer
):
    data = os.urandom(8192)
    node = make_node(lambda sent: reply(data[: sent.length]), direct_io=True)
    device = make_device(node)
    room = page_buffer(8192)
    whole = {"timeout_s": 20, "into": [room[:4096], room[4096:]], "wanted": 8192}
    device.execute(READ_2, **whole, all_or_nothing=True)
    assert room == data
    device.execute(WRITE_2, timeout_s=20, out=[room])
    assert device.staged_bytes == 0
    device.execute(READ_2, **whole)
    device.execute(READ_2, timeout_s=20, into=[room[2:6]], wanted=4, all_or_nothing=True)
    device.execute(READ_2, timeout_s=20, into=[room[:4]], wanted=8, all_or_nothing=True)
    device.execute(WRITE_2, timeout_s=20, out=[room[:4096], room[4100:8192]])
    assert [sent.flags & (DIRECT_IO | MMAP_IO) for sent in node.sent] == [
        DIRECT_IO,
        DIRECT_IO,
        MMAP_IO,
        MMAP_IO,
        MMAP_IO,
        0,
    ]


def test_commands_run_beside_each_other_each_with_a_file(make_node, make_device, reply):
    met = threading.Barrier(20)

    def execute(sent):
        met.wait(30)
        return reply(sent.cdb)

    node = make_node(execute)
    device = make_device(node)
    rooms = [bytearray(10) for _ in range(20)]

    def run(at):
        cdb = bytes([0x28, *[at] * 9])
        device.execute(cdb, timeout_s=20, into=[memoryview(rooms[at])], wanted=10)

    threads = [threading.Thread(target=run, args=(at,)) for at in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert rooms == [bytes([0x28, *[at] * 9]) for at in range(20)]
    assert node.opened == 20


def test_a_command_that_the_kernel_keeps_is_let_go_of(make_node, make_device, reply, monkeypatch):
    monkeypatch.setattr(sg, "GRACE_S", 0.05)
    hang = threading.Event()

    def execute(sent):
        if sent.cdb == READ_2:
            hang.wait(30)
        return reply(b"late data")

    device = make_device(make_node(execute))
    room = bytearray(b"." * 9)
    with pytest.raises(TimeoutError):
        device.execute(READ_2, timeout_s=0, into=[memoryview(room)], wanted=9)
    assert device.lost == 1
    with pytest.raises(OSError, match="earlier commands") as refused:
        device.reset()
    assert refused.value.errno == errno.EBUSY
    assert device.execute(bytes(6), timeout_s=20).status == 0  # others go on
    hang.set()
    while device.lost:  # the kernel ends it after all
        pass
    assert room == b"." * 9
    device.reset()


@pytest.mark.parametrize("way", ["out", "into"])
def test_direct_io_is_never_let_go_of(make_node, make_device, reply, page_buffer, monkeypatch, way):
    """The initiator would have its pages back while the kernel still works on them."""
    monkeypatch.setattr(sg, "GRACE_S", 0.0)
    begun, end = threading.Event(), threading.Event()

    def execute(sent):
        begun.set()
        assert end.wait(30)
        return reply(bytes(sent.length))

    device = make_device(make_node(execute, direct_io=True))
    views = {way: [page_buffer(4096)], "wanted": 4096 if way == "into" else 0}
    answers = []

    def run():
        answers.append(device.execute(READ_2, timeout_s=0, all_or_nothing=True, **views))

    thread = threading.Thread(target=run)
    thread.start()
    assert begun.wait(30)
    assert (answers, device.lost) == ([], 0)
    end.set()
    thread.join(30)
    assert answers[0].status == 0


def test_a_kernel_that_ends_nothing_gets_no_more(make_node, make_device, monkeypatch):
    monkeypatch.setattr(sg, "GRACE_S", 0.0)
    monkeypatch.setattr(sg, "MAX_LOST", 3)
    node = make_node(lambda sent: None)
    device = make_device(node)
    for _ in range(5):
        with pytest.raises(TimeoutError):
            device.execute(bytes(6), timeout_s=0)
    assert node.opened == 3


def test_a_node_that_is_not_there_is_a_setup_error(make_node, make_device):
    node = make_node(open_error=FileNotFoundError(errno.ENOENT, "No such file or directory"))
    with pytest.raises(SetupError, match="open /dev/sg0: No such file"):
        make_device(node)


def test_a_node_that_left_refuses_commands(make_node, make_device):
    node = make_node()
    device = make_device(node)
    device.execute(bytes(6), timeout_s=20)
    node.open_error = OSError(errno.ENXIO, "No such device or address")
    device._idle.pop().close()
    with pytest.raises(OSError, match="No such device") as refused:
        device.execute(bytes(6), timeout_s=20)
    assert refused.value.errno == errno.ENXIO


def test_runs_join_what_adjoins():
    memory = memoryview(bytearray(100))
    other = memoryview(bytearray(5))
    assert [size for _, size in runs([memory[:10], memory[10:20], memory[20:20]])] == [20]
    assert [size for _, size in runs([memory[:10], memory[11:20], other])] == [10, 9, 5]
    assert runs([]) == []
