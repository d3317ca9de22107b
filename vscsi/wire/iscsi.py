# SPDX-License-Identifier: MIT
"""iSCSI PDUs (RFC 7143 11): basic header segments, additional header segments, digests.

A PDU is a basic header segment of 48 bytes, additional header segments, a header digest, the data
segment padded to 4 bytes, a data digest. Which digests there are was negotiated by login keys.
`lengths` has TotalAHSLength in its top byte (in words) and DataSegmentLength below.
"""

import re
from enum import IntEnum, IntFlag

from construct import Bytes, Const, Default, Int8ub, Struct, this

from vscsi.wire.formats import U8, U16B, U32B, Packed, raw

PORT = 3260
BHS_BYTES = 48
DIGEST_BYTES = 4
NO_TAG = 0xFFFF_FFFF
"""An Initiator or Target Transfer Tag that is none."""
IMMEDIATE = 0x40
"""In a request's opcode."""
MAX_DATA_SEGMENT = (1 << 24) - 1


class Opcode(IntEnum):
    """What a PDU is; those from 20h on are the target's."""

    NOP_OUT = 0x00
    SCSI_COMMAND = 0x01
    TASK_MANAGEMENT = 0x02
    LOGIN_REQUEST = 0x03
    TEXT_REQUEST = 0x04
    DATA_OUT = 0x05
    LOGOUT_REQUEST = 0x06
    SNACK_REQUEST = 0x10
    NOP_IN = 0x20
    SCSI_RESPONSE = 0x21
    TASK_MANAGEMENT_RESPONSE = 0x22
    LOGIN_RESPONSE = 0x23
    TEXT_RESPONSE = 0x24
    DATA_IN = 0x25
    LOGOUT_RESPONSE = 0x26
    READY_TO_TRANSFER = 0x31
    ASYNC_MESSAGE = 0x32
    REJECT = 0x3F


class Flags(IntFlag):
    """Byte 1; what each PDU calls them."""

    FINAL = 0x80
    """In login: T, the next stage comes."""
    READ = 0x40
    WRITE = 0x20
    BIDI_OVERFLOW = 0x10
    BIDI_UNDERFLOW = 0x08
    OVERFLOW = 0x04
    UNDERFLOW = 0x02
    STATUS = 0x01
    """Data-In: the PDU has the command's status."""
    CONTINUE = 0x40
    """Login and text: the keys go on in the next PDU."""


ATTRIBUTES = 0x07
"""In a command's flags: the task attribute."""
FULL_FEATURE = 0x03
"""In a login's flags: the next stage."""


class TaskAttribute(IntEnum):
    """Task attributes (RFC 7143 11.3.1)."""

    UNTAGGED = 0
    SIMPLE = 1
    ORDERED = 2
    HEAD_OF_QUEUE = 3
    ACA = 4


class TaskFunction(IntEnum):
    """Task management functions (RFC 7143 11.5.1): byte 1 without FINAL."""

    ABORT_TASK = 1
    ABORT_TASK_SET = 2
    CLEAR_ACA = 3
    CLEAR_TASK_SET = 4
    LOGICAL_UNIT_RESET = 5
    TARGET_WARM_RESET = 6
    TARGET_COLD_RESET = 7
    TASK_REASSIGN = 8


class TaskResponse(IntEnum):
    """What a task management function came to (RFC 7143 11.6.1)."""

    FUNCTION_COMPLETE = 0
    TASK_DOES_NOT_EXIST = 1
    INCORRECT_LOGICAL_UNIT = 2
    TASK_STILL_ALLEGIANT = 3
    REASSIGNMENT_NOT_SUPPORTED = 4
    NOT_SUPPORTED = 5
    AUTHORIZATION_FAILED = 6
    FUNCTION_REJECTED = 255


class Response(IntEnum):
    """A SCSI Response's own code (RFC 7143 11.4.3)."""

    COMPLETED = 0
    TARGET_FAILURE = 1


class AsyncEvent(IntEnum):
    """Why a target speaks unasked (RFC 7143 11.9.1)."""

    SCSI_EVENT = 0
    LOGOUT_REQUESTED = 1
    CONNECTION_DROPPED = 2
    ALL_CONNECTIONS_DROPPED = 3
    NEGOTIATION_REQUESTED = 4
    ALL_TASKS_TERMINATED = 5


class RejectReason(IntEnum):
    """Why a PDU was not accepted (RFC 7143 11.17.1)."""

    DATA_DIGEST_ERROR = 0x02
    SNACK_REJECT = 0x03
    PROTOCOL_ERROR = 0x04
    COMMAND_NOT_SUPPORTED = 0x05
    TOO_MANY_IMMEDIATE_COMMANDS = 0x06
    TASK_IN_PROGRESS = 0x07
    INVALID_DATA_ACK = 0x08
    INVALID_PDU_FIELD = 0x09
    LONG_OPERATION_REJECT = 0x0A
    WAITING_FOR_LOGOUT = 0x0C


class LoginStatus(IntEnum):
    """Status-Class of a login response (RFC 7143 11.13.5)."""

    SUCCESS = 0
    REDIRECTION = 1
    INITIATOR_ERROR = 2
    TARGET_ERROR = 3


class AhsType(IntEnum):
    """Additional header segments (RFC 7143 11.2.2.2)."""

    EXTENDED_CDB = 1
    READ_LENGTH = 2
    """Expected Bidirectional Read Data Length."""


def _request(opcode: Opcode, *fields: object) -> Packed:
    return Packed("opcode" / Default(Int8ub, int(opcode)), *fields)


_TO_TARGET = ("cmd_sn" / U32B, "exp_stat_sn" / U32B)
_TO_INITIATOR = ("stat_sn" / U32B, "exp_cmd_sn" / U32B, "max_cmd_sn" / U32B)

ScsiCommand = _request(
    Opcode.SCSI_COMMAND,
    "flags" / U8,
    "reserved" / raw(2),
    "lengths" / U32B,
    "lun" / raw(8),
    "itt" / U32B,
    "expected_length" / U32B,
    *_TO_TARGET,
    "cdb" / raw(16),
)

ScsiResponse = _request(
    Opcode.SCSI_RESPONSE,
    "flags" / U8,
    "response" / U8,
    "status" / U8,
    "lengths" / U32B,
    "reserved" / raw(8),
    "itt" / U32B,
    "snack_tag" / U32B,
    *_TO_INITIATOR,
    "exp_data_sn" / U32B,
    "bidi_residual" / U32B,
    "residual" / U32B,
)
"""Its data segment: length of the sense data (2 bytes), sense data, response data."""

TaskManagement = _request(
    Opcode.TASK_MANAGEMENT,
    "function" / U8,
    "reserved" / raw(2),
    "lengths" / U32B,
    "lun" / raw(8),
    "itt" / U32B,
    "referenced_tag" / U32B,
    *_TO_TARGET,
    "ref_cmd_sn" / U32B,
    "exp_data_sn" / U32B,
    "reserved2" / raw(8),
)

TaskManagementResponse = _request(
    Opcode.TASK_MANAGEMENT_RESPONSE,
    "flags" / U8,
    "response" / U8,
    "reserved" / raw(1),
    "lengths" / U32B,
    "reserved2" / raw(8),
    "itt" / U32B,
    "reserved3" / raw(4),
    *_TO_INITIATOR,
    "reserved4" / raw(12),
)

DataOut = _request(
    Opcode.DATA_OUT,
    "flags" / U8,
    "reserved" / raw(2),
    "lengths" / U32B,
    "lun" / raw(8),
    "itt" / U32B,
    "ttt" / U32B,
    "reserved2" / raw(4),
    "exp_stat_sn" / U32B,
    "reserved3" / raw(4),
    "data_sn" / U32B,
    "buffer_offset" / U32B,
    "reserved4" / raw(4),
)

DataIn = _request(
    Opcode.DATA_IN,
    "flags" / U8,
    "reserved" / raw(1),
    "status" / U8,
    "lengths" / U32B,
    "lun" / raw(8),
    "itt" / U32B,
    "ttt" / U32B,
    *_TO_INITIATOR,
    "data_sn" / U32B,
    "buffer_offset" / U32B,
    "residual" / U32B,
)

ReadyToTransfer = _request(
    Opcode.READY_TO_TRANSFER,
    "flags" / U8,
    "reserved" / raw(2),
    "lengths" / U32B,
    "lun" / raw(8),
    "itt" / U32B,
    "ttt" / U32B,
    *_TO_INITIATOR,
    "r2t_sn" / U32B,
    "buffer_offset" / U32B,
    "desired_length" / U32B,
)

AsyncMessage = _request(
    Opcode.ASYNC_MESSAGE,
    "flags" / U8,
    "reserved" / raw(2),
    "lengths" / U32B,
    "lun" / raw(8),
    "itt" / Default(U32B.subcon, NO_TAG),
    "reserved2" / raw(4),
    *_TO_INITIATOR,
    "event" / U8,
    "vendor_code" / U8,
    "parameter1" / U16B,
    "parameter2" / U16B,
    "parameter3" / U16B,
    "reserved3" / raw(4),
)
"""A SCSI event's data segment is as a SCSI Response's."""

LoginRequest = _request(
    Opcode.LOGIN_REQUEST,
    "flags" / U8,
    "version_max" / U8,
    "version_min" / U8,
    "lengths" / U32B,
    "isid" / raw(6),
    "tsih" / U16B,
    "itt" / U32B,
    "cid" / U16B,
    "reserved" / raw(2),
    *_TO_TARGET,
    "reserved2" / raw(16),
)

LoginResponse = _request(
    Opcode.LOGIN_RESPONSE,
    "flags" / U8,
    "version_max" / U8,
    "version_active" / U8,
    "lengths" / U32B,
    "isid" / raw(6),
    "tsih" / U16B,
    "itt" / U32B,
    "reserved" / raw(4),
    *_TO_INITIATOR,
    "status_class" / U8,
    "status_detail" / U8,
    "reserved2" / raw(10),
)

LogoutRequest = _request(
    Opcode.LOGOUT_REQUEST,
    "reason" / U8,
    "reserved" / raw(2),
    "lengths" / U32B,
    "reserved2" / raw(8),
    "itt" / U32B,
    "cid" / U16B,
    "reserved3" / raw(2),
    *_TO_TARGET,
    "reserved4" / raw(16),
)

Reject = _request(
    Opcode.REJECT,
    "flags" / U8,
    "reason" / U8,
    "reserved" / raw(1),
    "lengths" / U32B,
    "reserved2" / raw(8),
    "itt" / Default(U32B.subcon, NO_TAG),
    "reserved3" / raw(4),
    *_TO_INITIATOR,
    "data_sn" / U32B,
    "reserved4" / raw(8),
)
"""Its data segment: the header that was not accepted."""

ExtendedCdb = Struct(
    "length" / U16B,  # of what follows the type: the reserved byte and the CDB's rest
    "type" / Const(int(AhsType.EXTENDED_CDB), Int8ub),
    "reserved" / raw(1),
    "cdb" / Bytes(this.length - 1),
)
ReadLength = Packed(
    "length" / Default(U16B.subcon, 5),
    "type" / Const(int(AhsType.READ_LENGTH), Int8ub),
    "reserved" / raw(1),
    "read_length" / U32B,
)

_F = "\\x80"
_ZERO = "\\x00"
_NO_DATA = r"\x00{4}"
_DATA = r"\x00[\s\S]{3}"
_ANY8 = r"[\s\S]{8}"
_ZERO8 = r"\x00{8}"
"""Bytes of a header that are always the same, in terms of regular expressions."""

_SHAPES = (
    (r"[\x00\x40]", _F, r"\x00\x00", _DATA, _ANY8),  # NOP-Out
    (
        r"[\x01\x41]",
        r"[\x00-\x04\x20-\x24\x40-\x44\x60-\x64\x80-\x84\xa0-\xa4\xc0-\xc4\xe0-\xe4]",
        r"\x00\x00",
        r"[\x00-\x44][\s\S]{3}",
        _ANY8,
    ),
    (r"[\x02\x42]", r"[\x81-\x88]", r"\x00\x00", _NO_DATA, _ANY8),
    (r"[\x03\x43]", r"[\x00\x01\x04\x05\x40\x44\x81\x83\x87]", r"\x00\x00", _DATA, _ANY8),
    (r"[\x04\x44]", r"[\x00\x40\x80]", r"\x00\x00", _DATA, _ANY8),
    (r"\x05", r"[\x00\x80]", r"\x00\x00", _DATA, _ANY8),
    (r"[\x06\x46]", r"[\x80-\x82]", r"\x00\x00", _NO_DATA, _ZERO8),
    (r"\x10", r"[\x80-\x83]", r"\x00\x00", _NO_DATA, _ANY8),
    (r"\x20", _F, r"\x00\x00", _DATA, _ANY8),
    (
        r"\x21",
        r"[\x80\x82\x84\x88\x8a\x8c\x90\x92\x94]",
        r"[\x00\x01\x80-\xff][\s\S]",
        _DATA,
        _ZERO8,
    ),
    (r"\x22", _F, r"[\x00-\x06\xff]\x00", _NO_DATA, _ZERO8),
    (r"\x23", r"[\x00\x01\x04\x05\x40\x44\x81\x83\x87]", r"\x00\x00", _DATA, _ANY8),
    (r"\x24", r"[\x00\x40\x80]", r"\x00\x00", _DATA, _ANY8),
    (r"\x25", r"[\x00\x40\x80\xc0\x81\x83\x85]", r"\x00[\s\S]", _DATA, _ANY8),
    (r"\x26", _F, r"[\x00-\x03]\x00", _NO_DATA, _ZERO8),
    (r"\x31", _F, r"\x00\x00", _NO_DATA, _ANY8),
    (r"\x32", _F, r"\x00\x00", _DATA, _ANY8),
    (r"\x3f", _F, r"[\x02-\x0c]\x00", _DATA, _ZERO8),
)
PLAUSIBLE = re.compile(
    "|".join("".join(parts) for parts in _SHAPES).encode("ascii"),
)
"""The first 16 bytes of any PDU that RFC 7143 allows: opcode, flags, reserved bytes, lengths."""
