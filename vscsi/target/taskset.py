# SPDX-License-Identifier: MIT
"""A task set: which task may start when, and what becomes of those that are aborted.

Pure state: no lock, no thread, no clock. `TaskManager` gives it those.

A task is dormant (waits for others), enabled (may start), running (its command executes), then
ending (it is being answered, or dropped) until `release`. Until then it holds up what had to
wait for it, but its tag is free: an initiator may use the tag again once it sees the answer.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

from vscsi.target.base import Attribute, Nexus, Task


class Admission(Enum):
    """What became of a new task."""

    ADMITTED = auto()
    FULL = auto()
    """The set holds as many tasks as it may (SAM-6 5.3.1, TASK SET FULL)."""
    OVERLAPPED = auto()
    """The nexus has a task with this tag (SAM-6 5.11, overlapped commands)."""


class Fate(Enum):
    """How a task leaves the set."""

    ANSWER = auto()
    """With the status its command came to."""
    TASK_ABORTED = auto()
    """With TASK ABORTED: another nexus aborted it, and the control mode page has TAS=1."""
    SILENT = auto()
    """Without an answer: its own nexus aborted it, or is gone."""


@dataclass(frozen=True)
class Aborted:
    """What an abort did at once, and what is left to wait for."""

    removed: list[tuple[Task, Fate]]
    """Tasks that had not started: ending now. To be delivered and released."""
    remaining: set[Task]
    """Affected tasks that have not been released yet (`removed` included)."""
    silenced: int
    """Tasks that will get no answer because of this abort."""


class TaskSet:
    """The tasks of one logical unit, from every nexus (TST=000b), at most `depth` unfinished."""

    def __init__(self, depth: int) -> None:
        self._depth = depth
        self._unfinished: set[tuple[Nexus, bytes, int]] = set()
        self._dormant: deque[Task] = deque()
        self._enabled: deque[Task] = deque()
        self._running: dict[Task, Fate] = {}
        self._ending: set[Task] = set()
        self._active: set[Task] = set()
        self._heads = 0
        self._ordered = 0
        self._newly_enabled = 0
        self._waits: list[tuple[set[Task], Callable[[], None]]] = []

    def admit(self, task: Task) -> Admission:
        """Take a task in, or reject it: a rejected task is ending, to be answered and released."""
        key = identity(task)
        if key in self._unfinished or len(self._unfinished) >= self._depth:
            self._ending.add(task)
            return Admission.OVERLAPPED if key in self._unfinished else Admission.FULL
        self._unfinished.add(key)
        if task.attribute == Attribute.HEAD_OF_QUEUE:  # SAM-6 8.6.2: enabled at once, LIFO
            self._enabled.appendleft(task)
            self._activate(task)
        else:
            self._dormant.append(task)
            self._promote()
        return Admission.ADMITTED

    def start(self) -> Task | None:
        """Let the next enabled task run; None if there is none (any more)."""
        if not self._enabled:
            return None
        task = self._enabled.popleft()
        self._running[task] = Fate.ANSWER
        return task

    def end(self, task: Task) -> Fate:
        """Say that a task's command has been executed; return how to end it. No abort meets it."""
        self._unfinished.remove(identity(task))
        self._ending.add(task)
        return self._running.pop(task)

    def release(self, task: Task) -> list[Callable[[], None]]:
        """Let go of a task that has been answered or dropped; return the waits this fulfils."""
        self._ending.remove(task)
        if task in self._active:
            self._active.remove(task)
            self._heads -= task.attribute == Attribute.HEAD_OF_QUEUE
            self._ordered -= task.attribute == Attribute.ORDERED
            self._promote()
        fulfilled = []
        for remaining, callback in self._waits:
            remaining.discard(task)
            if not remaining:
                fulfilled.append(callback)
        self._waits = [wait for wait in self._waits if wait[0]]
        return fulfilled

    def abort(self, fate_of: Callable[[Task], Fate | None]) -> Aborted:
        """Abort the tasks for which `fate_of` names a fate.

        What has not started leaves at once. What runs is let run, because its memory is in use,
        and then ends by its fate; SILENT, once said, stands. What is ending already ends as it
        would have, and is waited for.
        """
        removed: list[tuple[Task, Fate]] = []
        silenced = 0
        for queue in (self._dormant, self._enabled):
            kept = []
            for task in queue:
                fate = fate_of(task)
                if fate is None:
                    kept.append(task)
                    continue
                self._unfinished.remove(identity(task))
                self._ending.add(task)
                silenced += fate is Fate.SILENT
                removed.append((task, fate))
            queue.clear()
            queue.extend(kept)
        remaining = {task for task in self._ending if fate_of(task) is not None}
        for task, old in self._running.items():
            fate = fate_of(task)
            if fate is None:
                continue
            remaining.add(task)
            if old is not Fate.SILENT:
                silenced += fate is Fate.SILENT
                self._running[task] = fate
        self._promote()
        return Aborted(removed, remaining, silenced)

    def when_gone(self, tasks: set[Task], callback: Callable[[], None]) -> bool:
        """Have `release` return the callback with the last of these tasks; False if none waits."""
        remaining = set(tasks)
        if remaining:
            self._waits.append((remaining, callback))
        return bool(remaining)

    def newly_enabled(self) -> int:
        """Return how many tasks have become enabled since the last call."""
        count, self._newly_enabled = self._newly_enabled, 0
        return count

    def _activate(self, task: Task) -> None:
        self._active.add(task)
        self._heads += task.attribute == Attribute.HEAD_OF_QUEUE
        self._ordered += task.attribute == Attribute.ORDERED
        self._newly_enabled += 1

    def _promote(self) -> None:
        """Enable dormant tasks, oldest first, as far as SAM-6 8.6 allows.

        SIMPLE waits for head of queue and older ordered tasks, ORDERED for everything older and
        head of queue tasks. So nothing passes the oldest dormant task, and looking at it is enough.
        """
        while self._dormant and not self._heads and not self._ordered:
            if self._dormant[0].attribute == Attribute.ORDERED and self._active:
                return
            task = self._dormant.popleft()
            self._enabled.append(task)
            self._activate(task)


def identity(task: Task) -> tuple[Nexus, bytes, int]:
    """Return what is unique among unfinished tasks: I_T_L_Q.

    L as it was addressed, since one logical unit stands in for all that do not exist.
    """
    return task.nexus, task.lun, task.tag
