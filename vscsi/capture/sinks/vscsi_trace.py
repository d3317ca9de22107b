# SPDX-License-Identifier: MIT
"""CloudPhysics' .vscsi traces, version 2, of one disk.

Tags, CDBs beyond the opcode, statuses, sense, FUA and fractions of microseconds are lost. Commands
of a block layer get the opcode that a disk would have got.
"""

from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from vscsi.capture.commands import SECTOR_BYTES, Fate, Operation, Source
from vscsi.capture.sinks import Written
from vscsi.capture.sources.complete import InOrder
from vscsi.capture.sources.vscsi_trace import MAX_LBN, RECORDS
from vscsi.wire.cdb import named

NAME = "CloudPhysics .vscsi trace, version 2"
_VERSION = 2
_US_NS = 1000
_OPCODES = {
    Operation.READ: ("READ(10)", "READ(16)"),
    Operation.WRITE: ("WRITE(10)", "WRITE(16)"),
    Operation.FLUSH: ("SYNCHRONIZE CACHE(10)", "SYNCHRONIZE CACHE(16)"),
    Operation.UNMAP: ("UNMAP", "UNMAP"),
}
"""For commands without an opcode of SCSI: up to 32 bits of address, and beyond."""
_NO_OPCODE = 0x100


def busiest(source: Source) -> int | None:
    """Return the disk with the most commands that ended; None without any. Reads the source."""
    counts = np.zeros(0, np.int64)
    for batch in source:
        found = np.bincount(batch.column("disk").to_numpy()[_ended(batch)])
        if len(found) > len(counts):
            counts, found = found, counts
        counts[: len(found)] += found
    return int(np.argmax(counts)) if len(counts) else None


def write(source: Source, output: IO[bytes], disk: int | None = None) -> Written:
    """Write the commands of a source's disk, None: the first, in the order of their sending."""
    sink = _Sink(source, output, disk)
    order = InOrder()
    for batch in source:
        for ready in order.add(batch):
            sink.add(ready)
    for ready in order.rest():
        sink.add(ready)
    note = ""
    if sink.disk is not None and len(sink.others):
        of = f"of {len(sink.others) + 1} disks the {'busiest' if disk is not None else 'first'} one"
        note = f"{source.disks[sink.disk].name} was written, {of}: the format has one"
    return Written(sink.commands, sink.left_out, sink.why, note)


class _Sink:
    def __init__(self, source: Source, output: IO[bytes], disk: int | None) -> None:
        self._source = source
        self._output = output
        self.disk = disk
        self.others: set[int] = set()
        """Disks that are left out."""
        self.commands = 0
        self.left_out = 0
        self.why = ""

    def add(self, batch: pa.RecordBatch) -> None:
        disk = batch.column("disk").to_numpy()
        opcode = self._opcodes(batch)
        ended = _ended(batch)
        if self.disk is None and ended.any():
            self.disk = int(disk[np.argmax(ended)])
        self.others.update(np.unique(disk[ended & (disk != self.disk)]).tolist())
        block_bytes = 1 if self.disk is None else self._source.disks[self.disk].block_bytes
        lba, blocks = _numbers(batch, "lba"), _numbers(batch, "blocks").astype(np.uint64)
        length = blocks * np.uint64(block_bytes)
        moved = batch.column("data_out").to_numpy() + batch.column("data_in").to_numpy()
        nowhere = batch.column("lba").is_null().to_numpy(zero_copy_only=False)
        length[nowhere] = moved[nowhere].astype(np.uint64)
        time_ns = batch.column("time_ns").to_numpy()
        reasons = {
            "no answer": ~ended,
            "of another disk": disk != self.disk,
            "no SCSI opcode": opcode == _NO_OPCODE,
            "longer than the 4 GiB that a record can say": length >> np.uint64(32) > 0,
            "an address beyond 16 EiB": lba >= np.uint64(MAX_LBN * SECTOR_BYTES // block_bytes),
            "a time before the clock's start": time_ns < 0,
        }
        good = np.ones(batch.num_rows, bool)
        for why, bad in reasons.items():
            if not self.why and bad.any():
                self.why = why
            good &= ~bad
        records = np.zeros(int(np.count_nonzero(good)), RECORDS[_VERSION])
        records["cmd"] = opcode[good]
        records["ver"] = _VERSION << 8
        records["sn"] = np.arange(self.commands, self.commands + len(records)) & 0xFFFFFFFF
        records["len"] = length[good]
        records["lbn"] = lba[good] * np.uint64(block_bytes) // np.uint64(SECTOR_BYTES)
        records["ts"] = time_ns[good] // _US_NS
        records["rt"] = _numbers(batch, "latency_ns")[good] // _US_NS
        self._output.write(records.tobytes())
        self.commands += len(records)
        self.left_out += batch.num_rows - len(records)

    def _opcodes(self, batch: pa.RecordBatch) -> npt.NDArray[np.uint16]:
        """Return each command's SCSI opcode, or _NO_OPCODE."""
        foreign = [channel.protocol in ("blkif", "block") for channel in self._source.channels]
        own = batch.column("opcode").is_valid().to_numpy(zero_copy_only=False)
        own &= ~np.array(foreign)[batch.column("channel").to_numpy()]
        table = np.full((2, len(Operation)), _NO_OPCODE, np.uint16)
        for operation, names in _OPCODES.items():
            table[:, operation] = [named(name).opcode for name in names]
        far = (_numbers(batch, "lba") >> np.uint64(32) > 0).astype(np.intp)
        made = table[far, batch.column("operation").to_numpy()]
        opcodes: npt.NDArray[np.uint16] = np.where(own, _numbers(batch, "opcode"), made)
        return opcodes


def _ended(batch: pa.RecordBatch) -> npt.NDArray[np.bool_]:
    fate = batch.column("fate").to_numpy()
    ended: npt.NDArray[np.bool_] = (fate == Fate.ANSWERED) | (fate == Fate.FAILED)
    return ended


def _numbers(batch: pa.RecordBatch, name: str) -> npt.NDArray[Any]:
    """Return a column with 0 for null."""
    numbers: npt.NDArray[Any] = batch.column(name).fill_null(0).to_numpy()
    return numbers
