# SPDX-License-Identifier: MIT
"""Heat maps: how latency goes with size and distance, and where on the disk a time's I/O went."""

from collections.abc import Sequence

from vscsi.analysis import units
from vscsi.analysis.report.axis import buckets, linear
from vscsi.analysis.report.histograms import TITLES, bucket_names, in_text, short_bounds
from vscsi.analysis.report.markup import Html, tag
from vscsi.analysis.report.plots import behind, figure, framed, heat, scale, table
from vscsi.analysis.result import MEASURES, Analysis, Grid, HeatMap

MAX_DISKS = 4
"""That have maps of time and address; the busiest."""
_MAX_CELLS = 128
_MAX_BUCKETS = 40
_TABLE_CELLS = 12
"""Across the table behind a map: it is for reading."""
Cells = Sequence[Sequence[int]]


def grids(analysis: Analysis) -> list[Html]:
    """Return a plot for each pair of measures that has commands."""
    return [_grid(grid) for grid in analysis.grids if any(map(any, grid.counts))]


def addresses(analysis: Analysis) -> list[Html]:
    """Return plots of time and address: reads and writes of the busiest disks."""
    busiest = sorted(
        (each for each in analysis.heat if each.disk < len(analysis.disks)),
        key=lambda each: -analysis.disks[each.disk].commands,
    )[:MAX_DISKS]
    plots = [
        _address(analysis, each, kind, cells)
        for each in busiest
        for kind, cells in (("Reads", each.reads), ("Writes", each.writes))
        if any(map(any, cells))
    ]
    if (rest := len(analysis.heat) - len(busiest)) > 0:
        plots.append(tag("p", f"{rest} more disks have no maps here.", class_="about"))
    return plots


def merged(cells: Cells, most: int) -> tuple[Cells, int, int]:
    """Return cells, at most so many either way, and of how many each is, down and across."""
    wide = max((len(row) for row in cells), default=0)
    down, across = -(-len(cells) // most) or 1, -(-wide // most) or 1
    if down == across == 1:
        return cells, 1, 1
    small = [
        [
            sum(sum(row[x : x + across]) for row in cells[y : y + down])
            for x in range(0, wide, across)
        ]
        for y in range(0, len(cells), down)
    ]
    return small, down, across


def _grid(grid: Grid) -> Html:
    x_title, y_title = in_text(grid.x), TITLES.get(grid.y, grid.y)
    x_unit, y_unit = MEASURES[grid.x], MEASURES[grid.y]
    cells, down, across = merged(grid.counts, _MAX_BUCKETS)
    x_names = _merged_names(bucket_names(x_unit, grid.x_bounds), across)
    y_names = _merged_names(bucket_names(y_unit, grid.y_bounds), down)
    most = max(max(row) for row in cells)
    total = sum(map(sum, cells))
    top_y, top_x = max(
        ((y, x) for y in range(len(y_names)) for x in range(len(x_names))),
        key=lambda at: cells[at[0]][at[1]],
    )
    words = (
        f"{y_title} by {x_title}: {total:,} commands, most in the cell {x_names[top_x]} "
        f"{x_unit}, {y_names[top_y]}"
    )
    plot = framed(
        heat(cells, len(grid.counts) / down),
        words,
        x=buckets(grid.x_bounds, short_bounds(x_unit)),
        y=buckets(grid.y_bounds, short_bounds(y_unit)),
        box=(len(grid.counts[0]) / across, len(grid.counts) / down),
        height="tall",
        upright=True,
        grid=False,
    )
    used = [x for x in range(len(x_names)) if any(row[x] for row in cells)]
    rows = [
        (y_names[y], *(units.count(row[x]) if row[x] else "" for x in used))
        for y, row in enumerate(cells)
        if any(row)
    ]
    numbers = behind("numbers", table((y_title, *(x_names[x] for x in used)), rows))
    about = f"up: {in_text(grid.y)}; across: {_across(grid.x)}"
    return figure(f"{y_title} by {x_title}", plot, scale(most), numbers, about=about)


def _merged_names(names: Sequence[str], count: int) -> list[str]:
    return list(names) if count == 1 else [f"{name} and on" for name in names[::count]]


def _across(key: str) -> str:
    unit = MEASURES[key]
    return in_text(key) + (f" in {unit}" if unit != "us" else "")


def _address(analysis: Analysis, each: HeatMap, kind: str, cells: Cells) -> Html:
    disk = analysis.disks[each.disk]
    cells, _, _ = merged(cells, _MAX_CELLS)
    most = max(max(row) for row in cells)
    end_s = each.time_edges_s[-1]
    low, high = (edge * disk.block_bytes for edge in (each.lba_edges[0], each.lba_edges[-1]))
    x = linear(0, end_s, lambda value: units.duration(value * 1e6), ticks=5)
    y = linear(low, high, units.short_size, ticks=5, binary=True)
    words = f"{kind} of {disk.name} by time and address: {sum(map(sum, cells)):,} commands"
    plot = framed(
        heat(cells, len(cells)),
        words,
        x=x,
        y=y,
        box=(len(cells[0]), len(cells)),
        height="tall",
        grid=False,
    )
    small, _, _ = merged(cells, _TABLE_CELLS)
    step_s = end_s / len(small[0])
    step = (high - low) / len(small)
    heads = ("from", *(units.duration(at * step_s * 1e6) for at in range(len(small[0]))))
    rows = [
        (units.size(low + at * step), *(units.count(count) if count else "" for count in row))
        for at, row in reversed(list(enumerate(small)))
    ]
    name = f", {disk.name}" if len(analysis.heat) > 1 else ""
    return figure(
        f"{kind} by address{name}",
        plot,
        scale(most),
        behind("numbers", table(heads, rows)),
        about="up: bytes from the disk's beginning; across: time",
    )
