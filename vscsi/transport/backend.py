# SPDX-License-Identifier: MIT
"""What every ring protocol's backend end does: take, copy, hand over; answer; close in order."""

import logging
import os
import select
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import ClassVar, Protocol

from vscsi.domain.base import EventChannel, GrantMapper
from vscsi.domain.xenbus import Keys, Reader
from vscsi.ring import RingEnd
from vscsi.transport.tap import Crossing, RingPath, TapSwitch
from vscsi.wire.errors import WireError
from vscsi.wire.record import Way

log = logging.getLogger(__name__)

BATCH = 64
"""Slots taken at once; their answers are published together."""
SPURIOUS_EVENTS = 64
"""Events without work in a row, after which events are looked at once a millisecond (XSA-332)."""


class Peer(Protocol):
    """What a backend end needs of the hypervisor about one frontend's domain."""

    domain: int

    @property
    def grants(self) -> GrantMapper:
        """The domain's grant table."""

    def bind(self, port: int) -> EventChannel:
        """Bind an event channel that the domain allocated; WireError if there is none."""


@dataclass(slots=True)
class BackendStatistics:
    """Counters of one backend end since its frontend connected."""

    requests: int = 0
    answers: int = 0
    wire_errors: int = 0
    notifications_sent: int = 0
    notifications_received: int = 0


@dataclass(slots=True)
class Connection:
    """What a backend end works on while it is connected."""

    ring: RingEnd
    events: EventChannel
    path: RingPath


class RingBackend(ABC):
    """One device's backend end: while connected, a thread of its own serves its ring.

    A xenbus `BackendDriver`. Subclasses say how a frontend's keys become a `Connection` and what a
    message means. A frontend that breaks the rules costs itself its channel: `on_failure(reason)`
    is called (once, from any thread), and the owner closes the device.
    """

    kind: ClassVar[str]

    def __init__(self, peer: Peer, device: int, tap: TapSwitch) -> None:
        self.peer = peer
        self.device = device
        self.tap = tap
        self.statistics = BackendStatistics()
        self.on_failure: Callable[[str], None] = lambda _reason: None
        self.connection: Connection | None = None
        self.in_flight = 0
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._held = ExitStack()
        self._thread: threading.Thread | None = None
        self._cpu_clock: int | None = None
        self._wake = -1
        self._stopping = False
        self._fail_lock = threading.Lock()
        self._ring_thread = 0
        # The batch that is being handled, for the tap:
        self._taken_ns = 0
        self._first_index = 0
        self._in_flight_before = 0
        self._offset = 0
        self._idle_events = 0

    # What a protocol says.

    @abstractmethod
    def features(self) -> Keys:
        """Return what is published before InitWait."""

    @abstractmethod
    def attach(self, frontend: Reader) -> tuple[Connection, Keys]:
        """Take what the frontend's keys name (`open_ring`); also return what is published with
        Connected.

        Raises WireError for keys that cannot be. What it took until then is given back.
        """

    @abstractmethod
    def message(self, slot: bytes) -> None:
        """Handle one message, copied from the ring; raise WireError to close the channel."""

    def quiesce(self) -> None:  # noqa: B027 - most have something to do, none must
        """End what is in flight; it is waited for then."""

    def parameters(self) -> Mapping[str, object]:
        """Return what was negotiated."""
        return {}

    # xenbus (a BackendDriver)

    def connect(self, frontend: Reader) -> Keys:
        """Attach the frontend's ring and serve it."""
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._held.callback(os.close, self._wake)
        connection, properties = self.attach(frontend)
        self.statistics = BackendStatistics()
        self.in_flight = 0
        self._stopping = False
        self.connection = connection
        self._cpu_clock = None
        name = f"{self.kind}-{self.peer.domain}-{self.device}"
        thread = threading.Thread(target=self._serve, args=(connection,), name=name, daemon=True)
        thread.start()
        self._thread = thread
        return properties

    def connected(self, _frontend: Reader) -> Keys:
        """Take notice that the frontend is Connected."""
        return {}

    def reconfigure(self, _frontend: Reader) -> Keys:
        """Change what is served, where the protocol has that."""
        return {}

    def disconnect(self) -> None:
        """Stop serving, and give back everything, also what an `attach` that failed has taken."""
        connection, thread = self.connection, self._thread
        self._stopping = True
        try:
            if connection is not None:
                os.eventfd_write(self._wake, 1)
                connection.events.close()  # a notification that the frontend stalls goes on
                if thread is not None:
                    thread.join()
                self.quiesce()
                with self._lock:
                    self._idle.wait_for(lambda: self.in_flight == 0)
        finally:
            with self._lock:
                self.connection = None
                self._thread = None
            self._held.close()

    def open_ring(
        self,
        frontend: Reader,
        references: Sequence[Sequence[int]],
        make: Callable[..., RingEnd],
        slot_size: int,
    ) -> tuple[RingEnd, EventChannel]:
        """Map each ring's pages and bind the frontend's event channel (for `attach`).

        make: what attaches to the rings' memory. All is held until `disconnect`. WireError if a
        page or the channel is not there for us.
        """
        memory = []
        for each in references:
            mapping = self.peer.grants.map(each, readonly=False)
            self._held.callback(mapping.unmap)
            memory.append(mapping.contiguous())
        events = self.peer.bind(frontend.number("event-channel"))
        self._held.callback(events.close)
        ring = make(*memory, slot_size)
        self._held.callback(ring.close)
        return ring, events

    # What the device's owner asks.

    def report(self) -> dict[str, object]:
        """Return counters, the serving thread's CPU time (ns), and what was negotiated."""
        return {**asdict(self.statistics), "cpu_ns": self.cpu_ns(), **self.parameters()}

    def cpu_ns(self) -> int:
        """Return the CPU time that the serving thread has used, in nanoseconds."""
        clock = self._cpu_clock
        try:
            return time.clock_gettime_ns(clock) if clock is not None else 0
        except OSError:  # the thread has just ended
            return 0

    # What a protocol uses.

    def answer(
        self, message: bytes, *, slots: int = 1, valid: Callable[[], bool] = lambda: True
    ) -> None:
        """Put an answer on the ring, from any thread; once the channel ends it goes nowhere.

        The ring's own thread publishes it: notifying can be stalled by the frontend, which must
        cost nobody else. slots: how many the request occupied (all but the first stay empty).
        valid: whether the question was asked in this connection, where it may have been another.
        """
        with self._lock:
            connection = self.connection
            if connection is None or self._stopping or not valid():
                return
            ring = connection.ring
            try:
                if self.tap.active:
                    now = time.monotonic_ns()
                    index, waiting = ring.put_index, self.in_flight
                    self.tap(
                        Crossing(connection.path, Way.TO_INITIATOR, now, index, waiting, message)
                    )
                for slot in range(slots):
                    if not ring.put(message if slot == 0 else b""):
                        raise WireError("the frontend leaves no room for answers")
                self.statistics.answers += 1
                if threading.get_ident() != self._ring_thread:
                    os.eventfd_write(self._wake, 1)
            except WireError as error:
                self.fail(error)

    def show_request(self, slot: bytes, descriptors: bytes = b"") -> None:
        """Show the message that is being handled to the tap; descriptors: copied segment lists."""
        connection = self.connection
        if connection is not None and self.tap.active:
            # Taken together, but still one after the other on the ring: those before it count.
            self.tap(
                Crossing(
                    connection.path,
                    Way.TO_TARGET,
                    self._taken_ns,
                    (self._first_index + self._offset) & 0xFFFF_FFFF,
                    self._in_flight_before + self._offset,
                    slot,
                    descriptors,
                )
            )

    def count(self, change: int) -> None:
        """Count a request that began (+1), or let go of the frontend's memory (-1)."""
        with self._lock:
            self.in_flight += change
            if not self.in_flight:
                self._idle.notify_all()

    # The loop.

    def _publish(self, connection: Connection) -> None:
        """Show the frontend what was answered (in the ring's own thread, without the lock)."""
        with self._lock:
            wanted = connection.ring.publish()
        if wanted:
            connection.events.notify()
            self.statistics.notifications_sent += 1

    def fail(self, error: WireError) -> None:
        """Close the channel because of what its frontend did; any thread, does not wait."""
        self.statistics.wire_errors += 1
        with self._fail_lock:
            first = not self._stopping
            self._stopping = True
        if first:
            self.on_failure(str(error))

    def _serve(self, connection: Connection) -> None:
        # Of this thread by itself: asking for the clock of a thread that has ended is undefined.
        self._cpu_clock = time.pthread_getcpuclockid(threading.get_ident())
        self._ring_thread = threading.get_ident()
        try:
            while not self._stopping:
                busy = self._batch(connection)
                self._publish(connection)
                if not busy and not connection.ring.arm():
                    self._sleep(connection)
        except WireError as error:
            self.fail(error)
        except Exception as error:  # a fault of ours costs this channel alone, and is reported
            log.exception("%s: internal error", threading.current_thread().name)
            self.fail(WireError(f"internal error: {error!r}"))

    def _batch(self, connection: Connection) -> int:
        slots = connection.ring.take(BATCH)
        if not slots:
            return 0
        self._idle_events = 0
        self._taken_ns = time.monotonic_ns()
        self._first_index = connection.ring.take_index - len(slots)
        self._in_flight_before = self.in_flight
        try:
            for offset, slot in enumerate(slots):
                if self._stopping:
                    break
                self._offset = offset
                self.statistics.requests += 1
                self.message(slot)
                self._publish(connection)  # the next one may take long
        except WireError:
            self._publish(connection)  # SRP says why it closes the channel
            raise
        return len(slots)

    def _sleep(self, connection: Connection) -> None:
        """Wait for an event; a frontend that sends events without work is looked at less often."""
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        if self._idle_events > SPURIOUS_EVENTS:
            poll.poll(1)
        poll.register(connection.events.fileno(), select.POLLIN)
        ready = dict(poll.poll())
        if self._wake in ready:
            os.eventfd_read(self._wake)
        if connection.events.fileno() in ready:
            connection.events.clear()
            self._idle_events += 1
            self.statistics.notifications_received += 1
