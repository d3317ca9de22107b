# SPDX-License-Identifier: MIT
"""Which bytes of a scatter-gather list O_DIRECT can take as they are, and which need a buffer."""

import mmap
from collections.abc import Iterator

from vscsi.target.buffers import Views, address, gather, length, scatter


class Plan:
    """A list made fit for O_DIRECT: aligned segments pass, the others are staged.

    Every address and length in `views` is a multiple of `alignment` (a power of two, at most a
    page); the whole is the given list, rounded up at its end to the alignment. What has no such
    segment around it goes through one buffer: `fill` before a write, `drain` after a read.
    """

    def __init__(self, views: Views, alignment: int) -> None:
        self.views: list[memoryview] = []
        self.staged_bytes = 0
        groups = list(_groups(views, alignment))
        self._staged: list[tuple[memoryview, Views]] = []
        room = sum(-(-length(group) // alignment) * alignment for fit, group in groups if not fit)
        memory = memoryview(mmap.mmap(-1, room)) if room else memoryview(b"")
        for fit, group in groups:
            if fit:
                self.views += group
                continue
            count = length(group)
            rounded = -(-count // alignment) * alignment
            self.views.append(memory[:rounded])
            self._staged.append((memory[:rounded], group))
            self.staged_bytes += count
            memory = memory[rounded:]

    def fill(self) -> None:
        """Copy what a write stages into its buffer."""
        for buffer, group in self._staged:
            data = gather(group, len(buffer))
            buffer[: len(data)] = data

    def drain(self) -> None:
        """Copy what a read staged to where it was wanted."""
        for buffer, group in self._staged:
            scatter(buffer, group)


def _groups(views: Views, alignment: int) -> Iterator[tuple[bool, list[memoryview]]]:
    """Yield (fit for O_DIRECT, views), every group but the last a multiple of the alignment."""
    unfit: list[memoryview] = []
    count = 0
    for whole in views:
        view = whole
        while len(view):
            if count % alignment:
                taken = min(len(view), alignment - count % alignment)
            elif address(view) % alignment or len(view) < alignment:
                taken = len(view)
            else:
                if unfit:
                    yield False, unfit
                    unfit, count = [], 0
                taken = len(view) // alignment * alignment
                yield True, [view[:taken]]
                view = view[taken:]
                continue
            unfit.append(view[:taken])
            count += taken
            view = view[taken:]
    if unfit:
        yield False, unfit
