# SPDX-License-Identifier: MIT
"""blktrace's binary records (linux/blktrace_api.h): 48 bytes, and a payload of any length.

Of either byte order; every record says it by its magic number, which has the version below it.
"""

from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vscsi.capture.sources.blktrace.events import EVENT, Action, Category, Events

MAGIC = 0x65617400
VERSION = 7
_FIELDS = {
    "magic": (0, "u4"),
    "time": (8, "u8"),
    "sector": (16, "u8"),
    "bytes": (24, "u4"),
    "action": (28, "u4"),
    "device": (36, "u4"),
    "error": (44, "u2"),
    "payload": (46, "u2"),
}
"""What is read: offset and type."""
RECORD_BYTES = 48
_TIMESTAMP = 1
"""The notification with the wall clock's time, of which an event's time 0 is."""
_LAST_TIME_NS = 1 << 61
_GATHER = 1 << 16


@dataclass(slots=True)
class Records:
    """Reads records from pieces of a file."""

    order: str = "<"
    """Of the first record: < or >."""
    start_ns: int = 0
    """The wall clock's time at which the trace began, once it came up."""
    skipped: int = 0
    """Places where there was no record."""
    first_skipped: str = ""
    cut: int = 0
    """Bytes behind the last whole record."""
    _lost: bool = False
    """Whether the last piece ended without a record in sight, which has been counted."""

    def read(self, chunks: Iterable[bytes]) -> Iterator[Events]:
        """Yield the events of commands in a file; sectors and bytes as they are there."""
        rest, at = b"", 0
        for chunk in chunks:
            data = rest + chunk
            if not at and not rest and data[:4] == (MAGIC | VERSION).to_bytes(4, "big"):
                self.order = ">"
            used = yield from self._events(data, at)
            rest = data[used:]
            at += used
        # What is left claims a payload that the file does not have: its length may be damaged.
        if rest.find(self._mark(), 1) > 0:
            rest = rest[(yield from self._events(rest, at, at_end=True)) :]
        self.cut = len(rest)

    def _mark(self) -> bytes:
        return (MAGIC | VERSION).to_bytes(4, "little" if self.order == "<" else "big")

    def _events(self, data: bytes, at: int, at_end: bool = False) -> Generator[Events, None, int]:
        """Yield the events in some bytes; return how many bytes that were."""
        places, used = self._places(data, at, at_end)
        buffer = np.frombuffer(data, np.uint8)
        for first in range(0, len(places), _GATHER):
            yield self._taken(buffer, places[first : first + _GATHER])
        return used

    def _places(self, data: bytes, at: int, at_end: bool) -> tuple[npt.NDArray[np.int64], int]:
        """Return where records begin, and where the first one begins that is not whole.

        at_end: nothing comes behind these bytes, so that what is not whole is no record.
        """
        buffer = np.frombuffer(data, np.uint8)
        last = len(data) - RECORD_BYTES
        marks = self._mark()
        found = np.flatnonzero(buffer[: max(0, last + 1)] == marks[0])
        for offset in (1, 2, 3):
            found = found[buffer[found + offset] == marks[offset]]
        payload = self._field(buffer, found, "payload")
        follow = found + RECORD_BYTES + payload.astype(np.int64)
        if at_end:
            whole = follow <= len(data)
            found, follow = found[whole], follow[whole]
        # Nearly every mark is a record's, and where the one before ends. Look at the others.
        breaks = np.append(np.flatnonzero(follow[:-1] != found[1:]), len(found) - 1)
        chosen = np.ones(len(found), bool)
        want, index = 0, 0
        while index < len(found):
            if found[index] != want:
                later = int(np.searchsorted(found, want))
                if later == len(found) and want > last:
                    chosen[index:] = False  # in a payload whose end is not there yet
                    break
                if later < len(found) and found[later] == want:
                    chosen[index:later] = False  # in a payload
                    index = later
                else:
                    self._skip(at + want)
            index = int(breaks[np.searchsorted(breaks, index)]) + 1
            want = int(follow[index - 1])
        found = found[chosen]
        if want > len(data):  # its payload is in the next piece
            found, want = found[:-1], int(found[-1])
        elif want <= last:  # no mark where one should be, and none behind
            self._skip(at + want)
            self._lost = True
            want = last + 1
        return found, want

    def _skip(self, place: int) -> None:
        if not self.skipped:
            self.first_skipped = f"at byte {place}: no record of blktrace version {VERSION}"
        self.skipped += not self._lost
        self._lost = False

    def _field(
        self, buffer: npt.NDArray[np.uint8], places: npt.NDArray[np.int64], name: str
    ) -> npt.NDArray[Any]:
        offset, kind = _FIELDS[name]
        form = np.dtype(self.order + kind)
        wanted = np.arange(offset, offset + form.itemsize)
        taken: npt.NDArray[Any] = buffer[places[:, None] + wanted].view(form)[:, 0]
        return taken

    def _taken(self, buffer: npt.NDArray[np.uint8], places: npt.NDArray[np.int64]) -> Events:
        """Return the events of the records at some places."""
        action = self._field(buffer, places, "action")
        category = action >> 16
        what = action & 0xFF  # above it a mark for a control group's number in the payload
        notes = category & Category.NOTIFY > 0
        for place in places[notes & (what == _TIMESTAMP)][:1]:
            payload = bytes(buffer[place + RECORD_BYTES : place + RECORD_BYTES + 8])
            if len(payload) == 8:
                seconds, fraction = np.frombuffer(payload, self.order + "u4").tolist()
                self.start_ns = seconds * 10**9 + fraction
        kept = np.isin(what, list(Action)) & ~notes
        places, what, category = places[kept], what[kept], category[kept]
        events = np.zeros(len(places), EVENT)
        events["action"], events["category"] = what, category
        for name in ("sector", "bytes", "device"):
            events[name] = self._field(buffer, places, name)
        events["time_ns"] = np.minimum(self._field(buffer, places, "time"), _LAST_TIME_NS)
        events["error"] = self._field(buffer, places, "error").astype(np.int16)
        self._passed_through(buffer, places, events)
        return events

    def _passed_through(
        self, buffer: npt.NDArray[np.uint8], places: npt.NDArray[np.int64], events: Events
    ) -> None:
        """Copy the CDBs that kernels before 4.11 have as payloads of pass-through commands."""
        payload = self._field(buffer, places, "payload")
        passed = events["category"] & Category.PC > 0
        for row in np.flatnonzero(passed & (payload > 0) & (payload <= 16)):
            start = int(places[row]) + RECORD_BYTES
            length = int(payload[row])
            events["cdb"][row, :length] = buffer[start : start + length]
            events["cdb_length"][row] = length
