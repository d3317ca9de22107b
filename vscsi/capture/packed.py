# SPDX-License-Identifier: MIT
"""Gzipped captures: read as far as they can be unpacked."""

import io
import sys
import zlib
from typing import IO, Any

_MAGIC = b"\x1f\x8b"
_GZIP = zlib.MAX_WBITS + 16
_PIECE = 1 << 16


def opened(stream: Any) -> Any:
    """Return a stream's content, unpacked if it is gzipped. The stream has `peek` and `read1`."""
    return Unpacked(stream) if stream.peek(len(_MAGIC))[: len(_MAGIC)] == _MAGIC else stream


def place(stream: IO[bytes], position: int) -> str:
    """Return in words where something is in a stream."""
    return f"at byte {position}" + " of the unpacked content" * isinstance(stream, Unpacked)


class Unpacked(io.BufferedIOBase):
    """What a gzip file holds, of one member or several.

    Where the file ends early or is damaged, all that comes before is read; only then reading raises
    EOFError, and goes on to do so. Memory is bounded by what is asked for.
    """

    def __init__(self, packed: Any) -> None:
        """Unpack a stream that has `read1`; it stays the caller's."""
        self._packed = packed
        self._decoder = zlib.decompressobj(_GZIP)
        self._waiting = b""
        """Read, but not unpacked."""
        self._ahead = b""
        """Unpacked, but not given out."""
        self._broken = ""

    def readable(self) -> bool:
        """It is."""
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        """Return so many bytes, fewer at the end or where the file breaks."""
        missing = sys.maxsize if size is None or size < 0 else size
        pieces: list[bytes] = []
        while missing and (piece := self._next(missing)):
            pieces.append(piece)
            missing -= len(piece)
        if missing and not pieces:
            self._check()
        return b"".join(pieces)

    def read1(self, size: int = -1, /) -> bytes:
        """Return what there is next, at most so many bytes."""
        piece = self._next(size if size >= 0 else _PIECE)
        if size and not piece:
            self._check()
        return piece

    def peek(self, size: int) -> bytes:
        """Return the next bytes without using them up, `size` at least if there are so many."""
        missing = size - len(self._ahead)
        while missing > 0 and (piece := self._unpack(missing)):
            self._ahead += piece
            missing -= len(piece)
        if not self._ahead:
            self._check()
        return self._ahead

    def _check(self) -> None:
        if self._broken:
            raise EOFError(self._broken)

    def _next(self, size: int) -> bytes:
        """Return up to `size` bytes; none at the end."""
        if self._ahead:
            piece, self._ahead = self._ahead[:size], self._ahead[size:]
            return piece
        return self._unpack(size) if size else b""

    def _unpack(self, size: int) -> bytes:
        """Unpack up to `size` bytes, which is not 0; none at the end."""
        while not self._broken:
            if self._decoder.eof and not self._next_member():
                return b""
            packed = self._waiting or self._packed.read1(_PIECE)
            before = self._decoder.copy()
            try:
                piece = self._decoder.decompress(packed, size)
                self._waiting = self._decoder.unconsumed_tail
                if not packed and not piece:
                    self._broken = "the gzip file ends early"
            except zlib.error as error:
                piece = _until_broken(before, packed)
                self._broken = f"the gzip file is damaged ({error})"
            if piece:
                return piece
        return b""

    def _next_member(self) -> bool:
        """Have the decoder begin with what follows; return whether there is more than padding."""
        rest: bytes = self._decoder.unused_data.lstrip(b"\0")
        while not rest:
            piece = self._packed.read1(_PIECE)
            if not piece:
                return False
            rest = piece.lstrip(b"\0")
        self._decoder = zlib.decompressobj(_GZIP)
        self._waiting = rest
        return True


def _until_broken(decoder: Any, packed: bytes) -> bytes:
    """Return what comes out before the error: zlib keeps back what one call had until then."""
    pieces = []
    try:
        for at in range(len(packed)):
            pieces.append(decoder.decompress(packed[at : at + 1]))
    except zlib.error:
        pass
    return b"".join(pieces)
