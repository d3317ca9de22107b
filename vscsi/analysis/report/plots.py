# SPDX-License-Identifier: MIT
"""Plots as SVG that is stretched to its place, with words of HTML around it that are not.

So they are legible at every width, and their colours are the style sheet's: light, dark, on paper.
"""

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from vscsi.analysis.report.axis import Axis
from vscsi.analysis.report.markup import Child, Html, clean, join, tag

WIDTH, HEIGHT = 1000, 100
"""Of a plot's own coordinates, which have no units."""
LEVELS = 8
"""Colours of a heat map."""
_MAX_WORDS = 120
_LEAST = 1.2
"""Height of the smallest bar: one command among millions is seen."""


@dataclass(frozen=True, slots=True)
class Series:
    """A value for each of equal slices of the x axis; None is a gap."""

    name: str
    style: str
    """A class of the style sheet: read, write, other, bad, or a line's own."""
    values: Sequence[float | None]


def framed(
    drawing: Iterable[str],
    words: str,
    *,
    x: Axis,
    y: Axis,
    box: tuple[float, float] = (WIDTH, HEIGHT),
    height: str = "",
    upright: bool = False,
    grid: bool = True,
) -> Html:
    """Return a drawing with its axes.

    words: what it shows, for those who don't see it; box: its own width and height; height: a class
    of the style sheet; upright: the x axis has more words than room beside each other.
    """
    wide, high = box
    lines = (
        f'<path class="grid" d="M0 {high - place * high:.1f}H{wide}"/>'
        for place, _ in (y.ticks if grid else ())
    )
    body = "".join((*lines, *drawing))
    svg = Html(
        f'<svg role="img" aria-label="{clean(words)}" viewBox="0 0 {wide} {high}" '
        f'preserveAspectRatio="none">{body}</svg>'
    )
    return tag(
        "div",
        tag("div", _ticks(y, "bottom"), class_="y", aria_hidden="true"),
        svg,
        tag("div", _ticks(x, "left"), class_="x", aria_hidden="true"),
        class_=" ".join(filter(None, ("frame", height, "upright" if upright else ""))),
    )


def figure(title: str, plot: Child, *more: Child, about: str = "", key: Child = None) -> Html:
    """Return a plot with its title, a line about it, its legend, and what stands below it."""
    caption = tag("figcaption", tag("b", title), tag("span", about) if about else None, key)
    return tag("figure", caption, plot, *more)


def legend(*entries: tuple[str, str]) -> Html:
    """Return what the colours mean: style and name."""
    return tag(
        "div", (tag("i", name, class_=f"key {style}") for style, name in entries), class_="legend"
    )


def bars(
    behind: Sequence[tuple[str, Sequence[float]]],
    fronts: Sequence[tuple[str, Sequence[float]]],
    y: Axis,
    titles: Sequence[str],
) -> Html:
    """Return bars: of each bucket those behind as wide as it is, the others side by side.

    behind, fronts: style, and a value for each bucket; titles: a line on each bucket for those who
    point at it.
    """
    step = WIDTH / len(titles)
    room = step * (0.7 if behind else 0.88) / max(1, len(fronts))
    layers = [(style, step * 0.06, step * 0.88, values) for style, values in behind]
    first = step * (0.15 if behind else 0.06)
    layers += [
        (style, first + place * room, room, values) for place, (style, values) in enumerate(fronts)
    ]
    parts = []
    for bucket, title in enumerate(titles):
        shapes = "".join(
            _bar(style, bucket * step + left, width, y.place(values[bucket]))
            for style, left, width, values in layers
        )
        if shapes:
            parts.append(f"<g><title>{clean(title)}</title>{shapes}</g>")
    return Html("".join(parts))


def _bar(style: str, left: float, width: float, share: float) -> str:
    if share <= 0:
        return ""
    height = max(_LEAST, share * HEIGHT)
    return (
        f'<path class="bar {style}" d="M{left:.1f} {HEIGHT}v-{height:.1f}h{width:.1f}V{HEIGHT}z"/>'
    )


def line(series: Series, y: Axis, share: float = 1.0) -> Html:
    """Return a line through the middles of the slices; gaps stay gaps, a lone value is a dot.

    share: of the x axis that the slices take, from its beginning.
    """
    step = WIDTH * share / max(1, len(series.values))
    path, dots = [], []
    for at, value in enumerate(series.values):
        if value is None:
            continue
        point = f"{(at + 0.5) * step:.1f} {_height(y, value):.1f}"
        if at and series.values[at - 1] is not None:
            path.append(f"L{point}")
        elif at + 1 < len(series.values) and series.values[at + 1] is not None:
            path.append(f"M{point}")
        else:
            dots.append(f"M{point}h0.01")
    line = f'<path class="line {series.style}" d="{"".join(path)}"/>'
    return Html(line + (f'<path class="dot {series.style}" d="{"".join(dots)}"/>' if dots else ""))


def band(low: Series, high: Series, y: Axis) -> Html:
    """Return the area between two series."""
    step = WIDTH / max(1, len(low.values))
    path = []
    for at, (below, above) in enumerate(zip(low.values, high.values, strict=True)):
        if below is None or above is None:
            continue
        top, bottom = _height(y, above), _height(y, below)
        if bottom - top >= 0.05:
            path.append(f"M{at * step:.1f} {top:.1f}h{step:.2f}V{bottom:.1f}h-{step:.2f}z")
    return Html(f'<path class="area {low.style}" d="{"".join(path)}"/>')


def stacked(series: Sequence[Series], y: Axis) -> Html:
    """Return areas of steps upon each other, the first at the bottom."""
    number = max((len(each.values) for each in series), default=0)
    step = WIDTH / max(1, number)
    base = [0.0] * number
    parts = []
    for each in series:
        path = []
        for at, value in enumerate(each.values):
            if not value:
                continue
            bottom, top = _height(y, base[at]), _height(y, base[at] + value)
            base[at] += value
            if bottom - top < 0.4:
                top = bottom - 0.4
            path.append(f"M{at * step:.1f} {bottom:.1f}V{top:.1f}h{step:.2f}V{bottom:.1f}z")
        parts.append(f'<path class="area {each.style}" d="{"".join(path)}"/>')
    return Html("".join(parts))


def marks(places: Iterable[float], style: str) -> Html:
    """Return upright lines at places of the x axis, between 0 and 1."""
    path = "".join(f"M{place * WIDTH:.1f} 0V{HEIGHT}" for place in places)
    return Html(f'<path class="mark {style}" d="{path}"/>' if path else "")


def heat(counts: Sequence[Sequence[int]], high: float) -> Html:
    """Return cells, the first row at the bottom of `high`; colours are powers of the most."""
    most = max((count for row in counts for count in row), default=0)
    paths: list[list[str]] = [[] for _ in range(LEVELS)]
    for y, row in enumerate(counts):
        for x, count in enumerate(row):
            if count:
                paths[level(count, most)].append(f"M{x} {high - y - 1:g}h1v1h-1z")
    return Html(
        "".join(
            f'<path class="h{number}" d="{"".join(path)}"/>'
            for number, path in enumerate(paths)
            if path
        )
    )


def level(count: int, most: int) -> int:
    """Return the colour of a count above 0, from 0 to LEVELS - 1: by its logarithm."""
    if most <= 1:
        return LEVELS - 1
    return min(LEVELS - 1, int(LEVELS * math.log(count) / math.log(most)))


def scale(most: int) -> Html:
    """Return the legend of a heat map."""
    if most < 1:
        return Html("")
    cells = (tag("i", class_=f"h{number}") for number in range(LEVELS))
    return tag("div", "1", tag("span", cells), f"{most:,} commands a cell", class_="legend scale")


def table(
    heads: Sequence[str],
    rows: Iterable[Sequence[Child]],
    *,
    left: int = 1,
    spare: Collection[str] = (),
) -> Html:
    """Return a table that scrolls inside itself; left: columns of words, which come first.

    The cells of a column with "…" behind its head may be of several lines; spare: heads of columns
    that are left out where the window is narrow.
    """
    kinds = [
        ("n" if at >= left else "long" if head.endswith("…") else "")
        + (" spare" if head in spare else "")
        for at, head in enumerate(heads)
    ]
    heads = [head.removesuffix("…") for head in heads]

    def cells(name: str, row: Sequence[Child]) -> Html:
        pairs = zip(kinds, row, strict=True)
        return join(tag(name, cell, class_=kind or None) for kind, cell in pairs)

    body = [tag("tr", cells("td", row)) for row in rows]
    head = tag("thead", tag("tr", cells("th", heads)))
    return tag(
        "div",
        tag("table", head, tag("tbody", body)),
        class_="scroll",
        tabindex="0",
        role="region",
        aria_label="Table: " + ", ".join(heads),
    )


def cut(text: str) -> str:
    """Return a text that came from a file, no longer than fits."""
    return text if len(text) <= _MAX_WORDS else text[: _MAX_WORDS - 1] + "…"


def behind(words: str, *content: Child) -> Html:
    """Return what is shown on demand, as the numbers behind a plot."""
    return tag("details", tag("summary", words), *content)


def _ticks(axis: Axis, side: str) -> Html:
    return join(
        tag("span", words, style=f"{side}:{100 * place:.2f}%") for place, words in axis.ticks
    )


def _height(axis: Axis, value: float) -> float:
    return HEIGHT - min(1.0, max(0.0, axis.place(value))) * HEIGHT
