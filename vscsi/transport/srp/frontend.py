# SPDX-License-Identifier: MIT
"""The initiator's end of an SRP channel."""

import itertools
import secrets
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from construct import Container

from vscsi.domain.base import PAGE_SIZE
from vscsi.domain.local import BACKEND_DOMAIN
from vscsi.domain.memory import OutOfMemoryError
from vscsi.domain.negotiate import (
    DEFAULT_SLOT_SIZE,
    RESPONSE_RING_REF,
    RING_REF,
    choose_rings,
    choose_slot_size,
)
from vscsi.domain.xenbus import Keys, Reader
from vscsi.ring import RingEnd
from vscsi.target.base import Function, ServiceResponse
from vscsi.transport.frontend import ABORTED, CONNECT_TIMEOUT_S, RingInitiator
from vscsi.transport.gate import Gate
from vscsi.transport.initiator import (
    Buffer,
    Command,
    ManagementCommand,
    TransportError,
    finish,
)
from vscsi.transport.load import Completion, Template
from vscsi.transport.outcome import status_of
from vscsi.transport.srp.arena import Arena
from vscsi.transport.srp.several import manage_several
from vscsi.wire.errors import WireError
from vscsi.wire.formats import build, parse, text
from vscsi.wire.mad import (
    MAD_VERSION,
    SRP_VERSION,
    AdapterInfoData,
    MadStatus,
    MadType,
    OsType,
    build_directory,
    build_mad,
    parse_mad,
)
from vscsi.wire.srp import (
    CMD_BYTES,
    BufferFormats,
    IuType,
    LoginRejectReason,
    LoginReqFlags,
    MemoryDescriptor,
    RspFlags,
    build_iu,
    cdb_fields,
    parse_iu,
    rsp_code,
)
from vscsi.wire.srp_ring import SlotFormat, SlotHeader, build_slot, parse_slot

RING_ORDER = 2
"""Four pages a ring: 64 slots of 128 bytes."""
ARENA_BYTES = 32 << 20
DATA_HANDLE = 1
LOGIN_TAG = 1 << 63
LOAD_TAG = 1 << 62
"""In the tags of loads; 2^30 of them before they are used again."""
INDIRECT_BYTES = 20
DESCRIPTOR_BYTES = 16
MAX_CDB_BYTES = 16 + 0xFC
"""With as many additional bytes as the length field can say."""
TASK_MANAGEMENT_RESERVE = 1
"""Credit that commands leave to task management (as Linux' initiator)."""

Request = Command | ManagementCommand


class SrpInitiator(RingInitiator[Request]):
    """An SRP initiator port: a channel over two one-way rings, or one of several (queues).

    Several are channels of one nexus (multi-channel action 1). A command takes the one with the
    least to do; where ORDERED commands or task management meet several, those wait for all.
    """

    kind: ClassVar[str] = "vsrp"
    load_protocol = "srp"

    def __init__(
        self,
        directory: Path,
        *,
        handle: int = 0,
        ring_order: int = RING_ORDER,
        queues: int = 1,
        first: "SrpInitiator | None" = None,
    ) -> None:
        super().__init__(directory, handle, queues=queues, first=first)
        self._again = partial(SrpInitiator, directory, handle=handle, ring_order=ring_order)
        self._port: SrpInitiator = first or self
        """The first channel, which has what the port's channels share."""
        self.port_id: bytes = secrets.token_bytes(16) if first is None else first.port_id
        self.partner = ""
        """What the target's end calls itself (adapter info)."""
        self._ring_order = ring_order
        self._limit = 0
        self._request_limit = 0
        self._max_iu_length = 0
        self._tags = itertools.count(1)
        """Unique among all channels of the nexus; of two on one channel the later is greater."""
        self._loads = itertools.count()
        self._gate = Gate()
        self._tables: dict[int, list[Buffer]] = {}
        self._asked: SlotFormat | None = None
        self._replies: deque[Container] = deque()
        self._arena: Arena | None = None
        self._region: list[int] = []
        """Grants of the arena."""
        self.on_event: Callable[[bytes, bytes], None] = lambda _lun, _sense: None
        """Called with LUN and sense data of each AER_REQ, from the receiver's thread."""

    # Connecting

    def make_ring(self, backend: Reader) -> Keys:
        """Make both rings."""
        choice = choose_rings(backend, self._ring_order)
        slot_size = choose_slot_size(backend, DEFAULT_SLOT_SIZE)
        requests, request_refs = self.ring_pages(choice.pages)
        responses, response_refs = self.ring_pages(choice.pages)
        self.ring = RingEnd.pair_front(requests, responses, slot_size)
        self._max_iu_length = slot_size - SlotHeader.sizeof()
        keys = choice.keys({RING_REF: request_refs, RESPONSE_RING_REF: response_refs})
        return {**keys, "slot-size": str(slot_size)}

    def take_properties(self, backend: Reader) -> Keys:
        """Read the target port's name."""
        try:
            self._target_port = bytes.fromhex(backend.text("target-port-id"))
        except ValueError as error:
            raise WireError(f"target-port-id: {error}") from error
        if len(self._target_port) != 16:
            raise WireError(f"target-port-id of {len(self._target_port)} bytes")
        return {}

    def another_queue(self) -> RingInitiator[Request]:
        """Return a further channel of this port."""
        channel = self._again(first=self)
        channel.on_event = lambda lun, sense: self.on_event(lun, sense)
        return channel

    def begin(self) -> None:
        """Register the memory for data, say who is here, and log in."""
        if self._port is self:
            memory = self.guest.memory
            frames = memory.alloc(ARENA_BYTES // PAGE_SIZE, contiguous=True)
            self._region = memory.grant(frames, BACKEND_DOMAIN, readonly=False)
            self._arena = Arena(DATA_HANDLE, memory.view(frames[0], len(frames)))
        else:
            self._arena = self._port._arena
        self._register(self._port._region)
        self._exchange_adapter_info()
        self._login()

    def _register(self, references: Sequence[int]) -> None:
        """Register what has these grants, in this order, as the memory for data."""
        memory = self.guest.memory
        directory = build_directory(references)
        listing = memory.alloc(len(directory))
        for frame, page in zip(listing, directory, strict=True):
            memory.view(frame)[:] = page
        listed = memory.grant(listing, BACKEND_DOMAIN, readonly=True)
        self._mad(
            MadType.REGISTER_REGION, handle=DATA_HANDLE, pages=len(references), directory=listed
        )
        if memory.end_access(listed):
            raise WireError("the directory is still mapped after the answer")
        memory.free(listing)

    def _exchange_adapter_info(self) -> None:
        info = {
            "srp_version": SRP_VERSION,
            "partition_name": f"domain {self.guest.domain}".encode().ljust(96, b"\0"),
            "partition_number": self.guest.domain,
            "mad_version": MAD_VERSION,
            "os_type": OsType.LINUX,
        }
        data = build(AdapterInfoData, info)
        buffer = self.alloc(len(data))
        buffer.view[:] = data
        self._mad(MadType.ADAPTER_INFO, length=len(data), buffer=DATA_HANDLE << 32 | buffer.address)
        theirs = parse(AdapterInfoData, bytes(buffer.view), "adapter info")
        self.partner = text(theirs.partition_name)
        self.free(buffer)

    def _login(self) -> None:
        reply = self._ask(
            SlotFormat.SRP,
            build_iu(
                IuType.LOGIN_REQ,
                tag=LOGIN_TAG,
                requested_max_it_iu_length=self._max_iu_length,
                required_buffer_formats=BufferFormats.DIRECT | BufferFormats.INDIRECT,
                flags=LoginReqFlags.MULTI_CHANNEL if len(self._port.queues) > 1 else 0,
                initiator_port_id=self.port_id,
                target_port_id=self._target_port,
            ),
        )
        if reply.type is IuType.LOGIN_REJ:
            reasons = {int(reason): reason.name.lower() for reason in LoginRejectReason}
            reason = reasons.get(reply.reason, f"reason 0x{reply.reason:08x}")
            raise TransportError(f"login rejected: {reason.replace('_', ' ')}")
        with self._lock:
            self._request_limit = self._limit = reply.request_limit_delta

    def _mad(self, kind: MadType, **fields: Any) -> None:
        reply = self._ask(SlotFormat.MAD, build_mad(kind, tag=int(kind), **fields))
        if reply.status != MadStatus.SUCCESS:
            raise TransportError(f"{kind.name.lower().replace('_', ' ')}: status {reply.status}")

    def _ask(self, form: SlotFormat, unit: bytes) -> Container:
        """Send a MAD or a login, of which one is outstanding at a time, and await its answer."""
        with self._lock:
            self.check_usable()
            self._asked = form
            self.send(form, unit)
            self._publish()
        with self._changed:
            self._changed.wait_for(
                lambda: self._replies or self._failure is not None, CONNECT_TIMEOUT_S
            )
        if not self._replies:
            raise TransportError(self._failure or "no answer")
        return self._replies.popleft()

    # Memory

    def alloc(self, length: int) -> Buffer:
        """Return a zeroed buffer in the registered region."""
        if self._arena is None:
            raise TransportError("no memory is registered")
        return self._arena.alloc(length)

    def free(self, buffer: Buffer) -> None:
        """Give back what `alloc` returned."""
        if self._arena is not None:
            self._arena.free(buffer)

    # Commands

    def submit(self, command: Command) -> None:
        """Start a command; TransportError if no information unit of the channel can hold it."""
        areas = sum(INDIRECT_BYTES for buffers in (command.data_out, command.data_in) if buffers)
        if len(command.lun) != 8 or self._room_beside(command.cdb) < areas:
            raise TransportError(
                f"a CDB of {len(command.cdb)} bytes for a LUN of {len(command.lun)} does not fit "
                f"a unit of {self._max_iu_length} bytes"
            )
        self.statistics.commands += 1
        if len(self.queues) == 1:
            self.enqueue([command])
        else:
            self.check_usable()
            self._gate.enter(command, partial(self._begin_on_a_channel, command))

    def _begin_on_a_channel(self, command: Command) -> None:
        channel = min(self.queues, key=lambda each: each.load)
        try:
            channel.enqueue([command])
        except TransportError as error:
            command.error = error
            self._finish(command)

    def _finish(self, request: Request) -> None:
        """Tell a request's owner that it is done."""
        if isinstance(request, Command) and len(self._port.queues) > 1:
            self._port._gate.leave(request)
        finish(request)

    def manage(self, request: ManagementCommand) -> None:
        """Start a task management function."""
        if len(request.lun) != 8:
            raise TransportError(f"LUN of {len(request.lun)} bytes")
        managed = request.managed
        if request.function is not Function.ABORT_TASK and len(self.queues) > 1:
            self.check_usable()
            manage_several(self.queues, self._gate, self._begin_on_a_channel, request)
        elif managed is None:
            self.enqueue([request], first=True)
        elif self._gate.withdraw(managed):
            managed.error = TransportError(ABORTED)
            finish(managed)
            request.done(request)
        elif any(channel.recall(managed) for channel in self.queues):
            request.done(request)
        else:  # behind the command, on the same ring; where there is none it has ended
            for channel in self.queues:
                if channel.in_flight.get(managed.tag) is managed or channel is self.queues[-1]:
                    channel.enqueue([request], first=True)
                    return

    def room_for(self, request: Request) -> bool:
        """A slot, and credit; the last credit is for task management."""
        reserve = 0 if isinstance(request, ManagementCommand) else TASK_MANAGEMENT_RESERVE
        return self.ring is not None and self.ring.free > 0 and self._limit > reserve

    def put(self, request: Request) -> None:
        """Send a CMD or TSK_MGMT."""
        tag = request.tag = next(self._port._tags)
        if isinstance(request, Command):
            tables: list[Buffer] = []
            try:
                unit = self._command_iu(request, tables)
            except OutOfMemoryError:
                self._free_all(tables)
                raise
            if tables:
                self._tables[tag] = tables
        else:
            unit = build_iu(
                IuType.TSK_MGMT,
                tag=tag,
                lun=request.lun,
                function=request.function,
                managed_tag=request.managed.tag if request.managed else 0,
            )
        self.send(SlotFormat.SRP, unit)
        self._limit -= 1
        self.in_flight[tag] = request

    def _command_iu(self, command: Command, tables: list[Buffer]) -> bytes:
        """Return a CMD; tables in memory, if it needs any, are added to those."""
        space = self._room_beside(command.cdb)
        if command.data_out and command.data_in:
            space = 0  # both tables, if there are any, in memory
        return build_iu(
            IuType.CMD,
            tag=command.tag,
            lun=command.lun,
            attribute=command.attribute,
            **cdb_fields(command.cdb),
            data_out=self._area(command.data_out, space, tables),
            data_in=self._area(command.data_in, space, tables),
        )

    def _room_beside(self, cdb: bytes) -> int:
        """Return the bytes of a unit that a CDB leaves for descriptors; negative if it is cut."""
        if len(cdb) > MAX_CDB_BYTES:
            return -1
        return self._max_iu_length - CMD_BYTES - len(cdb_fields(cdb)["additional_cdb"])

    def _area(
        self, buffers: Sequence[Buffer], space: int, tables: list[Buffer]
    ) -> Mapping[str, Any] | None:
        """Return a descriptor area: direct, or indirect with its table in the unit if it fits."""
        descriptors = [
            {"address": buffer.address, "handle": DATA_HANDLE, "length": len(buffer)}
            for buffer in buffers
        ]
        if not descriptors:
            return None
        if len(descriptors) == 1:
            return descriptors[0]
        total = sum(map(len, buffers))
        length = DESCRIPTOR_BYTES * len(descriptors)
        if INDIRECT_BYTES + length <= space:
            table = {"address": 0, "handle": 0, "length": length}
            return {"table": table, "total_length": total, "descriptors": descriptors}
        memory = self.alloc(length)
        tables.append(memory)
        memory.view[:] = b"".join(build(MemoryDescriptor, each) for each in descriptors)
        table = {"address": memory.address, "handle": DATA_HANDLE, "length": length}
        return {"table": table, "total_length": total, "descriptors": ()}

    def send(self, form: SlotFormat, unit: bytes) -> bool:
        """Put a unit on the ring (with the lock); False if there is no slot."""
        return self.ring is not None and self.ring.put(build_slot(form, unit))

    # Answers

    def answered(self, slot: bytes) -> Iterable[Completion]:
        """Handle a unit from the target."""
        form, unit = parse_slot(slot)
        if form is SlotFormat.MAD:
            self._take_reply(form, parse_mad(unit))
            return ()
        iu = parse_iu(unit)
        if iu.type is IuType.RSP:
            return self._response(iu)
        if iu.type in (IuType.LOGIN_RSP, IuType.LOGIN_REJ):
            self._take_reply(form, iu)
            return ()
        if iu.type is IuType.CRED_REQ:
            self._limit += iu.request_limit_delta
            self._reply_to(iu, IuType.CRED_RSP)
            return ()
        if iu.type is IuType.AER_REQ:
            self._limit += iu.request_limit_delta
            self._reply_to(iu, IuType.AER_RSP)
            return (lambda: self.on_event(iu.lun, iu.sense_data),)
        if iu.type is IuType.T_LOGOUT:
            raise WireError(f"the target logged out, reason {iu.reason}")
        raise WireError(f"{iu.type.name} from a target")

    def _reply_to(self, iu: Container, kind: IuType) -> None:
        if not self.send(SlotFormat.SRP, build_iu(kind, tag=iu.tag)):
            raise WireError(f"{iu.type.name} while the last one is not answered")

    def _take_reply(self, form: SlotFormat, reply: Container) -> None:
        if self._asked is not form:
            raise WireError("an answer to no question")
        self._asked = None
        with self._changed:
            self._replies.append(reply)
            self._changed.notify_all()

    def _response(self, rsp: Container) -> Iterable[Completion]:
        request = self.in_flight.get(rsp.tag)
        if request is None:
            raise WireError(f"RSP to tag {rsp.tag}, which is not in flight")
        code = rsp_code(rsp) or 0
        aborted: list[Command] = []
        if isinstance(request, Command):
            self._take(request, rsp, code)
        else:
            aborted = self._managed(request, code)
        error = TransportError(ABORTED)
        completions = [self.cancelled(command, error) for command in aborted]
        for ended in (request, *aborted):
            del self.in_flight[ended.tag]
        self._limit += rsp.request_limit_delta
        return [*completions, partial(self._finish, request)]

    def _take(self, command: Command, rsp: Container, code: int) -> None:
        if code:
            command.error = TransportError(f"the target refused the request: RSP_CODE {code}")
        else:
            command.status = status_of(rsp.status)
            command.sense = rsp.sense_data
            command.residual = residual_of(rsp, command)
        self._free_table(command)

    def _managed(self, request: ManagementCommand, code: int) -> list[Command]:
        """Take a function's outcome; return the commands that it aborted, which get no RSP."""
        try:
            request.response = ServiceResponse(code)
        except ValueError:
            raise WireError(f"RSP_CODE {code}") from None
        if request.response is not ServiceResponse.FUNCTION_COMPLETE:
            return []
        return self._aborted_by(request)

    def _aborted_by(self, request: ManagementCommand) -> list[Command]:
        commands = [each for each in self.in_flight.values() if isinstance(each, Command)]
        if request.function is Function.ABORT_TASK:
            return [each for each in commands if each is request.managed]
        # Sent before the function; what was sent after it was not affected.
        return [each for each in commands if each.lun == request.lun and each.tag < request.tag]

    def cancelled(self, request: Request, error: TransportError) -> Completion:
        """Return what to call to end a request that got no answer."""
        request.error = error
        if isinstance(request, Command):
            self._free_table(request)
        return partial(self._finish, request)

    def _free_table(self, command: Command) -> None:
        self._free_all(self._tables.pop(command.tag, ()))

    def _free_all(self, tables: Iterable[Buffer]) -> None:
        for table in tables:
            self.free(table)

    # A load

    def first_tag(self) -> int:
        """Return the first of 2^32 tags that no other load on a channel of this nexus has."""
        return LOAD_TAG | next(self._port._loads) << 32

    def template(self, tag: int, command: Command) -> Template:
        """Return a command's CMD."""
        command.tag = tag
        tables: list[Buffer] = []
        try:
            unit = self._command_iu(command, tables)
        except OutOfMemoryError:
            self._free_all(tables)
            raise
        return Template(build_slot(SlotFormat.SRP, unit), (), partial(self._free_all, tables))

    @property
    def room(self) -> int:
        """Commands that the request limit allows."""
        return self._limit - TASK_MANAGEMENT_RESERVE

    def take_room(self, room: int) -> None:
        """Note how much a load left."""
        self._limit = room + TASK_MANAGEMENT_RESERVE

    def judge(self, command: Command, slot: bytes) -> None:
        """Set a command's outcome from an RSP."""
        _, unit = parse_slot(slot)
        rsp = parse_iu(unit)
        self._take(command, rsp, rsp_code(rsp) or 0)

    def parameters(self) -> Mapping[str, object]:
        """Return what was negotiated."""
        return {
            **super().parameters(),
            "slot_bytes": self._max_iu_length + SlotHeader.sizeof(),
            "request_limit": self._request_limit,
            "partner": self.partner,
        }


def residual_of(rsp: Container, command: Command) -> int:
    """Return a command's residual from RSP's flags, for the direction that it had a buffer for."""
    if command.data_in:
        under, over, residual = RspFlags.DIUNDER, RspFlags.DIOVER, rsp.data_in_residual
    else:
        under, over, residual = RspFlags.DOUNDER, RspFlags.DOOVER, rsp.data_out_residual
    if rsp.flags & under and residual > command.data_in_length + command.data_out_length:
        raise WireError(f"a residual of {residual} bytes, more than the buffer has")
    return int(residual) if rsp.flags & under else -int(residual) if rsp.flags & over else 0
