# SPDX-License-Identifier: MIT
"""In which thread a task runs: the submitting one, or one of a few workers."""

import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Protocol

Job = Callable[[], None]


class Executor(Protocol):
    """Runs jobs. A job does not raise."""

    def call(self, job: Job) -> None:
        """Run a job, now or soon."""

    def close(self) -> None:
        """Return when the jobs called before have run; none may be called after."""


class Inline:
    """Runs a job in the calling thread before `call` returns.

    A job that calls for another one only queues it for the outermost `call` of its thread: an
    initiator that submits its next task from `done` costs no stack.
    """

    def __init__(self) -> None:
        self._thread = threading.local()

    def call(self, job: Job) -> None:
        """Run a job, and all that it calls for in turn."""
        waiting: deque[Job] | None = getattr(self._thread, "waiting", None)
        if waiting is not None:
            waiting.append(job)
            return
        waiting = self._thread.waiting = deque([job])
        try:
            while waiting:
                waiting.popleft()()
        finally:
            del self._thread.waiting

    def close(self) -> None:
        """Do nothing: every job has run."""


class Workers:
    """Runs jobs in `count` threads, started in the order of the calls."""

    def __init__(self, count: int) -> None:
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, name=f"vscsi-worker-{index}", daemon=True)
            for index in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def call(self, job: Job) -> None:
        """Queue a job for the next free thread."""
        self._jobs.put(job)

    def close(self) -> None:
        """End the threads after what is queued; a second call does nothing."""
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()
        self._threads = []

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
