# SPDX-License-Identifier: MIT
"""Xen's blkif ring messages (io/blkif.h) in each ABI's layout. Little-endian.

The layouts differ in the padding before 8-byte fields: on x86_32 a u64 is aligned to 4 bytes.
Sectors are 512 bytes whatever the device's block size. `trailing` keeps what a slot holds behind
the message: drivers leave stale bytes there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from construct import Array, Construct, Container, Default, GreedyBytes, GreedyRange, Struct

from vscsi.wire.errors import WireError
from vscsi.wire.formats import S16L, U8, U16L, U32L, U64L, Packed, build, parse, raw

SECTOR_SIZE = 512
SEGMENTS = 11
"""Segments in a request itself (BLKIF_MAX_SEGMENTS_PER_REQUEST)."""
BLOCK_SEGMENTS = 14
"""Segments in one segment block of FreeBSD's 2010 extension."""
INDIRECT_PAGES = 8
"""Grant references in an indirect request."""
SEGMENTS_PER_INDIRECT_PAGE = 512
DISCARD_SECURE = 1
"""Flag of a DISCARD."""


class Operation(IntEnum):
    """BLKIF_OP_*."""

    READ = 0
    WRITE = 1
    WRITE_BARRIER = 2
    FLUSH_DISKCACHE = 3
    RESERVED_1 = 4
    DISCARD = 5
    INDIRECT = 6


class RspStatus(IntEnum):
    """BLKIF_RSP_*."""

    OKAY = 0
    ERROR = -1
    EOPNOTSUPP = -2


Segment = Packed("gref" / U32L, "first_sect" / U8, "last_sect" / U8, "padding" / raw(2))
"""Sectors first_sect to last_sect, both inclusive, of the page granted as gref."""

_SegmentTable = GreedyRange(Segment)

SegmentBlock = Array(BLOCK_SEGMENTS, Segment)
"""A slot of further segments (FreeBSD's 2010 extension). 112 bytes: too long for x86_32's slot,
so that layout has none."""

_TRAILING = "trailing" / Default(GreedyBytes, b"")


@dataclass(frozen=True)
class _Formats:
    """The messages of one ABI."""

    rw: Construct
    discard: Construct
    indirect: Construct
    other: Construct
    response: Construct


def _formats(padding: int) -> _Formats:
    """Declare the messages for an ABI that puts `padding` bytes before u64s at offset 4."""
    pad = ("padding" / raw(padding),) if padding else ()
    tail = ("tail" / raw(padding),) if padding else ()
    return _Formats(
        rw=Struct(
            "operation" / U8,
            "nr_segments" / Default(U8, lambda c: len(c.get("segments") or ())),
            "handle" / U16L,
            *pad,
            "id" / U64L,
            "sector_number" / U64L,
            "segments" / Default(Array(lambda c: min(c.nr_segments, SEGMENTS), Segment), ()),
            _TRAILING,
        ),
        discard=Struct(
            "operation" / U8,
            "flag" / U8,
            "handle" / U16L,
            *pad,
            "id" / U64L,
            "sector_number" / U64L,
            "nr_sectors" / U64L,
            _TRAILING,
        ),
        indirect=Struct(
            "operation" / U8,
            "indirect_op" / U8,
            "nr_segments" / U16L,
            *pad,
            "id" / U64L,
            "sector_number" / U64L,
            "handle" / U16L,
            "padding2" / raw(2),
            "indirect_grefs" / Array(INDIRECT_PAGES, U32L),
            _TRAILING,
        ),
        other=Struct("operation" / U8, "padding1" / raw(3), *pad, "id" / U64L, _TRAILING),
        response=Struct(
            "id" / U64L,
            "operation" / U8,
            "padding1" / raw(1),
            "status" / S16L,
            *tail,
            _TRAILING,
        ),
    )


@dataclass(frozen=True)
class Layout:
    """blkif as one ABI lays it out."""

    protocol: str
    """The value of the `protocol` key."""
    slot_size: int
    segment_blocks: bool
    """Whether a segment block fits into a slot."""
    formats: _Formats

    def _form(self, operation: int) -> Construct:
        if operation <= Operation.FLUSH_DISKCACHE:
            return self.formats.rw
        if operation == Operation.DISCARD:
            return self.formats.discard
        return self.formats.indirect if operation == Operation.INDIRECT else self.formats.other

    def parse_request(self, slot: bytes) -> Container:
        """Parse a request slot (slot_size bytes, a private copy).

        nr_segments may exceed the 11 segments that are here: the caller decides whether segment
        blocks follow. Raises WireError if the slot has the wrong length.
        """
        self._check(slot, self.slot_size)
        return parse(self._form(slot[0]), slot, "blkif request")

    def build_request(self, operation: int, /, **fields: Any) -> bytes:
        """Build a request slot (slot_size bytes); raise ValueError if a value does not fit.

        nr_segments follows from `segments` (at most 11) unless given. `indirect_grefs` may be
        shorter than its field.
        """
        if operation == Operation.INDIRECT:
            grefs = list(fields.pop("indirect_grefs", ()))
            fields["indirect_grefs"] = grefs + [0] * (INDIRECT_PAGES - len(grefs))
        data = build(self._form(operation), {"operation": operation, **fields})
        if len(data) > self.slot_size:
            raise ValueError(f"blkif request of {len(data)} bytes")
        return data.ljust(self.slot_size, b"\0")

    def parse_response(self, slot: bytes) -> Container:
        """Parse a response, alone or with the rest of its slot (a private copy)."""
        if len(slot) > self.slot_size:
            self._check(slot, self.slot_size)
        return parse(self.formats.response, slot, "blkif response")

    def build_response(self, **fields: Any) -> bytes:
        """Build a response (without the rest of the slot)."""
        return build(self.formats.response, fields)

    def parse_segment_block(self, slot: bytes) -> list[Container]:
        """Parse a slot of 14 further segments; raise WireError where this ABI has none."""
        if not self.segment_blocks:
            raise WireError(f"{self.protocol} has no segment blocks")
        self._check(slot, self.slot_size)
        return list(parse(SegmentBlock, slot, "blkif segment block"))

    @staticmethod
    def _check(slot: bytes, size: int) -> None:
        if len(slot) != size:
            raise WireError(f"blkif slot of {len(slot)} bytes, not {size}")


_ALIGNED = _formats(padding=4)

X86_64 = Layout("x86_64-abi", 112, True, _ALIGNED)
X86_32 = Layout("x86_32-abi", 108, False, _formats(padding=0))
ARM = Layout("arm-abi", 112, True, _ALIGNED)
NATIVE = X86_64
"""What a 64-bit backend takes when no `protocol` is published."""

LAYOUTS = {layout.protocol: layout for layout in (X86_64, X86_32, ARM)}


def parse_segments(data: bytes) -> list[Container]:
    """Parse segments that were copied from indirect pages.

    Raises WireError if the length is no multiple of a segment's.
    """
    return list(parse(_SegmentTable, data, "blkif segments"))


def build_segments(segments: Sequence[Mapping[str, int]]) -> bytes:
    """Build segments for indirect pages or a segment block."""
    return build(_SegmentTable, segments)


def slots_of(nr_segments: int) -> int:
    """Return the slots that a request takes with segment blocks (FreeBSD's 2010 extension)."""
    return 1 + -(-max(nr_segments - SEGMENTS, 0) // BLOCK_SEGMENTS)
