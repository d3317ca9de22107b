# SPDX-License-Identifier: MIT
"""What every ring protocol's frontend end does: connect, send, match answers, end in order."""

import json
import logging
import os
import select
import sys
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from vscsi.domain.base import PAGE_SIZE, DomainError, EventChannel, StoreError
from vscsi.domain.local import BACKEND_DOMAIN, LocalGuest, LocalMessage
from vscsi.domain.memory import OutOfMemoryError
from vscsi.domain.negotiate import choose_queues, chosen_queues_keys
from vscsi.domain.toolstack import Device
from vscsi.domain.xenbus import Frontend, Keys, Reader, XenbusState
from vscsi.ring import RingEnd
from vscsi.transport.initiator import (
    Buffer,
    Command,
    InitiatorStatistics,
    ManagementCommand,
    TransportError,
)
from vscsi.transport.load import Completion, Job, Template
from vscsi.wire.errors import WireError

CONNECT_TIMEOUT_S = 20.0
CLOSE_TIMEOUT_S = 5.0
BATCH = 64
MEMORY_BYTES = 64 << 20
"""A guest's memory: rings, and the buffers of commands in flight."""

_log = logging.getLogger(__name__)

Request = TypeVar("Request")


class RingInitiator(ABC, Generic[Request]):
    """A frontend end over a ring: most of an `Initiator`, and a xenbus frontend driver.

    `Request` is what occupies the ring under one id. Requests that find no slot (or credit) wait
    in order. A receiver thread takes the answers, and publishes what `done` callbacks submitted
    once per batch. A backend that answers what was never asked, or dies, costs the channel: then
    every request ends with TransportError.

    A device with several queues has one of these for each. The first is the driver; the others
    share its domain, and end when it does.
    """

    kind: ClassVar[str]
    address_bytes: ClassVar[int | None] = None
    """Bytes that a request's address counts in; None: the logical unit's blocks."""
    load_protocol: str
    """What `vscsi.ring.Load` calls the protocol."""

    def __init__(
        self,
        directory: Path,
        handle: int,
        *,
        queues: int = 1,
        first: "RingInitiator[Request] | None" = None,
    ) -> None:
        """Attach a new domain to a served directory; SetupError if nobody serves it.

        queues: how many to use if the backend has as many. first: whose further queue this is.
        """
        self.statistics = InitiatorStatistics()
        self.in_flight: dict[int, Request] = {}
        self.ring: RingEnd | None = None
        self._waiting: deque[Request] = deque()
        self._lock = threading.Lock()
        self._events: EventChannel | None = None
        self._receiver: threading.Thread | None = None
        self._stopping = False
        self._in_batch = False
        self._job: Job | None = None
        self._job_done = threading.Event()
        self._failure: str | None = None
        self._changed = threading.Condition()
        """Of the state, of failure, of an answer that somebody waits for."""
        self._state = XenbusState.UNKNOWN
        self._reason = ""
        self._half: Frontend | None = None
        self._pages: list[tuple[list[int], list[int]]] = []
        self._closed = False
        self._wish = queues
        self._first = first or self
        self.queues: list[RingInitiator[Request]] = [self]
        """Of the first queue: all of the device's."""
        self.guest: LocalGuest = (
            LocalGuest(directory, memory_bytes=MEMORY_BYTES, on_lost=self._lost)
            if first is None
            else first.guest
        )
        self._device = Device(self.kind, self.guest.domain, handle, BACKEND_DOMAIN)
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    # What a protocol says.

    @abstractmethod
    def submit(self, command: Command) -> None:
        """Start a command; TransportError if the path cannot carry it, or has failed."""

    @abstractmethod
    def manage(self, request: ManagementCommand) -> None:
        """Start a task management function."""

    @abstractmethod
    def room_for(self, request: Request) -> bool:
        """Tell whether the ring takes a request now (called with the lock)."""

    @abstractmethod
    def put(self, request: Request) -> None:
        """Put a request on the ring and into `in_flight` (called with the lock).

        Raises OutOfMemoryError, and has done nothing then, if the guest's memory is used up.
        """

    @abstractmethod
    def answered(self, slot: bytes) -> Iterable[Completion]:
        """Handle an answer copied from the ring (with the lock); return what to call without it.

        Raises WireError if it answers nothing that is in flight, or breaks the format.
        """

    @abstractmethod
    def cancelled(self, request: Request, error: TransportError) -> Completion:
        """Return what to call to end a request that got no answer."""

    # What a protocol says of a load, which has the ring to itself and sends from C.

    @abstractmethod
    def template(self, tag: int, command: Command) -> Template:
        """Return the one request of a command; TransportError if it takes more than that."""

    def first_tag(self) -> int:
        """Return the first of a load's tags, which no other command has while that is sent."""
        return 0

    @property
    @abstractmethod
    def room(self) -> int:
        """Commands that the ring takes now."""

    def take_room(self, room: int) -> None:
        """Note how much a load left."""

    @abstractmethod
    def judge(self, command: Command, slot: bytes) -> None:
        """Set a command's outcome from an answer to its template; WireError as `answered`."""

    @abstractmethod
    def make_ring(self, backend: Reader) -> Keys:
        """Choose, allocate and initialise the ring (`ring`); return the keys that say so."""

    def take_properties(self, backend: Reader) -> Keys:
        """Read what the backend published with Connected; return keys to publish with ours."""
        return {}

    def begin(self) -> None:
        """Say what comes before the first command; TransportError or WireError if that fails."""

    def another_queue(self) -> "RingInitiator[Request]":
        """Return a further queue of this device, if the protocol has that."""
        raise NotImplementedError

    # xenbus

    def open(self) -> None:
        """Connect the device; SetupError or TransportError says why it cannot be."""
        try:
            self._half = Frontend(
                self.guest.store, self._device.frontend_path, self, self._on_state
            )
            self._half.start()
            with self._changed:
                settled = self._changed.wait_for(
                    lambda: self._state is XenbusState.CONNECTED or self._ended,
                    CONNECT_TIMEOUT_S,
                )
        except (StoreError, DomainError) as error:
            self.close()
            gone = isinstance(error, StoreError) and error.code == "ENOENT"
            reason = f"the server has no {self._device.kind} {self._device.handle}"
            raise TransportError(reason if gone else f"{self.kind}: {error}") from error
        if self._state is not XenbusState.CONNECTED or self._failure:
            reason = self._reason or self._failure or ENDED
            if not settled:
                reason = f"the backend is {self._state.name} after {CONNECT_TIMEOUT_S:g} s"
            self.close()
            raise TransportError(f"{self.kind} cannot be connected: {reason}")
        try:
            for queue in self.queues:
                queue.begin()
        except (TransportError, WireError) as error:
            self.close()
            raise TransportError(f"{self.kind} cannot be connected: {error}") from error

    @property
    def _ended(self) -> bool:
        """Whether it is known why there is no connection (any more)."""
        return bool(self._reason) or self._failure not in (None, ENDED)

    def _on_state(self, state: XenbusState, reason: str) -> None:
        with self._changed:
            self._state = state
            self._reason = reason or self._reason
            self._changed.notify_all()
        if state in (XenbusState.CLOSING, XenbusState.CLOSED) and reason:
            self._fail_all(reason)

    def prepare(self, backend: Reader) -> Keys:
        """Make rings and event channels (xenbus, before Initialised)."""
        while len(self.queues) < choose_queues(backend, self._wish):
            self.queues.append(self.another_queue())
        return chosen_queues_keys([queue.prepare_queue(backend) for queue in self.queues])

    def prepare_queue(self, backend: Reader) -> Keys:
        """Make ring and event channel."""
        keys = self.make_ring(backend)
        self._events = self.guest.event_channel()
        return {**keys, "event-channel": str(self._events.port)}

    def connect(self, backend: Reader) -> Keys:
        """Start receiving (xenbus, before Connected)."""
        keys: Keys = {}
        for queue in self.queues:
            keys = queue.connect_queue(backend)
        return keys

    def connect_queue(self, backend: Reader) -> Keys:
        """Start receiving from this queue."""
        keys = self.take_properties(backend)
        self._receiver = threading.Thread(
            target=self._receive, name=f"{self.kind}-receiver", daemon=True
        )
        self._receiver.start()
        return keys

    def reconfigure(self, backend: Reader, state: XenbusState) -> Keys:
        """Take notice of hot plug; units are found by asking, so there is nothing to do."""
        return {}

    def disconnect(self) -> None:
        """Stop, end every request, let go of the rings (xenbus, at the end of a connection)."""
        with ExitStack() as queues:  # each of them, whatever becomes of the others
            for queue in self.queues:
                queues.callback(queue.disconnect_queue)

    def disconnect_queue(self) -> None:
        """Stop this queue, end its requests, let go of its ring."""
        with self._lock:
            self._stopping = True
            if self._job is not None:
                self._job.interrupt()
        self._wake_receiver()
        if self._receiver is not None and self._receiver is not threading.current_thread():
            self._receiver.join()
        # The device may hear of it before we do, as one whose store cannot be read any more.
        self._fail(LOST if self.guest.lost else ENDED)
        self._job_done.set()  # one that nobody has begun
        with self._lock:
            if self.ring is not None:
                self.ring.close()
            self.ring = None
        if self._events is not None:
            self._events.close()

    def close(self) -> None:
        """Close the channel in order, then the domain. A second call does nothing."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        if self._half is not None:
            self._half.close()
            with self._changed:
                self._changed.wait_for(
                    lambda: (
                        self._state in (XenbusState.CLOSED, XenbusState.UNKNOWN)
                        or self._failure == LOST
                    ),
                    CLOSE_TIMEOUT_S,
                )
            self._half.stop()
        self.guest.close()
        for queue in self.queues:
            os.close(queue._wake)

    # Memory

    def alloc(self, length: int) -> Buffer:
        """Return a zeroed buffer of whole consecutive pages, of which `length` bytes are used.

        Raises OutOfMemoryError, and TransportError after `close`.
        """
        if self._closed:
            raise TransportError("the channel is closed")
        frames = self.guest.memory.alloc(-(-max(length, 1) // PAGE_SIZE), contiguous=True)
        view = self.guest.memory.view(frames[0], len(frames))[:length]
        return Buffer(view, frames[0] * PAGE_SIZE)

    def free(self, buffer: Buffer) -> None:
        """Give back what `alloc` returned."""
        first = buffer.address // PAGE_SIZE
        pages = -(-max(len(buffer), 1) // PAGE_SIZE)
        try:
            self.guest.memory.free(range(first, first + pages))
        except ValueError:
            # Still granted: the channel failed with the command in flight. The backend may have
            # the pages mapped yet, so they stay out of use until the domain ends.
            if self._failure is None:
                raise

    def ring_pages(self, pages: int) -> tuple[memoryview, list[int]]:
        """Allocate pages for a ring and grant them; return their memory and references."""
        frames = self.guest.memory.alloc(pages, contiguous=True)
        references = self.guest.memory.grant(frames, BACKEND_DOMAIN, readonly=False)
        self._pages.append((frames, references))
        return self.guest.memory.view(frames[0], pages), references

    # Sending

    def enqueue(self, requests: Sequence[Request], *, first: bool = False) -> None:
        """Send requests as slots come free, or `first`; TransportError if the channel failed."""
        refused: list[Completion] = []
        broken: Exception | None = None
        with self._lock:
            self.check_usable()
            if first:
                self._waiting.extendleft(reversed(requests))
            else:
                self._waiting.extend(requests)
            try:
                refused = self.pump()
            except (WireError, TransportError) as error:
                broken = error
        call_all(refused)
        if broken is not None:  # which ends these requests too, through their `done`
            self._break(f"the backend broke the protocol: {broken}")

    def check_usable(self) -> None:
        """Raise TransportError, saying why, if the channel takes no requests."""
        if self._failure is not None or self.ring is None:
            raise TransportError(self._failure or "the channel is not connected")

    def pump(self) -> list[Completion]:
        """Put what waits on the ring as far as there is room (with the lock).

        Returns what to call, without the lock, for requests that can never be sent. While a job
        has the ring they all wait.
        """
        refused: list[Completion] = []
        if self.ring is None or self._job is not None:
            return refused
        while self._waiting and self.room_for(self._waiting[0]):
            request = self._waiting.popleft()
            try:
                self.put(request)
            except OutOfMemoryError as error:
                if self.in_flight:  # what is in flight gives some back
                    self._waiting.appendleft(request)
                    break
                refused.append(self.cancelled(request, TransportError(str(error))))
            except (WireError, TransportError):
                self._waiting.appendleft(request)
                raise
            if len(self.in_flight) > self.statistics.most_in_flight:
                self.statistics.most_in_flight = len(self.in_flight)
        if not self._in_batch:
            self._publish()
        return refused

    def take_back(self, meant: Callable[[Request], bool]) -> list[Request]:
        """Return the requests that are meant of those that still wait for their turn."""
        with self._lock:
            found = [each for each in self._waiting if meant(each)]
            for each in found:
                self._waiting.remove(each)
        return found

    def end_all(self, meant: Callable[[Request], bool], error: TransportError) -> None:
        """End the requests that are meant of those in flight, to which no answer will come."""
        with self._lock:
            ended = [tag for tag, request in self.in_flight.items() if meant(request)]
            completions = [self.cancelled(self.in_flight.pop(tag), error) for tag in ended]
        call_all(completions)

    def recall(self, request: Request) -> bool:
        """End a request that still waits for its turn; False if it does not wait."""
        with self._lock:
            if request not in self._waiting:
                return False
            self._waiting.remove(request)
            complete = self.cancelled(request, TransportError(ABORTED))
        complete()
        return True

    def _publish(self) -> None:
        if self.ring is not None and self._events is not None and self.ring.publish():
            self._events.notify()
            self.statistics.notifications_sent += 1

    # Receiving

    def _receive(self) -> None:
        ring, events = self.ring, self._events
        if ring is None or events is None:
            return
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        poll.register(events.fileno(), select.POLLIN)
        try:
            while not self._stopping:
                slots = ring.take(BATCH)
                if slots:
                    self.take_answers(slots)
                elif self._job is not None:
                    self._run_job(self._job)
                elif not ring.arm():
                    ready = {fd for fd, _ in poll.poll()}
                    if self._wake in ready:
                        os.eventfd_read(self._wake)
                    if events.fileno() in ready:
                        events.clear()
                        self.statistics.notifications_received += 1
        except WireError as error:
            self.statistics.wire_errors += 1
            self._break(f"the backend broke the protocol: {error}")

    def take_answers(self, slots: Sequence[bytes]) -> None:
        self._in_batch = True
        try:
            for slot in slots:
                with self._lock:
                    completions = self.answered(slot)
                call_all(completions)
        finally:
            with self._lock:
                self._in_batch = False
                refused = self.pump()
            call_all(refused)

    # Jobs

    def run_exclusively(self, job: Job, timeout_s: float) -> None:
        """Run a job in the receiver's thread, with the ring to itself; return when it is done.

        Requests that are submitted meanwhile wait. The job is interrupted after the timeout, and
        when the channel fails. Raises TransportError if it fails, has failed, or is in use.
        """
        with self._lock:
            self.check_usable()
            if self._stopping:
                raise TransportError(ENDED)
            if self.in_flight or self._waiting or self._job is not None:
                raise TransportError("the channel is in use")
            self._job_done.clear()
            self._job = job
        self._wake_receiver()
        if not self._job_done.wait(timeout_s):
            job.interrupt()
            self._job_done.wait()
        with self._lock:
            self.check_usable()
            if self._stopping:
                raise TransportError(ENDED)

    def _run_job(self, job: Job) -> None:
        try:
            job.run()
        except Exception as error:  # before whoever waits for the job believes that it went well
            self._fail(f"the backend broke the protocol: {error}")
            raise
        finally:
            with self._lock:
                self._job = None
                refused = self.pump()
            self._job_done.set()
            call_all(refused)

    def channel(self) -> tuple[RingEnd, EventChannel]:
        """Return the ring and its events; TransportError if the channel is not usable."""
        with self._lock:
            self.check_usable()
            if self.ring is None or self._events is None:
                raise TransportError(ENDED)
            return self.ring, self._events

    def _wake_receiver(self) -> None:
        os.eventfd_write(self._wake, 1)

    # Failing

    def _lost(self) -> None:
        self._fail_all(LOST)

    def _fail_all(self, reason: str) -> None:
        for queue in self.queues:
            queue._fail(reason)

    def _break(self, reason: str) -> None:
        """Fail the channel from the receiver's thread, which closing it will join."""
        self._fail(reason)
        half = self._first._half
        if half is not None:
            threading.Thread(target=half.fail, args=(reason,), name="vscsi-closer").start()

    def _fail(self, reason: str) -> None:
        """End all requests; later ones are refused with the reason."""
        with self._lock:
            if self._failure in (None, ENDED):
                self._failure = reason
            error = TransportError(self._failure)
            ended = [*self.in_flight.values(), *self._waiting]
            self.in_flight.clear()
            self._waiting.clear()
            completions = [self.cancelled(request, error) for request in ended]
            if self._job is not None:
                self._job.interrupt()
        with self._changed:
            self._changed.notify_all()
        call_all(completions)

    # Telling

    def parameters(self) -> Mapping[str, object]:
        """Return what was negotiated."""
        ring = self.ring
        entries = ring.entries if ring is not None else 0
        queues = {"queues": len(self.queues)} if len(self.queues) > 1 else {}
        return {"domain": self.guest.domain, "slots": entries, **queues}

    @property
    def load(self) -> int:
        """Requests on the ring, or waiting for it; no end of them where none would get on."""
        if self._job is not None or self._failure is not None:
            return sys.maxsize
        return len(self.in_flight) + len(self._waiting)

    def backend_statistics(self) -> Mapping[str, object]:
        """Return the backend end's counters."""
        try:
            reply, _ = self.guest.ask(
                LocalMessage.STATISTICS, f"{self.kind} {self._device.handle}".encode()
            )
        except (StoreError, DomainError) as error:
            raise TransportError(f"no statistics from the backend: {error}") from error
        counters: dict[str, Any] = json.loads(reply)
        return counters


def call_all(completions: Iterable[Completion]) -> None:
    """Call what owners of requests want called; what one gets wrong is not the next one's."""
    for complete in completions:
        try:
            complete()
        except Exception:
            _log.exception("a command's `done` failed")


ABORTED = "aborted by task management"
LOST = "the server is gone"
ENDED = "the channel was closed"
"""As long as nobody knows more."""
