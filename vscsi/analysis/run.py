# SPDX-License-Identifier: MIT
"""An analysis from beginning to end: sources in, an `Analysis` out."""

import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vscsi.analysis import engine
from vscsi.analysis.buckets import Buckets, parse
from vscsi.analysis.counting import Counting
from vscsi.analysis.ingest import Ingest, Progress
from vscsi.analysis.notable import Teller
from vscsi.analysis.result import Analysis, Cause, Happening, SenseRow
from vscsi.capture.commands import Event, Fate, Source
from vscsi.wire.sense import Sense


def _silent(_stage: str, _commands: int) -> None:
    """Progress for nobody."""


@dataclass(frozen=True, slots=True)
class Options:
    """How to analyse."""

    buckets: Buckets = field(default_factory=parse)
    engine: str = "duckdb"
    """duckdb, spark or spark://HOST:PORT."""
    directory: Path | None = None
    """Where temporary files go: some 100 bytes a command; a cluster has to see it too."""
    progress: Progress = _silent


def analyze(sources: Iterable[tuple[str, Source]], options: Options | None = None) -> Analysis:
    """Return what sources, with a name each, say together.

    They are read once, one after another. Memory is bounded whatever they contain. Raises
    SetupError for an engine that is not there, OSError if temporary files cannot be written.
    """
    options = options or Options()
    with tempfile.TemporaryDirectory(prefix="vscsi-analyze-", dir=options.directory) as name:
        directory = Path(name)
        ingest = Ingest(directory, options.progress)
        ingest.read(sources)
        with engine.sorter(directory) as sorter:
            features = ingest.order(sorter)
        with engine.connect(options.engine, directory) as chosen:
            return _assemble(ingest, chosen, features, options)


def _assemble(ingest: Ingest, chosen: engine.Engine, features: Path, options: Options) -> Analysis:
    options.progress("counting", 0)
    table = chosen.table(features, "commands")
    commands = sum(each.commands for each in ingest.files)
    count = Counting(
        chosen,
        table,
        ingest.columns.kinds.all,
        options.buckets.bounds,
        ingest.start_ns,
        commands,
    )
    start_ns, disks = ingest.start_ns, ingest.disks
    teller = Teller(ingest.columns.kinds.all, disks, ingest.channels, start_ns, ingest.end_ns)
    fates = count.fates()
    span_ns = ingest.last_ns - start_ns + 1
    duration_s = (ingest.end_ns - start_ns) / 1e9
    total, rows = count.commands()
    disk_rows, highest = count.disks(disks)
    writes = sum(each.writes for each in disk_rows)
    reuse = ingest.reuse.finish()
    return Analysis(
        files=tuple(ingest.files),
        channels=tuple(ingest.channels),
        disks=disk_rows,
        start_ns=start_ns,
        duration_s=duration_s,
        engine=chosen.name,
        buckets=options.buckets.name,
        total=total,
        commands=rows,
        sense=_senses(ingest, count.senses(), teller),
        unanswered=fates.get(Fate.OPEN, 0),
        aborted=fates.get(Fate.ABORTED, 0),
        lost=fates.get(Fate.LOST, 0),
        histograms=count.histograms(),
        grids=count.grids(),
        heat=count.heat(span_ns, disk_rows, highest),
        timeline=count.timeline(span_ns),
        runs=count.runs(),
        alignment=count.alignment(),
        bursts=count.bursts(span_ns, total.count),
        reuse=reuse,
        flushes=count.flushes(writes, ingest.lint.unflushed_writes),
        unmaps=count.unmaps(duration_s),
        slowest=tuple(teller.moment(row) for row in ingest.notable.slowest()),
        stuck=tuple(teller.moment(row) for row in ingest.notable.stuck()),
        events=tuple(_happening(ingest, each) for each in ingest.events),
        events_dropped=ingest.events_dropped,
        findings=ingest.lint.finish(ingest.reuse.unwritten_reads(), reuse.accesses),
    )


def _senses(
    ingest: Ingest, counts: Mapping[int, Mapping[int, int]], teller: Teller
) -> tuple[SenseRow, ...]:
    rows = []
    for code, kinds in counts.items():
        key, asc, ascq = code >> 16, code >> 8 & 0xFF, code & 0xFF
        causes = []
        for kind, count in sorted(kinds.items(), key=lambda each: (-each[1], each[0])):
            row = ingest.notable.causes.get((code, kind))
            name = ingest.columns.kinds.all[kind].name
            example = name if row is None else teller.words(row)
            cdb = b"" if row is None else row["cdb"] or b""
            causes.append(Cause(name, count, example, cdb.hex()))
        words = Sense(key, asc, ascq).describe()
        rows.append(SenseRow(key, asc, ascq, sum(kinds.values()), words, tuple(causes)))
    return tuple(sorted(rows, key=lambda each: (-each.count, each.key, each.asc, each.ascq)))


def _happening(ingest: Ingest, event: Event) -> Happening:
    return Happening(
        time_s=(event.time_ns - ingest.start_ns) / 1e9,
        time_ns=event.time_ns,
        channel=ingest.channels[event.channel].name,
        disk="" if event.disk is None else ingest.disks[event.disk].name,
        words=event.words,
        outcome=event.outcome,
        management=event.function is not None,
        latency_us=None if event.latency_ns is None else event.latency_ns / 1000,
    )
