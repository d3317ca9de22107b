# SPDX-License-Identifier: MIT
"""Reading captures: a stream of pcapng blocks to messages, as far as it can be read."""

import io
import os
import select
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any

from construct import Container

from vscsi.capture.packed import place
from vscsi.wire import pcapng
from vscsi.wire.errors import WireError
from vscsi.wire.pcapng import HEAD_SIZE, LITTLE, MAX_BLOCK, BlockType, Interface, Order
from vscsi.wire.record import parse_record

MAX_INTERFACES = 1 << 16
MAX_DESCRIPTIONS = 16 << 20
"""Characters of all interfaces' names and descriptions."""
MAX_TIME_NS = 1 << 62
"""Either side of 1970, so that differences of times are 64-bit numbers."""
RUN_BYTES = 4 << 20
"""Of packets that are given out as one run, about."""
_PIECE = 1 << 16
_KNOWN = frozenset(BlockType)
_WORD = 4


class NoCapture(WireError):
    """A file of which nothing is ours."""


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


@dataclass(frozen=True, slots=True)
class Run:
    """Packet blocks that follow each other in one little-endian section, not looked into yet."""

    data: bytes
    starts: Any
    """Of the blocks in `data`, as `Packets` found them. Their two lengths agree."""
    position: int
    """Of `data` in the stream."""
    first_interface: int
    """The number in the file of the section's interface 0."""


Packets = Callable[[bytes], tuple[Any, int]]
"""Finds the whole packet blocks that a piece begins with: an array of where they begin, and where
the last one ends.

The piece begins with a block of a little-endian section.
"""


class CaptureReader:
    """The messages of a capture, from a stream that need not be seekable.

    Iterating, over messages or `runs`, raises WireError, which says where, when the file breaks or
    is not ours; what came before has been read. A packet that is no record of ours is skipped and
    counted. Neither a length nor a count in the file decides how much memory is used.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self.interfaces: list[Interface] = []
        self.skipped = 0
        self.first_skipped = ""
        """Why the first of them was skipped, and where it is."""
        self._stream = stream
        self._more: Callable[[int], bytes | None] = getattr(stream, "read1", stream.read)
        self._ready = _readiness(stream)
        self._ahead = b""
        """What has been read but not taken, from"""
        self._ahead_at = 0
        self._failure: Exception | None = None
        """What the stream said behind that."""
        self._at = 0
        self._order = LITTLE
        self._first_of_section = 0
        self._dropped: list[int] = []
        self._described = 0

    @property
    def dropped(self) -> int:
        """Messages that the capture says are missing."""
        return sum(self._dropped)

    def __iter__(self) -> Iterator[Captured]:
        more = True
        while more:
            more, captured = self._next()
            if captured is not None:
                yield captured

    def runs(self, packets: Packets) -> Iterator[Run | Captured | None]:
        """Yield the same messages, but most of them in runs, for who can look at many at a time.

        What is in a run is not counted in `dropped` and `skipped`: `message` does that. Does not
        wait for more than one message where the stream has nothing for now; yields None where a
        read of the stream returns that, as a raw one does that was told not to wait.
        """
        more = True
        while more:
            if self._order is LITTLE and self._at:
                nothing = self._fill(RUN_BYTES)
                if (run := self._run(packets)) is not None or nothing:
                    yield run
                    continue
            more, captured = self._next()
            if captured is not None:
                yield captured

    def message(self, run: Run, start: int) -> Captured | None:
        """Return the message of the block of a run that starts there; None if it is skipped."""
        length = int.from_bytes(run.data[start + _WORD : start + HEAD_SIZE], "little")
        body = run.data[start + HEAD_SIZE : start + length - _WORD]
        return self._packet(body, run.position + start, run.first_interface)

    def _run(self, packets: Packets) -> Run | None:
        """Take the packets that have been read ahead and are whole."""
        data = self._ahead[self._ahead_at :]
        starts, end = packets(data)
        if not end:
            return None
        position = self._at
        self._ahead_at += end
        self._at += end
        return Run(data, starts, position, self._first_of_section)

    def _next(self) -> tuple[bool, Captured | None]:
        """Take a block; return whether there was one, and its message if it has one."""
        start = self._at
        captured = None
        try:
            found = self._block()
            if found is None:
                return False, None
            kind, body = found
            if kind == BlockType.ENHANCED_PACKET:
                captured = self._packet(body, start, self._first_of_section)
            elif kind == BlockType.INTERFACE:
                self._interface(body)
            elif kind == BlockType.STATISTICS:
                told = pcapng.parse_statistics(self._order, body)
                number = self._number(told.interface, self._first_of_section)
                self._dropped[number] = max(self._dropped[number], told.dropped)
        except NoCapture:
            raise
        except (WireError, EOFError) as error:  # EOFError: a broken gzip file
            if self._at < HEAD_SIZE:
                raise NoCapture(str(error)) from error
            raise WireError(f"broken {place(self._stream, start)}: {error}") from error
        return True, captured

    def _block(self) -> tuple[int, bytes] | None:
        """Return the next block's type and body (empty for a type that is of no use), or None."""
        head = self._read(HEAD_SIZE, at_end=True)
        if not head:
            if not self._at:
                raise NoCapture("the file is empty")
            return None
        if int.from_bytes(head[:4], "little") == BlockType.SECTION:
            return self._section(head)
        if self._at == HEAD_SIZE:
            raise NoCapture("this is no pcapng file")
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
        while len(self._ahead) - self._ahead_at < size and self._read_ahead():
            pass
        data = self._ahead[self._ahead_at : self._ahead_at + size]
        self._ahead_at += len(data)
        self._at += len(data)
        if len(data) < size and (data or not at_end):
            raise WireError("the file ends in the middle of a block")
        return data

    def _read_ahead(self, size: int = _PIECE) -> bool:
        """Read what comes next, of at most so many bytes; False at the end."""
        if self._failure is not None:
            raise self._failure
        while (piece := self._more(size)) is None:
            pass
        self._ahead = self._ahead[self._ahead_at :] + piece
        self._ahead_at = 0
        return bool(piece)

    def _fill(self, size: int) -> bool:
        """Read ahead so many bytes, but wait for the first alone; True if there is none for now."""
        pieces = [self._ahead[self._ahead_at :]]
        waiting, nothing = len(pieces[0]), False
        while waiting < size and self._failure is None and (not waiting or self._ready()):
            try:
                piece = self._more(size - waiting)
            except (OSError, EOFError) as error:  # told when its turn comes
                self._failure = error
                break
            if not piece:
                nothing = piece is None
                break
            pieces.append(piece)
            waiting += len(piece)
        self._ahead, self._ahead_at = b"".join(pieces), 0
        return nothing and not waiting

    def _interface(self, body: bytes) -> None:
        interface = pcapng.parse_interface(self._order, body)
        if interface.link_type != pcapng.LINKTYPE_USER0:
            words = f"link type {interface.link_type}: not a capture of vscsi"
            raise WireError(words) if self.interfaces else NoCapture(words)
        if len(self.interfaces) >= MAX_INTERFACES:
            raise WireError(f"more than {MAX_INTERFACES} interfaces")
        self._described += len(interface.name) + len(interface.description)
        if self._described > MAX_DESCRIPTIONS:
            raise WireError(f"more than {MAX_DESCRIPTIONS} characters describe interfaces")
        self.interfaces.append(interface)
        self._dropped.append(0)

    def _number(self, in_section: int, first: int) -> int:
        """Return an interface's number in the file, of a section whose interfaces begin there."""
        number = first + in_section
        if number >= len(self.interfaces):
            raise WireError(f"interface {in_section} is not described")
        return number

    def _packet(self, body: bytes, start: int, first_interface: int) -> Captured | None:
        try:
            packet = pcapng.parse_packet(self._order, body)
            number = self._number(packet.interface, first_interface)
            time_ns = self.interfaces[number].time_ns(packet.ticks)
            if abs(time_ns) >= MAX_TIME_NS:
                raise WireError(f"packet block: its time is {time_ns} ns")
            record = parse_record(packet.data)
        except WireError as error:
            self.skipped += 1
            self.first_skipped = self.first_skipped or f"{place(self._stream, start)}: {error}"
            return None
        self._dropped[number] += packet.lost
        return Captured(time_ns, number, record, packet.lost)


def _readiness(stream: IO[bytes]) -> Callable[[], bool]:
    """Return what tells whether a stream has something now: files always have."""
    try:
        descriptor = stream.fileno()
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return lambda: True
    except (OSError, io.UnsupportedOperation, AttributeError):
        return lambda: True
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return lambda: bool(poll.poll(0))
