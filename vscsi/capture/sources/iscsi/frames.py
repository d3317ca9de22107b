# SPDX-License-Identifier: MIT
"""Frames of pcap and pcapng files, of either byte order and any time resolution.

A frame is (time_ns, link type, buffer, start, end, original length): its bytes are
buffer[start:end], the buffer is this module's and nothing is copied for a frame.
"""

import struct
from collections.abc import Iterator
from contextlib import suppress
from io import BytesIO

from vscsi.capture.sources.base import Reading
from vscsi.capture.sources.complete import MAX_TIME_NS
from vscsi.wire import pcapng
from vscsi.wire.errors import WireError
from vscsi.wire.formats import parse
from vscsi.wire.network import PCAP_HEADS, PCAP_MAGICS, PCAP_RECORDS, LinkType
from vscsi.wire.pcapng import HEAD_SIZE, MIN_BLOCK, BlockType, Interface, Order

Frame = tuple[int, int, bytes, int, int, int]

MAX_FRAME = 1 << 20
"""Bytes; a frame, or a block that is of use, is never longer."""
MAX_INTERFACES = 1 << 12
_PIECE = 1 << 20
_NS_PER_S = 10**9
_COUNT_BYTES = 8
_SIMPLE_PACKET, _OLD_PACKET = 3, 2
_LINKS = frozenset(LinkType)
_PCAP_HEAD = PCAP_HEADS["little"].sizeof()


def recognise(head: bytes) -> bool:
    """Return whether a file begins as a capture of network packets."""
    if _pcap_order(head) is not None:
        return True
    if int.from_bytes(head[:4], "little") != BlockType.SECTION:
        return False
    reader = _Pcapng(_Input(iter(()), head), Reading("", BytesIO()))
    with suppress(WireError):  # what comes behind the head is missing
        next(reader.frames(), None)
    return reader.order is not None and (not reader.links or reader.links[0] in _LINKS)


def frames(reading: Reading) -> Iterator[Frame]:
    """Yield the frames of a file as far as it can be read; its troubles say what could not."""
    source = _Input(reading.chunks(_PIECE), b"")
    try:
        source.fill(_PCAP_HEAD)
        if _pcap_order(source.data) is not None:
            yield from _pcap(source)
        else:
            yield from _Pcapng(source, reading).frames()
    except WireError as error:
        reading.broke(f"broken {reading.place(source.offset)}: {error}")


class _Input:
    """A stream with what has been read of it ahead: `data`, used up to `at`."""

    def __init__(self, chunks: Iterator[bytes], data: bytes) -> None:
        self.data = data
        self.at = 0
        self._chunks = chunks
        self._before = 0

    @property
    def offset(self) -> int:
        """Return how many bytes have been used."""
        return self._before + self.at

    def fill(self, size: int) -> bool:
        """Have `size` unused bytes; False where the stream ends before."""
        while len(self.data) - self.at < size:
            piece = next(self._chunks, b"")
            if not piece:
                return False
            self._before += self.at
            self.data = self.data[self.at :] + piece
            self.at = 0
        return True

    def skip(self, size: int) -> bool:
        """Use up `size` bytes without having them all; False where the stream ends before."""
        while size > 0:
            if not self.fill(1):
                return False
            step = min(size, len(self.data) - self.at)
            self.at += step
            size -= step
        return True

    @property
    def rest(self) -> int:
        """Return how many bytes are read but not used."""
        return len(self.data) - self.at


def _pcap_order(head: bytes) -> str | None:
    for order, form in PCAP_HEADS.items():
        size = form.sizeof()
        if len(head) >= size and parse(form, head[:size], "pcap").magic in PCAP_MAGICS:
            return order
    return None


def _pcap(source: _Input) -> Iterator[Frame]:
    order = _pcap_order(source.data) or ""
    head = parse(PCAP_HEADS[order], source.data[:_PCAP_HEAD], "pcap header")
    link = head.link_type & 0xFFFF  # above: whether frames have checksums
    if link not in _LINKS:
        raise WireError(f"link type {link}: no packets with IP")
    source.at = _PCAP_HEAD
    unit = PCAP_MAGICS[head.magic]
    form = PCAP_RECORDS[order]
    unpack = struct.Struct(form.order + form.code).unpack_from
    size = form.sizeof()
    while source.fill(size):
        data, at, end = source.data, source.at, len(source.data)
        while at + size <= end:
            seconds, fraction, captured, original = unpack(data, at)
            after = at + size + captured
            if after > end:
                break
            source.at = after
            yield seconds * _NS_PER_S + fraction * unit, link, data, at + size, after, original
            at = after
        else:
            continue
        if captured > MAX_FRAME:
            raise WireError(f"a frame of {captured} bytes")
        if not source.fill(size + captured):
            raise WireError("the file ends in the middle of a frame")
    if source.rest:
        raise WireError("the file ends in the middle of a frame")


class _Pcapng:
    """The frames of a pcapng file."""

    def __init__(self, source: _Input, reading: Reading) -> None:
        self.links: list[int] = []
        self._source = source
        self._reading = reading
        self.order: Order | None = None
        self._first_of_section = 0
        self._clocks: list[tuple[int, int, int]] = []
        self._dropped: list[int] = []

    def frames(self) -> Iterator[Frame]:
        """Yield the frames; raises WireError where the file breaks."""
        source = self._source
        while source.fill(HEAD_SIZE):
            if self._is_section():
                self._begin_section()
                continue
            if self.order is None:
                raise WireError("no pcap or pcapng file")
            kind, length = pcapng.parse_head(self.order, source.data[source.at :][:HEAD_SIZE])
            if kind == BlockType.ENHANCED_PACKET:
                if not source.fill(HEAD_SIZE + self.order.packet.sizeof()):
                    break
                yield from self._packets(self.order)
                continue
            if kind not in (BlockType.INTERFACE, BlockType.STATISTICS):
                if kind in (_SIMPLE_PACKET, _OLD_PACKET):
                    self._skip("a packet block without a time, or of an obsolete kind")
                if not source.skip(length):
                    raise WireError("the file ends in the middle of a block")
                continue
            body = self._body(length)
            if kind == BlockType.INTERFACE:
                self._interface(pcapng.parse_interface(self.order, body))
            else:
                told = pcapng.parse_statistics(self.order, body)
                self._count_dropped(told.interface, told.dropped)
        if source.rest:
            raise WireError("the file ends in the middle of a block")

    def _is_section(self) -> bool:
        data, at = self._source.data, self._source.at
        return int.from_bytes(data[at : at + 4], "little") == BlockType.SECTION

    def _begin_section(self) -> None:
        source = self._source
        source.fill(MIN_BLOCK)
        head = source.data[source.at : source.at + MIN_BLOCK]
        self.order = pcapng.section_order(head)
        _, length = pcapng.parse_head(self.order, head[:HEAD_SIZE])
        pcapng.parse_section(self.order, self._body(length))
        self._first_of_section = len(self.links)

    def _body(self, length: int) -> bytes:
        """Use up a block; returns what is between its two lengths."""
        source = self._source
        if length > MAX_FRAME:
            raise WireError(f"a block of {length} bytes")
        if not source.fill(length):
            raise WireError("the file ends in the middle of a block")
        body = source.data[source.at + HEAD_SIZE : source.at + length - 4]
        source.at += length
        return body

    def _packets(self, order: Order) -> Iterator[Frame]:
        """Yield the frames of the packet blocks that follow one another."""
        source = self._source
        head, packet = order.head, order.packet
        unpack = struct.Struct(head.order + head.code + packet.code).unpack_from
        size = HEAD_SIZE + packet.sizeof()
        first, links, clocks = self._first_of_section, self.links, self._clocks
        while source.fill(size):
            data, at, end = source.data, source.at, len(source.data)
            while at + size <= end:
                kind, length, number, high, low, captured, original = unpack(data, at)
                if kind != BlockType.ENHANCED_PACKET:
                    return
                after = at + length
                if after > end or length < size + 4 or length & 3:
                    break
                source.at = after
                start, number = at + size, first + number
                at = after
                if captured > length - size - 4 or number >= len(links):
                    self._skip("a packet longer than its block, or of no interface")
                    continue
                if length - size - captured > 7:  # more than padding and length: options
                    options = data[start + captured + -captured % 4 : after - 4]
                    self._reading.troubles.dropped += _dropped_before(order, options)
                unit, per_s, offset = clocks[number]
                ticks = high << 32 | low
                time_ns = (ticks * unit if unit else ticks * _NS_PER_S // per_s) + offset
                if not 0 <= time_ns < MAX_TIME_NS:
                    self._skip("a packet of a time that cannot be")
                    continue
                yield time_ns, links[number], data, start, start + captured, original
            else:
                continue
            if length < size + 4 or length & 3 or length > MAX_FRAME:
                raise WireError(f"a packet block of {length} bytes")
            if not source.fill(length):
                raise WireError("the file ends in the middle of a block")

    def _interface(self, interface: Interface) -> None:
        if len(self.links) >= MAX_INTERFACES:
            raise WireError(f"more than {MAX_INTERFACES} interfaces")
        unit, rest = divmod(_NS_PER_S, interface.ticks_per_s)
        offset = interface.offset_s * _NS_PER_S
        self.links.append(interface.link_type)
        self._clocks.append((0 if rest else unit, interface.ticks_per_s, offset))
        self._dropped.append(0)

    def _count_dropped(self, number: int, dropped: int) -> None:
        number += self._first_of_section
        if number < len(self._dropped):
            self._reading.troubles.dropped += max(0, dropped - self._dropped[number])
            self._dropped[number] = max(dropped, self._dropped[number])

    def _skip(self, why: str) -> None:
        self._reading.skip(f"{self._reading.place(self._source.offset)}: {why}")


def _dropped_before(order: Order, options: bytes) -> int:
    """Return the packets that were lost before one, by its options."""
    at, size = 0, order.option.sizeof()
    unpack = struct.Struct(order.option.order + order.option.code).unpack_from
    while at + size <= len(options):
        code, length = unpack(options, at)
        if code == pcapng.EPB_DROPCOUNT and length == _COUNT_BYTES:
            return int.from_bytes(options[at + size :][:length], order.name)
        if code == pcapng.END_OF_OPTIONS:
            break
        at += size + length + -length % 4
    return 0
