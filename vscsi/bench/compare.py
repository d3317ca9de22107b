# SPDX-License-Identifier: MIT
"""One workload over several paths, in interleaved rounds."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from vscsi.bench.bare_loop import BareLoop, file_size
from vscsi.bench.closed_loop import ClosedLoop
from vscsi.bench.load import Load
from vscsi.bench.machine import describe
from vscsi.bench.native_loop import NativeLoop
from vscsi.bench.queues_loop import QueuesLoop
from vscsi.bench.result import Comparison, PathResult
from vscsi.bench.workload import Workload
from vscsi.domain.base import DomainError
from vscsi.transport.connect import connect
from vscsi.transport.frontend import RingInitiator
from vscsi.transport.hba import Hba, Lun, ScsiError
from vscsi.transport.initiator import TransportError
from vscsi.wire.errors import SetupError, WireError

if TYPE_CHECKING:  # it needs libraries that a bench without captures does not
    from vscsi.bench.captured import CapturedWorkload

Progress = Callable[[str, float], None]
"""Called before a path's turn with its name and how long that takes, in s."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long, and in how many rounds."""

    rounds: int = 5
    runtime_s: float = 5.0
    """Measured of each path, over all rounds."""
    ramp_s: float = 0.2
    """Run before each measured run, and not counted."""


@dataclass(frozen=True, slots=True)
class Wish:
    """The workload as asked for; the range may depend on the paths."""

    mode: str
    block_bytes: int
    depth: int
    offset_bytes: int = 0
    size_bytes: int | None = None
    """None: to the end of the smallest path."""
    read_percent: int = 50
    seed: int = 0
    rate_per_s: float | None = None

    def workload(self, available_bytes: int, where: str) -> Workload:
        """Return the workload on paths of which the smallest, `where`, has so many bytes."""
        size = self.size_bytes
        if size is None:
            size = max(0, available_bytes - self.offset_bytes)
        if self.offset_bytes + size > available_bytes:
            raise SetupError(
                "use", where, f"it has {available_bytes} bytes", "name a smaller --size or --offset"
            )
        try:
            return Workload(
                self.mode,
                self.block_bytes,
                self.depth,
                self.offset_bytes,
                size,
                self.read_percent,
                self.seed,
                self.rate_per_s,
            )
        except ValueError as error:
            raise SetupError("use", where, str(error), "see vscsi bench --help") from error


@contextmanager
def opened(
    units: Sequence[tuple[str, int]],
    wish: "Wish | CapturedWorkload",
    *,
    limit: Path | None = None,
    connect: Callable[[str], Hba] = connect,
    native: bool = True,
    cpu: int | None = None,
) -> Iterator[list[Load]]:
    """Connect paths, and offer a load for each, all with one workload on one range.

    units: URL and logical unit number of each. With `limit` the last load is that of bare system
    calls on the file. connect: what connects a path. native: generate it in C where there is a
    ring. cpu: the one that such a load runs on. Raises SetupError for what cannot be connected, or
    cannot take the workload. Everything is closed at the end.
    """
    with ExitStack() as stack:
        found = [(url, *unit(stack, url, number, connect)) for url, number in units]
        sizes = [(size, url) for url, _, size in found]
        if limit is not None:
            sizes.append((file_size(limit), str(limit)))
        workload = wish.workload(*min(sizes))
        loads: list[Load] = []
        for url, lun, _ in found:
            load = load_on(url, lun, workload, native=native, cpu=cpu)
            loads.append(stack.enter_context(closing(load)))
        if limit is not None and isinstance(workload, Workload):
            loads.append(stack.enter_context(closing(BareLoop(limit, workload))))
        yield loads


def unit(stack: ExitStack, url: str, number: int, connect: Callable[[str], Hba]) -> tuple[Lun, int]:
    """Connect a path; return its logical unit, past its unit attentions, and its size in bytes."""
    try:
        found = stack.enter_context(connect(url)).lun(number)
        capacity = found.capacity()
    except (TransportError, ScsiError, WireError, DomainError) as error:
        raise SetupError("use", url, str(error), "vscsi ls shows what is there") from error
    return found, capacity.blocks * capacity.block_length


def load_on(
    url: str,
    found: Lun,
    workload: "Workload | CapturedWorkload",
    *,
    native: bool = True,
    cpu: int | None = None,
) -> Load:
    """Return the load on a logical unit; SetupError if it does not take the workload.

    It is generated in C if there is a ring, and a command is one request on it.
    """
    initiator, block_length = found.hba.initiator, found.capacity().block_length
    try:
        if not isinstance(workload, Workload):
            return workload.loop(url, initiator, found.address, block_length)
        if native and isinstance(initiator, RingInitiator):
            try:
                loop = QueuesLoop if len(initiator.queues) > 1 else NativeLoop
                return loop(url, initiator, found.address, block_length, workload, cpu=cpu)
            except TransportError as error:
                reason = str(error)
        else:
            reason = "its load is not generated in C"
        if workload.rate_per_s is not None:
            raise SetupError("use", url, reason, "an open loop (--rate) needs a ring")
        return ClosedLoop(url, initiator, found.address, block_length, workload)
    except ValueError as error:
        raise SetupError("use", url, str(error), "change --bs, --offset or --pin") from error
    except DomainError as error:
        raise SetupError("use", url, str(error), "name a smaller --bs or --iodepth") from error


def compare(loads: Sequence[Load], schedule: Schedule, progress: Progress) -> Comparison:
    """Run each load once a round, each round in another order, and return what came out.

    All loads (at least one) have one workload. A path that fails is left out from then on; the
    others go on.
    """
    started = datetime.now(UTC).isoformat(timespec="seconds")
    results = [PathResult(load.name, load.workload, load.parameters()) for load in loads]
    pairs = list(zip(loads, results, strict=True))
    run_s = schedule.runtime_s / schedule.rounds
    for turn in range(schedule.rounds):
        first = turn % len(pairs)
        for load, result in pairs[first:] + pairs[:first]:
            if result.failure is None:
                progress(load.name, schedule.ramp_s + run_s)
                measure(load, result, round(schedule.ramp_s * 1e9), round(run_s * 1e9))
    return Comparison(
        workload=loads[0].workload,
        started=started,
        rounds=schedule.rounds,
        runtime_s=schedule.runtime_s,
        ramp_s=schedule.ramp_s,
        machine=describe(),
        paths=results,
    )


def measure(load: Load, result: PathResult, ramp_ns: int, run_ns: int) -> None:
    """Run a load twice, and take the second run; errors count in both."""
    try:
        if ramp_ns:
            result.note(load.run(ramp_ns))
            if result.failure is not None:
                return
        before = load.counters()
        run = load.run(run_ns)
        if run.failure is not None:
            result.note(run)
            return
        result.take(run, before, load.counters())
    except TransportError as error:
        result.failure = str(error)
