# SPDX-License-Identifier: MIT
"""Where a backend end shows every message that crosses its ring, both ways."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from vscsi.wire import record


@dataclass(frozen=True, slots=True)
class RingPath:
    """Which ring a message crossed, and what its ends negotiated (name, value)."""

    protocol: record.Protocol
    domain: int
    device: int
    layout: record.LayoutCode = record.LayoutCode.NONE
    queue: int = 0
    parameters: tuple[tuple[str, str], ...] = field(default=(), compare=False)


@dataclass(frozen=True, slots=True)
class Crossing:
    """One message that crossed a ring, a private copy."""

    path: RingPath
    way: record.Way
    time_ns: int
    """Of the monotonic clock: when a request was taken off the ring, an answer put on it."""
    ring_index: int
    in_flight: int
    """Requests of the ring that were unanswered at that time, this one left out."""
    message: bytes
    descriptors: bytes = b""
    """What was copied from the indirect or SG_GRANT pages that the message names."""


Tap = Callable[[Crossing], None]
"""Called for each message; must not block, may drop (and count)."""


class TapSwitch:
    """A tap that passes messages on to any number of listeners; none costs one comparison."""

    def __init__(self) -> None:
        self._listeners: tuple[Tap, ...] = ()
        self._watchers: tuple[Callable[[], None], ...] = ()
        self._lock = threading.Lock()

    def add(self, listener: Tap) -> Callable[[], None]:
        """Add a listener; returns a function that removes it. Both from any thread."""
        with self._lock:
            self._listeners = (*self._listeners, listener)
            watchers = self._watchers
        for watcher in watchers:
            watcher()

        def remove() -> None:
            with self._lock:
                self._listeners = tuple(each for each in self._listeners if each is not listener)

        return remove

    def watch(self, watcher: Callable[[], None]) -> Callable[[], None]:
        """Have a function called when a listener comes; returns one that ends that."""
        with self._lock:
            self._watchers = (*self._watchers, watcher)

        def end() -> None:
            with self._lock:
                self._watchers = tuple(each for each in self._watchers if each is not watcher)

        return end

    @property
    def active(self) -> bool:
        """Whether anybody listens."""
        return bool(self._listeners)

    def __call__(self, crossing: Crossing) -> None:
        """Pass a message on."""
        for listener in self._listeners:
            listener(crossing)
