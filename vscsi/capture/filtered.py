# SPDX-License-Identifier: MIT
"""A source of which only some commands are kept: by the `Filter` that captures have, by disk."""

from collections.abc import Collection, Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from vscsi.capture.choice import OPERATIONS_OF_BLKIF, Filter
from vscsi.capture.commands import Channel, Disk, Event, Fate, Operation, Source, Troubles
from vscsi.wire.lun import logical_unit_number

Bools = npt.NDArray[np.bool_]


class Filtered:
    """Another source's commands that a filter keeps, to some disks; all else is that source's.

    `outstanding` still counts the commands that are left out: they were under way.
    """

    def __init__(self, source: Source, chosen: Filter, disks: Collection[str] = ()) -> None:
        """disks: as in Disk.name; none: all."""
        self.left_out = 0
        """Commands that were not kept, so far."""
        self._source = source
        self._filter = chosen
        self._names = disks
        self.format: str = source.format
        self.channels: list[Channel] = source.channels
        self.disks: list[Disk] = source.disks
        self.events: list[Event] = source.events
        self.troubles: Troubles = source.troubles

    @property
    def events_dropped(self) -> int:
        """Events that the source could not keep."""
        return self._source.events_dropped

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        """Yield batches of SCHEMA."""
        for batch in self._source:
            kept = self._meets(batch)
            self.left_out += len(kept) - int(kept.sum())
            if kept.all():
                yield batch
            elif kept.any():
                yield batch.filter(pa.array(kept))

    def _meets(self, batch: pa.RecordBatch) -> Bools:
        chosen = self._filter
        kept = np.ones(batch.num_rows, bool)
        if self._names:
            named = np.array([disk.name in self._names for disk in self.disks], bool)
            kept &= named[batch.column("disk").to_numpy()]
        if chosen.luns:
            kept &= self._meets_lun(batch)
        if chosen.opcodes:
            kept &= self._meets_opcode(batch)
        if chosen.lba is not None:
            kept &= _meets_lba(batch, *chosen.lba)
        if chosen.statuses:
            kept &= self._meets_status(batch)
        return kept

    def _meets_lun(self, batch: pa.RecordBatch) -> Bools:
        """By the LUN, or where a ring is one unit, by what the capture says of that."""
        wanted = set(self._filter.luns)
        disks = np.array([_number(disk) in wanted for disk in self.disks], bool)
        units = {f"lun{number}.type" for number in wanted}
        rings = np.array([bool(units & set(dict(c.parameters))) for c in self.channels], bool)
        has_lun = np.array([disk.lun is not None for disk in self.disks], bool)
        disk, channel = (batch.column(name).to_numpy() for name in ("disk", "channel"))
        meets: Bools = np.where(has_lun[disk], disks[disk], rings[channel])
        return meets

    def _meets_opcode(self, batch: pa.RecordBatch) -> Bools:
        """By opcode; rows without a CDB by what they do."""
        opcode = _integers(batch, "opcode", -1)
        action = _integers(batch, "service_action", -1)
        bare = np.asarray(batch.column("cdb").is_null())
        meets = np.zeros(batch.num_rows, bool)
        for code, wanted in self._filter.codes:
            meets |= (opcode == code) & ~bare & ((action == wanted) if wanted is not None else True)
        operation = batch.column("operation").to_numpy()
        words = {word.lower() for word in self._filter.opcodes} & OPERATIONS_OF_BLKIF.keys()
        meets |= bare & np.isin(operation, [Operation[word.upper()] for word in words])
        return meets

    def _meets_status(self, batch: pa.RecordBatch) -> Bools:
        status = _integers(batch, "status", 0)
        answered = batch.column("fate").to_numpy() == Fate.ANSWERED
        meets = np.isin(status, list(self._filter.status_codes))
        return np.where(answered, meets, self._filter.failed)


def _meets_lba(batch: pa.RecordBatch, first: int, last: int) -> Bools:
    column = batch.column("lba")
    lba = column.fill_null(0).to_numpy()
    blocks = np.maximum(batch.column("blocks").fill_null(1).to_numpy(), 1).astype(np.uint64)
    end = lba + (blocks - np.uint64(1))
    end = np.where(end < lba, np.uint64((1 << 64) - 1), end)
    there = ~np.asarray(column.is_null())
    meets: Bools = there & (lba <= np.uint64(last)) & (end >= np.uint64(first))
    return meets


def _integers(batch: pa.RecordBatch, name: str, null: int) -> npt.NDArray[np.int64]:
    column = batch.column(name).cast(pa.int64()).fill_null(null)
    return np.asarray(column.to_numpy(), np.int64)


def _number(disk: Disk) -> int | None:
    return logical_unit_number(disk.lun) if disk.lun is not None and len(disk.lun) == 8 else None
