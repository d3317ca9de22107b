# SPDX-License-Identifier: MIT
"""fio's I/O logs, versions 2 and 3 (fio(1), TRACE FILE FORMAT): what was asked, not how it ended.

A line of version 3 is `MICROSECONDS FILE ACTION [OFFSET LENGTH]`. Version 2 has no times; its
`FILE wait MICROSECONDS` lines are the pauses between the commands. Answers and latencies are in
neither, so nothing is outstanding; sync and datasync are flushes.
"""

import io
import re
from collections.abc import Iterator
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from vscsi.capture.commands import Channel, Fate, Operation
from vscsi.capture.sources.base import TextReading, as_utf8
from vscsi.capture.sources.columns import assemble
from vscsi.capture.sources.complete import MAX_TIME_NS, InOrder

NAME = "fio iolog"
HEADER = "fio version {} iolog\n"
ACTIONS = {
    "read": Operation.READ,
    "write": Operation.WRITE,
    "sync": Operation.FLUSH,
    "datasync": Operation.FLUSH,
    "trim": Operation.UNMAP,
}
"""Words and what they do; fio's sink takes the first of an operation."""
_FILE_ACTIONS = ("add", "open", "close")
_FIRST_LINE = re.compile(rb"fio version ([23]) iolog\r?\n")
_COLUMNS = ["time", "file", "action", "offset", "length"]
_NUMBERS = ("time", "offset", "length")
_NUMBER = r"^\d{1,18}$"
_US_NS = 1000
_MAX_TIME_US = (MAX_TIME_NS - 1) // _US_NS
_MAX_WAIT_US = 1 << 36
"""19 hours; a longer pause is cut."""
_MAX_BYTES = 1 << 40
"""Of one command; a trim may be long."""


def recognise(head: bytes) -> bool:
    """Whether the first line is a log's."""
    return _FIRST_LINE.match(head) is not None


def read(stream: IO[bytes]) -> "IoLog":
    """Return the source."""
    return IoLog(stream)


class IoLog(TextReading):
    """A log; each file is a disk."""

    def __init__(self, stream: IO[bytes]) -> None:
        super().__init__(NAME, stream)
        self.channels = [Channel("fio", "block")]
        self._now = 0

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        order = InOrder()
        version = 0
        for block in self.line_blocks():
            if not version:
                first = _FIRST_LINE.match(block)
                if first is None:
                    self.broke("the first line is none of an I/O log")
                    return
                version = int(first[1])
                self.format = f"{NAME}, version {version}"
                block = block[first.end() :]
            if not block.strip():
                continue
            rows = self._rows(as_utf8(block), version)
            if batch := self._commands(rows, version):
                yield from order.add(batch)
        yield from order.rest()
        order.note(self.troubles)
        self.note_unaligned()

    def _rows(self, block: bytes, version: int) -> pa.Table:
        """Return the lines of a block that have an offset and a length."""
        short: list[str] = []

        def other(row: Any) -> str:
            words = str(row.text).split()
            if words[-1:] and words[-1] in _FILE_ACTIONS and row.actual_columns == version:
                return "skip"
            short.append(str(row.text)[:100] if not short else "")
            return "skip"

        if b"  " in block or b"\t" in block or b"\n " in block or b" \n" in block:
            block = re.sub(rb"[ \t]*(\r?\n)[ \t]*", rb"\1", re.sub(rb"[ \t]+", b" ", block))
        names = _COLUMNS if version == 3 else _COLUMNS[1:]
        table = csv.read_csv(
            io.BytesIO(block.strip(b" \t")),
            csv.ReadOptions(use_threads=False, column_names=names, block_size=len(block) + 1),
            csv.ParseOptions(delimiter=" ", quote_char=False, invalid_row_handler=other),
            csv.ConvertOptions(column_types=dict.fromkeys(names, pa.binary()), null_values=[]),
        )
        if short:
            self.skip(f"no action of a log: {short[0]!r}", len(short))
        return table

    def _commands(self, rows: pa.Table, version: int) -> pa.RecordBatch | None:
        numbers, good = {}, np.ones(rows.num_rows, bool)
        for name in _NUMBERS[3 - version :]:
            numbers[name], fits = _integers(rows.column(name))
            good &= fits
        disk = self.disk_numbers(rows.column("file").combine_chunks().cast(pa.string()))
        action = rows.column("action").combine_chunks().dictionary_encode()
        words = [word.decode(errors="replace") for word in action.dictionary.to_pylist()]
        operations = [ACTIONS.get(word, Operation.OTHER) for word in words]
        operation = np.array(operations, np.uint8)[action.indices.to_numpy()]
        waits = np.array([word == "wait" for word in words], bool)[action.indices.to_numpy()]
        waits &= (version == 2) & good
        if version == 3:
            time = numbers["time"]
        else:
            pauses = np.where(waits, np.minimum(numbers["offset"], _MAX_WAIT_US), 0)
            time = np.minimum(self._now + np.cumsum(pauses), _MAX_TIME_US)
            self._now = int(time[-1]) if len(time) else self._now
        start, length = numbers["offset"], numbers["length"]
        good &= waits | (operation != Operation.OTHER)
        good &= waits | ((disk >= 0) & (time <= _MAX_TIME_US) & (length < _MAX_BYTES))
        if not good.all():
            row = {
                name: rows.column(name)[int(np.argmin(good))].as_py() for name in rows.schema.names
            }
            line = b" ".join(row.values())
            self.skip(f"no action of a log: {line[:100]!r}", int(len(good) - good.sum()))
        good &= ~waits
        if not good.any():
            return None
        operation, start, length = operation[good], start[good], length[good]
        flush = operation == Operation.FLUSH
        lba, blocks = self.sectors(np.where(flush, 0, start), np.where(flush, 0, length))
        return assemble(
            len(start),
            {
                "time_ns": time[good] * _US_NS,
                "disk": disk[good],
                "operation": operation,
                "lba": pa.array(lba, mask=flush),
                "blocks": pa.array(blocks, mask=flush),
                "data_in": np.where(operation == Operation.READ, length, 0),
                "data_out": np.where(operation == Operation.WRITE, length, 0),
                "fate": int(Fate.ANSWERED),
            },
        )


def _integers(column: pa.ChunkedArray) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Return the numbers of a column of text, and which of them are any; the others are 0."""
    good = pc.match_substring_regex(column, _NUMBER)
    safe = pc.if_else(good, column, pa.scalar(b"0", pa.binary()))
    numbers = safe.cast(pa.string()).cast(pa.int64()).to_numpy()
    return numbers, good.to_numpy()
