# SPDX-License-Identifier: MIT
"""A logical unit's task manager (SAM-6 4.5.19): its task set, made safe for threads and run."""

import logging
import threading
from collections.abc import Callable
from functools import partial
from typing import Protocol

from vscsi.target.base import Status, Task
from vscsi.target.executor import Executor
from vscsi.target.taskset import Admission, Fate, TaskSet, identity

_log = logging.getLogger(__name__)


class Server(Protocol):
    """A device server, as far as its task manager knows it. Neither method raises."""

    def execute(self, task: Task) -> None:
        """Execute a task's command and set its outcome; do not call `done`."""

    def refuse_overlapped(self, task: Task) -> None:
        """Set the outcome of a task whose tag was in use."""


class Gate(Protocol):
    """Keeps others from executing commands of the same logical unit, while it is closed."""

    def close(self) -> None:
        """Close it; return when nobody executes one any more."""

    def open(self) -> None:
        """Undo one `close`."""


class TaskManager:
    """Runs a logical unit's tasks in the order that their attributes ask for.

    Every task is answered once, or dropped once if it was aborted; nobody touches its buffers
    after that. The gate is closed as long as there is a task.
    """

    def __init__(
        self, server: Server, executor: Executor, depth: int, gate: Gate | None = None
    ) -> None:
        self._server = server
        self._gate = gate
        self._executor = executor
        self._tasks = TaskSet(depth)
        self._lock = threading.Lock()

    def submit(self, task: Task) -> None:
        """Take a task in; it may be answered before this returns."""
        if self._gate is not None:
            self._gate.close()
        with self._lock:
            admission = self._tasks.admit(task)
            enabled = self._tasks.newly_enabled()
        self._start(enabled)
        if admission is Admission.FULL:
            task.status = Status.TASK_SET_FULL
            self._executor.call(partial(self._conclude, task, Fate.ANSWER))
        elif admission is Admission.OVERLAPPED:
            self._server.refuse_overlapped(task)
            key = identity(task)
            self.abort(
                lambda other: Fate.SILENT if other is not task and identity(other) == key else None,
                lambda _: self._executor.call(partial(self._conclude, task, Fate.ANSWER)),
            )

    def abort(self, fate_of: Callable[[Task], Fate | None], then: Callable[[int], None]) -> None:
        """Abort the tasks for which `fate_of` names a fate.

        `then` is called once none of them can touch its buffers or be answered any more, with
        the number of tasks that get no answer because of this. The gate is closed until it has
        been: what others were executing has ended by then.
        """
        if self._gate is not None:
            self._gate.close()
        with self._lock:
            aborted = self._tasks.abort(fate_of)
            finish = partial(self._finish, then, aborted.silenced)
            waits = self._tasks.when_gone(aborted.remaining, finish)
            enabled = self._tasks.newly_enabled()
        self._start(enabled)
        for task, fate in aborted.removed:
            self._executor.call(partial(self._conclude, task, fate))
        if not waits:
            finish()

    def _finish(self, then: Callable[[int], None], silenced: int) -> None:
        then(silenced)
        if self._gate is not None:
            self._gate.open()

    def _start(self, count: int) -> None:
        for _ in range(count):
            self._executor.call(self._run_next)

    def _run_next(self) -> None:
        with self._lock:
            task = self._tasks.start()
        if task is None:  # what this call was made for has been aborted
            return
        self._server.execute(task)
        with self._lock:
            fate = self._tasks.end(task)
        self._conclude(task, fate)

    def _conclude(self, task: Task, fate: Fate) -> None:
        """Answer or drop a task, then let those go on that waited for it."""
        if fate is Fate.TASK_ABORTED:
            task.status = Status.TASK_ABORTED
            task.sense = b""
            task.moved = task.overflow = 0
        callback = task.aborted if fate is Fate.SILENT else task.done
        if callback is not None:
            try:
                callback(task)
            except Exception:
                # A transport's fault must cost neither the worker nor the tasks that wait.
                _log.exception("the transport failed to answer %r", task)
        with self._lock:
            fulfilled = self._tasks.release(task)
            enabled = self._tasks.newly_enabled()
        if self._gate is not None:
            self._gate.open()
        self._start(enabled)
        for finish in fulfilled:
            finish()
