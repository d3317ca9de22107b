# SPDX-License-Identifier: MIT
"""One captured message: the payload of our pcapng packets (link type USER0). Little-endian.

Ours, not a standard's: a header saying where the message passed, the message (a ring slot; for
SRP with its slot header), the segment descriptors that the message pointed to, and of the data
that it moves as much as was asked for: data-out stands with the request, data-in with the answer.
"""

from enum import IntEnum
from typing import Any

from construct import Bytes, Const, Container, Default, GreedyBytes, Int8ub, Struct, this

from vscsi.wire.formats import U8, U16L, U32L, build, parse, raw

VERSION = 2
MAX_PAYLOAD = 1 << 16
"""Bytes of one command's data that a record holds at most."""


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


class PayloadKind(IntEnum):
    """What a record holds of the data that its message moves."""

    NONE = 0
    HEAD = 1
    """The first bytes."""
    XXH64 = 2
    """8 bytes, little-endian: the XXH64 hash (seed 0) of all of it."""


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
    "message_length" / Default(U16L, lambda c: len(c.get("message") or b"")),
    "segments_length" / Default(U16L, lambda c: len(c.get("segments") or b"")),
    # Of the data, all of it; 0 where there is none, and with PayloadKind.NONE.
    "data_length" / U32L,
    "payload_kind" / U8,
    "reserved" / raw(3),
    "message" / Default(Bytes(this.message_length), b""),
    # Descriptors copied from indirect or SG_GRANT pages.
    "segments" / Default(Bytes(this.segments_length), b""),
    "payload" / Default(GreedyBytes, b""),
)


def parse_record(data: bytes) -> Container:
    """Parse a record; raise WireError for another version, or one that ends too early."""
    return parse(Record, data, "capture record")


def build_record(**fields: Any) -> bytes:
    """Build a record; raise ValueError if a value does not fit its field."""
    return build(Record, fields)
