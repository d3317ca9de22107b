# SPDX-License-Identifier: MIT
"""What is written where the capture has no data, and which blocks hold it.

Each block's content follows from its address alone, so that whoever reads it can tell whether it is
what was written there.
"""

import numpy as np

PAGE_BLOCKS = 1 << 12
MAX_PAGES = 1 << 15
"""Of a `Marks`: 16 MiB of bits, for 64 GiB in blocks of 512 bytes; others are not marked."""
_BLOCK = np.uint64(0x9E3779B97F4A7C15)
_WORD = np.uint64(0xD1B54A32D192ED03)
"""Odd numbers with well mixed bits: neighbouring blocks and words have little in common."""


def pattern(lba: int, blocks: int, block_bytes: int) -> bytes:
    """Return the content of blocks (of a multiple of 8 bytes); never zeros."""
    numbers = (np.arange(1, blocks + 1, dtype=np.uint64) + np.uint64(lba)) * _BLOCK
    words = np.arange(block_bytes // 8, dtype=np.uint64) * _WORD
    content: bytes = (numbers[:, None] ^ words[None, :]).tobytes()
    return content


class Marks:
    """A set of blocks that ranges are added to and taken from; bounded: the rest is left out."""

    def __init__(self, max_pages: int = MAX_PAGES) -> None:
        self._pages: dict[int, np.ndarray] = {}
        self._max_pages = max_pages

    def add(self, lba: int, blocks: int) -> None:
        """Add a range, as far as there is room for new pages."""
        for number, part in _parts(lba, blocks):
            page = self._pages.get(number)
            if page is None:
                if len(self._pages) >= self._max_pages:
                    continue
                page = self._pages[number] = np.zeros(PAGE_BLOCKS // 8, np.uint8)
            _set(page, part, True)

    def remove(self, lba: int, blocks: int) -> None:
        """Take a range away."""
        if blocks > PAGE_BLOCKS * len(self._pages):  # more than there can be
            end = lba + blocks
            for number in list(self._pages):
                low, high = number * PAGE_BLOCKS, (number + 1) * PAGE_BLOCKS
                if lba <= low and high <= end:
                    del self._pages[number]
                elif low < end and lba < high:
                    part = slice(max(lba - low, 0), min(end - low, PAGE_BLOCKS))
                    _set(self._pages[number], part, False)
            return
        for number, part in _parts(lba, blocks):
            if number in self._pages:
                _set(self._pages[number], part, False)

    def clear(self) -> None:
        """Take all away."""
        self._pages.clear()

    def within(self, lba: int, blocks: int) -> np.ndarray:
        """Return for each block of a range whether it is in the set."""
        found = [
            np.unpackbits(self._pages[number])[part].astype(bool)
            if number in self._pages
            else np.zeros(part.stop - part.start, bool)
            for number, part in _parts(lba, blocks)
        ]
        return np.concatenate(found) if found else np.zeros(0, bool)


def _parts(lba: int, blocks: int) -> list[tuple[int, slice]]:
    """Cut a range at pages: number of the page, and the part of it."""
    parts = []
    at, end = lba, lba + blocks
    while at < end:
        number, first = divmod(at, PAGE_BLOCKS)
        last = min(PAGE_BLOCKS, first + end - at)
        parts.append((number, slice(first, last)))
        at += last - first
    return parts


def _set(page: np.ndarray, part: slice, value: bool) -> None:
    bits = np.unpackbits(page)
    bits[part] = value
    page[:] = np.packbits(bits)
