# SPDX-License-Identifier: MIT
"""How far the time is in a file of several channels, and where a channel's clock stepped back."""

from collections.abc import Iterator

import numpy as np

from vscsi.capture.commands import Event
from vscsi.capture.reader import Captured
from vscsi.capture.sources.ours.layout import Ints
from vscsi.capture.sources.ours.messages import Messages
from vscsi.capture.sources.ours.timeline import END_NS, LATENESS_NS
from vscsi.wire.record import Way

MAX_STEPS = 16
"""Steps that a channel tells of; those beyond are counted."""
_NS_PER_S = 10**9


class Clock:
    """Watches the times of messages. Requests have their own order, and so have answers."""

    def __init__(self) -> None:
        self._last: dict[tuple[int, bool], int] = {}
        """The time of a channel's last message of each way."""
        self._steps: dict[int, int] = {}
        """How often a channel's clock stepped back."""
        self.latest = -END_NS
        """The time of the latest message."""

    @property
    def notes(self) -> list[str]:
        """Lines about the steps."""
        if not self._steps:
            return []
        steps, channels = sum(self._steps.values()), len(self._steps)
        return [f"the clock stepped back {steps} times on {channels} channels; times are kept"]

    def until(self) -> int:
        """Return a time that no message is expected before any more."""
        asked = [time_ns for (_, to_target), time_ns in self._last.items() if to_target]
        return max(self.latest - LATENESS_NS, min(asked, default=-END_NS))

    def look_at(self, captured: Captured) -> Event | None:
        """Take one message."""
        to_target = captured.record.direction == Way.TO_TARGET
        times = np.array([captured.time_ns])
        return next(self._look(captured.interface, to_target, times), None)

    def look(self, messages: Messages) -> Iterator[Event]:
        """Take many messages."""
        for to_target in (True, False):
            at = np.flatnonzero(messages.known & (messages.to_target == to_target))
            for channel, rows in messages.by_channel(at):
                yield from self._look(channel, to_target, messages.time_ns[rows])

    def _look(self, channel: int, to_target: bool, times: Ints) -> Iterator[Event]:
        last = self._last.get((channel, to_target), -END_NS)
        before = np.concatenate([[last], times[:-1]])
        back = np.flatnonzero(times < before)
        self._last[channel, to_target] = int(times[-1])
        self.latest = max(self.latest, int(times.max()))
        for step in back:
            steps = self._steps[channel] = self._steps.get(channel, 0) + 1
            if steps <= MAX_STEPS:
                by_s = int(before[step] - times[step]) / _NS_PER_S
                yield Event(int(times[step]), channel, f"the clock stepped back by {by_s:.9f} s")
