# SPDX-License-Identifier: MIT
"""The C core: ring ends and grant entries in shared memory, with the ordering that they need."""

from collections.abc import Sequence
from os import PathLike
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
    """What a store of vscsi.target is made of. Thread-safe, `resize` excepted.

    Offsets and lengths are bytes; the caller keeps within the size. OSError has the errno of what
    went wrong below, and then nothing is promised about the range.
    """

    staged_bytes: int
    """Bytes that went through a buffer because their memory was not aligned."""

    @classmethod
    def null(cls) -> Store:
        """Return one that reads as zeros and forgets what is written."""

    @classmethod
    def memory(cls, memory: WriteableBuffer) -> Store:
        """Return one in a buffer, which is held as long as the store lives."""

    @classmethod
    def file(cls, fd: int, alignment: int = 1) -> Store:
        """Return one in a file or block device; `fd` stays the caller's, and open as long.

        alignment: what O_DIRECT asks of offsets, of lengths and of memory, a power of two.
        """

    @classmethod
    def mapped(cls, fd: int, size: int, *, writable: bool) -> Store:
        """Return one in a file of `size` bytes that it maps; `fd` as for `file`.

        A page that is gone or cannot be had is EIO or ENOSPC, and costs nobody his process.
        """

    @classmethod
    def generic(cls, path: PathLike[str], /) -> Store:
        """Return one that has the kernel execute each CDB, through an sg node; raises OSError.

        Only commands do I/O on it. It has files of its own there, until `close`.
        """

    def set_limits(self, *, timeout_ms: int, grace_ms: int) -> None:
        """Of `generic`: when the kernel aborts a command, and how long that is waited for.

        A command that is let go of makes its unit not ready.
        """

    def take_told(self) -> list[tuple[bytes, bytes]]:
        """Return CDB and sense data of commands that failed since the last call.

        Without sense data (b"") it is a command that the kernel was left with.
        """

    def resize(self, size: int, *, writable: bool) -> None:
        """Map what the file has become; nothing to do for other kinds. One thread at a time."""

    def readv(self, offset: int, views: Sequence[WriteableBuffer], /) -> None:
        """Fill the views, in order; EIO if the file ends inside the range."""

    def writev(self, offset: int, views: Sequence[ReadableBuffer], /) -> None:
        """Write the views, in order."""

    def discard(self, offset: int, length: int, /) -> None:
        """Deallocate a range, which reads as zeros then; write those where there are no holes."""

    def punch(self, offset: int, length: int, /) -> None:
        """Punch a hole, or raise OSError where there are none."""

    def close(self) -> None:
        """Forget the file's descriptor, which the caller closes."""

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

    def __new__(
        cls,
        store: Store,
        block_size: int,
        max_bytes: int,
        *,
        max_unmap_blocks: int = 0,
        max_unmap_descriptors: int = 0,
        gate: Unit = ...,
    ) -> Unit:
        """Blocks of `block_size` bytes of a store; a transfer has at most `max_bytes`.

        gate: the unit whose gate it has; without, one of its own.
        """

    def set(
        self, blocks: int, *, ready: bool, writable: bool, write_cache: bool, thin: bool
    ) -> None:
        """Say what it is now. Without a write cache each write is flushed before its answer.

        thin: whether there is an UNMAP.
        """

    def set_block_size(self, block_size: int, /) -> None:
        """Change it, while it is not ready."""

    def close(self) -> None:
        """Close the gate, and return when no command is being executed in C.

        Until as many calls of `open` all commands are Python's.
        """

    def open(self) -> None:
        """Undo one `close`."""

@final
class Tap:
    """A byte ring for what crosses one ring (tap.h): one thread puts, another one takes."""

    active: bool
    """Whether somebody listens; any thread."""
    dropped: int
    """Messages that found no room."""
    wanted: tuple[int, bool]
    """What is kept of commands' data: how many first bytes, and whether a hash; any thread."""

    def __new__(cls, size: int) -> Tap:
        """size: bytes, a power of two from 8192 on."""

    def put(
        self,
        way: int,
        time_ns: int,
        ring_index: int,
        in_flight: int,
        message: ReadableBuffer,
        descriptors: ReadableBuffer,
        data: ReadableBuffer = b"",
    ) -> None:
        """Show a message, or drop it. time_ns: of the monotonic clock.

        data: what `data` has returned. ValueError for a message or descriptors beyond 65,535 bytes.
        """

    def data(
        self, segments: Sequence[ReadableBuffer], length: int, parameters: bool = False
    ) -> bytes:
        """Return what is wanted of the first `length` bytes of segments, for `put`; any thread.

        Empty if nothing is. parameters: it is a parameter list, which is kept in any case. The
        segments, a peer's memory perhaps, are read once.
        """

    def take(self, room: int, /) -> tuple[bytes, int]:
        """Return entries (for `tap_packets`) of at most `room` bytes, and how many they are.

        196,608 bytes hold one in any case.
        """

@final
class TapFilter:
    """Keeps the entries of one ring's tap that meet rules (filter.h); one thread at a time."""

    left_out: int
    """Messages that were not kept."""

    def __new__(
        cls,
        protocol: int,
        layout: int,
        *,
        luns: Sequence[int] | None,
        opcodes: Sequence[int] | None,
        operations: int,
        lba: tuple[int, int] | None,
        statuses: Sequence[int] | None,
        failed: bool,
    ) -> TapFilter:
        """Keep commands that meet each condition that is not None, and their answers.

        opcodes: each opcode << 24 | service action, or 1 << 16 for whichever it has. operations:
        those of blkif, a bit each, for which opcodes stand there. lba: first and last. failed:
        beside a status of `statuses`, what was not executed or has no answer. ValueError for more
        than 64 logical units or opcodes.
        """

    def take(self, entries: ReadableBuffer, /) -> tuple[bytes, int]:
        """Return the entries that are kept, and how many; ValueError for what no tap returned.

        With `statuses` a command, and what came after it, waits here for its answer (at most 4 MiB
        of entries, 4096 commands; those beyond that are taken for unanswered).
        """

    def end(self) -> tuple[bytes, int]:
        """Return what waits, all of it unanswered."""

@final
class Tally:
    """What was answered of one logical unit's commands over one ring (tally.h).

    One thread at a time adds, any reads.
    """

    def __new__(cls, row_of: bytes, rows: int) -> Tally:
        """row_of: for each of 256 opcodes (blkif: operations) the row that it is counted in.

        rows: at most 256.
        """

    def add(self, row: int, now_ns: int, latency_ns: int, length: int, /) -> None:
        """Count a command; ValueError if there is no such row.

        now_ns: of the monotonic clock. length: bytes.
        """

    def read(self) -> list[tuple[int, tuple[int, ...], tuple[int, ...], int, int, int]]:
        """Return the rows that have counts.

        Each is its number, counts by latency and by size in buckets (see `bounds`), the sum of
        latencies in ns, that of sizes in bytes, and the greatest latency of the last minute.
        """

    @staticmethod
    def bounds() -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the buckets' bounds, which belong to them: latencies in ns, sizes in bytes.

        One more bucket is for what is beyond the last one.
        """

@final
class Service:
    """A backend's loop over one ring (service.h). One thread runs it and changes its places and
    regions; `interrupt`, `unstall` and `set_attention` are for any. `ring` is held until `close`.
    """

    executed: int
    """Commands that Python has not seen."""
    deferred: int
    """Commands that had to wait for a device while the ring's thread went on."""
    taken_ns: int
    """When the message at hand was seen on the ring, of the monotonic clock."""
    position: int
    """How many messages came together with it and before it."""
    waiting: int
    """How many came together with it and wait behind it."""
    shown: bool
    """Whether it has been put into the tap (a command that failed here)."""
    counting: bool
    """Whether histograms are kept: at first they are. Set it before `run` alone."""
    others: int
    """Commands that Python has under way; set it before `run` alone."""
    in_flight: int
    """Commands on the ring, under way here, or Python's, when we looked last; any thread."""
    most_in_flight: int
    """The most of those in the last minute; any thread."""
    histograms: dict[str, tuple[Counts, Counts]]
    """Latency (ns; from when it was seen until its answer was shown) and size (bytes) of what was
    executed in C, by operation ("read", ...)."""
    notifications_sent: int
    notifications_received: int

    def __new__(
        cls,
        ring: RingEnd,
        protocol: str | None,
        *,
        grants: GrantAccess | None,
        incoming: int,
        outgoing: int,
        poll_ns: int,
        tap: Tap,
    ) -> Service:
        """protocol: "srp", "vscsiif", "blkif64", "blkif32", or None: all is Python's.

        grants: what vscsiif and blkif map by (all is Python's without); held until `close`.
        incoming, outgoing: eventfds from and to the peer (copies are taken). poll_ns: how long a
        ring that was busy is watched before the thread sleeps. tap: to show what is executed in C.
        """

    def run(self, *, native: bool) -> bytes | None:
        """Serve until there is a message for Python; return a copy of its slot.

        None after `interrupt`. Without `native` every message is Python's. What was put on the
        ring meanwhile is published first, and nothing is under way in C when this returns. Raises
        RingError.
        """

    def publish(self) -> None:
        """Show the peer what was put on the ring, as `run` does first. Raises RingError."""

    def interrupt(self) -> None:
        """Make `run` return None, before it looks at another slot."""

    def unstall(self) -> None:
        """Let a notification go on that the peer has stalled by filling its eventfd."""

    def put_unit(self, address: bytes, unit: Unit, tally: Tally) -> None:
        """Execute commands for an address (8 bytes, as the protocol has it) on a unit.

        tally: where they are counted; nobody else may add there while the service runs.

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

Counts = tuple[int, int, list[tuple[int, int]]]
"""A histogram: least and most value, and (middle, count) of each bucket that is not empty. A bucket
is no wider than 1/32 of its values."""

@final
class Load:
    """A frontend's reads and writes of one size, without Python (load.h).

    One thread runs it, and has the ring to itself meanwhile; `stop` and `interrupt` are for any.
    While it runs everything else raises ValueError, the figures excepted. `ring` and `table` are
    held until `close`.
    """

    reads: Counts
    writes: Counts
    """Latencies in ns of the commands that ended well."""
    elapsed_ns: int
    """From the begin to the last answer."""
    commands: int
    """Commands begun."""
    outstanding: int
    """Commands begun and not answered."""
    late: int
    unsent: int
    """Open loop: commands that found no free place when they were due, and were begun later; or
    never, by the end of the run."""
    most_outstanding: int
    most_on_ring: int
    notifications_sent: int
    notifications_received: int
    answered: int | None
    """The place that the last slot which `run` returned answers."""
    answered_write: bool
    """Whether that was a write."""
    room: int
    """Commands that may be put on the ring."""

    def __new__(
        cls,
        ring: RingEnd,
        protocol: str,
        *,
        incoming: int,
        outgoing: int,
        table: WriteableBuffer | None,
        poll_ns: int,
        depth: int,
        blocks: int,
        first_address: int,
        step: int,
        at_random: bool,
        mixed: bool,
        seed: int,
        read_percent: int,
        period_ns: float,
        first_tag: int,
    ) -> Load:
        """protocol: "srp", "vscsiif", "blkif64" or "blkif32".

        incoming, outgoing: eventfds from and to the peer (copies are taken). table: the grant
        table. poll_ns: how long an idle ring is watched before the thread sleeps. depth: places.
        Block n of `blocks` has the address first_address + n * step. read_percent: 100 or 0 unless
        mixed. period_ns: between commands of an open loop; 0: closed loop. first_tag: of place 0;
        the next place's is the next one.
        """

    def prepare(self, *, place: int, write: bool, slot: bytes, references: Sequence[int]) -> None:
        """Say what a place sends: a request with the place's tag and its address left open.

        references: version 1 grants that are in effect. They are revoked, and made again as they
        were for as long as a command of the place is outstanding.
        """

    def begin(
        self, *, duration_ns: int, commands: int, operations: ReadableBuffer | None = None
    ) -> None:
        """Start a run, which ends after some time, or when so many commands were begun.

        Operations go on where the last run left off; or they are an array of 64-bit numbers
        (block * 2, + 1 for a write), gone through over and over and held until the next `begin`,
        of whose first `depth` the n-th has the n-th place. ValueError while commands are
        outstanding, or if a place lacks a request for either direction.
        """

    def run(self) -> bytes | None:
        """Go on until there is a slot that is no clean answer; return a copy of it.

        None when nothing is outstanding at the end of the run, or after `interrupt`. What was put
        on the ring meanwhile is published first. Raises RingError.
        """

    def stop(self) -> None:
        """Begin no more commands, in this run and later ones."""

    def interrupt(self) -> None:
        """Make `run` return, whatever is outstanding; forgotten at the next `begin`."""

    def close(self) -> None:
        """Let go of ring, table and descriptors; a second call does nothing."""

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

@final
class GrantAccess:
    """Another domain's memory, and which of its version 1 grants are in use here. Thread-safe.

    A reference in use keeps the frame that it had when it was mapped, whatever the domain writes
    into its entry since; the entry carries GTF_reading and GTF_writing as Xen would set them.
    """

    mapped: int
    """References in use, each as often as it is mapped, by services as well."""

    def __new__(
        cls,
        memory: WriteableBuffer,
        readonly: ReadableBuffer,
        *,
        references: int,
        domain: int,
        limit: int,
    ) -> GrantAccess:
        """Take the memory mapped twice, with a grant table of `references` entries at its start.

        domain: whom entries must name. limit: references in use at a time. The buffers are held.
        """

    def map(self, references: Sequence[int], *, readonly: bool) -> list[int]:
        """Mark entries in use, as the hypervisor would; return the frames. They may repeat.

        Raises vscsi.wire.errors.GrantError, and marks none, if one does not permit it or is not
        in the table, its frame is not in the memory, or they are too many.
        """

    def unmap(self, references: Sequence[int], *, readonly: bool) -> None:
        """Undo a `map`; ValueError for a reference that is not mapped so."""

def grant_set(
    table: WriteableBuffer, reference: int, domain: int, frame: int, *, readonly: bool
) -> None:
    """Publish an entry that permits access: the frame first, then (release) domid and flags."""

def grant_end(table: WriteableBuffer, references: Sequence[int]) -> list[int]:
    """Revoke entries by compare-and-swap; return those still in use (not revoked)."""

def tap_packets(
    entries: ReadableBuffer,
    *,
    interface: int,
    clock_offset_ns: int,
    lost: int,
    protocol: int,
    layout: int,
    domain: int,
    device: int,
    queue: int,
    payload_kind: int,
    payload_bytes: int,
) -> bytes:
    """Return the entries of one ring's tap as pcapng packets around capture records.

    clock_offset_ns is added to the times. lost: messages that were left out before the first,
    beside what the tap itself dropped. payload_kind: what is taken of the data that entries hold,
    of the first bytes at most payload_bytes. Raises ValueError for what no `take` has returned.
    """
