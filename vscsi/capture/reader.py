# SPDX-License-Identifier: MIT
"""Reading captures: a stream of pcapng blocks to messages, as far as it can be read."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from construct import Container

from vscsi.wire import pcapng
from vscsi.wire.errors import WireError
from vscsi.wire.pcapng import HEAD_SIZE, LITTLE, MAX_BLOCK, BlockType, Interface, Order
from vscsi.wire.record import parse_record

MAX_INTERFACES = 1 << 16
_PIECE = 1 << 16
_KNOWN = frozenset(BlockType)


@dataclass(frozen=True, slots=True)
class Captured:
    """One message, and when it passed where."""

    time_ns: int
    """Since 1970."""
    interface: int
    """Counts the rings of the whole file."""
    record: Container
    """A `vscsi.wire.record.Record`."""
    lost: int
    """Messages of this ring that were dropped since the one before."""


class CaptureReader:
    """The messages of a capture, from a stream that need not be seekable.

    Iterating raises WireError, which says where, when the file breaks or is not ours; what came
    before has been read. A packet that is no record of ours is skipped and counted. Neither a
    length nor a count in the file decides how much memory is used.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self.interfaces: list[Interface] = []
        self.skipped = 0
        self.first_skipped = ""
        """Why the first of them was skipped, and where it is."""
        self._stream = stream
        self._at = 0
        self._order = LITTLE
        self._first_of_section = 0
        self._dropped: list[int] = []

    @property
    def dropped(self) -> int:
        """Messages that the capture says are missing."""
        return sum(self._dropped)

    def __iter__(self) -> Iterator[Captured]:
        start = 0
        try:
            while (found := self._block()) is not None:
                kind, body = found
                if kind == BlockType.ENHANCED_PACKET:
                    captured = self._packet(body, start)
                    if captured is not None:
                        yield captured
                elif kind == BlockType.INTERFACE:
                    self._interface(body)
                elif kind == BlockType.STATISTICS:
                    number, dropped = pcapng.parse_statistics(self._order, body)
                    number = self._number(number)
                    self._dropped[number] = max(self._dropped[number], dropped)
                start = self._at
        except WireError as error:
            raise WireError(f"broken at byte {start}: {error}") from error

    def _block(self) -> tuple[int, bytes] | None:
        """Return the next block's type and body (empty for a type that is of no use), or None."""
        head = self._read(HEAD_SIZE, at_end=True)
        if not head:
            if not self._at:
                raise WireError("the file is empty")
            return None
        if int.from_bytes(head[:4], "little") == BlockType.SECTION:
            return self._section(head)
        if self._at == HEAD_SIZE:
            raise WireError("this is no pcapng file")
        kind, length = pcapng.parse_head(self._order, head)
        body = self._body(length - HEAD_SIZE, keep=kind in _KNOWN)
        self._check_end(self._order, length)
        return kind, body

    def _section(self, head: bytes) -> tuple[int, bytes]:
        magic = self._read(4)
        order = pcapng.section_order(head + magic)
        _, length = pcapng.parse_head(order, head)
        pcapng.parse_section(order, magic + self._body(length - HEAD_SIZE - 4, keep=True))
        self._check_end(order, length)
        self._order = order
        self._first_of_section = len(self.interfaces)
        return BlockType.SECTION, b""

    def _body(self, rest: int, *, keep: bool) -> bytes:
        """Read a body that has `rest` bytes with its second length."""
        size = rest - 4
        if keep:
            if size > MAX_BLOCK:
                raise WireError(f"a block of {size} bytes")
            return self._read(size)
        while size > 0:
            size -= len(self._read(min(size, _PIECE)))
        return b""

    def _check_end(self, order: Order, length: int) -> None:
        again = int.from_bytes(self._read(4), order.name)
        if again != length:
            raise WireError(f"a block's two lengths differ ({length} and {again})")

    def _read(self, size: int, *, at_end: bool = False) -> bytes:
        """Read exactly so many bytes; at_end: or none, where the file ends."""
        data = bytearray()
        while len(data) < size and (piece := self._stream.read(min(size - len(data), _PIECE))):
            data += piece
        self._at += len(data)
        if len(data) < size and (data or not at_end):
            raise WireError("the file ends in the middle of a block")
        return bytes(data)

    def _interface(self, body: bytes) -> None:
        interface = pcapng.parse_interface(self._order, body)
        if interface.link_type != pcapng.LINKTYPE_USER0:
            raise WireError(f"link type {interface.link_type}: not a capture of vscsi")
        if len(self.interfaces) >= MAX_INTERFACES:
            raise WireError(f"more than {MAX_INTERFACES} interfaces")
        self.interfaces.append(interface)
        self._dropped.append(0)

    def _number(self, in_section: int) -> int:
        """Return an interface's number in the file."""
        number = self._first_of_section + in_section
        if number >= len(self.interfaces):
            raise WireError(f"interface {in_section} is not described")
        return number

    def _packet(self, body: bytes, start: int) -> Captured | None:
        try:
            packet = pcapng.parse_packet(self._order, body)
            number = self._number(packet.interface)
            time_ns = self.interfaces[number].time_ns(packet.ticks)
            record = parse_record(packet.data)
        except WireError as error:
            self.skipped += 1
            self.first_skipped = self.first_skipped or f"at byte {start}: {error}"
            return None
        self._dropped[number] += packet.lost
        return Captured(time_ns, number, record, packet.lost)
