# SPDX-License-Identifier: MIT
"""Commands of many channels in one order: that of their times.

A file has the messages of a channel in their order, and those of several channels in pieces one
after the other. Within a piece a request may stand behind answers to others that are later: the
requests that were found on a ring together all have the time at which they were found.
"""

import numpy as np
import pyarrow as pa

from vscsi.capture.sources.ours.layout import Array, Bools, Ints

LATENESS_NS = 250_000_000
"""A message that stands further behind later ones than this keeps its place in the file."""
MAX_HELD = 1 << 18
"""Messages that are held back until their order is known, and"""
MAX_HELD_BYTES = 64 << 20
"""bytes of their rows, data and all."""
END_NS = (1 << 63) - 1

_ARRIVAL = np.dtype([("id", "i8"), ("time_ns", "i8"), ("disk", "i8"), ("position", "i8")])
_SENT = np.dtype([("id", "i8"), ("serial", "i8"), ("outstanding", "i8")])


class Timeline:
    """Numbers requests in the order of their times and counts what was under way.

    Two things share a time in the order of their positions in the file.
    """

    def __init__(self) -> None:
        self._arrivals = np.zeros(0, _ARRIVAL)
        """Not in order yet."""
        self._rows: list[pa.RecordBatch] = []
        self._ends = np.zeros(0, _ARRIVAL)
        """Of these rows."""
        self._sent = np.zeros(0, _SENT)
        """What is in order, but not its end; by id."""
        self._serial = 0
        self._under_way = np.zeros(0, np.int64)
        """By disk."""
        self._until = -END_NS

    def arrive(self, ids: Ints, time_ns: Ints, disks: Ints, positions: Ints) -> None:
        """Take requests, by their positions; ids grow from call to call."""
        self._arrivals = np.append(self._arrivals, _arrivals(ids, time_ns, disks, positions))

    def end(
        self, ids: Ints, time_ns: Ints, disks: Ints, positions: Ints, rows: pa.RecordBatch
    ) -> None:
        """Take the ends of requests that have arrived, no earlier than these, and their rows."""
        self._ends = np.append(self._ends, _arrivals(ids, time_ns, disks, positions))
        self._rows.append(rows)

    def settle(self, until_ns: int) -> tuple[pa.RecordBatch, Ints, Ints] | None:
        """Return rows in the order of their ends, their serials and their counts.

        until_ns: no message is expected any more from before that. None if there are no rows.
        """
        held = len(self._arrivals) + len(self._ends)
        if sum(rows.nbytes for rows in self._rows) > MAX_HELD_BYTES:
            until_ns = max(until_ns, int(self._ends["time_ns"].max()))
        if held > MAX_HELD:
            times = np.concatenate([self._arrivals["time_ns"], self._ends["time_ns"]])
            until_ns = max(until_ns, int(np.partition(times, held // 2)[held // 2]))
        self._until = max(self._until, until_ns)
        arrived = self._arrivals["time_ns"] <= self._until
        ended = self._ends["time_ns"] <= self._until
        arrivals, ends = self._arrivals[arrived], self._ends[ended]
        if not len(arrivals) and not len(ends):
            return None
        self._arrivals = self._arrivals[~arrived]
        self._number(arrivals, ends)
        if not len(ends):
            return None
        rows = self._take(ended)
        ends = ends[order := np.lexsort((ends["position"], ends["time_ns"]))]
        at = np.searchsorted(self._sent["id"], ends["id"])
        sent = self._sent[at]
        self._sent = np.delete(self._sent, at)
        return rows.take(pa.array(order)), sent["serial"], sent["outstanding"]

    def _number(self, arrivals: Array, ends: Array) -> None:
        """Give the arrivals serials, and count at each what is under way."""
        both = np.concatenate([ends, arrivals])  # a request may end others before it begins
        step = np.ones(len(both), np.int64)
        step[: len(ends)] = -1
        disks = both["disk"]
        most = int(disks.max()) + 1
        if most > len(self._under_way):
            self._under_way = np.pad(self._under_way, (0, most - len(self._under_way)))
        order = np.lexsort((both["position"], both["time_ns"]))
        if most > 1:
            order = order[np.argsort(disks[order], kind="stable")]
        before = np.cumsum(step[order]) - step[order]
        by_disk = disks[order]
        first = np.flatnonzero(np.diff(by_disk, prepend=-1))
        spans = np.diff(first, append=len(order))
        count = np.empty(len(both), np.int64)
        count[order] = self._under_way[by_disk] + before - np.repeat(before[first], spans)
        np.add.at(self._under_way, disks, step)
        sent = np.zeros(len(arrivals), _SENT)
        sent["id"] = arrivals["id"]
        sent["outstanding"] = count[len(ends) :]
        in_time = np.lexsort((arrivals["position"], arrivals["time_ns"]))
        sent["serial"][in_time] = np.arange(self._serial, self._serial + len(arrivals))
        self._serial += len(arrivals)
        sent = np.concatenate([self._sent, sent])
        self._sent = sent[np.argsort(sent["id"], kind="stable")]

    def _take(self, ended: Bools) -> pa.RecordBatch:
        """Return the rows of these ends, in the order of the file, and keep the others."""
        (rows,) = pa.Table.from_batches(self._rows).combine_chunks().to_batches()
        left = pa.array(~ended)
        self._ends = self._ends[~ended]
        self._rows = [rows.filter(left)] if len(self._ends) else []
        return rows.filter(pa.array(ended)) if len(self._ends) else rows


def _arrivals(ids: Ints, time_ns: Ints, disks: Ints, positions: Ints) -> Array:
    arrivals = np.zeros(len(ids), _ARRIVAL)
    arrivals["id"], arrivals["time_ns"] = ids, time_ns
    arrivals["disk"], arrivals["position"] = disks, positions
    return arrivals
