# SPDX-License-Identifier: MIT
"""The kernel's commands over a path: answered once each, in any order, whatever becomes of it."""

import os
import queue
import struct
from contextlib import ExitStack, suppress

import pytest

from tests.tgt_glue.tcmu_kernel import CMD, RING_AT, Kernel
from tgt_glue.tcmu import TcmuRing
from vscsi.cli.hba_bridge import Bridge
from vscsi.domain.memory import OutOfMemoryError
from vscsi.target.base import Function, Nexus, Status
from vscsi.target.disk import Disk
from vscsi.target.router import TaskRouter
from vscsi.target.stores.memory import MemoryStore
from vscsi.transport.call import CallInitiator
from vscsi.transport.initiator import Buffer, TransportError
from vscsi.wire.cdb import build
from vscsi.wire.inquiry import VpdPage, parse_vpd
from vscsi.wire.lun import encode
from vscsi.wire.sense import SenseKey, parse_sense

BLOCK = 512
MOST_BYTES = 32 << 10
HANG_S = 30
READ_LEN = 2
STALE = 0xEE


class Device:
    """A TCMU device: its kernel's side is the test."""

    def __init__(self):
        self.kernel = Kernel(size=4096)
        self.kernel.memory[self.kernel.data_at :] = bytes([STALE]) * (
            len(self.kernel.memory) - self.kernel.data_at
        )
        self.ring = TcmuRing(memoryview(self.kernel.memory))
        self.events = os.eventfd(0, os.EFD_NONBLOCK)
        self.kicks = queue.SimpleQueue()
        self.gone = False
        self.closed = False

    def fileno(self):
        return self.events

    def clear(self):
        if self.gone:
            raise OSError(5, "Input/output error")
        with suppress(BlockingIOError):
            os.eventfd_read(self.events)

    def kick(self):
        self.kicks.put(None)

    def close(self):
        self.closed = True
        os.close(self.events)

    def notify(self):
        os.eventfd_write(self.events, 1)

    def answers(self, count):
        """Return that many answers, waiting for them."""
        found = []
        while len(found) < count:
            self.kicks.get(timeout=HANG_S)
            found += self.kernel.take()
        assert len(found) == count
        return {answer[0]: answer[1:] for answer in found}

    def data(self, offset, length):
        at = self.kernel.data_at + offset
        return bytes(self.kernel.memory[at : at + length])

    def area(self, offset, length):
        return (self.kernel.data_at + offset, length)


class Held:
    """An initiator that ends commands when it is told to, and has little memory."""

    def __init__(self, pages=1 << 30):
        self.pages = pages
        self.commands = queue.SimpleQueue()
        self.managed = queue.SimpleQueue()
        self.error = None
        self.used = 0

    def alloc(self, length):
        if self.used + length > self.pages * 4096:
            raise OutOfMemoryError("no memory")
        self.used += length
        return Buffer(memoryview(bytearray(length)), 0)

    def free(self, buffer):
        self.used -= len(buffer)

    def submit(self, command):
        if self.error:
            raise self.error
        self.commands.put(command)

    def manage(self, request):
        if self.error:
            raise self.error
        self.managed.put(request)

    def next(self):
        return self.commands.get(timeout=HANG_S)


@pytest.fixture
def serve():
    """Serve a fake device over an initiator; returns it and the queue of reasons for an end."""
    with ExitStack() as stack:

        def make(initiator):
            device = Device()
            ends = queue.SimpleQueue()
            bridge = Bridge(
                *(device, initiator, encode(0), ends.put), block_bytes=BLOCK, most_bytes=MOST_BYTES
            )
            bridge.start()
            stack.callback(bridge.stop)
            device.bridge = bridge
            return device, ends

        yield make


@pytest.fixture
def disk(serve):
    router = TaskRouter()
    router.add(0, Disk(MemoryStore(1 << 20), block_size=BLOCK))
    initiator = CallInitiator(router, Nexus("kernel", "target"))
    device, _ = serve(initiator)
    device.kernel.put(99, bytes(6))
    device.notify()
    assert device.answers(1)[99][1] == Status.CHECK_CONDITION  # power on
    return device


def read(lba, blocks):
    return build("READ(10)", lba=lba, blocks=blocks)


def write(lba, blocks):
    return build("WRITE(10)", lba=lba, blocks=blocks)


def sense_of(answer):
    found = parse_sense(answer[3][:18])
    return found.key, found.asc, found.ascq


def test_data_goes_out_and_comes_in_by_pieces(disk):
    content = os.urandom(1024)
    disk.kernel.memory[disk.kernel.data_at : disk.kernel.data_at + 1000] = content[:1000]
    disk.kernel.memory[disk.kernel.data_at + 4096 : disk.kernel.data_at + 4120] = content[1000:]
    disk.kernel.put(1, write(7, 2), [disk.area(0, 1000), disk.area(4096, 24)])
    disk.notify()
    assert disk.answers(1)[1][1] == Status.GOOD
    disk.kernel.put(2, read(7, 2), [disk.area(8192, 24), disk.area(12288, 1000)])
    disk.notify()
    assert disk.answers(1)[2][:3] == (READ_LEN, Status.GOOD, 1024)
    assert disk.data(8192, 24) + disk.data(12288, 1000) == content
    assert disk.bridge.staged_bytes == 2048


def test_what_did_not_arrive_is_zeros_not_what_lay_there(disk):
    disk.kernel.put(1, build("INQUIRY", allocation_length=5), [disk.area(0, 96)])
    disk.kernel.put(2, bytes(6), [disk.area(4096, 64)])
    disk.notify()
    answers = disk.answers(2)
    assert answers[1][:3] == (READ_LEN, Status.GOOD, 5)
    assert disk.data(5, 91) == bytes(91)
    assert answers[2][:3] == (0, Status.GOOD, 0)
    assert disk.data(4096, 64) == bytes(64)


def test_sense_arrives_and_no_data_with_it(disk):
    disk.kernel.put(1, read(1 << 20, 1), [disk.area(0, 512)])
    disk.notify()
    answer = disk.answers(1)[1]
    assert answer[:3] == (0, Status.CHECK_CONDITION, 0)
    assert sense_of(answer) == (SenseKey.ILLEGAL_REQUEST, 0x21, 0)
    assert disk.data(0, 512) == bytes([STALE]) * 512


REFUSED = {
    "a CDB of no known length": (bytes([0xC0]) + bytes(9), {}, 0x20),
    "data to nobody knows where": (
        bytes([0x1F]) + bytes(5),
        {"areas": [(RING_AT + 4096, 8)]},
        0x20,
    ),
    "an area that is none": (read(0, 1), {"areas": [(0, 512)]}, 0x24),
    "two buffers": (read(0, 1), {"bidi": 1}, 0x24),
}


@pytest.mark.parametrize(("cdb", "options", "asc"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_sent_is_refused_and_the_rest_goes_on(disk, cdb, options, asc):
    disk.kernel.put(1, cdb, **options)
    disk.kernel.put(2, bytes(6))
    disk.notify()
    answers = disk.answers(2)
    assert sense_of(answers[1]) == (SenseKey.ILLEGAL_REQUEST, asc, 0)
    assert answers[2][1] == Status.GOOD


def test_many_are_in_flight_and_end_in_any_order(serve):
    held = Held()
    device, _ = serve(held)
    for number in range(8):
        device.kernel.put(number, read(number, 1), [device.area(number * 512, 512)])
    device.notify()
    commands = [held.next() for _ in range(8)]
    assert device.bridge.most_in_flight == 8
    for number in (5, 0, 7, 1, 6, 2, 4, 3):
        command = commands[number]
        command.data_in[0].view[:] = bytes([number]) * 512
        command.done(command)
        assert list(device.answers(1)) == [number]
        assert device.data(number * 512, 512) == bytes([number]) * 512
    assert held.used == 0


def test_commands_wait_for_memory_and_one_too_large_is_refused(serve):
    held = Held(pages=1)
    device, _ = serve(held)
    device.kernel.put(1, read(0, 8), [device.area(0, 4096)])
    device.kernel.put(2, read(0, 8), [device.area(4096, 4096)])
    device.kernel.put(3, read(0, 9), [device.area(8192, 4608)])
    device.notify()
    first = held.next()
    assert held.commands.empty()
    first.done(first)
    assert list(device.answers(1)) == [1]
    second = held.next()
    second.done(second)
    answers = device.answers(2)
    assert sense_of(answers[3]) == (SenseKey.ILLEGAL_REQUEST, 0x55, 0x03)


def test_what_the_kernel_gives_up_is_aborted_and_then_answered(serve):
    held = Held(pages=1)
    device, _ = serve(held)
    for number in range(3):
        device.kernel.put(number, read(number, 8), [device.area(number * 4096, 4096)])
    device.notify()
    first = held.next()
    device.kernel.put_tmr(0, 1)  # sent, and waiting for memory
    device.notify()
    assert list(device.answers(1)) == [1]
    abort = held.managed.get(timeout=HANG_S)
    assert (abort.function, abort.managed, abort.lun) == (Function.ABORT_TASK, first, encode(0))
    assert device.kernel.take() == []
    first.error = TransportError("aborted by task management")
    first.done(first)
    abort.done(abort)
    assert sense_of(device.answers(1)[0]) == (SenseKey.HARDWARE_ERROR, 0x08, 0)
    last = held.next()
    last.done(last)
    assert list(device.answers(1)) == [2]
    assert held.used == 0


def test_an_abort_that_cannot_be_sent_leaves_the_command_to_its_end(serve):
    held = Held()
    device, ends = serve(held)
    device.kernel.put(1, read(0, 1), [device.area(0, 512)])
    device.notify()
    command = held.next()
    held.error = TransportError("the server is gone")
    device.kernel.put_tmr(1)
    device.kernel.put(2, read(0, 1), [device.area(512, 512)])
    device.notify()
    assert list(device.answers(1)) == [2]
    command.error = held.error
    command.done(command)
    assert list(device.answers(1)) == [1]
    assert ends.empty()


def test_the_kernel_is_told_what_the_path_carries_and_held_to_it(disk):
    page = build("INQUIRY", evpd=1, page_code=VpdPage.BLOCK_LIMITS, allocation_length=252)
    disk.kernel.put(1, page, [disk.area(0, 252)])
    disk.kernel.put(2, read(0, 65), [disk.area(4096, 65 * BLOCK)])
    disk.notify()
    answers = disk.answers(2)
    assert answers[1][:3] == (READ_LEN, Status.GOOD, 64)
    limits = parse_vpd(disk.data(0, 64))
    assert limits.maximum_transfer_length == MOST_BYTES // BLOCK
    assert limits.maximum_write_same_length > MOST_BYTES // BLOCK
    assert sense_of(answers[2]) == (SenseKey.ILLEGAL_REQUEST, 0x24, 0)


def test_a_lost_path_answers_with_errors_at_once(serve):
    held = Held()
    device, ends = serve(held)
    device.kernel.put(1, read(0, 1), [device.area(0, 512)])
    device.notify()
    command = held.next()
    held.error = TransportError("the server is gone")
    device.kernel.put(2, read(0, 1), [device.area(512, 512)])
    device.notify()
    assert sense_of(device.answers(1)[2]) == (SenseKey.HARDWARE_ERROR, 0x08, 0)
    command.error = held.error
    command.done(command)
    assert sense_of(device.answers(1)[1]) == (SenseKey.HARDWARE_ERROR, 0x08, 0)
    assert held.used == 0
    assert ends.empty()


def test_a_broken_ring_is_told(serve):
    device, ends = serve(Held())
    device.kernel.put_raw(struct.pack("<IHBB", CMD, 0, 0, 0))
    device.notify()
    assert "the kernel's ring is broken: TCMU: an entry of 0 bytes" in ends.get(timeout=HANG_S)


def test_a_device_that_went_is_told(serve):
    device, ends = serve(Held())
    device.gone = True
    device.notify()
    assert ends.get(timeout=HANG_S) == "the kernel's device is gone: Input/output error"


def test_stopping_closes_the_device_and_leaves_what_is_in_flight(serve):
    held = Held()
    device, ends = serve(held)
    device.kernel.put(1, read(0, 1), [device.area(0, 512)])
    device.notify()
    command = held.next()
    device.bridge.stop()
    assert device.closed
    command.done(command)
    assert device.kicks.empty()
    assert ends.empty()
