# SPDX-License-Identifier: MIT
"""CDBs over blkif, as xenvbd did: reads, writes and flushes cross the ring, the rest is local.

A logical unit of our own stands in front of the ring and answers what blkif has no word for
(INQUIRY, READ CAPACITY, MODE SENSE, ...), from what the backend publishes. It also refuses what
cannot cross: so every refusal has the sense that the embedded target would give.
"""

import errno
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

from vscsi.domain.base import PAGE_SIZE, DomainError, StoreError
from vscsi.domain.xenbus import Reader
from vscsi.ring import Store as NativeStore
from vscsi.target.base import Attribute, Nexus, ServiceResponse, Status
from vscsi.target.buffers import gather, scatter, slice_views
from vscsi.target.disk import Disk
from vscsi.target.router import TaskRouter
from vscsi.transport.blkif.frontend import MAX_SECTORS, BlkifRing, BlkRequest, status_of
from vscsi.transport.call import CallInitiator
from vscsi.transport.gate import Gate
from vscsi.transport.initiator import (
    Buffer,
    Command,
    ManagementCommand,
    TransportError,
    page_pieces,
)
from vscsi.transport.load import Template
from vscsi.wire import cdb as cdbs
from vscsi.wire.blkif import SECTOR_SIZE, Operation, RspStatus, Segment
from vscsi.wire.c_header import offsets
from vscsi.wire.errors import WireError
from vscsi.wire.lun import logical_unit_number
from vscsi.wire.parameters import parse_unmap
from vscsi.wire.sense import Sense, SenseKey

READS = frozenset({"READ(6)", "READ(10)", "READ(12)", "READ(16)"})
WRITES = frozenset({"WRITE(6)", "WRITE(10)", "WRITE(12)", "WRITE(16)"})
FLUSHES = frozenset({"SYNCHRONIZE CACHE(10)", "SYNCHRONIZE CACHE(16)"})
LOCAL = frozenset(
    {
        "INQUIRY",
        "MODE SENSE(6)",
        "MODE SENSE(10)",
        "READ CAPACITY(10)",
        "READ CAPACITY(16)",
        "REPORT LUNS",
        "REPORT SUPPORTED OPERATION CODES",
        "REQUEST SENSE",
        "TEST UNIT READY",
    }
)
CARRIED = READS | WRITES | FLUSHES | LOCAL | {"UNMAP"}
READ_ERROR = Sense(SenseKey.MEDIUM_ERROR, 0x11, 0x00)
NOT_SUPPORTED = Sense(SenseKey.ILLEGAL_REQUEST, 0x20, 0x00)
MAX_UNMAP_RANGES = 256
WRITE_ERROR = Sense(SenseKey.MEDIUM_ERROR, 0x0C, 0x00)
STAGED_BYTES = 128 << 10
"""Bytes of one piece of an unaligned transfer: what is staged at a time."""
GREF_BYTES = 4
NEXUS = Nexus("blkif", "blkif")

Outcome = RspStatus | TransportError
"""What a request came to: the answer's status, or why there was none."""


class RingStore:
    """The vbd as the local logical unit sees it: a size. Data never goes this way."""

    alignment = SECTOR_SIZE
    staged_bytes = 0
    native: NativeStore | None = None

    def __init__(self, size_bytes: int, *, readonly: bool, can_discard: bool) -> None:
        self.size_bytes = size_bytes
        self.readonly = readonly
        self.can_discard = can_discard

    def readv(self, offset: int, views: Sequence[memoryview]) -> None:
        """Refuse, unless it is for nothing."""
        if any(map(len, views)):
            raise OSError(errno.EOPNOTSUPP, "data crosses the ring")

    def writev(self, offset: int, views: Sequence[memoryview]) -> None:
        """Refuse, unless it is for nothing."""
        self.readv(offset, views)

    def flush(self) -> None:
        """Do nothing."""

    def discard(self, offset: int, length: int) -> None:
        """Refuse."""
        raise OSError(errno.EOPNOTSUPP, "data crosses the ring")

    def close(self) -> None:
        """Do nothing."""


class BlkifUnit(Disk):
    """The local logical unit: only what CDBs over blkif can do."""

    maximum_unmap_descriptors = MAX_UNMAP_RANGES

    def __init__(self, store: RingStore, *, block_size: int, identity: str) -> None:
        super().__init__(store, block_size=block_size, identity=identity, product="VBD")
        self.commands = {row: entry for row, entry in self.commands.items() if row.name in CARRIED}


class BlkifInitiator(BlkifRing):
    """An `Initiator` of one disk, LUN 0, whose data crosses a blkif ring.

    blkif has no task attributes and no task management: ORDERED is kept by letting the ring run
    empty before and after, HEAD OF QUEUE by going first; functions are answered NOT SUPPORTED.
    """

    def begin(self) -> None:
        """Stand the local logical unit in front of the ring."""
        super().begin()
        if self._first is not self:
            return  # a further ring of a disk that has its unit
        disk = self.disk
        router = TaskRouter()
        store = RingStore(disk.size_bytes, readonly=disk.readonly, can_discard=disk.discard)
        self._unit = BlkifUnit(store, block_size=disk.block_size, identity=self.identity)
        router.add(0, self._unit)
        self._local = CallInitiator(router, NEXUS)
        self._gate = Gate()
        self.guest.store.watch(f"{self._device.backend_path}/sectors", self._look_at_size)

    def _look_at_size(self, _path: str) -> None:
        """Take over the size that the backend publishes, if it has changed."""
        try:
            backend = Reader(self.guest.store, self._device.backend_path)
            size_bytes = backend.number("sectors", high=MAX_SECTORS) * SECTOR_SIZE
        except (WireError, StoreError, DomainError):
            return  # the device is on its way out, or its backend talks nonsense: nothing changed
        if size_bytes != self.disk.size_bytes:
            self.disk = replace(self.disk, size_bytes=size_bytes)
            self._unit.store.size_bytes = size_bytes
            self._unit.resize()

    def submit(self, command: Command) -> None:
        """Start a command."""
        self.check_usable()
        self.statistics.commands += 1
        try:
            begin = self._plan(command)
        except WireError:  # a CDB or parameter list that the local unit has to refuse
            begin = None
        if begin is None:
            self._local.submit(command)
        else:
            self._gate.enter(command, begin)

    def manage(self, request: ManagementCommand) -> None:
        """Answer that there is no task management."""
        request.response = ServiceResponse.NOT_SUPPORTED
        request.done(request)

    def _plan(self, command: Command) -> Callable[[], None] | None:
        """Return what starts a command on the ring, None if it is the local unit's."""
        cdb = cdbs.decode(command.cdb)
        name = cdb.row.name
        disk = self.disk
        end = (cdb.lba + cdb.blocks) * disk.block_size
        if logical_unit_number(command.lun) != 0 or cdb.naca or cdb.protect:
            return None
        if end > disk.size_bytes or command.attribute is Attribute.ACA:
            return None
        if self._unit.attentions.pending(NEXUS):
            return None  # which reports it
        if name in READS | WRITES and cdb.blocks > self._unit.maximum_transfer_blocks:
            return None
        wanted = cdb.blocks * disk.block_size
        sector = cdb.lba * disk.block_size // SECTOR_SIZE
        if name in READS and wanted and command.data_in_length:
            return partial(self._read, command, sector, wanted)
        if disk.readonly:
            return None
        if name in WRITES and wanted and command.data_out_length >= wanted:
            return partial(self._write, command, sector, wanted, cdb.fua)
        if name in FLUSHES and (disk.flush or disk.barrier):
            return partial(self._synchronize, command)
        if name == "UNMAP" and disk.discard and not cdb.field("anchor"):
            return self._plan_unmap(command, cdb.parameter_list_length)
        return None

    # Transfers

    def _read(self, command: Command, sector: int, wanted: int) -> None:
        command.residual = command.data_in_length - wanted
        moved = min(wanted, command.data_in_length)
        transfer = Transfer(self, command, Operation.READ, sector, command.data_in, moved)
        transfer.start(partial(self._end, command, READ_ERROR))

    def _write(self, command: Command, sector: int, wanted: int, fua: bool) -> None:
        command.residual = command.data_out_length - wanted
        transfer = Transfer(self, command, Operation.WRITE, sector, command.data_out, wanted)
        transfer.start(partial(self._written, command, fua))

    def _written(self, command: Command, fua: bool, outcome: Outcome) -> None:
        """FUA: blkif has no such bit, so a flush follows the write (as blkfront has it)."""
        if fua and outcome is RspStatus.OKAY and (self.disk.flush or self.disk.barrier):
            self._flush(command)
        else:
            self._end(command, WRITE_ERROR, outcome)

    def _synchronize(self, command: Command) -> None:
        command.residual = command.data_in_length or command.data_out_length
        self._flush(command)

    def _flush(self, command: Command) -> None:
        operation = Operation.FLUSH_DISKCACHE if self.disk.flush else Operation.WRITE_BARRIER
        self.request(BlkRequest(operation, partial(self._end, command, WRITE_ERROR)))

    def _plan_unmap(self, command: Command, length: int) -> Callable[[], None] | None:
        if not 0 < length <= command.data_out_length:
            return None
        block = self.disk.block_size
        ranges = parse_unmap(gather([each.view for each in command.data_out], length))
        fits = all((lba + blocks) * block <= self.disk.size_bytes for lba, blocks in ranges)
        if not fits or len(ranges) > MAX_UNMAP_RANGES or not any(blocks for _, blocks in ranges):
            return None
        command.residual = command.data_out_length - length
        return partial(self._unmap, command, [each for each in ranges if each[1]])

    def _unmap(self, command: Command, ranges: list[tuple[int, int]]) -> None:
        per_block = self.disk.block_size // SECTOR_SIZE
        join = Join(len(ranges), partial(self._end, command, WRITE_ERROR))
        for lba, blocks in ranges:
            self.request(
                BlkRequest(
                    Operation.DISCARD,
                    join.done,
                    sector=lba * per_block,
                    sectors=blocks * per_block,
                )
            )

    def request(self, request: BlkRequest) -> None:
        """Put a request on the shortest ring; what the channel refuses is done with the error."""
        queue = min(self.queues, key=lambda each: each.load)
        try:
            queue.enqueue([request])
        except TransportError as error:
            request.done(error)

    def _end(self, command: Command, failed: Sense, outcome: Outcome) -> None:
        """End a command with what its last request came to."""
        self._settle(command, failed, outcome)
        self._gate.leave(command)
        command.done(command)

    def _settle(self, command: Command, failed: Sense, outcome: Outcome) -> None:
        if isinstance(outcome, TransportError):
            command.error = outcome
        elif outcome is not RspStatus.OKAY:
            sense = NOT_SUPPORTED if outcome is RspStatus.EOPNOTSUPP else failed
            command.status = Status.CHECK_CONDITION
            command.sense = sense.build()
            command.residual = command.data_in_length + command.data_out_length

    # A load

    def template(self, tag: int, command: Command) -> Template:
        """Return the one request of a READ or WRITE without staging."""
        buffers = command.data_out or command.data_in
        operation = Operation.WRITE if command.data_out else Operation.READ
        request = BlkRequest(operation, lambda _outcome: None, pieces=page_pieces(buffers))
        edges = (edge for buffer in buffers for edge in (buffer.address, len(buffer)))
        if (
            any(edge % self.disk.block_size for edge in edges)
            or len(request.pieces) > self.max_segments
            or self.slots(request) > 1
        ):
            raise TransportError("a command takes more than one request")
        if logical_unit_number(command.lun) != 0 or (command.data_out and self.disk.readonly):
            raise TransportError("the local logical unit refuses the commands")
        (slot,) = self.slots_for(tag, request)
        references = tuple(request.references)
        formats = self.layout.formats
        used = offsets(formats.rw)["segments"] + Segment.sizeof() * len(request.pieces)
        if request.frames:
            used = offsets(formats.indirect)["indirect_grefs"] + GREF_BYTES * len(request.frames)
        return Template(slot[:used], references, partial(self.give_back, request))

    def judge(self, command: Command, slot: bytes) -> None:
        """Set a command's outcome from a response."""
        failed = WRITE_ERROR if command.data_out else READ_ERROR
        self._settle(command, failed, status_of(self.layout.parse_response(slot)))


class Join:
    """Several requests of one command: `then` gets the worst outcome when all are done."""

    def __init__(self, count: int, then: Callable[[Outcome], None]) -> None:
        self._count = count
        self._then = then
        self._worst: Outcome = RspStatus.OKAY
        self._lock = threading.Lock()

    def done(self, outcome: Outcome) -> None:
        """One of the requests is done."""
        with self._lock:
            if isinstance(outcome, TransportError):
                self._worst = outcome
            elif not isinstance(self._worst, TransportError):
                self._worst = min(self._worst, outcome)
            self._count -= 1
            last = not self._count
        if last:
            self._then(self._worst)


class Transfer:
    """A command's data as requests: straight from its buffers, or staged where they do not lie on
    blocks, one piece after the other (xen-blkback wants whole blocks in each segment).
    """

    def __init__(
        self,
        path: BlkifInitiator,
        command: Command,
        operation: Operation,
        sector: int,
        buffers: Sequence[Buffer],
        length: int,
    ) -> None:
        """Move `length` bytes; of the last block a read takes only what the buffers hold."""
        self._path = path
        self._block_size = path.disk.block_size
        self._command = command
        self._operation = operation
        self._sector = sector
        self._buffers = buffers
        self._length = length

    def start(self, then: Callable[[Outcome], None]) -> None:
        """Send the requests; `then` is called with the worst outcome."""
        edges = (edge for buffer in self._buffers for edge in (buffer.address, len(buffer)))
        if any(edge % self._block_size for edge in (self._length, *edges)):
            self._stage(0, then)
            return
        pieces = page_pieces(first_bytes(self._buffers, self._length))
        most = self._path.max_segments
        parts = [pieces[at : at + most] for at in range(0, len(pieces), most)]
        join = Join(len(parts), then)
        sector = self._sector
        for part in parts:
            self._path.request(BlkRequest(self._operation, join.done, sector, part))
            sector += sum(length for _, length in part) // SECTOR_SIZE

    def _stage(self, offset: int, then: Callable[[Outcome], None]) -> None:
        length = min(self._length - offset, self._path.max_segments * PAGE_SIZE, STAGED_BYTES)
        try:
            staging = self._path.alloc(-(-length // self._block_size) * self._block_size)
        except DomainError as error:
            then(TransportError(str(error)))
            return
        views = [buffer.view for buffer in self._buffers]
        if self._operation is Operation.WRITE:
            staging.view[:length] = gather(slice_views(views, offset, length), length)
        self._path.statistics.staged_bytes += length

        def done(outcome: Outcome) -> None:
            if self._operation is Operation.READ and outcome is RspStatus.OKAY:
                scatter(bytes(staging.view[:length]), slice_views(views, offset, length))
            self._path.free(staging)
            if outcome is not RspStatus.OKAY or offset + length >= self._length:
                then(outcome)
            else:
                self._stage(offset + length, then)

        sector = self._sector + offset // SECTOR_SIZE
        self._path.request(BlkRequest(self._operation, done, sector, page_pieces([staging])))


def first_bytes(buffers: Sequence[Buffer], length: int) -> Iterator[Buffer]:
    """Yield the first `length` bytes of buffers."""
    for buffer in buffers:
        part = buffer[: min(length, len(buffer))]
        length -= len(part)
        if len(part):
            yield part
