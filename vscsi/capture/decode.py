# SPDX-License-Identifier: MIT
"""What one captured message is, whatever its protocol: a request or an answer, in SAM's words.

Raises WireError for a message that is none of its protocol; what it claims beyond what it holds
(segments, CDB bytes) is left out.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum, IntEnum

from construct import Container

from vscsi.target.base import Function
from vscsi.wire import blkif, mad, srp, vscsiif
from vscsi.wire.cdb import describe
from vscsi.wire.errors import WireError
from vscsi.wire.lun import encode, logical_unit_number
from vscsi.wire.record import LayoutCode, Protocol, Way
from vscsi.wire.sense import Sense, parse_sense
from vscsi.wire.srp import IuType
from vscsi.wire.srp_ring import SlotFormat, parse_slot


class Kind(Enum):
    """What a message is about."""

    COMMAND = "command"
    MANAGEMENT = "task management"
    LOGIN = "login"
    LOGOUT = "logout"
    CREDIT = "credit"
    EVENT = "event"
    MAD = "MAD"
    MALFORMED = "malformed"


COMPLETE = "FUNCTION COMPLETE"
ATTRIBUTE = 0x07
"""The task attribute in SRP's byte (SRP r16a, CMD)."""


@dataclass(frozen=True, slots=True)
class Request:
    """What one side asked of the other."""

    kind: Kind
    tag: int | None
    words: str
    lun: str = ""
    """A logical unit number; channel:id:lun in vscsiif; 16 hex digits where it is no number."""
    address: bytes = b""
    """The unit's in 8 bytes, as SAM's LUN; vscsiif's by its LUN alone; empty in blkif."""
    cdb: bytes = b""
    """What the message has of it: SRP's at least 16 bytes, whatever the command."""
    attribute: int | None = None
    """SRP's task attribute; the other protocols have none."""
    block_operation: int | None = None
    """blkif's; of an indirect request what it is about."""
    lba: int | None = None
    blocks: int | None = None
    """blkif's sectors: where, where that means something, and how many."""
    data_out: int = 0
    data_in: int = 0
    """Bytes in the buffers."""
    function: int = 0
    managed_tag: int = 0
    answered: bool = True
    """Whether the protocol has an answer to it."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back."""

    kind: Kind
    """COMMAND also where it may be one to a task management request."""
    tag: int
    status: int | None = None
    """SCSI status, if the protocol has it."""
    outcome: str = ""
    """The protocol's own words."""
    failed: bool = False
    """The command was not executed: nothing was moved."""
    residual: int = 0
    """Bytes: > 0 not moved, < 0 buffer too short; over both directions."""
    sense: Sense | None = None
    sense_data: bytes = b""


def decode(record: Container) -> Request | Answer:
    """Return what a record's message is; one that cannot be parsed is a MALFORMED request."""
    try:
        way = Way(record.direction)
        return _DECODERS[Protocol(record.protocol)](record, way)
    except (WireError, ValueError) as error:  # ValueError: no such protocol or way
        words = f"{error} [{record.message[:32].hex()}]"
        return Request(Kind.MALFORMED, None, words, answered=False)


def _name(kind: type[IntEnum], code: int, what: str) -> str:
    try:
        return kind(code).name.replace("_", " ")
    except ValueError:
        return f"{what} 0x{code:x}"


# SRP


def _srp(record: Container, way: Way) -> Request | Answer:
    form, unit = parse_slot(record.message)
    if form is SlotFormat.MAD:
        return _mad(unit, way)
    iu = srp.parse_iu(unit)
    sender = Way.TO_INITIATOR if iu.type & 0x80 else Way.TO_TARGET
    if sender is not way:
        raise WireError(f"{iu.type.name} from the wrong side")
    return _IUS[iu.type](iu)


def _login_req(iu: Container) -> Request:
    formats = srp.BufferFormats(iu.required_buffer_formats & 6).name or "no"
    words = (
        f"LOGIN IUs of {iu.requested_max_it_iu_length} bytes, {formats.lower()} buffers, "
        f"initiator {iu.initiator_port_id.hex()}"
    )
    return Request(Kind.LOGIN, iu.tag, words)


def _login_rsp(iu: Container) -> Answer:
    outcome = (
        f"ACCEPTED, request limit {iu.request_limit_delta}, IUs of {iu.max_it_iu_length} and "
        f"{iu.max_ti_iu_length} bytes"
    )
    return Answer(Kind.LOGIN, iu.tag, outcome=outcome)


def _login_rej(iu: Container) -> Answer:
    reason = _name(srp.LoginRejectReason, iu.reason, "reason")
    return Answer(Kind.LOGIN, iu.tag, outcome=f"REJECTED, {reason}", failed=True)


def _cmd(iu: Container) -> Request:
    cdb = srp.cdb_of(iu)
    return Request(
        Kind.COMMAND,
        iu.tag,
        describe(cdb),
        lun=unit_name(iu.lun),
        address=iu.lun,
        cdb=cdb,
        attribute=iu.attribute & ATTRIBUTE,
        data_out=_buffer_length(iu.data_out),
        data_in=_buffer_length(iu.data_in),
    )


def _buffer_length(area: Container | None) -> int:
    if area is None:
        return 0
    return int(area.total_length if "table" in area else area.length)


def _rsp(iu: Container) -> Answer:
    code = srp.rsp_code(iu)
    outcome = ""
    if code is not None:
        outcome = COMPLETE if code == 0 else _name(srp.RspCode, code, "response")
    data_out = _residual(iu, srp.RspFlags.DOUNDER, srp.RspFlags.DOOVER, iu.data_out_residual)
    data_in = _residual(iu, srp.RspFlags.DIUNDER, srp.RspFlags.DIOVER, iu.data_in_residual)
    return Answer(
        Kind.COMMAND,
        iu.tag,
        status=iu.status,
        outcome=outcome,
        failed=bool(code),
        residual=data_out + data_in,
        sense=parse_sense(iu.sense_data),
        sense_data=iu.sense_data,
    )


def _residual(iu: Container, under: int, over: int, count: int) -> int:
    return -count if iu.flags & over else count if iu.flags & under else 0


def _tsk_mgmt(iu: Container) -> Request:
    words = _name(Function, iu.function, "function")
    if iu.function == Function.ABORT_TASK:
        words += f" tag 0x{iu.managed_tag:x}"
    return Request(
        Kind.MANAGEMENT,
        iu.tag,
        words,
        lun=unit_name(iu.lun),
        address=iu.lun,
        function=iu.function,
        managed_tag=iu.managed_tag,
    )


def _cred_req(iu: Container) -> Request:
    return Request(Kind.CREDIT, iu.tag, f"CRED_REQ request limit {iu.request_limit_delta:+d}")


def _aer_req(iu: Container) -> Request:
    sense = parse_sense(iu.sense_data)
    words = f"AER_REQ {sense.describe() if sense else 'without sense'}"
    return Request(Kind.EVENT, iu.tag, words, lun=unit_name(iu.lun), address=iu.lun)


def _t_logout(iu: Container) -> Request:
    words = f"T_LOGOUT {_name(srp.TLogoutReason, iu.reason, 'reason')}"
    return Request(Kind.LOGOUT, iu.tag, words, answered=False)


_IUS: dict[IuType, Callable[[Container], Request | Answer]] = {
    IuType.LOGIN_REQ: _login_req,
    IuType.LOGIN_RSP: _login_rsp,
    IuType.LOGIN_REJ: _login_rej,
    IuType.I_LOGOUT: lambda iu: Request(Kind.LOGOUT, iu.tag, "I_LOGOUT", answered=False),
    IuType.T_LOGOUT: _t_logout,
    IuType.CMD: _cmd,
    IuType.TSK_MGMT: _tsk_mgmt,
    IuType.RSP: _rsp,
    IuType.CRED_REQ: _cred_req,
    IuType.CRED_RSP: lambda iu: Answer(Kind.CREDIT, iu.tag, outcome="CRED_RSP"),
    IuType.AER_REQ: _aer_req,
    IuType.AER_RSP: lambda iu: Answer(Kind.EVENT, iu.tag, outcome="AER_RSP"),
}


def _mad(unit: bytes, way: Way) -> Request | Answer:
    message = mad.parse_mad(unit)
    if way is Way.TO_INITIATOR:
        outcome = _name(mad.MadStatus, message.status, "status")
        return Answer(Kind.MAD, message.tag, outcome=outcome, failed=message.status != 0)
    words = _name(mad.MadType, message.type, "MAD")
    if message.type in (mad.MadType.REGISTER_REGION, mad.MadType.UNREGISTER_REGION):
        words += f" handle 0x{message.handle:x} pages {message.pages}"
    return Request(Kind.MAD, message.tag, words)


def unit_name(address: bytes) -> str:
    """Return what `Request.lun` says of a SAM LUN."""
    number = logical_unit_number(address)
    return address.hex() if number is None else str(number)


# vscsiif


def _vscsiif(record: Container, way: Way) -> Request | Answer:
    if way is Way.TO_INITIATOR:
        return _vscsiif_answer(vscsiif.parse_response(record.message))
    request = vscsiif.parse_request(record.message)
    if request.act == vscsiif.Act.SG_PRESET:
        words = f"SG_PRESET segments {request.nr_segments}"
        return Request(Kind.COMMAND, request.rqid, words)
    lun = f"{request.channel}:{request.id}:{request.lun}"
    address = encode(request.lun)
    if request.act in _ACTS:
        function = _ACTS[request.act]
        words = function.name.replace("_", " ")
        if function is Function.ABORT_TASK:
            words += f" tag 0x{request.ref_rqid:x}"
        return Request(
            Kind.MANAGEMENT,
            request.rqid,
            words,
            lun=lun,
            address=address,
            function=function,
            managed_tag=request.ref_rqid,
        )
    if request.act != vscsiif.Act.CDB:
        return Request(Kind.COMMAND, request.rqid, f"act {request.act}", lun=lun, address=address)
    cdb = request.cdb[: request.cmd_len]
    segments = request.segments[: request.nr_segments & ~vscsiif.SG_GRANT]
    if request.nr_segments & vscsiif.SG_GRANT:
        size = vscsiif.Segment.sizeof()
        table = record.segments
        segments = vscsiif.parse_segments(table[: len(table) - len(table) % size])
    length = sum(segment.length for segment in segments)
    out = request.direction == vscsiif.Direction.TO_DEVICE
    return Request(
        Kind.COMMAND,
        request.rqid,
        describe(cdb),
        lun=lun,
        address=address,
        cdb=cdb,
        data_out=length if out else 0,
        data_in=0 if out else length,
    )


_ACTS = {
    vscsiif.Act.ABORT: Function.ABORT_TASK,
    vscsiif.Act.RESET: Function.LOGICAL_UNIT_RESET,
}


def _vscsiif_answer(response: Container) -> Answer:
    # Only a management request has one of these: a command's bits 8 to 15 are 0.
    if response.rslt in (vscsiif.RESET_SUCCESS, vscsiif.RESET_FAILED):
        failed = response.rslt == vscsiif.RESET_FAILED
        outcome = "FAILED" if failed else COMPLETE
        return Answer(Kind.COMMAND, response.rqid, outcome=outcome, failed=failed)
    status, host = vscsiif.unpack_rslt(response.rslt)
    sense = response.sense_buffer[: response.sense_len]
    return Answer(
        Kind.COMMAND,
        response.rqid,
        status=status,
        outcome="" if host == vscsiif.Host.OK else "host " + _name(vscsiif.Host, host, "code"),
        failed=host != vscsiif.Host.OK,
        residual=response.residual,
        sense=parse_sense(sense),
        sense_data=sense,
    )


# blkif


def _blkif(record: Container, way: Way) -> Request | Answer:
    layout = _LAYOUTS.get(record.layout)
    if layout is None:
        raise WireError(f"blkif layout {record.layout}")
    if way is Way.TO_INITIATOR:
        response = layout.parse_response(record.message)
        outcome = _name(blkif.RspStatus, response.status, "status")
        return Answer(Kind.COMMAND, response.id, outcome=outcome, failed=response.status != 0)
    size = layout.slot_size
    request = layout.parse_request(record.message[:size])
    operation = request.operation
    words = _name(blkif.Operation, operation, "operation")
    segments: Iterable[Container] = request.get("segments", ())
    if operation == blkif.Operation.INDIRECT:
        operation = request.indirect_op
        words += " " + _name(blkif.Operation, operation, "operation")
        table = record.segments
        segments = blkif.parse_segments(table[: len(table) - len(table) % blkif.Segment.sizeof()])
    elif "nr_segments" in request and len(record.message) > size:
        # FreeBSD's 2010 extension: segment blocks follow.
        segments = list(segments)
        for at in range(size, len(record.message), size):
            segments += layout.parse_segment_block(record.message[at : at + size])
        segments = segments[: request.nr_segments]
    sectors = sum(max(0, each.last_sect - each.first_sect + 1) for each in segments)
    lba, blocks = request.get("sector_number"), request.get("nr_sectors", sectors)
    if lba is not None:
        words += f" sector {lba} sectors {blocks}"
    if operation == blkif.Operation.FLUSH_DISKCACHE:
        lba = None  # of the whole disk, whatever stands there
    length = sectors * blkif.SECTOR_SIZE
    read = operation == blkif.Operation.READ
    return Request(
        Kind.COMMAND,
        request.id,
        words,
        block_operation=operation,
        lba=lba,
        blocks=None if lba is None else blocks,
        data_out=0 if read else length,
        data_in=length if read else 0,
    )


_LAYOUTS: dict[int, blkif.Layout] = {
    LayoutCode.X86_64: blkif.X86_64,
    LayoutCode.X86_32: blkif.X86_32,
}

_DECODERS: dict[Protocol, Callable[[Container, Way], Request | Answer]] = {
    Protocol.SRP: _srp,
    Protocol.VSCSIIF: _vscsiif,
    Protocol.BLKIF: _blkif,
}
