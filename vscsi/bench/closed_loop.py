# SPDX-License-Identifier: MIT
"""The load on an initiator: each completion submits the next command, in the receiver's thread."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Protocol

from vscsi.bench.load import Clock, Counters, Run
from vscsi.bench.workload import Offered
from vscsi.domain.base import DomainError
from vscsi.target.base import Status
from vscsi.transport.frontend import RingInitiator
from vscsi.transport.initiator import Buffer, Command, Initiator, TransportError
from vscsi.transport.places import transfer
from vscsi.wire.sense import Sense, parse_sense

DRAIN_TIMEOUT_S = 30.0
"""How long commands may stay unanswered after the end of a run."""


class Operations(Offered, Protocol):
    """A workload as the loop takes it."""

    @property
    def depth(self) -> int:
        """Commands outstanding at a time."""

    @property
    def block_bytes(self) -> int:
        """Bytes of each buffer."""

    def check_blocks(self, block_length: int) -> None:
        """Raise ValueError if a logical unit's blocks do not suit it."""

    def operations(self) -> Iterator[tuple[bool, int]]:
        """Yield (counts as a write, what `ClosedLoop.command` makes a command of) without end."""

    def pattern(self) -> bytes:
        """Return what a buffer has in it at first."""


class ClosedLoop:
    """A `Load` that keeps a workload's depth of commands outstanding on one logical unit.

    It has one buffer for each, allocated here and reused; `close` frees them. The initiator stays
    its owner's. A command that ends with a status other than GOOD, or short, is an error and the
    loop goes on. One that comes to no status is the end of the path.
    """

    def __init__(
        self,
        name: str,
        initiator: Initiator,
        lun: bytes,
        block_length: int,
        workload: Operations,
        *,
        clock: Clock = time.perf_counter_ns,
        drain_timeout_s: float = DRAIN_TIMEOUT_S,
    ) -> None:
        """Allocate the buffers; DomainError if the initiator's memory does not hold them.

        lun has 8 bytes; block_length is the logical unit's, of which the workload's block and
        offset are multiples (ValueError).
        """
        workload.check_blocks(block_length)
        self.name = name
        self.workload = workload
        self.initiator = initiator
        self.lun = lun
        self.block_length = block_length
        self.clock = clock
        self.drain_timeout_s = drain_timeout_s
        self.stopped = False
        self.operations: Iterator[tuple[bool, int]] = workload.operations()
        self._blocks = workload.block_bytes // block_length
        self._buffers: list[Buffer] = []
        pattern = workload.pattern()
        try:
            for _ in range(workload.depth):
                self._buffers.append(initiator.alloc(workload.block_bytes))
                self._buffers[-1].view[:] = pattern
        except DomainError:
            self.close()
            raise

    def run(self, duration_ns: int) -> Run:
        """Work for a while, finish what is outstanding, and tell."""
        cycle = _Cycle(self, duration_ns)
        answered = False
        try:
            cycle.start(self._buffers)
            answered = cycle.finished.wait(duration_ns / 1e9 + self.drain_timeout_s)
        finally:
            if not answered:
                cycle.end()
                self._buffers = []  # they are the path's until it is closed
        unanswered = f"no answer to a command {self.drain_timeout_s:g} s after the end of the run"
        run = cycle.end(None if answered else unanswered)
        run.on_ring = self.initiator.statistics.most_in_flight or None
        return run

    def stop(self) -> None:
        """Let this run, and later ones, send no more than one command a buffer."""
        self.stopped = True

    def command(
        self, buffer: Buffer, write: bool, offset: int, done: Callable[[Command], None]
    ) -> Command:
        """Return a command for one operation, of a buffer's length."""
        lba = offset // self.block_length
        return transfer(self.lun, (buffer,), write, lba, self._blocks, done)

    def counters(self) -> Counters:
        """Return both ends' counters."""
        return counters_of(self.initiator)

    def parameters(self) -> Mapping[str, object]:
        """Return what was negotiated."""
        return self.initiator.parameters()

    def close(self) -> None:
        """Free the buffers."""
        while self._buffers:
            self.initiator.free(self._buffers.pop())


class _Cycle:
    """One run: buffers go round from submission to completion until the time is over."""

    def __init__(self, load: ClosedLoop, duration_ns: int) -> None:
        self.finished = threading.Event()
        self._run = Run()
        self._load = load
        self._clock = load.clock
        self._lock = threading.Lock()
        self._outstanding = 0
        self._turning = 0
        self._ended = False
        self._nested: dict[int, deque[Buffer]] = {}
        self._cpu_began: dict[int, int] = {}
        self._cpu_ended: dict[int, int] = {}
        self._began = self._clock()
        self._deadline = self._began + duration_ns

    def start(self, buffers: Sequence[Buffer]) -> None:
        """Send every buffer on its first round; returns when other threads go on, or at the end."""
        thread = threading.get_ident()
        self._cpu_began[thread] = time.thread_time_ns()
        self._turning = len(buffers)
        self._submit(buffers)
        self._cpu_ended[thread] = time.thread_time_ns()

    def end(self, failure: str | None = None) -> Run:
        """Ignore what comes from now on; return what was counted."""
        with self._lock:
            self._ended = True
            self._run.failure = self._run.failure or failure
            self._run.cpu_ns = sum(
                ended - self._cpu_began[thread] for thread, ended in self._cpu_ended.items()
            )
            return self._run

    def _submit(self, buffers: Sequence[Buffer]) -> None:
        """Submit a command for each; one that is done within `submit` waits here, not on the
        stack.
        """
        thread = threading.get_ident()
        nested = self._nested.get(thread)
        if nested is not None:
            nested.extend(buffers)
            return
        waiting = self._nested[thread] = deque(buffers)
        try:
            while waiting:
                self._send(waiting.popleft())
        finally:
            del self._nested[thread]

    def _send(self, buffer: Buffer) -> None:
        with self._lock:
            if self._run.failure is not None:
                self._retire()
                return
            write, offset = next(self._load.operations)
            self._outstanding += 1
            self._run.outstanding = max(self._run.outstanding, self._outstanding)
        started = self._clock()
        command = self._load.command(
            buffer, write, offset, partial(self._done, buffer, write, started)
        )
        try:
            self._load.initiator.submit(command)
        except (TransportError, DomainError) as error:
            with self._lock:
                self._outstanding -= 1
                self._run.failure = self._run.failure or str(error)
                self._retire()

    def _done(self, buffer: Buffer, write: bool, started: int, command: Command) -> None:
        now = self._clock()
        run, thread = self._run, threading.get_ident()
        if thread not in self._cpu_began:
            self._cpu_began[thread] = time.thread_time_ns()
        with self._lock:
            if self._ended:
                return
            self._outstanding -= 1
            run.elapsed_ns = now - self._began
            if command.error is not None:
                run.failure = run.failure or str(command.error)
            elif command.status is Status.GOOD and not command.residual:
                (run.write_latencies if write else run.read_latencies)[now - started] += 1
            else:
                run.errors[reason_of(command)] += 1
            if now >= self._deadline or run.failure is not None or self._load.stopped:
                self._retire()
                return
        self._submit((buffer,))

    def _retire(self) -> None:
        """Take a buffer out of the round (with the lock)."""
        self._cpu_ended[threading.get_ident()] = time.thread_time_ns()
        self._turning -= 1
        if self._turning == 0:
            self.finished.set()


def counters_of(initiator: Initiator) -> Counters:
    """Return both ends' counters; TransportError if the backend's does not answer."""
    ends: Sequence[Initiator]
    ends = initiator.queues if isinstance(initiator, RingInitiator) else [initiator]
    theirs = initiator.backend_statistics()

    def number(key: str) -> int | None:
        value = theirs.get(key)
        return value if isinstance(value, int) else None

    return Counters(
        frontend_notifications=sum(end.statistics.notifications_sent for end in ends),
        frontend_staged_bytes=sum(end.statistics.staged_bytes for end in ends),
        backend_notifications=number("notifications_sent"),
        backend_staged_bytes=number("staged_bytes"),
        backend_requests=number("requests"),
        backend_cpu_ns=number("cpu_ns"),
    )


def reason_of(command: Command) -> str:
    """Return why a command did not end well: its sense in words, its status, or its residual.

    There are no more of them than a target has kinds of errors: LBAs are left out.
    """
    if command.status is Status.GOOD:
        return f"{command.residual} bytes were not moved"
    sense = parse_sense(command.sense)
    if sense is None:
        return command.status.name
    return Sense(sense.key, sense.asc, sense.ascq).describe()
