# SPDX-License-Identifier: MIT
"""Whether what is read is what it has to be: what the capture has, or what a replay wrote."""

from dataclasses import dataclass

import numpy as np

from vscsi.capture.replay.pattern import Marks, pattern
from vscsi.capture.replay.translate import Effect, Wanted

_CHANGES = (Effect.WRITE, Effect.PATTERN, Effect.CHANGE)


@dataclass(slots=True, eq=False)
class Access:
    """A command in flight, and whether what it finds or leaves depends on who comes first."""

    wanted: Wanted
    raced: bool = False


class Content:
    """What is known of one unit's blocks while commands are in flight."""

    def __init__(self, block_bytes: int) -> None:
        self.checked = 0
        """Bytes that were read and compared, and"""
        self.unchecked = 0
        """those of which nothing is known, or that something was changing meanwhile."""
        self._block_bytes = block_bytes
        self._patterned = Marks()
        self._in_flight: dict[Access, None] = {}

    def sent(self, wanted: Wanted) -> Access:
        """Take note of a command before it is sent."""
        access = Access(wanted)
        if wanted.effect is Effect.NONE:
            return access
        for other in self._in_flight:
            if _race(wanted, other.wanted):
                access.raced = other.raced = True
        if wanted.effect in (Effect.WRITE, Effect.CHANGE):
            if wanted.blocks:
                self._patterned.remove(wanted.lba, wanted.blocks)
            else:
                self._patterned.clear()
        self._in_flight[access] = None
        return access

    def ended(self, access: Access, good: bool) -> None:
        """Take note that a command has ended, after `differs`."""
        self._in_flight.pop(access, None)
        wanted = access.wanted
        if wanted.effect is Effect.PATTERN and good and not access.raced:
            self._patterned.add(wanted.lba, wanted.blocks)

    def differs(self, access: Access, data: bytes, captured: bytes) -> int | None:
        """Return the first byte of what was read that is not what it has to be, or None.

        captured: as much of it as the capture has.
        """
        wanted = access.wanted
        whole = len(data) == wanted.blocks * self._block_bytes
        if wanted.effect is not Effect.READ or access.raced or not whole:
            self.unchecked += len(data)
            return None
        here = self._patterned.within(wanted.lba, wanted.blocks).repeat(self._block_bytes)
        expected = np.zeros(len(data), np.uint8)
        if here.any():
            written = pattern(wanted.lba, wanted.blocks, self._block_bytes)
            expected[here] = np.frombuffer(written, np.uint8)[here]
        if captured and not wanted.wrapped:
            known = np.frombuffer(captured[: len(data)], np.uint8)
            rest = ~here[: len(known)]
            expected[: len(known)][rest] = known[rest]
            here[: len(known)] = True
        checked = int(np.count_nonzero(here))
        self.checked += checked
        self.unchecked += len(data) - checked
        wrong = here & (expected != np.frombuffer(data, np.uint8))
        return int(wrong.argmax()) if wrong.any() else None


def _race(one: Wanted, other: Wanted) -> bool:
    if one.effect not in _CHANGES and other.effect not in _CHANGES:
        return False
    if one.effect is Effect.PATTERN and other.effect is Effect.PATTERN:
        return False  # they write the same
    if not one.blocks or not other.blocks:
        return True
    return one.lba < other.lba + other.blocks and other.lba < one.lba + one.blocks
