# SPDX-License-Identifier: MIT
"""Everything that an analysis says, as values; `Analysis.to_json` is `vscsi analyze --json`.

Times within a capture are seconds since its first command, latencies microseconds, both float;
lengths are bytes, addresses logical blocks. What a capture does not know is None.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

MEASURES = {
    "io_length_bytes": "bytes",
    "seek_distance_blocks": "blocks",
    "closest_of_16_distance_blocks": "blocks",
    "outstanding": "commands",
    "latency_us": "us",
    "interarrival_us": "us",
}
"""vscsiStats' six histograms, in its order, and their units."""


@dataclass(frozen=True, slots=True)
class Latency:
    """Of the commands that were answered; microseconds.

    Percentiles are interpolated linearly between the two nearest values (numpy's "linear"); of more
    than 12 million commands they are the engine's estimate.
    """

    count: int
    min: float
    mean: float
    p50: float
    p90: float
    p99: float
    p999: float
    max: float


@dataclass(frozen=True, slots=True)
class CommandRow:
    """All commands of one kind; opcode is None where the source has no CDBs (block traces)."""

    opcode: int | None
    service_action: int | None
    name: str
    count: int
    bytes: int
    """Moved: of the buffers, less residuals; 0 for what was not executed."""
    errors: int
    """Answered with a status other than GOOD and CONDITION MET, or as not executed."""
    unanswered: int
    """Aborted, lost, or still open at the end."""
    latency_us: Latency | None


@dataclass(frozen=True, slots=True)
class Cause:
    """The commands of one kind that a sense code was the answer to."""

    name: str
    count: int
    example: str
    """The first of them, decoded."""
    cdb: str
    """Its CDB in hexadecimal; empty if not known."""


@dataclass(frozen=True, slots=True)
class SenseRow:
    """CHECK CONDITIONs with one sense code."""

    key: int
    asc: int
    ascq: int
    count: int
    words: str
    causes: tuple[Cause, ...] = ()


@dataclass(frozen=True, slots=True)
class Histogram:
    """Bucket i has the values in (bounds[i - 1], bounds[i]]; the last all above bounds[-1]."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    """One more than bounds."""
    min: float | None = None
    max: float | None = None
    mean: float | None = None

    @property
    def count(self) -> int:
        """Return how many values there are."""
        return sum(self.counts)


@dataclass(frozen=True, slots=True)
class MeasureHistograms:
    """One measure; each class looks at its own commands alone, as vscsiStats' reads and writes.

    So the distance in `read` is that from the previous read, `outstanding` that of other reads.
    """

    unit: str
    all: Histogram
    read: Histogram
    write: Histogram
    opcodes: Mapping[str, Histogram] = field(default_factory=dict)
    """By the command's name, as in `CommandRow.name`."""


@dataclass(frozen=True, slots=True)
class Grid:
    """Two measures of the same commands; bounds as in `Histogram`."""

    x: str
    y: str
    """Keys of MEASURES."""
    x_bounds: tuple[float, ...]
    y_bounds: tuple[float, ...]
    counts: tuple[tuple[int, ...], ...]
    """[y][x], each one more than its bounds."""


@dataclass(frozen=True, slots=True)
class HeatMap:
    """Commands by time and address, in cells of equal size; one a disk."""

    disk: int
    """Index into `Analysis.disks`."""
    time_edges_s: tuple[float, ...]
    lba_edges: tuple[float, ...]
    reads: tuple[tuple[int, ...], ...]
    """[address][time], each one less than its edges."""
    writes: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Timeline:
    """The capture in slices of equal length; all tuples have one value a slice."""

    slice_s: float
    commands: tuple[int, ...]
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    flushes: tuple[int, ...]
    unmaps: tuple[int, ...]
    errors: tuple[int, ...]
    read_bytes: tuple[int, ...]
    write_bytes: tuple[int, ...]
    outstanding_mean: tuple[float | None, ...]
    """Queue depth as commands found it; None in a slice without commands."""
    outstanding_max: tuple[int | None, ...]
    latency_p50_us: tuple[float | None, ...]
    latency_p99_us: tuple[float | None, ...]
    latency_max_us: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class Alignment:
    """Reads and writes whose first byte is at a multiple of `bytes`."""

    bytes: int
    count: int
    share: float


@dataclass(frozen=True, slots=True)
class Burst:
    """Arrivals counted in windows of one length."""

    window_s: float
    mean: float
    """Commands a window."""
    dispersion: float
    """Variance over mean: 1 for independent arrivals, more for bursts, 0 for a metronome."""
    peak: int
    """Commands of the fullest window."""
    peak_at_s: float


@dataclass(frozen=True, slots=True)
class Reuse:
    """How soon pages are accessed again, and what a cache of each size would miss (LRU)."""

    page_bytes: int
    accesses: int
    """Page accesses of reads and writes."""
    sampling_rate: float
    """1.0 is exact; else the share of pages that was looked at (SHARDS)."""
    working_set_bytes: int
    read_set_bytes: int
    written_set_bytes: int
    """Distinct pages accessed, read, written."""
    distances: Histogram
    """In bytes of other pages accessed between; first accesses are not in it."""
    first_accesses: int
    miss_ratio: tuple[tuple[int, float], ...]
    """(bytes of cache, share of accesses that miss), falling."""
    truncated: int = 0
    """Commands of which only the first pages were looked at: they were too long."""


@dataclass(frozen=True, slots=True)
class Moment:
    """A command, decoded, for a person."""

    time_s: float
    time_ns: int
    disk: str
    channel: str
    tag: int | None
    words: str
    cdb: str
    """In hexadecimal; empty if not known."""
    answer: str
    """Status and sense, or what became of it."""
    latency_us: float | None
    """Of an unanswered command: how long it had been waiting when the capture ended."""


@dataclass(frozen=True, slots=True)
class Happening:
    """Something beside commands: task management, a login, a reset."""

    time_s: float
    time_ns: int
    channel: str
    disk: str
    words: str
    outcome: str
    management: bool
    """A task management function: an abort or a reset."""
    latency_us: float | None


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that the initiator should not do, or should know about."""

    rule: str
    severity: str
    """error (the standard forbids it), warning, or note."""
    count: int
    words: str
    examples: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FileRow:
    """A file that was read, and what could not be."""

    name: str
    format: str
    commands: int
    broken: str = ""
    """Where reading had to end, and why."""
    skipped: int = 0
    first_skipped: str = ""
    dropped: int = 0
    """Messages that the capture itself says are missing."""
    notes: tuple[str, ...] = ()

    @property
    def whole(self) -> bool:
        """Return whether all of the file was understood."""
        return not self.broken and not self.skipped


@dataclass(frozen=True, slots=True)
class ChannelRow:
    """A ring or connection."""

    name: str
    protocol: str
    parameters: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class DiskRow:
    """A logical unit."""

    name: str
    block_bytes: int
    block_count: int | None
    commands: int
    reads: int
    writes: int
    read_bytes: int
    write_bytes: int


@dataclass(frozen=True, slots=True)
class FlushFigures:
    """What lies between flushes (SYNCHRONIZE CACHE, blkif flushes)."""

    count: int
    interval_us: Histogram
    """From a flush to the disk's next."""
    writes_between_mean: float | None
    unflushed_writes: int
    """Writes without FUA after the last flush of their disk."""


@dataclass(frozen=True, slots=True)
class UnmapFigures:
    """UNMAP and its like."""

    count: int
    blocks: int | None
    """None where the parameter lists were not captured."""
    per_s: float


@dataclass(frozen=True, slots=True)
class Analysis:
    """All of it."""

    files: tuple[FileRow, ...]
    channels: tuple[ChannelRow, ...]
    disks: tuple[DiskRow, ...]
    start_ns: int
    """Time of the first command; since 1970 where the source has a wall clock."""
    duration_s: float
    engine: str
    buckets: str
    total: CommandRow
    commands: tuple[CommandRow, ...]
    """Most frequent first."""
    sense: tuple[SenseRow, ...]
    unanswered: int
    """Still open at the end."""
    aborted: int
    lost: int
    """Their answers cannot be known: messages were dropped, or the connection was made anew."""
    histograms: Mapping[str, MeasureHistograms]
    """By the keys of MEASURES, in their order."""
    grids: tuple[Grid, ...]
    """Length by latency, seek distance by latency."""
    heat: tuple[HeatMap, ...]
    timeline: Timeline
    runs: MeasureHistograms
    """Commands in a row of which each begins where the one before it ended."""
    alignment: tuple[Alignment, ...]
    bursts: tuple[Burst, ...]
    reuse: Reuse
    flushes: FlushFigures
    unmaps: UnmapFigures
    slowest: tuple[Moment, ...]
    stuck: tuple[Moment, ...]
    """The oldest of the unanswered."""
    events: tuple[Happening, ...]
    events_dropped: int
    findings: tuple[Finding, ...]

    @property
    def whole(self) -> bool:
        """Return whether everything that was given could be read."""
        return all(file.whole for file in self.files)

    def to_json(self) -> dict[str, Any]:
        """Return plain values; every field by its name."""
        return {each.name: _plain(getattr(self, each.name)) for each in fields(self)}


_NO_LATENCY = dict.fromkeys((each.name for each in fields(Latency)), None) | {"count": 0}


def _plain(value: object) -> Any:
    if isinstance(value, Histogram):
        return {"count": value.count} | _fields(value)
    if isinstance(value, CommandRow):
        # A reader of "latency_us" finds the same keys whether or not anything was answered.
        plain = _fields(value)
        return plain | {"latency_us": plain["latency_us"] or dict(_NO_LATENCY)}
    if is_dataclass(value):
        return _fields(value)
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    return value


def _fields(value: Any) -> dict[str, Any]:
    return {each.name: _plain(getattr(value, each.name)) for each in fields(value)}
