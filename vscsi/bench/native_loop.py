# SPDX-License-Identifier: MIT
"""The load that C generates on a ring: no interpreter between an answer and the next command."""

import os
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from vscsi.bench.closed_loop import DRAIN_TIMEOUT_S, command_for, counters_of, reason_of
from vscsi.bench.load import Counters, Run
from vscsi.bench.workload import Workload
from vscsi.domain.base import PAGE_SIZE, DomainError
from vscsi.ring import Load as NativeLoad
from vscsi.transport.frontend import RingInitiator
from vscsi.transport.initiator import Buffer, Command, TransportError
from vscsi.transport.load import Template

POLL_NS = 50_000
"""How long an idle ring is watched before the load sleeps; as the backend's."""
UNLIMITED = (1 << 64) - 1


class NativeLoop:
    """A `Load` on a ring path, in the receiver's thread. The initiator stays its owner's.

    What `ClosedLoop` does, with the same operations; and, with `workload.rate_per_s`, an open loop:
    commands come at that rate, wait for a free buffer if none of `depth` is, and their latency
    counts from when they were due.
    """

    def __init__(
        self,
        name: str,
        initiator: RingInitiator[Any],
        lun: bytes,
        block_length: int,
        workload: Workload,
        *,
        poll_ns: int = POLL_NS,
        cpu: int | None = None,
        indirect: bool = False,
        drain_timeout_s: float = DRAIN_TIMEOUT_S,
    ) -> None:
        """Allocate the buffers, and prepare a request for each.

        poll_ns: how long an idle ring is watched before the thread sleeps on its event channel
        (0: never watched). cpu: the one that the thread runs on meanwhile. indirect: describe each
        page of a buffer by itself (SRP).

        Raises ValueError if block size or offset are no multiples of block_length, or the CPU is
        not ours; DomainError if the initiator's memory does not suffice; TransportError if a
        command takes more than one request of the protocol.
        """
        workload.check_blocks(block_length)
        if cpu is not None and cpu not in os.sched_getaffinity(0):
            raise ValueError(f"CPU {cpu} is not ours to use")
        self.name = name
        self.workload = workload
        self.initiator = initiator
        self._lun = lun
        self._block_length = block_length
        self._cpu = cpu
        self._drain_timeout_s = drain_timeout_s
        self._page = PAGE_SIZE if indirect else workload.block_bytes
        self._buffers: list[Buffer] = []
        self._templates: list[Template] = []
        self._load = self._native(poll_ns)
        try:
            for place in range(workload.depth):
                self._prepare(place)
        except (DomainError, TransportError):
            self.close()
            raise

    def _native(self, poll_ns: int) -> NativeLoad:
        ring, events = self.initiator.channel()
        incoming, outgoing = events.fds
        work, unit = self.workload, self.initiator.address_bytes or self._block_length
        percent = work.read_percent if work.mixed else 0 if work.writes else 100
        return NativeLoad(
            ring,
            self.initiator.load_protocol,
            incoming=incoming,
            outgoing=outgoing,
            table=self.initiator.guest.memory.table,
            poll_ns=poll_ns,
            depth=work.depth,
            blocks=work.blocks,
            first_address=work.offset_bytes // unit,
            step=work.block_bytes // unit,
            at_random=work.at_random,
            mixed=work.mixed,
            seed=work.seed & UNLIMITED,
            read_percent=percent,
            period_ns=1e9 / work.rate_per_s if work.rate_per_s is not None else 0.0,
        )

    def _prepare(self, place: int) -> None:
        self._buffers.append(self.initiator.alloc(self.workload.block_bytes))
        self._buffers[place].view[:] = self.workload.pattern()
        kinds = (False, True) if self.workload.mixed else (self.workload.writes,)
        for write in kinds:
            template = self.initiator.template(place, self._command(place, write))
            self._templates.append(template)
            self._load.prepare(
                place=place, write=write, slot=template.slot, references=template.references
            )

    def _command(self, place: int, write: bool) -> Command:
        buffer = self._buffers[place]
        pieces = [buffer[at : at + self._page] for at in range(0, len(buffer), self._page)]
        return command_for(self._lun, pieces, write, 0, len(buffer) // self._block_length)

    def run(self, duration_ns: int, *, commands: int | None = None) -> Run:
        """Work for a while, or until so many commands were sent; finish what is outstanding.

        Latencies are known to 1 in 64, the extremes exactly.
        """
        load, turn = self._load, _Turn(self)
        timeout_s = min(duration_ns / 1e9 + self._drain_timeout_s, threading.TIMEOUT_MAX)
        run = turn.outcome
        try:
            self.initiator.channel()
            if load.outstanding:
                raise TransportError("commands of an earlier run are not answered")
            load.begin(
                duration_ns=duration_ns, commands=UNLIMITED if commands is None else commands
            )
            self.initiator.run_exclusively(turn, timeout_s)
        except TransportError as error:
            run.failure = run.failure or str(error)
            if not turn.begun:
                return run
        if load.outstanding:
            run.failure = run.failure or (
                f"no answer to a command {self._drain_timeout_s:g} s after the end of the run"
            )
            self._buffers, self._templates = [], []  # the path's until it is closed
        self._take_figures(run)
        return run

    def _take_figures(self, run: Run) -> None:
        load, statistics = self._load, self.initiator.statistics
        statistics.commands += load.commands
        statistics.notifications_sent += load.notifications_sent
        statistics.notifications_received += load.notifications_received
        statistics.most_in_flight = max(statistics.most_in_flight, load.most_on_ring)
        run.elapsed_ns = load.elapsed_ns
        run.outstanding = load.most_outstanding
        run.on_ring = statistics.most_in_flight
        run.read_latencies = latencies(load.reads)
        run.write_latencies = latencies(load.writes)
        if self.workload.rate_per_s is not None:
            run.late, run.unsent = load.late, load.unsent

    def stop(self) -> None:
        """End the run, and any later one, in order; from any thread or signal handler."""
        self._load.stop()

    def counters(self) -> Counters:
        """Return both ends' counters."""
        return counters_of(self.initiator)

    def parameters(self) -> Mapping[str, object]:
        """Return what was negotiated, and that the load is generated in C."""
        return {**self.initiator.parameters(), "load": "native"}

    def close(self) -> None:
        """Free the buffers; a second call does nothing."""
        self._load.close()
        while self._templates:
            self._templates.pop().let_go()
        while self._buffers:
            self.initiator.free(self._buffers.pop())


class _Turn:
    """One run, in the receiver's thread: a `Job`."""

    def __init__(self, loop: NativeLoop) -> None:
        self.outcome = Run()
        self.begun = False
        self._loop = loop

    def run(self) -> None:
        """Run the load; see to what it does not understand."""
        load, initiator = self._loop._load, self._loop.initiator
        self.begun = True
        began = time.thread_time_ns()
        with pinned(self._loop._cpu):
            load.room = initiator.room
            while (slot := load.run()) is not None:
                if load.answered is not None:
                    self._judge(load.answered, load.answered_write, slot)
                    continue
                before = initiator.room
                initiator.take_answers([slot])
                load.room += initiator.room - before
            initiator.take_room(load.room)
        self.outcome.cpu_ns = time.thread_time_ns() - began

    def interrupt(self) -> None:
        """Leave what is outstanding."""
        self._loop._load.interrupt()

    def _judge(self, place: int, write: bool, slot: bytes) -> None:
        command = self._loop._command(place, write)
        self._loop.initiator.judge(command, slot)
        if command.error is None:
            self.outcome.errors[reason_of(command)] += 1
        else:
            self.outcome.failure = self.outcome.failure or str(command.error)
            self._loop.stop()


def latencies(told: tuple[int, int, list[tuple[int, int]]]) -> Counter[int]:
    """Return how often each latency was seen, of a histogram: middles of buckets, and extremes."""
    least, most, buckets = told
    counts = Counter({min(max(middle, least), most): times for middle, times in buckets})
    for exact, (middle, _) in zip((least, most), (buckets[:1] + buckets[-1:]), strict=False):
        counts[min(max(middle, least), most)] -= 1
        counts[exact] += 1
    return +counts


@contextmanager
def pinned(cpu: int | None) -> Iterator[None]:
    """Keep this thread, and processes that it starts meanwhile, on a CPU; on any for None."""
    if cpu is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
