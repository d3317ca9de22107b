# SPDX-License-Identifier: MIT
"""What the readers of all formats have in common: their tables, their troubles, their stream."""

from collections.abc import Iterable, Iterator
from typing import IO

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from vscsi.capture import packed
from vscsi.capture.commands import MAX_EVENTS, SECTOR_BYTES, Channel, Disk, Event, Troubles
from vscsi.capture.sources.columns import Numbering

CHUNK_BYTES = 4 << 20
MAX_LINE_BYTES = 1 << 16
"""Of text; a longer line is none of any format here."""
_NAME_LENGTH = 4096


class Reading:
    """The fields of a Source, and reading that raises nothing for what a file contains."""

    def __init__(self, form: str, stream: IO[bytes]) -> None:
        self.format = form
        self.channels: list[Channel] = []
        self.disks: list[Disk] = []
        self.events: list[Event] = []
        self.events_dropped = 0
        self.troubles = Troubles()
        self._stream = stream

    def happened(self, event: Event) -> None:
        """Keep an event, or count it if there are too many."""
        if len(self.events) < MAX_EVENTS:
            self.events.append(event)
        else:
            self.events_dropped += 1

    def skip(self, why: str, count: int = 1) -> None:
        """Count records that were not understood; keep why the first was not."""
        if count and not self.troubles.skipped:
            self.troubles.first_skipped = why
        self.troubles.skipped += count

    def broke(self, why: str) -> None:
        """Say where reading had to end; what was said first stays."""
        self.troubles.broken = self.troubles.broken or why

    def place(self, position: int) -> str:
        """Return in words where something is in the content."""
        return packed.place(self._stream, position)

    def chunks(self, size: int = CHUNK_BYTES) -> Iterator[bytes]:
        """Yield the content, up to `size` bytes at a time, until its end or until it breaks."""
        at = 0
        while True:
            try:
                chunk = self._stream.read(size)
            except (EOFError, OSError) as error:  # a broken gzip file; a broken disk
                self.broke(f"{self.place(at)}: {error}")
                return
            if not chunk:
                return
            at += len(chunk)
            yield chunk

    def line_blocks(self, chunks: Iterable[bytes] | None = None) -> Iterator[bytes]:
        """Yield the content, or some chunks, in blocks of whole lines; the last may lack its end.

        Lines over MAX_LINE_BYTES are skipped, in whatever pieces they come.
        """
        rest, dropping = b"", False
        for chunk in self.chunks() if chunks is None else chunks:
            if dropping:
                _, newline, chunk = chunk.partition(b"\n")
                if not newline:
                    continue
                dropping = False
            end = chunk.rfind(b"\n") + 1
            if end:
                yield rest + chunk[:end]
                rest = chunk[end:]
            else:
                rest += chunk
            if len(rest) > MAX_LINE_BYTES:
                self.skip(f"a line of more than {MAX_LINE_BYTES} bytes")
                rest, dropping = b"", True
        if rest:
            yield rest


class TextReading(Reading):
    """Of a text with a command a line: its disks have names, its addresses are in bytes."""

    def __init__(self, form: str, stream: IO[bytes]) -> None:
        super().__init__(form, stream)
        self._numbering = Numbering()
        self._unaligned = 0

    def disk_numbers(self, names: pa.Array) -> npt.NDArray[np.int32]:
        """Return the disk that each name is, a new one for a new name; -1 for those of too many."""
        encoded = names.dictionary_encode()
        numbers = []
        for name in encoded.dictionary.to_pylist():
            number, new = self._numbering.number(name) if len(name) < _NAME_LENGTH else (-1, False)
            if new:
                self.disks.append(Disk(name))
            numbers.append(number)
        found: npt.NDArray[np.int32] = np.array(numbers, np.int32)[encoded.indices.to_numpy()]
        return found

    def sectors(
        self, start: npt.NDArray[np.int64], length: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint32]]:
        """Return the first sector and the number of sectors that extents of bytes touch."""
        first, end = start // SECTOR_BYTES, -(-(start + length) // SECTOR_BYTES)
        odd = (start % SECTOR_BYTES > 0) | (length % SECTOR_BYTES > 0)
        self._unaligned += int(np.count_nonzero(odd))
        count = np.minimum(end - first, 0xFFFFFFFF)
        return first.astype(np.uint64), count.astype(np.uint32)

    def note_unaligned(self) -> None:
        """Say how many extents were not of whole sectors, if any were."""
        if self._unaligned:
            self.troubles.notes.append(
                f"{self._unaligned} commands don't begin and end at blocks of {SECTOR_BYTES} bytes:"
                " the blocks that they touch count"
            )


def as_utf8(block: bytes) -> bytes:
    """Return text with replacement characters for what is not UTF-8, which pyarrow cannot take."""
    return block.decode(errors="replace").encode()
