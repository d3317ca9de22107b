# SPDX-License-Identifier: MIT
"""Requests joined with their answers: one `Exchange` each."""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from vscsi.capture.decode import Answer, Kind, Request, decode
from vscsi.capture.reader import Captured
from vscsi.target.base import Function
from vscsi.wire.record import Protocol, Way

MAX_OPEN = 1 << 16
"""Requests that wait for an answer; beyond that the oldest is given up."""

_OF_A_UNIT = (Function.ABORT_TASK_SET, Function.CLEAR_TASK_SET, Function.LOGICAL_UNIT_RESET)

_TASKS = (Kind.COMMAND, Kind.MANAGEMENT)

_Key = tuple[int, Kind, int | None]


@dataclass(slots=True)
class Exchange:
    """A request and what came of it; either may be missing."""

    captured: Captured
    """The request's; the answer's, where the request was not captured."""
    request: Request | None
    answer: Answer | None = None
    latency_ns: int | None = None
    fate: str = ""
    """Why there will be no answer, if that is known."""
    serial: int = 0
    """Counts the requests that wait for an answer."""

    @property
    def kind(self) -> Kind:
        """What it is about."""
        side = self.request or self.answer
        return side.kind if side is not None else Kind.MALFORMED

    @property
    def moved(self) -> int | None:
        """Bytes that a command moved, if that is known."""
        request, answer = self.request, self.answer
        if request is None or request.kind is not Kind.COMMAND or answer is None:
            return None
        if answer.failed:
            return 0
        return max(0, request.data_out + request.data_in - max(0, answer.residual))


@dataclass(slots=True)
class Ring:
    """What a ring has open, and how far its requests have come."""

    last_index: int | None = None
    """The ring index of the last message to the target."""
    open: dict[int, Exchange] = field(default_factory=dict)
    """By serial number, so from the oldest on."""


class Exchanges:
    """Joins messages, given in the order of the capture.

    An answer belongs to the oldest open request of its ring with its tag. Where an answer can't
    come any more (an abort that was confirmed, a new connection, messages that were dropped),
    the request does not wait, so that a tag's next use is not taken for it. Memory is bounded.
    """

    def __init__(self) -> None:
        self.newest: Exchange | None = None
        """What the last message that was added has begun, if it waits for an answer."""
        self._rings: dict[int, Ring] = {}
        self._by_key: dict[_Key, deque[int]] = {}
        self._open: dict[int, int] = {}
        """The ring of each open serial number, from the oldest on."""
        self._serial = 0

    def add(self, captured: Captured) -> Iterator[Exchange]:
        """Take a message; yields what came to an end by it."""
        record = captured.record
        ring = self.ring(captured.interface)
        self.newest = None
        message = decode(record)
        if captured.lost:
            yield from self._give_up(ring, "messages were dropped")
        if record.direction == Way.TO_TARGET:
            if self._restarted(ring, record.ring_index):
                yield from self._give_up(ring, "the ring was connected anew")
            ring.last_index = record.ring_index
        if isinstance(message, Answer):
            exchange = self._join(captured, message)
            yield from self._aborted(ring, exchange)
            yield exchange
            return
        if message.kind in (Kind.LOGIN, Kind.LOGOUT):
            yield from self._give_up(ring, message.kind.value, lambda other: other.kind in _TASKS)
        exchange = Exchange(captured, message)
        if not message.answered:
            yield exchange
            return
        if len(self._open) >= MAX_OPEN:
            serial, interface = next(iter(self._open.items()))
            yield self._close(self._rings[interface], serial, "no answer for too long")
        self.newest = self.resume(exchange)

    def ring(self, interface: int) -> Ring:
        """Return what is kept of a ring; from then on it is."""
        return self._rings.setdefault(interface, Ring())

    def resume(self, exchange: Exchange) -> Exchange:
        """Have a request wait for its answer, as the newest of all."""
        interface = exchange.captured.interface
        self._serial += 1
        exchange.serial = self._serial
        self._open[self._serial] = interface
        self.ring(interface).open[self._serial] = exchange
        self._by_key.setdefault(_key(exchange), deque()).append(self._serial)
        return exchange

    def rest(self) -> Iterator[Exchange]:
        """Yield what is still open, oldest first."""
        for serial, interface in list(self._open.items()):
            yield self._close(self._rings[interface], serial, "")

    def _join(self, captured: Captured, answer: Answer) -> Exchange:
        serials = self._by_key.get((captured.interface, answer.kind, answer.tag))
        if not serials:
            return Exchange(captured, None, answer)
        exchange = self._close(self._rings[captured.interface], serials[0], "")
        exchange.answer = answer
        exchange.latency_ns = captured.time_ns - exchange.captured.time_ns
        return exchange

    def _close(self, ring: Ring, serial: int, fate: str) -> Exchange:
        exchange = ring.open.pop(serial)
        del self._open[serial]
        key = _key(exchange)
        serials = self._by_key[key]
        serials.remove(serial)
        if not serials:
            del self._by_key[key]
        exchange.fate = fate
        return exchange

    def _give_up(
        self, ring: Ring, fate: str, which: Callable[[Exchange], bool] = lambda _: True
    ) -> Iterator[Exchange]:
        """Close the open requests that are meant."""
        for serial in [number for number, exchange in ring.open.items() if which(exchange)]:
            yield self._close(ring, serial, fate)

    def _aborted(self, ring: Ring, management: Exchange) -> Iterator[Exchange]:
        """Close what a task management function aborted: SRP answers none of it.

        vscsiif does, so that the frontend has its rqid back.
        """
        asked, answer = management.request, management.answer
        if asked is None or asked.kind is not Kind.MANAGEMENT or answer is None or answer.failed:
            return
        if management.captured.record.protocol != Protocol.SRP:
            return

        def meant(other: Exchange) -> bool:
            request = other.request
            if request is None or request.kind is not Kind.COMMAND:
                return False
            if other.captured.time_ns > management.captured.time_ns:
                return False
            if asked.function == Function.ABORT_TASK:
                return request.tag == asked.managed_tag
            return asked.function in _OF_A_UNIT and request.lun == asked.lun

        yield from self._give_up(ring, "aborted", meant)

    @staticmethod
    def _restarted(ring: Ring, index: int) -> bool:
        """Whether a request's ring index does not go on, modulo 2^32, as in a new connection."""
        last = ring.last_index
        return last is not None and (index - last - 1) & 0xFFFF_FFFF >= 1 << 31


def _key(exchange: Exchange) -> _Key:
    """What an answer is found by: those to commands and task management look alike."""
    request = exchange.request
    kind = exchange.kind
    return (
        exchange.captured.interface,
        Kind.COMMAND if kind is Kind.MANAGEMENT else kind,
        request.tag if request is not None else None,
    )
