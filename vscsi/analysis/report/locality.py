# SPDX-License-Identifier: MIT
"""What a cache could do, how sequential and how bursty it is, and what is flushed and unmapped."""

from vscsi.analysis import units
from vscsi.analysis.report.axis import Axis, linear, logarithmic
from vscsi.analysis.report.histograms import layers_of, single, spread
from vscsi.analysis.report.markup import Html, tag
from vscsi.analysis.report.plots import HEIGHT, WIDTH, behind, figure, framed, table
from vscsi.analysis.report.tables import listed
from vscsi.analysis.result import Analysis, Reuse


def section(analysis: Analysis) -> Html:
    """Return plots beside each other, and the figures that need none."""
    reuse, runs, flushes = analysis.reuse, analysis.runs, analysis.flushes
    plots = [
        _misses(reuse) if reuse.miss_ratio else None,
        single(
            "Sequential runs",
            f"commands in a row; {spread('commands', runs.all)}",
            "commands",
            layers_of(runs),
        )
        if runs.all.count
        else None,
        single(
            "Time between flushes",
            spread("us", flushes.interval_us),
            "us",
            [("one", "flushes", flushes.interval_us)],
        )
        if flushes.interval_us.count
        else None,
        _alignment(analysis) if analysis.alignment else None,
        _bursts(analysis) if analysis.bursts else None,
        _figures(analysis),
    ]
    return tag("div", plots, class_="panels")


def _misses(reuse: Reuse) -> Html:
    sizes = [float(size) for size, _ in reuse.miss_ratio]
    x = logarithmic(sizes, units.short_size, base=2, ticks=6)
    y = linear(0, 1, lambda value: f"{100 * value:.0f}%", ticks=4)
    points = [
        f"{WIDTH * x.place(size):.1f} {HEIGHT * (1 - min(1.0, max(0.0, ratio))):.1f}"
        for size, ratio in reuse.miss_ratio
    ]
    drawing = Html(f'<path class="line p50" d="M{"L".join(points)}"/>')
    last_size, last = reuse.miss_ratio[-1]
    words = f"Miss ratio by size of the cache: {units.share(last, 1)} at {units.size(last_size)}"
    rows = [(units.size(size), units.share(ratio, 1)) for size, ratio in reuse.miss_ratio]
    about = "of page accesses, for an LRU cache of each size"
    numbers = behind("numbers", table(("cache", "misses"), rows))
    return figure("Miss ratio", framed((drawing,), words, x=_inside(x), y=y), numbers, about=about)


def _inside(axis: Axis) -> Axis:
    """Return an axis without words that would stick out at its ends."""
    return Axis(axis.place, tuple(each for each in axis.ticks if each[0] <= 0.98))


def _alignment(analysis: Analysis) -> Html:
    rows = [
        (
            units.size(each.bytes),
            tag("div", tag("i", style=f"width:{100 * each.share:.1f}%"), class_="meter"),
            units.count(each.count),
            units.share(each.share, 1),
        )
        for each in analysis.alignment
    ]
    heads = ("multiple of", "", "count", "share")
    return figure(
        "Alignment", table(heads, rows, left=2), about="of reads' and writes' first bytes"
    )


def _bursts(analysis: Analysis) -> Html:
    rows = [
        (
            units.duration(each.window_s * 1e6),
            units.figure(each.mean),
            units.count(each.peak),
            units.duration(each.peak_at_s * 1e6),
            units.figure(each.dispersion),
        )
        for each in analysis.bursts
    ]
    heads = ("window", "mean", "peak", "peak at", "dispersion")
    about = "arrivals a window; dispersion is variance over mean, 1 for independent arrivals"
    return figure("Bursts", table(heads, rows), about=about)


def _figures(analysis: Analysis) -> Html:
    reuse, flushes, unmaps = analysis.reuse, analysis.flushes, analysis.unmaps
    exact = (
        "" if reuse.sampling_rate >= 1 else f", from {units.share(reuse.sampling_rate, 1)} of them"
    )
    between = flushes.writes_between_mean
    rows = [
        (
            "working set",
            f"{units.size(reuse.working_set_bytes)} in {units.size(reuse.page_bytes)} pages{exact}",
        ),
        (
            "read, written",
            f"{units.size(reuse.read_set_bytes)}, {units.size(reuse.written_set_bytes)}",
        ),
        ("first accesses", f"{units.count(reuse.first_accesses)} of {units.count(reuse.accesses)}"),
        (
            "flushes",
            units.count(flushes.count)
            + (f", {units.figure(between)} writes between" if between is not None else ""),
        ),
        ("not flushed at the end", f"{units.count(flushes.unflushed_writes)} writes"),
        (
            "unmaps",
            f"{units.count(unmaps.count)}, {units.figure(unmaps.per_s)} a second"
            + (f", {units.count(unmaps.blocks)} blocks" if unmaps.blocks is not None else ""),
        ),
    ]
    return figure("Footprint", listed(rows))
