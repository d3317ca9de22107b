# SPDX-License-Identifier: MIT
"""What an initiator should not do: reserved bits, reused tags, addresses beyond the end, ...

CDBs are looked at in batches as they come; what needs the order of sending, in that order.
"""

import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from vscsi.analysis.columns import NONE, Bools, CommandKind, Ints, Rows
from vscsi.analysis.features import ends
from vscsi.analysis.result import Finding
from vscsi.capture.commands import Disk, Event, Fate, Operation
from vscsi.wire.cdb import describe, lookup
from vscsi.wire.lun import logical_unit_number
from vscsi.wire.opcodes import VARIABLE_LENGTH, Command

MAX_EXAMPLES = 3
MAX_CLOSES = 1024
"""Logouts before which unflushed writes are looked for."""
MAX_TAGS = 1 << 17
"""Tags in use that are remembered; beyond, the oldest are forgotten."""

_CONTROL_RESERVED = 0x38
"""Bits 5 to 3; above them it is the vendor's, NACA is bit 2, the last two are obsolete (SAM-6)."""
_RARC = 1, 0x04
_DURATION_LIMITS = (1, 0x01), (14, 0xC0)
_LATER: Mapping[int, Sequence[tuple[int, int]]] = {
    0x28: (_RARC,),
    0xA8: (_RARC,),
    0x88: (_RARC, *_DURATION_LIMITS),
    0x8A: _DURATION_LIMITS,
}
"""(offset, bits) that standards have given a meaning which the table of commands does not have."""
_PASS_THROUGH = (0x85, 0xA1)
"""Most of their bits are another standard's."""
_NEVER = np.iinfo(np.int64).max
_OURS = re.compile(
    r"(?:blkif-\d+-(?P<disk>\d+)|srp-\d+-(?P<srp>\d+) lun \S+"
    r"|vscsiif-\d+-(?P<host>\d+) lun 0:0:\d+)"
)
"""Names of disks in captures of our server, which has one unit of a number for all its domains."""


@dataclass(slots=True)
class _Rule:
    severity: str
    words: str
    count: int = 0
    examples: list[str] = field(default_factory=list)

    def found(self, rows: Ints, example: Callable[[int], str]) -> None:
        self.count += len(rows)
        for row in rows[: MAX_EXAMPLES - len(self.examples)]:
            self.examples.append(example(int(row)))


class Lint:
    """Collects findings; `cdbs` and `ordered` see all commands once each."""

    def __init__(self) -> None:
        self._rules = {
            "short-cdb": _Rule("error", "CDBs are shorter than their command"),
            "reserved-bits": _Rule("warning", "reserved bits of the CDB are set"),
            "reused-tag": _Rule("error", "a tag was used again before its command was answered"),
            "lba-out-of-range": _Rule("error", "blocks beyond the end of the medium"),
            "missing-flush": _Rule("warning", "writes not flushed before the connection closed"),
        }
        self._reserved: dict[bytes, tuple[int, npt.NDArray[np.uint8]] | None] = {}
        self._tags: dict[str, Ints] = {
            name: np.empty(0, np.int64) for name in ("channel", "tag", "end")
        }
        self._unflushed: dict[int, int] = {}
        """By disk."""
        self._closes: list[Event] = []

    # As the batches come

    def cdbs(self, batch: pa.RecordBatch, block: Bools) -> None:
        """Check the CDBs of a batch of SCHEMA; block: which rows are block devices' commands."""
        column = batch.column("cdb")
        if column.null_count == len(column):
            return
        offsets = _offsets(column)
        starts, sizes = offsets[:-1], np.diff(offsets)
        data = np.frombuffer(column.buffers()[2] or b"", np.uint8)
        present = np.flatnonzero((sizes > 0) & block)
        heads = _heads(data, starts[present], sizes[present])
        distinct, rows = np.unique(heads, return_inverse=True)
        for number, head in enumerate(distinct):
            checked = self._row(int(head).to_bytes(4, "big"))
            if checked is None:
                continue
            length, reserved = checked
            at = present[rows == number]
            short = sizes[at] < length
            self._note("short-cdb", at[short], column)
            at = at[~short]
            wrong = np.zeros(len(at), np.bool_)
            for offset in np.flatnonzero(reserved):
                wrong |= (data[starts[at] + offset] & reserved[offset]) != 0
            self._note("reserved-bits", at[wrong], column)

    def _row(self, head: bytes) -> tuple[int, npt.NDArray[np.uint8]] | None:
        """Return a command's length and which bits are reserved; None for unknown commands."""
        if head not in self._reserved:
            cdb = head[:2] + bytes(6) + head[2:] + bytes(6)
            row = lookup(cdb)
            self._reserved[head] = None if row is None else (row.length, _reserved_bits(row))
        return self._reserved[head]

    def _note(self, rule: str, rows: Ints, column: pa.Array) -> None:
        def example(row: int) -> str:
            cdb = column[row].as_py()
            return f"{describe(cdb)} [{cdb.hex()}]"

        self._rules[rule].found(rows, example)

    # In the order of sending

    def prepare(
        self, kinds: Sequence[CommandKind], disks: Sequence[Disk], events: Sequence[Event]
    ) -> None:
        """Learn what is known only when all batches have come."""
        self._kinds = kinds
        # Beyond 63 bits no address can be.
        self._end = np.array(
            [_NEVER if each.block_count is None else each.block_count for each in disks], np.int64
        )
        self._disks = disks
        numbers: dict[Hashable, int] = {}
        self._medium = np.array(
            [
                numbers.setdefault(medium(each) or ("disk", number), len(numbers))
                for number, each in enumerate(disks)
            ],
            np.int64,
        )
        self._closes = [each for each in events if "LOGOUT" in each.words.upper()][:MAX_CLOSES]

    def ordered(self, rows: Rows) -> None:
        """Check the columns of RAW."""
        lba, blocks, disk = rows["lba"], rows["blocks"], rows["disk"]
        operation = rows["operation"]
        moves = (operation == Operation.READ) | (operation == Operation.WRITE)
        known = moves & (lba != NONE) & (blocks != NONE)
        beyond = known & (lba + np.where(known, blocks, 0) > self._end[disk])
        self._rules["lba-out-of-range"].found(
            np.flatnonzero(beyond), lambda row: self._words(rows, row)
        )
        self._check_tags(rows)
        self._check_flushes(rows)

    def _words(self, rows: Rows, row: int) -> str:
        disk = self._disks[rows["disk"][row]]
        name = self._kinds[rows["kind"][row]].name
        words = f"{disk.name}: {name} lba {rows['lba'][row]} blocks {rows['blocks'][row]}"
        return words + (f" of {disk.block_count}" if disk.block_count is not None else "")

    def _check_tags(self, rows: Rows) -> None:
        tagged = np.flatnonzero(rows["tag"] != NONE)
        start = rows["time_ns"][tagged]
        # One whose end is not known may have freed its tag at once.
        end = np.where(rows["fate"][tagged] == Fate.OPEN, _NEVER, start)
        end = np.where(rows["latency_ns"][tagged] != NONE, ends(rows)[tagged], end)
        now = {"channel": rows["channel"][tagged], "tag": rows["tag"][tagged], "end": end}
        held = len(self._tags["tag"])
        joined = {name: np.concatenate([self._tags[name], now[name]]) for name in now}
        begin = np.concatenate([np.full(held, NONE), start])
        order = np.lexsort((np.arange(len(begin)), joined["tag"], joined["channel"]))
        channel, tag, until = (joined[name][order] for name in ("channel", "tag", "end"))
        same = (channel[1:] == channel[:-1]) & (tag[1:] == tag[:-1])
        again = np.flatnonzero(same & (begin[order][1:] < until[:-1])) + 1
        used = np.sort(order[again])
        used = tagged[used[used >= held] - held]
        self._rules["reused-tag"].found(
            used,
            lambda row: (
                f"tag 0x{int(rows['tag'][row]) & (1 << 64) - 1:x}: {self._words(rows, row)}"
            ),
        )
        # The last use of each tag that is still going on is what the next rows may collide with.
        last = np.append(~same, True) if len(tag) else np.empty(0, np.bool_)
        latest = int(start.max()) if len(start) else NONE
        going_on = np.sort(order[last & (until > latest)])[-MAX_TAGS:]
        self._tags = {name: joined[name][going_on] for name in joined}

    def _check_flushes(self, rows: Rows) -> None:
        time, start = rows["time_ns"], 0
        while self._closes and len(time) and self._closes[0].time_ns <= time[-1]:
            close = self._closes.pop(0)
            at = max(start, int(np.searchsorted(time, close.time_ns)))
            self._count_unflushed(rows, slice(start, at))
            self._close(close)
            start = at
        self._count_unflushed(rows, slice(start, len(time)))

    def _count_unflushed(self, rows: Rows, part: slice) -> None:
        """Count writes after the last flush of their medium, whoever has sent that."""
        disk, operation = rows["disk"][part], rows["operation"][part]
        on = self._medium[disk]
        write = (operation == Operation.WRITE) & ~rows["fua"][part]
        flush = operation == Operation.FLUSH
        for each in np.unique(on[flush]):
            last = np.flatnonzero(flush & (on == each))[-1]
            write[:last] &= on[:last] != each
            for flushed in np.flatnonzero(self._medium == each):
                self._unflushed[int(flushed)] = 0
        for each, count in zip(*np.unique(disk[write], return_counts=True), strict=True):
            self._unflushed[int(each)] = self._unflushed.get(int(each), 0) + int(count)

    def _close(self, close: Event) -> None:
        for disk, count in self._unflushed.items():
            if count and close.disk in (None, disk):
                rule = self._rules["missing-flush"]
                rule.count += count
                if medium(self._disks[disk]) is None:
                    rule.words = "writes not flushed on this path before the connection closed"
                if len(rule.examples) < MAX_EXAMPLES:
                    words = f"{self._disks[disk].name}: {count} writes before {close.words}"
                    rule.examples.append(words)
                self._unflushed[disk] = 0

    # At the end

    @property
    def unflushed_writes(self) -> int:
        """Writes without FUA after the last flush of their medium, as far as that is known."""
        return sum(self._unflushed.values())

    def finish(self, unwritten_reads: int, page_accesses: int) -> tuple[Finding, ...]:
        """Return what was found, the worst first."""
        # Closes after the last command.
        for close in self._closes:
            self._close(close)
        found = [
            Finding(name, rule.severity, rule.count, rule.words, tuple(rule.examples))
            for name, rule in self._rules.items()
            if rule.count
        ]
        if self.unflushed_writes:
            left = [disk for disk, count in self._unflushed.items() if count]
            alone = any(medium(self._disks[disk]) is None for disk in left)
            path = " on this path" if alone else ""
            words = f"writes since the last flush{path} when the capture ended"
            found.append(Finding("unflushed-writes", "note", self.unflushed_writes, words))
        if unwritten_reads:
            share = unwritten_reads / max(page_accesses, 1)
            words = (
                "reads of pages of 4 KiB that nothing in this capture wrote before "
                f"({share:.1%} of page accesses)"
            )
            found.append(Finding("unwritten-read", "note", unwritten_reads, words))
        order = ("error", "warning", "note")
        return tuple(sorted(found, key=lambda each: order.index(each.severity)))


def medium(disk: Disk) -> Hashable | None:
    """Return what is the same for all disks that are one medium; None if that is not known.

    Initiators of our server see one unit by its number, over SRP, vscsiif and, as the number of the
    disk, over blkif; its size in bytes has to be the same as well.
    """
    name = _OURS.fullmatch(disk.name)
    if name is None or disk.block_count is None:
        return None
    size = disk.block_bytes * disk.block_count
    if name["disk"] is not None:
        return 0, int(name["disk"]), size
    number = None if disk.lun is None else logical_unit_number(disk.lun)
    return None if number is None else (int(name["srp"] or name["host"] or 0), number, size)


def _reserved_bits(row: Command) -> npt.NDArray[np.uint8]:
    reserved = ~np.frombuffer(row.usage_map(), np.uint8)
    reserved[row.control_offset] &= _CONTROL_RESERVED
    for offset, bits in _LATER.get(row.opcode, ()):
        reserved[offset] &= ~bits & 0xFF
    if row.opcode in _PASS_THROUGH:
        reserved[:] = 0
    return reserved


def _offsets(column: pa.Array) -> Ints:
    offsets = np.frombuffer(column.buffers()[1], np.int32)
    return offsets[column.offset : column.offset + len(column) + 1].astype(np.int64)


def _heads(data: npt.NDArray[np.uint8], starts: Ints, sizes: Ints) -> Ints:
    """Return what names a command: opcode, byte 1's service action, bytes 8 and 9 of 7Fh."""
    heads = data[starts].astype(np.int64) << 24
    more = np.flatnonzero(sizes > 1)
    heads[more] |= (data[starts[more] + 1] & 0x1F).astype(np.int64) << 16
    long = np.flatnonzero((data[starts] == VARIABLE_LENGTH) & (sizes > 9))
    heads[long] |= data[starts[long] + 8].astype(np.int64) << 8 | data[starts[long] + 9]
    return heads
