# SPDX-License-Identifier: MIT
"""What carries SRP on our ring: one-way rings, and slots with a header before the unit.

Ours, not a standard's. A channel is two one-way rings, initiator to target and target to
initiator. A ring is a header of two cache lines, each written by one side only, and a power of
two of slots; each slot holds one SRP information unit or one MAD. Little-endian, as shared memory
is; the units inside keep their own order.
"""

from enum import IntEnum

from construct import Struct

from vscsi.wire.errors import WireError
from vscsi.wire.formats import U8, U16L, U32L, Packed, build, parse, raw

SLOT_SIZE = 128
"""Default bytes of a slot, its header included."""


class SlotFormat(IntEnum):
    """What a slot holds; the codes of the CRQ's format byte (PAPR VSCSI)."""

    SRP = 1
    MAD = 2


RingHeader = Struct(
    # The producer's cache line:
    "producer" / U32L,
    "reserved1" / raw(60),
    # The consumer's cache line:
    "consumer" / U32L,
    "event" / U32L,
    "reserved2" / raw(56),
)

SlotHeader = Packed("format" / U8, "reserved" / raw(1), "length" / U16L)
_HEADER_BYTES: int = SlotHeader.sizeof()


def build_slot(kind: SlotFormat, unit: bytes) -> bytes:
    """Return what to put into a slot; raise ValueError if the unit's length takes over 16 bits."""
    return build(SlotHeader, {"format": kind, "length": len(unit)}) + unit


def parse_slot(slot: bytes) -> tuple[SlotFormat, bytes]:
    """Return the format and the unit of a slot (a private copy).

    Raises WireError for an unknown format and for a length beyond the slot's end.
    """
    size = _HEADER_BYTES
    header = parse(SlotHeader, slot[:size], "slot header")
    form, length = header["format"], header["length"]
    try:
        kind = SlotFormat(form)
    except ValueError:
        raise WireError(f"slot header: unknown format {form}") from None
    if length > len(slot) - size:
        raise WireError(f"slot header: {length} bytes in a slot of {len(slot)}")
    return kind, slot[size : size + length]
