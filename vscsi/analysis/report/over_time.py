# SPDX-License-Identifier: MIT
"""The capture from its beginning to its end: rates, latency, queue depth, and what happened."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace

from vscsi.analysis import units
from vscsi.analysis.report.axis import Axis, from_zero, linear, logarithmic
from vscsi.analysis.report.markup import Html, tag
from vscsi.analysis.report.plots import (
    Series,
    band,
    behind,
    figure,
    framed,
    legend,
    line,
    marks,
    stacked,
    table,
)
from vscsi.analysis.result import Analysis, Timeline

_MAX_SLICES = 480
_TABLE_SLICES = 24
_MAX_MARKS = 200
_LARGEST = ("outstanding_max", "latency_p50_us", "latency_p99_us", "latency_max_us")


def section(analysis: Analysis) -> Html:
    """Return plots above each other that share their x axis, and the numbers behind all."""
    timeline = coarser(analysis.timeline, _MAX_SLICES)
    number = len(timeline.commands)
    if not number or not any(timeline.commands):
        return tag("p", "No commands.", class_="none")
    span_s = timeline.slice_s * number
    x = linear(0, span_s, lambda value: units.duration(value * 1e6), ticks=6)
    managed = [each for each in analysis.events if each.management][:_MAX_MARKS]
    over = (marks((min(1.0, max(0.0, each.time_s / span_s)) for each in managed), "event"),)
    plots = (
        _rates(timeline, x, over),
        _throughput(timeline, x, over),
        _latency(timeline, x, over) if any(timeline.latency_max_us) else None,
        _depth(timeline, x, over),
        _errors(timeline, x, over) if any(timeline.errors) or managed else None,
    )
    key = legend(("event", "reset or abort")) if managed else None
    every = units.duration(timeline.slice_s * 1e6)
    about = tag("div", tag("span", f"A value every {every}."), key, class_="hint")
    return tag("div", about, plots, behind("numbers", _numbers(timeline)), class_="wide")


def coarser(timeline: Timeline, most: int) -> Timeline:
    """Return at most so many slices: counts add up; of depths and latencies the largest stays."""
    number = len(timeline.commands)
    group = -(-number // most)
    if group <= 1:
        return timeline
    starts = range(0, number, group)

    def joined(name: str) -> tuple[float | None, ...]:
        values: tuple[float | None, ...] = getattr(timeline, name)
        parts = [
            (at, [each for each in values[at : at + group] if each is not None]) for at in starts
        ]
        if name == "outstanding_mean":
            return tuple(_mean(values, timeline.commands, at, at + group) for at, _ in parts)
        if name in _LARGEST:
            return tuple(max(part, default=None) for _, part in parts)
        return tuple(sum(part) for _, part in parts)

    names = [each.name for each in fields(timeline) if each.name != "slice_s"]
    changes: dict[str, object] = {name: joined(name) for name in names}
    return replace(timeline, slice_s=timeline.slice_s * group, **changes)  # type: ignore[arg-type]


def _mean(
    values: Sequence[float | None], weights: Sequence[int], first: int, end: int
) -> float | None:
    pairs = [
        (value, weight)
        for value, weight in zip(values[first:end], weights[first:end], strict=True)
        if value is not None
    ]
    total = sum(weight for _, weight in pairs)
    return sum(value * weight for value, weight in pairs) / total if total else None


def _rates(timeline: Timeline, x: Axis, over: Sequence[Html]) -> Html:
    kinds = {
        "read": ("reads", timeline.reads),
        "write": ("writes", timeline.writes),
        "other": ("others", _others(timeline)),
    }
    return _areas("Commands", "a second", kinds, timeline.slice_s, units.short, x, over)


def _throughput(timeline: Timeline, x: Axis, over: Sequence[Html]) -> Html:
    kinds = {
        "read": ("read", [each / 1e6 for each in timeline.read_bytes]),
        "write": ("written", [each / 1e6 for each in timeline.write_bytes]),
    }
    return _areas("Throughput", "MB/s", kinds, timeline.slice_s, units.figure, x, over)


def _areas(
    title: str,
    unit: str,
    kinds: Mapping[str, tuple[str, Sequence[float]]],
    slice_s: float,
    words: Callable[[float], str],
    x: Axis,
    over: Sequence[Html],
) -> Html:
    series = [
        Series(name, style, [value / slice_s for value in values])
        for style, (name, values) in kinds.items()
        if any(values)
    ]
    tops = [
        sum(value or 0 for value in column)
        for column in zip(*(s.values for s in series), strict=True)
    ]
    y = from_zero(tops, words)
    most = max(tops, default=0)
    told = f"{title} {unit} over time, {units.figure(most)} at most"
    return figure(
        title,
        framed((stacked(series, y), *over), told, x=x, y=y),
        about=unit,
        key=legend(*((each.style, each.name) for each in series)),
    )


def _latency(timeline: Timeline, x: Axis, over: Sequence[Html]) -> Html:
    p50 = Series("p50", "p50", timeline.latency_p50_us)
    p99 = Series("p99", "p99", timeline.latency_p99_us)
    most = Series("max", "max", timeline.latency_max_us)
    y = logarithmic([*p50.values, *p99.values, *most.values], units.duration, ticks=4)
    highest = max((each for each in most.values if each is not None), default=None)
    words = (
        f"Latency over time: median, 99th percentile, maximum; {units.duration(highest)} at most"
    )
    drawing = (band(p50, p99, y), line(most, y), line(p99, y), line(p50, y), *over)
    key = legend(("p50", "median"), ("p99", "99th percentile"), ("max", "maximum"))
    plot = framed(drawing, words, x=x, y=y, height="high")
    return figure("Latency", plot, about="logarithmic", key=key)


def _depth(timeline: Timeline, x: Axis, over: Sequence[Html]) -> Html:
    mean = Series("mean", "p50", timeline.outstanding_mean)
    most = Series("max", "max", timeline.outstanding_max)
    y = from_zero([*mean.values, *most.values], units.short, whole=True)
    highest = max((each for each in most.values if each is not None), default=0)
    words = f"Commands under way over time, {highest:,} at most"
    key = legend(("p50", "mean"), ("max", "maximum"))
    plot = framed((line(most, y), line(mean, y), *over), words, x=x, y=y)
    return figure("Queue depth", plot, about="commands under way as each found it", key=key)


def _errors(timeline: Timeline, x: Axis, over: Sequence[Html]) -> Html:
    y = from_zero(timeline.errors, units.short, ticks=2, whole=True)
    series = Series("errors", "bad", timeline.errors)
    words = f"Errors over time, {sum(timeline.errors):,} in all"
    plot = framed((stacked([series], y), *over), words, x=x, y=y, height="low")
    return figure("Errors", plot, about=f"a slice; {sum(timeline.errors):,} in all")


def _others(timeline: Timeline) -> list[int]:
    columns = zip(timeline.commands, timeline.reads, timeline.writes, strict=True)
    return [max(0, every - reads - writes) for every, reads, writes in columns]


def _numbers(timeline: Timeline) -> Html:
    few = coarser(timeline, _TABLE_SLICES)
    heads = (
        *("from", "commands", "reads", "writes", "flushes", "unmaps", "errors", "read", "written"),
        *("depth", "deepest", "p50", "p99", "max"),
    )
    rows = [
        (
            units.duration(at * few.slice_s * 1e6),
            *map(units.count, counts),
            *map(units.size, sizes),
            units.NOTHING if mean is None else units.figure(mean),
            units.count(deepest),
            *map(units.duration, latencies),
        )
        for at, (counts, sizes, mean, deepest, latencies) in enumerate(
            zip(
                zip(
                    *(few.commands, few.reads, few.writes, few.flushes, few.unmaps, few.errors),
                    strict=True,
                ),
                zip(few.read_bytes, few.write_bytes, strict=True),
                few.outstanding_mean,
                few.outstanding_max,
                zip(few.latency_p50_us, few.latency_p99_us, few.latency_max_us, strict=True),
                strict=True,
            )
        )
    ]
    group = len(timeline.commands) > _TABLE_SLICES
    note = "Of latencies the worst slice of each row is shown." if group else None
    return tag("div", table(heads, rows), tag("p", note, class_="about") if note else None)
