# SPDX-License-Identifier: MIT
"""A capture as a workload: its reads, writes, flushes and unmaps in order, again and again."""

import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from vscsi.bench.closed_loop import ClosedLoop
from vscsi.capture.commands import Fate, Operation, Source
from vscsi.capture.replay.order import InOrder
from vscsi.domain.base import PAGE_SIZE
from vscsi.transport.initiator import Buffer, Command, Initiator
from vscsi.wire import cdb as cdbs
from vscsi.wire.errors import SetupError
from vscsi.wire.parameters import build_unmap

MAX_COMMANDS = 1 << 20
"""Of a workload: the first ones of a capture."""
MAX_BYTES = 1 << 20
"""That a command moves; longer ones are cut."""
_DEPTH_PERCENT = 99
_MAX_DEPTH = 256
_WRITES = (Operation.WRITE, Operation.UNMAP)

_Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class CapturedWorkload:
    """Commands with addresses of their own, on as many at a time as `depth` says.

    An address is taken modulo the bytes that there are; it and the length are whole blocks of
    whichever unit gets them.
    """

    name: str
    """The capture's."""
    depth: int
    kinds: npt.NDArray[np.uint8] = field(repr=False)
    """`Operation` of each command."""
    offsets: _Ints = field(repr=False)
    lengths: _Ints = field(repr=False)
    """In bytes; 0 of flushes."""
    size_bytes: int = 0
    """That they lie within; 0: not known yet."""
    left_out: int = 0
    """Commands of the capture that are none of these, or too many."""
    rate_per_s: None = None

    @property
    def writes(self) -> bool:
        """Whether it may overwrite anything."""
        return bool(np.isin(self.kinds, _WRITES).any())

    @property
    def block_bytes(self) -> int:
        """Bytes of the longest command, in whole pages: of the buffers."""
        return -(-int(self.lengths.max(initial=1)) // PAGE_SIZE) * PAGE_SIZE

    @property
    def mean_bytes(self) -> float:
        """Bytes that an operation moves, flushes and unmaps included: throughput over rate."""
        return float(self.lengths[self._moving].sum() / len(self.kinds))

    @property
    def mean_length_bytes(self) -> float:
        """Bytes of a read or write; 0 without any."""
        lengths = self.lengths[self._moving]
        return float(lengths.mean()) if len(lengths) else 0.0

    @property
    def _moving(self) -> npt.NDArray[np.bool_]:
        return np.isin(self.kinds, (Operation.READ, Operation.WRITE))

    @property
    def counts(self) -> dict[str, int]:
        """Commands by what they do."""
        found = Counter(self.kinds.tolist())
        return {Operation(kind).name.lower(): count for kind, count in sorted(found.items())}

    @property
    def words(self) -> str:
        """One line for people."""
        mix = ", ".join(f"{count:,} {kind}" for kind, count in self.counts.items())
        length = f"{self.mean_length_bytes:,.0f} bytes a read or write"
        return f"{self.name}: {mix}, {length}, depth {self.depth}"

    def as_json(self) -> dict[str, object]:
        """Return what is known without the commands themselves."""
        return {
            "mode": "capture",
            "capture": self.name,
            "depth": self.depth,
            "commands": self.counts,
            "left_out": self.left_out,
            "mean_bytes": self.mean_length_bytes,
            "size_bytes": self.size_bytes,
        }

    def workload(self, available_bytes: int, where: str) -> "CapturedWorkload":
        """Return it within the bytes that paths have, of which the smallest is `where`."""
        if available_bytes < self.block_bytes:
            raise SetupError("use", where, f"it has {available_bytes} bytes", "name a larger one")
        return replace(self, size_bytes=available_bytes)

    def loop(
        self, name: str, initiator: Initiator, lun: bytes, block_length: int
    ) -> "CapturedLoop":
        """Return the load on a logical unit; DomainError if there is no memory for its buffers."""
        return CapturedLoop(name, initiator, lun, block_length, self)

    def check_blocks(self, block_length: int) -> None:
        """Take blocks of any length: addresses are rounded."""

    def operations(self) -> Iterator[tuple[bool, int]]:
        """Yield (is no read, number of the command), beginning again without end."""
        others = (self.kinds != Operation.READ).tolist()
        while True:
            yield from zip(others, range(len(others)), strict=True)

    def pattern(self) -> bytes:
        """Return what is written: random, so that nothing below can compress it."""
        return random.Random(0).randbytes(self.block_bytes)  # noqa: S311 - no secret

    def span(self, number: int, block_length: int) -> tuple[int, int]:
        """Return LBA and blocks of a command, in a unit's blocks and within the size."""
        blocks = -(-int(self.lengths[number]) // block_length)
        room = self.size_bytes // block_length - blocks
        return min(int(self.offsets[number]) % self.size_bytes // block_length, room), blocks


class CapturedLoop(ClosedLoop):
    """The load of a captured workload; flushes and unmaps count among the writes."""

    workload: CapturedWorkload

    def command(
        self, buffer: Buffer, write: bool, offset: int, done: Callable[[Command], None]
    ) -> Command:
        """Return the command of a number; its data are the first bytes of the buffer."""
        kind = self.workload.kinds[offset]
        if kind == Operation.FLUSH:
            return Command(self.lun, cdbs.build("SYNCHRONIZE CACHE(16)"), done)
        lba, blocks = self.workload.span(offset, self.block_length)
        if kind == Operation.UNMAP:
            ranges = build_unmap([(lba, blocks)])
            buffer.view[: len(ranges)] = ranges
            cdb = cdbs.build("UNMAP", parameter_list_length=len(ranges))
            return Command(self.lun, cdb, done, data_out=(buffer[: len(ranges)],))
        part = (buffer[: blocks * self.block_length],)
        if kind == Operation.READ:
            cdb = cdbs.build("READ(16)", lba=lba, blocks=blocks)
            return Command(self.lun, cdb, done, data_in=part)
        cdb = cdbs.build("WRITE(16)", lba=lba, blocks=blocks)
        return Command(self.lun, cdb, done, data_out=part)


def captured_workload(source: Source, name: str, depth: int | None = None) -> CapturedWorkload:
    """Return the workload that a source's first MAX_COMMANDS commands are.

    depth: None is as many at a time as 99 of 100 commands had, themselves included. SetupError if
    there is nothing to be done.
    """
    pieces: list[tuple[npt.NDArray[np.uint8], _Ints, _Ints, _Ints]] = []
    commands = taken = 0
    for piece in InOrder(source):
        block_bytes = np.array([disk.block_bytes for disk in source.disks], np.int64)
        kinds, offsets, lengths, depths = _columns(piece, block_bytes)
        commands += piece.num_rows
        room = MAX_COMMANDS - taken
        pieces.append((kinds[:room], offsets[:room], lengths[:room], depths[:room]))
        taken += len(pieces[-1][0])
    if not taken:
        raise SetupError(
            "use", name, "it has no reads, writes, flushes or unmaps", "name another capture"
        )
    kinds, offsets, lengths, depths = map(np.concatenate, zip(*pieces, strict=True))
    if depth is None:
        depth = min(int(np.percentile(depths, _DEPTH_PERCENT)) + 1, _MAX_DEPTH)
    return CapturedWorkload(name, depth, kinds, offsets, lengths, left_out=commands - taken)


def _columns(
    rows: pa.RecordBatch, block_bytes: _Ints
) -> tuple[npt.NDArray[np.uint8], _Ints, _Ints, _Ints]:
    """Return kind, offset, length and depth of the rows that are of use."""
    kinds = rows.column("operation").to_numpy()
    unit = block_bytes[rows.column("disk").to_numpy()]
    lba, blocks = (
        rows.column(name).fill_null(0).to_numpy().astype(np.int64) for name in ("lba", "blocks")
    )
    placed = (lba >= 0) & (lba < np.iinfo(np.int64).max // np.maximum(unit, 1)) & (blocks > 0)
    executed = (rows.column("fate").to_numpy() == Fate.ANSWERED) & (
        rows.column("status").fill_null(0).to_numpy() == 0
    )
    flushes = kinds == Operation.FLUSH
    useful = executed & (kinds != Operation.OTHER) & (placed | flushes)
    lengths = np.where(flushes, 0, np.minimum(blocks * unit, MAX_BYTES))
    depths = rows.column("outstanding").to_numpy().astype(np.int64)
    return kinds[useful], (lba * unit)[useful], lengths[useful], depths[useful]
