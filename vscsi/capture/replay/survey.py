# SPDX-License-Identifier: MIT
"""What a capture would do to a disk, before any of it is done: a first reading, of columns."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vscsi.capture.commands import Disk, Fate, Operation, Source
from vscsi.capture.replay.translate import may_change

PLACE_BYTES = 64 << 10
MAX_PLACES = 1 << 14
"""Places of a disk that are kept: a GiB of them."""


@dataclass(slots=True)
class Touched:
    """What one disk's commands touch."""

    commands: int = 0
    end: int = 0
    """The block behind the last one of those that were executed."""
    changing: int = 0
    """Commands that may change it."""
    places: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64))
    """Blocks that writes begin or end at, one of each PLACE_BYTES; MAX_PLACES at most."""

    def note_places(self, lbas: np.ndarray, block_bytes: int) -> None:
        """Keep one block of each place; where there are too many, every second."""
        found = np.concatenate([self.places, lbas])
        _, first = np.unique(found // np.uint64(max(PLACE_BYTES // block_bytes, 1)), True)
        self.places = found[first]
        while len(self.places) > MAX_PLACES:
            self.places = self.places[::2]


@dataclass(slots=True)
class Survey:
    """What a capture has."""

    commands: int = 0
    disks: dict[int, Touched] = field(default_factory=dict)
    """By index into"""
    names: list[Disk] = field(default_factory=list)
    """Source.disks, at the end."""


def survey(
    source: Source,
    chosen: Callable[[Disk], bool] = lambda _disk: True,
    progress: Callable[[int], None] = lambda _commands: None,
) -> Survey:
    """Read a source to its end. Memory is bounded; progress is told how many commands were read."""
    found = Survey()
    for batch in source:
        found.commands += batch.num_rows
        for value in pc.unique(batch.column("disk")).to_pylist():
            if 0 <= value < len(source.disks) and chosen(source.disks[value]):
                mine = batch.filter(pc.equal(batch.column("disk"), value))
                _note(found.disks.setdefault(value, Touched()), mine, source.disks[value])
        progress(found.commands)
    found.names = source.disks
    return found


def _note(touched: Touched, batch: pa.RecordBatch, disk: Disk) -> None:
    touched.commands += batch.num_rows
    kinds = ("operation", "opcode", "service_action")
    counts = (
        pa.table({name: batch.column(name) for name in kinds})
        .group_by(kinds)
        .aggregate([([], "count_all")])
    )
    for kind in counts.to_pylist():
        if may_change(*(kind[name] for name in kinds)):
            touched.changing += kind["count_all"]
    lba = batch.column("lba").fill_null(0).to_numpy(zero_copy_only=False).astype(np.uint64)
    blocks = batch.column("blocks").fill_null(0).to_numpy(zero_copy_only=False).astype(np.uint64)
    status = batch.column("status").fill_null(0).to_numpy(zero_copy_only=False)
    fate = batch.column("fate").to_numpy()
    operation = batch.column("operation").to_numpy()
    executed = (status == 0) & (fate == Fate.ANSWERED)
    moving = executed & ((operation == Operation.READ) | (operation == Operation.WRITE))
    moving |= executed & (operation == Operation.UNMAP)
    if moving.any():
        touched.end = max(touched.end, int((lba + blocks)[moving].max()))
    writes = (operation == Operation.WRITE) | (operation == Operation.UNMAP)
    if writes.any():
        ends = lba[writes] + np.maximum(blocks[writes], 1) - 1
        touched.note_places(np.concatenate([lba[writes], ends]), disk.block_bytes)
