# SPDX-License-Identifier: MIT
"""A capture over several files, each of which can be read alone."""

import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from vscsi.wire import pcapng
from vscsi.wire.errors import WireError
from vscsi.wire.pcapng import HEAD_SIZE, LITTLE, BlockType

_PACKET = struct.Struct(LITTLE.packet.order + LITTLE.packet.code)
_HEAD_OF_PACKET = HEAD_SIZE + _PACKET.size


@dataclass(frozen=True, slots=True)
class Limits:
    """When a file is full, and how many files there are."""

    max_bytes: int | None = None
    """Of a file; one that has a message may be longer by the statistics at its end."""
    period_ns: int | None = None
    """From a file's first message on, by the messages' own times."""
    keep: int | None = None
    """Files that stay; the oldest are deleted. None: all."""

    def __bool__(self) -> bool:
        return self.max_bytes is not None or self.period_ns is not None


@dataclass(slots=True)
class _Counts:
    """Of one interface."""

    received: int = 0
    dropped: int = 0


@dataclass(slots=True)
class Rotation:
    """Takes a stream of whole pcapng blocks, little-endian, of one section, and splits it.

    Every file has the section's block, the interfaces that were described so far, and statistics
    of what is in it. The n-th of FILE.pcapng is FILE-00001.pcapng and so on.
    """

    path: Path
    limits: Limits
    open: Callable[[Path], IO[bytes]] = lambda path: path.open("wb")
    files: int = 0
    """Opened so far."""
    _file: IO[bytes] | None = None
    _head: bytes = b""
    """The section's block and the interfaces'."""
    _described: int = 0
    """Bytes of that which the file has."""
    _bytes: int = 0
    _first_ns: int | None = None
    _last_ns: int = 0
    _counts: dict[int, _Counts] = field(default_factory=dict)
    _told: dict[int, int] = field(default_factory=dict)
    """Dropped messages by interface that the files say."""
    _kept: deque[Path] = field(default_factory=deque)

    def write(self, data: bytes) -> None:
        """Write whole blocks. Raises OSError as the files do, WireError if these are none."""
        for kind, begin, end in pcapng.split(data):
            block = data[begin:end]
            if kind == BlockType.ENHANCED_PACKET and len(block) < _HEAD_OF_PACKET + 4:
                raise WireError(f"a packet block of {len(block)} bytes")
            if kind == BlockType.ENHANCED_PACKET:
                self._packet(block)
            elif kind == BlockType.STATISTICS:
                self._statistics(block)
            else:
                self._head += block

    def flush(self) -> None:
        """Have the file say what was written."""
        if self._file is not None:
            self._file.flush()

    def close(self) -> None:
        """End the last file; there is one even if nothing came."""
        if self._file is None:
            self._begin()
        self._describe()
        self._end()

    def _packet(self, block: bytes) -> None:
        number, high, low, captured, _ = _PACKET.unpack_from(block, HEAD_SIZE)
        time_ns, lost = high << 32 | low, 0
        if len(block) > _HEAD_OF_PACKET + captured + -captured % 4 + 4:  # it has options
            lost = pcapng.parse_packet(LITTLE, block[HEAD_SIZE:-4]).lost
        more = len(self._head) - self._described + len(block)
        if self._file is None or self._is_full(more, time_ns):
            self._end()
            self._begin()
        self._describe()
        if self._first_ns is None:
            self._first_ns = time_ns
        self._last_ns = time_ns
        self._put(block)
        counts = self._counts.setdefault(number, _Counts())
        counts.received += 1 + lost
        counts.dropped += lost

    def _is_full(self, more: int, time_ns: int) -> bool:
        if self._first_ns is None:
            return False
        size, period = self.limits.max_bytes, self.limits.period_ns
        return (size is not None and self._bytes + more > size) or (
            period is not None and time_ns - self._first_ns >= period
        )

    def _statistics(self, block: bytes) -> None:
        """Count what was dropped after the last message."""
        told = pcapng.parse_statistics(LITTLE, block[HEAD_SIZE:-4])
        counts = self._counts.setdefault(told.interface, _Counts())
        missing = told.dropped - self._told.get(told.interface, 0) - counts.dropped
        counts.received += max(0, missing)
        counts.dropped += max(0, missing)

    def _begin(self) -> None:
        self.files += 1
        path = self.path.with_stem(f"{self.path.stem}-{self.files:05}")
        self._file = self.open(path)
        self._bytes, self._described, self._first_ns = 0, 0, None
        self._kept.append(path)
        while self.limits.keep is not None and len(self._kept) > self.limits.keep:
            self._kept.popleft().unlink(missing_ok=True)

    def _end(self) -> None:
        file, self._file = self._file, None
        if file is None:
            return
        with file:
            for number, counts in self._counts.items():
                file.write(
                    pcapng.statistics(number, self._last_ns, counts.received, counts.dropped)
                )
                self._told[number] = self._told.get(number, 0) + counts.dropped
        self._counts = {}

    def _describe(self) -> None:
        self._put(self._head[self._described :])
        self._described = len(self._head)

    def _put(self, block: bytes) -> None:
        if self._file is not None:
            self._file.write(block)
            self._bytes += len(block)
