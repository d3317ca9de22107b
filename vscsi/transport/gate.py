# SPDX-License-Identifier: MIT
"""Task attributes where the path to the target does not keep the order of commands."""

import threading
from collections import Counter, deque
from collections.abc import Callable

from vscsi.target.base import Attribute
from vscsi.transport.initiator import Command

Begin = Callable[[], None]


class Gate:
    """Keeps ORDERED commands in order on a path that has no task attributes, or several rings."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._ordered = False
        self._held: deque[tuple[Command, Begin]] = deque()
        self._ready: deque[Begin] = deque()
        self._beginning = False
        self._holds: Counter[bytes] = Counter()
        self._parked: list[tuple[Command, Begin]] = []

    def hold(self, lun: bytes) -> None:
        """Begin nothing more of a logical unit's until as many `release`."""
        with self._lock:
            self._holds[lun] += 1

    def release(self, lun: bytes) -> None:
        """Take back a `hold`."""
        with self._lock:
            self._holds[lun] -= 1
            free = [each for each in self._parked if not self._holds[each[0].lun]]
            self._parked = [each for each in self._parked if self._holds[each[0].lun]]
            self._holds += Counter()  # without what is 0
        for command, begin in free:
            self.enter(command, begin)

    def withdraw(self, command: Command) -> bool:
        """Forget a command that waits here; False if it does not."""
        with self._lock:
            for waiting in (self._held, self._parked):
                for each in waiting:
                    if each[0] is command:
                        waiting.remove(each)
                        return True
        return False

    def enter(self, command: Command, begin: Begin) -> None:
        """Begin a command now, or when those before it allow it."""
        with self._lock:
            if self._holds[command.lun]:
                self._parked.append((command, begin))
                return
            if command.attribute is not Attribute.HEAD_OF_QUEUE and (
                self._held or self._ordered or self._must_wait(command)
            ):
                self._held.append((command, begin))
                return
            self._count(command)
        begin()

    def leave(self, command: Command) -> None:
        """A command that began is done; begin those that may.

        One thread begins them, one after the other: where the channel has failed each is done as
        soon as it begins, and that must not nest.
        """
        with self._lock:
            self._inside -= 1
            if command.attribute is Attribute.ORDERED:
                self._ordered = False
            while self._held and not self._ordered and not self._must_wait(self._held[0][0]):
                command, begin = self._held.popleft()
                self._count(command)
                self._ready.append(begin)
            if self._beginning:
                return
            self._beginning = True
        while (ready := self._next_ready()) is not None:
            ready()

    def _next_ready(self) -> Begin | None:
        with self._lock:
            self._beginning = bool(self._ready)
            return self._ready.popleft() if self._ready else None

    def _must_wait(self, command: Command) -> bool:
        return command.attribute is Attribute.ORDERED and self._inside > 0

    def _count(self, command: Command) -> None:
        self._inside += 1
        if command.attribute is Attribute.ORDERED:
            self._ordered = True
