# SPDX-License-Identifier: MIT
"""The initiator's memory for data: one registered region, given out in runs of pages."""

import threading

from vscsi.domain.base import PAGE_SIZE
from vscsi.domain.memory import OutOfMemoryError
from vscsi.transport.initiator import Buffer


class Arena:
    """A run of an initiator's pages that is registered under one handle. Thread-safe.

    A buffer's address is its offset in the region, as SRP memory descriptors want it.
    """

    def __init__(self, handle: int, memory: memoryview) -> None:
        self.handle = handle
        self._memory = memory
        self._used = bytearray(len(memory) // PAGE_SIZE)
        self._lock = threading.Lock()

    def alloc(self, length: int) -> Buffer:
        """Return a zeroed buffer that starts on a page; OutOfMemoryError if no run is free."""
        pages = -(-max(length, 1) // PAGE_SIZE)
        with self._lock:
            first = self._used.find(bytes(pages))
            if first < 0:
                raise OutOfMemoryError(f"no run of {pages} pages is free in the registered region")
            self._used[first : first + pages] = b"\1" * pages
        start = first * PAGE_SIZE
        self._memory[start : start + length] = bytes(length)
        return Buffer(self._memory[start : start + length], start)

    def free(self, buffer: Buffer) -> None:
        """Give back what `alloc` returned."""
        first = buffer.address // PAGE_SIZE
        pages = -(-max(len(buffer), 1) // PAGE_SIZE)
        with self._lock:
            self._used[first : first + pages] = bytes(pages)
