# SPDX-License-Identifier: MIT
"""The frontend end of vscsiif: what xen-scsifront does, for our own commands."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar

from construct import Container

from vscsi.domain.base import PAGE_SIZE
from vscsi.domain.keys import parse_state
from vscsi.domain.local import BACKEND_DOMAIN
from vscsi.domain.memory import OutOfMemoryError
from vscsi.domain.xenbus import Keys, Reader, XenbusState
from vscsi.ring import RingEnd
from vscsi.target.base import Function, ServiceResponse
from vscsi.transport.frontend import RingInitiator
from vscsi.transport.initiator import (
    Command,
    ManagementCommand,
    TransportError,
    finish,
    page_pieces,
)
from vscsi.transport.load import Completion, Template
from vscsi.transport.outcome import status_of
from vscsi.wire.c_header import offsets
from vscsi.wire.errors import WireError
from vscsi.wire.lun import logical_unit_number
from vscsi.wire.vscsiif import (
    MAX_COMMAND_SIZE,
    RESET_SUCCESS,
    SEGMENTS,
    SG_GRANT,
    SLOT_SIZE,
    Act,
    Direction,
    Host,
    build_request,
    build_segments,
    parse_response,
    unpack_rslt,
)
from vscsi.wire.vscsiif import Request as RequestFormat

SEGMENT_BYTES = 8
SEGMENTS_AT = offsets(RequestFormat)["segments"]
TASK_MANAGEMENT_RESERVE = 1
"""Slots that commands leave to task management, so that a full ring can be aborted."""

Request = Command | ManagementCommand


class Shadow:
    """What a request holds while it is on the ring: its grants, and descriptor memory."""

    def __init__(self) -> None:
        self.references: list[int] = []
        self.frames: list[int] = []


class VscsiifInitiator(RingInitiator[Request]):
    """The virtual host of one vscsi device: one page, 16 slots, as the protocol has it."""

    kind: ClassVar[str] = "vscsi"
    load_protocol = "vscsiif"

    def __init__(self, directory: Path, *, handle: int = 0) -> None:
        super().__init__(directory, handle)
        self._max_segments = SEGMENTS
        self._free_ids: list[int] = []
        self._shadows: dict[int, Shadow] = {}

    def make_ring(self, backend: Reader) -> Keys:
        """Make the ring."""
        memory, references = self.ring_pages(1)
        self.ring = RingEnd.front(memory, SLOT_SIZE)
        self._free_ids = list(range(self.ring.entries))
        return {"ring-ref": str(references[0])}

    def take_properties(self, backend: Reader) -> Keys:
        """Read how many segments a request may have, and acknowledge the logical units."""
        granted = backend.number("feature-sg-grant", 0)
        self._max_segments = max(SEGMENTS, min(granted, SEGMENTS * PAGE_SIZE // SEGMENT_BYTES))
        return self.reconfigure(backend, XenbusState.CONNECTED)

    def reconfigure(self, backend: Reader, state: XenbusState) -> Keys:
        """Acknowledge units that came and units that go (there is nothing to set up for them)."""
        keys = {}
        for name in backend.names("vscsi-devs"):
            unit = f"vscsi-devs/{name}/state"
            theirs = parse_state(backend.text(unit, ""))
            if theirs is XenbusState.CLOSING:
                keys[unit] = str(int(XenbusState.CLOSED))
            elif theirs is XenbusState.INITIALISED:
                keys[unit] = str(int(XenbusState.CONNECTED))
        return keys

    def submit(self, command: Command) -> None:
        """Start a command; TransportError if the protocol cannot carry it."""
        self._check(command)
        self.statistics.commands += 1
        self.enqueue([command])

    def _check(self, command: Command) -> None:
        number_of(command.lun)
        if len(command.cdb) > MAX_COMMAND_SIZE:
            raise TransportError(f"vscsiif carries CDBs of up to {MAX_COMMAND_SIZE} bytes")
        if command.data_out and command.data_in:
            raise TransportError("vscsiif carries data one way only")
        if len(segments_of(command)) > self._max_segments:
            raise TransportError(
                f"{command.data_out_length + command.data_in_length} bytes take more than the "
                f"{self._max_segments} segments of a request"
            )

    def manage(self, request: ManagementCommand) -> None:
        """Start ABORT TASK or LOGICAL UNIT RESET; the protocol has no other function."""
        if request.function not in (Function.ABORT_TASK, Function.LOGICAL_UNIT_RESET):
            request.response = ServiceResponse.NOT_SUPPORTED
            request.done(request)
            return
        number_of(request.lun)
        if request.managed is not None and self.recall(request.managed):
            request.done(request)
            return
        self.enqueue([request], first=True)

    def room_for(self, request: Request) -> bool:
        """A slot; the last one is for task management."""
        return bool(self._free_ids) if isinstance(request, ManagementCommand) else self.room > 0

    def put(self, request: Request) -> None:
        """Send a request."""
        ring = self.ring
        if ring is None:
            raise TransportError("the channel is closed")
        rqid = self._free_ids[-1]
        shadow = Shadow()
        if isinstance(request, Command):
            slot = self._command(rqid, request, shadow)
        else:
            slot = self._management(rqid, request)
        self._free_ids.pop()
        request.tag = rqid
        self._shadows[rqid] = shadow
        self.in_flight[rqid] = request
        ring.put(slot)

    def _management(self, rqid: int, request: ManagementCommand) -> bytes:
        managed = request.managed
        # The rqid of one that is done may be another's by now: then name ourselves, a task
        # that is not there.
        there = managed is not None and self.in_flight.get(managed.tag) is managed
        return build_request(
            rqid=rqid,
            act=Act.ABORT if request.function is Function.ABORT_TASK else Act.RESET,
            lun=number_of(request.lun),
            cdb=managed.cdb if managed is not None else b"",
            ref_rqid=managed.tag if managed is not None and there else rqid,
            direction=Direction.NONE,
        )

    def _command(self, rqid: int, command: Command, shadow: Shadow) -> bytes:
        try:
            segments, grant = self._segments(command, shadow)
        except OutOfMemoryError:
            self._give_back(shadow)
            raise
        direction = Direction.NONE
        if command.data_out:
            direction = Direction.TO_DEVICE
        elif command.data_in:
            direction = Direction.FROM_DEVICE
        return build_request(
            rqid=rqid,
            cdb=command.cdb,
            lun=number_of(command.lun),
            direction=direction,
            segments=segments,
            nr_segments=len(segments) | (SG_GRANT if grant else 0),
        )

    def _segments(self, command: Command, shadow: Shadow) -> tuple[list[dict[str, int]], bool]:
        """Grant a command's pages; return its descriptors, and whether they name descriptors."""
        memory = self.guest.memory
        pieces = segments_of(command)
        frames = [address // PAGE_SIZE for address, _ in pieces]
        references = memory.grant(frames, BACKEND_DOMAIN, readonly=bool(command.data_out))
        shadow.references += references
        segments = [
            {"gref": reference, "offset": address % PAGE_SIZE, "length": length}
            for reference, (address, length) in zip(references, pieces, strict=True)
        ]
        if len(segments) <= SEGMENTS:
            return segments, False
        table = build_segments(segments)
        shadow.frames = memory.alloc(-(-len(table) // PAGE_SIZE))
        listed = memory.grant(shadow.frames, BACKEND_DOMAIN, readonly=True)
        shadow.references += listed
        areas = []
        for start, frame, reference in zip(
            range(0, len(table), PAGE_SIZE), shadow.frames, listed, strict=True
        ):
            part = table[start : start + PAGE_SIZE]
            memory.view(frame)[: len(part)] = part
            areas.append({"gref": reference, "offset": 0, "length": len(part)})
        return areas, True

    def answered(self, slot: bytes) -> Iterable[Completion]:
        """Handle a response."""
        response = parse_response(slot)
        request = self.in_flight.get(response.rqid)
        if request is None:
            raise WireError(f"a response to rqid {response.rqid}, which is not in flight")
        self._take(request, response)
        self._release(response.rqid)
        del self.in_flight[response.rqid]
        return (partial(finish, request),)

    def _take(self, request: Request, response: Container) -> None:
        if isinstance(request, ManagementCommand):
            succeeded = response.rslt == RESET_SUCCESS
            request.response = (
                ServiceResponse.FUNCTION_COMPLETE if succeeded else ServiceResponse.FAILED
            )
            return
        status, host = unpack_rslt(response.rslt)
        length = request.data_in_length + request.data_out_length
        if response.sense_len > len(response.sense_buffer) or response.residual > length:
            raise WireError(f"sense of {response.sense_len}, residual of {response.residual} bytes")
        if host != Host.OK:
            request.error = TransportError(f"host status {host_name(host)}")
        else:
            request.status = status_of(status)
            request.sense = response.sense_buffer[: response.sense_len]
            request.residual = response.residual

    def cancelled(self, request: Request, error: TransportError) -> Completion:
        """Return what to call to end a request that got no answer."""
        request.error = error
        return partial(finish, request)

    def _release(self, rqid: int) -> None:
        """Take back a request's grants; pages that the backend still maps are lost to us."""
        self._give_back(self._shadows.pop(rqid))
        self._free_ids.append(rqid)

    def _give_back(self, shadow: Shadow) -> None:
        refused = self.guest.memory.end_access(shadow.references)
        if refused:
            raise WireError(f"{len(refused)} pages are still mapped after the answer")
        self.guest.memory.free(shadow.frames)

    # A load

    def template(self, tag: int, command: Command) -> Template:
        """Return a command's request."""
        self._check(command)
        shadow = Shadow()
        slot = self._command(tag, command, shadow)
        used = SEGMENTS_AT + SEGMENT_BYTES * min(len(shadow.references), SEGMENTS)
        return Template(slot[:used], tuple(shadow.references), partial(self._give_back, shadow))

    @property
    def room(self) -> int:
        """Commands that there are slots for."""
        return len(self._free_ids) - TASK_MANAGEMENT_RESERVE

    def judge(self, command: Command, slot: bytes) -> None:
        """Set a command's outcome from a response."""
        self._take(command, parse_response(slot))

    def parameters(self) -> Mapping[str, object]:
        """Return what was negotiated."""
        return {**super().parameters(), "segments": self._max_segments}


def number_of(lun: bytes) -> int:
    """Return the number of a logical unit; TransportError if vscsiif's 16 bits cannot name it."""
    try:
        number = logical_unit_number(lun)
    except WireError as error:
        raise TransportError(str(error)) from error
    if number is None or number > 0xFFFF:
        raise TransportError(f"vscsiif cannot name LUN {lun.hex()}")
    return number


def segments_of(command: Command) -> Sequence[tuple[int, int]]:
    """Return a command's buffers cut at page boundaries: (address, length) of each piece."""
    return page_pieces(command.data_out or command.data_in)


def host_name(host: int) -> str:
    """Return a host code's name."""
    try:
        return Host(host).name
    except ValueError:
        return str(host)
