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

    Ring memory is 1 to 16 whole pages, writable and aligned to 4 bytes; both rings of a pair have
    the same size. A slot has 4 to 4096 bytes, and one must fit. ValueError says what does not.
    Buffers are held until `close` or until the object goes.

    Not thread-safe: one thread puts and takes, or a lock does. Every index of the peer is checked
    at each use; once it broke the rules, every method and `free` raise
    vscsi.wire.errors.RingError. After `close` they raise ValueError.
    """

    @classmethod
    def front(cls, memory: WriteableBuffer, slot_size: int, *, start: int = 0) -> RingEnd:
        """Initialise a Xen ring in `memory` and return its frontend end.

        `start` is the first index (tests let it wrap).
        """

    @classmethod
    def back(cls, memory: WriteableBuffer, slot_size: int) -> RingEnd:
        """Attach to a Xen ring at its rsp_prod, as its backend end.

        Requests that a predecessor took and did not answer are taken again.
        """

    @classmethod
    def pair_front(
        cls,
        requests: WriteableBuffer,
        responses: WriteableBuffer,
        slot_size: int,
        *,
        start: int = 0,
    ) -> RingEnd:
        """Initialise two one-way rings (SRP); puts into `requests`, takes from `responses`."""

    @classmethod
    def pair_back(
        cls, requests: WriteableBuffer, responses: WriteableBuffer, slot_size: int
    ) -> RingEnd:
        """Attach to two one-way rings where they stand; takes from `requests`, puts the others."""

    @property
    def entries(self) -> int:
        """Slots of the ring, of each of a pair: the largest power of two that fits."""

    @property
    def slot_size(self) -> int:
        """Bytes in a slot."""

    @property
    def put_index(self) -> int:
        """Free-running index of the next slot that `put` fills."""

    @property
    def take_index(self) -> int:
        """Free-running index of the next slot that `take` copies."""

    @property
    def free(self) -> int:
        """Slots that `put` can still take; a Xen backend has one for each request it took."""

    def put(self, message: ReadableBuffer, /) -> bool:
        """Copy a message into the next slot (the rest of it zeroed); False if none is free.

        Raises ValueError if the message is longer than a slot. Nothing is visible to the peer
        before `publish`.
        """

    def put_keep(self, message: ReadableBuffer, /) -> bool:
        """Like `put`, but leave the rest of the slot as it is."""

    def publish(self) -> bool:
        """Make all put messages visible; True if the peer asked for an event (ring.h's rule)."""

    def take(self, limit: int = ...) -> list[bytes]:
        """Copy up to `limit` waiting slots, each exactly once, and advance past them."""

    def arm(self) -> bool:
        """Ask for an event at the next message; True if one is already there (final check)."""

    def change_slot_size(self, slot_size: int) -> None:
        """Go on with slots of another size (a Xen frontend that found out its backend's ABI).

        Raises ValueError unless the ring is idle and has as many entries with either size.
        """

    def close(self) -> None:
        """Let go of the buffers; a second call does nothing."""

@final
class Store:
    """A store that the C path does I/O on. Thread-safe."""

    @classmethod
    def null(cls) -> Store:
        """Return one that reads as zeros and forgets what is written."""

    @classmethod
    def memory(cls, memory: WriteableBuffer) -> Store:
        """Return one in a buffer, which is held as long as the store lives."""

    @classmethod
    def file(cls, fd: int) -> Store:
        """Return one in a file or block device; `fd` stays the caller's, and open as long."""

    def flush(self) -> None:
        """Return when every write that has returned is on stable storage.

        The kernel reports lost dirty pages once and then forgets them. We do not: after one
        OSError every later flush fails with it.
        """

@final
class Unit:
    """A logical unit as the C path sees it. Thread-safe.

    Its gate is open at first; `set` must come before anything is executed.
    """

    def __new__(cls, store: Store, block_size: int, max_bytes: int) -> Unit:
        """Blocks of `block_size` bytes of a store; a transfer has at most `max_bytes`."""

    def set(self, blocks: int, *, ready: bool, writable: bool, write_cache: bool) -> None:
        """Say what it is now. Without a write cache each write is flushed before its answer."""

    def close(self) -> None:
        """Close the gate, and return when no command is being executed in C.

        Until as many calls of `open` all commands are Python's.
        """

    def open(self) -> None:
        """Undo one `close`."""

@final
class Service:
    """A backend's loop over one ring (service.h). One thread runs it and changes its places and
    regions; `interrupt`, `unstall` and `set_attention` are for any. `ring` is held until `close`.
    """

    executed: int
    """Commands that Python has not seen."""
    notifications_sent: int
    notifications_received: int

    def __new__(
        cls, ring: RingEnd, protocol: str | None, *, incoming: int, outgoing: int, poll_ns: int
    ) -> Service:
        """protocol: "srp", or None for one of which all is Python's.

        incoming, outgoing: eventfds from and to the peer (copies are taken). poll_ns: how long a
        ring that was busy is watched before the thread sleeps.
        """

    def run(self, *, native: bool) -> bytes | None:
        """Serve until there is a message for Python; return a copy of its slot.

        None after `interrupt`. Without `native` every message is Python's. What was put on the
        ring meanwhile is published first. Raises RingError.
        """

    def publish(self) -> None:
        """Show the peer what was put on the ring, as `run` does first. Raises RingError."""

    def interrupt(self) -> None:
        """Make `run` return None, before it looks at another slot."""

    def unstall(self) -> None:
        """Let a notification go on that the peer has stalled by filling its eventfd."""

    def put_unit(self, address: bytes, unit: Unit) -> None:
        """Execute commands for an address (8 bytes, as the protocol has it) on a unit.

        Only once `set_attention` has said that nothing is to be told first.
        """

    def clear_units(self) -> None:
        """Forget all units."""

    def set_attention(self, address: bytes, attention: bool, /) -> None:
        """Say whether the initiator has to be told something before its next command there."""

    def add_region(self, handle: int, runs: Sequence[WriteableBuffer], *, readonly: bool) -> None:
        """Register memory (SRP): the runs, in order. They are held until it is removed."""

    def remove_region(self, handle: int, /) -> None:
        """Let go of a region; of none, if there is none."""

    def close(self) -> None:
        """Let go of ring, units, regions and descriptors; a second call does nothing."""

@final
class PageMap:
    """Pages of 4096 bytes of a file, mapped at consecutive addresses; a buffer of them all.

    They are unmapped when the object and the last view of it are gone.
    """

    def __new__(cls, fd: int, frames: Sequence[int], *, readonly: bool) -> PageMap:
        """Map the frames (page numbers in the file) in this order; they may repeat.

        Raises OSError (EINVAL for a frame beyond the end). `fd` is not kept. The file must be one
        that cannot shrink (F_SEAL_SHRINK): touching a page that is gone kills the process.
        """

    def __buffer__(self, flags: int, /) -> memoryview: ...

def grant_map(table: WriteableBuffer, reference: int, domain: int, *, readonly: bool) -> int:
    """Mark a version 1 grant entry in use, as the hypervisor would; return its frame.

    Raises vscsi.wire.errors.GrantError if the entry does not permit it, or is not in the table.
    """

def grant_unmap(table: WriteableBuffer, reference: int, *, reading: bool, writing: bool) -> None:
    """Clear the marks GTF_reading, GTF_writing or both."""

def grant_set(
    table: WriteableBuffer, reference: int, domain: int, frame: int, *, readonly: bool
) -> None:
    """Publish an entry that permits access: the frame first, then (release) domid and flags."""

def grant_end(table: WriteableBuffer, references: Sequence[int]) -> list[int]:
    """Revoke entries by compare-and-swap; return those still in use (not revoked)."""
