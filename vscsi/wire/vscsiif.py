# SPDX-License-Identifier: MIT
"""Xen's vscsiif ring messages (io/vscsiif.h): 252 bytes on every ABI. Little-endian."""

from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Any

from construct import Array, Container, Default, GreedyRange, Struct

from vscsi.wire.errors import WireError
from vscsi.wire.formats import S32L, U8, U16L, U32L, Packed, build, parse, raw

SLOT_SIZE = 252
MAX_COMMAND_SIZE = 16
SENSE_BUFFER_SIZE = 96
SEGMENTS = 26
"""Segment descriptors in a request (VSCSIIF_SG_TABLESIZE)."""
PRESET_SEGMENTS = 31
MAX_ADDRESS = 0xFFFF
"""Of channel, id and lun."""
SG_GRANT = 0x80
"""In nr_segments: the descriptors name memory that holds the real descriptors."""


class Act(IntEnum):
    """What a request asks for."""

    CDB = 1
    ABORT = 2
    RESET = 3
    SG_PRESET = 4
    """Deprecated: further segments of the request that follows."""


class Direction(IntEnum):
    """sc_data_direction (Linux' enum dma_data_direction)."""

    BIDIRECTIONAL = 0
    TO_DEVICE = 1
    FROM_DEVICE = 2
    NONE = 3


class Host(IntEnum):
    """The host byte of rslt (XEN_VSCSIIF_RSLT_HOST_*)."""

    OK = 0
    NO_CONNECT = 1
    BUS_BUSY = 2
    TIME_OUT = 3
    BAD_TARGET = 4
    ABORT = 5
    PARITY = 6
    ERROR = 7
    RESET = 8
    BAD_INTR = 9
    PASSTHROUGH = 10
    SOFT_ERROR = 11
    IMM_RETRY = 12
    REQUEUE = 13
    TRANSPORT_DISRUPTED = 14
    TRANSPORT_FAILFAST = 15
    TARGET_FAILURE = 16
    NEXUS_FAILURE = 17
    ALLOC_FAILURE = 18
    MEDIUM_ERROR = 19
    TRANSPORT_MARGINAL = 20


RESET_SUCCESS = 0x2002
RESET_FAILED = 0x2003
"""rslt of ABORT and RESET, which only the request's act tells from a status."""

Segment = Packed("gref" / U32L, "offset" / U16L, "length" / U16L)

_SegmentTable = GreedyRange(Segment)

Request = Struct(
    "rqid" / U16L,
    "act" / Default(U8, Act.CDB),
    "cmd_len" / U8,
    "cdb" / raw(16),
    "timeout_s" / U16L,
    "channel" / U16L,
    "id" / U16L,
    "lun" / U16L,
    "ref_rqid" / U16L,
    "direction" / U8,
    "nr_segments" / U8,
    # All of them: drivers leave stale descriptors behind the ones in use.
    "segments" / Array(SEGMENTS, Segment),
    "reserved" / raw(12),
)

Address = Packed("channel" / U16L, "id" / U16L, "lun" / U16L, "reserved" / raw(2))
"""What a request says of its unit, as it stands there, in the 8 bytes of the C path's addresses."""

SgPreset = Struct(
    "rqid" / U16L,
    "act" / Default(U8, Act.SG_PRESET),
    "nr_segments" / U8,
    "segments" / Array(PRESET_SEGMENTS, Segment),
)

_RESERVED = 144
Response = Packed(
    "rqid" / U16L,
    "act" / U8,
    "sense_len" / U8,
    "sense_buffer" / raw(SENSE_BUFFER_SIZE),
    "rslt" / S32L,
    "residual" / U32L,
    "reserved" / raw(_RESERVED),
)


def parse_request(slot: bytes) -> Container:
    """Parse a request slot (252 bytes, a private copy); `act` tells Request from SgPreset."""
    preset = len(slot) > 2 and slot[2] == Act.SG_PRESET
    return parse(SgPreset if preset else Request, slot, "vscsiif request")


def build_request(**fields: Any) -> bytes:
    """Build a Request, or with act=SG_PRESET an SgPreset.

    `cdb` may be shorter than its field; so may `segments`, from which nr_segments follows unless
    given. Raises ValueError if anything does not fit.
    """
    segments = list(fields.pop("segments", ()))
    fields.setdefault("nr_segments", len(segments))
    if fields.get("act") == Act.SG_PRESET:
        unused = PRESET_SEGMENTS - len(segments)
        return build(SgPreset, {**fields, "segments": segments + [{}] * unused})
    cdb = fields.pop("cdb", b"")
    return build(
        Request,
        {
            "cmd_len": len(cdb),
            **fields,
            "cdb": cdb.ljust(MAX_COMMAND_SIZE, b"\0"),
            "segments": segments + [{}] * (SEGMENTS - len(segments)),
        },
    )


def build_address(channel: int, number: int, lun: int) -> bytes:
    """Build an Address; ValueError for what does not fit."""
    return build(Address, {"channel": channel, "id": number, "lun": lun})


def parse_response(slot: bytes) -> Container:
    """Parse a response slot (252 bytes, a private copy) or what it has before the reserved bytes.

    Its `act` may be stale.
    """
    if len(slot) == SLOT_SIZE - _RESERVED:
        slot += bytes(_RESERVED)
    return parse(Response, slot, "vscsiif response")


def build_response(**fields: Any) -> bytes:
    """Build a response; `sense_buffer` may be shorter than its field (sense_len follows)."""
    sense = fields.pop("sense_buffer", b"")
    return build(
        Response,
        {
            "sense_len": len(sense),
            **fields,
            "sense_buffer": sense.ljust(SENSE_BUFFER_SIZE, b"\0"),
        },
    )


def cdb_of(request: Container) -> bytes:
    """Return a request's CDB; raise WireError if it claims more bytes than the field holds."""
    if request.cmd_len > MAX_COMMAND_SIZE:
        raise WireError(f"vscsiif request: cmd_len {request.cmd_len}")
    cdb: bytes = request.cdb[: request.cmd_len]
    return cdb


def segments_of(request: Container) -> tuple[list[Container], bool]:
    """Return the descriptors in use, and whether they name descriptor memory (SG_GRANT).

    Raises WireError if the request claims more than it holds.
    """
    count = request.nr_segments & ~SG_GRANT
    if count > len(request.segments):
        raise WireError(f"vscsiif request: nr_segments {count}")
    return request.segments[:count], bool(request.nr_segments & SG_GRANT)


def parse_segments(data: bytes) -> list[Container]:
    """Parse descriptors that were copied from SG_GRANT memory.

    Raises WireError if the length is no multiple of a descriptor's.
    """
    return list(parse(_SegmentTable, data, "vscsiif segments"))


def build_segments(segments: Sequence[Mapping[str, int]]) -> bytes:
    """Build descriptors for SG_GRANT memory."""
    return build(_SegmentTable, segments)


def pack_rslt(status: int, host: Host = Host.OK) -> int:
    """Return rslt for a SCSI status and a host code."""
    return host << 16 | status


def unpack_rslt(rslt: int) -> tuple[int, int]:
    """Return the SCSI status and the host code of rslt."""
    return rslt & 0xFF, rslt >> 16 & 0xFF
