# SPDX-License-Identifier: MIT
"""Unit attention conditions of one logical unit, per I_T nexus (SAM-6 5.14)."""

import threading

from vscsi.target.base import Nexus
from vscsi.target.refusals import BUS_DEVICE_RESET, POWER_ON
from vscsi.wire.sense import Sense

_PRECEDENCE = (POWER_ON, BUS_DEVICE_RESET)
"""As SAM-6 5.14 ranks those that we establish; all others come after, oldest first."""


class UnitAttentions:
    """What each nexus has yet to be told. Thread-safe.

    A condition is queued once per nexus at most, so the queues are as long as there are kinds.
    """

    def __init__(self) -> None:
        self._pending: dict[Nexus, list[Sense]] = {}
        self._lock = threading.Lock()

    def attach(self, nexus: Nexus) -> None:
        """Start a nexus with POWER ON OCCURRED as its only condition."""
        with self._lock:
            self._pending[nexus] = [POWER_ON]

    def detach(self, nexus: Nexus) -> None:
        """Forget a nexus."""
        with self._lock:
            self._pending.pop(nexus, None)

    def establish(self, condition: Sense, *, but: Nexus | None = None) -> None:
        """Establish a condition for every attached nexus, or for all but the one that caused it."""
        with self._lock:
            for nexus, queue in self._pending.items():
                if nexus != but and condition not in queue:
                    queue.append(condition)
                    queue.sort(key=_precedence)  # stable: equals stay in order of their coming

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
