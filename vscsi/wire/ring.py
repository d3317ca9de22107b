# SPDX-License-Identifier: MIT
"""Xen's shared ring (io/ring.h): its header and how many slots fit. Little-endian.

Declared for captures, dumps and tests; live indices are touched by the C core alone.
"""

from vscsi.wire.formats import U32L, Packed, raw

PAGE_SIZE = 4096
"""Ring pages are this size even where a domain's own pages are larger."""
HEADER_SIZE = 64

SharedRing = Packed(
    "req_prod" / U32L,
    "req_event" / U32L,
    "rsp_prod" / U32L,
    "rsp_event" / U32L,
    "private" / raw(4),
    "padding" / raw(44),
)


def entries(pages: int, slot_size: int, header: int = HEADER_SIZE) -> int:
    """Return the slots of a ring: the largest power of two that fits (ring.h __RING_SIZE).

    Raises ValueError if not even one fits.
    """
    fit = (pages * PAGE_SIZE - header) // slot_size
    if fit < 1:
        raise ValueError(f"no slot of {slot_size} bytes fits into {pages} pages")
    return 1 << (fit.bit_length() - 1)
