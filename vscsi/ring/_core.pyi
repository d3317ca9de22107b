# SPDX-License-Identifier: MIT
"""The C core: ring ends and grant entries in shared memory, with the ordering that they need."""

from collections.abc import Sequence
from typing import final

from _typeshed import ReadableBuffer, WriteableBuffer

XEN_HEADER = 64
"""Bytes before the first slot of a Xen ring (ring.h)."""
PAIR_HEADER = 128
"""Bytes before the first slot of a one-way ring: producer's line, consumer's line."""

@final
class RingEnd:
    """One end of a ring: puts messages for the peer, takes the peer's.

    Holds the buffers it was made with. Not thread-safe: one thread puts and takes, or a lock does.
    Every index of the peer is checked at each use; once it broke the rules, every call raises
    vscsi.wire.errors.RingError.
    """

    entries: int
    """Slots: the largest power of two that fits."""
    slot_size: int

    @staticmethod
    def front(memory: WriteableBuffer, slot_size: int, *, start: int = 0) -> RingEnd:
        """Initialise a Xen ring in `memory` (whole pages) and return its frontend end.

        `start` is the first index (tests let it wrap).
        """

    @staticmethod
    def back(memory: WriteableBuffer, slot_size: int) -> RingEnd:
        """Attach to a Xen ring at its rsp_prod, as its backend end."""

    @staticmethod
    def pair_front(
        requests: WriteableBuffer, responses: WriteableBuffer, slot_size: int, *, start: int = 0
    ) -> RingEnd:
        """Initialise two one-way rings (SRP); puts into `requests`, takes from `responses`."""

    @staticmethod
    def pair_back(requests: WriteableBuffer, responses: WriteableBuffer, slot_size: int) -> RingEnd:
        """Attach to two one-way rings; takes from `requests`, puts into `responses`."""

    @property
    def free(self) -> int:
        """Slots that `put` can still take."""

    @property
    def put_index(self) -> int:
        """Free-running index of the next slot that `put` fills."""

    @property
    def take_index(self) -> int:
        """Free-running index of the next slot that `take` copies."""

    def put(self, message: ReadableBuffer) -> bool:
        """Copy a message into the next slot (the rest of it zeroed); False if none is free.

        Raises ValueError if the message is longer than a slot. Nothing is visible to the peer
        before `publish`.
        """

    def put_keep(self, message: ReadableBuffer) -> bool:
        """Like `put`, but leave the rest of the slot as it is."""

    def publish(self) -> bool:
        """Make all put messages visible; True if the peer asked for an event (ring.h's rule)."""

    def take(self, limit: int = ...) -> list[bytes]:
        """Copy up to `limit` waiting slots, each exactly once, and advance past them."""

    def arm(self) -> bool:
        """Ask for an event at the next message; True if one is already there (final check)."""

def grant_map(table: WriteableBuffer, reference: int, domain: int, readonly: bool) -> int:
    """Mark a version 1 grant entry in use, as the hypervisor would; return its frame.

    Raises vscsi.wire.errors.GrantError if the entry does not permit it.
    """

def grant_unmap(table: WriteableBuffer, reference: int, readonly: bool, *, writing: bool) -> None:
    """Clear GTF_reading/GTF_writing."""

def grant_set(
    table: WriteableBuffer, reference: int, domain: int, frame: int, readonly: bool
) -> None:
    """Publish an entry: domid and frame first, then (release) the flags."""

def grant_end(table: WriteableBuffer, references: Sequence[int]) -> list[int]:
    """Revoke entries by compare-and-swap; return those still in use (not revoked)."""
