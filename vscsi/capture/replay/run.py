# SPDX-License-Identifier: MIT
"""Steps sent over a path, each when it may and has to, and their answers handed to a judge."""

import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

from vscsi.capture.commands import Disk
from vscsi.capture.replay.judge import Figures, Judge
from vscsi.capture.replay.pace import Pace
from vscsi.capture.replay.step import Step
from vscsi.capture.replay.translate import CHANGES, Unit, Wanted, may_change, translate
from vscsi.capture.replay.units import Units
from vscsi.capture.replay.verify import Access
from vscsi.domain.base import DomainError
from vscsi.target.base import Function
from vscsi.transport.hba import COMMAND_TIMEOUT_S, CommandFuture, Hba, Reply
from vscsi.transport.initiator import ManagementCommand, TransportError
from vscsi.wire import cdb as cdbs
from vscsi.wire.errors import SetupError
from vscsi.wire.sense import SenseKey

MAX_SENT_AGAIN = 8
"""A command that meets a unit attention is sent again, as every initiator does."""
MAX_REASONS = 64
_LONGEST_WAIT_S = 3600.0
"""After which the time is looked at anew: a capture may have years between two commands."""
OTHER_DISK = "it went to another disk than those that were asked for"
TOO_LARGE = "the path has no memory for its data"
GONE = "what it was to abort had been answered"
NO_UNIT = "the capture does not say which unit it was for"

_Done = tuple["Job", "Future[Reply] | ManagementCommand", int]


@dataclass(slots=True, eq=False)
class Job:
    """A step as it is sent."""

    step: Step
    unit: Unit
    wanted: Wanted | None = None
    """None for task management."""
    access: Access | None = None
    future: CommandFuture | None = None
    sent_ns: int = 0
    tries: int = 0
    managed: bool = False
    """Whether task management may have ended it."""


@dataclass(frozen=True, slots=True)
class How:
    """What a replay is to be like."""

    speed: float | None = 1.0
    """Times as fast as recorded; None: as fast as it goes."""
    wrap: bool = False
    read_only: bool = False
    verify: bool = False
    timeout_s: float = COMMAND_TIMEOUT_S


class Replay:
    """One replay. All but `stop` is called from one thread."""

    def __init__(
        self,
        hba: Hba,
        units: Units,
        steps: Iterable[Step],
        disks: list[Disk],
        how: How,
        *,
        chosen: Callable[[Disk], bool] = lambda _disk: True,
        progress: Callable[[int], None] = lambda _sent: None,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """disks: the source's, which may grow. progress is told how many commands were sent."""
        self.judge = Judge(verify=how.verify)
        self.pace = Pace(how.speed)
        self.lag = Figures()
        self.sent = 0
        self.sent_again = 0
        self.left_out: Counter[str] = Counter()
        self.management: Counter[str] = Counter()
        """Task management that was sent, by function and what it came to."""
        self.aborted = 0
        """Commands that task management ended."""
        self.elapsed_ns = 0
        """From the first command's sending to the last answer."""
        self.recorded_ns = 0
        """From the first command's recorded sending to the last's."""
        self.failure = ""
        """Why it ended early, in one line."""
        self.stopped = False
        self._hba = hba
        self._units = units
        self._steps = steps
        self._disks = disks
        self._how = how
        self._chosen = chosen
        self._progress = progress
        self._clock = clock
        self._began_ns: int | None = None
        """When the first step of the capture would have been sent."""
        self._first = 0, 0
        """When the first one was sent, and when it had been."""
        self._done: SimpleQueue[_Done | None] = SimpleQueue()
        self._in_flight: dict[Job, None] = {}
        self._by_tag: dict[tuple[int, int], Job] = {}
        """Commands in flight by captured channel and tag."""

    def stop(self) -> None:
        """Send nothing more; from any thread or signal handler."""
        self.stopped = True
        self._done.put(None)

    def run(self) -> None:
        """Send everything, and wait for the answers; why that ended early is in `failure`."""
        try:
            for step in self._steps:
                job = self._job(step)
                if isinstance(job, str):
                    self._leave_out(job)
                elif self._await_turn(step):
                    self._send(job)
                else:
                    break
            while self._in_flight and not self.failure:
                self._await_answer()
        except (TransportError, SetupError) as error:
            self.failure = self.failure or str(error)

    # Before

    def _job(self, step: Step) -> Job | str:
        """Return what to send for a step, or why it is left out."""
        if not 0 <= step.disk < len(self._disks):
            return NO_UNIT
        disk = self._disks[step.disk]
        if not self._chosen(disk):
            return OTHER_DISK
        unit = self._units.of(disk)
        if isinstance(unit, str):
            return unit
        row = step.row
        if row is None:
            return Job(step, unit)
        changes = may_change(row.operation, row.opcode, row.service_action)
        if self._how.read_only and changes:
            return CHANGES
        wanted = translate(row, disk, unit, wrap=self._how.wrap)
        if isinstance(wanted, str):
            return wanted
        return Job(step, unit, wanted)

    def _leave_out(self, why: str) -> None:
        if why not in self.left_out and len(self.left_out) >= MAX_REASONS:
            why = "other reasons"
        self.left_out[why] += 1

    def _await_turn(self, step: Step) -> bool:
        """Wait until a step may be sent and its time has come; False: nothing more is sent."""
        while not (self.stopped or self.failure):
            free = self.pace.may_send(step)
            wait_ns = 0 if self._began_ns is None else self._due_ns(step) - self._clock()
            if free and wait_ns <= 0:
                while not self._done.empty():
                    self._take(self._done.get())
                return not (self.stopped or self.failure)
            self._await_answer(wait_ns / 1e9 if free else None)
        return False

    def _due_ns(self, step: Step) -> int:
        return (self._began_ns or 0) + self.pace.due_ns(step)

    def _await_answer(self, timeout_s: float | None = None) -> None:
        """Take an answer; None: it is a failure if there is none in time."""
        wait_s = self._how.timeout_s if timeout_s is None else min(timeout_s, _LONGEST_WAIT_S)
        try:
            done = self._done.get(timeout=wait_s)
        except Empty:
            if timeout_s is None:
                job = next(iter(self._in_flight))
                self.failure = f"no answer to {_words(job)} within {self._how.timeout_s:g} s"
            return
        self._take(done)

    # Sending

    def _send(self, job: Job) -> None:
        step = job.step
        job.sent_ns = self._clock()
        if self._began_ns is None:
            self._first = job.sent_ns, step.sent_ns
            self._began_ns = job.sent_ns - self.pace.due_ns(step)
        self.recorded_ns = step.sent_ns - self._first[1]
        if job.wanted is None:
            self._manage(job)
            return
        if self._how.speed is not None:
            self.lag.add(max(job.sent_ns - self._due_ns(step), 0))
        row = step.row
        if row is None or not self._start(job):
            return
        # Its answer waits in the queue yet: this thread alone takes them.
        job.access = self.judge.sent(row, job.wanted, job.unit)
        self.pace.sent(step)
        self._in_flight[job] = None
        if row.tag is not None:
            self._by_tag[row.channel, row.tag] = job
        self.sent += 1
        self._progress(self.sent)

    def _start(self, job: Job) -> bool:
        """Start a command, as soon as there is memory for its data; False: left out."""
        wanted = job.wanted
        if wanted is None:
            return False
        while not self.failure:
            try:
                future = self._hba.start(
                    job.unit.lun,
                    wanted.cdb,
                    data_out=wanted.data_out,
                    data_in=wanted.data_in,
                    attribute=wanted.attribute,
                )
            except TransportError as error:
                if isinstance(error.__cause__, DomainError):
                    if self._in_flight:  # whose end gives some back
                        self._await_answer()
                        continue
                    self._leave_out(TOO_LARGE)
                else:
                    self._check_path(job)  # raises, unless it is this command alone
                    self._leave_out(str(error))
                return False
            job.future = future
            future.add_done_callback(partial(self._ended, job))
            return True
        return False

    def _check_path(self, job: Job) -> None:
        self._hba.command(job.unit.lun, cdbs.build("TEST UNIT READY"))

    def _ended(self, job: Job, future: "Future[Reply]") -> None:
        """Take an answer to the thread that sends; any thread."""
        self._done.put((job, future, self._clock()))

    def _manage(self, job: Job) -> None:
        event = job.step.event
        if event is None or event.function is None:
            return
        managed = None
        if event.function is Function.ABORT_TASK:
            managed = self._by_tag.get((event.channel, event.managed_tag or 0))
            if managed is None or managed.future is None:
                self._leave_out(GONE)
                return
            managed.managed = True
        else:
            for other in self._in_flight:
                other.managed = other.managed or other.unit is job.unit
        request = ManagementCommand(
            job.unit.lun.address,
            event.function,
            lambda request: self._done.put((job, request, self._clock())),
            managed.future.command if managed is not None and managed.future else None,
        )
        self.pace.sent(job.step)
        self._in_flight[job] = None
        self._hba.initiator.manage(request)

    # Answers

    def _take(self, done: _Done | None) -> None:
        if done is None:
            return  # woken by `stop`
        job, what, now = done
        self.elapsed_ns = max(self.elapsed_ns, now - self._first[0])
        if isinstance(what, ManagementCommand):
            self._take_management(job, what)
        else:
            self._take_answer(job, what, now)

    def _take_management(self, job: Job, request: ManagementCommand) -> None:
        self._end(job)
        if request.error is not None:
            self._check_path(job)
        outcome = str(request.error) if request.error else request.response.name.replace("_", " ")
        self.management[f"{request.function.name.replace('_', ' ')}: {outcome}"] += 1

    def _take_answer(self, job: Job, future: "Future[Reply]", now: int) -> None:
        error, wanted, row = future.exception(), job.wanted, job.step.row
        if wanted is None or row is None:
            return
        reply = None if error is not None else future.result()
        if reply is not None and self._send_again(job, reply):
            return
        self._end(job)
        if row.tag is not None and self._by_tag.get((row.channel, row.tag)) is job:
            del self._by_tag[row.channel, row.tag]
        if error is not None:
            if not job.managed:
                self.failure = self.failure or str(error)
                return
            self.aborted += 1
        self.judge.ended(job.step, wanted, job.unit, job.access, reply, now - job.sent_ns)

    def _send_again(self, job: Job, reply: Reply) -> bool:
        """Send a command again that was not executed, but for a unit attention, where it had been.

        A recorded unit attention is no reason to: its initiator sent the command again itself.
        """
        sense, row = reply.decoded_sense, job.step.row
        attention = sense is not None and sense.key == SenseKey.UNIT_ATTENTION
        recorded = row is not None and row.sense_key == SenseKey.UNIT_ATTENTION
        if not attention or recorded or job.tries >= MAX_SENT_AGAIN or self.failure:
            return False
        job.tries += 1
        self.sent_again += 1
        return self._start(job)

    def _end(self, job: Job) -> None:
        del self._in_flight[job]
        self.pace.ended(job.step)


def _words(job: Job) -> str:
    if job.wanted is not None:
        return cdbs.describe(job.wanted.cdb)
    event: Any = job.step.event
    return str(event.words)
