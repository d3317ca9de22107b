# SPDX-License-Identifier: MIT
"""Columns that depend on the order in which commands were sent, added in a stream.

What a command follows is looked for in three streams of its disk: all commands, those of its
operation, those of its kind. So "read" has the distances between successive reads, as vscsiStats'
histograms of reads have. State is bounded: by what is under way, and by the streams that there are.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from vscsi.analysis.columns import NONE, Bools, Ints, Rows
from vscsi.capture.commands import Fate, Operation

STREAMS = ("all", "operation", "kind")
WINDOW = 16
"""Previous commands among which the closest is looked for."""
MAX_ALIGNMENT = 20
"""Alignment beyond 2**20 bytes is not told apart."""
_NOWHERE = -(1 << 62)
"""Stands for the end of a command that there was not: farther than any."""
_NEVER = np.int64(np.iinfo(np.int64).max)

FEATURES = pa.schema(
    [
        pa.field("time_ns", pa.int64()),
        pa.field("disk", pa.int32()),
        pa.field("kind", pa.int16()),
        pa.field("operation", pa.int8()),
        pa.field("fua", pa.bool_()),
        pa.field("fate", pa.int8()),
        pa.field("failed", pa.bool_()),
        pa.field("lba", pa.int64()),
        pa.field("blocks", pa.int64()),
        pa.field("moved", pa.int64()),
        pa.field("latency_ns", pa.int64()),
        pa.field("sense", pa.int32()),
        # Reads and writes alone have a length, an alignment (log2 of bytes), distances and runs.
        pa.field("length", pa.int64()),
        pa.field("alignment", pa.int8()),
        *(pa.field(f"seek_{stream}", pa.int64()) for stream in STREAMS),
        *(pa.field(f"closest_{stream}", pa.int64()) for stream in STREAMS),
        # Place in a run of commands each of which begins where the one before it ended, from 1.
        *(pa.field(f"run_{stream}", pa.int64()) for stream in STREAMS),
        *(pa.field(f"gap_ns_{stream}", pa.int64()) for stream in STREAMS),
        *(pa.field(f"outstanding_{stream}", pa.int64()) for stream in STREAMS),
    ]
)
"""What the expressions run over, one row a command, in the order in which they were sent."""


@dataclass(slots=True)
class _State:
    """What is remembered of one stream of one disk."""

    ends: Ints = field(default_factory=lambda: np.full(WINDOW, _NOWHERE, np.int64))
    """The last blocks of the previous reads and writes, newest last."""
    run: int = 0
    time_ns: int | None = None
    pending: Ints = field(default_factory=lambda: np.empty(0, np.int64))
    """When what is under way will have ended, ascending."""
    open: int = 0
    """What never ends."""


class Features:
    """Adds the columns; give it all commands, in the order in which they were sent."""

    def __init__(self, block_bytes: Ints) -> None:
        """block_bytes: of each disk."""
        self._block_bytes = block_bytes
        self._states: dict[tuple[str, int], _State] = {}

    def add(self, rows: Rows) -> pa.RecordBatch:
        """Return FEATURES of the columns of RAW."""
        disk: Ints = rows["disk"].astype(np.int64)
        operation, lba, blocks = rows["operation"], rows["lba"], rows["blocks"]
        moves = (operation == Operation.READ) | (operation == Operation.WRITE)
        io: Bools = moves & (lba != NONE) & (blocks != NONE)
        columns: dict[str, pa.Array] = {}
        for stream in STREAMS:
            key = disk if stream == "all" else disk << 16 | rows[stream].astype(np.int64)
            ordered = self._order(stream, key, rows)
            ordered |= self._distances(stream, key, io, lba, blocks)
            for name, (values, known) in ordered.items():
                columns[f"{name}_{stream}"] = _array(values, known)
        columns["outstanding_all"] = pa.array(rows["outstanding"])
        columns["length"] = _array(rows["length"], moves)
        columns["alignment"] = _array(self._alignment(disk, lba), io)
        for name in ("lba", "blocks", "latency_ns"):
            columns[name] = _array(rows[name], rows[name] != NONE)
        columns["sense"] = _array(rows["sense"], rows["sense"] >= 0)
        arrays = [
            columns[each.name] if each.name in columns else pa.array(rows[each.name])
            for each in FEATURES
        ]
        return pa.RecordBatch.from_arrays(
            [array.cast(each.type) for array, each in zip(arrays, FEATURES, strict=True)],
            schema=FEATURES,
        )

    def _state(self, stream: str, key: int) -> _State:
        return self._states.setdefault((stream, key), _State())

    def _distances(
        self, stream: str, key: Ints, io: Bools, lba: Ints, blocks: Ints
    ) -> dict[str, tuple[Ints, Bools]]:
        seek, closest, run = (np.zeros(len(key), np.int64) for _ in range(3))
        known = np.zeros(len(key), np.bool_)
        chosen = np.flatnonzero(io)
        for each, rows in _groups(key[chosen]):
            state = self._state(stream, each)
            at = chosen[rows]
            first = lba[at]
            ends = np.concatenate([state.ends, first + blocks[at] - 1])
            seek[at] = step = first - ends[WINDOW - 1 : -1]
            known[at] = ends[WINDOW - 1 : -1] != _NOWHERE
            best, least = step, np.abs(step)
            for back in range(2, WINDOW + 1):
                other = first - ends[WINDOW - back : -back]
                size = np.abs(other)
                nearer = size < least
                best = np.where(nearer, other, best)
                least = np.where(nearer, size, least)
            closest[at] = best
            run[at] = places = _places(step == 1, state.run)
            state.run = int(places[-1])
            state.ends = ends[-WINDOW:].copy()
        return {"seek": (seek, known), "closest": (closest, known), "run": (run, io)}

    def _order(self, stream: str, key: Ints, rows: Rows) -> dict[str, tuple[Ints, Bools]]:
        gap, outstanding = np.zeros(len(key), np.int64), np.zeros(len(key), np.int64)
        known = np.ones(len(key), np.bool_)
        start: Ints = rows["time_ns"].astype(np.int64)
        end = ends(rows)
        for each, at in _groups(key):
            state = self._state(stream, each)
            # A clock that steps back makes no gap.
            before = start[at[0]] if state.time_ns is None else state.time_ns
            times = np.maximum(np.maximum.accumulate(start[at]), before)
            gap[at] = np.diff(times, prepend=before)
            known[at[0]] = state.time_ns is not None
            finite = end[at] != _NEVER
            until = np.sort(np.concatenate([state.pending, end[at][finite]]))
            ended = np.searchsorted(until, times, side="right")
            under_way = len(state.pending) + state.open + np.arange(len(at)) - ended
            outstanding[at] = under_way
            state.time_ns = int(times[-1])
            state.pending = until[ended[-1] :].copy()
            state.open += int(np.count_nonzero(~finite))
        return {"gap_ns": (gap, known), "outstanding": (outstanding, np.ones_like(known))}

    def _alignment(self, disk: Ints, lba: Ints) -> Ints:
        address = lba * self._block_bytes[disk] | 1 << MAX_ALIGNMENT
        lowest = (address & -address).astype(np.float64)
        return np.log2(lowest).astype(np.int64)


def ends(rows: Rows) -> Ints:
    """Return when each command ended, in ns; the far future for one that is still open.

    One whose end is not known (aborted, lost, a source without latencies) ends at once, and none
    sooner than a nanosecond after it began, so that what is sent then finds it there.
    """
    latency: Ints = rows["latency_ns"].astype(np.int64)
    end: Ints = rows["time_ns"].astype(np.int64) + np.maximum(latency, 1)
    return np.where(rows["fate"] == Fate.OPEN, _NEVER, end)


def _groups(keys: Ints) -> Iterator[tuple[int, Ints]]:
    """Yield each key and the rows that have it, ascending."""
    if not len(keys):
        return
    if (keys == keys[0]).all():
        yield int(keys[0]), np.arange(len(keys))
        return
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    starts = np.flatnonzero(np.diff(ordered)) + 1
    for rows in np.split(order, starts):
        yield int(keys[rows[0]]), rows


def _places(continues: Bools, before: int) -> Ints:
    """Return each command's place in its run; `before` is that of the command before these."""
    index = np.arange(len(continues))
    begun = np.maximum.accumulate(np.where(continues, -1, index))
    return np.where(begun < 0, index + 1 + before, index - begun + 1)


def _array(values: npt.NDArray[Any], known: Bools) -> pa.Array:
    return pa.array(values, mask=~known)
