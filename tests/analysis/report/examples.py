# SPDX-License-Identifier: MIT
"""Analyses made up for the report: one as of a real disk, one of nothing, one that is hostile."""

from dataclasses import fields, is_dataclass, replace

import numpy as np

from vscsi.analysis.buckets import RUNS, parse
from vscsi.analysis.result import (
    MEASURES,
    Alignment,
    Analysis,
    Burst,
    Cause,
    ChannelRow,
    CommandRow,
    DiskRow,
    FileRow,
    Finding,
    FlushFigures,
    Grid,
    Happening,
    HeatMap,
    Histogram,
    Latency,
    MeasureHistograms,
    Moment,
    Reuse,
    SenseRow,
    Timeline,
    UnmapFigures,
)

START_NS = 1_790_000_000_123_456_789
SECONDS = 94.3
DISK = "srp-1-0 lun 0"
EVIL = (
    '</title></style><script src="http://evil/">alert(1)</script>'
    "<img src=x onerror='a()'>\x00\x1b"
)
_BOUNDS = parse().bounds


def histogram(bounds, values) -> Histogram:
    values = np.asarray(values)
    counts = np.bincount(np.searchsorted(bounds, values, "left"), minlength=len(bounds) + 1)
    told = (float(values.min()), float(values.max()), float(values.mean())) if len(values) else ()
    return Histogram(tuple(bounds), tuple(map(int, counts)), *told)


def latency(values) -> Latency:
    marks = np.percentile(values, (0, 50, 90, 99, 99.9, 100))
    low, p50, p90, p99, p999, high = map(float, marks)
    return Latency(len(values), low, float(np.mean(values)), p50, p90, p99, p999, high)


def row(opcode, name, values, size=0, errors=0, unanswered=0) -> CommandRow:
    count = len(values) + unanswered
    told = latency(values) if len(values) else None
    return CommandRow(opcode, None, name, count, len(values) * size, errors, unanswered, told)


def busy(slices=240) -> Analysis:
    """A minute and a half of a file system that is made, filled and trimmed."""
    random = np.random.default_rng(5)
    times = np.linspace(0, 1, slices)
    reads = np.round(900 * np.exp(-((times - 0.2) ** 2) / 0.02) + 5 * random.random(slices))
    writes = np.round(1500 * (times > 0.45) * (times < 0.9) * (0.6 + 0.4 * random.random(slices)))
    number = {"read": int(reads.sum()), "write": int(writes.sum())}
    late = {
        "read": np.exp(random.normal(4.2, 0.7, number["read"])),
        "write": np.exp(random.normal(5.6, 0.9, number["write"])),
    }
    sizes = {
        "read": random.choice([4096, 8192, 16384, 131072], number["read"], p=[0.5, 0.2, 0.1, 0.2]),
        "write": random.choice(
            [512, 4096, 65536, 262144], number["write"], p=[0.02, 0.6, 0.3, 0.08]
        ),
    }
    jumps = {
        kind: np.where(
            random.random(number[kind]) < 0.6, 1, random.laplace(0, 9000, number[kind])
        ).round()
        for kind in number
    }
    made = {
        "io_length_bytes": sizes,
        "seek_distance_blocks": jumps,
        "closest_of_16_distance_blocks": {kind: jumps[kind] // 8 for kind in jumps},
        "outstanding": {kind: random.poisson(9, number[kind]) for kind in number},
        "latency_us": late,
        "interarrival_us": {kind: random.exponential(300, number[kind]) for kind in number},
    }
    histograms = {name: measure(name, unit, made[name]) for name, unit in MEASURES.items()}
    runs = {kind: random.geometric(0.2, 4000) for kind in number}
    every = {kind: np.concatenate([made[kind]["read"], made[kind]["write"]]) for kind in made}
    flush = np.exp(random.normal(8, 1, 120))
    cells = random.poisson(40, (48, 96)) * (random.random((48, 96)) < 0.3)
    p50 = [
        float(40 + 30 * random.random()) if reads[at] + writes[at] > 8 else None
        for at in range(slices)
    ]
    writes_bytes = tuple(int(each) * 41_000 for each in writes)
    reads_bytes = tuple(int(each) * 33_000 for each in reads)
    commands = (
        row(0x2A, "WRITE(10)", late["write"], 41_000, errors=2),
        row(0x28, "READ(10)", late["read"], 33_000, errors=3, unanswered=2),
        row(0x35, "SYNCHRONIZE CACHE(10)", flush),
        row(0x42, "UNMAP", np.exp(random.normal(6, 0.4, 31)), 24),
        row(0x12, "INQUIRY", np.exp(random.normal(4, 0.4, 9)), 96, errors=1),
        row(0x9E, "READ CAPACITY(16)", np.exp(random.normal(4, 0.4, 3)), 32),
        row(0x00, "TEST UNIT READY", np.exp(random.normal(3, 0.4, 2)), errors=1),
        row(0x7F, "opcode 0x7f", []),
    )
    total = replace(
        row(None, "all", np.concatenate([late["read"], late["write"], flush])),
        count=sum(each.count for each in commands),
        bytes=sum(each.bytes for each in commands),
        errors=7,
        unanswered=2,
    )
    return Analysis(
        files=(FileRow("guest.pcapng", "pcapng of vscsi", total.count, dropped=18),),
        channels=(ChannelRow("srp-1-0", "srp", {"ring-page-order": "2", "max-requests": "64"}),),
        disks=(
            DiskRow(
                DISK,
                512,
                4 << 21,
                total.count,
                number["read"],
                number["write"],
                sum(reads_bytes),
                sum(writes_bytes),
            ),
        ),
        start_ns=START_NS,
        duration_s=SECONDS,
        engine="duckdb",
        buckets="esx",
        total=total,
        commands=commands,
        sense=(
            SenseRow(
                5,
                0x21,
                0,
                3,
                "ILLEGAL REQUEST, LOGICAL BLOCK ADDRESS OUT OF RANGE",
                (Cause("READ(10)", 3, "READ(10) lba 8388608 blocks 8", "28000080000000000800"),),
            ),
            SenseRow(
                6,
                0x29,
                0,
                2,
                "UNIT ATTENTION, POWER ON, RESET, OR BUS DEVICE RESET OCCURRED",
                (
                    Cause("TEST UNIT READY", 1, "TEST UNIT READY", "000000000000"),
                    Cause(
                        "WRITE(10)", 1, "WRITE(10) lba 2048 blocks 8 FUA", "2a080000080000000800"
                    ),
                ),
            ),
        ),
        unanswered=2,
        aborted=1,
        lost=0,
        histograms=histograms,
        grids=(
            grid("io_length_bytes", "latency_us", every),
            grid("seek_distance_blocks", "latency_us", every),
        ),
        heat=(
            HeatMap(
                0,
                tuple(SECONDS * at / 96 for at in range(97)),
                tuple((4 << 21) * at / 48 for at in range(49)),
                tuple(tuple(map(int, line[:48])) + (0,) * 48 for line in cells),
                tuple((0,) * 44 + tuple(map(int, line[44:])) for line in cells),
            ),
        ),
        timeline=Timeline(
            slice_s=SECONDS / slices,
            commands=tuple(int(each) for each in reads + writes),
            reads=tuple(map(int, reads)),
            writes=tuple(map(int, writes)),
            flushes=tuple(int(each) for each in writes // 400),
            unmaps=(0,) * (slices - 4) + (8, 9, 7, 7),
            errors=(3,) + (0,) * (slices - 2) + (4,),
            read_bytes=reads_bytes,
            write_bytes=writes_bytes,
            outstanding_mean=tuple(None if each is None else each / 5 for each in p50),
            outstanding_max=tuple(None if each is None else round(each / 2) for each in p50),
            latency_p50_us=tuple(p50),
            latency_p99_us=tuple(None if each is None else each**1.5 for each in p50),
            latency_max_us=tuple(None if each is None else each**1.9 for each in p50),
        ),
        runs=classes("commands", RUNS, runs, {}),
        alignment=tuple(
            Alignment(size, count, count / 10_000)
            for size, count in ((512, 10_000), (4096, 9_400), (65536, 1_200), (1 << 20, 77))
        ),
        bursts=(Burst(0.001, 1.4, 3.1, 31, 47.2), Burst(1.0, 1400.0, 90.5, 4_100, 51.0)),
        reuse=Reuse(
            4096,
            812_345,
            1.0,
            700 << 20,
            300 << 20,
            512 << 20,
            histogram([1 << n for n in range(12, 33)], np.exp(random.normal(17, 2, 9000))),
            190_000,
            tuple((1 << (16 + at), 1 - 0.76 / (1 + np.exp(7 - at))) for at in range(15)),
        ),
        flushes=FlushFigures(120, histogram(_BOUNDS["interarrival_us"], flush), 210.4, 12),
        unmaps=UnmapFigures(31, 88_064, 0.33),
        slowest=tuple(
            moment(at, f"WRITE(10) lba {2048 * at} blocks 512", "GOOD", 91_000.5 / (at + 1))
            for at in range(10)
        ),
        stuck=tuple(moment(60 + at, "READ(10) lba 77 blocks 8", "open", 31e6) for at in range(2)),
        events=(
            happening(0.01, "LOGIN IUs of 96 bytes", "ACCEPTED, request limit 64", False),
            happening(60.2, "ABORT TASK tag 0x3f", "FUNCTION COMPLETE", True),
            happening(61.9, "LOGICAL UNIT RESET", "FUNCTION COMPLETE", True),
        ),
        events_dropped=0,
        findings=(
            Finding(
                "lba-range", "error", 3, "address beyond the last block", ("READ(10) lba 8388608",)
            ),
            Finding("unwritten", "note", 40, "reads of blocks that were never written"),
            Finding(
                "flush",
                "warning",
                12,
                "writes without a flush before the end",
                ("lba 77", "lba 78"),
            ),
        ),
    )


def measure(name, unit, values) -> MeasureHistograms:
    names = {"READ(10)": "read", "WRITE(10)": "write"}
    opcodes = {opcode: histogram(_BOUNDS[name], values[kind]) for opcode, kind in names.items()}
    return classes(unit, _BOUNDS[name], values, opcodes)


def classes(unit, bounds, values, opcodes) -> MeasureHistograms:
    both = np.concatenate([values["read"], values["write"]])
    told = (histogram(bounds, each) for each in (both, values["read"], values["write"]))
    return MeasureHistograms(unit, *told, opcodes)


def grid(x, y, every) -> Grid:
    shape = len(_BOUNDS[y]) + 1, len(_BOUNDS[x]) + 1
    counts = np.zeros(shape, int)
    at = (
        np.searchsorted(_BOUNDS[y], every[y], "left"),
        np.searchsorted(_BOUNDS[x], every[x], "left"),
    )
    np.add.at(counts, at, 1)
    return Grid(x, y, _BOUNDS[x], _BOUNDS[y], tuple(tuple(map(int, line)) for line in counts))


def moment(at, words, answer, latency_us) -> Moment:
    time_ns = START_NS + round(at * 1e9)
    return Moment(
        at, time_ns, DISK, "srp-1-0", 0x3F + at, words, "2a" + "00" * 9, answer, latency_us
    )


def happening(at, words, outcome, management) -> Happening:
    time_ns = START_NS + round(at * 1e9)
    return Happening(at, time_ns, "srp-1-0", DISK, words, outcome, management, 120.0)


def nothing() -> Analysis:
    """A capture without a command."""
    none = {name: {"read": [], "write": []} for name in MEASURES}
    empty = histogram(RUNS, [])
    return Analysis(
        files=(FileRow("empty.pcapng", "pcapng of vscsi", 0, broken="the file is empty"),),
        channels=(),
        disks=(),
        start_ns=0,
        duration_s=0.0,
        engine="duckdb",
        buckets="esx",
        total=row(None, "all", []),
        commands=(),
        sense=(),
        unanswered=0,
        aborted=0,
        lost=0,
        histograms={
            name: MeasureHistograms(unit, *(histogram(_BOUNDS[name], []),) * 3)
            for name, unit in MEASURES.items()
        },
        grids=(grid("io_length_bytes", "latency_us", {name: [] for name in none}),),
        heat=(),
        timeline=Timeline(1.0, *((),) * 13),
        runs=MeasureHistograms("commands", empty, empty, empty),
        alignment=(),
        bursts=(),
        reuse=Reuse(4096, 0, 1.0, 0, 0, 0, empty, 0, ()),
        flushes=FlushFigures(0, empty, None, 0),
        unmaps=UnmapFigures(0, None, 0.0),
        slowest=(),
        stuck=(),
        events=(),
        events_dropped=0,
        findings=(),
    )


def hostile(value, words=EVIL):
    """Return the same with every text in it replaced; units and keys of measures stay."""
    if isinstance(value, str):
        return words
    if is_dataclass(value):
        kept = {"unit", "x", "y", "severity"}
        return replace(
            value,
            **{
                each.name: hostile(getattr(value, each.name), words)
                for each in fields(value)
                if each.name not in kept
            },
        )
    if isinstance(value, tuple):
        return tuple(hostile(each, words) for each in value)
    if isinstance(value, dict):
        texts = (key if key in MEASURES else f"{words}{at}" for at, key in enumerate(value))
        return dict(zip(texts, (hostile(each, words) for each in value.values()), strict=True))
    return value
