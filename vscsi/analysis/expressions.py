# SPDX-License-Identifier: MIT
"""What is counted, as Ibis expressions over one table of FEATURES: the same for every engine.

Numbers are compared as the integers that they are (nanoseconds, blocks), so that all engines put
them into the same bucket. Sums are float64: exact below 2**53, and never an overflow.
"""

from collections.abc import Sequence

import ibis
from ibis.expr.types import Column, FloatingColumn, IntegerColumn, IntegerValue, Table

from vscsi.capture.commands import Fate, Operation

PERCENTILES = (0.5, 0.9, 0.99, 0.999)


def _total(column: Column) -> Column:
    return column.cast("float64").sum()


def _how_many(condition: Column) -> Column:
    return condition.cast("int64").sum()


def _us(nanoseconds: Column) -> FloatingColumn:
    us: FloatingColumn = nanoseconds.cast("float64") / 1000.0
    return us


def _bucket(value: Column, bounds: Sequence[int]) -> IntegerValue:
    """Return the number of the first bound that is not less, or one more than there are."""
    branches = [(value <= bound, number) for number, bound in enumerate(bounds)]
    bucket: IntegerValue = ibis.cases(*branches, else_=len(bounds))
    return bucket


def _percentiles(latency_ns: Column, shares: Sequence[float], exact: bool) -> Column:
    """Return an array of percentiles in us.

    Exact ones are linear between the two nearest values (QUANTILE_CONT of DuckDB, PERCENTILE of
    Spark) and need all values in memory; others are the engine's estimate.
    """
    latency = _us(latency_ns)
    return latency.quantile(list(shares)) if exact else latency.approx_quantile(list(shares))


def commands(table: Table, *keys: str, exact: bool = True) -> Table:
    """Count commands by keys, with the percentiles of their latencies.

    Columns: keys, commands, bytes, errors, unanswered, answered, fastest, slowest, latency (the
    sum; all ns), percentiles (us; an array in the order of PERCENTILES).
    """
    latency = table.latency_ns
    figures = {
        "commands": table.count(),
        "bytes": _total(table.moved),
        "errors": _how_many(table.failed),
        "unanswered": _how_many(table.fate >= int(Fate.ABORTED)),
        "answered": latency.count(),
        "fastest": latency.min(),
        "slowest": latency.max(),
        "latency": _total(latency),
        "percentiles": _percentiles(latency, PERCENTILES, exact),
    }
    return table.group_by(keys).agg(**figures) if keys else table.agg(**figures)


def histogram(table: Table, value: str, bounds: Sequence[int], *keys: str) -> Table:
    """Count a column's values by keys and bucket: keys, bucket, n, least, most, total."""
    known = table.filter(table[value].notnull())
    known = known.mutate(bucket=_bucket(known[value], bounds))
    return known.group_by([*keys, "bucket"]).agg(
        n=known.count(),
        least=known[value].min(),
        most=known[value].max(),
        total=_total(known[value]),
    )


def grid(table: Table, x: str, x_bounds: Sequence[int], y: str, y_bounds: Sequence[int]) -> Table:
    """Count commands by the buckets of two columns: column, row, n."""
    known = table.filter(table[x].notnull() & table[y].notnull())
    return (
        known.mutate(column=_bucket(known[x], x_bounds), row=_bucket(known[y], y_bounds))
        .group_by(["column", "row"])
        .agg(n=ibis._.count())
    )


def runs(table: Table, place: str, places: Sequence[int], *keys: str) -> Table:
    """Count commands at some places of their runs: a run has each place up to its length once.

    Columns: keys, place, n.
    """
    known = table.filter(table[place].isin(list(places)))
    return known.group_by([*keys, known[place].name("place")]).agg(n=ibis._.count())


def run_figures(table: Table, place: str, *keys: str) -> Table:
    """Return commands in runs, the number of runs and the longest: keys, n, runs, longest."""
    known = table.filter(table[place].notnull())
    figures = {
        "n": known.count(),
        "runs": _how_many(known[place] == 1),
        "longest": known[place].max(),
    }
    return known.group_by(keys).agg(**figures) if keys else known.agg(**figures)


def _slice(time_ns: IntegerColumn, start_ns: int, slice_ns: int) -> IntegerValue:
    return ((time_ns - start_ns) // slice_ns).cast("int64")


def timeline(table: Table, start_ns: int, slice_ns: int, *, exact: bool = True) -> Table:
    """Return figures of each slice of time that has commands, `slice` its number."""
    kinds = {
        "reads": Operation.READ,
        "writes": Operation.WRITE,
        "flushes": Operation.FLUSH,
        "unmaps": Operation.UNMAP,
    }
    moved = table.moved.cast("float64")
    return table.group_by(slice=_slice(table.time_ns, start_ns, slice_ns)).agg(
        commands=table.count(),
        errors=_how_many(table.failed),
        read_bytes=moved.sum(where=table.operation == int(Operation.READ)),
        write_bytes=moved.sum(where=table.operation == int(Operation.WRITE)),
        outstanding=_total(table.outstanding_all),
        deepest=table.outstanding_all.max(),
        percentiles=_percentiles(table.latency_ns, (0.5, 0.99), exact),
        slowest=table.latency_ns.max(),
        **{name: _how_many(table.operation == int(each)) for name, each in kinds.items()},
    )


def heat(table: Table, start_ns: int, slice_ns: int, disk: int, cell_blocks: int) -> Table:
    """Count a disk's reads and writes by time and address: slice, cell, operation, n."""
    known = table.filter((table.disk == disk) & table.alignment.notnull())
    return known.group_by(
        slice=_slice(known.time_ns, start_ns, slice_ns),
        cell=(known.lba // cell_blocks).cast("int64"),
        operation=known.operation,
    ).agg(n=ibis._.count())


def _arrivals(table: Table, start_ns: int, window_ns: int) -> Table:
    window = _slice(table.time_ns, start_ns, window_ns)
    return table.group_by(window=window).agg(n=ibis._.count())


def burst(table: Table, start_ns: int, window_ns: int) -> Table:
    """Sum arrivals and their squares over windows that have any: n, squares."""
    arrivals = _arrivals(table, start_ns, window_ns)
    n = arrivals.n.cast("float64")
    return arrivals.agg(n=n.sum(), squares=(n * n).sum())


def peak(table: Table, start_ns: int, window_ns: int) -> Table:
    """Return the first of the fullest windows: window, n."""
    arrivals = _arrivals(table, start_ns, window_ns)
    return arrivals.order_by([arrivals.n.desc(), arrivals.window]).limit(1)


def disks(table: Table) -> Table:
    """Count commands and bytes by disk, with the highest address of reads and writes."""
    read = table.operation == int(Operation.READ)
    write = table.operation == int(Operation.WRITE)
    moved = table.moved.cast("float64")
    return table.group_by("disk").agg(
        commands=table.count(),
        reads=_how_many(read),
        writes=_how_many(write),
        read_bytes=moved.sum(where=read),
        write_bytes=moved.sum(where=write),
        highest=table.lba.max(where=table.alignment.notnull()),
    )


def alignment(table: Table) -> Table:
    """Count reads and writes by log2 of their first byte's alignment: alignment, n."""
    known = table.filter(table.alignment.notnull())
    return known.group_by("alignment").agg(n=ibis._.count())


def senses(table: Table) -> Table:
    """Count answers with sense by code and kind: sense, kind, n."""
    known = table.filter(table.sense.notnull())
    return known.group_by(["sense", "kind"]).agg(n=ibis._.count())


def fates(table: Table) -> Table:
    """Count commands by what became of them: fate, n."""
    return table.group_by("fate").agg(n=ibis._.count())


def unmapped(table: Table) -> Table:
    """Sum the blocks that UNMAP and its like freed, where that is known: n, blocks."""
    known = table.filter(table.operation == int(Operation.UNMAP))
    return known.agg(n=known.count(), known=known.blocks.count(), blocks=_total(known.blocks))
