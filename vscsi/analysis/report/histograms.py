# SPDX-License-Identifier: MIT
"""Histograms: six small plots at a time, of all commands, of reads, of writes, of one opcode."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

from vscsi.analysis import units
from vscsi.analysis.report.axis import Words, buckets, from_zero
from vscsi.analysis.report.markup import Html, join, tag
from vscsi.analysis.report.plots import bars, behind, cut, figure, framed, legend, table
from vscsi.analysis.result import Analysis, Histogram, MeasureHistograms

MAX_OPCODES = 8
"""That have plots of their own, and fewer if there are more than"""
_MAX_BUCKETS = 4000
"""of all plots."""
_CLASSES = ("All", "Reads", "Writes")
TITLES = {
    "io_length_bytes": "I/O length",
    "seek_distance_blocks": "Seek distance",
    "closest_of_16_distance_blocks": "Distance to the closest of 16",
    "outstanding": "Outstanding at arrival",
    "latency_us": "Latency",
    "interarrival_us": "Time between arrivals",
}
_SCALES: Mapping[str, tuple[Words, Words]] = {
    "bytes": (units.short_size, units.size),
    "us": (lambda value: units.duration(value).replace(" ", ""), units.duration),
    "blocks": (units.short, units.count),
    "commands": (units.short, units.count),
}
_Layer = tuple[str, str, Histogram]
"""Style, name and what it shows."""


def section(analysis: Analysis) -> Html:
    """Return the six, and what chooses whose they are; works without scripts."""
    counts = {row.name: row.count for row in analysis.commands}
    names = {name: None for each in analysis.histograms.values() for name in each.opcodes}
    buckets_each = sum(len(each.all.counts) for each in analysis.histograms.values())
    room = min(MAX_OPCODES, max(0, _MAX_BUCKETS // max(1, buckets_each) - len(_CLASSES)))
    chosen = sorted(names, key=lambda name: -counts.get(name, 0))[:room]
    views = [*_CLASSES, *map(cut, chosen)]
    choice = [
        (
            tag(
                "input",
                type="radio",
                name="view",
                id=f"view{number}",
                checked="" if number == 0 else None,
            ),
            tag("label", name, for_=f"view{number}"),
        )
        for number, name in enumerate(views)
    ]
    panels = []
    for key, measure in analysis.histograms.items():
        plots = [
            tag("div", _view(measure, number, chosen), class_=f"view v{number}")
            for number in range(len(views))
        ]
        panels.append(figure(TITLES.get(key, key), plots))
    about = tag(
        "p",
        "Reads, writes and single opcodes are looked at as if there were nothing else: the "
        "distance is that from the previous read, or write, of the same disk. Their bars need "
        "not add up to those of all commands.",
        class_="about",
    )
    rest = len(names) - len(chosen)
    left = tag("p", f"{rest} more opcodes have no plots here.", class_="about") if rest else None
    return join(
        (about, tag("div", choice, tag("div", panels, class_="panels"), class_="tabs"), left)
    )


def single(title: str, about: str, unit: str, layers: Sequence[_Layer]) -> Html:
    """Return a histogram as a plot of its own."""
    return figure(title, _plot(title, unit, layers), about=about)


def layers_of(measure: MeasureHistograms) -> list[_Layer]:
    """Return all commands behind reads and writes."""
    return [
        ("all", "all", measure.all),
        ("read", "reads", measure.read),
        ("write", "writes", measure.write),
    ]


def spread(unit: str, histogram: Histogram) -> str:
    """Return mean, least and most."""
    if histogram.mean is None or histogram.min is None or histogram.max is None:
        return "no commands"
    words = _SCALES[unit][1]
    mean = histogram.mean
    told = units.figure(mean) if unit in ("blocks", "commands") else words(mean)
    return f"mean {told}, {words(histogram.min)} to {words(histogram.max)}"


def in_text(key: str) -> str:
    """Return a measure's name as it stands within a sentence."""
    title = TITLES.get(key, key)
    return title if title[1:2] == "/" else title[:1].lower() + title[1:]


def short_bounds(unit: str) -> Words:
    """Return what writes a bound at an axis."""
    return _SCALES[unit][0]


def bucket_names(unit: str, bounds: Sequence[float]) -> list[str]:
    """Return a name for each bucket: "4,096 bytes", "> 10 µs to 100 µs"."""
    if not bounds:
        return ["all"]
    if unit == "us":
        words = units.duration
        between = [f"> {words(low)} to {words(high)}" for low, high in pairwise(bounds)]
        return [f"up to {words(bounds[0])}", *between, f"> {words(bounds[-1])}"]
    between = [
        f"{high:,.0f}" if high == low + 1 else f"{low + 1:,.0f} to {high:,.0f}"
        for low, high in pairwise(bounds)
    ]
    return [f"up to {bounds[0]:,.0f}", *between, f"from {bounds[-1] + 1:,.0f}"]


def _view(measure: MeasureHistograms, number: int, opcodes: Sequence[str]) -> Html:
    layers = layers_of(measure)
    if number >= len(_CLASSES):
        name = opcodes[number - len(_CLASSES)]
        found = measure.opcodes.get(name)
        layers = [("one", cut(name), found)] if found is not None else []
    elif number:
        layers = layers[number : number + 1]
    if not layers or not layers[0][2].count:
        return tag("p", "none", class_="none")
    return join(
        (
            tag("p", spread(measure.unit, layers[0][2]), class_="spread"),
            _plot(layers[0][1], measure.unit, layers),
        )
    )


def _plot(name: str, unit: str, layers: Sequence[_Layer]) -> Html:
    first = layers[0][2]
    names = bucket_names(unit, first.bounds)
    y = from_zero([max(layer.counts) for _, _, layer in layers], units.short, whole=True)
    titles = [
        f"{bucket} {unit if unit != 'us' else ''}: "
        + ", ".join(f"{layer.counts[at]:,} {name}" for _, name, layer in layers)
        for at, bucket in enumerate(names)
    ]
    values = [(style, layer.counts) for style, _, layer in layers]
    shapes = bars(values[:1], values[1:], y, titles)
    peak = max(range(len(names)), key=first.counts.__getitem__)
    words = f"{name}, {first.count:,} commands, most of them {names[peak]} {unit}"
    rows = [
        (
            bucket,
            *(units.count(layer.counts[at]) for _, _, layer in layers),
            units.share(first.counts[at], first.count),
        )
        for at, bucket in enumerate(names)
        if any(layer.counts[at] for _, _, layer in layers)
    ]
    heads = ("time" if unit == "us" else unit, *(name for _, name, _ in layers), "share")
    key = legend(*((style, name) for style, name, _ in layers)) if len(layers) > 1 else None
    x = buckets(first.bounds, short_bounds(unit))
    plot = framed(shapes, words, x=x, y=y, upright=True)
    return join((plot, key, behind("numbers", table(heads, rows))))
