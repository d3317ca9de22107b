# SPDX-License-Identifier: MIT
"""pcapng blocks, as far as captures need them (draft-ietf-opsawg-pcapng).

A block is type u32, total length u32, body, total length u32 again; bodies are padded to 4 bytes.
Options are code u16, length u16, value, padding; code 0 ends them. A section is in its writer's
byte order: ours are little-endian, both are read.
"""

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

from construct import Construct, Container

from vscsi.wire.errors import WireError
from vscsi.wire.formats import U16B, U16L, U32B, U32L, U64B, U64L, Packed, build, parse, text


class BlockType(IntEnum):
    """The blocks that captures consist of; SECTION reads the same in both byte orders."""

    INTERFACE = 1
    STATISTICS = 5
    ENHANCED_PACKET = 6
    SECTION = 0x0A0D0D0A


# Option codes; the block that each belongs to is in its name.
END_OF_OPTIONS = 0
SHB_USERAPPL = 4
IF_NAME = 2
IF_DESCRIPTION = 3
IF_TSRESOL = 9
IF_TSOFFSET = 14
EPB_DROPCOUNT = 4
ISB_IFRECV = 4
ISB_IFDROP = 5
ISB_FILTERACCEPT = 6

LINKTYPE_USER0 = 147
"""Ours: a record header and a ring message (`vscsi.wire.record`)."""
MAX_BLOCK = 1 << 20
"""Bytes; a longer block is not ours (a record is at most a ring slot and its descriptors)."""
HEAD_SIZE = 8
MIN_BLOCK = 12
_BYTE_ORDER_MAGIC = 0x1A2B3C4D
_LENGTH_UNKNOWN = 0xFFFF_FFFF_FFFF_FFFF
_NANOSECONDS = 9
_NS_PER_S = 10**9


@dataclass(frozen=True)
class Order:
    """The formats in one byte order."""

    name: Literal["little", "big"]
    head: Construct
    section: Construct
    interface: Construct
    packet: Construct
    statistics: Construct
    option: Construct


def _order(name: Literal["little", "big"], u16: Construct, u32: Construct, u64: Construct) -> Order:
    return Order(
        name,
        head=Packed("type" / u32, "length" / u32),
        section=Packed("magic" / u32, "major" / u16, "minor" / u16, "section_length" / u64),
        interface=Packed("link_type" / u16, "reserved" / u16, "snap_length" / u32),
        packet=Packed(
            "interface" / u32,
            "time_high" / u32,
            "time_low" / u32,
            "captured_length" / u32,
            "original_length" / u32,
        ),
        statistics=Packed("interface" / u32, "time_high" / u32, "time_low" / u32),
        option=Packed("code" / u16, "length" / u16),
    )


LITTLE = _order("little", U16L, U32L, U64L)
_HEAD = struct.Struct(LITTLE.head.order + LITTLE.head.code)
BIG = _order("big", U16B, U32B, U64B)


@dataclass(frozen=True, slots=True)
class Interface:
    """One ring of a capture: what its interface block says."""

    link_type: int
    name: str
    description: str
    ticks_per_s: int = _NS_PER_S
    offset_s: int = 0

    def time_ns(self, ticks: int) -> int:
        """Return a time stamp in nanoseconds since 1970."""
        return self.offset_s * _NS_PER_S + ticks * _NS_PER_S // self.ticks_per_s


@dataclass(frozen=True, slots=True)
class Packet:
    """One packet block."""

    interface: int
    ticks: int
    data: bytes
    original_length: int
    lost: int
    """Packets lost between this one and the one before it on the same interface."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """One statistics block; 0 for what it does not say."""

    interface: int
    received: int
    dropped: int
    accepted: int | None
    """By a filter, if there was one; those that were not are no dropped ones."""

    @property
    def left_out(self) -> int:
        """Packets that a filter did not keep."""
        return 0 if self.accepted is None else self.received - self.dropped - self.accepted


# Building, little-endian


def section(application: str) -> bytes:
    """Return the block that begins a section of unknown length, written by an application."""
    head = {"magic": _BYTE_ORDER_MAGIC, "major": 1, "section_length": _LENGTH_UNKNOWN}
    options = _options([(SHB_USERAPPL, application.encode())])
    return _block(BlockType.SECTION, build(LITTLE.section, head) + options)


def interface(name: str, description: str, link_type: int = LINKTYPE_USER0) -> bytes:
    """Return the block that describes the next interface, whose times are in nanoseconds."""
    options = [
        (IF_NAME, name.encode()),
        (IF_DESCRIPTION, description.encode()),
        (IF_TSRESOL, bytes([_NANOSECONDS])),
    ]
    head = build(LITTLE.interface, {"link_type": link_type})
    return _block(BlockType.INTERFACE, head + _options(options))


def packet(interface_number: int, time_ns: int, data: bytes, lost: int = 0) -> bytes:
    """Return a packet block."""
    head = {
        "interface": interface_number,
        **_time(time_ns),
        "captured_length": len(data),
        "original_length": len(data),
    }
    options = _options([(EPB_DROPCOUNT, _u64(lost))] if lost else [])
    return _block(BlockType.ENHANCED_PACKET, build(LITTLE.packet, head) + _pad(data) + options)


def statistics(
    interface_number: int, time_ns: int, received: int, dropped: int, accepted: int | None = None
) -> bytes:
    """Return what became of an interface's packets by a time.

    received counts the dropped too, and what a filter left out; accepted, if there is one, what it
    kept.
    """
    counts = [(ISB_IFRECV, received), (ISB_IFDROP, dropped)]
    if accepted is not None:
        counts.append((ISB_FILTERACCEPT, accepted))
    options = _options((code, _u64(count)) for code, count in counts)
    head = build(LITTLE.statistics, {"interface": interface_number, **_time(time_ns)})
    return _block(BlockType.STATISTICS, head + options)


def _time(time_ns: int) -> dict[str, int]:
    return {"time_high": time_ns >> 32 & 0xFFFF_FFFF, "time_low": time_ns & 0xFFFF_FFFF}


def _u64(value: int) -> bytes:
    return value.to_bytes(8, "little")


def _pad(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _block(kind: BlockType, body: bytes) -> bytes:
    head = build(LITTLE.head, {"type": kind, "length": len(body) + MIN_BLOCK})
    return head + body + head[4:]


def _options(values: Iterable[tuple[int, bytes]]) -> bytes:
    """Return options with their end mark; nothing at all where there are none."""
    encoded = b"".join(
        build(LITTLE.option, {"code": code, "length": len(value)}) + _pad(value)
        for code, value in values
    )
    return encoded + bytes(4) if encoded else b""


# Parsing. All of it raises WireError for what is cut short or contradicts itself.


def parse_head(order: Order, data: bytes) -> tuple[int, int]:
    """Return type and total length of a block from its first 8 bytes."""
    head = parse(order.head, data, "block header")
    if head.length < MIN_BLOCK or head.length % 4:
        raise WireError(f"a block of {head.length} bytes")
    return head.type, head.length


def split(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield type, begin and end of each block of ours that is whole in `data`, little-endian.

    Raises WireError where no block can begin.
    """
    at = 0
    while len(data) - at >= HEAD_SIZE:
        kind, length = _HEAD.unpack_from(data, at)
        if length < MIN_BLOCK or length % 4:
            raise WireError(f"a block of {length} bytes")
        if length > len(data) - at:
            return
        yield kind, at, at + length
        at += length


def section_order(data: bytes) -> Order:
    """Return the byte order of a section from the first 12 bytes of its block."""
    for order in (LITTLE, BIG):
        if int.from_bytes(data[HEAD_SIZE:], order.name) == _BYTE_ORDER_MAGIC:
            return order
    raise WireError("no pcapng section: no byte order mark")


def parse_section(order: Order, body: bytes) -> None:
    """Check a section's version."""
    head, _ = _head(order.section, body, "section block")
    if head.major != 1:
        raise WireError(f"pcapng version {head.major}.{head.minor}")


def parse_interface(order: Order, body: bytes) -> Interface:
    """Return what an interface block says."""
    head, rest = _head(order.interface, body, "interface block")
    options = _parse_options(order, rest)
    resolution = options.get(IF_TSRESOL, b"\x06")
    offset = options.get(IF_TSOFFSET, bytes(8))
    if len(resolution) != 1 or len(offset) != 8:
        raise WireError("interface block: an option of the wrong length")
    exponent = resolution[0] & 0x7F
    return Interface(
        head.link_type,
        text(options.get(IF_NAME, b"")),
        text(options.get(IF_DESCRIPTION, b"")),
        1 << exponent if resolution[0] & 0x80 else 10**exponent,
        int.from_bytes(offset, order.name, signed=True),
    )


def parse_packet(order: Order, body: bytes) -> Packet:
    """Return what a packet block holds."""
    head, rest = _head(order.packet, body, "packet block")
    length = head.captured_length
    if length > len(rest):
        raise WireError(f"packet block: {length} bytes in a body of {len(body)}")
    options = _parse_options(order, rest[length + -length % 4 :])
    return Packet(
        head.interface,
        head.time_high << 32 | head.time_low,
        rest[:length],
        head.original_length,
        _count(order, options, EPB_DROPCOUNT),
    )


def parse_statistics(order: Order, body: bytes) -> Statistics:
    """Return what a statistics block says."""
    head, rest = _head(order.statistics, body, "statistics block")
    options = _parse_options(order, rest)
    received, dropped = (_count(order, options, code) for code in (ISB_IFRECV, ISB_IFDROP))
    accepted = _count(order, options, ISB_FILTERACCEPT) if ISB_FILTERACCEPT in options else None
    return Statistics(head.interface, received, dropped, accepted)


def _count(order: Order, options: dict[int, bytes], code: int) -> int:
    value = options.get(code, bytes(8))
    if len(value) != 8:
        raise WireError(f"option {code}: {len(value)} bytes")
    return int.from_bytes(value, order.name)


def _head(form: Construct, body: bytes, what: str) -> tuple[Container, bytes]:
    size = form.sizeof()
    return parse(form, body[:size], what), body[size:]


def _parse_options(order: Order, data: bytes) -> dict[int, bytes]:
    """Return options by code (the last of each)."""
    found = {}
    size = order.option.sizeof()
    at = 0
    while at < len(data):
        head = parse(order.option, data[at : at + size], "option")
        if head.code == END_OF_OPTIONS:
            break
        value = data[at + size : at + size + head.length]
        if len(value) < head.length:
            raise WireError(f"option {head.code}: cut short")
        found[head.code] = value
        at += size + head.length + -head.length % 4
    return found
