# SPDX-License-Identifier: MIT
"""The target's end of an SRP channel."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, NoReturn, cast

from construct import Container

from vscsi.domain.negotiate import (
    MAX_SEGMENTS,
    MAX_SLOT_SIZE,
    RESPONSE_RING_REF,
    RING_REF,
    Limits,
    accept_rings,
    accept_slot_size,
    ring_keys,
    slot_size_keys,
)
from vscsi.domain.xenbus import Keys, Reader
from vscsi.ring import RingEnd, Service
from vscsi.target.base import (
    Attribute,
    Function,
    Management,
    Nexus,
    ServiceResponse,
    Task,
)
from vscsi.transport.backend import Connection, Peer, RingBackend
from vscsi.transport.native import NativeUnits
from vscsi.transport.outcome import residuals
from vscsi.transport.srp.credits import Credits
from vscsi.transport.srp.mads import MadServer
from vscsi.transport.srp.port import SUPPORTED_FORMATS, LoginRejected, SrpPort
from vscsi.transport.srp.regions import InvalidDescriptor, Region, Regions
from vscsi.transport.tally import Asked, Ended
from vscsi.transport.tap import RingPath, TapSwitch
from vscsi.wire.errors import WireError
from vscsi.wire.lun import encode, logical_unit_number
from vscsi.wire.record import Protocol
from vscsi.wire.srp import (
    IuType,
    LoginRejectReason,
    RspCode,
    RspFlags,
    TLogoutReason,
    build_iu,
    cdb_of,
    is_command,
    parse_iu,
    tag_of,
)
from vscsi.wire.srp_ring import SlotFormat, SlotHeader, build_slot, parse_slot

RESERVED_SLOTS = 4
"""Slots of the response ring for what no request pays for: a MAD, CRED_REQ or AER_REQ, T_LOGOUT."""
MAX_RING_ORDER = 4
OFFERED = Limits(requests=512, segments=MAX_SEGMENTS, size_bytes=32 << 20)
RSP_BYTES = 36
"""An RSP without response and sense data."""


@dataclass(slots=True)
class Pending:
    """What an accepted command needs when it is done."""

    channel: "SrpBackend"
    asked: Asked
    regions: list[Region] = field(default_factory=list)


class SrpBackend(RingBackend):
    """A channel of an `SrpPort` over two one-way rings (docs/decisions/0001-srp-ring.md)."""

    kind: ClassVar[str] = "vsrp"

    def __init__(
        self,
        peer: Peer,
        device: int,
        tap: TapSwitch,
        port: SrpPort,
        *,
        queue: int = 0,
        logins: "threading.Lock | None" = None,
    ) -> None:
        """logins: shared by the queues of one device, to log in and out one at a time."""
        super().__init__(peer, device, tap, queue)
        self.port = port
        self._logins = logins or threading.Lock()
        self._nexus: Nexus | None = None
        self._native: NativeUnits | None = None

    def features(self) -> Keys:
        """Return what is published before InitWait."""
        return {
            **ring_keys(MAX_RING_ORDER),
            **slot_size_keys(MAX_SLOT_SIZE),
            **OFFERED.keys(),
            "target-port-id": self.port.port_id.hex(),
        }

    def attach(self, frontend: Reader) -> tuple[Connection, Keys]:
        """Map both rings."""
        references = accept_rings(frontend, MAX_RING_ORDER, (RING_REF, RESPONSE_RING_REF))
        slot_size = accept_slot_size(frontend, MAX_SLOT_SIZE)
        pages = len(references[0])
        ring, service = self.open_ring(frontend, references, RingEnd.pair_back, slot_size, "srp")
        limits = Limits.accept(frontend, OFFERED, ring.entries)
        self._nexus = None
        self._max_iu_length = slot_size - SlotHeader.sizeof()
        self._request_limit = max(1, min(limits.requests, ring.entries - RESERVED_SLOTS))
        self._credits = Credits(self._request_limit)
        self._regions = Regions(self.peer.grants, MAX_SEGMENTS, OFFERED.size_bytes)
        self._held.callback(self._regions.close)
        self._regions.share(service)
        self._mads = MadServer(self._regions, OFFERED.size_bytes)
        path = RingPath(
            Protocol.SRP,
            self.peer.domain,
            self.device,
            queue=self.queue,
            parameters=(
                ("ring-pages", str(pages)),
                ("slot-size", str(slot_size)),
                ("request-limit", str(self._request_limit)),
            ),
        )
        return Connection(ring, service, path), {}

    def message(self, slot: bytes) -> None:
        """Handle one slot: an SRP information unit or a MAD."""
        self.show_request(slot)
        form, unit = parse_slot(slot)
        if form is SlotFormat.MAD:
            self.answer(build_slot(SlotFormat.MAD, self._mads.answer(unit)))
            return
        try:
            iu = parse_iu(unit)
        except WireError as error:
            if self._nexus is None or not is_command(unit):
                self._logout(TLogoutReason.INVALID_IU_TYPE, str(error))
            # Only its buffer descriptors can be wrong: that costs the command, not the channel.
            self.statistics.wire_errors += 1
            self._spend_credit()
            self._refuse(tag_of(unit), self._asked(bytes(8), b""))
            return
        handler = self._handlers.get(iu.type)
        if handler is None:
            self._logout(TLogoutReason.INVALID_IU_TYPE, f"{iu.type.name} from an initiator")
        if self._nexus is None and iu.type is not IuType.LOGIN_REQ:
            self._logout(TLogoutReason.NO_REASON, f"{iu.type.name} before a login")
        if iu.type in (IuType.CMD, IuType.TSK_MGMT):
            self._spend_credit()
        handler(self, iu)

    def _spend_credit(self) -> None:
        try:
            self._credits.spend()
        except WireError as error:
            self._logout(TLogoutReason.NO_REASON, str(error))

    def quiesce(self) -> None:
        """End the nexus."""
        self._end_nexus()

    def prepare_native(self, service: Service) -> bool:
        """Bring the C path up to date; it does not know of credits that are owed."""
        nexus = self._nexus
        if nexus is None or not self._credits.idle:
            return False
        units = self.port.target.units()
        if self._native is None or self._native.of is not units:
            self._end_native()
            self._native = NativeUnits(service, nexus, units, self.counts)
        self._native.refresh()
        return True

    def _end_native(self) -> None:
        if self._native is not None:
            self._native.close()
            self._native = None

    # Login and logout

    def _login(self, request: Container) -> None:
        try:
            if self._nexus is not None:
                raise LoginRejected(LoginRejectReason.CHANNEL_LIMIT_REACHED)
            with self._logins:
                nexus, flags = self.port.login(self, self.peer.domain, request, self._max_iu_length)
        except LoginRejected as rejected:
            self._send(
                IuType.LOGIN_REJ,
                tag=request.tag,
                reason=rejected.reason,
                supported_buffer_formats=SUPPORTED_FORMATS,
            )
            return
        with self._lock:
            self._credits = Credits(self._request_limit)
        self._send(
            IuType.LOGIN_RSP,
            tag=request.tag,
            request_limit_delta=self._request_limit,
            max_it_iu_length=self._max_iu_length,
            max_ti_iu_length=self._max_iu_length,
            supported_buffer_formats=SUPPORTED_FORMATS,
            flags=flags,
        )
        self._nexus = nexus  # from here on events are reported: behind LOGIN_RSP

    def _initiator_logout(self, _iu: Container) -> None:
        self._end_nexus()

    def _end_nexus(self) -> None:
        self._end_native()
        nexus, self._nexus = self._nexus, None
        if nexus is not None:
            with self._logins:
                self.port.logout(self, nexus)

    def is_mine(self, task: Task) -> bool:
        """Tell whether a task came over this channel."""
        return isinstance(task.context, Pending) and task.context.channel is self

    def _logout(self, reason: TLogoutReason, why: str) -> NoReturn:
        self._send(IuType.T_LOGOUT, reason=reason)
        raise WireError(why)

    # Commands and task management

    def _command(self, cmd: Container) -> None:
        pending = Pending(self, self._asked(cmd.lun, cdb_of(cmd)))
        try:
            if cmd.additional_cdb_length & 3:
                raise InvalidDescriptor("reserved bits of the additional CDB length are set")
            task = Task(
                nexus=self._logged_in(),
                lun=cmd.lun,
                tag=cmd.tag,
                cdb=cdb_of(cmd),
                attribute=Attribute(cmd.attribute & 7),
                data_out=self._regions.resolve(
                    cmd.data_out_format, cmd.data_out, writable=False, used=pending.regions
                ),
                data_in=self._regions.resolve(
                    cmd.data_in_format, cmd.data_in, writable=True, used=pending.regions
                ),
                done=self._command_done,
                aborted=self._command_aborted,
                context=pending,
            )
        except (InvalidDescriptor, ValueError):  # ValueError: a reserved attribute
            self.statistics.wire_errors += 1
            self._regions.release(pending.regions)
            self._refuse(cmd.tag, pending.asked)
            return
        self.show_data(task.data_out, task.cdb)
        self.count(+1)
        self.port.target.submit(task)

    def _command_done(self, task: Task) -> None:
        data = self.data_in(task)
        asked = self._release(task)
        data_out, data_in = residuals(task)
        flags = RspFlags(0)
        if data_out:
            flags |= RspFlags.DOUNDER if data_out > 0 else RspFlags.DOOVER
        if data_in:
            flags |= RspFlags.DIUNDER if data_in > 0 else RspFlags.DIOVER
        sense = task.sense[: self._max_iu_length - RSP_BYTES]
        self._respond(
            task.tag,
            flags=flags | (RspFlags.SNSVALID if sense else 0),
            status=task.status,
            data_out_residual=abs(data_out),
            data_in_residual=abs(data_in),
            sense_data=sense,
            ended=asked.ended(task),
            data=data,
        )

    def _command_aborted(self, task: Task) -> None:
        self.counts.abort(self._release(task))
        self._credits.forgo()
        self._send_events()

    def _release(self, task: Task) -> Asked:
        pending = cast(Pending, task.context)
        self._regions.release(pending.regions)
        self.count(-1)
        return pending.asked

    def _asked(self, lun: bytes, cdb: bytes) -> Asked:
        number = logical_unit_number(lun)  # which has several LUNs
        units = self.port.target.units()
        return self.asked(units.get(encode(number)) if number is not None else None, cdb)

    def _refuse(self, tag: int, asked: Asked) -> None:
        code = RspCode.REQUEST_FIELDS_INVALID
        self._respond(tag, code=code, ended=Ended(asked, failure=(code.name, "")))

    def _manage(self, iu: Container) -> None:
        try:
            function = Function(iu.function)
        except ValueError:
            self.counts.manage(None, ServiceResponse.NOT_SUPPORTED)
            self._respond(iu.tag, code=RspCode.TASK_MANAGEMENT_NOT_SUPPORTED)
            return
        login = self._credits  # a new one at each login

        def done(request: Management) -> None:
            self.counts.manage(function, request.response)
            self._respond(iu.tag, code=RspCode(request.response), login=login)

        self.port.target.manage(
            Management(self._logged_in(), iu.lun, function, done, managed_tag=iu.managed_tag)
        )

    def _respond(
        self,
        tag: int,
        *,
        code: RspCode | None = None,
        login: Credits | None = None,
        ended: Ended | None = None,
        data: bytes = b"",
        **fields: Any,
    ) -> None:
        """Answer a command (fields), or refuse it or end a management function (code).

        After a logout nothing that was in flight is answered; a function, which may wait for
        another guest's tasks, not after the `login` that it came in.
        """
        if code is not None:
            fields["flags"] = RspFlags.RSPVALID
            fields["response_data"] = bytes([0, 0, 0, code])
        asked_in = login or self._credits
        delta = asked_in.give_back()
        if self._nexus is not None:
            iu = build_iu(IuType.RSP, tag=tag, request_limit_delta=delta, **fields)
            slot = build_slot(SlotFormat.SRP, iu)
            self.answer(slot, valid=lambda: self._credits is asked_in, ended=ended, data=data)

    def _logged_in(self) -> Nexus:
        if self._nexus is None:
            raise WireError("no login")
        return self._nexus

    # Requests of the target's own

    def report_event(self, lun: bytes, sense: bytes) -> None:
        """Tell the initiator of an event at once (AER_REQ); any thread.

        At most MAX_EVENTS wait; the unit attention that goes with each is not lost with it.
        """
        if self._nexus is not None:
            sense = sense[: self._max_iu_length - RSP_BYTES]
            self._credits.queue_event(lun, sense)
            self._send_events()

    def _send_events(self) -> None:
        """Send the next target request, if none is outstanding and there is reason for one."""
        request = self._credits.next_request() if self._nexus is not None else None
        if request is not None:
            kind, fields = request
            self._send(kind, **fields)

    def _event_answered(self, iu: Container) -> None:
        if not self._credits.request_answered(iu.tag):
            self._logout(TLogoutReason.SPURIOUS_RESPONSE, f"{iu.type.name} to no request")
        self._send_events()

    def _send(self, kind: IuType, **fields: Any) -> None:
        self.answer(build_slot(SlotFormat.SRP, build_iu(kind, **fields)))

    _handlers: ClassVar[dict[IuType, Callable[["SrpBackend", Container], None]]] = {
        IuType.LOGIN_REQ: _login,
        IuType.I_LOGOUT: _initiator_logout,
        IuType.CMD: _command,
        IuType.TSK_MGMT: _manage,
        IuType.CRED_RSP: _event_answered,
        IuType.AER_RSP: _event_answered,
    }
