# SPDX-License-Identifier: MIT
"""Captured commands as columns: what every source yields, and every analysis and sink reads.

A source (`vscsi.capture.sources`) yields Arrow record batches of `SCHEMA`, one row a command. What
is no command (task management, logins, events) it keeps in `Source.events`. Rows come in the order
in which the commands came to their ends; `serial` has the order in which they were sent.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Protocol

import pyarrow as pa

from vscsi.target.base import Function
from vscsi.wire.opcodes import DeviceType

MAX_EVENTS = 1 << 16
"""Events that a source keeps; those beyond are counted in `Source.events_dropped`."""
BATCH_ROWS = 1 << 16
"""Rows of a batch at most."""
SECTOR_BYTES = 512


class Operation(IntEnum):
    """What a command does to the medium, whatever its protocol calls it."""

    OTHER = 0
    READ = 1
    WRITE = 2
    FLUSH = 3
    UNMAP = 4


class Fate(IntEnum):
    """How a command ended."""

    ANSWERED = 0
    """Executed, or refused with a SCSI status."""
    FAILED = 1
    """Answered as not executed: an SRP response code, a vscsiif host byte, blkif's own status."""
    ABORTED = 2
    """Ended by a task management function; no answer will come."""
    LOST = 3
    """The answer cannot be known: messages were dropped, or the connection was made anew."""
    OPEN = 4
    """Still unanswered where the capture ends."""


SCHEMA = pa.schema(
    [
        pa.field("serial", pa.int64(), nullable=False),
        # Nanoseconds since 1970, or since the start where the source has no wall clock.
        pa.field("time_ns", pa.int64(), nullable=False),
        # Indices into Source.channels and Source.disks.
        pa.field("channel", pa.int32(), nullable=False),
        pa.field("disk", pa.int32(), nullable=False),
        pa.field("tag", pa.uint64()),
        # The CDB; null where the source has none (blkif, block layer traces).
        pa.field("cdb", pa.binary()),
        # Of the CDB; blkif's operation number; null where there is neither.
        pa.field("opcode", pa.uint8()),
        pa.field("service_action", pa.uint16()),
        pa.field("operation", pa.uint8(), nullable=False),
        pa.field("attribute", pa.uint8()),
        pa.field("fua", pa.bool_(), nullable=False),
        # In logical blocks of the disk (Disk.block_bytes); null where there is no address.
        pa.field("lba", pa.uint64()),
        pa.field("blocks", pa.uint32()),
        # Bytes of the buffers, as the initiator sees them.
        pa.field("data_out", pa.int64(), nullable=False),
        pa.field("data_in", pa.int64(), nullable=False),
        # Where the message was on its ring; null where the source has no ring.
        pa.field("ring_index", pa.uint32()),
        # Commands of the disk under way when this one was sent, itself not counted.
        pa.field("outstanding", pa.uint32(), nullable=False),
        pa.field("fate", pa.uint8(), nullable=False),
        # From the request to the answer; null without one, or where a source does not have it.
        pa.field("latency_ns", pa.int64()),
        pa.field("status", pa.uint8()),
        pa.field("sense", pa.binary()),
        pa.field("sense_key", pa.uint8()),
        pa.field("asc", pa.uint8()),
        pa.field("ascq", pa.uint8()),
        # > 0 not moved, < 0 buffers too short.
        pa.field("residual", pa.int64()),
        # The first bytes of the data, out and then in, where the capture kept them.
        pa.field("data", pa.binary()),
    ]
)


@dataclass(frozen=True, slots=True)
class Channel:
    """A ring, a connection, a queue: where tags are unique and messages have an order."""

    name: str
    """As in "srp-1-0"; of a connection both its ends."""
    protocol: str
    """srp, vscsiif, blkif, iscsi; scsi where the trace does not say; block for block layers'."""
    parameters: tuple[tuple[str, str], ...] = ()


@dataclass(slots=True)
class Disk:
    """A logical unit as one initiator sees it: what distances and outstanding I/Os refer to."""

    name: str
    """As in "srp-1-0 lun 0"."""
    lun: bytes | None = None
    """The 8 bytes of SAM's LUN, where there is one."""
    block_bytes: int = SECTOR_BYTES
    """Bytes of a logical block; learned from READ CAPACITY's answer or the capture's metadata."""
    block_count: int | None = None
    device_type: DeviceType = DeviceType.DISK


@dataclass(frozen=True, slots=True)
class Event:
    """What happened beside commands: task management, logins, unit attentions, clock steps."""

    time_ns: int
    channel: int
    words: str
    """One line for humans: the request."""
    outcome: str = ""
    """The answer in words; empty without one."""
    function: Function | None = None
    """Of task management."""
    disk: int | None = None
    managed_tag: int | None = None
    latency_ns: int | None = None


@dataclass(slots=True)
class Troubles:
    """What a source could not use; a source with any of it was not read as a whole."""

    broken: str = ""
    """One line: where reading had to end, and why."""
    skipped: int = 0
    """Records that were not understood, and"""
    first_skipped: str = ""
    """why the first of them was not, and where it is."""
    dropped: int = 0
    """Messages that the capture itself says are missing. No fault of the file."""
    notes: list[str] = field(default_factory=list)
    """One line each about what was repaired, as a clock that stepped. Bounded by the source."""


class Source(Protocol):
    """A capture that is read once, as a stream, with memory that its content does not decide.

    `channels`, `disks` and `events` grow while it is iterated over; `troubles` is final at the end.
    Iterating raises nothing for what a file contains: that is in `troubles`.
    """

    format: str
    """In words, as in "pcapng of vscsi"."""
    channels: list[Channel]
    disks: list[Disk]
    events: list[Event]
    events_dropped: int
    troubles: Troubles

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        """Yield batches of SCHEMA."""
