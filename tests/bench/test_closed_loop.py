# SPDX-License-Identifier: MIT
"""The closed loop, on initiators and clocks that leave nothing to chance."""

import queue
import threading
from collections import Counter
from collections.abc import Callable

import pytest

from vscsi.bench.closed_loop import ClosedLoop
from vscsi.bench.workload import Workload
from vscsi.domain.memory import OutOfMemoryError
from vscsi.target.base import Nexus, Status, Task
from vscsi.target.disk import Disk
from vscsi.target.router import TaskRouter
from vscsi.target.stores.memory import MemoryStore
from vscsi.transport.call import CallInitiator
from vscsi.transport.initiator import Buffer, Command, TransportError
from vscsi.wire import cdb as cdbs
from vscsi.wire.lun import encode
from vscsi.wire.sense import Sense, SenseKey

LUN = encode(0)
BLOCK, LBA = 4096, 512
UNIT_BYTES = 1 << 20
MEDIUM_ERROR = Sense(SenseKey.MEDIUM_ERROR, 0x11, 0x00)


def work(mode: str = "read", *, depth: int = 1, size: int = UNIT_BYTES, **rest: int) -> Workload:
    return Workload(mode, BLOCK, depth, 0, size, **rest)


def good(command: Command) -> None:
    command.done(command)


class FaultTarget:
    """A target that fails every so-manyth READ, and passes the other tasks on."""

    def __init__(self, target: TaskRouter, every: int) -> None:
        self.target = target
        self.every = every
        self.reads = 0
        self.failed = 0
        self.attach, self.detach = target.attach, target.detach
        self.manage, self.luns = target.manage, target.luns

    def submit(self, task: Task) -> None:
        """Execute or fail a task."""
        self.reads += task.cdb[0] == 0x88
        if task.cdb[0] == 0x88 and self.reads % self.every == 0:
            self.failed += 1
            task.status, task.sense = Status.CHECK_CONDITION, MEDIUM_ERROR.build()
            task.done(task)
        else:
            self.target.submit(task)


def router() -> TaskRouter:
    target = TaskRouter()
    target.add(0, Disk(MemoryStore(UNIT_BYTES)))
    return target


def past_attentions(initiator: CallInitiator) -> CallInitiator:
    """Consume what a new nexus is told first."""
    statuses: list[Status] = []
    while not statuses or statuses[-1] is not Status.GOOD:
        initiator.submit(Command(LUN, bytes(6), lambda command: statuses.append(command.status)))
    return initiator


def test_with_a_clock_that_counts_the_run_is_what_arithmetic_says(clock, scripted) -> None:
    # One look at the start, then two an operation: submitted at 1, 3, 5, ... us, done 1 us later.
    load = ClosedLoop("call", scripted(good), LUN, LBA, work(), clock=clock)
    run = load.run(100_000)
    assert run.elapsed_ns == 100_000
    assert run.read_latencies == {1000: 50}
    assert (run.operations, run.outstanding, run.on_ring) == (50, 1, None)
    assert (dict(run.write_latencies), dict(run.errors), run.failure) == ({}, {}, None)


def test_latencies_are_the_time_from_submission_to_completion(scripted) -> None:
    times = [7, 1, 300, 20_000, 5, 5, 123_456, 42]
    now = 0
    answers = iter(times)

    def serve(command: Command) -> None:
        nonlocal now
        now += next(answers)
        command.done(command)

    load = ClosedLoop("call", scripted(serve), LUN, LBA, work(), clock=lambda: now)
    assert load.run(sum(times)).read_latencies == Counter(times)


def test_commands_ask_for_the_workloads_operations_in_order(clock, scripted) -> None:
    seen: list[tuple[bool, int, int]] = []

    def serve(command: Command) -> None:
        cdb = cdbs.decode(command.cdb)
        write = cdb.row.name == "WRITE(16)"
        (buffer,) = command.data_out if write else command.data_in
        assert len(buffer) == cdb.blocks * LBA == BLOCK
        assert not (command.data_in if write else command.data_out)
        assert command.lun == LUN
        seen.append((write, cdb.lba * LBA, cdb.blocks))
        command.done(command)

    workload = work("randrw", read_percent=30, seed=7)
    load = ClosedLoop("call", scripted(serve), LUN, LBA, workload, clock=clock)
    first, second = load.run(50_000), load.run(50_000)
    assert len(seen) == first.operations + second.operations
    assert first.write_latencies.total() + second.write_latencies.total() == sum(
        each[0] for each in seen
    )
    assert seen == [
        (write, offset, BLOCK // LBA)
        for (write, offset), _ in zip(workload.operations(), seen, strict=False)
    ]


@pytest.mark.parametrize("depth", [1, 2, 32])
def test_the_depth_is_reached_and_never_exceeded(clock, scripted, depth: int) -> None:
    """Another thread answers, one at a time, only while `depth` commands wait."""
    waiting: queue.SimpleQueue[Command] = queue.SimpleQueue()
    inside: dict[int, Command] = {}
    lock = threading.Lock()
    full = threading.Semaphore(0)
    most = 0

    def serve(command: Command) -> None:
        nonlocal most
        with lock:
            (buffer,) = command.data_in
            assert buffer.address not in inside, "a buffer in use is used again"
            inside[buffer.address] = command
            most = max(most, len(inside))
            if len(inside) == depth:
                full.release()
        waiting.put(command)

    def answer() -> None:
        assert full.acquire(timeout=60)
        while (command := waiting.get()) is not None:
            with lock:
                del inside[command.data_in[0].address]
            command.done(command)

    initiator = scripted(serve)
    receiver = threading.Thread(target=answer)
    receiver.start()
    load = ClosedLoop("slow", initiator, LUN, LBA, work(depth=depth), clock=clock)
    run = load.run(1_000_000)
    waiting.put(None)
    receiver.join()
    assert most == run.outstanding == depth
    assert not inside
    assert run.operations == initiator.statistics.commands
    assert len(initiator.allocated) == depth
    load.close()
    assert sorted(map(id, initiator.freed)) == sorted(map(id, initiator.allocated))


@pytest.mark.parametrize("depth", [1, 8])
def test_completions_from_within_submit_cost_no_stack(clock, scripted, depth: int) -> None:
    load = ClosedLoop("call", scripted(good), LUN, LBA, work(depth=depth), clock=clock)
    run = load.run(20_000_000)
    assert run.failure is None
    assert run.operations > 5000
    assert run.outstanding == 1


def test_failed_commands_are_counted_by_reason_and_are_no_operations(clock) -> None:
    target = FaultTarget(router(), every=3)
    initiator = past_attentions(CallInitiator(target, Nexus("i", "t")))
    load = ClosedLoop("call", initiator, LUN, LBA, work(depth=4), clock=clock)
    run = load.run(1_000_000)
    assert target.failed > 0
    assert dict(run.errors) == {MEDIUM_ERROR.describe(): target.failed}
    assert run.operations == target.reads - target.failed
    assert run.failure is None


def test_errors_at_different_addresses_are_one_reason(clock, scripted) -> None:
    information = iter(range(10**6))

    def serve(command: Command) -> None:
        command.status = Status.CHECK_CONDITION
        command.sense = Sense(3, 0x11, 0, information=next(information)).build()
        command.done(command)

    run = ClosedLoop("call", scripted(serve), LUN, LBA, work(), clock=clock).run(100_000)
    assert dict(run.errors) == {MEDIUM_ERROR.describe(): 50}


@pytest.mark.parametrize(
    ("status", "residual", "reason"),
    [
        (Status.BUSY, 0, "BUSY"),
        (Status.TASK_SET_FULL, 0, "TASK_SET_FULL"),
        (Status.GOOD, 512, "512 bytes were not moved"),
    ],
)
def test_a_status_without_sense_and_a_short_transfer_are_errors(
    clock, scripted, status: Status, residual: int, reason: str
) -> None:
    def serve(command: Command) -> None:
        command.status, command.residual = status, residual
        command.done(command)

    run = ClosedLoop("call", scripted(serve), LUN, LBA, work(), clock=clock).run(100_000)
    assert (dict(run.errors), run.operations) == ({reason: 50}, 0)


def refuses(command: Command) -> None:
    raise TransportError("the server is gone")


def out_of_memory(command: Command) -> None:
    raise OutOfMemoryError("the server is gone")


def loses(command: Command) -> None:
    command.error = TransportError("the server is gone")
    command.done(command)


@pytest.mark.parametrize("fault", [refuses, out_of_memory, loses])
@pytest.mark.parametrize("after", [0, 1, 10])
def test_a_path_that_fails_ends_the_run_and_says_why(
    clock, scripted, fault: Callable[[Command], None], after: int
) -> None:
    left = after

    def serve(command: Command) -> None:
        nonlocal left
        left -= 1
        (good if left >= 0 else fault)(command)

    run = ClosedLoop("call", scripted(serve), LUN, LBA, work(depth=4), clock=clock).run(10**9)
    assert run.failure == "the server is gone"
    assert run.operations == after


def test_commands_that_are_never_answered_fail_the_run_and_may_still_come(clock, scripted) -> None:
    held: list[Command] = []
    initiator = scripted(held.append)
    load = ClosedLoop("call", initiator, LUN, LBA, work(depth=3), clock=clock, drain_timeout_s=0.01)
    run = load.run(1)
    assert run.failure is not None
    assert "no answer" in run.failure
    for command in held:
        command.done(command)
    assert run.operations == 0
    assert initiator.statistics.commands == 3
    load.close()
    assert not initiator.freed, "what the path may still write to is not given to others"


def test_a_load_that_was_stopped_ends_its_run_with_what_is_outstanding(clock, scripted) -> None:
    left = 10

    def serve(command: Command) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            load.stop()
        command.done(command)

    load = ClosedLoop("call", scripted(serve), LUN, LBA, work(depth=4), clock=clock)
    stopped, later = load.run(10**15), load.run(10**15)
    # Of the four buffers the tenth command's ends with it, the others with their next commands.
    assert (stopped.operations, stopped.failure) == (13, None)
    assert (later.operations, later.failure) == (4, None)


def test_the_cpu_time_of_every_thread_that_takes_part_is_counted(scripted) -> None:
    answers: queue.SimpleQueue[Command | None] = queue.SimpleQueue()

    def answer() -> None:
        while (command := answers.get()) is not None:
            sum(range(20_000))
            command.done(command)

    receiver = threading.Thread(target=answer)
    receiver.start()
    run = ClosedLoop("call", scripted(answers.put), LUN, LBA, work(depth=2)).run(20_000_000)
    answers.put(None)
    receiver.join()
    assert run.cpu_ns > 0


def test_memory_that_does_not_suffice_is_given_back(scripted) -> None:
    class Poor(scripted):
        def alloc(self, length: int) -> Buffer:
            if len(self.allocated) == 3:
                raise OutOfMemoryError("no more")
            return super().alloc(length)

    initiator = Poor(good)
    with pytest.raises(OutOfMemoryError):
        ClosedLoop("call", initiator, LUN, LBA, work(depth=4))
    assert len(initiator.freed) == 3


def test_a_block_size_that_is_no_multiple_of_the_units_is_refused(scripted) -> None:
    with pytest.raises(ValueError, match="multiples of 8192"):
        ClosedLoop("call", scripted(good), LUN, 8192, work())
