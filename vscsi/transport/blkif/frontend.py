# SPDX-License-Identifier: MIT
"""The frontend end of blkif: requests on the ring, and which layout the backend speaks."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import ClassVar

from construct import Container

from vscsi.domain.base import PAGE_SIZE
from vscsi.domain.local import BACKEND_DOMAIN
from vscsi.domain.memory import OutOfMemoryError
from vscsi.domain.negotiate import (
    DEFAULT_SEGMENTS,
    RING_REF,
    Limits,
    choose_rings,
    feature,
)
from vscsi.domain.xenbus import Keys, Reader
from vscsi.ring import RingEnd
from vscsi.transport.frontend import CONNECT_TIMEOUT_S, RingInitiator
from vscsi.transport.initiator import TransportError
from vscsi.transport.load import Completion
from vscsi.wire.blkif import (
    BLOCK_SEGMENTS,
    LAYOUTS,
    SECTOR_SIZE,
    SEGMENTS,
    X86_32,
    X86_64,
    Layout,
    Operation,
    RspStatus,
    build_segments,
    slots_of,
)
from vscsi.wire.errors import WireError

FIRST_VBD = 51712
"""The virtual device number of xvda; the next disk's is 16 more."""
RING_ORDER = 1
"""Two pages: 64 slots, as the SRP rings have."""
MAX_SEGMENTS = 256
"""Segments of an indirect request that we ask for at most (1 MiB)."""
MAX_SECTORS = 1 << 55
PROBE_OPERATION = 0xFF
"""No operation: a backend answers that it does not know it, and touches nothing."""
PROBE_BYTES = b"vscsi layout"
"""What a probe has in bytes 4 to 15: x86_32 keeps the id in 4 to 11, x86_64 in 8 to 15."""


@dataclass(slots=True, eq=False)
class BlkRequest:
    """One request on the ring; `done` is called once, with an error if no answer came.

    pieces: (address, bytes) of guest memory, none across a page, all whole sectors.
    """

    operation: Operation
    done: Callable[[RspStatus | TransportError], None]
    sector: int = 0
    pieces: Sequence[tuple[int, int]] = ()
    sectors: int = 0
    """DISCARD only."""
    references: list[int] = field(default_factory=list)
    frames: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Disk:
    """What the backend publishes of a vbd. Sizes in bytes."""

    size_bytes: int
    block_size: int
    readonly: bool
    flush: bool
    barrier: bool
    discard: bool


class BlkifRing(RingInitiator[BlkRequest]):
    """The requests of one vbd, without any SCSI (`BlkifInitiator` adds that).

    With `protocol` None no layout is published; it is found out by a probe. More than 11 segments
    go indirect where the backend takes that, else into segment blocks (FreeBSD 2010).
    """

    kind: ClassVar[str] = "vbd"
    address_bytes: ClassVar[int | None] = SECTOR_SIZE

    def __init__(
        self,
        directory: Path,
        *,
        handle: int = FIRST_VBD,
        ring_order: int = RING_ORDER,
        protocol: str | None = X86_64.protocol,
        indirect: bool = True,
        queues: int = 1,
        first: RingInitiator[BlkRequest] | None = None,
    ) -> None:
        super().__init__(directory, handle, queues=queues, first=first)
        self._again = partial(
            type(self),
            directory,
            handle=handle,
            ring_order=ring_order,
            protocol=protocol,
            indirect=indirect,
        )
        self.identity = f"{directory.resolve()}:{handle}"
        """What makes it this disk, whoever connects."""
        self.disk = Disk(0, SECTOR_SIZE, False, False, False, False)
        self.max_segments = SEGMENTS
        self.layout: Layout = LAYOUTS[protocol] if protocol is not None else X86_64
        self._protocol = protocol
        self._ring_order = ring_order
        self._want_indirect = indirect
        self._indirect_segments = 0
        self._limits = Limits(0)
        self._free_ids: list[int] = []
        self._probing = False
        self._skip = 0
        """Empty slots that follow the response to a request with segment blocks."""

    # Connecting

    def make_ring(self, backend: Reader) -> Keys:
        """Make the ring."""
        choice = choose_rings(backend, self._ring_order)
        memory, references = self.ring_pages(choice.pages)
        self.ring = RingEnd.front(memory, self.layout.slot_size)
        self._free_ids = list(range(self.ring.entries))
        keys = dict(choice.keys({RING_REF: references}))
        keys["protocol"] = self._protocol
        if not self._want_indirect and self.layout.segment_blocks:
            wish = Limits(self.ring.entries, MAX_SEGMENTS, MAX_SEGMENTS * PAGE_SIZE)
            self._limits = Limits.choose(backend, wish, self.ring.entries)
            keys |= self._limits.keys()
        return keys

    def take_properties(self, backend: Reader) -> Keys:
        """Read size, features and limits of the disk."""
        sectors = backend.number("sectors", high=MAX_SECTORS)
        block_size = backend.number("sector-size", SECTOR_SIZE, SECTOR_SIZE, PAGE_SIZE)
        if block_size & (block_size - 1):
            raise WireError(f"sector-size is {block_size}")
        if not sectors or sectors * SECTOR_SIZE % block_size:
            raise WireError(f"{sectors} sectors are no disk of {block_size}-byte blocks")
        self.disk = Disk(
            size_bytes=sectors * SECTOR_SIZE,
            block_size=block_size,
            readonly=bool(backend.number("info", 0) & 4),
            flush=feature(backend, "feature-flush-cache"),
            barrier=feature(backend, "feature-barrier"),
            discard=feature(backend, "feature-discard"),
        )
        if self._want_indirect:
            offered = backend.number("feature-max-indirect-segments", 0)
            self._indirect_segments = min(offered, MAX_SEGMENTS)
        self.max_segments = max(SEGMENTS, self._indirect_segments)
        if self._limits.segments > DEFAULT_SEGMENTS:
            self.max_segments = self._limits.segments
        return {}

    def another_queue(self) -> RingInitiator[BlkRequest]:
        """Return a further ring for the same disk."""
        return self._again(first=self)

    def begin(self) -> None:
        """Find the layout out if none was published."""
        if self._protocol is None:
            self._probe()
        self.load_protocol = "blkif32" if self.layout is X86_32 else "blkif64"

    def _probe(self) -> None:
        """Send a harmless request that each layout reads another id from, and switch to the one
        that is answered (as xenvbd did). Slot 0 lies at the same place in all of them.
        """
        with self._lock:
            if self.ring is None:
                raise TransportError("the channel is closed")
            self._probing = True
            self.ring.put(bytes([PROBE_OPERATION, 0, 0, 0]) + PROBE_BYTES)
            self._publish()
        with self._changed:
            answered = self._changed.wait_for(
                lambda: not self._probing or self._failure is not None, CONNECT_TIMEOUT_S
            )
        if not answered or self._failure is not None:
            raise TransportError(self._failure or "the backend does not answer the layout probe")

    def _take_probe(self, slot: bytes) -> None:
        answer = slot[:8]
        for layout, echoed in ((X86_64, PROBE_BYTES[4:12]), (X86_32, PROBE_BYTES[:8])):
            if answer == echoed and self.ring is not None:
                self.layout = layout
                self.ring.change_slot_size(layout.slot_size)
                with self._changed:
                    self._probing = False
                    self._changed.notify_all()
                return
        raise WireError(f"the layout probe was answered with id {answer.hex()}")

    # Requests

    def room_for(self, request: BlkRequest) -> bool:
        """An id, and slots enough for the segments."""
        return (
            bool(self._free_ids) and self.ring is not None and self.ring.free >= self.slots(request)
        )

    @property
    def room(self) -> int:
        """Requests that there are ids for."""
        return len(self._free_ids)

    def slots(self, request: BlkRequest) -> int:
        """Return the slots that a request takes."""
        return 1 if self._indirect_segments else slots_of(len(request.pieces))

    def put(self, request: BlkRequest) -> None:
        """Send a request."""
        number = self._free_ids[-1]
        slots = self.slots_for(number, request)
        self._free_ids.pop()
        self.in_flight[number] = request
        for slot in slots:
            self._send(slot)

    def slots_for(self, number: int, request: BlkRequest) -> list[bytes]:
        """Grant a request's pages; return the slots that it takes. Raises OutOfMemoryError."""
        if request.operation is Operation.DISCARD:
            return [
                self.layout.build_request(
                    request.operation,
                    id=number,
                    sector_number=request.sector,
                    nr_sectors=request.sectors,
                )
            ]
        if len(request.pieces) > SEGMENTS and self._indirect_segments:
            return [self._indirect(number, request)]
        segments = self._grant(request)
        return [
            self.layout.build_request(
                request.operation,
                id=number,
                sector_number=request.sector,
                nr_segments=len(segments),
                segments=segments[:SEGMENTS],
            ),
            *(
                build_segments(segments[start : start + BLOCK_SEGMENTS])
                for start in range(SEGMENTS, len(segments), BLOCK_SEGMENTS)
            ),
        ]

    def _indirect(self, number: int, request: BlkRequest) -> bytes:
        """Put a request's segments into pages of their own; return the request that names them."""
        memory = self.guest.memory
        segments = self._grant(request)
        table = build_segments(segments)
        try:
            request.frames = memory.alloc(-(-len(table) // PAGE_SIZE))
            references = memory.grant(request.frames, BACKEND_DOMAIN, readonly=True)
        except OutOfMemoryError:
            self.give_back(request)
            raise
        request.references += references
        for at, frame in enumerate(request.frames):
            part = table[at * PAGE_SIZE : (at + 1) * PAGE_SIZE]
            memory.view(frame)[: len(part)] = part
        return self.layout.build_request(
            Operation.INDIRECT,
            indirect_op=request.operation,
            id=number,
            sector_number=request.sector,
            nr_segments=len(segments),
            indirect_grefs=references,
        )

    def _grant(self, request: BlkRequest) -> list[dict[str, int]]:
        """Grant a request's pages; return its segments."""
        request.references = self.guest.memory.grant(
            [address // PAGE_SIZE for address, _ in request.pieces],
            BACKEND_DOMAIN,
            readonly=request.operation is not Operation.READ,
        )
        segments = []
        for reference, (address, length) in zip(request.references, request.pieces, strict=True):
            first = address % PAGE_SIZE // SECTOR_SIZE
            last = first + length // SECTOR_SIZE - 1
            segments.append({"gref": reference, "first_sect": first, "last_sect": last})
        return segments

    def _send(self, slot: bytes) -> None:
        if self.ring is None or not self.ring.put(slot):
            raise TransportError("no slot on the ring")

    # Answers

    def answered(self, slot: bytes) -> Iterable[Completion]:
        """Handle a response."""
        if self._probing:
            self._take_probe(slot)
            return ()
        if self._skip:
            self._skip -= 1
            return ()
        response = self.layout.parse_response(slot)
        request = self.in_flight.get(response.id)
        if request is None:
            raise WireError(f"a response to id {response.id}, which is not in flight")
        if response.operation != request.operation:
            raise WireError(f"operation {response.operation} in answer to {request.operation}")
        status = status_of(response)
        self.give_back(request)
        self._skip = self.slots(request) - 1
        del self.in_flight[response.id]
        self._free_ids.append(response.id)
        return (partial(request.done, status),)

    def give_back(self, request: BlkRequest) -> None:
        """Take back a request's grants and tables; WireError if the backend has them mapped."""
        if self.guest.memory.end_access(request.references):
            raise WireError("pages are still mapped after the answer")
        self.guest.memory.free(request.frames)
        request.references, request.frames = [], []

    def cancelled(self, request: BlkRequest, error: TransportError) -> Completion:
        """Return what to call to end a request that got no answer."""
        return partial(request.done, error)

    def parameters(self) -> Mapping[str, object]:
        """Return what was negotiated."""
        return {
            **super().parameters(),
            "layout": self.layout.protocol,
            "segments": self.max_segments,
            "indirect": bool(self._indirect_segments),
        }


def status_of(response: Container) -> RspStatus:
    """Return a response's status; WireError if it is none of the protocol's."""
    try:
        return RspStatus(response.status)
    except ValueError:
        raise WireError(f"status {response.status}") from None
