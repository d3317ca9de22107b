# SPDX-License-Identifier: MIT
"""How an analysis looks in a terminal, and the difference of two."""

from collections.abc import Iterator, Sequence
from typing import Literal

from rich import box
from rich.cells import cell_len
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
_LEAST_BAR_CELLS = 6
_LEAST_TEXT_CELLS = 16, 12, 8, 4
"""Cells that a column of text is not narrowed below before another one is left out, and after."""
_BETWEEN_CELLS = 3
"""Cells between two columns."""
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
    for part in _parts(analysis, console.width):
        console.print(part)
        console.print()


def print_diff(console: Console, diff: Diff) -> None:
    """Print what differs between two."""
    table = _Table("", "", _safe(diff.a_name), _safe(diff.b_name), "ratio", numbers=(2, 3, 4))
    for each in diff.differences:
        table.add(_safe(each.what), each.figure, _of(each, each.a), _of(each, each.b), _by(each))
    console.print(table.fitted(console.width))
    console.print()
    shapes = _Table("shape of", "", "difference", "mean of A", "mean of B", numbers=(2, 3, 4))
    for shift in diff.shifts:
        if shift.a_mean is None and shift.b_mean is None:
            continue
        shapes.add(
            _TITLES[shift.measure],
            shift.klass,
            units.NOTHING if shift.distance is None else f"{shift.distance:.3f}",
            _number(shift.a_mean),
            _number(shift.b_mean),
        )
    console.print(shapes.fitted(console.width))


def _parts(analysis: Analysis, width: int) -> Iterator[RenderableType]:
    """Yield what there is to say: how much of what, what is wrong, then what it is like."""
    yield _head(analysis)
    yield _commands([analysis.total, *analysis.commands], width)
    if analysis.sense:
        yield _senses(analysis, width)
    if analysis.stuck:
        yield _moments("Unanswered", analysis.stuck, "waiting", analysis.unanswered, width)
    management = [each for each in analysis.events if each.management]
    if management:
        yield _events("Resets and aborts", management, width)
    if analysis.findings:
        yield _findings(analysis, width)
    if len(analysis.disks) > 1:
        yield _disks(analysis, width)
    for measure, histograms in analysis.histograms.items():
        if histograms.all.count:
            yield _histogram(_TITLES[measure], histograms, width)
    if analysis.runs.all.count:
        yield _histogram("Sequential runs, commands", analysis.runs, width)
    yield _places(analysis)
    if analysis.slowest:
        latency = analysis.total.latency_us
        answered = len(analysis.slowest) if latency is None else latency.count
        yield _moments("Slowest", analysis.slowest, "latency", answered, width)
    others = [each for each in analysis.events if not each.management]
    if others:
        yield _events("Events", others, width)


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


def _commands(rows: Sequence[CommandRow], width: int) -> Table:
    heads = ["count", "bytes", "errors", "unanswered", "mean", "p50", "p90", "p99", "p99.9", "max"]
    spare = ["p99.9", "mean", "p90", "bytes", "p50"]
    # Columns of zeros go first.
    for name in ("errors", "unanswered"):
        if not any(getattr(row, name) for row in rows):
            spare.insert(0, name)
    table = _Table("command", *heads, numbers=range(1, len(heads) + 1), spare=spare)
    for row in rows:
        latency = row.latency_us
        times = (
            [None] * 6
            if latency is None
            else [latency.mean, latency.p50, latency.p90, latency.p99, latency.p999, latency.max]
        )
        table.add(
            _safe(row.name),
            units.count(row.count),
            units.size(row.bytes),
            Text(units.count(row.errors), "red" if row.errors else ""),
            Text(units.count(row.unanswered), "red" if row.unanswered else ""),
            *map(units.duration, times),
        )
    return table.fitted(width)


def _disks(analysis: Analysis, width: int) -> Table:
    table = _Table(
        *("disk", "size", "commands", "read", "written"), numbers=range(1, 5), spare=["size"]
    )
    for disk in analysis.disks:
        size = None if disk.block_count is None else disk.block_count * disk.block_bytes
        table.add(
            _safe(disk.name),
            units.size(size),
            units.count(disk.commands),
            units.size(disk.read_bytes),
            units.size(disk.write_bytes),
        )
    return table.fitted(width)


def _histogram(title: str, histograms: MeasureHistograms, width: int) -> Table:
    table = _Table(title, "all", "reads", "writes", numbers=(1, 2, 3))
    whole = histograms.all
    filled = _filled(whole, histograms.read, histograms.write)
    for number in filled:
        table.add(
            _bucket(whole, number, histograms.unit),
            *(
                units.count(each.counts[number])
                for each in (whole, histograms.read, histograms.write)
            ),
        )
    cells = min(_BAR_CELLS, width - table.least() - _BETWEEN_CELLS)
    if cells >= _LEAST_BAR_CELLS:
        table.add_column("", [_bar(whole, number, cells) for number in filled])
    return table.fitted(width)


def _bar(histogram: Histogram, number: int, most_cells: int) -> Text:
    count, most = histogram.counts[number], max(histogram.counts)
    cells = round(most_cells * count / most) if most else 0
    return Text("█" * cells or ("▏" if count else ""), "blue")


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
        lines.append(f"of these accesses a cache that keeps what was used last misses: {points}")
    aligned = {each.bytes: each.share for each in analysis.alignment}
    if aligned:
        shares = ", ".join(
            f"{units.short_size(n)} {aligned[n]:.0%}" for n in (4096, 65536, 1 << 20)
        )
        lines.append(f"reads and writes that begin at a multiple of {shares}")
    meaning = " (how uneven: 1 if commands come independently, more in bursts, 0 if evenly)"
    for burst in analysis.bursts:
        lines.append(
            f"in {units.duration(burst.window_s * 1e6)}: {units.figure(burst.mean)} commands, at "
            f"most {units.count(burst.peak)} (after {units.figure(burst.peak_at_s)} s), dispersion "
            f"{units.figure(burst.dispersion)}{meaning}"
        )
        meaning = ""
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


def _senses(analysis: Analysis, width: int) -> Table:
    table = _Table("count", "sense", "to", numbers=(0,))
    for row in analysis.sense[:_SHOWN]:
        causes = (
            f"{units.count(cause.count)} {cause.name}, the first {cause.example}"
            for cause in row.causes[:3]
        )
        table.add(units.count(row.count), _safe(row.words), _safe("; ".join(causes)))
    return table.fitted(width)


def _findings(analysis: Analysis, width: int) -> Table:
    table = _Table("lint", "count", "", "such as", numbers=(1,))
    for each in analysis.findings:
        table.add(
            Text(each.severity, _SEVERITIES[each.severity]),
            units.count(each.count),
            _safe(each.words),
            _safe("\n".join(each.examples), lines=True),
        )
    return table.fitted(width)


def _moments(
    title: str, moments: Sequence[Moment], time: str, count: int, width: int
) -> RenderableType:
    shown = moments[:_SHOWN]
    of = units.count(count)
    title = f"{title} ({of})" if len(shown) == count else f"{title} ({len(shown)} of {of})"
    table = _Table(title, time, "at", "disk", "", "answer", numbers=(1, 2), spare=["disk"])
    for number, each in enumerate(shown, 1):
        table.add(
            str(number),
            units.duration(each.latency_us),
            f"{each.time_s:.6f}",
            _safe(each.disk),
            _safe(each.words),
            _safe(each.answer),
        )
    return table.fitted(width)


def _events(title: str, events: Sequence[Happening], width: int) -> RenderableType:
    table = _Table(title, "channel", "disk", "", "outcome", numbers=(0,), spare=["disk"])
    for each in events[:_SHOWN]:
        table.add(
            f"{each.time_s:.6f}",
            _safe(each.channel),
            _safe(each.disk),
            _safe(each.words),
            _safe(each.outcome),
        )
    fitted = table.fitted(width)
    if len(events) <= _SHOWN:
        return fitted
    return Group(fitted, Text(f"and {units.count(len(events) - _SHOWN)} more"))


class _Table:
    """A table whose numbers are never cut: where it does not fit, columns are left out."""

    def __init__(
        self, *heads: str | Text, numbers: Sequence[int], spare: Sequence[str] = ()
    ) -> None:
        """numbers: places of columns of numbers; spare: heads of what goes, the first first."""
        self._columns = [
            _Column(
                Text(head) if isinstance(head, str) else head,
                whole=number in numbers,
                right=number in numbers and number > 0,
            )
            for number, head in enumerate(heads)
        ]
        self._spare = list(spare)

    def add(self, *cells: str | Text) -> None:
        """Add a row."""
        for column, cell in zip(self._columns, cells, strict=True):
            column.add(cell)

    def add_column(self, head: str, cells: Sequence[Text]) -> None:
        """Add a column that has a cell for each row; it is as wide as the widest."""
        column = _Column(Text(head), whole=True)
        for cell in cells:
            column.add(cell)
        self._columns.append(column)

    def least(self, text_cells: int = _LEAST_TEXT_CELLS[0]) -> int:
        """Return how many cells it is wide at least."""
        between = _BETWEEN_CELLS * (len(self._columns) - 1)
        return sum(column.least(text_cells) for column in self._columns) + between

    def fitted(self, width: int) -> Table:
        """Return what is shown in so many cells."""
        while self.least() > width and self._spare:
            name = self._spare.pop(0)
            self._columns = [each for each in self._columns if each.head.plain != name]
        cells = next(
            (n for n in _LEAST_TEXT_CELLS if self.least(n) <= width), _LEAST_TEXT_CELLS[-1]
        )
        least = [column.least(cells) for column in self._columns]
        room = max(0, width - self.least(cells))
        widths = least.copy()
        # What asks for little gets it; the rest is shared.
        wanting = [column.most - few for column, few in zip(self._columns, least, strict=True)]
        order = sorted(range(len(wanting)), key=lambda number: wanting[number])
        for left, number in zip(range(len(order), 0, -1), order, strict=True):
            more = min(wanting[number], room // left)
            widths[number] += more
            room -= more
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
        for column, cells in zip(self._columns, widths, strict=True):
            justify: Literal["left", "right"] = "right" if column.right else "left"
            table.add_column(column.head, justify=justify, width=cells, overflow="fold")
        for row in zip(*(column.cells for column in self._columns), strict=True):
            table.add_row(*row)
        return table


class _Column:
    """A column of a `_Table`: what it has, and the cells that it takes."""

    def __init__(self, head: Text, *, whole: bool, right: bool = False) -> None:
        """whole: what is in it is never narrowed."""
        self.head = head
        self.right = right
        self.cells: list[Text] = []
        self._whole = whole
        self._widest = 0

    def add(self, cell: str | Text) -> None:
        """Add a row's cell."""
        text = Text(cell) if isinstance(cell, str) else cell
        self.cells.append(text)
        self._widest = max([self._widest, *map(cell_len, text.plain.split("\n"))])

    @property
    def most(self) -> int:
        """Cells that it would take."""
        return max(self._widest, cell_len(self.head.plain))

    def least(self, text_cells: int) -> int:
        """Return the cells that it has to have if a text may be folded to so many."""
        word = min(text_cells, max(map(cell_len, self.head.plain.split()), default=0))
        return max(word, self._widest if self._whole else min(self._widest, text_cells))


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
