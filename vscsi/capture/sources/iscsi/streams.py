# SPDX-License-Identifier: MIT
"""One way of a TCP connection: segments put into their order, gaps said."""

from vscsi.capture.sources.iscsi.framing import Framer

MAX_HELD = 64
"""Segments that wait for one before them; then it is taken for lost."""
MAX_HELD_BYTES = 1 << 20
_MASK = 0xFFFF_FFFF
_HALF = 1 << 31
_RESTART = 1 << 26
"""A sequence number so far back is no retransmission, but another connection's."""

_Held = tuple[int, bytes, int]


class Stream:
    """What one end sends. Sequence numbers are modulo 2^32 (RFC 9293 3.4)."""

    __slots__ = ("_held_bytes", "_next", "finished", "framer", "other", "waiting")

    def __init__(self, framer: Framer) -> None:
        self.framer = framer
        self.other = self
        """The other way, set by who makes both."""
        self.finished = False
        self._next: int | None = None
        self.waiting: dict[int, _Held] = {}
        """Sequence number -> missing bytes at its end, data, time."""
        self._held_bytes = 0

    def begin(self, sequence: int) -> None:
        """Take a SYN: what follows it is the first byte of the stream."""
        self._next = (sequence + 1) & _MASK
        self.framer.begin()

    def begun_by(self, sequence: int) -> bool:
        """Return whether nothing came since a SYN with this number."""
        return self._next == (sequence + 1) & _MASK

    def take(self, sequence: int, data: bytes, at: int, stop: int, missing: int, time: int) -> None:
        """Take the segment in data[at:stop], behind which `missing` bytes were not captured."""
        if sequence != self._next or self.waiting:
            self._take_another(sequence, data, at, stop, missing, time)
            return
        self._next = (sequence + stop - at + missing) & _MASK
        self.framer.feed(data, at, stop, time)
        if missing:
            self.framer.hole(missing, time)

    def acknowledged(self, number: int) -> None:
        """Learn that the other end has all before a number: what is missing was not captured."""
        while self.waiting and self._next is not None:
            if not 0 < (number - self._next) & _MASK < _HALF:
                break
            self._skip()

    def end(self) -> None:
        """Pass on what is left."""
        while self.waiting:
            self._skip()

    def _take_another(
        self, sequence: int, data: bytes, at: int, stop: int, missing: int, time: int
    ) -> None:
        if self._next is None:
            self._next = sequence
        ahead = (sequence - self._next) & _MASK
        if ahead >= _HALF:
            back = _MASK + 1 - ahead
            if back > _RESTART:
                self._restart(sequence, time)
                back = 0
            if back >= stop - at + missing:
                return
            missing -= max(0, back - (stop - at))
            at = min(stop, at + back)
            ahead = 0
        if not ahead:
            self._pass_on(data, at, stop, missing, time)
            self._release(time)
            return
        known = self.waiting.get(sequence)
        if known is None or len(known[1]) < stop - at:
            self.waiting[sequence] = (missing, data[at:stop], time)
            self._held_bytes += stop - at - (len(known[1]) if known else 0)
        while len(self.waiting) > MAX_HELD or self._held_bytes > MAX_HELD_BYTES:
            self._skip()

    def _pass_on(self, data: bytes, at: int, stop: int, missing: int, time: int) -> None:
        self._next = ((self._next or 0) + stop - at + missing) & _MASK
        self.framer.feed(data, at, stop, time)
        if missing:
            self.framer.hole(missing, time)

    def _first(self) -> tuple[int, int]:
        """Return the first segment that waits and how far ahead it is."""
        start = ((self._next or 0) - _HALF) & _MASK
        sequence = min(self.waiting, key=lambda number: (number - start) & _MASK)
        return sequence, ((sequence - start) & _MASK) - _HALF

    def _release(self, time: int) -> None:
        """Pass on what waited for what came at a time."""
        while self.waiting:
            sequence, ahead = self._first()
            if ahead > 0:
                break
            missing, data, _ = self._pop(sequence)
            back = -ahead
            if back < len(data) + missing:
                missing -= max(0, back - len(data))
                self._pass_on(data, min(back, len(data)), len(data), missing, time)

    def _skip(self) -> None:
        """Pass on the first segment that waits, and what follows it, behind a gap."""
        sequence, ahead = self._first()
        missing, data, time = self._pop(sequence)
        if ahead > 0:
            self.framer.hole(ahead, time)
        self._next = sequence
        self._pass_on(data, 0, len(data), missing, time)
        while self.waiting:
            sequence, ahead = self._first()
            if ahead > 0:
                break
            self._release(self.waiting[sequence][2])

    def _restart(self, sequence: int, time: int) -> None:
        self.waiting.clear()
        self._held_bytes = 0
        self._next = sequence
        self.framer.hole(0, time)

    def _pop(self, sequence: int) -> _Held:
        held = self.waiting.pop(sequence)
        self._held_bytes -= len(held[1])
        return held
