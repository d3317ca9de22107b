# SPDX-License-Identifier: MIT
"""Two analyses on one page: every figure of both beside each other, and their shapes laid over."""

from collections.abc import Callable, Sequence

from vscsi.analysis import units
from vscsi.analysis.diff import Diff, Difference
from vscsi.analysis.report.axis import buckets, from_zero, linear, logarithmic
from vscsi.analysis.report.histograms import TITLES, bucket_names, short_bounds
from vscsi.analysis.report.markup import Child, Html, join, tag
from vscsi.analysis.report.over_time import coarser
from vscsi.analysis.report.page import document, section
from vscsi.analysis.report.plots import (
    Series,
    bars,
    behind,
    cut,
    figure,
    framed,
    legend,
    line,
    table,
)
from vscsi.analysis.report.tables import MAX_ROWS, more
from vscsi.analysis.result import Histogram

_SAME = 0.02
"""Ratios that are nearer to 1 are not marked."""
_MAX_SLICES = 240


def render_diff(diff: Diff) -> str:
    """Return the comparison as one HTML document, as `render` does of one analysis."""
    a, b = cut(diff.a_name), cut(diff.b_name)
    key = legend(("a", a), ("b", b))
    return document(
        f"vscsi: {a} and {b}",
        tag("header", tag("h1", f"{a} and {b}"), tag("p", _about(diff), class_="about"), key),
        tag(
            "main",
            section("all", "All commands", _figures(diff, ["all"], a, b)),
            section("commands", "Single commands", _commands(diff, a, b)),
            section("time", "Over time", tag("div", key, _over_time(diff), class_="wide")),
            section("histograms", "Histograms", join((key, _histograms(diff, a, b)))),
        ),
    )


def _about(diff: Diff) -> str:
    return "; ".join(
        f"{name}: {each.total.count:,} commands in {units.duration(each.duration_s * 1e6)}"
        for name, each in (("the first", diff.a), ("the second", diff.b))
    )


def _figures(diff: Diff, what: Sequence[str], a: str, b: str) -> Html:
    rows = [
        (_name(each.figure), _value(each, each.a), _value(each, each.b), _ratio(each))
        for each in diff.differences
        if each.what in what
    ]
    return table(("", a, b, "ratio"), rows)


def _commands(diff: Diff, a: str, b: str) -> Html:
    by_what: dict[str, dict[str, Difference]] = {}
    for each in diff.differences:
        if each.what != "all":
            by_what.setdefault(each.what, {})[each.figure] = each
    shown = ("count", "errors", "latency p50 us", "latency p99 us", "latency max us")
    rows = [
        (cut(what), *(_both(figures.get(name)) for name in shown))
        for what, figures in list(by_what.items())[:MAX_ROWS]
    ]
    about = tag("p", f"{a}, {b}, and the second over the first.", class_="about")
    return join((about, table(("command…", *map(_name, shown)), rows), more(len(by_what))))


def _both(difference: Difference | None) -> Child:
    if difference is None:
        return None
    a, b = (_value(difference, each) for each in (difference.a, difference.b))
    return [f"{a}, {b}", tag("div", _ratio(difference), class_="about")]


def _name(name: str) -> str:
    words, _, unit = name.rpartition(" ")
    return words if unit in ("us", "s", "bytes") and words else name


def _value(difference: Difference, value: float | None) -> str:
    if value is None:
        return units.NOTHING
    _, _, unit = difference.figure.rpartition(" ")
    if unit == "us":
        return units.duration(value)
    if unit == "s":
        return units.duration(value * 1e6)
    if unit == "bytes":
        return units.size(value)
    return units.count(value) if value == int(value) else units.figure(value)


def _ratio(difference: Difference) -> Child:
    ratio = difference.ratio
    if ratio is None:
        return units.NOTHING
    return tag("span" if abs(ratio - 1) < _SAME else "b", units.ratio(ratio))


def _over_time(diff: Diff) -> Html:
    lines = [coarser(each.timeline, _MAX_SLICES) for each in (diff.a, diff.b)]
    span_s = max((each.slice_s * len(each.commands) for each in lines), default=0) or 1.0
    rates = [[count / each.slice_s for count in each.commands] for each in lines]
    moved = [
        [
            (read + written) / each.slice_s / 1e6
            for read, written in zip(each.read_bytes, each.write_bytes, strict=True)
        ]
        for each in lines
    ]
    spans = [each.slice_s * len(each.commands) for each in lines]
    return join(
        (
            _lines("Commands", "a second", rates, spans, span_s, units.short),
            _lines("Throughput", "MB/s", moved, spans, span_s, units.figure),
            _lines(
                "Latency",
                "99th percentile, logarithmic",
                [each.latency_p99_us for each in lines],
                spans,
                span_s,
                units.duration,
                log=True,
            ),
        )
    )


def _lines(
    title: str,
    about: str,
    values: Sequence[Sequence[float | None]],
    spans: Sequence[float],
    span_s: float,
    words: Callable[[float], str],
    *,
    log: bool = False,
) -> Html:
    every = [each for side in values for each in side]
    y = logarithmic(every, words) if log else from_zero(every, words)
    x = linear(0, span_s, lambda value: units.duration(value * 1e6), ticks=6)
    drawing = [
        line(Series(style, style, side), y, own / span_s)
        for style, side, own in zip("ab", values, spans, strict=True)
    ]
    highest = max((each for each in every if each is not None), default=0)
    told = f"{title} of both over time, {words(highest)} at most"
    return figure(title, framed(drawing, told, x=x, y=y), about=about)


def _histograms(diff: Diff, a: str, b: str) -> Html:
    shifts = {(each.measure, each.klass): each.distance for each in diff.shifts}
    panels = []
    for key, of_a in diff.a.histograms.items():
        of_b = diff.b.histograms.get(key)
        if of_b is None or of_a.all.bounds != of_b.all.bounds:
            continue
        apart = shifts.get((key, "all"))
        about = "" if apart is None else f"apart by {units.share(apart, 1)}"
        plot = _overlaid(of_a.unit, (of_a.all, of_b.all), (a, b))
        panels.append(figure(TITLES.get(key, key), plot, about=about))
    about = tag(
        "p",
        "Shares of all commands. How far two are apart is the greatest difference of their "
        "cumulative shares.",
        class_="about",
    )
    return join((about, tag("div", panels, class_="panels")))


def _overlaid(unit: str, both: Sequence[Histogram], sides: Sequence[str]) -> Html:
    shares = [[100 * count / (each.count or 1) for count in each.counts] for each in both]
    y = from_zero([value for each in shares for value in each], lambda value: f"{value:g}%")
    bounds = both[0].bounds
    names = bucket_names(unit, bounds)
    titles = [
        f"{name} {unit if unit != 'us' else ''}: {first:.1f} % and {second:.1f} %"
        for name, first, second in zip(names, *shares, strict=True)
    ]
    drawing = bars((), list(zip("ab", shares, strict=True)), y, titles)
    rows = [
        (
            name,
            *(units.count(each.counts[at]) for each in both),
            *(f"{each[at]:.1f} %" for each in shares),
        )
        for at, name in enumerate(names)
        if any(each.counts[at] for each in both)
    ]
    heads = ("time" if unit == "us" else unit, "first", "second", "share", "share")
    words = f"Shares of {sides[0]} ({both[0].count:,}) and of {sides[1]} ({both[1].count:,})"
    plot = framed((drawing,), words, x=buckets(bounds, short_bounds(unit)), y=y, upright=True)
    return join((plot, behind("numbers", table(heads, rows))))
