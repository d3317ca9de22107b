# SPDX-License-Identifier: MIT
"""pcapng blocks, as far as captures need them (draft-ietf-opsawg-pcapng). Written little-endian.

A block is type u32, total length u32, body, total length u32 again; bodies are padded to 4 bytes.
Options are code u16, length u16, value, padding; code 0 ends them.
"""

from collections.abc import Iterable

from vscsi.wire.errors import WireError
from vscsi.wire.formats import U16L, U32L, U64L, Packed, build, parse

SECTION = 0x0A0D0D0A
INTERFACE = 1
ENHANCED_PACKET = 6
STATISTICS = 5
BYTE_ORDER_MAGIC = 0x1A2B3C4D
LINKTYPE_USER0 = 147
"""Ours: a record header and a ring message (`vscsi.wire.record`)."""

OPTION_COMMENT = 1
SHB_APPLICATION = 4
IF_NAME = 2
IF_DESCRIPTION = 3
IF_TSRESOL = 9
NANOSECONDS = 9
"""if_tsresol: the negative power of ten of the clock's unit."""
ISB_IFDROP = 5

MAX_BLOCK = 1 << 20
"""A longer block is not ours (a record is at most a ring slot and its descriptors)."""

BlockHead = Packed("type" / U32L, "length" / U32L)
SectionHead = Packed("magic" / U32L, "major" / U16L, "minor" / U16L, "section_length" / U64L)
InterfaceHead = Packed("link_type" / U16L, "reserved" / U16L, "snap_length" / U32L)
PacketHead = Packed(
    "interface" / U32L,
    "time_high" / U32L,
    "time_low" / U32L,
    "captured_length" / U32L,
    "original_length" / U32L,
)
StatisticsHead = Packed("interface" / U32L, "time_high" / U32L, "time_low" / U32L)
OptionHead = Packed("code" / U16L, "length" / U16L)


def pad(data: bytes) -> bytes:
    """Return data with zeros up to a multiple of 4 bytes."""
    return data + bytes(-len(data) % 4)


def block(kind: int, body: bytes) -> bytes:
    """Return a whole block; body is a multiple of 4 bytes."""
    length = len(body) + 12
    head = build(BlockHead, {"type": kind, "length": length})
    return head + body + head[4:]


def options(values: Iterable[tuple[int, bytes]]) -> bytes:
    """Return options with their end mark; nothing at all where there are none."""
    encoded = b"".join(
        build(OptionHead, {"code": code, "length": len(value)}) + pad(value)
        for code, value in values
    )
    return encoded + bytes(4) if encoded else b""


def parse_options(data: bytes) -> dict[int, bytes]:
    """Return options by code (the last of each); raise WireError where they are cut."""
    found = {}
    at = 0
    while at + OptionHead.sizeof() <= len(data):
        head = parse(OptionHead, data[at : at + 4], "pcapng option")
        if head.code == 0:
            break
        value = data[at + 4 : at + 4 + head.length]
        if len(value) < head.length:
            raise WireError(f"pcapng option {head.code}: cut short")
        found[head.code] = value
        at += 4 + head.length + (-head.length % 4)
    return found


def packet_head(interface: int, time_ns: int, length: int) -> bytes:
    """Return the fixed part of an enhanced packet block's body."""
    return build(
        PacketHead,
        {
            "interface": interface,
            "time_high": time_ns >> 32 & 0xFFFF_FFFF,
            "time_low": time_ns & 0xFFFF_FFFF,
            "captured_length": length,
            "original_length": length,
        },
    )
