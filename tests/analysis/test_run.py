# SPDX-License-Identifier: MIT
"""Every figure of an analysis equals a naive computation over the same commands."""

import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings

from tests.analysis import naive
from tests.analysis.made import NAMES, Made, row, tables
from vscsi.analysis import counting, reuse
from vscsi.analysis.buckets import RUNS, parse
from vscsi.analysis.result import MEASURES, Analysis, Histogram
from vscsi.analysis.run import Options, analyze
from vscsi.capture.commands import Disk, Event, Fate, Operation, Troubles
from vscsi.target.base import Function

Rows = list[dict[str, Any]]
FINE = (0, 4)


def of(rows: Rows, **options: Any) -> Analysis:
    return analyze([("made", Made(rows))], Options(**options))


def check(found: Histogram, values: list[float], bounds: tuple[float, ...]) -> None:
    assert found.counts == naive.counts(values, bounds)
    assert found.count == len(values)
    if values:
        assert found.min == min(values)
        assert found.max == max(values)
        assert found.mean == pytest.approx(sum(values) / len(values))
    else:
        assert (found.min, found.max, found.mean) == (None, None, None)


@settings(deadline=None, max_examples=5)
@given(tables())
def test_every_histogram_equals_a_naive_one(rows: Rows) -> None:
    analysis = of(rows)
    bounds = parse().bounds
    assert list(analysis.histograms) == list(MEASURES)
    for measure, found in analysis.histograms.items():
        each = bounds[measure]
        check(found.all, [value for _, value in naive.measure(rows, measure, "all")], each)
        by_operation = naive.measure(rows, measure, "operation")
        for histogram, operation in (
            (found.read, Operation.READ),
            (found.write, Operation.WRITE),
        ):
            values = [value for at, value in by_operation if at["operation"] == operation]
            check(histogram, values, each)
        by_kind = naive.measure(rows, measure, "kind")
        for operation, name in NAMES.items():
            values = [value for at, value in by_kind if at["operation"] == operation]
            assert bool(values) == (name in found.opcodes)
            if values:
                check(found.opcodes[name], values, each)


@settings(deadline=None, max_examples=4)
@given(tables())
def test_everything_else_equals_loops_over_the_rows(rows: Rows) -> None:
    analysis = of(rows)
    check_commands(analysis, rows)
    check_time(analysis, rows)
    check_places(analysis, rows)


def check_commands(analysis: Analysis, rows: Rows) -> None:
    assert analysis.total.count == len(rows)
    assert sum(each.count for each in analysis.commands) == len(rows)
    for found in analysis.commands:
        mine = [each for each in rows if NAMES[Operation(each["operation"])] == found.name]
        assert found.count == len(mine)
        assert found.opcode == mine[0]["opcode"]
        assert found.bytes == sum(map(naive.moved, mine))
        assert found.errors == sum(
            each["fate"] == Fate.FAILED
            or (each["fate"] == Fate.ANSWERED and each["status"] not in FINE)
            for each in mine
        )
        assert found.unanswered == sum(each["fate"] >= Fate.ABORTED for each in mine)
        latency = [each["latency_ns"] / 1000 for each in mine if each["latency_ns"] is not None]
        if not latency:
            assert found.latency_us is None
            continue
        told = found.latency_us
        assert told is not None
        assert (told.count, told.min, told.max) == (len(latency), min(latency), max(latency))
        assert told.mean == pytest.approx(sum(latency) / len(latency))
        for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p999", 0.999)):
            assert getattr(told, name) == pytest.approx(naive.percentile(latency, share))
    assert analysis.unanswered == sum(each["fate"] == Fate.OPEN for each in rows)
    assert analysis.aborted == sum(each["fate"] == Fate.ABORTED for each in rows)
    assert analysis.lost == sum(each["fate"] == Fate.LOST for each in rows)
    known = (each["latency_ns"] / 1000 for each in rows if each["latency_ns"] is not None)
    assert [each.latency_us for each in analysis.slowest] == sorted(known, reverse=True)[:20]


def check_time(analysis: Analysis, rows: Rows) -> None:
    line = analysis.timeline
    start_ns, slice_ns = analysis.start_ns, round(line.slice_s * 1e9)
    if rows:
        assert start_ns == rows[0]["time_ns"]
        ends = [naive.end(each) for each in rows if each["fate"] != Fate.OPEN]
        last = max([rows[-1]["time_ns"], *ends])
        assert analysis.duration_s == pytest.approx((last - start_ns) / 1e9)
    for number, count in enumerate(line.commands):
        mine = [each for each in rows if (each["time_ns"] - start_ns) // slice_ns == number]
        assert count == len(mine)
        assert line.reads[number] == sum(each["operation"] == Operation.READ for each in mine)
        assert line.unmaps[number] == sum(each["operation"] == Operation.UNMAP for each in mine)
        deepest = max((each["outstanding"] for each in mine), default=None)
        assert line.outstanding_max[number] == deepest
        latency = [each["latency_ns"] / 1000 for each in mine if each["latency_ns"] is not None]
        assert line.latency_max_us[number] == max(latency, default=None)
        if latency:
            assert line.latency_p99_us[number] == pytest.approx(naive.percentile(latency, 0.99))
    for burst in analysis.bursts:
        window = round(burst.window_s * 1e9)
        windows = (rows[-1]["time_ns"] - start_ns) // window + 1
        arrivals = [0] * windows if windows < 10**4 else []
        if not arrivals:
            continue
        for each in rows:
            arrivals[(each["time_ns"] - start_ns) // window] += 1
        mean = sum(arrivals) / windows
        variance = sum((each - mean) ** 2 for each in arrivals) / windows
        assert burst.mean == pytest.approx(mean)
        assert burst.dispersion == pytest.approx(variance / mean, abs=1e-6)
        assert burst.peak == max(arrivals)
        assert burst.peak_at_s == pytest.approx(arrivals.index(burst.peak) * window / 1e9)


def check_places(analysis: Analysis, rows: Rows) -> None:
    for histogram, stream, operation in (
        (analysis.runs.all, "all", None),
        (analysis.runs.read, "operation", Operation.READ),
        (analysis.runs.write, "operation", Operation.WRITE),
    ):
        lengths = [
            length
            for at, length in naive.runs(rows, stream)
            if operation in (None, at["operation"])
        ]
        assert histogram.counts == naive.counts(lengths, RUNS)
        assert histogram.max == max(lengths, default=None)
    moving = [each for each in rows if naive.moves(each)]
    for aligned in analysis.alignment:
        assert aligned.count == sum(each["lba"] * 512 % aligned.bytes == 0 for each in moving)
    assert sum(each.commands for each in analysis.disks) == len(rows)
    for heat in analysis.heat:
        mine = [each for each in moving if each["disk"] == heat.disk]
        for cells, operation in ((heat.reads, Operation.READ), (heat.writes, Operation.WRITE)):
            of_operation = [each for each in mine if each["operation"] == operation]
            assert sum(map(sum, cells)) == len(of_operation)
            for number, line in enumerate(cells):
                low, high = heat.lba_edges[number : number + 2]
                assert sum(line) == sum(low <= each["lba"] < high for each in of_operation)
    sizes, steps = analysis.grids
    assert sum(map(sum, sizes.counts)) == sum(each["latency_ns"] is not None for each in moving)
    latency = {id(each): each["latency_ns"] for each in rows}
    expected: dict[tuple[int, int], int] = {}
    for at, step in naive.measure(rows, "seek_distance_blocks", "all"):
        if latency[id(at)] is not None:
            x = naive.counts([step], steps.x_bounds).index(1)
            y = naive.counts([latency[id(at)] / 1000], steps.y_bounds).index(1)
            expected[y, x] = expected.get((y, x), 0) + 1
    found = {(y, x): n for y, line in enumerate(steps.counts) for x, n in enumerate(line) if n}
    assert found == expected
    accesses = naive.reuse(rows, 512, reuse.PAGE_BYTES)
    check_reuse(analysis, accesses)


def check_reuse(analysis: Analysis, accesses: list[tuple[bool, int]]) -> None:
    told = analysis.reuse
    assert (told.accesses, told.sampling_rate) == (len(accesses), 1.0)
    distances = [each for _, each in accesses if each >= 0]
    assert told.first_accesses == len(accesses) - len(distances)
    assert told.working_set_bytes == told.first_accesses * 4096
    assert told.distances.counts == naive.counts(
        [each * 4096 for each in distances], told.distances.bounds
    )
    for size, ratio in told.miss_ratio:
        if accesses:
            misses = sum(each < 0 or each >= size // 4096 for _, each in accesses)
            assert ratio == pytest.approx(misses / len(accesses))


def test_buckets_are_the_users() -> None:
    rows = [row(n, latency_ns=n * 1000) for n in range(10)]
    found = of(rows, buckets=parse(["pow2", "latency_us=2,5"])).histograms
    assert (found["latency_us"].all.bounds, found["latency_us"].all.counts) == ((2, 5), (3, 3, 4))
    assert found["io_length_bytes"].all.bounds[0] == 512


def test_nothing_is_an_analysis_too() -> None:
    analysis = of([])
    assert analysis.total.count == 0
    assert analysis.commands == ()
    assert analysis.timeline.commands in ((), (0,))
    assert analysis.to_json()["total"]["latency_us"]["mean"] is None


def test_json_has_the_keys_that_scripts_ask_for() -> None:
    bad = row(
        2, status=2, sense_key=5, asc=0x24, ascq=0, latency_ns=2500, operation=Operation.WRITE
    )
    open_ = row(3, fate=int(Fate.OPEN), latency_ns=None)
    told = of([row(0), row(1), bad, open_]).to_json()
    first = told["commands"][0]
    assert (first["opcode"], first["name"], first["count"]) == (0x28, "READ(10)", 3)
    assert first["service_action"] is None
    assert (first["bytes"], first["errors"]) == (8192, 0)
    assert {"mean", "p50", "p90", "p99", "p999", "max"} < set(first["latency_us"])
    sense = told["sense"][0]
    assert (sense["key"], sense["asc"], sense["ascq"], sense["count"]) == (5, 0x24, 0, 1)
    assert sense["causes"][0]["example"].startswith("WRITE(10) lba 0 blocks 8")
    assert told["unanswered"] == 1
    assert told["stuck"][0]["words"] == "READ(10) lba 0 blocks 8"
    assert set(told["histograms"]) == set(MEASURES)
    assert told["histograms"]["latency_us"]["all"]["count"] == 3


def test_files_are_merged_by_time_and_order_is_said() -> None:
    early = [row(0, time_ns=1_000, lba=0), row(1, time_ns=3_000, lba=16)]
    late = [row(0, time_ns=2_000, lba=8), row(1, time_ns=4_000, lba=24)]
    analysis = analyze([("late", Made(late)), ("early", Made(early))])
    assert analysis.histograms["seek_distance_blocks"].all.max == 1
    assert analysis.runs.all.max == 4
    assert len(analysis.disks) == 2
    assert analysis.files[0].notes == ()
    assert "before" in analysis.files[1].notes[0]


def test_a_file_that_broke_makes_the_whole_not_whole() -> None:
    fine, broken = Made([row(0)]), Made([row(1)], troubles=Troubles(broken="at byte 7: cut off"))
    analysis = analyze([("fine", fine), ("broken", broken)])
    assert [each.whole for each in analysis.files] == [True, False]
    assert not analysis.whole
    assert analysis.total.count == 2


def test_events_and_geometry_come_along() -> None:
    disk = Disk("srp-1-0 lun 0", block_bytes=4096, block_count=100)
    event = Event(5_000, 0, "ABORT TASK tag 0x1", "FUNCTION COMPLETE", Function.ABORT_TASK, 0)
    source = Made([row(0, lba=1)], disks=[disk], events=[event])
    analysis = analyze([("made", source)])
    assert (analysis.disks[0].block_bytes, analysis.disks[0].block_count) == (4096, 100)
    (happening,) = analysis.events
    assert (happening.management, happening.time_s) == (True, 5e-6)
    assert analysis.alignment[3].count == 1


def test_sampled_reuse_is_near_the_exact_one(monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(7)
    # Hot and cold parts, so that the curve falls all the way.
    places = [int(16384 * chance.random() ** 3) * 8 for _ in range(3000)]
    rows = [row(n, lba=lba, blocks=64) for n, lba in enumerate(places)]
    exact = of(rows).reuse
    monkeypatch.setattr(reuse, "MAX_ACCESSES", 6000)
    sampled = of(rows).reuse
    assert sampled.sampling_rate < 1 == exact.sampling_rate
    assert sampled.accesses == exact.accesses
    assert sampled.working_set_bytes == pytest.approx(exact.working_set_bytes, rel=0.1)
    theirs = dict(exact.miss_ratio)
    for size, ratio in sampled.miss_ratio:
        if size in theirs and size >= 4096 / sampled.sampling_rate:
            assert ratio == pytest.approx(theirs[size], abs=0.05)


def test_a_command_longer_than_memory_is_looked_at_in_part() -> None:
    found = of([row(0, blocks=2**32 - 1), row(1)]).reuse
    assert found.truncated == 1
    assert found.accesses == 65536 + 1


def test_what_is_out_of_the_ordinary_overflows_nothing() -> None:
    extreme = {"data_in": 2**63 - 1, "data_out": 2**63 - 1, "residual": -(2**63)}
    rows = [
        row(0, time_ns=-(2**63), lba=2**64 - 1, blocks=2**32 - 1, **extreme),
        row(1, time_ns=2**63 - 1, latency_ns=2**63 - 1, lba=0, tag=2**64 - 1),
        row(2, time_ns=0, latency_ns=-(2**63), opcode=255, operation=7, cdb=b"", status=255),
    ]
    analysis = of(rows)
    assert analysis.total.count == 3
    assert len(analysis.timeline.commands) <= 240


def test_blocks_of_a_trace_without_cdbs_have_names() -> None:
    rows = [
        row(0, cdb=None, opcode=None),
        row(1, cdb=None, opcode=0, channel=1, operation=Operation.READ),
        row(2, cdb=None, opcode=5, channel=1, operation=Operation.UNMAP, lba=0, blocks=8),
    ]
    names = {each.name for each in of(rows).commands}
    assert names == {"read", "blkif READ", "blkif DISCARD"}


def test_flushes_and_unmaps_are_told() -> None:
    rows = [
        *(row(n, operation=Operation.WRITE, lba=n) for n in range(4)),
        row(4, operation=Operation.FLUSH),
        row(5, operation=Operation.FLUSH, time_ns=9_000),
        row(6, operation=Operation.WRITE, time_ns=10_000, lba=9, fua=True),
        row(7, operation=Operation.WRITE, time_ns=11_000, lba=9),
        row(8, operation=Operation.UNMAP, blocks=64, time_ns=12_000),
    ]
    analysis = of(rows)
    assert (analysis.flushes.count, analysis.flushes.unflushed_writes) == (2, 1)
    assert (analysis.flushes.interval_us.count, analysis.flushes.interval_us.max) == (1, 5.0)
    assert (analysis.unmaps.count, analysis.unmaps.blocks) == (1, 64)


def test_rows_are_frozen_values() -> None:
    analysis = of([row(0)])
    assert replace(analysis, unanswered=7).unanswered == 7


def test_percentiles_of_very_many_commands_are_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "MAX_EXACT", 10)
    latency = of([row(n, latency_ns=(n + 1) * 1000) for n in range(1000)]).total.latency_us
    assert latency is not None
    assert (latency.count, latency.max) == (1000, 1000)
    assert latency.p50 == pytest.approx(500, rel=0.02)
    assert latency.p99 == pytest.approx(990, rel=0.02)
