# SPDX-License-Identifier: MIT
"""A store that keeps nothing: the floor below which no measured path can get."""

from vscsi.ring import Store as NativeStore
from vscsi.target.buffers import Views


class NullStore:
    """Reads as zeros; writes vanish."""

    can_discard = True
    alignment = 1
    staged_bytes = 0

    def __init__(self, size_bytes: int, *, readonly: bool = False) -> None:
        self.size_bytes = size_bytes
        self.readonly = readonly
        self.native: NativeStore | None = NativeStore.null()

    def readv(self, offset: int, views: Views) -> None:
        """Fill the views with zeros (never with what the memory held before)."""
        for view in views:
            view[:] = bytes(len(view))

    def writev(self, offset: int, views: Views) -> None:
        """Forget the data."""

    def flush(self) -> None:
        """Do nothing."""

    def discard(self, offset: int, length: int) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""
