# SPDX-License-Identifier: MIT
"""The load in C against a backend that the test plays: what it sends, believes and hands up."""

import itertools
import os
import struct
import time
from array import array
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import cycle

import pytest

from vscsi.bench.workload import Workload
from vscsi.ring import Load, RingEnd
from vscsi.ring._core import PageMap, grant_set
from vscsi.wire import cdb as cdbs
from vscsi.wire.errors import RingError
from vscsi.wire.srp import IuType, RspFlags, build_iu, cdb_fields, cdb_of, parse_iu
from vscsi.wire.srp_ring import SlotFormat, build_slot, parse_slot
from vscsi.wire.vscsiif import SLOT_SIZE, build_request, build_response, parse_request

DEPTH, PEER = 4, 5
RING_BYTES = 4 * 4096
UNLIMITED = 2**64 - 1
PERMIT, READONLY, READING = 1, 4, 8
LUN = bytes(8)
HANG_S = 60
FIRST_TAG = 1 << 40
"""Of a load over SRP."""
WORK = Workload("randrw", 4096, DEPTH, 8192, 100 * 4096, read_percent=30, seed=11)


class Bed:
    """A load of one protocol, and the other end of its ring."""

    def __init__(self, protocol: str, workload: Workload, *, poll_ns: int = 20_000) -> None:
        self.srp = protocol == "srp"
        self.first_tag = FIRST_TAG if self.srp else 0
        self.workload = workload
        self.table = bytearray(64 * 8)
        fd = os.memfd_create("load")
        os.ftruncate(fd, 2 * RING_BYTES)
        memory = memoryview(PageMap(fd, range(2 * RING_BYTES // 4096), readonly=False))
        os.close(fd)
        if self.srp:
            rings = memory[:RING_BYTES], memory[RING_BYTES:]
            front, self.back = RingEnd.pair_front(*rings, 128), RingEnd.pair_back(*rings, 128)
        else:
            front = RingEnd.front(memory[:4096], SLOT_SIZE)
            self.back = RingEnd.back(memory[:4096], SLOT_SIZE)
        self.to_front, self.to_back = (os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2))
        percent = workload.read_percent if workload.mixed else 0 if workload.writes else 100
        self.load = Load(
            front,
            protocol,
            incoming=self.to_front,
            outgoing=self.to_back,
            table=self.table,
            poll_ns=poll_ns,
            depth=workload.depth,
            blocks=workload.blocks,
            first_address=workload.offset_bytes // 512,
            step=workload.block_bytes // 512,
            at_random=workload.at_random,
            mixed=workload.mixed,
            seed=workload.seed,
            read_percent=percent,
            first_tag=self.first_tag,
            period_ns=1e9 / workload.rate_per_s if workload.rate_per_s else 0,
        )
        for place in range(workload.depth):
            for write in (False, True):
                self.prepare(place, write)
        self._pool = ThreadPoolExecutor(1)

    def prepare(self, place: int, write: bool) -> None:
        """Prepare a request; over vscsiif with two grants, of frames 100 + reference."""
        cdb = cdbs.build("WRITE(16)" if write else "READ(16)", lba=0, blocks=8)
        references = () if self.srp else (4 * place + 2 * write, 4 * place + 2 * write + 1)
        for reference in references:
            grant_set(self.table, reference, PEER, 100 + reference, readonly=write)
        if self.srp:
            iu = build_iu(IuType.CMD, tag=self.first_tag + place, lun=LUN, **cdb_fields(cdb))
            slot = build_slot(SlotFormat.SRP, iu)
        else:
            slot = build_request(rqid=place, cdb=cdb)
        self.load.prepare(place=place, write=write, slot=slot, references=references)

    def begin(self, duration_ns: int = UNLIMITED, commands: int = UNLIMITED) -> None:
        """Begin a run with room for all places."""
        self.load.begin(duration_ns=duration_ns, commands=commands)
        self.load.room = self.workload.depth

    def run(self) -> "Future[bytes | None]":
        """Let the load go on in another thread."""
        return self._pool.submit(self.load.run)

    def take(self, least: int = 1) -> list[tuple[int, bool, int]]:
        """Wait for requests; return (place, is a write, offset in bytes) of each."""
        taken: list[bytes] = []
        deadline = time.monotonic() + HANG_S
        while len(taken) < least:
            assert time.monotonic() < deadline
            taken += self.back.take()
        return [self.read(slot) for slot in taken]

    def serve(self, count: int) -> list[tuple[int, bool, int]]:
        """Take so many requests, and answer each well."""
        served: list[tuple[int, bool, int]] = []
        while len(served) < count:
            for request in self.take():
                self.answer(request[0])
                served.append(request)
        return served

    def read(self, slot: bytes) -> tuple[int, bool, int]:
        """Read a request."""
        if self.srp:
            iu = parse_iu(parse_slot(slot)[1])
            place, cdb = iu.tag - self.first_tag, cdbs.decode(cdb_of(iu))
        else:
            request = parse_request(slot)
            place, cdb = request.rqid, cdbs.decode(request.cdb)
        return place, cdb.row.name == "WRITE(16)", cdb.lba * 512

    def answer(self, place: int, **fields: object) -> None:
        """Answer a place's command, well unless the fields say otherwise."""
        if self.srp:
            fields = {"request_limit_delta": 1, **fields}
            self.say(build_iu(IuType.RSP, tag=self.first_tag + place, **fields))
        else:
            self.put(build_response(rqid=place, **fields))

    def say(self, iu: bytes) -> None:
        """Send an information unit."""
        self.put(build_slot(SlotFormat.SRP, iu))

    def put(self, slot: bytes) -> None:
        """Put a slot, and notify as the event rule has it."""
        assert self.back.put(slot)
        if self.back.publish():
            os.eventfd_write(self.to_front, 1)

    def access(self, reference: int) -> tuple[int, int, int]:
        """Return flags, domain and frame of a grant."""
        return struct.unpack_from("<HHI", self.table, 8 * reference)

    def close(self) -> None:
        """End the thread, whatever it waits for."""
        self.load.interrupt()
        self._pool.shutdown()
        os.close(self.to_front)
        os.close(self.to_back)


@pytest.fixture
def bed() -> Iterator[Callable[..., Bed]]:
    beds: list[Bed] = []

    def make(*arguments: object, **rest: object) -> Bed:
        beds.append(Bed(*arguments, **rest))
        return beds[-1]

    yield make
    for each in beds:
        each.close()


def counts(told: tuple[int, int, list[tuple[int, int]]]) -> int:
    return sum(times for _, times in told[2])


@pytest.mark.parametrize("poll_ns", [0, 20_000])
@pytest.mark.parametrize("mode", ["read", "write", "randread", "randwrite", "rw", "randrw"])
@pytest.mark.parametrize("protocol", ["srp", "vscsiif"])
def test_the_operations_are_the_workloads_and_each_is_counted_once(
    bed, protocol: str, mode: str, poll_ns: int
) -> None:
    workload = Workload(mode, 4096, DEPTH, 8192, 100 * 4096, read_percent=30, seed=11)
    each = bed(protocol, workload, poll_ns=poll_ns)
    each.begin(commands=250)
    future = each.run()
    taken = []
    while len(taken) < 250:
        requests = each.take()
        taken += requests
        assert len(requests) <= DEPTH
        for place, _, _ in requests:
            each.answer(place)
    assert future.result(HANG_S) is None
    operations = workload.operations()
    assert [request[1:] for request in taken] == [next(operations) for _ in range(250)]
    load = each.load
    writes = sum(write for _, write, _ in taken)
    assert (counts(load.reads), counts(load.writes)) == (250 - writes, writes)
    assert (load.commands, load.outstanding, load.most_outstanding) == (250, 0, DEPTH)
    assert load.room == DEPTH


@pytest.mark.parametrize("protocol", ["srp", "vscsiif"])
def test_a_list_of_operations_is_gone_through_over_and_over(bed, protocol: str) -> None:
    each = bed(protocol, WORK)
    wanted = [(True, 7), (False, 99), (False, 0), (True, 3), (True, 3), (False, 50)]
    for _ in range(2):  # from the first on, and from the first place on, in each run
        each.load.begin(
            duration_ns=UNLIMITED,
            commands=20,
            operations=array("Q", [block << 1 | write for write, block in wanted]),
        )
        each.load.room = DEPTH
        future = each.run()
        first = each.take(DEPTH)
        assert [place for place, _, _ in first] == list(range(DEPTH))
        for place in (2, 0, 3, 1):
            each.answer(place)
        taken = first + each.serve(20 - DEPTH)
        assert future.result(HANG_S) is None
        assert [request[1:] for request in taken] == [
            (write, 8192 + 4096 * block) for write, block in itertools.islice(cycle(wanted), 20)
        ]
    each.begin(commands=1)  # without one the workload is itself again
    future = each.run()
    assert each.serve(1)[0][1:] == next(WORK.operations())
    assert future.result(HANG_S) is None


@pytest.mark.parametrize("operations", [b"", b"1234567", array("I", [1])])
def test_what_is_no_list_of_operations_is_refused(bed, operations: object) -> None:
    load = bed("srp", WORK).load
    with pytest.raises(ValueError, match="64-bit"):
        load.begin(duration_ns=1, commands=1, operations=operations)
    with pytest.raises(TypeError):
        load.begin(duration_ns=1, commands=1, operations=[2, 3])


def test_a_page_is_granted_while_its_command_is_outstanding_and_only_then(bed) -> None:
    each = bed("vscsiif", WORK)
    assert {each.access(reference)[0] for reference in range(16)} == {0}
    each.begin(commands=DEPTH)
    future = each.run()
    for place, write, _ in each.take(DEPTH):
        for way in (False, True):
            for reference in (4 * place + 2 * way, 4 * place + 2 * way + 1):
                flags = PERMIT | (READONLY if write else 0)
                granted = (flags, PEER, 100 + reference)
                assert (each.access(reference) == granted) is (way == write)
                assert way == write or each.access(reference)[0] == 0
        each.answer(place)
    assert future.result(HANG_S) is None
    assert {each.access(reference)[0] for reference in range(16)} == {0}


def test_a_page_that_is_mapped_after_the_answer_breaks_the_ring(bed) -> None:
    each = bed("vscsiif", WORK)
    each.begin(commands=1)
    future = each.run()
    ((place, write, _),) = each.take()
    reference = 4 * place + 2 * write
    flags, *rest = each.access(reference)
    struct.pack_into("<HHI", each.table, 8 * reference, flags | READING, *rest)
    each.answer(place)
    with pytest.raises(RingError, match="still mapped"):
        future.result(HANG_S)


def slot_of(protocol: str, place: int, **fields: object) -> bytes:
    if protocol == "srp":
        unit = build_iu(IuType.RSP, tag=FIRST_TAG + place, request_limit_delta=1, **fields)
        return build_slot(SlotFormat.SRP, unit)
    return build_response(rqid=place, **fields)


@pytest.mark.parametrize(
    ("protocol", "fields"),
    [
        ("srp", {"status": 2}),
        ("srp", {"status": 0x28}),
        ("srp", {"flags": RspFlags.DIUNDER, "data_in_residual": 512}),
        ("srp", {"flags": RspFlags.RSPVALID, "response_data": bytes(4)}),
        ("srp", {"flags": RspFlags.SNSVALID, "sense_data": bytes(18)}),
        ("vscsiif", {"rslt": 2}),
        ("vscsiif", {"rslt": 0x10000}),
        ("vscsiif", {"residual": 1}),
        ("vscsiif", {"sense_len": 18}),
    ],
)
def test_an_answer_that_is_not_clean_is_pythons_and_the_load_goes_on(
    bed, protocol: str, fields: dict[str, object]
) -> None:
    each = bed(protocol, WORK)
    each.begin(commands=9)
    future = each.run()
    bad, *others = each.take(DEPTH)
    each.answer(bad[0], **fields)
    slot = future.result(HANG_S)
    assert slot is not None
    assert slot.startswith(slot_of(protocol, bad[0], **fields).rstrip(b"\0"))
    assert (each.load.answered, each.load.answered_write) == bad[:2]
    future = each.run()
    for place, _, _ in others:
        each.answer(place)
    each.serve(5)
    assert future.result(HANG_S) is None
    assert counts(each.load.reads) + counts(each.load.writes) == 8


@pytest.mark.parametrize("protocol", ["srp", "vscsiif"])
@pytest.mark.parametrize("tag", [DEPTH - 1, DEPTH, 0xFFFF])
def test_an_answer_to_nothing_is_handed_up_as_nobodys(bed, protocol: str, tag: int) -> None:
    each = bed(protocol, WORK)
    each.begin(commands=1)
    future = each.run()
    ((place, _, _),) = each.take()
    assert place == 0
    each.answer(tag)
    slot = future.result(HANG_S)
    assert slot is not None
    assert slot.startswith(slot_of(protocol, tag).rstrip(b"\0"))
    assert each.load.answered is None
    assert each.load.outstanding == 1


def test_a_second_answer_to_the_same_command_is_nobodys(bed) -> None:
    each = bed("srp", WORK)
    each.begin(commands=1)
    future = each.run()
    each.take()
    each.answer(0, status=8)
    assert future.result(HANG_S) is not None
    assert each.load.run() is None
    each.answer(0)
    each.begin(duration_ns=0)
    assert each.load.run() is not None
    assert each.load.answered is None


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (IuType.CRED_REQ, {"tag": 7, "request_limit_delta": 3}),
        (IuType.AER_REQ, {"tag": 7, "lun": LUN, "sense_data": bytes(18)}),
        (IuType.T_LOGOUT, {"tag": 0, "reason": 1}),
    ],
)
def test_what_the_target_says_of_itself_is_pythons_and_what_python_puts_is_published(
    bed, kind: IuType, fields: dict[str, object]
) -> None:
    each = bed("srp", WORK)
    each.begin(commands=DEPTH)
    future = each.run()
    requests = each.take(DEPTH)
    each.say(build_iu(kind, **fields))
    slot = future.result(HANG_S)
    assert slot is not None
    assert parse_iu(parse_slot(slot)[1]).type is kind
    assert each.load.answered is None
    for place, _, _ in requests:
        each.answer(place)
    assert each.load.run() is None


def test_credits_are_what_the_answers_give(bed) -> None:
    """With room for one command the others wait, and are sent as the target allows."""
    each = bed("srp", WORK)
    each.begin(commands=7)
    each.load.room = 1
    future = each.run()
    ((place, _, _),) = each.take()
    assert each.load.most_on_ring <= 1
    each.answer(place, request_limit_delta=3)
    requests = each.take(3)
    assert len(requests) == 3
    assert each.back.take() == []
    for place, _, _ in requests:
        each.answer(place)
    each.serve(3)
    assert future.result(HANG_S) is None
    assert each.load.most_on_ring == 3
    assert each.load.most_outstanding == DEPTH


def test_a_run_ends_by_time_with_everything_answered(bed) -> None:
    each = bed("srp", WORK)
    each.begin(duration_ns=1)
    future = each.run()
    assert future.result(HANG_S) is None
    assert each.load.commands == 0, "the time was over before the first command"
    each.begin(duration_ns=10_000_000)
    future = each.run()
    sent = 0
    while not future.done():
        for slot in each.back.take():
            each.answer(each.read(slot)[0])
            sent += 1
    assert future.result(HANG_S) is None
    assert each.load.commands == sent > 0
    assert each.load.elapsed_ns > 0


def test_stop_ends_a_run_in_order_and_later_ones_at_once(bed) -> None:
    each = bed("srp", WORK, poll_ns=0)
    each.begin()
    future = each.run()
    requests = each.take(DEPTH)
    each.load.stop()
    for place, _, _ in requests:
        each.answer(place)
    assert future.result(HANG_S) is None
    assert each.load.commands == DEPTH
    each.begin()
    assert each.load.run() is None
    assert each.load.commands == 0


@pytest.mark.parametrize("poll_ns", [0, 10**12])
def test_interrupt_leaves_what_is_outstanding(bed, poll_ns: int) -> None:
    each = bed("srp", WORK, poll_ns=poll_ns)
    each.begin()
    future = each.run()
    requests = each.take(DEPTH)
    each.load.interrupt()
    assert future.result(HANG_S) is None
    assert each.load.outstanding == DEPTH
    with pytest.raises(ValueError, match="outstanding"):
        each.begin()
    each.load.stop()
    for place, _, _ in requests:
        each.answer(place)
    assert each.load.run() is None
    assert each.load.outstanding == 0


# The open loop


def test_what_was_due_and_found_no_place_is_late_or_unsent(bed) -> None:
    """1000 commands are due, and the backend answers the first two after all were."""
    workload = Workload("read", 4096, 2, 0, 4096, rate_per_s=1e6)
    each = bed("srp", workload)
    each.begin(duration_ns=1_000_000)
    future = each.run()
    requests = each.take(2)
    ended = time.monotonic_ns() + 1_000_000
    while time.monotonic_ns() < ended:
        pass
    for place, _, _ in requests:
        each.answer(place)
    assert future.result(HANG_S) is None
    load = each.load
    assert (load.commands, load.late, load.unsent) == (2, 0, 998)
    assert counts(load.reads) == 2


def test_a_late_commands_latency_counts_from_when_it_was_due(bed) -> None:
    """One place; the second command is due 1 ms after the first, which is answered later."""
    workload = Workload("read", 4096, 1, 0, 4096, rate_per_s=1000)
    each = bed("srp", workload)
    each.begin(commands=2)
    began_at_most = time.monotonic_ns()
    future = each.run()
    each.take()
    while time.monotonic_ns() < began_at_most + 3_000_000:
        pass
    answered = time.monotonic_ns()
    each.answer(0)
    each.take()
    each.answer(0)
    assert future.result(HANG_S) is None
    least, most, _ = each.load.reads
    assert (each.load.late, each.load.unsent) == (1, 0)
    # Both were answered after `answered`; the second was due 1 ms after the begin.
    assert least >= answered - began_at_most - 1_000_000 >= 2_000_000
    assert most >= answered - began_at_most


@pytest.mark.parametrize("poll_ns", [0, 20_000])
def test_a_sustained_rate_is_neither_exceeded_nor_missed(bed, poll_ns: int) -> None:
    workload = Workload("read", 4096, 64, 0, 4096, rate_per_s=10_000)
    each = bed("srp", workload, poll_ns=poll_ns)
    each.begin(duration_ns=50_000_000)
    each.load.room = 60
    future = each.run()
    while not future.done():
        for slot in each.back.take():
            each.answer(each.read(slot)[0])
    assert future.result(HANG_S) is None
    load = each.load
    assert load.commands + load.unsent == 500
    assert counts(load.reads) == load.commands


# Misuse


def test_what_is_no_load_is_refused(bed) -> None:
    each = bed("vscsiif", WORK)
    slot = build_request(rqid=0)
    for place, request, references in (
        (DEPTH, slot, ()),
        (0, slot[:11], ()),
        (0, slot + b"\0", ()),
        (0, slot, (64,)),
        (0, slot, (2**32,)),
        (0, slot, (63,)),  # grants nothing
    ):
        with pytest.raises(ValueError, match=r"."):
            each.load.prepare(place=place, write=False, slot=request, references=references)
    future = each.run()
    assert future.result(HANG_S) is None, "no run was begun"
    each.begin()
    future = each.run()
    each.take(DEPTH)
    with pytest.raises(ValueError, match="running"):
        each.load.close()
    with pytest.raises(ValueError, match="running"):
        each.load.begin(duration_ns=1, commands=1)
    each.load.interrupt()
    future.result(HANG_S)
    each.load.close()
    each.load.close()
    with pytest.raises(ValueError, match="closed"):
        each.load.run()


# At full speed, under the sanitizers


@pytest.mark.parametrize("sanitizer", ["plain", "thread", "address"])
@pytest.mark.parametrize("poll_ns", [0, 20_000])
@pytest.mark.parametrize(("protocol", "depth"), [("srp", 1), ("srp", 32), ("vscsiif", 12)])
def test_each_of_many_commands_is_sent_and_answered_once(
    program: Callable[..., str], protocol: str, depth: int, poll_ns: int, sanitizer: str
) -> None:
    program("load_loop", sanitizer, protocol, depth, 20_000, poll_ns)
