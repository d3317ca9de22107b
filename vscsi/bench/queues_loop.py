# SPDX-License-Identifier: MIT
"""The load that C generates on a device with several queues: one load a queue, at the same time."""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import Any

from vscsi.bench.closed_loop import counters_of
from vscsi.bench.load import Counters, Run
from vscsi.bench.native_loop import NativeLoop
from vscsi.bench.workload import Workload
from vscsi.transport.frontend import RingInitiator


class QueuesLoop:
    """A `Load` on all queues of a ring path; the initiator stays its owner's.

    The workload's depth and rate are shared out. Random addresses are of the whole range on each
    queue; in sequence, each queue goes through a part of its own.
    """

    def __init__(
        self,
        name: str,
        initiator: RingInitiator[Any],
        lun: bytes,
        block_length: int,
        workload: Workload,
        *,
        cpu: int | None = None,
    ) -> None:
        """As a `NativeLoop`; a depth below the number of queues leaves the last ones idle."""
        self.name = name
        self.workload = workload
        self._initiator = initiator
        with ExitStack() as held:
            self._loops = [
                held.enter_context(
                    closing(NativeLoop(name, queue, lun, block_length, part, cpu=cpu))
                )
                for queue, part in zip(
                    initiator.queues, shares(workload, len(initiator.queues)), strict=False
                )
            ]
            self._threads = held.enter_context(ThreadPoolExecutor(len(self._loops)))
            self._held = held.pop_all()

    def run(self, duration_ns: int) -> Run:
        """Work for a while on every queue, finish what is outstanding, and tell of all."""
        runs: list[Run] = list(self._threads.map(lambda loop: loop.run(duration_ns), self._loops))
        total = runs[0]
        for run in runs[1:]:
            total.elapsed_ns = max(total.elapsed_ns, run.elapsed_ns)
            total.cpu_ns += run.cpu_ns
            total.outstanding += run.outstanding
            total.on_ring = max(total.on_ring or 0, run.on_ring or 0)
            total.read_latencies += run.read_latencies
            total.write_latencies += run.write_latencies
            total.errors += run.errors
            total.failure = total.failure or run.failure
            if total.late is not None and total.unsent is not None:
                total.late += run.late or 0
                total.unsent += run.unsent or 0
        return total

    def stop(self) -> None:
        """End the run, and any later one, in order; from any thread or signal handler."""
        for loop in self._loops:
            loop.stop()

    def counters(self) -> Counters:
        """Return both ends' counters."""
        return counters_of(self._initiator)

    def parameters(self) -> Mapping[str, object]:
        """Return what was negotiated, and that the load is generated in C."""
        return self._loops[0].parameters()

    def close(self) -> None:
        """Free the buffers; a second call does nothing."""
        self._held.close()


def shares(workload: Workload, queues: int) -> Iterator[Workload]:
    """Yield each queue's part of a workload: as many as there are queues, or commands at a time."""
    count = min(queues, workload.depth, workload.blocks)
    for number in range(count):
        first, end = (workload.blocks * at // count for at in (number, number + 1))
        rate = workload.rate_per_s
        part = replace(
            workload,
            depth=workload.depth * (number + 1) // count - workload.depth * number // count,
            seed=workload.seed + number,
            rate_per_s=None if rate is None else rate / count,
        )
        if not workload.at_random:
            part = replace(
                part,
                offset_bytes=workload.offset_bytes + first * workload.block_bytes,
                size_bytes=(end - first) * workload.block_bytes,
            )
        yield part
