# SPDX-License-Identifier: MIT
"""One captured message: the payload of our pcapng packets (link type USER0). Little-endian.

Ours, not a standard's: a header saying where the message passed, the message (a ring slot; for
SRP with its slot header), then the segment descriptors that the message pointed to.
"""

from enum import IntEnum
from typing import Any

from construct import Bytes, Const, Container, Default, GreedyBytes, Int8ub, Struct, this

from vscsi.wire.formats import U8, U16L, U32L, build, parse

VERSION = 1


class Protocol(IntEnum):
    """Which ring a message was on."""

    SRP = 1
    VSCSIIF = 2
    BLKIF = 3


class Way(IntEnum):
    """Where a message was going."""

    TO_TARGET = 0
    TO_INITIATOR = 1


class LayoutCode(IntEnum):
    """blkif's layout; NONE for the protocols that have only one."""

    NONE = 0
    X86_64 = 1
    X86_32 = 2


Record = Struct(
    "version" / Const(VERSION, Int8ub),
    "protocol" / U8,
    "direction" / U8,
    "layout" / U8,
    "domain" / U16L,
    "device" / U16L,
    "queue" / U16L,
    "in_flight" / U16L,
    "ring_index" / U32L,
    "message_length" / Default(U32L, lambda c: len(c.get("message") or b"")),
    "message" / Default(Bytes(this.message_length), b""),
    # Descriptors copied from indirect or SG_GRANT pages.
    "segments" / Default(GreedyBytes, b""),
)


def parse_record(data: bytes) -> Container:
    """Parse a record; raise WireError for another version or a message beyond the record's end."""
    return parse(Record, data, "capture record")


def build_record(**fields: Any) -> bytes:
    """Build a record; raise ValueError if a value does not fit its field."""
    return build(Record, fields)
