# SPDX-License-Identifier: MIT
"""When a step may be sent: not before its time, and not before what it came after has ended.

Pure logic: whoever sends tells it what was sent and what has ended.
"""

import heapq

from vscsi.capture.replay.step import Step

MAX_IN_FLIGHT = 1024
DEPTH = 32
"""In flight at a time of the steps whose recorded end is not known."""


class Pace:
    """Lets steps go in the order of sending, as concurrent as they were and no more.

    A step waits for every step that had ended when it was sent. So those in flight were in flight
    together in the capture too, and since whatever a step waits for the next one waits for as well,
    taking one after the other delays none. Where the capture does not say when a step ended, those
    that touch the same blocks wait for it, and `depth` limits how many such are in flight.
    """

    def __init__(self, speed: float | None, *, depth: int = DEPTH) -> None:
        """speed: how many times as fast as recorded; None: as fast as it goes."""
        self.in_flight = 0
        self.most_in_flight = 0
        self._speed = speed
        self._depth = depth
        self._by_end: list[tuple[int, int, Step]] = []
        """A heap; what is done leaves it when it comes to the top, or when much has gathered."""
        self._endless: dict[Step, None] = {}
        self._count = 0

    def due_ns(self, step: Step) -> int:
        """Return when it is to be sent, since the replay's begin."""
        return 0 if self._speed is None else round(step.sent_ns / self._speed)

    def may_send(self, step: Step) -> bool:
        """Tell whether nothing in flight has to end before it is sent."""
        while self._by_end and self._by_end[0][2].done:
            heapq.heappop(self._by_end)
        if self._by_end and self._by_end[0][0] <= step.sent_ns:
            return False
        if step.event is not None:  # what it is for may be stuck
            return True
        if self.in_flight >= MAX_IN_FLIGHT:
            return False
        if step.ended_ns is None and len(self._endless) >= self._depth:
            return False
        return not any(step.touches(other) for other in self._endless)

    def sent(self, step: Step) -> None:
        """Take note that a step is in flight."""
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        if step.ended_ns is None:
            self._endless[step] = None
            return
        self._count += 1
        heapq.heappush(self._by_end, (step.ended_ns, self._count, step))
        if len(self._by_end) > 2 * MAX_IN_FLIGHT:
            self._by_end = [each for each in self._by_end if not each[2].done]
            heapq.heapify(self._by_end)

    def ended(self, step: Step) -> None:
        """Take note that a step has ended."""
        self.in_flight -= 1
        step.done = True
        self._endless.pop(step, None)
