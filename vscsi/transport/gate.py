# SPDX-License-Identifier: MIT
"""Task attributes where the path to the target does not keep the order of commands."""

import logging
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable

from vscsi.target.base import Attribute
from vscsi.transport.initiator import Command

Begin = Callable[[], None]

_log = logging.getLogger(__name__)


class Gate:
    """Keeps ORDERED commands in order on a path that has no task attributes, or several rings.

    A command that may begin is begun by one thread at a time, in order: `begin` puts it on a ring.
    """

    def __init__(self) -> None:
        self._lock = threading.Condition()
        self._inside = 0
        self._ordered = False
        self._held: deque[tuple[Command, Begin]] = deque()
        self._ready: deque[tuple[Command, Begin]] = deque()
        self._beginning: Command | None = None
        self._beginner: int | None = None
        """The thread that begins what is ready."""
        self._holds: Counter[bytes] = Counter()
        self._parked: list[tuple[Command, Begin]] = []

    def hold(self, lun: bytes) -> None:
        """Begin nothing more of a logical unit's until as many `release`.

        Returns when none of its commands is just being begun: each is parked here, or was put on a
        ring before.
        """
        with self._lock:
            self._holds[lun] += 1
            for waiting in (self._ready, self._held):
                parked = [each for each in waiting if each[0].lun == lun]
                for each in parked:
                    waiting.remove(each)
                    if waiting is self._ready:
                        self._uncount(each[0])
                self._parked += parked
            if self._beginner != threading.get_ident():
                self._lock.wait_for(lambda: self._beginning is None or self._beginning.lun != lun)

    def park(self, commands: Iterable[tuple[Command, Begin]]) -> None:
        """Take back commands that had begun and have gone nowhere, of a unit that is held."""
        with self._lock:
            for command, begin in commands:
                self._uncount(command)
                self._parked.append((command, begin))

    def release(self, lun: bytes) -> None:
        """Take back a `hold`: what was parked goes in front of what came later."""
        with self._lock:
            self._holds[lun] -= 1
            if not self._holds[lun]:
                del self._holds[lun]
                free = [each for each in self._parked if each[0].lun == lun]
                self._parked = [each for each in self._parked if each[0].lun != lun]
                self._held.extendleft(reversed(free))
        self._begin_ready()

    def withdraw(self, command: Command) -> bool:
        """Forget a command that waits here; False if it does not."""
        with self._lock:
            for waiting in (self._held, self._parked, self._ready):
                for each in waiting:
                    if each[0] is command:
                        waiting.remove(each)
                        if waiting is self._ready:
                            self._uncount(command)
                        break
                else:
                    continue
                break
            else:
                return False
        self._begin_ready()
        return True

    def enter(self, command: Command, begin: Begin) -> None:
        """Begin a command now, or when those before it allow it."""
        with self._lock:
            if command.lun in self._holds:
                self._parked.append((command, begin))
                return
            if command.attribute is Attribute.HEAD_OF_QUEUE:
                self._make_ready(command, begin)
            else:
                self._held.append((command, begin))
        self._begin_ready()

    def leave(self, command: Command) -> None:
        """A command that began is done; begin those that may."""
        with self._lock:
            self._uncount(command)
        self._begin_ready()

    def _begin_ready(self) -> None:
        """Begin what may.

        One thread begins them, one after the other: where the channel has failed each is done as
        soon as it begins, and that must not nest.
        """
        with self._lock:
            self._promote()
            if self._beginner is not None:
                return
            self._beginner = threading.get_ident()
        while (begin := self._next_ready()) is not None:
            try:
                begin()
            except Exception:  # one owner's mistake is not the next one's
                _log.exception("a command's `done` failed")

    def _promote(self) -> None:
        """Make ready what the oldest that waits lets pass (with the lock)."""
        while self._held and not self._ordered:
            if self._held[0][0].attribute is Attribute.ORDERED and self._inside:
                return
            self._make_ready(*self._held.popleft())

    def _make_ready(self, command: Command, begin: Begin) -> None:
        self._inside += 1
        if command.attribute is Attribute.ORDERED:
            self._ordered = True
        self._ready.append((command, begin))

    def _uncount(self, command: Command) -> None:
        self._inside -= 1
        if command.attribute is Attribute.ORDERED:
            self._ordered = False

    def _next_ready(self) -> Begin | None:
        with self._lock:
            self._beginning = None
            self._lock.notify_all()
            if not self._ready:
                self._beginner = None
                return None
            self._beginning, begin = self._ready.popleft()
            return begin
