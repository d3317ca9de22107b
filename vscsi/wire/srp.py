# SPDX-License-Identifier: MIT
"""SRP information units (T10 1415-D r16a; immediate data from SRP-2). Big-endian.

`parse_iu` and `build_iu` take and give whole IUs. Reserved bytes and whatever follows the last
field (`trailing`: immediate data, or what a driver left in a fixed-size buffer) are kept.
"""

from enum import IntEnum, IntFlag
from typing import Any

from construct import (
    Array,
    Bytes,
    Computed,
    Const,
    Construct,
    Container,
    Default,
    Error,
    GreedyBytes,
    Int8ub,
    Int32ub,
    Pass,
    Rebuild,
    Struct,
    Switch,
    this,
)

from vscsi.wire.errors import WireError
from vscsi.wire.formats import S32B, U8, U16B, U32B, U64B, Packed, build, parse, raw
from vscsi.wire.shaped import Shaped

MIN_MAX_IT_IU_LENGTH = 64
"""The least maximum initiator-to-target IU length that a login may ask for (bytes)."""
MIN_MAX_TI_IU_LENGTH = 56
"""The least maximum target-to-initiator IU length (bytes)."""


CMD_BYTES = 48
"""A CMD without additional CDB and buffer descriptors."""


class IuType(IntEnum):
    """Byte 0 of every IU. Bit 7: sent by the target; bit 6: a response."""

    LOGIN_REQ = 0x00
    TSK_MGMT = 0x01
    CMD = 0x02
    I_LOGOUT = 0x03
    CRED_RSP = 0x41
    AER_RSP = 0x42
    T_LOGOUT = 0x80
    CRED_REQ = 0x81
    AER_REQ = 0x82
    LOGIN_RSP = 0xC0
    RSP = 0xC1
    LOGIN_REJ = 0xC2


class BufferFormat(IntEnum):
    """Data buffer descriptor formats, as in the nibbles of CMD byte 5."""

    NONE = 0
    DIRECT = 1
    INDIRECT = 2
    IMMEDIATE = 3


class BufferFormats(IntFlag):
    """Required and supported buffer formats in the login IUs."""

    DIRECT = 0x0002
    INDIRECT = 0x0004


class LoginReqFlags(IntFlag):
    """LOGIN_REQ byte 26. The low two bits are the multi-channel action."""

    MULTI_CHANNEL = 0x01
    """Keep the other channels of this I_T nexus; without it they are terminated."""
    MULTI_CHANNEL_MASK = 0x03
    LOSOLNT = 0x10
    CRSOLNT = 0x20
    AESOLNT = 0x40
    IMMEDIATE_REQUESTED = 0x80


class LoginRspFlags(IntFlag):
    """LOGIN_RSP byte 26. The low two bits are the multi-channel result; neither: no channel."""

    CHANNELS_TERMINATED = 0x01
    CHANNELS_MAINTAINED = 0x02
    MULTI_CHANNEL_MASK = 0x03
    SOLNTSUP = 0x10
    IMMEDIATE_SUPPORTED = 0x80


class LoginRejectReason(IntEnum):
    """Reason codes of LOGIN_REJ."""

    UNABLE_TO_ESTABLISH_CHANNEL = 0x00010000
    INSUFFICIENT_CHANNEL_RESOURCES = 0x00010001
    REQUESTED_IT_IU_LENGTH_TOO_LARGE = 0x00010002
    UNABLE_TO_ASSOCIATE_CHANNEL = 0x00010003
    UNSUPPORTED_BUFFER_FORMAT = 0x00010004
    MULTI_CHANNEL_UNSUPPORTED = 0x00010005
    CHANNEL_LIMIT_REACHED = 0x00010006


class TLogoutReason(IntEnum):
    """Reason codes of T_LOGOUT; implementations differ from 5 on, so those stay opaque."""

    NO_REASON = 0
    INACTIVE_CHANNEL = 1
    INVALID_IU_TYPE = 2
    SPURIOUS_RESPONSE = 3
    MULTI_CHANNEL_ACTION = 4


class SolNot(IntFlag):
    """Solicited notification: what a request permits, and what a message of the target says."""

    SOLNT = 0x01
    SCSOLNT = 0x02
    UCSOLNT = 0x04


class RspFlags(IntFlag):
    """RSP byte 18. OVER: the command wanted to move more than the buffer; UNDER: less."""

    RSPVALID = 0x01
    SNSVALID = 0x02
    DOOVER = 0x04
    DOUNDER = 0x08
    DIOVER = 0x10
    DIUNDER = 0x20


class RspCode(IntEnum):
    """RSP_CODE, byte 3 of the response data."""

    NO_FAILURE = 0
    REQUEST_FIELDS_INVALID = 2
    TASK_MANAGEMENT_NOT_SUPPORTED = 4
    TASK_MANAGEMENT_FAILED = 5


def _type(kind: IuType) -> Construct:
    return "type" / Const(int(kind), Int8ub)


def _format_of(context: Container, name: str) -> int:
    """Return the descriptor format of an area: the given one, or what its value looks like."""
    if (given := context.get(f"{name}_format")) is not None:
        return int(given)
    if (area := context.get(name)) is None:
        return BufferFormat.NONE
    if "table" in area:
        return BufferFormat.INDIRECT
    return BufferFormat.DIRECT if "handle" in area else BufferFormat.IMMEDIATE


def _local_count(name: str) -> Construct:
    """Entries of an indirect descriptor that are in the IU; 0 for the other formats."""
    return Default(Int8ub, lambda c: len((c.get(name) or {}).get("descriptors", ())))


def _length_of(name: str) -> Construct:
    return Default(Int32ub, lambda c: len(c.get(name) or b""))


def _valid_length(length: str, flag: RspFlags) -> Construct:
    """Bytes whose length field counts only while its flag is set (SRP r16a, RSP)."""
    return Default(Bytes(lambda c: c[length] if c.flags & flag else 0), b"")


_TRAILING = "trailing" / Default(GreedyBytes, b"")

MemoryDescriptor = Packed("address" / U64B, "handle" / U32B, "length" / U32B)
"""A direct descriptor, and an entry of an indirect table."""

ImmediateDescriptor = Packed("length" / U32B)


def IndirectDescriptor(count: Any) -> Construct:  # noqa: N802  (construct's way of naming)
    """An indirect descriptor with `count` (int or context lambda) table entries in the IU."""
    return Struct(
        "table" / MemoryDescriptor,
        "total_length" / U32B,
        "descriptors" / Default(Array(count, MemoryDescriptor), ()),
    )


LoginReq = Struct(
    _type(IuType.LOGIN_REQ),
    "reserved1" / raw(7),
    "tag" / U64B,
    "requested_max_it_iu_length" / U32B,
    "reserved2" / raw(4),
    "required_buffer_formats" / U16B,
    "flags" / U8,
    "reserved3" / raw(1),
    "immediate_data_offset" / U16B,
    "reserved4" / raw(2),
    "initiator_port_id" / raw(16),
    "target_port_id" / raw(16),
    _TRAILING,
)

LoginRsp = Struct(
    _type(IuType.LOGIN_RSP),
    "reserved1" / raw(3),
    "request_limit_delta" / S32B,
    "tag" / U64B,
    "max_it_iu_length" / U32B,
    "max_ti_iu_length" / U32B,
    "supported_buffer_formats" / U16B,
    "flags" / U8,
    "reserved2" / raw(25),
    _TRAILING,
)

LoginRej = Struct(
    _type(IuType.LOGIN_REJ),
    "reserved1" / raw(3),
    "reason" / U32B,
    "tag" / U64B,
    "reserved2" / raw(8),
    "supported_buffer_formats" / U16B,
    "reserved3" / raw(6),
    _TRAILING,
)

TLogout = Struct(
    _type(IuType.T_LOGOUT),
    "sol_not" / U8,
    "reserved1" / raw(2),
    "reason" / U32B,
    "tag" / U64B,
    _TRAILING,
)

TskMgmt = Struct(
    _type(IuType.TSK_MGMT),
    "sol_not" / U8,
    "reserved1" / raw(6),
    "tag" / U64B,
    "reserved2" / raw(4),
    "lun" / raw(8),
    "reserved3" / raw(2),
    "function" / U8,
    "reserved4" / raw(1),
    "managed_tag" / U64B,
    "reserved5" / raw(8),
    _TRAILING,
)

Cmd = Shaped(
    _type(IuType.CMD),
    "sol_not" / U8,
    "reserved1" / raw(3),
    "data_formats"
    / Rebuild(Int8ub, lambda c: _format_of(c, "data_out") << 4 | _format_of(c, "data_in")),
    "data_out_format" / Computed(this.data_formats >> 4),
    "data_in_format" / Computed(this.data_formats & 0x0F),
    "data_out_count" / _local_count("data_out"),
    "data_in_count" / _local_count("data_in"),
    "tag" / U64B,
    "reserved2" / raw(4),
    "lun" / raw(8),
    "reserved3" / raw(1),
    "attribute" / U8,
    "reserved4" / raw(1),
    # In units of 4 bytes in bits 7:2, so that the byte without its two reserved bits is in bytes.
    "additional_cdb_length" / Default(Int8ub, lambda c: len(c.get("additional_cdb") or b"")),
    "cdb" / raw(16),
    "additional_cdb" / Default(Bytes(lambda c: c.additional_cdb_length & 0xFC), b""),
    "data_out"
    / Default(
        Switch(
            this.data_out_format,
            {
                BufferFormat.NONE: Pass,
                BufferFormat.DIRECT: MemoryDescriptor,
                BufferFormat.INDIRECT: IndirectDescriptor(lambda c: c._.data_out_count),
                BufferFormat.IMMEDIATE: ImmediateDescriptor,
            },
            default=Error,
        ),
        None,
    ),
    "data_in"
    / Default(
        Switch(
            this.data_in_format,
            {
                BufferFormat.NONE: Pass,
                BufferFormat.DIRECT: MemoryDescriptor,
                BufferFormat.INDIRECT: IndirectDescriptor(lambda c: c._.data_in_count),
            },
            default=Error,
        ),
        None,
    ),
    _TRAILING,
    by=("data_formats", "data_out_count", "data_in_count", "additional_cdb_length"),
)

Rsp = Shaped(
    _type(IuType.RSP),
    "sol_not" / U8,
    "reserved1" / raw(2),
    "request_limit_delta" / S32B,
    "tag" / U64B,
    "reserved2" / raw(2),
    "flags" / U8,
    "status" / U8,
    "data_out_residual" / U32B,
    "data_in_residual" / U32B,
    "sense_data_length" / _length_of("sense_data"),
    "response_data_length" / _length_of("response_data"),
    "response_data" / _valid_length("response_data_length", RspFlags.RSPVALID),
    "sense_data" / _valid_length("sense_data_length", RspFlags.SNSVALID),
    _TRAILING,
    by=("flags", "sense_data_length", "response_data_length"),
)

CredReq = Struct(
    _type(IuType.CRED_REQ),
    "sol_not" / U8,
    "reserved1" / raw(2),
    "request_limit_delta" / S32B,
    "tag" / U64B,
    _TRAILING,
)

AerReq = Struct(
    _type(IuType.AER_REQ),
    "sol_not" / U8,
    "reserved1" / raw(2),
    "request_limit_delta" / S32B,
    "tag" / U64B,
    "reserved2" / raw(4),
    "lun" / raw(8),
    "sense_data_length" / _length_of("sense_data"),
    "reserved3" / raw(4),
    "sense_data" / Default(Bytes(this.sense_data_length), b""),
    _TRAILING,
)


def _only_tag(kind: IuType) -> Construct:
    return Struct(_type(kind), "reserved1" / raw(7), "tag" / U64B, _TRAILING)


ILogout = _only_tag(IuType.I_LOGOUT)
CredRsp = _only_tag(IuType.CRED_RSP)
AerRsp = _only_tag(IuType.AER_RSP)

FORMATS: dict[IuType, Construct] = {
    IuType.LOGIN_REQ: LoginReq,
    IuType.TSK_MGMT: TskMgmt,
    IuType.CMD: Cmd,
    IuType.I_LOGOUT: ILogout,
    IuType.CRED_RSP: CredRsp,
    IuType.AER_RSP: AerRsp,
    IuType.T_LOGOUT: TLogout,
    IuType.CRED_REQ: CredReq,
    IuType.AER_REQ: AerReq,
    IuType.LOGIN_RSP: LoginRsp,
    IuType.RSP: Rsp,
    IuType.LOGIN_REJ: LoginRej,
}


def parse_iu(data: bytes) -> Container:
    """Parse an IU; the value's `type` is an IuType. `data` is a private copy.

    Raises WireError if the type is unknown, the IU ends before its fields do, or a descriptor
    format is reserved.
    """
    if not data:
        raise WireError("SRP IU: empty")
    try:
        kind = IuType(data[0])
    except ValueError:
        raise WireError(f"SRP IU: unknown type 0x{data[0]:02x}") from None
    iu = parse(FORMATS[kind], data, f"SRP {kind.name}")
    iu.type = kind
    return iu


def build_iu(kind: IuType, /, **fields: Any) -> bytes:
    """Build an IU; fields that are not given are 0, lengths and formats follow from the data.

    Raises ValueError if a value does not fit.
    """
    return build(FORMATS[kind], fields)


def cdb_fields(cdb: bytes) -> dict[str, bytes]:
    """Return the `cdb` and `additional_cdb` fields of a CMD that carries this CDB."""
    additional = cdb[16:]
    return {
        "cdb": cdb[:16].ljust(16, b"\0"),
        "additional_cdb": additional + bytes(-len(additional) % 4),
    }


def is_command(data: bytes) -> bool:
    """Tell whether an IU is a CMD that is whole up to its additional CDB and descriptors."""
    return len(data) >= CMD_BYTES and data[0] == IuType.CMD


def tag_of(data: bytes) -> int:
    """Return the tag of an IU, which has the same place in all of them."""
    return int.from_bytes(data[8:16], "big")


def cdb_of(cmd: Container) -> bytes:
    """Return a CMD's whole CDB: 16 bytes and the additional ones."""
    cdb: bytes = cmd.cdb + cmd.additional_cdb
    return cdb


def rsp_code(rsp: Container) -> int | None:
    """Return an RSP's RSP_CODE, or None if it carries none (RSPVALID=0, or too short)."""
    return rsp.response_data[3] if len(rsp.response_data) >= 4 else None
