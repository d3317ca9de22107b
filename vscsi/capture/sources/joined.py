# SPDX-License-Identifier: MIT
"""Commands from traces that have their beginnings and ends as events of their own."""

from collections.abc import Iterator, Mapping, Sequence
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from vscsi.capture.commands import BATCH_ROWS, Fate
from vscsi.capture.exchange import MAX_OPEN
from vscsi.capture.sources.columns import Column, empty, joined, replaced

Key = tuple[Any, ...]
"""Which command an event is about; its first part is the number of the disk."""


class Kind(IntEnum):
    """What an event is to the command of its key."""

    START = 0
    """It begins; one of the same key that is under way ends first."""
    RESTART = 1
    """It begins; of one of the same key that is under way the end was missed."""
    END = 2
    WITHDRAWN = 3
    """It never began: whoever should have executed it gave it back."""
    LOSS = 4
    """Of no command: events are missing here, so what is under way is lost. Its key is ()."""


class Joiner:
    """Puts ends to their beginnings, in the order of the ends.

    Of its beginning an event has a row of SCHEMA, of its end some columns. Up to `limit` commands
    wait for their ends; beyond that one is LOST, of the key that has waited for longest.
    """

    def __init__(self, limit: int = MAX_OPEN) -> None:
        self.unmatched = 0
        """Ends whose beginnings are not in the trace."""
        self.withdrawn = 0
        self._limit = limit
        self._serial = 0
        self._open: dict[Key, int | list[int]] = {}
        """The serial number, or if there are several all of them, oldest first."""
        self._queued = 0
        """How many more there are than keys."""
        self._flying: dict[int, int] = {}
        """Commands under way by disk."""
        self._held = empty()
        """Those commands' rows, by serial number."""

    def add(
        self,
        kinds: Sequence[int],
        keys: Sequence[Key],
        starts: pa.RecordBatch,
        ends: Mapping[str, Column],
        end_ns: npt.NDArray[np.int64],
    ) -> Iterator[pa.RecordBatch]:
        """Take events in the order of their times and yield what ended.

        kinds, keys: of every event. starts: a row for each beginning among them. ends, end_ns:
        columns and time of each end; without a fate it was ANSWERED, which has a latency.
        """
        first = serial = self._serial
        # This loop sees every event: names and enumerations would be half its time.
        waiting, flying, restart, ending = (
            self._open,
            self._flying,
            int(Kind.RESTART),
            int(Kind.END),
        )
        outstanding: list[int] = []
        over: list[tuple[int, int]] = []  # serial number, which end or -1
        gone: list[int] = []
        end = 0
        for kind, key in zip(kinds, keys, strict=True):
            if kind <= restart:
                if kind == restart and key in waiting:
                    over.append((self._take(key), -1))
                if key in waiting:
                    self._queue(key, serial)
                else:
                    waiting[key] = serial
                under_way = flying.get(key[0], 0)
                outstanding.append(under_way)
                flying[key[0]] = under_way + 1
                serial += 1
                if len(waiting) + self._queued > self._limit:
                    over.append((self._take(next(iter(waiting))), -1))
            elif key not in waiting:
                if kind == ending:
                    self.unmatched += 1
                    end += 1
                elif not key:
                    over += [(lost, -1) for lost in self._lose()]
            elif kind == ending:
                over.append((self._take(key), end))
                end += 1
            else:
                gone.append(self._take(key))
                self.withdrawn += 1
        self._serial = serial
        serials = np.arange(first, self._serial)
        columns = {"serial": serials, "outstanding": np.array(outstanding, np.uint32)}
        self._held = joined([self._held, replaced(starts, columns)])
        yield from self._ended(over, gone, ends, end_ns)

    def rest(self) -> Iterator[pa.RecordBatch]:
        """Yield what is still without its end."""
        for at in range(0, self._held.num_rows, BATCH_ROWS):
            yield replaced(self._held.slice(at, BATCH_ROWS), {"fate": int(Fate.OPEN)})
        self._held = empty()

    def notes(self, withdrawn: str) -> Iterator[str]:
        """Say in a line each what does not show in the rows; `withdrawn`: what that means here."""
        if self.unmatched:
            yield f"{self.unmatched} ends of commands whose beginnings are not in the trace"
        if self.withdrawn:
            yield f"{self.withdrawn} commands {withdrawn}"

    def _lose(self) -> list[int]:
        """Remove all, in the order of their beginnings."""
        found = self._open.values()
        serials = [serial for one in found for serial in ([one] if isinstance(one, int) else one)]
        self._open.clear()
        self._flying.clear()
        self._queued = 0
        return sorted(serials)

    def _queue(self, key: Key, serial: int) -> None:
        """Add to a key that has something waiting."""
        waiting = self._open[key]
        if isinstance(waiting, int):
            self._open[key] = [waiting, serial]
        else:
            waiting.append(serial)
        self._queued += 1

    def _take(self, key: Key) -> int:
        """Remove the oldest of a key."""
        self._flying[key[0]] -= 1
        waiting = self._open[key]
        if isinstance(waiting, int):
            del self._open[key]
            return waiting
        self._queued -= 1
        serial = waiting.pop(0)
        if len(waiting) == 1:
            self._open[key] = waiting[0]
        return serial

    def _ended(
        self,
        over: Sequence[tuple[int, int]],
        gone: Sequence[int],
        ends: Mapping[str, Column],
        end_ns: npt.NDArray[np.int64],
    ) -> Iterator[pa.RecordBatch]:
        """Yield the held rows of `over`, and keep those that still wait."""
        pairs = np.array(over, np.int64).reshape(-1, 2)
        held = self._held.column("serial").to_numpy()
        rows = np.searchsorted(held, pairs[:, 0])
        staying = np.ones(len(held), bool)
        staying[rows] = False
        staying[np.searchsorted(held, np.array(gone, np.int64))] = False
        pool, self._held = self._held, self._held.filter(pa.array(staying))
        for at in range(0, len(pairs), BATCH_ROWS):
            part = pool.take(pa.array(rows[at : at + BATCH_ROWS]))
            which = pairs[at : at + BATCH_ROWS, 1]
            lost = pa.array(which < 0)
            index = pa.array(which, mask=which < 0)
            columns: dict[str, Column] = {
                name: pa.array(column).take(index) for name, column in ends.items()
            }
            answered = columns.get("fate", pa.array(np.zeros(len(which), np.uint8)))
            fate = pc.if_else(lost, pa.scalar(int(Fate.LOST), pa.uint8()), answered)
            latency = np.append(end_ns, 0)[which] - part.column("time_ns").to_numpy()
            untimed = pc.or_(pc.greater(fate, int(Fate.FAILED)), pa.array(latency < 0))
            columns["fate"] = fate
            columns["latency_ns"] = pc.if_else(untimed, pa.scalar(None, pa.int64()), latency)
            yield replaced(part, columns)
