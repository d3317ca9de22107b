# SPDX-License-Identifier: MIT
"""CSV of the MSR Cambridge block traces (SNIA IOTTA 388; Narayanan et al., FAST '08).

    128166372003061629,usr,0,Read,7014609920,24576,41286

Timestamp in Windows file time (100 ns since 1601; since the start in rebased copies), Hostname,
DiskNumber, Type, Offset and Size in bytes, ResponseTime in 100 ns. A line with their names may
come first.
"""

import io
import re
from collections.abc import Iterator
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from vscsi.capture.commands import Channel, Fate, Operation
from vscsi.capture.sources.base import TextReading, as_utf8
from vscsi.capture.sources.columns import assemble
from vscsi.capture.sources.complete import MAX_TIME_NS, InOrder

NAME = "MSR Cambridge CSV"
_NAMES = ["Timestamp", "Hostname", "DiskNumber", "Type", "Offset", "Size", "ResponseTime"]
_TYPES = {
    "Timestamp": pa.int64(),
    "Hostname": pa.string(),
    "DiskNumber": pa.string(),
    "Type": pa.string(),
    "Offset": pa.int64(),
    "Size": pa.int64(),
    "ResponseTime": pa.int64(),
}
_HEADER = re.compile(",".join(_NAMES).encode() + rb"\r?\n", re.IGNORECASE)
_LINE = re.compile(rb"\d{1,18},[^,\s]{1,64},\d{1,9},(read|write),\d{1,19},\d{1,10},\d{1,19}", re.I)
_NUMBER = r"^\d{1,18}$"
_TICK_NS = 100
_EPOCH_TICKS = 116_444_736_000_000_000
"""1970 in Windows file time."""
_REBASED = _EPOCH_TICKS // 2
"""First time stamps below (before 1785) count from the start of the trace."""
_MAX_TICKS = MAX_TIME_NS // _TICK_NS
_MAX_BYTES = 1 << 31
"""Of one command; a larger size is no command's."""


def recognise(head: bytes) -> bool:
    """Whether the first lines are rows of the trace."""
    lines = _HEADER.sub(b"", head, count=1).splitlines()
    whole = lines[:-1] or lines
    return bool(whole) and all(_LINE.fullmatch(line) for line in whole[:8])


def read(stream: IO[bytes]) -> "MsrTrace":
    """Return the source."""
    return MsrTrace(stream)


class MsrTrace(TextReading):
    """A trace; each disk of each host is a disk, and all are one channel."""

    def __init__(self, stream: IO[bytes]) -> None:
        super().__init__(NAME, stream)
        self.channels = [Channel("msr", "block")]
        self._epoch: int | None = None

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        order = InOrder()
        first = True
        for block in self.line_blocks():
            if first and (header := _HEADER.match(block)):
                block = block[header.end() :]
            first = False
            if block.strip() and (batch := self._commands(as_utf8(block))):
                yield from order.add(batch)
        yield from order.rest()
        order.note(self.troubles)
        self.note_unaligned()

    def _commands(self, block: bytes) -> pa.RecordBatch | None:
        table = self._parsed(block)
        if self._epoch is None and table.num_rows:
            first = table.column("Timestamp")[0].as_py()
            self._epoch = _EPOCH_TICKS if first >= _REBASED else 0
        columns = {name: table.column(name).to_numpy() for name in _TYPES if name != "Type"}
        names = pc.binary_join_element_wise(
            table.column("Hostname"), table.column("DiskNumber"), " "
        )
        disk = self.disk_numbers(names.combine_chunks())
        kind = pc.utf8_lower(table.column("Type"))
        reads = pc.equal(kind, "read").to_numpy()
        time = columns["Timestamp"] - (self._epoch or 0)
        start, size, latency = columns["Offset"], columns["Size"], columns["ResponseTime"]
        good = reads | pc.equal(kind, "write").to_numpy()
        good &= (disk >= 0) & (abs(time) < _MAX_TICKS)
        good &= (start >= 0) & (start < MAX_TIME_NS) & (size >= 0) & (size < _MAX_BYTES)
        good &= (latency >= 0) & (latency < _MAX_TICKS)
        if len(good) > np.count_nonzero(good):
            row = int(np.argmin(good))
            words = ",".join(str(values[row]) for values in columns.values())
            self.skip(f"not a row of a trace: {words[:100]}", int(len(good) - good.sum()))
        if not good.any():
            return None
        reads, start, size = reads[good], start[good], size[good]
        lba, blocks = self.sectors(start, size)
        return assemble(
            len(start),
            {
                "time_ns": time[good] * _TICK_NS,
                "disk": disk[good],
                "operation": np.where(reads, Operation.READ, Operation.WRITE),
                "lba": lba,
                "blocks": blocks,
                "data_in": np.where(reads, size, 0),
                "data_out": np.where(reads, 0, size),
                "fate": int(Fate.ANSWERED),
                "latency_ns": latency[good] * _TICK_NS,
            },
        )

    def _parsed(self, block: bytes) -> pa.Table:
        """Return the rows of a block that have the columns' types."""
        try:
            return self._table(block, _TYPES)
        except pa.ArrowInvalid:
            # Something in it is no number: as text, to find the rows that are all right.
            text = dict.fromkeys(_NAMES, pa.binary())
            table = self._table(block, text)
        good = np.ones(table.num_rows, bool)
        for name, kind in _TYPES.items():
            column = table.column(name)
            fits = (
                pc.match_substring_regex(column, _NUMBER)
                if kind == pa.int64()
                else pc.match_substring_regex(column, r"^\S{1,64}$")
            )
            good &= fits.to_numpy()
        if bad := int(len(good) - good.sum()):
            row = int(np.argmin(good))
            words = b",".join(table.column(name)[row].as_py() for name in _NAMES)
            self.skip(f"not a row of a trace: {words[:100]!r}", bad)
        table = table.filter(pa.array(good))
        return table.cast(pa.schema(_TYPES.items()))

    def _table(self, block: bytes, types: dict[str, Any]) -> pa.Table:
        def other(row: Any) -> str:
            bad.append(str(row.text)[:100] if len(bad) < 1 else "")
            return "skip"

        bad: list[str] = []
        table = csv.read_csv(
            io.BytesIO(block),
            csv.ReadOptions(
                use_threads=False, column_names=_NAMES, block_size=max(len(block), 1) + 1
            ),
            csv.ParseOptions(quote_char=False, invalid_row_handler=other),
            csv.ConvertOptions(column_types=types, null_values=[]),
        )
        if bad:
            self.skip(f"not {len(_NAMES)} fields: {bad[0]!r}", len(bad))
        return table
