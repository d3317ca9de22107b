# SPDX-License-Identifier: MIT
"""Runs the expressions, and puts their rows into the shapes of `result`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ibis.expr.types import Table

from vscsi.analysis import expressions
from vscsi.analysis.buckets import RUNS
from vscsi.analysis.columns import CommandKind
from vscsi.analysis.engine import Engine
from vscsi.analysis.features import MAX_ALIGNMENT
from vscsi.analysis.result import (
    MEASURES,
    Alignment,
    Burst,
    CommandRow,
    DiskRow,
    FlushFigures,
    Grid,
    HeatMap,
    Histogram,
    Latency,
    MeasureHistograms,
    Timeline,
    UnmapFigures,
)
from vscsi.capture.commands import Disk, Operation

_COLUMNS: Mapping[str, tuple[str, int]] = {
    "io_length_bytes": ("length", 1),
    "seek_distance_blocks": ("seek_{}", 1),
    "closest_of_16_distance_blocks": ("closest_{}", 1),
    "outstanding": ("outstanding_{}", 1),
    "latency_us": ("latency_ns", 1000),
    "interarrival_us": ("gap_ns_{}", 1000),
}
"""Of each measure the column, by stream, and how many of its units the measure's has."""
MAX_EXACT = 12_000_000
"""Commands whose percentiles are exact; of more their latencies do not fit DuckDB's memory."""
MAX_SLICES = 240
HEAT_SLICES, HEAT_CELLS, HEAT_DISKS = 120, 64, 4
_WINDOWS_NS = tuple(10**n for n in range(6, 11))
_ALIGNMENTS = (9, 10, 11, 12, 13, 14, 15, 16, 18, MAX_ALIGNMENT)
_SECOND_NS = 10**9


class Counting:
    """One table of FEATURES, counted in every way."""

    def __init__(
        self,
        engine: Engine,
        table: Table,
        kinds: Sequence[CommandKind],
        bounds: Mapping[str, tuple[float, ...]],
        start_ns: int,
        commands: int,
    ) -> None:
        self._exact = commands <= MAX_EXACT
        self._rows = engine.rows
        self._table = table
        self._kinds = kinds
        self._bounds = bounds
        self._start_ns = start_ns

    # Tables

    def commands(self) -> tuple[CommandRow, tuple[CommandRow, ...]]:
        """Return the row of all commands, and one a kind."""
        everything = CommandKind(None, None, "all")
        total = self._rows(expressions.commands(self._table, exact=self._exact))[0]
        rows = self._rows(expressions.commands(self._table, "kind", exact=self._exact))
        ordered = sorted(rows, key=lambda each: (-each["commands"], each["kind"]))
        return _command(everything, total), tuple(
            _command(self._kinds[each["kind"]], each) for each in ordered
        )

    def disks(self, disks: Sequence[Disk]) -> tuple[tuple[DiskRow, ...], dict[int, int]]:
        """Return a row a disk, and the highest address of the reads and writes of each."""
        found = {each["disk"]: each for each in self._rows(expressions.disks(self._table))}
        rows = []
        for number, disk in enumerate(disks):
            row = found.get(number, {})
            names = ("commands", "reads", "writes", "read_bytes", "write_bytes")
            figures = [int(row.get(name) or 0) for name in names]
            rows.append(DiskRow(disk.name, disk.block_bytes, disk.block_count, *figures))
        highest = {number: row["highest"] for number, row in found.items()}
        return tuple(rows), {disk: lba for disk, lba in highest.items() if lba is not None}

    def senses(self) -> dict[int, dict[int, int]]:
        """Return how many answers had each sense code, by kind of command."""
        counts: dict[int, dict[int, int]] = {}
        for row in self._rows(expressions.senses(self._table)):
            counts.setdefault(row["sense"], {})[row["kind"]] = row["n"]
        return counts

    def fates(self) -> dict[int, int]:
        """Return how many commands had each fate."""
        return {row["fate"]: row["n"] for row in self._rows(expressions.fates(self._table))}

    # Histograms

    def histograms(self) -> dict[str, MeasureHistograms]:
        """Return vscsiStats' six."""
        return {measure: self._measure(measure) for measure in MEASURES}

    def _measure(self, measure: str) -> MeasureHistograms:
        column, scale = _COLUMNS[measure]
        bounds = self._bounds[measure]
        scaled = [int(bound * scale) for bound in bounds]

        def counted(stream: str, *keys: str) -> list[dict[str, Any]]:
            value = column.format(stream)
            return self._rows(expressions.histogram(self._table, value, scaled, *keys))

        return self._classes(MEASURES[measure], counted, lambda rows: _joined(rows, bounds, scale))

    def _classes(
        self,
        unit: str,
        counted: Callable[..., list[dict[str, Any]]],
        joined: Callable[[list[dict[str, Any]]], Histogram],
    ) -> MeasureHistograms:
        """Put histograms of each class together.

        counted returns the rows of a stream by keys, joined the histogram of some of them.
        """
        operations = _by("operation", counted("operation", "operation"))
        kinds = _by("kind", counted("kind", "kind"))
        return MeasureHistograms(
            unit=unit,
            all=joined(counted("all")),
            read=joined(operations.get(Operation.READ, [])),
            write=joined(operations.get(Operation.WRITE, [])),
            opcodes={self._kinds[kind].name: joined(rows) for kind, rows in sorted(kinds.items())},
        )

    def runs(self) -> MeasureHistograms:
        """Return how long sequential runs are."""
        # A run of n commands has the places 1 to n, so as many reach a place as are that long.
        places = sorted({1, *(bound + 1 for bound in RUNS)})

        def counted(stream: str, *keys: str) -> list[dict[str, Any]]:
            column = f"run_{stream}"
            figures = self._rows(expressions.run_figures(self._table, column, *keys))
            reached = self._rows(expressions.runs(self._table, column, places, *keys))
            return figures + reached

        return self._classes("commands", counted, _runs)

    def grids(self) -> tuple[Grid, ...]:
        """Return length by latency and seek distance by latency."""
        return tuple(self._grid(x, "latency_us") for x in ("io_length_bytes", STEP))

    def _grid(self, x: str, y: str) -> Grid:
        (x_column, x_scale), (y_column, y_scale) = _COLUMNS[x], _COLUMNS[y]
        x_bounds, y_bounds = self._bounds[x], self._bounds[y]
        table = expressions.grid(
            self._table,
            x_column.format("all"),
            [int(each * x_scale) for each in x_bounds],
            y_column.format("all"),
            [int(each * y_scale) for each in y_bounds],
        )
        counts = [[0] * (len(x_bounds) + 1) for _ in range(len(y_bounds) + 1)]
        for row in self._rows(table):
            counts[row["row"]][row["column"]] = row["n"]
        return Grid(x, y, x_bounds, y_bounds, tuple(map(tuple, counts)))

    # Over time

    def timeline(self, span_ns: int) -> Timeline:
        """Return the capture in slices; span_ns: from the first request to behind the last."""
        slice_ns = _slice_ns(span_ns, MAX_SLICES)
        table = expressions.timeline(self._table, self._start_ns, slice_ns, exact=self._exact)
        found = {row["slice"]: row for row in self._rows(table)}
        slices = [found.get(number, {}) for number in range(-(-span_ns // slice_ns))]

        def whole(name: str) -> tuple[int, ...]:
            return tuple(int(row.get(name) or 0) for row in slices)

        def percentile(number: int) -> tuple[float | None, ...]:
            return tuple((row.get("percentiles") or [None, None])[number] for row in slices)

        return Timeline(
            slice_s=slice_ns / _SECOND_NS,
            **{
                name: whole(name)
                for name in (
                    *("commands", "reads", "writes", "flushes", "unmaps", "errors"),
                    *("read_bytes", "write_bytes"),
                )
            },
            outstanding_mean=tuple(
                row["outstanding"] / row["commands"] if row else None for row in slices
            ),
            outstanding_max=tuple(row.get("deepest") for row in slices),
            latency_p50_us=percentile(0),
            latency_p99_us=percentile(1),
            latency_max_us=tuple(_over(row.get("slowest"), 1000) for row in slices),
        )

    def heat(
        self, span_ns: int, disks: Sequence[DiskRow], highest: Mapping[int, int]
    ) -> tuple[HeatMap, ...]:
        """Return the maps of the busiest disks; highest: their highest addresses."""
        slice_ns = _slice_ns(span_ns, HEAT_SLICES)
        slices = -(-span_ns // slice_ns)
        busiest = sorted(highest, key=lambda each: (-disks[each].commands, each))[:HEAT_DISKS]
        maps = []
        for disk in busiest:
            cell = -(-(highest[disk] + 1) // HEAT_CELLS)
            table = expressions.heat(self._table, self._start_ns, slice_ns, disk, cell)
            counts = {
                operation: [[0] * slices for _ in range(HEAT_CELLS)]
                for operation in (Operation.READ, Operation.WRITE)
            }
            for row in self._rows(table):
                # Of numbers beyond 53 bits the engines' division may come out one too high.
                line = counts[Operation(row["operation"])][min(row["cell"], HEAT_CELLS - 1)]
                line[min(row["slice"], slices - 1)] += row["n"]
            maps.append(
                HeatMap(
                    disk=disk,
                    time_edges_s=tuple(n * slice_ns / _SECOND_NS for n in range(slices + 1)),
                    lba_edges=tuple(float(n * cell) for n in range(HEAT_CELLS + 1)),
                    reads=tuple(map(tuple, counts[Operation.READ])),
                    writes=tuple(map(tuple, counts[Operation.WRITE])),
                )
            )
        return tuple(maps)

    def bursts(self, span_ns: int, commands: int) -> tuple[Burst, ...]:
        """Return how uneven arrivals are, in windows of which the capture has at least two."""
        found = []
        for window_ns in _WINDOWS_NS:
            windows = -(-span_ns // window_ns)
            if windows < 2 or not commands:
                break
            sums = self._rows(expressions.burst(self._table, self._start_ns, window_ns))[0]
            peak = self._rows(expressions.peak(self._table, self._start_ns, window_ns))[0]
            mean = commands / windows
            found.append(
                Burst(
                    window_s=window_ns / _SECOND_NS,
                    mean=mean,
                    dispersion=max(0.0, sums["squares"] / windows - mean * mean) / mean,
                    peak=peak["n"],
                    peak_at_s=peak["window"] * window_ns / _SECOND_NS,
                )
            )
        return tuple(found)

    # The rest

    def alignment(self) -> tuple[Alignment, ...]:
        """Return how many reads and writes are aligned to 512 bytes and more."""
        rows = self._rows(expressions.alignment(self._table))
        total = sum(row["n"] for row in rows)
        counts = [
            (1 << power, sum(row["n"] for row in rows if row["alignment"] >= power))
            for power in _ALIGNMENTS
        ]
        return tuple(Alignment(size, n, n / total if total else 0.0) for size, n in counts)

    def flushes(self, writes: int, unflushed: int) -> FlushFigures:
        """Return what lies between flushes, given the number of writes."""
        bounds = self._bounds["interarrival_us"]
        table = self._table.filter(self._table.operation == int(Operation.FLUSH))
        rows = self._rows(
            expressions.histogram(table, "gap_ns_operation", [int(each * 1000) for each in bounds])
        )
        count: int = self._rows(table.agg(n=table.count()))[0]["n"]
        return FlushFigures(
            count=count,
            interval_us=_joined(rows, bounds, 1000),
            writes_between_mean=writes / count if count else None,
            unflushed_writes=unflushed,
        )

    def unmaps(self, duration_s: float) -> UnmapFigures:
        """Return how much was unmapped."""
        row = self._rows(expressions.unmapped(self._table))[0]
        return UnmapFigures(
            count=row["n"],
            blocks=int(row["blocks"]) if row["known"] else None,
            per_s=row["n"] / duration_s if duration_s else 0.0,
        )


STEP = "seek_distance_blocks"


def _command(kind: CommandKind, row: Mapping[str, Any]) -> CommandRow:
    latency = None
    if row["answered"]:
        p50, p90, p99, p999 = row["percentiles"]
        latency = Latency(
            count=row["answered"],
            min=row["fastest"] / 1000,
            mean=row["latency"] / row["answered"] / 1000,
            p50=p50,
            p90=p90,
            p99=p99,
            p999=p999,
            max=row["slowest"] / 1000,
        )
    return CommandRow(
        opcode=kind.opcode,
        service_action=kind.service_action,
        name=kind.name,
        count=row["commands"],
        bytes=int(row["bytes"] or 0),
        errors=row["errors"] or 0,
        unanswered=row["unanswered"] or 0,
        latency_us=latency,
    )


def _by(key: str, rows: list[dict[str, Any]]) -> dict[int, list[dict[str, Any]]]:
    groups: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row[key], []).append(row)
    return groups


def _joined(rows: list[dict[str, Any]], bounds: tuple[float, ...], scale: int) -> Histogram:
    counts = [0] * (len(bounds) + 1)
    for row in rows:
        counts[row["bucket"]] = row["n"]
    if not rows:
        return Histogram(bounds, tuple(counts))
    return Histogram(
        bounds,
        tuple(counts),
        min=min(row["least"] for row in rows) / scale,
        max=max(row["most"] for row in rows) / scale,
        mean=sum(row["total"] for row in rows) / sum(counts) / scale,
    )


def _runs(rows: list[dict[str, Any]]) -> Histogram:
    reached = {row["place"]: row["n"] for row in rows if "place" in row}
    at_least = [reached.get(1, 0), *(reached.get(bound + 1, 0) for bound in RUNS)]
    counts = [more - still for more, still in zip(at_least, [*at_least[1:], 0], strict=True)]
    figures = next((row for row in rows if "longest" in row and row["runs"]), None)
    if figures is None:
        return Histogram(RUNS, tuple(counts))
    return Histogram(
        RUNS,
        tuple(counts),
        min=1.0 if counts[0] else None,
        max=float(figures["longest"]),
        mean=figures["n"] / figures["runs"],
    )


def _slice_ns(span_ns: int, most: int) -> int:
    """Return the least of 1, 2, 5, 10, 20, ... ns that cuts a span into at most so many slices."""
    step = 1
    while True:
        for digit in (1, 2, 5):
            if -(-span_ns // (digit * step)) <= most:
                return digit * step
        step *= 10


def _over(value: int | None, divisor: int) -> float | None:
    return None if value is None else value / divisor
