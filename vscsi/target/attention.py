# SPDX-License-Identifier: MIT
"""Unit attention conditions of one logical unit, per I_T nexus (SAM-6 5.14)."""

import threading
from collections.abc import Callable, Sequence

from vscsi.target.base import Nexus
from vscsi.target.refusals import BUS_DEVICE_RESET, POWER_ON
from vscsi.wire.sense import Sense

Observer = Callable[[Sense, Sequence[Nexus]], None]
"""Called with a condition that was established, and for whom; must not block."""

_PRECEDENCE = (POWER_ON, BUS_DEVICE_RESET)
"""As SAM-6 5.14 ranks those that we establish; all others come after, oldest first."""


class UnitAttentions:
    """What each nexus has yet to be told. Thread-safe.

    A condition is queued once per nexus at most, so the queues are as long as there are kinds.
    """

    def __init__(self) -> None:
        self._pending: dict[Nexus, list[Sense]] = {}
        self._observers: tuple[Observer, ...] = ()
        self._lock = threading.Lock()

    def observe(self, observer: Observer) -> Callable[[], None]:
        """Have an observer called after each `establish`; returns a function that ends it."""
        with self._lock:
            self._observers = (*self._observers, observer)

        def end() -> None:
            with self._lock:
                self._observers = tuple(each for each in self._observers if each is not observer)

        return end

    def attach(self, nexus: Nexus) -> None:
        """Start a nexus with POWER ON OCCURRED as its only condition."""
        with self._lock:
            self._pending[nexus] = [POWER_ON]

    def detach(self, nexus: Nexus) -> None:
        """Forget a nexus."""
        with self._lock:
            self._pending.pop(nexus, None)

    def establish(
        self, condition: Sense, *, but: Nexus | None = None, only: Nexus | None = None
    ) -> None:
        """Establish a condition for every attached nexus, all but who caused it, or for one."""
        told = []
        with self._lock:
            for nexus, queue in self._pending.items():
                concerned = nexus != but and only in (None, nexus)
                if concerned and condition not in queue:
                    queue.append(condition)
                    queue.sort(key=_precedence)  # stable: equals stay in order of their coming
                    told.append(nexus)
            observers = self._observers
        for observer in observers:
            observer(condition, told)

    def pending(self, nexus: Nexus) -> bool:
        """Tell whether there is a condition to report."""
        with self._lock:
            return bool(self._pending.get(nexus))

    def take(self, nexus: Nexus) -> Sense | None:
        """Return the condition to report next, which is thereby cleared (UA_INTLCK=00b)."""
        with self._lock:
            queue = self._pending.get(nexus)
            return queue.pop(0) if queue else None

    def clear(self, nexus: Nexus, condition: Sense) -> None:
        """Clear a condition that the nexus has learned of in another way."""
        with self._lock:
            queue = self._pending.get(nexus, [])
            if condition in queue:
                queue.remove(condition)


def _precedence(condition: Sense) -> int:
    return _PRECEDENCE.index(condition) if condition in _PRECEDENCE else len(_PRECEDENCE)
