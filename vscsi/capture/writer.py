# SPDX-License-Identifier: MIT
"""Writing captures: a tap's listener that never waits, and a thread that writes pcapng."""

import errno
import logging
import math
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol as Interface

from vscsi.capture.choice import Choice
from vscsi.capture.metadata import Clock, describe
from vscsi.ring import TapFilter, tap_packets
from vscsi.transport.tap import NICENESS, Geometry, RingPath
from vscsi.wire import pcapng
from vscsi.wire.record import Protocol

MAX_WAITING_BYTES = 16 << 20
"""Packets that wait to be written; what comes beyond that is dropped and counted."""
END_S = 10.0
"""After `end`, a reader that has not taken the rest by then is given up."""

log = logging.getLogger(__name__)


class Sink(Interface):
    """Where a capture goes: a file, a pipe. It is the writer's, which makes it non-blocking."""

    def fileno(self) -> int:
        """Return the descriptor to write to."""

    def close(self) -> None:
        """Close it."""


@dataclass(slots=True)
class _Ring:
    """One ring of the capture, which is an interface of the file."""

    path: RingPath
    filter: TapFilter | None
    number: int | None = None
    """Given with its first message that is not dropped: interfaces are described in that order."""
    received: int = 0
    dropped: int = 0
    lost: int = 0
    """Dropped since the last message that was not."""

    @property
    def left_out(self) -> int:
        """Messages that the filter did not keep."""
        return self.filter.left_out if self.filter is not None else 0


@dataclass(frozen=True, slots=True)
class _Batch:
    """One call of the tap."""

    ring: _Ring
    first: bool
    """Whether the ring is to be described before it."""
    lost: int
    entries: bytes


class CaptureWriter:
    """A tap's listener that writes pcapng from a thread of its own.

    Each ring is an interface, described by its path and metadata. A message that finds too many
    waiting is dropped: the ring's next one says how many were lost, the statistics at the end how
    many in all. Blocks are written whole, so that the file can be read at any time.

    `on_end` is called in that thread when the sink is closed: after `end`, or when it failed.
    """

    def __init__(
        self,
        sink: Sink,
        application: str,
        *,
        choice: Choice | None = None,
        units: Callable[[RingPath], Sequence[Geometry]] = lambda _: (),
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        """application: who writes, for the file's header. units: what a ring's metadata tell of."""
        self.choice = choice or Choice()
        self.dropped = 0
        self.error: OSError | None = None
        """Why writing ended early; nothing is taken from then on."""
        self._taken = 0
        self._units = units
        self._on_end = on_end
        self._sink = sink
        self._rings: dict[RingPath, _Ring | None] = {}
        """None: a ring that is not to be captured."""
        self._described = 0
        self._queue: deque[_Batch] = deque()
        self._waiting_bytes = 0
        self._ending = False
        self._deadline = math.inf
        self._lock = threading.Lock()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._clock = Clock.start()
        os.set_blocking(sink.fileno(), False)
        self._thread = threading.Thread(
            target=self._run, args=(application,), name="capture", daemon=True
        )
        self._thread.start()

    @property
    def recorded(self) -> int:
        """Messages that are in the file, or on their way there."""
        return self._taken - self.left_out

    @property
    def left_out(self) -> int:
        """Messages that the filter did not keep, so far."""
        with self._lock:
            return sum(ring.left_out for ring in self._rings.values() if ring is not None)

    def __call__(self, path: RingPath, entries: bytes, count: int, dropped: int) -> None:
        """Take what crossed a ring (`vscsi.transport.tap.Listener`)."""
        with self._lock:
            if self._ending:
                return
            if path not in self._rings:
                self._rings[path] = self._ring(path)
            ring = self._rings[path]
            if ring is None:
                return
            full = self._waiting_bytes >= MAX_WAITING_BYTES
            left_out = dropped + (count if full else 0)
            ring.received += count + dropped
            ring.dropped += left_out
            self.dropped += left_out
            if full:
                ring.lost += count
                return
            if not count:
                return
            first = ring.number is None
            if ring.number is None:
                ring.number = self._described
                self._described += 1
            if not self._queue:
                os.eventfd_write(self._wake, 1)
            self._queue.append(_Batch(ring, first, ring.lost, entries))
            self._waiting_bytes += len(entries)
            self._taken += count
            ring.lost = 0

    def _ring(self, path: RingPath) -> _Ring | None:
        choice = self.choice
        luns = choice.filter.luns
        if choice.only not in (None, path.protocol):
            return None
        if path.protocol is Protocol.BLKIF and luns:  # its ring is the unit
            units = self._units(path)
            if not any(unit.number in luns for unit in units):
                return None
        return _Ring(path, choice.filter.ring_filter(path) if choice.filter else None)

    def end(self) -> None:
        """Take no more messages, and have what waits written; does not wait for that."""
        with self._lock:
            if not self._ending:
                self._ending = True
                self._deadline = time.monotonic() + END_S
                os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """End, and return when all is written and the sink closed; `error` if that failed."""
        self.end()
        self._thread.join()

    def _run(self, application: str) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        try:
            self._write(pcapng.section(application))
            while batch := self._take():
                self._write(self._blocks(batch))
                with self._lock:
                    self._waiting_bytes -= len(batch.entries)
            self._write(self._rest())
        except OSError as error:
            self.error = error
            level = logging.INFO if isinstance(error, BrokenPipeError) else logging.WARNING
            log.log(level, "the capture ended early: %s", error.strerror)
        finally:
            with self._lock:
                self._ending = True
                self._queue.clear()
                os.close(self._wake)
            self._sink.close()
            self._on_end()

    def _take(self) -> _Batch | None:
        """Wait for messages; None if there are none and none will come. OSError: no reader."""
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        poll.register(self._sink.fileno(), 0)  # a pipe whose reader is gone says so unasked
        while True:
            with self._lock:
                if self._queue or self._ending:
                    return self._queue.popleft() if self._queue else None
            if any(fd != self._wake for fd, _ in poll.poll()):
                raise BrokenPipeError(errno.EPIPE, "its reader is gone")
            os.eventfd_read(self._wake)

    def _blocks(self, batch: _Batch) -> bytes:
        """Return a batch's pcapng blocks, and before a ring's first the one that describes it."""
        ring, entries = batch.ring, batch.entries
        if ring.filter is not None:
            entries, _ = ring.filter.take(entries)
        packets = self._packets(ring, entries, batch.lost)
        if not batch.first:
            return packets
        about = describe(ring.path, self._units(ring.path), self._clock, self.choice)
        return pcapng.interface(ring.path.name, about) + packets

    def _packets(self, ring: _Ring, entries: bytes, lost: int = 0) -> bytes:
        path, payload = ring.path, self.choice.payload
        return tap_packets(
            entries,
            interface=ring.number or 0,
            clock_offset_ns=self._clock.offset_ns,
            lost=lost,
            protocol=path.protocol,
            layout=path.layout,
            domain=path.domain,
            device=path.device,
            queue=path.queue,
            payload_kind=payload.kind,
            payload_bytes=payload.head_bytes,
        )

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        poll = select.poll()
        poll.register(self._sink.fileno(), select.POLLOUT)
        while rest:
            try:
                rest = rest[os.write(self._sink.fileno(), rest) :]
            except BlockingIOError:
                if not poll.poll(1000) and time.monotonic() > self._deadline:
                    raise TimeoutError(errno.ETIMEDOUT, "its reader does not read") from None

    def _rest(self) -> bytes:
        """Return what the filters of the rings that the file describes held back, and what became
        of their messages.
        """
        now = time.monotonic_ns() + self._clock.offset_ns
        blocks = b""
        for ring in [each for each in self._rings.values() if each is not None]:
            if ring.number is None:
                continue
            accepted = None
            if ring.filter is not None:
                blocks += self._packets(ring, ring.filter.end()[0])
                accepted = ring.received - ring.dropped - ring.left_out
            blocks += pcapng.statistics(ring.number, now, ring.received, ring.dropped, accepted)
        return blocks
