# SPDX-License-Identifier: MIT
"""Traces of Linux' block layer: blktrace's binary files, and blkparse's text.

A command is what was issued to a driver (D) and completed (C), by device, sector and direction; of
devices that have no drivers' queue (device mapper, md) what was queued (Q) and completed. Merges,
splits and plugs are on the way to that. A requeued command (R) begins when it is issued again. One
file a CPU: all of them one after the other (`cat trace.blktrace.*`), in any order.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import IO, Any

import numpy as np
import pyarrow as pa

from vscsi.capture.commands import SECTOR_BYTES, Channel, Disk, Fate, Operation
from vscsi.capture.sources.base import Reading
from vscsi.capture.sources.blktrace import text
from vscsi.capture.sources.blktrace.events import Action, Category, Events, Sorted
from vscsi.capture.sources.blktrace.records import MAGIC, VERSION, Records
from vscsi.capture.sources.columns import Column, Numbering, assemble
from vscsi.capture.sources.joined import Joiner, Kind

NAME = "blktrace"
_MARKS = tuple((MAGIC | VERSION).to_bytes(4, order) for order in ("little", "big"))
_SORT = int(Category.WRITE | Category.DISCARD | Category.PC)
_PIECE_EVENTS = 1 << 17


def recognise(head: bytes) -> bool:
    """Whether a record of blktrace or lines of blkparse begin here."""
    return head.startswith(_MARKS) or text.recognise(head)


def read(stream: IO[bytes]) -> "BlockTrace":
    """Return the source."""
    return BlockTrace(stream)


class BlockTrace(Reading):
    """A trace; every device is a disk, and all are one channel."""

    def __init__(self, stream: IO[bytes]) -> None:
        super().__init__(NAME, stream)
        self.channels = [Channel("block layer", "block")]
        self._numbering = Numbering()
        self._joiner = Joiner()
        self._start_ns = 0

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        with ExitStack() as stack:
            events = Sorted(stack)
            chunks = self.chunks()
            first = next(chunks, b"")
            if first.startswith(_MARKS):
                self._binary(first, chunks, events)
            else:
                self._text(first, chunks, events)
            for piece in events:
                for at in range(0, len(piece), _PIECE_EVENTS):
                    yield from self._joined(piece[at : at + _PIECE_EVENTS])
            yield from self._joiner.rest()
        self.troubles.notes += self._joiner.notes("were requeued and issued again")

    def _binary(self, first: bytes, chunks: Iterable[bytes], events: Sorted) -> None:
        records = Records()
        for some in records.read(_chain(first, chunks)):
            events.add(some)
        self._start_ns = records.start_ns
        self.skip(records.first_skipped, records.skipped)
        if records.cut:
            self.broke(f"the last {records.cut} bytes are no whole record")

    def _text(self, first: bytes, chunks: Iterable[bytes], events: Sorted) -> None:
        self.format = "blkparse's output"
        lines = text.Lines()
        for some in lines.read(self.line_blocks(_chain(first, chunks))):
            events.add(some)
        self.skip(lines.first_skipped, lines.skipped)
        if lines.others:
            self.troubles.notes.append(f"{lines.others} lines are no events")

    def _joined(self, events: Events) -> Iterator[pa.RecordBatch]:
        disk = self._disks(events["device"])
        if np.any(disk < 0):
            self.skip("more devices than one trace has", int(np.count_nonzero(disk < 0)))
            events, disk = events[disk >= 0], disk[disk >= 0]
        kinds = _KINDS[events["action"]]
        # What has no address is a flush, or passed through: neither is the other's, or a read's.
        sort = events["category"] & np.uint16(_SORT)
        sort[(sort & Category.PC == 0) & (events["bytes"] == 0)] |= np.uint16(Category.FLUSH)
        keys = list(zip(disk.tolist(), events["sector"].tolist(), sort.tolist(), strict=True))
        begun, over = kinds == Kind.START, kinds == Kind.END
        starts = assemble(int(begun.sum()), self._columns(events[begun], disk[begun]))
        failed = events["error"][over] != 0
        ends: dict[str, Column] = {
            "fate": np.where(failed, Fate.FAILED, Fate.ANSWERED).astype(np.uint8)
        }
        end_ns = events["time_ns"][over] + self._start_ns
        yield from self._joiner.add(kinds.tolist(), keys, starts, ends, end_ns)

    def _columns(self, events: Events, disk: Any) -> dict[str, Column]:
        category, length = events["category"], events["bytes"].astype(np.int64)
        operation = np.full(len(events), Operation.OTHER, np.uint8)
        operation[(category & Category.READ > 0) & (length > 0)] = Operation.READ
        operation[category & Category.WRITE > 0] = Operation.WRITE
        operation[(category & Category.FLUSH > 0) & (length == 0)] = Operation.FLUSH
        operation[category & Category.DISCARD > 0] = Operation.UNMAP
        passed = category & Category.PC > 0
        operation[passed] = Operation.OTHER
        nowhere = (operation == Operation.OTHER) | (operation == Operation.FLUSH)
        reads, writes = category & Category.READ > 0, category & Category.WRITE > 0
        moves = operation != Operation.UNMAP
        return {
            "time_ns": events["time_ns"] + self._start_ns,
            "disk": disk,
            "operation": operation,
            "fua": category & Category.FUA > 0,
            "lba": pa.array(events["sector"], mask=nowhere),
            "blocks": pa.array(-(-length // SECTOR_BYTES), mask=nowhere),
            "data_in": np.where(reads & ~writes & moves, length, 0),
            "data_out": np.where(writes & moves, length, 0),
            **_cdbs(events),
        }

    def _disks(self, device: Any) -> Any:
        """Return the number of each event's device; -1 for those of too many."""
        different, inverse = np.unique(device, return_inverse=True)
        numbers = []
        for one in different.tolist():
            number, new = self._numbering.number(one)
            if new:
                # linux/kdev_t.h: 12 bits of major number, 20 of minor.
                self.disks.append(Disk(f"{one >> 20},{one & 0xFFFFF}"))
            numbers.append(number)
        return np.array(numbers, np.int32)[inverse]


_KINDS = np.zeros(256, np.uint8)
_KINDS[[Action.QUEUE, Action.ISSUE]] = Kind.START
_KINDS[Action.COMPLETE] = Kind.END
_KINDS[Action.REQUEUE] = Kind.WITHDRAWN


def _cdbs(events: Events) -> dict[str, Column]:
    """Return the CDBs and opcodes of pass-through commands, if there are any."""
    length = events["cdb_length"].tolist()
    if not any(length):
        return {}
    cdbs = [
        bytes(row[:size]) if size else None for row, size in zip(events["cdb"], length, strict=True)
    ]
    return {"cdb": cdbs, "opcode": [None if cdb is None else cdb[0] for cdb in cdbs]}


def _chain(first: bytes, chunks: Iterable[bytes]) -> Iterator[bytes]:
    yield first
    yield from chunks
