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
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol as Interface

from vscsi.transport.tap import Crossing, RingPath
from vscsi.wire import pcapng
from vscsi.wire.record import Protocol, build_record

MAX_WAITING_BYTES = 16 << 20
"""Messages that wait to be written; what comes beyond that is dropped and counted."""
MESSAGE_OVERHEAD = 512
"""Bytes that a waiting message counts for beside its own."""
BATCH = 256
"""Messages written at once."""
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

    number: int | None = None
    """Given with its first message that is not dropped: interfaces are described in that order."""
    received: int = 0
    dropped: int = 0
    lost: int = 0
    """Dropped since the last message that was not."""


@dataclass(frozen=True, slots=True)
class _Message:
    """One call of the tap."""

    interface: int
    first: bool
    """Whether the ring is to be described before it."""
    lost: int
    time_ns: int
    """Of the wall clock."""
    crossing: Crossing

    @property
    def cost(self) -> int:
        """Bytes that it counts for."""
        return MESSAGE_OVERHEAD + len(self.crossing.message) + len(self.crossing.descriptors)

    def blocks(self) -> bytes:
        """Return its pcapng block, and before a ring's first the one that describes the ring."""
        crossing, path = self.crossing, self.crossing.path
        record = build_record(
            protocol=path.protocol,
            direction=crossing.way,
            layout=path.layout,
            domain=path.domain,
            device=path.device,
            queue=path.queue,
            in_flight=min(crossing.in_flight, 0xFFFF),
            ring_index=crossing.ring_index,
            message=crossing.message,
            segments=crossing.descriptors,
        )
        block = pcapng.packet(self.interface, self.time_ns, record, self.lost)
        if not self.first:
            return block
        name = f"{path.protocol.name.lower()}-{path.domain}-{path.device}"
        parameters = " ".join(f"{key}={value}" for key, value in path.parameters)
        return pcapng.interface(name, parameters) + block


class CaptureWriter:
    """A `Tap` listener that writes pcapng from a thread of its own.

    Each ring is an interface, described by its path and negotiated parameters. A message that
    finds too many waiting is dropped: the ring's next one says how many were lost, the statistics
    at the end how many in all. Blocks are written whole, so that the file can be read at any time.

    `on_end` is called in that thread when the sink is closed: after `end`, or when it failed.
    """

    def __init__(
        self,
        sink: Sink,
        application: str,
        *,
        only: Protocol | None = None,
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        """application: who writes, for the file's header. only: leave out other protocols."""
        self.recorded = 0
        self.dropped = 0
        self.error: OSError | None = None
        """Why writing ended early; nothing is taken from then on."""
        self._only = only
        self._on_end = on_end
        self._sink = sink
        self._rings: dict[RingPath, _Ring] = {}
        self._described = 0
        self._queue: deque[_Message] = deque()
        self._waiting_bytes = 0
        self._ending = False
        self._deadline = math.inf
        self._lock = threading.Lock()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        # The wall clock's time at the start, carried on by a clock that never steps.
        self._clock_offset = time.time_ns() - time.monotonic_ns()
        os.set_blocking(sink.fileno(), False)
        self._thread = threading.Thread(
            target=self._run, args=(application,), name="capture", daemon=True
        )
        self._thread.start()

    def __call__(self, crossing: Crossing) -> None:
        """Take one message (a `Tap`)."""
        if self._only is not None and crossing.path.protocol is not self._only:
            return
        with self._lock:
            if self._ending:
                return
            ring = self._rings.setdefault(crossing.path, _Ring())
            ring.received += 1
            if self._waiting_bytes >= MAX_WAITING_BYTES:
                ring.dropped += 1
                ring.lost += 1
                self.dropped += 1
                return
            first = ring.number is None
            if ring.number is None:
                ring.number = self._described
                self._described += 1
            time_ns = crossing.time_ns + self._clock_offset
            taken = _Message(ring.number, first, ring.lost, time_ns, crossing)
            ring.lost = 0
            self.recorded += 1
            self._waiting_bytes += taken.cost
            if not self._queue:
                os.eventfd_write(self._wake, 1)
            self._queue.append(taken)

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

    def _now(self) -> int:
        return time.monotonic_ns() + self._clock_offset

    def _run(self, application: str) -> None:
        try:
            self._write(pcapng.section(application))
            while batch := self._take():
                self._write(b"".join(message.blocks() for message in batch))
                with self._lock:
                    self._waiting_bytes -= sum(message.cost for message in batch)
            self._write(self._statistics())
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

    def _take(self) -> list[_Message]:
        """Wait for messages; none if there are none and none will come. OSError: no reader."""
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        poll.register(self._sink.fileno(), 0)  # a pipe whose reader is gone says so unasked
        while True:
            with self._lock:
                batch = [self._queue.popleft() for _ in range(min(len(self._queue), BATCH))]
                if batch or self._ending:
                    return batch
            if any(fd != self._wake for fd, _ in poll.poll()):
                raise BrokenPipeError(errno.EPIPE, "its reader is gone")
            os.eventfd_read(self._wake)

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

    def _statistics(self) -> bytes:
        """Return what became of the messages of each ring that the file describes."""
        now = self._now()
        return b"".join(
            pcapng.statistics(ring.number, now, ring.received, ring.dropped)
            for ring in self._rings.values()
            if ring.number is not None
        )
