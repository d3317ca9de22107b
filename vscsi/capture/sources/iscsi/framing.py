# SPDX-License-Identifier: MIT
"""iSCSI PDUs in a stream of bytes that may have gaps, or begin anywhere.

Where a PDU ends is known from its header, if it is known which digests there are. Where that is
not known, or where the stream was lost, the next header is looked for: 16 bytes that any header
has in its way, whose PDU ends where the segment does or where another header begins, or whose
header digest is right.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from vscsi.capture.sources.iscsi.fields import unpacker
from vscsi.wire.crc32c import crc32c
from vscsi.wire.iscsi import (
    BHS_BYTES,
    DIGEST_BYTES,
    MAX_DATA_SEGMENT,
    PLAUSIBLE,
    Opcode,
    ScsiCommand,
)

Handler = Callable[[bytes, int, int, bytes, int], None]
"""Takes a PDU whose header is at a place in a buffer: buffer, place, bytes of additional header
segments behind, the first bytes of the data segment, time of the last byte."""

UNKNOWN = -1
_TRIED_BYTES = 1 << 16
"""Where so many bytes had no PDU in them, later ones are only looked for at a segment's begin."""
_HEAD_SEEN = 16
_OF_TARGET = 0x20
_PLAIN = frozenset({Opcode.LOGIN_REQUEST, Opcode.LOGIN_REQUEST | 0x40, Opcode.LOGIN_RESPONSE})
"""PDUs that never have digests: these are agreed on by them."""
_head = unpacker("opcode lengths", ScsiCommand)
_match = PLAUSIBLE.match
_find = PLAUSIBLE.search


class Owner(Protocol):
    """The connection, as its framers see it."""

    header_digest: int
    """Bytes, or UNKNOWN; of both ways."""
    data_digest: int
    handlers: Sequence[tuple[int, Handler]]
    """By opcode: how many bytes of the data segment are wanted, and who takes the PDU."""

    def started(self, framer: "Framer") -> None:
        """Learn that PDUs were found."""

    def interrupted(self, framer: "Framer", missing: int) -> None:
        """Learn that PDUs are missing; missing: bytes of a gap, 0 for bytes that are no PDU."""


class Framer:
    """Finds the PDUs of one way of a connection and hands each to its handler once."""

    __slots__ = (
        "_after_data",
        "_head",
        "_left",
        "_payload",
        "_pdu",
        "_searched",
        "_synchronous",
        "_tail",
        "_wanted",
        "of_target",
        "owner",
        "started",
    )

    def __init__(self, owner: Owner) -> None:
        self.owner = owner
        self.started = False
        self.of_target = False
        """Whether the PDUs are a target's; known once it has started."""
        self._synchronous = False
        self._searched = 0
        self._tail = b""
        self._after_data = False
        """The PDU before had data, so that its data digest may come."""
        self._head = b""
        """What there is of a header that goes on in the next segment."""
        self._pdu = b""
        """The header of the PDU under way, of which `_left` bytes are to come."""
        self._left = 0
        self._wanted = 0
        self._payload = b""

    def begin(self) -> None:
        """The next byte is the first of the connection."""
        self._synchronous = True
        self.owner.header_digest = self.owner.data_digest = 0

    def feed(self, data: bytes, at: int, stop: int, time: int) -> None:
        """Take the bytes data[at:stop], which came at a time."""
        if self._left:
            at = self._go_on(data, at, stop, time)
        owner = self.owner
        while at < stop:
            if not self._synchronous:
                at = self._search(data, at, stop, time)
                continue
            header, data_digest = owner.header_digest, owner.data_digest
            if stop - at < BHS_BYTES or self._head or not self.started or header | data_digest < 0:
                at = self._slowly(data, at, stop, time)
                continue
            if _match(data, at) is None:
                self._lose(0)
                continue
            opcode, lengths = _head(data, at)
            ahs = lengths >> 22 & 0x3FC
            size = lengths & MAX_DATA_SEGMENT
            payload = at + BHS_BYTES + ahs + header
            end = payload + (size + 3 & ~3) + data_digest if size else payload
            if end > stop:
                at = self._slowly(data, at, stop, time)
                continue
            wanted, handler = owner.handlers[opcode & 0x3F]
            handler(data, at, ahs, data[payload : payload + min(size, wanted)], time)
            at = end

    def hole(self, size: int, time: int) -> None:
        """Learn that `size` bytes are missing here; 0: an unknown number of them."""
        if size and size <= self._left:
            self._wanted = 0
            self._left -= size
            if not self._left:
                self._deliver(time)
            return
        if self._left:
            self._left = 0
            if size:
                self._deliver(time)
        if self._synchronous:
            self._lose(size or 1)
        self._tail = b""

    def _lose(self, missing: int) -> None:
        self._synchronous = False
        self._head = b""
        self._after_data = False
        if self.started:
            self.owner.interrupted(self, missing)

    def _slowly(self, data: bytes, at: int, stop: int, time: int) -> int:
        """Begin a PDU whose header or data go on elsewhere, or whose digests are to be found out.

        Returns up to where the bytes are used.
        """
        head = self._head
        if not head and self._after_data:
            at = self._learn_data_digest(data, at, stop)
        need = BHS_BYTES
        if len(head) < need:
            step = min(need - len(head), stop - at)
            head += data[at : at + step]
            at += step
        if len(head) >= _HEAD_SEEN and _match(head) is None:
            self._lose(0)
            self._tail = head
            return at
        if len(head) >= need:
            need += head[4] << 2
            step = min(max(0, need - len(head)), stop - at)
            head += data[at : at + step]
            at += step
        if len(head) >= need:
            digest = self._header_digest(head, data, at, stop)
            need += digest
            step = min(need - len(head), stop - at)
            head += data[at : at + step]
            at += step
        self._head = head
        return at if len(head) < need else self._begin_pdu(data, at, stop, time)

    def _header_digest(self, head: bytes, data: bytes, at: int, stop: int) -> int:
        """Return the size of the header digest, found out by trying where it is not known."""
        owner = self.owner
        if head[0] in _PLAIN:
            return 0
        if owner.header_digest < 0:
            right = data[at : min(at + DIGEST_BYTES, stop)] == crc32c(head)
            owner.header_digest = DIGEST_BYTES if right else 0
        return owner.header_digest

    def _learn_data_digest(self, data: bytes, at: int, stop: int) -> int:
        """Find out whether there is a digest behind the data that ended; returns where it ends."""
        self._after_data = False
        if self.owner.data_digest >= 0:
            return at
        if _match(data, at, stop) is not None:
            self.owner.data_digest = 0
        elif stop - at == DIGEST_BYTES or _match(data, at + DIGEST_BYTES, stop) is not None:
            self.owner.data_digest = DIGEST_BYTES
            return at + DIGEST_BYTES
        return at

    def _begin_pdu(self, data: bytes, at: int, stop: int, time: int) -> int:
        head, self._head = self._head, b""
        owner = self.owner
        if not self.started:
            self.started = True
            self.of_target = bool(head[0] & _OF_TARGET)
            owner.started(self)
        size = int.from_bytes(head[5:8], "big")
        self._pdu = head
        self._wanted = min(size, owner.handlers[head[0] & 0x3F][0])
        self._left = size + 3 & ~3
        if size and head[0] not in _PLAIN:
            self._after_data = owner.data_digest < 0
            self._left += max(0, owner.data_digest)
        if self._left:
            return self._go_on(data, at, stop, time)
        self._deliver(time)
        return at

    def _go_on(self, data: bytes, at: int, stop: int, time: int) -> int:
        """Take what belongs to the PDU under way; returns where that ends."""
        step = min(self._left, stop - at)
        if self._wanted:
            piece = data[at : at + min(self._wanted, step)]
            self._payload += piece
            self._wanted -= len(piece)
        self._left -= step
        if not self._left:
            self._deliver(time)
        return at + step

    def _deliver(self, time: int) -> None:
        payload, self._payload = self._payload, b""
        head, self._pdu = self._pdu, b""
        self.owner.handlers[head[0] & 0x3F][1](head, 0, head[4] << 2, payload, time)

    def _search(self, data: bytes, at: int, stop: int, time: int) -> int:
        """Look for a header; returns where it begins, or up to where the bytes are used."""
        if not self._tail:
            place = self._header_in(data, at, stop, at)
            return stop if place < 0 else place
        begin = len(self._tail)
        data = self._tail + data[at:stop]
        self._tail = b""
        place = self._header_in(data, 0, len(data), begin)
        if place >= 0:
            self.feed(data, place, len(data), time)
        return stop

    def _header_in(self, data: bytes, at: int, stop: int, begin: int) -> int:
        """Return where a header begins, or -1. begin: where the segment does."""
        everywhere = self.started or self._searched < _TRIED_BYTES
        self._searched += stop - at
        place = at if everywhere else begin
        while True:
            found = _find(data, place, stop) if everywhere else _match(data, place, stop)
            if found is None:
                if everywhere:
                    self._tail = data[max(place, stop - _HEAD_SEEN + 1) : stop]
                return -1
            place = found.start()
            if stop - place < BHS_BYTES:
                self._tail = data[place:stop]
                return -1
            if self._confirmed(data, place, stop, place == begin):
                self._synchronous = True
                return place
            if not everywhere:
                return -1
            place += 1

    def _confirmed(self, data: bytes, at: int, stop: int, begins: bool) -> bool:
        """Return whether a header is one by what follows it. begins: a segment begins with it."""
        owner = self.owner
        lengths = int.from_bytes(data[at + 4 : at + 8], "big")
        end = at + BHS_BYTES + (lengths >> 22 & 0x3FC)
        size = lengths & MAX_DATA_SEGMENT
        plain = data[at] in _PLAIN
        if owner.header_digest and not plain and end + DIGEST_BYTES <= stop:
            if data[end : end + DIGEST_BYTES] == crc32c(data[at:end]):
                return True
            if owner.header_digest > 0:
                return False
        if not plain:
            end += max(0, owner.header_digest)
        end += size + 3 & ~3
        tries: tuple[int, ...] = (0,)
        if size and not plain:
            tries = (0, DIGEST_BYTES) if owner.data_digest < 0 else (owner.data_digest,)
        for more in tries:
            after = end + more
            if after == stop or (after > stop and begins):
                return True
            if after + _HEAD_SEEN <= stop and _match(data, after, stop) is not None:
                return True
        return False
