# SPDX-License-Identifier: MIT
"""Grant table entries, version 1 (grant_table.h grant_entry_v1). Little-endian.

Declared for dumps and tests; live entries are touched by the C core alone.
"""

from enum import IntFlag

from vscsi.wire.formats import U16L, U32L, Packed


class GrantFlags(IntFlag):
    """GTF_*: the type in the low two bits, then access flags and what the mapper does."""

    PERMIT_ACCESS = 0x0001
    ACCEPT_TRANSFER = 0x0002
    TYPE_MASK = 0x0003
    READONLY = 0x0004
    READING = 0x0008
    WRITING = 0x0010


GrantEntry = Packed("flags" / U16L, "domid" / U16L, "frame" / U32L)
