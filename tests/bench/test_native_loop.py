# SPDX-License-Identifier: MIT
"""The load in C on served disks, beside the one in Python as its model."""

import itertools
import os
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vscsi.bench.closed_loop import ClosedLoop
from vscsi.bench.compare import Wish, opened
from vscsi.bench.native_loop import NativeLoop, latencies
from vscsi.bench.workload import Workload
from vscsi.domain.memory import OutOfMemoryError
from vscsi.target.disk import Disk
from vscsi.transport.connect import connect
from vscsi.transport.export import Export
from vscsi.transport.hba import Hba
from vscsi.transport.initiator import Command, TransportError
from vscsi.wire.errors import SetupError

BLOCK, SIZE_BYTES = 4096, 1 << 20
FOREVER_NS = 10**15
RINGS = (
    "srp:{}",
    "vscsiif:{}",
    "blkif:{}",
    "blkif:{}?protocol=x86_32-abi",
    "blkif:{}?protocol=probe",
    "blkif:{}?segments=blocks",
)
every_ring = pytest.mark.parametrize("ring", RINGS)
three_rings = pytest.mark.parametrize("ring", RINGS[:3])


@contextmanager
def native(
    ring: str, served: Path, workload: Workload, **rest: object
) -> Iterator[tuple[NativeLoop, Hba]]:
    """Connect a path, and offer its load."""
    with connect(ring.format(served)) as hba:
        lun = hba.lun(0)
        length = lun.capacity().block_length
        load = NativeLoop(ring, hba.initiator, lun.address, length, workload, **rest)
        try:
            yield load, hba
        finally:
            load.close()


def work(mode: str = "randread", depth: int = 4, block: int = BLOCK, **rest: object) -> Workload:
    return Workload(mode, block, depth, 0, SIZE_BYTES, **rest)


def asked(workload: Workload, number: int) -> list[tuple[str, int, int]]:
    """Return what the store has to be asked for."""
    return [
        ("write" if write else "read", offset, workload.block_bytes)
        for write, offset in itertools.islice(workload.operations(), number)
    ]


@every_ring
@pytest.mark.parametrize("depth", [1, 8, 32])
@pytest.mark.parametrize("mode", ["read", "write", "randread", "randwrite", "rw", "randrw"])
def test_the_store_is_asked_for_the_workloads_operations_in_order(
    served: Path, store, ring: str, depth: int, mode: str
) -> None:
    workload = work(mode, depth, seed=5, read_percent=70)
    with native(ring, served, workload) as (load, _):
        before = load.counters()
        first = load.run(FOREVER_NS, commands=120)
        after = load.counters()
        second = load.run(FOREVER_NS, commands=80)
    assert [first.failure, second.failure] == [None, None]
    assert store.asked == asked(workload, 200)
    assert (first.operations, second.operations) == (120, 80)
    kinds = Counter(what for what, _, _ in store.asked[:120])
    assert first.read_latencies.total() == kinds["read"]
    assert first.write_latencies.total() == kinds["write"]
    assert after.backend_requests - before.backend_requests == 120
    assert first.outstanding == depth
    assert first.on_ring == min(depth, 15 if ring.startswith("vscsiif") else depth)
    assert first.elapsed_ns > 0
    assert first.cpu_ns > 0
    assert (first.late, first.unsent) == (None, None)


@three_rings
def test_it_does_what_the_loop_in_python_does(served: Path, store, clock, ring: str) -> None:
    workload = work("randrw", 1, seed=9)
    with connect(ring.format(served)) as hba:
        lun = hba.lun(0)
        address, length = lun.address, lun.capacity().block_length
        model = ClosedLoop("model", hba.initiator, address, length, workload, clock=clock)
        expected = model.run(400_000)
        model.close()
        told, store.asked[:] = store.asked.copy(), []
        load = NativeLoop("native", hba.initiator, address, length, workload)
        run = load.run(FOREVER_NS, commands=expected.operations)
        load.close()
    assert store.asked == told
    assert run.read_latencies.total() == expected.read_latencies.total()
    assert run.write_latencies.total() == expected.write_latencies.total()


@pytest.mark.parametrize(
    ("ring", "block"),
    [
        ("srp:{}", 512),
        ("srp:{}", 65536),
        ("vscsiif:{}", 512),
        ("vscsiif:{}", 26 * BLOCK),
        ("vscsiif:{}", 27 * BLOCK),  # descriptors in a page of their own
        ("blkif:{}", 512),
        ("blkif:{}", 11 * BLOCK),
        ("blkif:{}", 12 * BLOCK),  # indirect
        ("blkif:{}?protocol=x86_32-abi", 11 * BLOCK),
        ("blkif:{}?protocol=x86_32-abi", 12 * BLOCK),
    ],
)
@pytest.mark.parametrize("indirect", [False, True])
def test_data_arrives_where_it_belongs(
    served: Path, store, ring: str, block: int, indirect: bool
) -> None:
    """Three blocks are read into three buffers, then written, by one load each."""
    content = os.urandom(4 * block)
    size = 3 * block
    store.writev(0, [memoryview(content)])
    with native(ring, served, Workload("read", block, 3, 0, size), indirect=indirect) as (load, _):
        assert load.run(FOREVER_NS, commands=3).operations == 3
        assert b"".join(bytes(buffer.view) for buffer in load._places.buffers) == content[:size]
    workload = Workload("write", block, 3, 0, size, seed=2)
    with native(ring, served, workload, indirect=indirect) as (load, _):
        assert load.run(FOREVER_NS, commands=3).operations == 3
    disk = bytearray(4 * block)
    store.readv(0, [memoryview(disk)])
    assert disk == workload.pattern() * 3 + content[size:]


@three_rings
def test_errors_are_counted_by_the_same_words_and_the_load_goes_on(
    served: Path, store, clock, ring: str
) -> None:
    store.bad_offsets = {5 * BLOCK, 6 * BLOCK}
    workload = Workload("rw", BLOCK, 4, 0, 8 * BLOCK, seed=1)
    with connect(ring.format(served)) as hba:
        lun = hba.lun(0)
        arguments = (hba.initiator, lun.address, lun.capacity().block_length, workload)
        model = ClosedLoop("model", *arguments, clock=clock)
        words = set(model.run(400_000).errors)
        model.close()
        store.asked.clear()
        load = NativeLoop("native", *arguments)
        run = load.run(FOREVER_NS, commands=200)
        load.close()
    failed = sum(offset in store.bad_offsets for _, offset, _ in store.asked)
    assert len(store.asked) == 200
    assert failed == run.errors.total() == 200 - run.operations > 0
    assert set(run.errors) == words
    assert run.failure is None


def test_what_the_target_reports_meanwhile_is_seen_to_and_the_load_goes_on(
    tmp_path: Path, store
) -> None:
    """A resize in the middle: AER_REQ for Python, a unit attention as an answer."""
    disk = Disk(store)
    export = Export(tmp_path / "run", {0: disk})
    export.start()
    events: list[bytes] = []
    with native("srp:{}", tmp_path / "run", work(depth=4)) as (load, hba):
        hba.initiator.on_event = lambda lun, _sense: events.append(lun)
        store.gate.clear()
        turn = threading.Thread(target=lambda: runs.append(load.run(FOREVER_NS, commands=500)))
        runs: list[object] = []
        turn.start()
        while not store.asked:
            pass
        disk.resize()
        store.gate.set()
        turn.join()
        (run,) = runs
        assert hba.lun(0).capacity().blocks == SIZE_BYTES // 512, "the channel is as good as before"
        again = load.run(FOREVER_NS, commands=100)
    export.stop()
    assert run.failure is None
    assert events == [bytes(8)]
    assert run.operations + run.errors.total() == 500
    assert all("CAPACITY DATA HAS CHANGED" in reason.upper() for reason in run.errors)
    assert again.operations == 100


@three_rings
def test_commands_of_others_wait_until_the_run_is_over(served: Path, store, ring: str) -> None:
    with native(ring, served, work(depth=2)) as (load, hba):
        store.gate.clear()
        turn = threading.Thread(target=load.run, args=(FOREVER_NS,))
        turn.start()
        while not store.asked:
            pass
        future = hba.start(hba.lun(0), bytes.fromhex("88" + "00" * 12 + "01" + "0000"), data_in=512)
        store.gate.set()
        while len(store.asked) < 50:
            pass
        assert not future.done()
        assert {length for _, _, length in store.asked.copy()} == {BLOCK}
        load.stop()
        turn.join()
        assert future.result(60).data == bytes(512)


def test_a_path_in_use_is_refused_and_the_load_is_no_worse_for_it(served: Path, store) -> None:
    with native("srp:{}", served, work()) as (load, hba):
        store.gate.clear()
        cdb = bytes.fromhex("88" + "00" * 12 + "01" + "0000")
        future = hba.start(hba.lun(0), cdb, data_in=512)
        assert load.run(FOREVER_NS).failure == "the channel is in use"
        store.gate.set()
        future.result(60)
        assert load.run(FOREVER_NS, commands=10).operations == 10


@three_rings
@pytest.mark.parametrize("end", ["server", "channel"])
def test_a_path_that_ends_meanwhile_fails_the_run(
    tmp_path: Path, store, ring: str, end: str
) -> None:
    export = Export(tmp_path / "run", {0: Disk(store)})
    export.start()
    with native(ring, tmp_path / "run", work()) as (load, hba):
        runs: list[object] = []
        turn = threading.Thread(target=lambda: runs.append(load.run(FOREVER_NS)))
        turn.start()
        while len(store.asked) < 10:
            pass
        export.stop() if end == "server" else hba.close()
        turn.join(60)
        assert not turn.is_alive()
        (run,) = runs
        assert run.failure
        assert load.run(FOREVER_NS).failure
    export.stop()


def test_commands_that_are_never_answered_fail_the_run(served: Path, store) -> None:
    with native("srp:{}", served, work(depth=3), drain_timeout_s=0.05) as (load, _):
        store.gate.clear()
        run = load.run(1)
        store.gate.set()
    assert run.failure is None, "nothing was begun"
    with native("srp:{}", served, work(depth=3), drain_timeout_s=0.05) as (load, _):
        store.gate.clear()
        run = load.run(50_000_000)
        store.gate.set()
    assert run.failure is not None
    assert "no answer" in run.failure
    assert run.operations == 0


@three_rings
def test_a_load_that_was_stopped_ends_its_run_and_does_nothing_more(
    served: Path, store, ring: str
) -> None:
    with native(ring, served, work()) as (load, _):
        runs: list[object] = []
        turn = threading.Thread(target=lambda: runs.append(load.run(FOREVER_NS)))
        turn.start()
        while len(store.asked) < 10:
            pass
        load.stop()
        turn.join()
        assert load.run(FOREVER_NS).operations == 0
    assert runs[0].failure is None
    assert runs[0].operations == len(store.asked)


@three_rings
def test_an_open_loop_sends_what_is_due_and_tells_what_it_could_not(
    served: Path, store, ring: str
) -> None:
    """The store answers nothing before the end: all but the first commands stay unsent."""
    with native(ring, served, work(depth=4, rate_per_s=100_000.0)) as (load, _):
        store.gate.clear()
        ended = threading.Timer(0.05, store.gate.set)
        ended.start()
        run = load.run(20_000_000)
        ended.join()
        assert (run.operations, run.late, run.unsent) == (4, 0, 1996)
        assert min(run.read_latencies) > 20_000_000
        slow = load.run(FOREVER_NS, commands=20)
    assert slow.operations == 20
    assert slow.unsent == 0


def test_memory_grants_and_pages_come_back(served: Path) -> None:
    for ring in RINGS[:5]:
        with connect(ring.format(served)) as hba:
            lun = hba.lun(0)
            length = lun.capacity().block_length
            memory = hba.initiator.guest.memory
            before = len(memory._references), memory._used.count(0)
            for block in (BLOCK, 40 * BLOCK):
                workload = Workload("rw", block, 3, 0, SIZE_BYTES)
                load = NativeLoop(ring, hba.initiator, lun.address, length, workload)
                load.run(FOREVER_NS, commands=10)
                load.close()
                assert (len(memory._references), memory._used.count(0)) == before
            with pytest.raises(OutOfMemoryError):
                NativeLoop(ring, hba.initiator, lun.address, length, work(depth=4096, block=65536))
            assert (len(memory._references), memory._used.count(0)) == before


@every_ring
def test_what_takes_several_requests_is_generated_in_python(served: Path, ring: str) -> None:
    """256 segments are the most of a blkif request; the blocks extension has several slots."""
    block = SIZE_BYTES // 2 if "blocks" in ring else 2 * SIZE_BYTES
    with opened([(ring.format(served), 0)], Wish("read", BLOCK, 1)) as (load,):
        assert isinstance(load, NativeLoop)
        assert load.parameters()["load"] == "native"
    if "blocks" in ring:
        with opened([(ring.format(served), 0)], Wish("read", block, 1)) as (load,):
            assert isinstance(load, ClosedLoop)
        with (
            pytest.raises(SetupError, match="more than one request"),
            opened([(ring.format(served), 0)], Wish("read", block, 1, rate_per_s=10.0)),
        ):
            pass


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [({"block": 1000}, "multiples of 512"), ({"cpu": 4096}, "CPU 4096 is not ours")],
)
def test_what_cannot_be_is_refused(served: Path, arguments: dict[str, object], reason: str) -> None:
    cpu = arguments.pop("cpu", None)
    refused = pytest.raises(ValueError, match=reason)
    with refused, native("srp:{}", served, work(**arguments), cpu=cpu):
        pass


def test_the_thread_is_kept_on_its_cpu_and_let_go(served: Path, store) -> None:
    cpu, before = max(os.sched_getaffinity(0)), os.sched_getaffinity(0)
    with native("srp:{}", served, work(), cpu=cpu) as (load, hba):
        receiver = hba.initiator._receiver.native_id
        store.gate.clear()
        turn = threading.Thread(target=load.run, args=(FOREVER_NS,))
        turn.start()
        while not store.asked:
            pass
        assert os.sched_getaffinity(receiver) == {cpu}
        load.stop()
        store.gate.set()
        turn.join()
        assert os.sched_getaffinity(receiver) == before


def test_a_command_that_comes_to_no_status_fails_the_run(served: Path, store) -> None:
    """As over vscsiif, whose host status can say that the backend did not carry it."""
    store.bad_offsets = {0}

    def refuse(command: Command, slot: bytes) -> None:
        command.error = TransportError("host status ERROR")

    with native("vscsiif:{}", served, work("read", 1)) as (load, hba):
        hba.initiator.judge = refuse
        run = load.run(FOREVER_NS)
    assert (run.operations, run.failure) == (0, "host status ERROR")


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ((2**64 - 1, 0, []), {}),
        ((7, 7, [(7, 3)]), {7: 3}),
        ((100, 101, [(100, 2)]), {100: 1, 101: 1}),
        ((64, 65, [(64, 5)]), {64: 4, 65: 1}),
        (
            (1000, 9000, [(1007, 4), (2000, 2), (8959, 3)]),
            {1000: 1, 1007: 3, 2000: 2, 8959: 2, 9000: 1},
        ),
        ((1010, 9000, [(1007, 2), (8959, 1)]), {1010: 2, 9000: 1}),
    ],
)
def test_buckets_become_latencies_with_exact_extremes(
    told: tuple[int, int, list[tuple[int, int]]], expected: dict[int, int]
) -> None:
    assert latencies(told) == expected
