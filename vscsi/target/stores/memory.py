# SPDX-License-Identifier: MIT
"""A store in this process' memory: gone when it ends, and durable as long as it lives."""

from vscsi.ring import Store as NativeStore
from vscsi.target.buffers import Views

_ZEROS = bytes(1 << 20)


class MemoryStore:
    """`size_bytes` bytes of memory, zero at first (untouched pages cost nothing)."""

    can_discard = True
    alignment = 1
    staged_bytes = 0

    def __init__(self, size_bytes: int, *, readonly: bool = False) -> None:
        self.size_bytes = size_bytes
        self.readonly = readonly
        self._memory = memoryview(bytearray(size_bytes))
        self.native: NativeStore | None = NativeStore.memory(self._memory)

    def readv(self, offset: int, views: Views) -> None:
        """Fill the views from `offset` on."""
        for view in views:
            view[:] = self._memory[offset : offset + len(view)]
            offset += len(view)

    def writev(self, offset: int, views: Views) -> None:
        """Write the views from `offset` on."""
        for view in views:
            self._memory[offset : offset + len(view)] = view
            offset += len(view)

    def flush(self) -> None:
        """Do nothing: memory is all the storage that there is."""

    def discard(self, offset: int, length: int) -> None:
        """Zero a range."""
        for start in range(offset, offset + length, len(_ZEROS)):
            count = min(len(_ZEROS), offset + length - start)
            self._memory[start : start + count] = _ZEROS[:count]

    def close(self) -> None:
        """Do nothing: the memory goes with the object."""
