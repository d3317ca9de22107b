# SPDX-License-Identifier: MIT
"""The load that C generates on a ring: no interpreter between an answer and the next command."""

import os
import threading
from collections import Counter
from collections.abc import Mapping
from typing import Any

from vscsi.bench.closed_loop import DRAIN_TIMEOUT_S, counters_of, reason_of
from vscsi.bench.load import Counters, Run
from vscsi.bench.workload import Workload
from vscsi.domain.base import PAGE_SIZE
from vscsi.transport.frontend import RingInitiator
from vscsi.transport.initiator import Command, TransportError
from vscsi.transport.places import POLL_NS, UNLIMITED, Places


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
        self._cpu = cpu
        self._drain_timeout_s = drain_timeout_s
        unit = initiator.address_bytes or block_length
        percent = workload.read_percent if workload.mixed else 0 if workload.writes else 100
        self._places = Places(
            initiator,
            lun,
            block_length,
            length=workload.block_bytes,
            depth=workload.depth,
            directions=(False, True) if workload.mixed else (workload.writes,),
            poll_ns=poll_ns,
            page=PAGE_SIZE if indirect else None,
            blocks=workload.blocks,
            first_address=workload.offset_bytes // unit,
            at_random=workload.at_random,
            mixed=workload.mixed,
            seed=workload.seed & UNLIMITED,
            read_percent=percent,
            period_ns=1e9 / workload.rate_per_s if workload.rate_per_s is not None else 0.0,
        )
        for buffer in self._places.buffers:
            buffer.view[:] = workload.pattern()

    def run(self, duration_ns: int, *, commands: int | None = None) -> Run:
        """Work for a while, or until so many commands were sent; finish what is outstanding.

        Latencies are known to 1 in 64, the extremes exactly.
        """
        load, run = self._places.load, Run()
        timeout_s = min(duration_ns / 1e9 + self._drain_timeout_s, threading.TIMEOUT_MAX)

        def judge(_place: int, command: Command) -> None:
            if command.error is None:
                run.errors[reason_of(command)] += 1
            else:
                run.failure = run.failure or str(command.error)
                self.stop()

        if load.outstanding:
            run.failure = "commands of an earlier run are not answered"
            return run
        try:
            self.initiator.channel()
        except TransportError as error:
            run.failure = str(error)
            return run
        load.begin(duration_ns=duration_ns, commands=UNLIMITED if commands is None else commands)
        try:
            run.cpu_ns = self._places.run(judge, timeout_s, cpu=self._cpu)
        except TransportError as error:
            run.failure = run.failure or str(error)
        self._take_figures(run)
        return run

    def _take_figures(self, run: Run) -> None:
        load, statistics = self._places.load, self.initiator.statistics
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
        self._places.load.stop()

    def counters(self) -> Counters:
        """Return both ends' counters."""
        return counters_of(self.initiator)

    def parameters(self) -> Mapping[str, object]:
        """Return what was negotiated, and that the load is generated in C."""
        return {**self.initiator.parameters(), "load": "native"}

    def close(self) -> None:
        """Free the buffers; a second call does nothing."""
        self._places.close()


def latencies(told: tuple[int, int, list[tuple[int, int]]]) -> Counter[int]:
    """Return how often each latency was seen, of a histogram: middles of buckets, and extremes."""
    least, most, buckets = told
    counts = Counter({min(max(middle, least), most): times for middle, times in buckets})
    for exact, (middle, _) in zip((least, most), (buckets[:1] + buckets[-1:]), strict=False):
        counts[min(max(middle, least), most)] -= 1
        counts[exact] += 1
    return +counts
