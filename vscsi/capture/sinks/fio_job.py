# SPDX-License-Identifier: MIT
"""A fio job file that does what a capture's disks were asked for, by its statistics.

Each disk becomes a job: mix of reads and writes, sizes, share of random accesses, where they go,
rates, depth, how often a flush comes. Order and times are fio's own; `--to iolog` keeps those. A
job has no mix with trims, no FUA and no other commands. What was refused does not count.
"""

import math
import re
from collections import Counter
from typing import IO

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from vscsi.capture.commands import Disk, Fate, Operation, Source
from vscsi.capture.replay.order import InOrder
from vscsi.capture.sinks import Written

NAME = "fio job file"
MAX_JOBS = 64
MAX_SIZES = 32
"""Sizes of a job's bssplit, of each direction; fio takes 64."""
_ALL_SIZES = 1 << 12
"""Different sizes that are counted apart; those beyond count as the next power of two."""
_BINS = 1 << 10
_ZONES = 10
_UNEVEN = 2
"""How many times its share the busiest zone has to get for zones to be worth saying."""
_MAX_DEPTH = 1 << 12
_DEPTH_PERCENT = 99
_NS_PER_S = 10**9

_Ints = npt.NDArray[np.int64]


def write(source: Source, output: IO[bytes]) -> Written:
    """Write a job for each of a source's disks, the busiest MAX_JOBS of them."""
    profiles: dict[int, Profile] = {}
    commands = left_out = 0
    for piece in InOrder(source):
        disks = piece.column("disk").to_numpy()
        for disk in np.unique(disks):
            mine = piece.filter(pa.array(disks == disk)) if len(disks) else piece
            profile = profiles.setdefault(int(disk), Profile())
            taken = profile.add(mine, source.disks[disk].block_bytes)
            commands += taken
            left_out += mine.num_rows - taken
    busiest = sorted(profiles, key=lambda disk: profiles[disk].moved, reverse=True)
    output.write(_HEAD.encode())
    for disk in busiest[:MAX_JOBS]:
        if profiles[disk].moved:
            output.write("\n".join(_job(source.disks[disk], profiles[disk])).encode() + b"\n")
    for disk in busiest[MAX_JOBS:]:
        left_out += profiles[disk].moved
        commands -= profiles[disk].moved
    why = f"not one of the reads, writes and flushes of the busiest {MAX_JOBS} disks"
    return Written(commands, left_out, why if left_out else "")


_HEAD = """\
; Made from a capture. Each job is a disk: give it a file or device by "filename=" (what is there
; is lost). Without its rates a job runs as fast as it can.
[global]
ioengine=libaio
direct=1
norandommap=1
randrepeat=1
allrandrepeat=1
randseed=1
group_reporting=0
"""


class Profile:
    """What one disk was asked for, in bounded memory."""

    def __init__(self) -> None:
        self.counts: Counter[int] = Counter()
        """Commands by Operation."""
        self.sequential: Counter[int] = Counter()
        """Those that begin where the one before them, of the same operation, ended."""
        self.sizes: dict[int, Counter[int]] = {
            Operation.READ: Counter(),
            Operation.WRITE: Counter(),
        }
        self.first_byte: int | None = None
        self.end_byte = 0
        self.bits = 0
        """All bits that any address has, in bytes."""
        self.first_ns: int | None = None
        self.last_ns = 0
        self.depths = np.zeros(_MAX_DEPTH + 1, np.int64)
        self.places = np.zeros(_BINS, np.int64)
        """Accesses by address."""
        self.place_shift = 20
        """log2 of the bytes of a place; grows with the addresses."""
        self._ends: dict[int, int] = {}

    @property
    def moved(self) -> int:
        """Reads and writes."""
        return self.counts[Operation.READ] + self.counts[Operation.WRITE]

    @property
    def duration_s(self) -> float:
        """From the first command to the last."""
        return max(self.last_ns - (self.first_ns or 0), 1) / _NS_PER_S

    def add(self, rows: pa.RecordBatch, block_bytes: int) -> int:
        """Count commands of the disk, in the order of sending; return how many were of use."""
        operation = rows.column("operation").to_numpy()
        known = np.array(rows.column("lba").is_valid()) & np.array(rows.column("blocks").is_valid())
        lba, blocks = (
            rows.column(name).fill_null(0).to_numpy().astype(np.int64) for name in ("lba", "blocks")
        )
        limit = np.iinfo(np.int64).max // max(block_bytes, 1) // 4
        known &= (lba >= 0) & (lba < limit) & (blocks > 0)
        known &= rows.column("status").fill_null(0).to_numpy() == 0
        known &= rows.column("fate").to_numpy() != Fate.FAILED
        moving = known & ((operation == Operation.READ) | (operation == Operation.WRITE))
        flushes = int(np.count_nonzero(operation == Operation.FLUSH))
        self.counts[Operation.FLUSH] += flushes
        if moving.any():
            times = rows.column("time_ns").to_numpy()[moving]
            first = int(times.min())
            self.first_ns = first if self.first_ns is None else min(self.first_ns, first)
            self.last_ns = max(self.last_ns, int(times.max()))
            depth = rows.column("outstanding").to_numpy()[moving]
            self.depths += np.bincount(np.minimum(depth, _MAX_DEPTH), minlength=_MAX_DEPTH + 1)
            start, length = lba[moving] * block_bytes, blocks[moving] * block_bytes
            self._note_places(start, length)
            for kind in (Operation.READ, Operation.WRITE):
                of_kind = operation[moving] == kind
                self._note_kind(kind, start[of_kind], length[of_kind])
        return int(np.count_nonzero(moving)) + flushes

    def _note_kind(self, kind: int, start: _Ints, length: _Ints) -> None:
        if not len(start):
            return
        self.counts[kind] += len(start)
        before = np.concatenate([[self._ends.get(kind, -1)], (start + length)[:-1]])
        self.sequential[kind] += int(np.count_nonzero(start == before))
        self._ends[kind] = int(start[-1] + length[-1])
        sizes = self.sizes[kind]
        for size, count in zip(*np.unique(length, return_counts=True), strict=True):
            known = int(size)
            if known not in sizes and len(sizes) >= _ALL_SIZES:
                known = 1 << max(known - 1, 1).bit_length()
            sizes[known] += int(count)

    def _note_places(self, start: _Ints, length: _Ints) -> None:
        first, end = int(start.min()), int((start + length).max())
        self.first_byte = first if self.first_byte is None else min(self.first_byte, first)
        self.end_byte = max(self.end_byte, end)
        self.bits |= int(np.bitwise_or.reduce(start))
        while end >> self.place_shift >= _BINS:
            folded = self.places.reshape(-1, 2).sum(axis=1)
            self.places = np.concatenate([folded, np.zeros(_BINS // 2, np.int64)])
            self.place_shift += 1
        self.places += np.bincount(start >> self.place_shift, minlength=_BINS)


def percents(counts: dict[int, int]) -> dict[int, int]:
    """Return shares as whole percents that sum up to 100, in the order of the keys.

    The largest remainders are rounded up; what has less than half a percent may get none.
    """
    total = sum(counts.values())
    exact = {key: count * 100 / total for key, count in sorted(counts.items())}
    shares = {key: math.floor(value) for key, value in exact.items()}
    for key in sorted(exact, key=lambda key: shares[key] - exact[key])[
        : 100 - sum(shares.values())
    ]:
        shares[key] += 1
    return {key: share for key, share in shares.items() if share}


def _job(disk: Disk, profile: Profile) -> list[str]:
    reads, writes = profile.counts[Operation.READ], profile.counts[Operation.WRITE]
    kinds = [kind for kind in (Operation.READ, Operation.WRITE) if profile.counts[kind]]
    random = {
        kind: 100 - round(100 * profile.sequential[kind] / profile.counts[kind]) for kind in kinds
    }
    way = "rw" if len(kinds) == 2 else kinds[0].name.lower()
    at_random = any(random.values())
    first = profile.first_byte or 0
    name = re.sub(r"[^\w.-]+", "-", disk.name).strip("-") or "disk"
    lines = ["", f"[{name}]", f"rw={'rand' if at_random else ''}{way}"]
    if len(kinds) == 2:
        lines.append(f"rwmixread={round(100 * reads / (reads + writes))}")
    sizes = ",".join(_split(profile.sizes[kind]) for kind in (Operation.READ, Operation.WRITE))
    lines.append(f"bssplit={sizes}")
    lines.append(f"blockalign={_alignment(profile)}")
    if at_random:
        shares = ",".join(str(random.get(kind, 100)) for kind in (Operation.READ, Operation.WRITE))
        lines.append(f"percentage_random={shares}")
        lines += _zones(profile)
    lines += [f"offset={first}", f"size={profile.end_byte - first}"]
    lines.append(f"iodepth={_depth(profile)}")
    rates = (round(profile.counts[kind] / profile.duration_s) for kind in kinds)
    low = [max(rate, 1) for rate in rates]
    if len(kinds) == 2:
        lines.append(f"rate_iops={low[0]},{low[1]}")
    else:
        lines.append(f"rate_iops={low[0]}")
    lines += [f"runtime={max(round(profile.duration_s * 1000), 1)}ms", "time_based=1"]
    if flushes := profile.counts[Operation.FLUSH]:
        lines.append(f"fsync={max(round(writes / flushes), 1)}" if writes else "; flushes alone")
    return lines


def _split(sizes: Counter[int]) -> str:
    """Return a bssplit of the most frequent sizes; others count as the nearest of them."""
    if not sizes:
        return ""
    kept = sorted(size for size, _ in sizes.most_common(MAX_SIZES))
    counts: Counter[int] = Counter()
    for size, count in sizes.items():
        counts[min(kept, key=lambda each: abs(each - size))] += count
    return ":".join(f"{size}/{share}" for size, share in percents(counts).items())


def _alignment(profile: Profile) -> int:
    """Return the power of two that all addresses are multiples of, up to the smallest size."""
    smallest = min(min(sizes) for sizes in profile.sizes.values() if sizes)
    bits = profile.bits | 1 << smallest.bit_length() - 1
    return bits & -bits


def _depth(profile: Profile) -> int:
    """Return the commands in flight that 99 of 100 found no more than, with themselves."""
    reached = np.cumsum(profile.depths) * 100 >= profile.depths.sum() * _DEPTH_PERCENT
    return int(np.argmax(reached)) + 1


def _zones(profile: Profile) -> list[str]:
    """Return how the accesses are spread over the range, where that is uneven."""
    first = (profile.first_byte or 0) >> profile.place_shift
    end = (profile.end_byte - 1 >> profile.place_shift) + 1
    places = profile.places[first:end]
    if len(places) < _ZONES:
        return []
    zones = np.array([part.sum() for part in np.array_split(places, _ZONES)])
    if zones.max() * _ZONES < _UNEVEN * zones.sum():
        return []
    shares = percents(dict(enumerate(map(int, zones))))
    size = 100 // _ZONES
    entries = ":".join(f"{shares.get(zone, 0)}/{size}" for zone in range(_ZONES))
    return [f"random_distribution=zoned:{entries}"]
