# SPDX-License-Identifier: MIT
"""Where backend ends show every message that crosses their rings, both ways.

Each ring has a byte ring of its own (`vscsi.ring.Tap`) that its thread fills without ever waiting:
what finds no room there is counted. One thread takes what is in them to the listeners.
"""

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from vscsi.ring import Tap
from vscsi.wire import record
from vscsi.wire.opcodes import DeviceType

TAP_BYTES = 4 << 20
"""Of each ring's tap: some 20,000 messages."""
PERIOD_S = 0.005
"""How often the taps are emptied; ringing somebody's bell would cost the ring's thread."""
NICENESS = 19
"""Of the threads that take and write what crosses: where a CPU is short, the rings come first."""
MIN_TAP_BYTES = 1 << 13
"""Of one that nothing crosses."""
NOTHING_WANTED = (0, False)
"""Of commands' data: how many first bytes, and whether a hash."""
_TAKEN_BYTES = 1 << 20
"""At a time, of one ring."""


@dataclass(frozen=True, slots=True)
class RingPath:
    """Which ring a message crossed, and what its ends negotiated (name, value)."""

    protocol: record.Protocol
    domain: int
    device: int
    layout: record.LayoutCode = record.LayoutCode.NONE
    queue: int = 0
    parameters: tuple[tuple[str, str], ...] = ()

    @property
    def name(self) -> str:
        """As in "srp-1-0", and of another queue than the first "srp-1-0-1"."""
        queue = f"-{self.queue}" if self.queue else ""
        return f"{self.protocol.name.lower()}-{self.domain}-{self.device}{queue}"


@dataclass(frozen=True, slots=True)
class Geometry:
    """A logical unit that can be reached over a ring, as it is now."""

    number: int
    device_type: DeviceType
    block_bytes: int | None = None
    block_count: int | None = None
    """None where it has no blocks, or another system alone knows of them."""


class Listener(Protocol):
    """Takes what crossed; must not block, may drop (and count)."""

    def __call__(self, path: RingPath, entries: bytes, count: int, dropped: int) -> None:
        """Take `count` messages of one ring, in their order, as its tap returned them.

        dropped: messages that found no room since the last call.
        """


@dataclass(slots=True, eq=False)
class _Source:
    path: RingPath
    tap: Tap
    told_dropped: int = 0


class TapSwitch:
    """All taps of a server, and who listens. Thread-safe. Without listeners a tap costs a look."""

    def __init__(self, units: Callable[[RingPath], Sequence[Geometry]] = lambda _: ()) -> None:
        """units: what can be reached over a ring."""
        self.units = units
        self._listeners: tuple[tuple[Listener, tuple[int, bool]], ...] = ()
        self._sources: list[_Source] = []
        self._lock = threading.RLock()
        """Of listeners and sources, and of the taking: there is one taker at a time."""
        self._end = threading.Event()
        self._thread: threading.Thread | None = None

    def open(self, path: RingPath, tap: Tap) -> None:
        """Take from the tap of a ring that is about to be served."""
        with self._lock:
            self._tell(tap)
            self._sources.append(_Source(path, tap))

    def close(self, tap: Tap) -> None:
        """Let go of a ring's tap; what is in it is delivered first."""
        with self._lock:
            self.flush()
            self._sources = [source for source in self._sources if source.tap is not tap]

    def add(
        self, listener: Listener, wanted: tuple[int, bool] = NOTHING_WANTED
    ) -> Callable[[], None]:
        """Show a listener what crosses from now on; returns a function that ends that.

        That function delivers first what has crossed until then. Both from any thread.
        wanted: of the data. There may be more, for another listener.
        """
        with self._lock:
            self.flush()  # what crossed before is not for this one
            begins = not self._listeners
            self._listeners = (*self._listeners, (listener, wanted))
            self._tell_all()
            if begins:
                self._begin()

        def remove() -> None:
            thread = None
            with self._lock:
                self.flush()
                self._listeners = tuple(each for each in self._listeners if each[0] is not listener)
                self._tell_all()
                if not self._listeners:
                    thread = self._finish()
            if thread is not None:
                thread.join()

        return remove

    def flush(self) -> None:
        """Deliver what has crossed; returns when the listeners have been called."""
        with self._lock:
            for source in self._sources:
                for _ in range(-(-TAP_BYTES // _TAKEN_BYTES) + 1):  # what was in it, and no more
                    if not self._take(source):
                        break

    def _tell_all(self) -> None:
        for source in self._sources:
            self._tell(source.tap)

    def _tell(self, tap: Tap) -> None:
        """Tell a tap whether anybody listens, and what of the data they want in all."""
        wanted = [each for _, each in self._listeners]
        tap.wanted = max((head for head, _ in wanted), default=0), any(has for _, has in wanted)
        tap.active = bool(wanted)

    def _begin(self) -> None:
        self._end = threading.Event()
        self._thread = threading.Thread(
            target=self._run, args=(self._end,), name="tap", daemon=True
        )
        self._thread.start()

    def _finish(self) -> threading.Thread | None:
        self._end.set()
        thread, self._thread = self._thread, None
        return thread

    def _run(self, end: threading.Event) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        while not end.wait(PERIOD_S):
            self.flush()

    def _take(self, source: _Source) -> bool:
        """Deliver a part of what is in one tap; False if there was nothing."""
        dropped = source.tap.dropped
        entries, count = source.tap.take(_TAKEN_BYTES)
        news = dropped - source.told_dropped
        if count or news:
            source.told_dropped = dropped
            for listener, _ in self._listeners:
                listener(source.path, entries, count, news)
        return bool(count)
