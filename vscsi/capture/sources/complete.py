# SPDX-License-Identifier: MIT
"""Commands whose records have both their time and their latency: order, and what was under way.

Such a file is in the order of sending, or nearly. Rows come out in that order, not in that of
their ends: putting them into the other would take memory that the file decides.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from vscsi.capture.commands import BATCH_ROWS, SCHEMA, Troubles
from vscsi.capture.exchange import MAX_OPEN
from vscsi.capture.sources.columns import replaced

MAX_TIME_NS = 1 << 62
"""Times and latencies that sources pass on are below; sums of two of them fit."""


class Outstanding:
    """Counts, for commands in the order of their times, those of the same disk under way."""

    def __init__(self, limit: int = MAX_OPEN) -> None:
        """limit: commands that are remembered from one batch to the next; the oldest go first."""
        self._limit = limit
        self._disk = np.zeros(0, np.int32)
        self._end = np.zeros(0, np.int64)
        self._now = -MAX_TIME_NS

    def add(
        self,
        disk: npt.NDArray[np.int32],
        time_ns: npt.NDArray[np.int64],
        latency_ns: npt.NDArray[np.int64],
    ) -> npt.NDArray[np.uint32]:
        """Return the count for each command at its time, itself and what ended then left out.

        A time before that of a command before it counts as that one's. A latency of 0 (or none
        known) makes a command nobody's company.
        """
        if not len(time_ns):
            return np.zeros(0, np.uint32)
        started = np.maximum(np.maximum.accumulate(time_ns), self._now)
        end = time_ns + latency_ns
        lasting = end > started
        known, rows = len(self._disk), len(disk)
        # One line of events: first those that take one away, so that at one time they come first.
        disks = np.concatenate([self._disk, disk[lasting], self._disk, disk])
        ends = np.concatenate([self._end, end[lasting]])
        times = np.concatenate([ends, np.full(known, -MAX_TIME_NS), started])
        steps = np.ones(len(disks), np.int64)
        steps[: len(ends)] = -1
        steps[len(ends) + known :] = lasting
        order = np.lexsort((times, disks))
        level = np.empty(len(order), np.int64)
        # Every disk's events sum up to 0, so that one sum serves all disks.
        level[order] = np.cumsum(steps[order])
        counts = level[len(level) - rows :] - lasting
        self._now = int(started[-1])
        staying = np.flatnonzero(ends > self._now)[-self._limit :]
        self._disk, self._end = disks[: len(ends)][staying], ends[staying]
        return counts.astype(np.uint32)


class InOrder:
    """Puts rows into the order of their times, numbers them and counts their company.

    Rows that are up to `window` rows from their places are put there; those beyond come where they
    can, and `note` says how many. It holds up to twice as many rows, and a batch.
    """

    def __init__(self, window: int = BATCH_ROWS) -> None:
        self._window = window
        self._held = pa.Table.from_batches([], SCHEMA)
        self._outstanding = Outstanding()
        self._serial = 0
        self._last = -MAX_TIME_NS
        self._late = 0

    def add(self, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        """Take a batch, of any serials and counts, and yield what is certain to come first."""
        self._held = pa.concat_tables([self._held, pa.Table.from_batches([batch])])
        if self._held.num_rows >= 2 * self._window:
            yield from self._release(self._held.num_rows - self._window)

    def rest(self) -> Iterator[pa.RecordBatch]:
        """Yield what is left at the end of the file."""
        yield from self._release(self._held.num_rows)

    def note(self, troubles: Troubles) -> None:
        """Say how many rows are out of order, if any are."""
        if self._late:
            troubles.notes.append(
                f"{self._late} commands come long after later ones in the file; they stay there"
            )

    def _release(self, rows: int) -> Iterator[pa.RecordBatch]:
        time_ns = self._held.column("time_ns").to_numpy()
        if np.any(time_ns[1:] < time_ns[:-1]):
            order = np.argsort(time_ns, kind="stable")
            self._held = self._held.combine_chunks().take(pa.array(order))
        first, self._held = self._held.slice(0, rows), self._held.slice(rows)
        for batch in first.to_batches(max_chunksize=BATCH_ROWS):
            yield self._numbered(batch)

    def _numbered(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        time_ns = batch.column("time_ns").to_numpy()
        self._late += int(np.count_nonzero(time_ns < self._last))
        self._last = max(self._last, int(time_ns[-1]))
        latency = batch.column("latency_ns").fill_null(0).to_numpy()
        counts = self._outstanding.add(batch.column("disk").to_numpy(), time_ns, latency)
        serials = np.arange(self._serial, self._serial + batch.num_rows)
        self._serial += batch.num_rows
        return replaced(batch, {"serial": serials, "outstanding": counts})
