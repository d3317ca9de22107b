# SPDX-License-Identifier: MIT
"""Where a backend end shows every message that crosses its ring, both ways."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

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


class Tap(Protocol):
    """Called with a private copy of each message; must not block, may drop (and count)."""

    def __call__(
        self,
        path: RingPath,
        way: record.Way,
        ring_index: int,
        in_flight: int,
        message: bytes,
        descriptors: bytes,
    ) -> None:
        """Take one message; descriptors are what was copied from indirect or SG-grant pages."""


class TapSwitch:
    """A tap that passes messages on to any number of listeners; none costs one comparison."""

    def __init__(self) -> None:
        self._listeners: tuple[Tap, ...] = ()
        self._lock = threading.Lock()

    def add(self, listener: Tap) -> Callable[[], None]:
        """Add a listener; returns a function that removes it. Both from any thread."""
        with self._lock:
            self._listeners = (*self._listeners, listener)

        def remove() -> None:
            with self._lock:
                self._listeners = tuple(each for each in self._listeners if each is not listener)

        return remove

    @property
    def active(self) -> bool:
        """Whether anybody listens."""
        return bool(self._listeners)

    def __call__(
        self,
        path: RingPath,
        way: record.Way,
        ring_index: int,
        in_flight: int,
        message: bytes,
        descriptors: bytes,
    ) -> None:
        for listener in self._listeners:
            listener(path, way, ring_index, in_flight, message, descriptors)
