# SPDX-License-Identifier: MIT
"""How an analysis looks in a terminal, and the difference of two."""

from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from vscsi.analysis import units
from vscsi.analysis.diff import Diff, Difference
from vscsi.analysis.result import (
    Analysis,
    CommandRow,
    Happening,
    Histogram,
    MeasureHistograms,
    Moment,
)
from vscsi.cli.output import printable

_BAR_CELLS = 30
_SHOWN = 10
"""Rows of a list that is longer; --json has all."""
_TITLES = {
    "io_length_bytes": "I/O length",
    "seek_distance_blocks": "Distance to the previous I/O, blocks",
    "closest_of_16_distance_blocks": "Distance to the closest of the previous 16 I/Os, blocks",
    "outstanding": "Outstanding commands at arrival",
    "latency_us": "Latency",
    "interarrival_us": "Interarrival time",
}
_SEVERITIES = {"error": "red", "warning": "yellow", "note": ""}


def print_analysis(console: Console, analysis: Analysis) -> None:
    """Print all that fits a person's eyes."""
    for part in _parts(analysis):
        console.print(part)
        console.print()


def print_diff(console: Console, diff: Diff) -> None:
    """Print what differs between two."""
    table = _table("", "", _safe(diff.a_name), _safe(diff.b_name), "ratio", numbers=3)
    for each in diff.differences:
        table.add_row(
            _safe(each.what), each.figure, _of(each, each.a), _of(each, each.b), _by(each)
        )
    console.print(table)
    console.print()
    shapes = _table("shape of", "", "difference", "mean of A", "mean of B", numbers=3)
    for shift in diff.shifts:
        if shift.a_mean is None and shift.b_mean is None:
            continue
        shapes.add_row(
            _TITLES[shift.measure],
            shift.klass,
            units.NOTHING if shift.distance is None else f"{shift.distance:.3f}",
            _number(shift.a_mean),
            _number(shift.b_mean),
        )
    console.print(shapes)


def _parts(analysis: Analysis) -> Iterator[RenderableType]:
    yield _head(analysis)
    yield _commands([analysis.total, *analysis.commands])
    if len(analysis.disks) > 1:
        yield _disks(analysis)
    for measure, histograms in analysis.histograms.items():
        if histograms.all.count:
            yield _histogram(_TITLES[measure], histograms)
    if analysis.runs.all.count:
        yield _histogram("Sequential runs, commands", analysis.runs)
    yield _places(analysis)
    if analysis.sense:
        yield _senses(analysis)
    if analysis.findings:
        yield _findings(analysis)
    if analysis.slowest:
        yield _moments("Slowest", analysis.slowest, "latency", len(analysis.slowest))
    if analysis.stuck:
        yield _moments("Unanswered", analysis.stuck, "waiting", analysis.unanswered)
    management = [each for each in analysis.events if each.management]
    if management:
        yield _events("Resets and aborts", management)
    others = [each for each in analysis.events if not each.management]
    if others:
        yield _events("Events", others)


def _head(analysis: Analysis) -> RenderableType:
    total, seconds = analysis.total, analysis.duration_s
    lines = [
        f"{file.name}: {file.format}, {units.count(file.commands)} commands"
        for file in analysis.files
    ]
    begins = units.clock(analysis.start_ns)
    words = [f"{units.count(total.count)} commands in {units.duration(seconds * 1e6)}"]
    if seconds:
        words.append(f"{units.count(total.count / seconds)}/s")
        words.append(units.rate(total.bytes / seconds))
    lines.append(", ".join(words) + (f", from {begins}" if begins else ""))
    fates = {
        "unanswered": analysis.unanswered,
        "aborted": analysis.aborted,
        "lost": analysis.lost,
    }
    told = [f"{units.count(number)} {fate}" for fate, number in fates.items() if number]
    if told:
        lines.append(", ".join(told))
    return Text("\n".join(printable(line) for line in lines))


def _commands(rows: Sequence[CommandRow]) -> Table:
    figures = ("p50", "p90", "p99", "p99.9", "max")
    heads = ("count", "bytes", "errors", "unanswered", "mean", *figures)
    table = _table("command", *heads, numbers=len(heads))
    for row in rows:
        latency = row.latency_us
        times = (
            [None] * 6
            if latency is None
            else [latency.mean, latency.p50, latency.p90, latency.p99, latency.p999, latency.max]
        )
        table.add_row(
            _safe(row.name),
            units.count(row.count),
            units.size(row.bytes),
            Text(units.count(row.errors), "red" if row.errors else ""),
            Text(units.count(row.unanswered), "red" if row.unanswered else ""),
            *map(units.duration, times),
        )
    return table


def _disks(analysis: Analysis) -> Table:
    table = _table("disk", "size", "commands", "read", "written", numbers=4)
    for disk in analysis.disks:
        size = None if disk.block_count is None else disk.block_count * disk.block_bytes
        table.add_row(
            _safe(disk.name),
            units.size(size),
            units.count(disk.commands),
            units.size(disk.read_bytes),
            units.size(disk.write_bytes),
        )
    return table


def _histogram(title: str, histograms: MeasureHistograms) -> Table:
    table = _table(title, "all", "reads", "writes", "", numbers=3)
    whole = histograms.all
    most = max(whole.counts)
    for number in _filled(whole, histograms.read, histograms.write):
        count = whole.counts[number]
        cells = round(_BAR_CELLS * count / most) if most else 0
        table.add_row(
            _bucket(whole, number, histograms.unit),
            units.count(count),
            units.count(histograms.read.counts[number]),
            units.count(histograms.write.counts[number]),
            Text("█" * cells or ("▏" if count else ""), "blue"),
        )
    return table


def _filled(*histograms: Histogram) -> range:
    """Return the buckets from the first to the last that has anything."""
    filled = [n for each in histograms for n, count in enumerate(each.counts) if count]
    return range(min(filled), max(filled) + 1)


def _bucket(histogram: Histogram, number: int, unit: str) -> str:
    above = number == len(histogram.bounds)
    bound = histogram.bounds[number - 1 if above else number]
    words = {"us": units.duration, "bytes": units.short_size}.get(unit, units.count)(bound)
    if words.startswith("<"):
        return words
    return f"{'>' if above else '≤'} {words}"


def _places(analysis: Analysis) -> RenderableType:
    """Return what needs a line each."""
    reuse, flushes, unmaps = analysis.reuse, analysis.flushes, analysis.unmaps
    sampled = "" if reuse.sampling_rate == 1 else f" (from 1 page in {1 / reuse.sampling_rate:.0f})"
    lines = [
        f"working set {units.size(reuse.working_set_bytes)}: {units.size(reuse.read_set_bytes)} "
        f"read, {units.size(reuse.written_set_bytes)} written{sampled}"
    ]
    curve = reuse.miss_ratio[:: max(1, len(reuse.miss_ratio) // 8)]
    if reuse.accesses:
        points = ", ".join(f"{units.short_size(size)} {miss:.0%}" for size, miss in curve)
        lines.append(f"misses of an LRU cache of {points}")
    aligned = {each.bytes: each.share for each in analysis.alignment}
    if aligned:
        shares = ", ".join(
            f"{units.short_size(n)} {aligned[n]:.0%}" for n in (4096, 65536, 1 << 20)
        )
        lines.append(f"reads and writes that begin at a multiple of {shares}")
    for burst in analysis.bursts:
        lines.append(
            f"in {units.duration(burst.window_s * 1e6)}: {units.figure(burst.mean)} commands, at "
            f"most {units.count(burst.peak)} ({units.figure(burst.peak_at_s)} s), dispersion "
            f"{units.figure(burst.dispersion)}"
        )
    if flushes.count:
        mean = flushes.interval_us.mean
        lines.append(
            f"{units.count(flushes.count)} flushes, one in {units.duration(mean)}, "
            f"{units.figure(flushes.writes_between_mean or 0)} writes for each"
        )
    if unmaps.count:
        blocks = "" if unmaps.blocks is None else f", {units.count(unmaps.blocks)} blocks"
        lines.append(f"{units.count(unmaps.count)} unmaps, {units.figure(unmaps.per_s)}/s{blocks}")
    return Text("\n".join(lines))


def _senses(analysis: Analysis) -> Table:
    table = _table("count", "sense", "to", numbers=0)
    for row in analysis.sense[:_SHOWN]:
        causes = (
            f"{units.count(cause.count)} {cause.name}, the first {cause.example}"
            for cause in row.causes[:3]
        )
        table.add_row(units.count(row.count), _safe(row.words), _safe("; ".join(causes)))
    return table


def _findings(analysis: Analysis) -> Table:
    table = _table("lint", "count", "", "such as", numbers=1)
    for each in analysis.findings:
        table.add_row(
            Text(each.severity, _SEVERITIES[each.severity]),
            units.count(each.count),
            _safe(each.words),
            _safe("\n".join(each.examples), lines=True),
        )
    return table


def _moments(title: str, moments: Sequence[Moment], time: str, count: int) -> RenderableType:
    table = _table(title, time, "at", "disk", "", "answer", numbers=2)
    table.columns[0].header = Text(f"{title} ({units.count(count)})")
    for number, each in enumerate(moments[:_SHOWN], 1):
        table.add_row(
            str(number),
            units.duration(each.latency_us),
            f"{each.time_s:.6f}",
            _safe(each.disk),
            _safe(each.words),
            _safe(each.answer),
        )
    return table


def _events(title: str, events: Sequence[Happening]) -> RenderableType:
    table = _table(title, "channel", "disk", "", "outcome", numbers=0)
    for each in events[:_SHOWN]:
        table.add_row(
            f"{each.time_s:.6f}",
            _safe(each.channel),
            _safe(each.disk),
            _safe(each.words),
            _safe(each.outcome),
        )
    if len(events) <= _SHOWN:
        return table
    return Group(table, Text(f"and {units.count(len(events) - _SHOWN)} more"))


def _table(first: str, *heads: RenderableType, numbers: int) -> Table:
    """Return an empty table of which so many columns after the first are numbers."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column(first)
    for number, head in enumerate(heads):
        table.add_column(head, justify="right" if number < numbers else "left")
    return table


def _safe(text: str, *, lines: bool = False) -> Text:
    """Return what a file says without what would steer a terminal."""
    parts = text.split("\n") if lines else [text]
    return Text("\n".join(printable(part) for part in parts))


def _number(value: float | None) -> str:
    return units.NOTHING if value is None else units.figure(value)


def _of(difference: Difference, value: float | None) -> str:
    if "bytes" in difference.figure:
        return units.size(value)
    if difference.figure.endswith(" us"):
        return units.duration(value)
    return _number(value)


def _by(difference: Difference) -> Text:
    ratio = difference.ratio
    if ratio is None:
        return Text(units.NOTHING)
    return Text(f"{units.TIMES}{units.figure(ratio)}", "" if 0.9 < ratio < 1.1 else "bold")
