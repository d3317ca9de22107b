# SPDX-License-Identifier: MIT
"""What is to be sent, one after the other: commands, and task management between them."""

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import pyarrow as pa

from vscsi.capture.commands import Event, Fate, Operation


class Row(NamedTuple):
    """A row of SCHEMA, as far as a replay looks at it."""

    serial: int
    time_ns: int
    channel: int
    disk: int
    tag: int | None
    cdb: bytes | None
    opcode: int | None
    service_action: int | None
    operation: int
    attribute: int | None
    fua: bool
    lba: int | None
    blocks: int | None
    data_out: int
    data_in: int
    fate: int
    latency_ns: int | None
    status: int | None
    sense_key: int | None
    asc: int | None
    ascq: int | None
    residual: int | None
    data: bytes | None


@dataclass(slots=True, eq=False)
class Step:
    """A command, or a task management function, in the order of sending."""

    sent_ns: int
    """When it was sent, since the capture's first; never less than that of the step before."""
    ended_ns: int | None
    """When it was answered; None where the capture does not say."""
    disk: int
    row: Row | None = None
    event: Event | None = None
    changes: bool = True
    """Whether others see its effect."""
    span: tuple[int, int] | None = None
    """First block and the one behind the last; None: all of the disk."""
    done: bool = field(default=False, repr=False)

    def touches(self, other: "Step") -> bool:
        """Whether the order of the two can be seen: one changes what the other touches."""
        if self.disk != other.disk or not (self.changes or other.changes):
            return False
        if self.span is None or other.span is None:
            return True
        return self.span[0] < other.span[1] and other.span[0] < self.span[1]


class Steps:
    """Pieces of rows in the order of sending, and a source's growing list of events, as steps.

    Task management comes in at its time. What the source has not told of it by then, because it
    reads no further ahead than the window of `InOrder`, comes when it is told of.
    """

    def __init__(self, pieces: Iterable[pa.RecordBatch], events: list[Event]) -> None:
        self.began_ns: int | None = None
        """The time of the first step."""
        self._pieces = pieces
        self._events = events
        self._seen = 0
        self._waiting: list[tuple[int, int, Event]] = []
        self._now_ns = 0

    def __iter__(self) -> Iterator[Step]:
        for piece in self._pieces:
            columns = [piece.column(name).to_pylist() for name in Row._fields]
            self._look_at_events()
            for row in map(Row._make, zip(*columns, strict=True)):
                while self._waiting and self._waiting[0][0] < row.time_ns:
                    yield self._management(heapq.heappop(self._waiting)[2])
                yield self._command(row)
        self._look_at_events()
        while self._waiting:
            yield self._management(heapq.heappop(self._waiting)[2])

    def _look_at_events(self) -> None:
        while self._seen < len(self._events):
            event = self._events[self._seen]
            if event.function is not None:
                heapq.heappush(self._waiting, (event.time_ns, self._seen, event))
            self._seen += 1

    def _since_begin(self, time_ns: int) -> int:
        if self.began_ns is None:
            self.began_ns = time_ns
        return time_ns - self.began_ns

    def _sent(self, time_ns: int) -> int:
        self._now_ns = max(self._now_ns, self._since_begin(time_ns))
        return self._now_ns

    def _ended(self, time_ns: int, latency_ns: int | None) -> int | None:
        return None if latency_ns is None else self._since_begin(time_ns) + latency_ns

    def _command(self, row: Row) -> Step:
        answered = row.fate in (Fate.ANSWERED, Fate.FAILED)
        span = None
        if row.lba is not None and row.operation in (Operation.READ, Operation.WRITE):
            span = row.lba, row.lba + (row.blocks or 0)
        return Step(
            self._sent(row.time_ns),
            self._ended(row.time_ns, row.latency_ns if answered else None),
            row.disk,
            row=row,
            changes=row.operation != Operation.READ,
            span=span,
        )

    def _management(self, event: Event) -> Step:
        disk = -1 if event.disk is None else event.disk
        ended = self._ended(event.time_ns, event.latency_ns)
        return Step(self._sent(event.time_ns), ended, disk, event=event)
