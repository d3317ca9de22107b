# SPDX-License-Identifier: MIT
"""What every ring protocol's backend end does: take, copy, hand over; answer; close in order."""

import contextlib
import logging
import math
import os
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

from vscsi.domain.base import EventChannel, GrantMapper
from vscsi.domain.xenbus import Keys, Reader
from vscsi.ring import RingEnd, Service, Tap
from vscsi.target.base import Task
from vscsi.target.logical_unit import LogicalUnit
from vscsi.transport.outcome import moved_in
from vscsi.transport.tally import Asked, Ended, RingCounts
from vscsi.transport.tap import MIN_TAP_BYTES, NOTHING_WANTED, TAP_BYTES, RingPath, TapSwitch
from vscsi.wire.cdb import lookup
from vscsi.wire.errors import WireError
from vscsi.wire.record import Way

if TYPE_CHECKING:
    from vscsi.ring._core import Counts

log = logging.getLogger(__name__)

POLL_NS = 50_000
"""How long a ring that was busy is watched before its thread sleeps."""
STALL_S = 1.0
"""How long the end of a channel waits for a notification that the peer may have stalled."""


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


@dataclass(slots=True)
class Connection:
    """What a backend end works on while it is connected."""

    ring: RingEnd
    service: Service
    path: RingPath


class RingBackend(ABC):
    """The backend end of a device's queue: while connected, a thread of its own serves its ring.

    A xenbus `BackendDriver`. Subclasses say how a frontend's keys become a `Connection` and what a
    message means. A frontend that breaks the rules costs itself its channel: `on_failure(reason)`
    is called (once, from any thread), and the owner closes the device.
    """

    kind: ClassVar[str]

    def __init__(self, peer: Peer, device: int, tap: TapSwitch, queue: int = 0) -> None:
        """queue: which of the device's queues it is."""
        self.peer = peer
        self.device = device
        self.queue = queue
        self.tap = tap
        self.poll_ns = POLL_NS
        self.cpu: int | None = None
        """Where the serving thread runs; None: anywhere."""
        self.histograms = True
        self.statistics = BackendStatistics()
        self.counts = RingCounts()
        self.on_failure: Callable[[str], None] = lambda _reason: None
        self.connection: Connection | None = None
        self.in_flight = 0
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._held = ExitStack()
        self._thread: threading.Thread | None = None
        self._cpu_clock: int | None = None
        self._stopping = False
        self._fail_lock = threading.Lock()
        self._ring_thread = 0
        self._elsewhere: deque[tuple[bytes, int, Callable[[], bool], Ended | None, bytes]] = deque()
        """Answers of other threads, which the ring's own puts on the ring."""
        self._ring_tap = Tap(MIN_TAP_BYTES)
        self._unshown: tuple[int, int, int, int, bytes, bytes] | None = None
        """The message at hand, for the tap, until it is known whether it has data."""

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

    def prepare_native(self, service: Service) -> bool:
        """Bring the C path up to date; tell whether it may execute commands now.

        Called by the ring's thread when nothing of ours is in flight and nobody listens.
        """
        return False

    def parameters(self) -> Mapping[str, object]:
        """Return what was negotiated."""
        return {}

    # xenbus (a BackendDriver)

    def connect(self, frontend: Reader) -> Keys:
        """Attach the frontend's ring and serve it."""
        connection, properties = self.attach(frontend)
        self.statistics = BackendStatistics()
        self.in_flight = 0
        self._elsewhere.clear()
        self._stopping = False
        self.connection = connection
        self.tap.open(connection.path, self._ring_tap)
        self._held.callback(self.tap.close, self._ring_tap)
        self._cpu_clock = None
        name = f"{self.kind}-{self.peer.domain}-{self.device}-{self.queue}"
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
                connection.service.interrupt()
                while thread is not None and thread.is_alive():
                    thread.join(STALL_S)
                    connection.service.unstall()  # unless the frontend fills it faster
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
        protocol: str,
    ) -> tuple[RingEnd, Service]:
        """Map each ring's pages and bind the frontend's event channel (for `attach`).

        make: what attaches to the rings' memory. protocol: what the C path calls it. All is held
        until `disconnect`. WireError if a page or the channel is not there for us.
        """
        memory = []
        for each in references:
            mapping = self.peer.grants.map(each, readonly=False)
            self._held.callback(mapping.unmap)
            memory.append(mapping.contiguous())
        events = self.peer.bind(frontend.number("event-channel"))
        self._held.callback(events.close)
        self.counts = RingCounts()
        ring = make(*memory, slot_size)
        self._held.callback(ring.close)
        incoming, outgoing = events.fds
        self._ring_tap = Tap(TAP_BYTES)
        service = Service(
            ring,
            protocol,
            grants=self.peer.grants.native,
            incoming=incoming,
            outgoing=outgoing,
            poll_ns=self.poll_ns,
            tap=self._ring_tap,
        )
        self._held.callback(service.close)
        service.counting = self.histograms
        return ring, service

    # What the device's owner asks.

    def report(self) -> dict[str, object]:
        """Return counters, the serving thread's CPU time (ns), and what was negotiated."""
        counters: dict[str, object] = asdict(self.statistics)
        connection = self.connection
        if connection is not None:
            service = connection.service
            counters["requests"] = self.statistics.requests + service.executed
            counters["answers"] = self.statistics.answers + service.executed
            counters["executed_in_c"] = service.executed
            counters["deferred_in_c"] = service.deferred
            counters["operations_in_c"] = {
                operation: {"latency_ns": summary(latencies), "bytes": summary(sizes)}
                for operation, (latencies, sizes) in service.histograms.items()
            }
            counters["notifications_sent"] = service.notifications_sent
            counters["notifications_received"] = service.notifications_received
        return {**counters, "cpu_ns": self.cpu_ns(), **self.parameters()}

    @property
    def tap_dropped(self) -> int:
        """Messages that captures lack because the ring's tap had no room."""
        return self._ring_tap.dropped

    def cpu_ns(self) -> int:
        """Return the CPU time that the serving thread has used, in nanoseconds."""
        clock = self._cpu_clock
        try:
            return time.clock_gettime_ns(clock) if clock is not None else 0
        except OSError:  # the thread has just ended
            return 0

    # What a protocol uses.

    def asked(self, unit: LogicalUnit | None, cdb: bytes) -> Asked:
        """Return what says which command is at hand, for the counts; unit: None if there is none.

        Called by the ring's thread.
        """
        counts = self.counts.scsi(unit)
        connection = self.connection
        taken_ns = connection.service.taken_ns if connection is not None else time.monotonic_ns()
        return Asked(unit, counts, counts.row(cdb), taken_ns)

    def answer(
        self,
        message: bytes,
        *,
        slots: int = 1,
        valid: Callable[[], bool] = lambda: True,
        ended: Ended | None = None,
        data: bytes = b"",
    ) -> None:
        """Answer a request, from any thread; once the channel ends it goes nowhere.

        The ring's own thread puts answers on the ring and publishes them, which the frontend can
        stall. slots: how many the request occupied (all but the first stay empty).
        valid: whether the question was asked in this connection, where it may have been another.
        ended: what is counted with it, if it is a command's. data: what `data_in` returned.
        """
        with self._lock:
            connection = self.connection
            if connection is None or self._stopping:
                return
            self._elsewhere.append((message, slots, valid, ended, data))
            if threading.get_ident() != self._ring_thread:
                connection.service.interrupt()
                return
        self._put_answers(connection)

    def _put_answers(self, connection: Connection) -> None:
        """Put what there is on the ring, in order (in its own thread)."""
        try:
            while self._elsewhere:
                message, slots, valid, ended, data = self._elsewhere.popleft()
                if valid():
                    self._put(connection, message, slots, data)
                    if ended is not None and self.histograms:
                        self.counts.add(ended)
        except WireError as error:
            self.fail(error)

    def _put(self, connection: Connection, message: bytes, slots: int, data: bytes) -> None:
        ring = connection.ring
        self._show_unshown()
        if self._ring_tap.active:
            now, index = time.monotonic_ns(), ring.put_index
            waiting = self._waiting(connection.service.waiting)
            self._ring_tap.put(Way.TO_INITIATOR, now, index, waiting, message, b"", data)
        for slot in range(slots):
            if not ring.put(message if slot == 0 else b""):
                raise WireError("the frontend leaves no room for answers")
        self.statistics.answers += 1

    def show_request(self, slot: bytes, descriptors: bytes = b"") -> None:
        """Show the message that is being handled to the tap; descriptors: copied segment lists.

        That waits for `show_data`, and at most until it is answered.
        """
        connection = self.connection
        if connection is not None and self._ring_tap.active and not connection.service.shown:
            self._unshown = (
                Way.TO_TARGET,
                connection.service.taken_ns,
                (connection.ring.take_index - 1) & 0xFFFF_FFFF,
                self._waiting(connection.service.position),
                slot,
                descriptors,
            )

    def show_data(self, data_out: Sequence[memoryview], cdb: bytes = b"") -> None:
        """Show the message that is being handled with its data, before these are used.

        A parameter list belongs to its command, and is shown also where no data are wanted.
        """
        if self._unshown is None or not data_out:
            return
        row = lookup(cdb)
        parameters = row is not None and "parameter_list_length" in row.fields
        if parameters or self._ring_tap.wanted != NOTHING_WANTED:
            length = sum(map(len, data_out))
            self._show_unshown(self._ring_tap.data(data_out, length, parameters))

    def data_in(self, task: Task) -> bytes:
        """Return what the tap wants of a task's data-in, while that is there; any thread."""
        if self._ring_tap.wanted == NOTHING_WANTED or not task.data_in:
            return b""
        return self._ring_tap.data(task.data_in, moved_in(task))

    def _show_unshown(self, data: bytes = b"") -> None:
        message, self._unshown = self._unshown, None
        if message is not None:
            self._ring_tap.put(*message, data)

    def _waiting(self, taken: int) -> int:
        """Return how many requests are unanswered beside the one at hand: taken, or still with it
        on the ring.
        """
        return self.in_flight + len(self._elsewhere) + taken

    def count(self, change: int) -> None:
        """Count a request that began (+1), or let go of the frontend's memory (-1)."""
        with self._lock:
            self.in_flight += change
            if not self.in_flight:
                self._idle.notify_all()

    # The loop.

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
            if self.cpu is not None:
                os.sched_setaffinity(0, {self.cpu})
            while not self._stopping:
                self._put_answers(connection)
                connection.service.others = self.in_flight
                slot = connection.service.run(native=self._may_run(connection))
                self._put_answers(connection)  # of what came before this message
                if slot is not None and not self._stopping:
                    self.statistics.requests += 1
                    try:
                        self.message(slot)
                    finally:
                        self._show_unshown()
            connection.service.publish()
        except WireError as error:
            self._say_why(connection)
            self.fail(error)
        except Exception as error:  # a fault of ours costs this channel alone, and is reported
            log.exception("%s: internal error", threading.current_thread().name)
            self.fail(WireError(f"internal error: {error!r}"))

    def _say_why(self, connection: Connection) -> None:
        """Show the frontend what was put before its channel is closed (SRP says why)."""
        with contextlib.suppress(WireError):  # the ring itself may be what is broken
            connection.service.publish()

    def _may_run(self, connection: Connection) -> bool:
        return not self.in_flight and self.prepare_native(connection.service)


def summary(counts: "Counts") -> dict[str, int]:
    """Return what a histogram of the C path says, in a few numbers.

    Percentiles are the middle of their bucket, which is no wider than 1/32 of its values.
    """
    least, most, buckets = counts
    total = sum(count for _, count in buckets)
    found = {"count": total, "min": least}
    for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p999", 0.999)):
        left = math.ceil(total * share)
        for middle, count in buckets:
            left -= count
            if left <= 0:
                found[name] = min(max(middle, least), most)
                break
    return {**found, "max": most}
