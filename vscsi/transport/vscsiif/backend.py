# SPDX-License-Identifier: MIT
"""The backend end of vscsiif: what xen-scsiback does, for any target."""

from collections.abc import Callable
from dataclasses import dataclass
from operator import is_
from typing import ClassVar, cast

from construct import Container

from vscsi.domain.base import PAGE_SIZE
from vscsi.domain.base import Mapping as GrantMapping
from vscsi.domain.keys import parse_state
from vscsi.domain.xenbus import Keys, Reader, XenbusState
from vscsi.ring import RingEnd, Service
from vscsi.target.base import (
    DeliveryFailure,
    Function,
    Management,
    Nexus,
    ServiceResponse,
    Status,
    Target,
    Task,
)
from vscsi.transport.backend import Connection, Peer, RingBackend
from vscsi.transport.native import NativeUnits
from vscsi.transport.outcome import residuals
from vscsi.transport.tally import Asked, Ended
from vscsi.transport.tap import RingPath, TapSwitch
from vscsi.wire import cdb as cdbs
from vscsi.wire import opcodes
from vscsi.wire.errors import WireError
from vscsi.wire.lun import encode
from vscsi.wire.record import Protocol
from vscsi.wire.vscsiif import (
    MAX_ADDRESS,
    RESET_FAILED,
    RESET_SUCCESS,
    SENSE_BUFFER_SIZE,
    SLOT_SIZE,
    Act,
    Direction,
    Host,
    Segment,
    build_address,
    build_response,
    cdb_of,
    pack_rslt,
    parse_request,
    parse_segments,
    segments_of,
)

SG_GRANT_SEGMENTS = 256
"""feature-sg-grant: segments that one request may name through granted descriptor memory."""
_NO_ANSWER = {
    DeliveryFailure.GONE: Host.NO_CONNECT,
    DeliveryFailure.TIMED_OUT: Host.TIME_OUT,
    DeliveryFailure.FAILED: Host.ERROR,
}


@dataclass(frozen=True, slots=True)
class Pending:
    """What a command needs when it is done."""

    asked: Asked
    mapping: GrantMapping | None


class VscsiifBackend(RingBackend):
    """One vscsi device: the logical units of a target as (channel, id, lun) of a virtual host."""

    kind: ClassVar[str] = "vscsi"

    def __init__(
        self,
        peer: Peer,
        device: int,
        tap: TapSwitch,
        target: Target,
        port: str,
        own_keys: Callable[[], Reader],
    ) -> None:
        """port is the target port's name, another one for each server.

        own_keys reads the backend's own directory, where the toolstack lists the units.
        """
        super().__init__(peer, device, tap)
        self.target = target
        self._own_keys = own_keys
        self._nexus = Nexus(f"{peer.domain}:vscsi", f"{port}:{device}")
        self._units: dict[tuple[int, int, int], bytes] = {}  # replaced, never changed
        self._native: NativeUnits | None = None
        self._native_of: tuple[object, object] = (None, None)
        """The inventory and the units here that the C path knows."""

    def features(self) -> Keys:
        """Return what is published before InitWait."""
        return {"feature-sg-grant": str(SG_GRANT_SEGMENTS)}

    def attach(self, frontend: Reader) -> tuple[Connection, Keys]:
        """Map the ring, which has one page, and take the units that are new."""
        references = [[frontend.number("ring-ref")]]
        ring, service = self.open_ring(frontend, references, RingEnd.back, SLOT_SIZE, "vscsiif")
        self._units = {}
        units = self._plug(fresh=True)
        self.target.attach(self._nexus)
        path = RingPath(
            Protocol.VSCSIIF,
            self.peer.domain,
            self.device,
            parameters=(("ring-pages", "1"), ("sg-grant-segments", str(SG_GRANT_SEGMENTS))),
        )
        return Connection(ring, service, path), units

    def connected(self, _frontend: Reader) -> Keys:
        """Say of the units that the frontend was offered that they are in use."""
        own = self._own_keys()
        return {
            f"{unit}/state": str(int(XenbusState.CONNECTED))
            for unit in unit_keys(own)
            if parse_state(own.text(f"{unit}/state", "")) is XenbusState.INITIALISED
        }

    def reconfigure(self, _frontend: Reader) -> Keys:
        """Take the units that the toolstack added, let go of those that it removes."""
        keys = self._plug(fresh=False)
        if self.connection is not None:
            self.connection.service.interrupt()  # the C path looks at them before its next command
        return keys

    def _plug(self, *, fresh: bool) -> Keys:
        """Follow the states of the units in our directory; return their new ones.

        At a new connection (fresh) all that are not on their way out are offered anew.
        """
        own = self._own_keys()
        present = set(self.target.luns())
        units = dict(self._units)
        keys = {}
        for unit in unit_keys(own):
            state = parse_state(own.text(f"{unit}/state", ""))
            address = virtual_device(own.text(f"{unit}/v-dev"))
            lun = encode(own.number(f"{unit}/p-dev", high=0xFFFF))
            if state is XenbusState.CLOSING:
                units.pop(address, None)
                state = XenbusState.CLOSED
            elif state is XenbusState.INITIALISING or (fresh and state is not XenbusState.CLOSED):
                there = lun in present
                state = XenbusState.INITIALISED if there else XenbusState.CLOSED
                if there:
                    units[address] = lun
            else:
                continue
            keys[f"{unit}/state"] = str(int(state))
        self._units = units
        return keys

    def message(self, slot: bytes) -> None:
        """Handle one request slot; a malformed request is answered with a host error."""
        request = parse_request(slot)
        descriptors = b""
        try:
            if request.act in (Act.ABORT, Act.RESET):
                self.show_request(slot)
                self._manage(request)
                return
            if request.act != Act.CDB:
                raise WireError(f"act {request.act}")
            cdb = cdb_of(request)
            segments, indirect = segments_of(request)
            if indirect:
                descriptors = self._copy_descriptors(segments)
                segments = parse_segments(descriptors)
        except WireError:
            self.show_request(slot, descriptors)
            self._refuse(request.rqid, Host.ERROR, self.asked(None, b""))
            return
        self.show_request(slot, descriptors)
        self._command(request, cdb, segments)

    def quiesce(self) -> None:
        """End the nexus."""
        self._end_native()
        self.target.detach(self._nexus)

    def prepare_native(self, service: Service) -> bool:
        """Bring the C path up to date."""
        inventory, plugged = of = self.target.units(), self._units
        if self._native is None or not all(map(is_, of, self._native_of)):
            self._end_native()
            units = {
                build_address(*address): inventory[lun]
                for address, lun in plugged.items()
                if lun in inventory and max(address) <= MAX_ADDRESS
            }
            self._native, self._native_of = (
                NativeUnits(service, self._nexus, units, self.counts),
                of,
            )
        self._native.refresh()
        return True

    def _end_native(self) -> None:
        if self._native is not None:
            self._native.close()
            self._native = None

    def _copy_descriptors(self, areas: list[Container]) -> bytes:
        """Return the segment descriptors that SG_GRANT areas hold, copied once."""
        copy = b""
        limit = SG_GRANT_SEGMENTS * Segment.sizeof()
        if sum(area.length for area in areas) > limit:
            raise WireError(f"more than {SG_GRANT_SEGMENTS} segments")
        if not areas:
            return copy
        mapping = self.peer.grants.map([area.gref for area in areas], readonly=True)
        try:
            for view in slices(mapping, areas):
                if len(view) % Segment.sizeof():
                    raise WireError(f"descriptor area of {len(view)} bytes")
                copy += bytes(view)
        finally:
            mapping.unmap()
        return copy

    def _command(self, request: Container, cdb: bytes, segments: list[Container]) -> None:
        lun = self._units.get((request.channel, request.id, request.lun))
        asked = self.asked(self.target.units().get(lun) if lun is not None else None, cdb)
        if lun is None:
            self._refuse(request.rqid, Host.NO_CONNECT, asked)
            return
        mapping: GrantMapping | None = None
        views: list[memoryview] = []
        try:
            direction = Direction(request.direction)
            if direction is Direction.BIDIRECTIONAL:
                direction = direction_of(cdb)
            if segments and direction is not Direction.NONE:
                mapping = self.peer.grants.map(
                    [segment.gref for segment in segments],
                    readonly=direction is Direction.TO_DEVICE,
                )
                views = slices(mapping, segments)
        except (WireError, ValueError):  # ValueError: no such direction
            if mapping is not None:
                mapping.unmap()
            self._refuse(request.rqid, Host.ERROR, asked)
            return
        if direction is Direction.TO_DEVICE:
            self.show_data(views, cdb)
        self.count(+1)
        self.target.submit(
            Task(
                nexus=self._nexus,
                lun=lun,
                tag=request.rqid,
                cdb=cdb,
                data_out=views if direction is Direction.TO_DEVICE else (),
                data_in=views if direction is Direction.FROM_DEVICE else (),
                done=self._done,
                aborted=self._aborted,
                context=Pending(asked, mapping),
            )
        )

    def _done(self, task: Task) -> None:
        data = self.data_in(task)
        asked = self._release(task)
        if task.delivery_failure is not None:
            self._fail(task.tag, _NO_ANSWER[task.delivery_failure], asked)
            return
        # The protocol has one unsigned residual, and stock frontends take it for an underflow.
        residual = max(0, *residuals(task))
        self.answer(
            build_response(
                rqid=task.tag,
                sense_buffer=task.sense[:SENSE_BUFFER_SIZE],
                rslt=pack_rslt(task.status),
                residual=residual,
            ),
            ended=asked.ended(task),
            data=data,
        )

    def _aborted(self, task: Task) -> None:
        """Answer what was aborted too: a stock frontend frees its rqid only then."""
        self.counts.abort(self._release(task))
        self.answer(build_response(rqid=task.tag, rslt=pack_rslt(Status.GOOD, Host.RESET)))

    def _release(self, task: Task) -> Asked:
        pending = cast(Pending, task.context)
        if pending.mapping is not None:
            pending.mapping.unmap()
        self.count(-1)
        return pending.asked

    def _manage(self, request: Container) -> None:
        lun = self._units.get((request.channel, request.id, request.lun))
        function = Function.ABORT_TASK if request.act == Act.ABORT else Function.LOGICAL_UNIT_RESET
        if lun is None:
            self.counts.manage(function, ServiceResponse.INCORRECT_LOGICAL_UNIT)
            self.answer(build_response(rqid=request.rqid, rslt=RESET_FAILED))
            return

        connection = self.connection

        def done(management: Management) -> None:
            self.counts.manage(function, management.response)
            complete = management.response is ServiceResponse.FUNCTION_COMPLETE
            rslt = RESET_SUCCESS if complete else RESET_FAILED
            # It may have waited for another guest's tasks, and for longer than this connection.
            self.answer(
                build_response(rqid=request.rqid, rslt=rslt),
                valid=lambda: self.connection is connection,
            )

        self.target.manage(
            Management(self._nexus, lun, function, done, managed_tag=request.ref_rqid)
        )

    def _refuse(self, rqid: int, host: Host, asked: Asked) -> None:
        self.statistics.wire_errors += host is Host.ERROR
        self._fail(rqid, host, asked)

    def _fail(self, rqid: int, host: Host, asked: Asked) -> None:
        response = build_response(rqid=rqid, rslt=pack_rslt(Status.GOOD, host))
        self.answer(response, ended=Ended(asked, failure=(host.name, "")))


def unit_keys(own: Reader) -> list[str]:
    """Return the keys of the units in a device's directory."""
    return [f"vscsi-devs/{name}" for name in own.names("vscsi-devs")]


def virtual_device(text: str) -> tuple[int, int, int]:
    """Return channel, id and lun of a v-dev ("host:channel:id:lun"); WireError if it is none."""
    parts = text.split(":")
    if len(parts) != 4 or not all(part.isdecimal() and len(part) < 6 for part in parts):
        raise WireError(f"v-dev {text[:32]!a}")
    _, channel, target, lun = map(int, parts)
    return channel, target, lun


def slices(mapping: GrantMapping, segments: list[Container]) -> list[memoryview]:
    """Return each segment's part of its page; WireError if one reaches beyond it."""
    views = []
    for page, segment in zip(mapping.pages, segments, strict=True):
        if segment.offset + segment.length > PAGE_SIZE:
            raise WireError(f"segment of {segment.length} bytes at {segment.offset}")
        views.append(page[segment.offset : segment.offset + segment.length])
    return views


def direction_of(cdb: bytes) -> Direction:
    """Return the data direction that a CDB has by its opcode."""
    row = cdbs.lookup(cdb)
    if row is None:
        return Direction.NONE
    return {
        opcodes.Direction.OUT: Direction.TO_DEVICE,
        opcodes.Direction.IN: Direction.FROM_DEVICE,
    }.get(row.direction, Direction.NONE)
