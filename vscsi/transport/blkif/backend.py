# SPDX-License-Identifier: MIT
"""The backend end of blkif: what xen-blkback does, on the store of a disk."""

import errno
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from construct import Container

from vscsi.domain.base import PAGE_SIZE
from vscsi.domain.negotiate import (
    MAX_SEGMENTS,
    Limits,
    accept_protocol,
    accept_rings,
    ring_keys,
)
from vscsi.domain.xenbus import Keys, Reader
from vscsi.ring import RingEnd, Service
from vscsi.target.disk import Disk
from vscsi.transport.backend import Connection, Peer, RingBackend
from vscsi.transport.tally import Asked, Ended
from vscsi.transport.tap import RingPath, TapSwitch
from vscsi.wire.blkif import (
    LAYOUTS,
    NATIVE,
    SECTOR_SIZE,
    SEGMENTS,
    SEGMENTS_PER_INDIRECT_PAGE,
    X86_32,
    Layout,
    Operation,
    RspStatus,
    Segment,
    parse_segments,
    slots_of,
)
from vscsi.wire.errors import WireError
from vscsi.wire.record import LayoutCode, Protocol

MAX_INDIRECT_SEGMENTS = 256
"""feature-max-indirect-segments: 1 MiB a request, as Linux' backend."""
MAX_RING_ORDER = 4
OFFERED = Limits(requests=512, segments=MAX_SEGMENTS, size_bytes=MAX_SEGMENTS * PAGE_SIZE)
"""FreeBSD's 2010 keys; frontends that do not know them have the protocol's limits."""
VDISK_READONLY = 4
NATIVE_ADDRESS = bytes(8)
"""Where the C path has a vbd's disk."""
LAST_SECTOR_OF_PAGE = PAGE_SIZE // SECTOR_SIZE - 1


@dataclass(slots=True)
class Gathering:
    """A request of FreeBSD's 2010 extension whose segment blocks have not all come yet."""

    request: Container
    slot: bytes
    missing: int
    """Segment blocks."""
    taken_ns: int


class BlkifBackend(RingBackend):
    """A queue of a vbd: reads and writes of a disk's store, in the order in which they come.

    The disk is the one that the SCSI paths serve: its write protection, its write cache
    setting and its atomic commands hold here too. Requests are executed by the ring's own thread,
    one after the other, so a barrier has nothing to wait for.
    """

    kind: ClassVar[str] = "vbd"

    def __init__(
        self,
        peer: Peer,
        device: int,
        tap: TapSwitch,
        disk: Disk,
        default_layout: Layout = NATIVE,
        *,
        queue: int = 0,
    ) -> None:
        """default_layout is what a frontend means that does not say (io/blkif.h: ours)."""
        super().__init__(peer, device, tap, queue)
        self.disk = disk
        self.store = disk.store
        self.block_size = disk.block_size
        self._default_layout = default_layout
        self._layout = default_layout
        self._max_segments = SEGMENTS
        self._gathering: Gathering | None = None
        self._read_data = b""
        """What the tap wants of what the request at hand has read."""

    def features(self) -> Keys:
        """Return what is published before InitWait."""
        keys = {
            **ring_keys(MAX_RING_ORDER),
            **OFFERED.keys(),
            "feature-max-indirect-segments": str(MAX_INDIRECT_SEGMENTS),
            "feature-flush-cache": "1",
            "feature-barrier": "1",
            "feature-discard": "0",
        }
        if self.store.can_discard and not self.store.readonly:
            keys |= {
                "feature-discard": "1",
                "discard-granularity": str(self.block_size),
                "discard-alignment": "0",
            }
        return keys

    def attach(self, frontend: Reader) -> tuple[Connection, Keys]:
        """Map the ring in the layout that the frontend speaks."""
        self._layout = LAYOUTS[
            accept_protocol(frontend, self._default_layout.protocol, tuple(LAYOUTS))
        ]
        (references,) = accept_rings(frontend, MAX_RING_ORDER)
        limits = Limits.accept(frontend, OFFERED, OFFERED.requests)
        self._max_segments = limits.segments if self._layout.segment_blocks else SEGMENTS
        self._gathering = None
        packed = self._layout is X86_32
        ring, service = self.open_ring(
            frontend,
            [references],
            RingEnd.back,
            self._layout.slot_size,
            "blkif32" if packed else "blkif64",
        )
        if self.disk.native is not None:
            service.put_unit(NATIVE_ADDRESS, self.disk.native, self.counts.blkif(self.disk).tally)
            service.set_attention(NATIVE_ADDRESS, False)  # SCSI's unit attentions are not for here
        path = RingPath(
            Protocol.BLKIF,
            self.peer.domain,
            self.device,
            queue=self.queue,
            layout=LayoutCode.X86_32 if packed else LayoutCode.X86_64,
            parameters=(
                ("ring-pages", str(len(references))),
                ("protocol", self._layout.protocol),
                ("block-size", str(self.block_size)),
            ),
        )
        return Connection(ring, service, path), self.geometry()

    def geometry(self) -> dict[str, str]:
        """Return what is published of the disk's size; it may change while Connected."""
        return {
            "sectors": str(self.store.size_bytes // SECTOR_SIZE),
            "sector-size": str(self.block_size),
            "physical-sector-size": str(self.block_size),
            "info": str(VDISK_READONLY if self.store.readonly else 0),
        }

    def prepare_native(self, service: Service) -> bool:
        """Keep the C path from taking segment blocks for requests."""
        return self._gathering is None

    def message(self, slot: bytes) -> None:
        """Handle one slot: a request, or a segment block of the one before."""
        gathering = self._gathering
        if gathering is None:
            request = self._layout.parse_request(slot)
            missing = 0
            if request.operation <= Operation.FLUSH_DISKCACHE and self._max_segments > SEGMENTS:
                missing = slots_of(request.nr_segments) - 1
            connection = self.connection
            taken_ns = connection.service.taken_ns if connection is not None else 0
            gathering = Gathering(request, slot, missing, taken_ns)
        else:
            gathering.request.segments.extend(self._layout.parse_segment_block(slot))
            gathering.slot += slot
            gathering.missing -= 1
        self._gathering = gathering if gathering.missing else None
        if not gathering.missing:
            self._request(gathering.request, gathering.slot, gathering.taken_ns)

    def _request(self, request: Container, slot: bytes, taken_ns: int) -> None:
        operation, length, self._read_data = request.operation, 0, b""
        perform = self._operations.get(operation)
        try:
            descriptors = self._shown(request, slot)
            if perform is None:
                status = RspStatus.EOPNOTSUPP
            else:
                length = perform(self, request, descriptors)
                status = RspStatus.OKAY
        except WireError:
            self.statistics.wire_errors += 1
            status = RspStatus.ERROR
        except OSError as error:
            unsupported = error.errno == errno.EOPNOTSUPP
            status = RspStatus.EOPNOTSUPP if unsupported else RspStatus.ERROR
        if operation == Operation.INDIRECT:  # Linux' frontend disables a disk that answers 6
            operation = request.indirect_op
        response = self._layout.build_response(
            id=request.id, operation=operation, status=int(status)
        )
        counts = self.counts.blkif(self.disk)
        asked = Asked(self.disk, counts, counts.row(operation), taken_ns)
        failure = None if status is RspStatus.OKAY else (status.name, "")
        ended = Ended(asked, length, failure)
        slots = len(slot) // self._layout.slot_size
        self.answer(response, slots=slots, ended=ended, data=self._read_data)

    def _shown(self, request: Container, slot: bytes) -> bytes:
        """Show a request to the tap; return its indirect descriptors, copied once."""
        descriptors = b""
        try:
            if request.operation == Operation.INDIRECT:
                descriptors = self._copy_indirect(request)
        finally:
            self.show_request(slot, descriptors)
        return descriptors

    # Operations. Each returns the bytes that it moved, and raises WireError for a bad request,
    # OSError for what the store says.

    def _read_write(self, request: Container, _descriptors: bytes) -> int:
        count = request.nr_segments
        flushes = request.operation in (Operation.WRITE_BARRIER, Operation.FLUSH_DISKCACHE)
        if count > self._max_segments or not (count or flushes):
            raise WireError(f"{count} segments")
        segments = request.segments[:count]
        return self._transfer(request.operation, request.sector_number, segments)

    def _indirect(self, request: Container, descriptors: bytes) -> int:
        if request.indirect_op not in (Operation.READ, Operation.WRITE):
            raise WireError(f"indirect operation {request.indirect_op}")
        segments = parse_segments(descriptors)
        return self._transfer(request.indirect_op, request.sector_number, segments)

    def _discard(self, request: Container, _descriptors: bytes) -> int:
        offset, length = self._range(request.sector_number, request.nr_sectors)
        self._check_writable()
        with self.disk.writing.shared():
            self.store.discard(offset, length)
        if not self.disk.write_cache_enabled:
            self.store.flush()
        return 0

    def _transfer(self, operation: int, sector: int, segments: list[Container]) -> int:
        if not segments:
            self.store.flush()
            return 0
        writes = operation != Operation.READ
        if writes:
            self._check_writable()
        views_of = [(segment.first_sect, segment.last_sect) for segment in segments]
        if any(not first <= last <= LAST_SECTOR_OF_PAGE for first, last in views_of):
            raise WireError("a segment's sectors are not within its page")
        offset, length = self._range(sector, sum(last - first + 1 for first, last in views_of))
        mapping = self.peer.grants.map([segment.gref for segment in segments], readonly=writes)
        try:
            views = [
                page[first * SECTOR_SIZE : (last + 1) * SECTOR_SIZE]
                for page, (first, last) in zip(mapping.pages, views_of, strict=True)
            ]
            # Frontends without barriers send a write that must be durable as a flush with data.
            durable = operation in (Operation.WRITE_BARRIER, Operation.FLUSH_DISKCACHE)
            if durable:
                self.store.flush()
            if writes:
                self.show_data(views)
                with self.disk.writing.shared():
                    self.store.writev(offset, views)
            else:
                self.store.readv(offset, views)
                self._read_data = self._ring_tap.data(views, length)
            if durable or (writes and not self.disk.write_cache_enabled):
                self.store.flush()
        finally:
            mapping.unmap()
        return length

    def _copy_indirect(self, request: Container) -> bytes:
        """Return the segment descriptors of the indirect pages, copied once."""
        count = request.nr_segments
        if not 0 < count <= MAX_INDIRECT_SEGMENTS:
            raise WireError(f"{count} indirect segments")
        pages = -(-count // SEGMENTS_PER_INDIRECT_PAGE)
        mapping = self.peer.grants.map(list(request.indirect_grefs[:pages]), readonly=True)
        try:
            return b"".join(bytes(page) for page in mapping.pages)[: count * Segment.sizeof()]
        finally:
            mapping.unmap()

    def _check_writable(self) -> None:
        if self.disk.write_protected:
            raise WireError("a write to a read-only disk")

    def _range(self, sector: int, sectors: int) -> tuple[int, int]:
        """Return offset and length in bytes; WireError beyond the end or off the block size."""
        offset, length = sector * SECTOR_SIZE, sectors * SECTOR_SIZE
        if offset + length > self.store.size_bytes or (offset | length) % self.block_size:
            raise WireError(f"{sectors} sectors at {sector}")
        return offset, length

    _operations: ClassVar[dict[int, Callable[["BlkifBackend", Container, bytes], int]]] = {
        Operation.READ: _read_write,
        Operation.WRITE: _read_write,
        Operation.WRITE_BARRIER: _read_write,
        Operation.FLUSH_DISKCACHE: _read_write,
        Operation.DISCARD: _discard,
        Operation.INDIRECT: _indirect,
    }
