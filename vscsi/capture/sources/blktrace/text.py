# SPDX-License-Identifier: MIT
"""blkparse's default output (blkparse(1), DEFAULT OUTPUT): one event a line.

      8,0    3        1     0.000000000   697  D   W 223490 + 8 [kjournald]

Device, CPU, sequence, time, process, action, RWBS; sector and sectors, or of SCSI pass-through
bytes and the CDB; the error of a completion, the process' name of others.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from vscsi.capture.commands import SECTOR_BYTES
from vscsi.capture.sources.blktrace.events import EVENT, Action, Category, Events

_HEAD = (
    r"^ *(?P<major>\d{1,4}),(?P<minor>\d{1,7}) +\d{1,5} +\d{1,19} "
    r"+(?P<s>\d{1,9})\.(?P<ns>\d{9}) +\d{1,10}"
)
_LINE = re.compile(_HEAD.encode() + rb" +(?:[A-Z]{1,2}|m) +[A-Z]{1,8}(?: |$)")
_EVENT = (
    _HEAD + r" +(?P<action>[QRDC]) +(?P<rwbs>[A-Z]{1,8})"
    r"(?: +(?P<number>\d{1,18})(?: \+ (?P<sectors>\d{1,8}))?)?"
    r"(?: +\((?P<cdb>[0-9a-f]{2}(?: [0-9a-f]{2}){0,63}) (?:\.\.)?\))?"
    r"(?: +\[(?:(?P<error>-?\d{1,5})|[^\n]*)\])?[^\n]*$"
)
"""A completion has its sector even if that has no sectors to it, other events of a flush don't; a
number that is alone otherwise is pass-through's bytes, and completions of that have none."""
_ACTIONS = {
    "Q": Action.QUEUE,
    "R": Action.REQUEUE,
    "D": Action.ISSUE,
    "C": Action.COMPLETE,
}
_NUMBERS = ("major", "minor", "s", "ns", "number", "sectors", "error")
_SUMMARY = r"^(?:CPU\d+|Total) \("
_MINOR_BITS = 20


def recognise(head: bytes) -> bool:
    """Whether the first lines are events."""
    lines = head.split(b"\n")
    whole = lines[:-1] or lines
    return all(_LINE.match(line) for line in whole[:8])


@dataclass(slots=True)
class Lines:
    """Reads events from blocks of lines."""

    skipped: int = 0
    """Lines that begin as an event's and are none, and"""
    first_skipped: str = ""
    others: int = 0
    """lines that don't; blkparse's summary at the end is none of them."""
    _summary: bool = False

    def read(self, blocks: Iterable[bytes]) -> Iterator[Events]:
        """Yield the events of commands."""
        for block in blocks:
            lines = pa.array(block.decode("ascii", errors="replace").splitlines(), pa.string())
            yield self._events(lines)

    def _events(self, lines: pa.Array) -> Events:
        found = pc.extract_regex(lines, _EVENT)
        matched = found.is_valid()
        self._count(lines.filter(pc.invert(matched)))
        found = found.filter(matched)
        field = {name: found.field(name) for name in ("action", "rwbs", "cdb")}
        number = {name: _numbers(found.field(name)) for name in _NUMBERS}
        events = np.zeros(len(found), EVENT)
        events["time_ns"] = number["s"] * 10**9 + number["ns"]
        events["device"] = number["major"] << _MINOR_BITS | number["minor"] & 0xFFFFF
        ended = pc.equal(field["action"], "C").to_numpy(zero_copy_only=False)
        bare = _empty(found.field("sectors")) & (_empty(found.field("number")) == ended)
        passed = bare | ~_empty(field["cdb"])
        events["sector"] = np.where(passed, 0, number["number"])
        events["bytes"] = np.where(passed, number["number"], number["sectors"] * SECTOR_BYTES)
        events["error"] = number["error"]
        events["action"] = _each(field["action"], _ACTIONS.get)
        events["category"] = _each(field["rwbs"], _category)
        events["category"] |= np.where(passed, Category.PC, 0).astype(np.uint16)
        for row in np.flatnonzero(~_empty(field["cdb"])):
            cdb = bytes.fromhex(field["cdb"][int(row)].as_py())[:16]
            events["cdb"][row, : len(cdb)] = list(cdb)
            events["cdb_length"][row] = len(cdb)
        return events

    def _count(self, lines: pa.Array) -> None:
        """Count the lines that are no events of commands: steps between them are none's fault."""
        step = pc.match_substring_regex(lines, _HEAD + r" +(?:[A-BE-PS-Z]|UT|m) ")
        lines = lines.filter(pc.invert(step))
        event = pc.match_substring_regex(lines, _HEAD)
        damaged = lines.filter(event)
        if len(damaged) and not self.skipped:
            self.first_skipped = f"not an event: {damaged[0].as_py()[:100]!r}"
        self.skipped += len(damaged)
        self._summary |= bool(pc.any(pc.match_substring_regex(lines, _SUMMARY)).as_py())
        self.others += 0 if self._summary else len(lines) - len(damaged)


def _empty(column: pa.Array) -> npt.NDArray[np.bool_]:
    empty: npt.NDArray[np.bool_] = pc.equal(column, "").to_numpy(zero_copy_only=False)
    return empty


def _numbers(column: pa.Array) -> npt.NDArray[np.int64]:
    """Return the numbers of digits or nothing, which is 0."""
    filled = pc.if_else(pc.equal(column, ""), "0", column)
    numbers: npt.NDArray[np.int64] = filled.cast(pa.int64()).to_numpy(zero_copy_only=False)
    return numbers


def _each(column: pa.Array, value: Any) -> npt.NDArray[np.int64]:
    """Return a function's values of a column of few different words."""
    encoded = column.dictionary_encode()
    values = [value(word) for word in encoded.dictionary.to_pylist()]
    taken: npt.NDArray[np.int64] = np.array(values, np.int64)[encoded.indices.to_numpy()]
    return taken


def _category(rwbs: str) -> int:
    """Return RWBS as categories; a first F is a flush, a later one FUA."""
    category = Category(0)
    if rwbs.startswith("F"):
        category |= Category.FLUSH
        rwbs = rwbs[1:]
    if "F" in rwbs:
        category |= Category.FUA
    for letter, kind in {"R": Category.READ, "W": Category.WRITE, "D": Category.DISCARD}.items():
        if rwbs.startswith(letter):
            category |= kind
    return int(category)
