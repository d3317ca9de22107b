# SPDX-License-Identifier: MIT
"""The interface of a store: a run of bytes with scatter-gather reads and writes."""

from collections.abc import Sequence
from typing import Protocol

from vscsi.ring import Store as NativeStore


class Store(Protocol):
    """A run of `size_bytes` bytes. Thread-safe. Callers stay within the size.

    Every method raises OSError with the errno of what went wrong below, and then promises nothing
    about the bytes of that range.
    """

    size_bytes: int
    readonly: bool
    can_discard: bool
    alignment: int
    """Offsets, lengths and memory addresses that need no staging are multiples of this."""

    @property
    def staged_bytes(self) -> int:
        """Bytes that went through a buffer because the segments could not be used as they were."""

    @property
    def native(self) -> NativeStore | None:
        """The same store for the C path, if that may do I/O on it."""

    def readv(self, offset: int, views: Sequence[memoryview]) -> None:
        """Fill the views, in order, from `offset` on."""

    def writev(self, offset: int, views: Sequence[memoryview]) -> None:
        """Write the views, in order, from `offset` on."""

    def flush(self) -> None:
        """Return when every write that has returned is on stable storage."""

    def discard(self, offset: int, length: int) -> None:
        """Deallocate a range; it reads as zeros afterwards."""

    def close(self) -> None:
        """Release what the store holds; a second call does nothing."""
