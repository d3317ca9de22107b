# SPDX-License-Identifier: MIT
"""One workload over all paths to a served disk, and what is made of the rounds."""

import json
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from vscsi.bench.closed_loop import ClosedLoop
from vscsi.bench.compare import Schedule, Wish, compare, measure, opened
from vscsi.bench.load import Counters, Run
from vscsi.bench.result import Comparison, PathResult, difference
from vscsi.bench.workload import Workload
from vscsi.transport.initiator import Command, TransportError
from vscsi.wire.errors import SetupError

RINGS = ("srp", "vscsiif", "blkif")
BLOCK = 4096
SIZE_BYTES = 1 << 20
MICROSECOND, RUN_NS = 1_000, 400_000
"""With a clock that goes on by 1 us a look: some 200 operations a run, whatever the machine."""

python_loads = partial(opened, native=False)
every_ring = pytest.mark.parametrize("ring", RINGS)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch, clock) -> None:
    """Let loads that `opened` makes look at the counting clock."""
    defaults = ClosedLoop.__init__.__kwdefaults__
    monkeypatch.setitem(defaults, "clock", clock)


@every_ring
@pytest.mark.parametrize("depth", [1, 32])
@pytest.mark.parametrize("mode", ["randread", "randwrite", "randrw"])
def test_the_backend_counts_as_many_requests_as_there_were_operations(
    served: Path, store, counted, ring: str, depth: int, mode: str
) -> None:
    with python_loads([(f"{ring}:{served}", 0)], Wish(mode, BLOCK, depth)) as (load,):
        result = PathResult(load.name, load.workload)
        measure(load, result, RUN_NS, RUN_NS)
        statistics = load.initiator.statistics
        everything = load.counters().backend_requests
    assert result.failure is None
    assert not result.errors
    assert result.operations > 100
    assert result.total("backend_requests") == result.operations
    assert everything is not None
    assert everything > result.operations, "the run before the measured one is not counted"
    (turn,) = result.rounds
    assert turn.reads + turn.writes == result.reads.count + result.writes.count == turn.operations
    kinds = Counter(what for what, _, _ in store.asked)
    assert set(kinds) == {"randread": {"read"}, "randwrite": {"write"}}.get(mode, {"read", "write"})
    # Neither end needs to stage whole aligned pages.
    assert (statistics.staged_bytes, result.total("backend_staged_bytes")) == (0, 0)
    assert result.total("backend_cpu_ns") > 0
    assert 0 <= turn.counters.frontend_notifications <= turn.operations
    assert result.parameters == {}


@every_ring
def test_sequential_writes_reach_every_block_of_the_range_alone(
    served: Path, store, counted, ring: str
) -> None:
    wish = Wish("write", BLOCK, 8, offset_bytes=16 * BLOCK, size_bytes=32 * BLOCK, seed=3)
    with python_loads([(f"{ring}:{served}", 0)], wish) as (load,):
        run = load.run(RUN_NS)
        pattern = load.workload.pattern()
    assert run.operations >= 32
    disk = bytearray(SIZE_BYTES)
    store.asked.clear()
    store.readv(0, [memoryview(disk)])
    assert disk[: 16 * BLOCK] == bytes(16 * BLOCK)
    assert disk[16 * BLOCK : 48 * BLOCK] == pattern * 32
    assert disk[48 * BLOCK :] == bytes(SIZE_BYTES - 48 * BLOCK)


@every_ring
@pytest.mark.parametrize("depth", [1, 4])
def test_sequential_reads_ask_the_store_for_one_block_after_the_other(
    served: Path, store, counted, ring: str, depth: int
) -> None:
    with python_loads([(f"{ring}:{served}", 0)], Wish("read", BLOCK, depth)) as (load,):
        load.run(RUN_NS)
    if depth > 1:  # the first submissions are two threads', which may pass each other
        store.asked.sort()
    assert store.asked == [("read", turn * BLOCK, BLOCK) for turn in range(len(store.asked))]


@pytest.mark.parametrize(
    ("ring", "depth", "effective"),
    [
        ("srp", 1, 1),
        ("srp", 32, 32),
        ("srp", 64, 59),  # a request limit of 60, one of them for task management
        ("vscsiif", 8, 8),
        ("vscsiif", 64, 15),  # 16 slots, one of them for task management
        ("blkif", 32, 32),
        ("blkif", 100, 64),
    ],
)
def test_the_effective_depth_is_what_the_ring_really_held(
    served: Path, store, counted, ring: str, depth: int, effective: int
) -> None:
    """The store answers nothing before the last of the first `depth` commands was submitted."""
    with python_loads([(f"{ring}:{served}", 0)], Wish("randread", BLOCK, depth)) as (load,):
        left = threading.Semaphore(depth - 1)
        submit = load.initiator.submit

        def counting(command: Command) -> None:
            submit(command)
            if not left.acquire(blocking=False):
                store.gate.set()

        load.initiator.submit = counting
        store.gate.clear()
        result = PathResult(load.name, load.workload)
        measure(load, result, 0, RUN_NS)
        assert load.initiator.statistics.most_in_flight == effective
    assert result.effective_depth == effective
    assert result.outstanding == depth


@every_ring
def test_errors_of_the_store_are_counted_and_the_loop_goes_on(
    served: Path, store, counted, ring: str
) -> None:
    store.bad_offsets = {5 * BLOCK, 6 * BLOCK}
    wish = Wish("read", BLOCK, 4, size_bytes=8 * BLOCK)
    with python_loads([(f"{ring}:{served}", 0)], wish) as (load,):
        result = PathResult(load.name, load.workload)
        measure(load, result, 0, RUN_NS)
    commands = len(store.asked)
    failed = sum(offset in store.bad_offsets for _, offset, _ in store.asked)
    assert failed >= 20
    ((reason, count),) = result.errors.items()
    assert reason.startswith("MEDIUM ERROR")
    assert count == failed
    assert result.operations == commands - failed
    assert result.total("backend_requests") == result.commands == commands
    comparison = compared([result])
    assert comparison.problems == [f"{ring}:{served}: {failed} commands failed, as in: {reason}"]


def test_all_paths_get_the_same_operations_whatever_their_number(
    served: Path, store, counted, tmp_path: Path
) -> None:
    streams = []
    for ring in RINGS:
        store.asked.clear()
        with python_loads([(f"{ring}:{served}", 0)], Wish("randrw", BLOCK, 1, seed=9)) as (load,):
            load.run(RUN_NS)
        streams.append(store.asked.copy())
    shortest = min(map(len, streams))
    assert shortest > 100
    assert len({tuple(stream[:shortest]) for stream in streams}) == 1


def test_all_paths_at_once_beside_the_call_and_the_bare_loop(
    served: Path, counted, tmp_path: Path
) -> None:
    (tmp_path / "image").write_bytes(bytes(SIZE_BYTES // 2))
    urls = [*(f"{ring}:{served}" for ring in RINGS), f"call:{tmp_path / 'image'}"]
    wish = Wish("randread", BLOCK, 4)
    turns: list[tuple[str, float]] = []
    with opened([(url, 0) for url in urls], wish, limit=tmp_path / "image") as loads:
        assert [load.name for load in loads] == [*urls, f"preadv:{tmp_path / 'image'}"]
        assert {load.workload for load in loads} == {
            Workload("randread", BLOCK, 4, 0, SIZE_BYTES // 2)
        }
        schedule = Schedule(rounds=2, runtime_s=0.001, ramp_s=0.0001)
        comparison = compare(loads, schedule, lambda name, takes_s: turns.append((name, takes_s)))
    names = [load.name for load in loads]
    assert [name for name, _ in turns] == [*names, *names[1:], names[0]]
    assert [takes_s for _, takes_s in turns] == pytest.approx([0.0006] * 10)
    assert comparison.problems == []
    assert [len(path.rounds) for path in comparison.paths] == [2] * 5
    srp, vscsiif, blkif, call, bare = comparison.paths
    assert [path.effective_depth for path in comparison.paths][3:] == [1, 1]
    assert srp.parameters["request_limit"] == 60
    assert vscsiif.parameters["slots"] == 16
    assert blkif.parameters["layout"] == "x86_64-abi"
    assert call.parameters == bare.parameters == {}
    assert call.backend_cpu_us is bare.backend_cpu_us is None
    assert srp.ratio_to(srp) == (1, 1, 1)


def test_unit_attentions_are_consumed_before_anything_is_measured(served: Path, counted) -> None:
    for _ in range(2):
        with python_loads([(f"srp:{served}", 0)], Wish("randread", BLOCK, 1)) as (load,):
            assert not load.run(RUN_NS).errors


@pytest.mark.parametrize(
    ("wish", "reason"),
    [
        (Wish("read", BLOCK, 1, size_bytes=SIZE_BYTES + 1), "it has 1048576 bytes"),
        (Wish("read", BLOCK, 1, offset_bytes=SIZE_BYTES), "holds no block"),
        (Wish("read", BLOCK, 1, offset_bytes=2 * SIZE_BYTES), "it has 1048576 bytes"),
        (Wish("read", 1000, 1), "multiples of 512"),
        (Wish("read", BLOCK, 1, offset_bytes=100, size_bytes=BLOCK), "multiples of 512"),
        (Wish("read", SIZE_BYTES, 100), "smaller --bs or --iodepth"),
    ],
)
@every_ring
def test_a_workload_that_a_path_cannot_take_is_refused_before_it_begins(
    served: Path, ring: str, wish: Wish, reason: str
) -> None:
    with pytest.raises(SetupError, match=reason), opened([(f"{ring}:{served}", 0)], wish):
        pass


def test_paths_that_cannot_be_connected_are_refused(served: Path, tmp_path: Path) -> None:
    wish = Wish("read", BLOCK, 1)
    for url in (f"srp:{tmp_path}/nobody", f"call:{tmp_path}/missing", "nonsense"):
        with pytest.raises(SetupError), opened([(f"srp:{served}", 0), (url, 0)], wish):
            pass
    refused = pytest.raises(SetupError, match="LOGICAL UNIT NOT SUPPORTED")
    with refused, opened([(f"srp:{served}", 5)], wish):
        pass


# What is made of runs, with loads that do nothing but tell.


class ToldLoad:
    """A load whose runs and counters are given."""

    workload = Workload("randread", BLOCK, 2, 0, SIZE_BYTES)

    def __init__(self, name: str, runs: list[Run], counters: list[Counters], log: list[str]):
        self.name = name
        self.left = runs
        self.told = counters
        self.log = log

    def run(self, duration_ns: int) -> Run:
        """Return the next run."""
        self.log.append(f"{self.name} {duration_ns}")
        return self.left.pop(0)

    def stop(self) -> None:
        """Do nothing."""

    def counters(self) -> Counters:
        """Return the next counters."""
        if not self.told:
            raise TransportError("the server is gone")
        return self.told.pop(0)

    def parameters(self) -> Mapping[str, object]:
        """Return what a path might."""
        return {"slots": 4}

    def close(self) -> None:
        """Do nothing."""


def run_of(operations: int, elapsed_s: float = 1, **rest: object) -> Run:
    run = Run(elapsed_ns=round(elapsed_s * 1e9), outstanding=2, **rest)
    run.read_latencies[1000] = operations
    return run


def compared(paths: list[PathResult]) -> Comparison:
    workload = paths[0].workload
    return Comparison(workload, "2025-01-01T00:00:00+00:00", 1, 1.0, 0.0, {"cpu": "x"}, paths)


def test_rounds_are_interleaved_in_turning_order_and_ramps_are_not_measured() -> None:
    log: list[str] = []
    loads = [
        ToldLoad(name, [run_of(1000 * (i % 2) + 7) for i in range(6)], [Counters()] * 6, log)
        for name in ("a", "b", "c")
    ]
    comparison = compare(loads, Schedule(3, 3.0, 0.5), lambda _name, _takes_s: None)
    order = ["a", "b", "c", "b", "c", "a", "c", "a", "b"]
    assert log == [f"{name} {ns}" for name in order for ns in (500_000_000, 1_000_000_000)]
    for path in comparison.paths:
        assert [each.operations for each in path.rounds] == [1007] * 3


def test_rates_are_medians_with_their_extremes_and_ratios_are_taken_round_by_round() -> None:
    first, second = PathResult("a", ToldLoad.workload), PathResult("b", ToldLoad.workload)
    for mine, theirs in ((100, 300), (50, 100), (200, 300)):
        first.take(run_of(mine), Counters(), Counters())
        second.take(run_of(theirs, 0.5), Counters(), Counters())
    assert first.operations_per_s() == (100, 50, 200)
    assert second.operations_per_s() == (600, 200, 600)
    assert second.ratio_to(first) == (4, 3, 6)
    assert PathResult("c", ToldLoad.workload).operations_per_s() is None
    assert PathResult("c", ToldLoad.workload).ratio_to(first) is None


def test_counters_are_differences_and_unknown_where_an_end_does_not_tell() -> None:
    before = Counters(frontend_notifications=5, backend_requests=100, backend_cpu_ns=7_000)
    after = Counters(frontend_notifications=25, backend_requests=180, backend_staged_bytes=3)
    assert difference(before, after) == Counters(frontend_notifications=20, backend_requests=80)
    path = PathResult("a", ToldLoad.workload)
    path.take(run_of(40, cpu_ns=80_000), before, replace(after, backend_cpu_ns=47_000))
    assert path.per_command(path.total("frontend_notifications")) == 0.5
    assert path.total("backend_staged_bytes") is None
    assert path.frontend_cpu_us == 2
    assert path.backend_cpu_us == 1


@pytest.mark.parametrize(
    ("outstanding", "on_ring", "operations", "requests", "effective"),
    [(2, None, 10, None, 2), (2, 64, 10, 10, 2), (2, 1, 10, 10, 1), (8, 9, 10, 30, 3)],
)
def test_the_effective_depth_is_in_commands(
    outstanding: int, on_ring: int | None, operations: int, requests: int | None, effective: int
) -> None:
    path = PathResult("a", ToldLoad.workload)
    run = run_of(operations, on_ring=on_ring)
    run.outstanding = outstanding
    zero = None if requests is None else 0
    path.take(run, Counters(backend_requests=zero), Counters(backend_requests=requests))
    assert path.effective_depth == effective


def test_a_path_that_fails_is_left_out_and_the_others_go_on() -> None:
    log: list[str] = []
    good = ToldLoad("good", [run_of(10) for _ in range(6)], [Counters()] * 6, log)
    bad = ToldLoad(
        "bad", [run_of(10), run_of(10), run_of(3, failure="gone")], [Counters()] * 2, log
    )
    mute = ToldLoad("mute", [run_of(10)], [], log)
    comparison = compare([good, bad, mute], Schedule(3, 3.0, 1.0), lambda _name, _takes_s: None)
    assert [len(path.rounds) for path in comparison.paths] == [3, 1, 0]
    assert comparison.problems == ["bad: gone", "mute: the server is gone"]
    assert [name.split()[0] for name in log].count("bad") == 3


def test_errors_before_the_measured_run_are_not_hidden() -> None:
    ramp, run = run_of(5, errors=Counter({"BUSY": 2})), run_of(5, errors=Counter({"BUSY": 1}))
    load = ToldLoad("a", [ramp, run], [Counters()] * 2, [])
    result = PathResult("a", load.workload)
    measure(load, result, MICROSECOND, MICROSECOND)
    assert dict(result.errors) == {"BUSY": 3}
    assert result.commands == 6


def test_the_json_of_a_path_without_any_round_can_be_written() -> None:
    path = PathResult("a", ToldLoad.workload, failure="gone")
    (told,) = json.loads(json.dumps(compared([path]).as_json()))["paths"]
    assert told["failure"] == "gone"
    assert told["operations_per_s"] is told["latency_us"]["all"] is told["ratio_to_first"] is None
