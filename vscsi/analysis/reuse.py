# SPDX-License-Identifier: MIT
"""Reuse distances, working set and miss-ratio curve of an LRU cache, exact or sampled.

Up to MAX_ACCESSES page accesses everything is computed exactly. Beyond, one page in 2**n is looked
at, chosen by a hash of its address, n as small as memory allows: SHARDS (Waldspurger et al.,
FAST 2015), whose distances and counts are those of the sample times 2**n. Its authors found a mean
error of the miss ratio below 0.01 with some thousand pages in the sample; here it has up to
MAX_ACCESSES accesses. Of every 2**n neighbouring pages exactly one is taken, so that a long command
costs as much as pages of it are in the sample.
"""

import numpy as np
import numpy.typing as npt

from vscsi.analysis.columns import FAR, NONE, Ints, Rows
from vscsi.analysis.result import Histogram, Reuse
from vscsi.capture.commands import Operation

PAGE_BYTES = 4096
MAX_ACCESSES = 1 << 20
_MAX_PAGES = 1 << 16
"""Of a command: 256 MiB."""
_STEP_GROUPS = 1 << 20
"""Groups of pages looked at together."""
_MAX_LEVEL = 48
_DISK_SHIFT = 52
"""A page's number has its disk above the 16 exbibytes that fit below."""
_MAX_DISKS = 1 << 11
_BOUNDS = tuple(PAGE_BYTES << n for n in range(32))


class ReuseSampler:
    """Collects page accesses; give it all commands in the order in which they were sent."""

    def __init__(self, block_bytes: Ints) -> None:
        """block_bytes: of each disk."""
        self._block_bytes = block_bytes
        self._level = 0
        self._accesses = 0
        self._truncated = 0
        self._pages: list[Ints] = []
        self._writes: list[npt.NDArray[np.bool_]] = []
        self._held = 0

    def add(self, rows: Rows) -> None:
        """Take the columns of RAW."""
        operation, blocks, lba = rows["operation"], rows["blocks"], rows["lba"]
        moves = (operation == Operation.READ) | (operation == Operation.WRITE)
        chosen = np.flatnonzero(moves & (lba != NONE) & (blocks > 0) & (lba < FAR >> 16))
        disk = rows["disk"][chosen].astype(np.int64)
        size = self._block_bytes[disk]
        first = lba[chosen] * size // PAGE_BYTES
        last = ((lba[chosen] + blocks[chosen]) * size - 1) // PAGE_BYTES
        long = last - first >= _MAX_PAGES
        self._truncated += int(np.count_nonzero(long))
        last = np.minimum(last, first + _MAX_PAGES - 1)
        self._accesses += int(np.sum(last - first + 1))
        first += disk % _MAX_DISKS << _DISK_SHIFT
        last += disk % _MAX_DISKS << _DISK_SHIFT
        write = operation[chosen] == Operation.WRITE
        start = 0
        while start < len(first):
            # As many commands as have a bounded number of groups, at the level of now.
            groups = (last[start:] >> self._level) - (first[start:] >> self._level) + 1
            count = max(1, int(np.searchsorted(np.cumsum(groups), _STEP_GROUPS)))
            part = slice(start, start + count)
            self._take(first[part], last[part], write[part], groups[:count])
            start += count

    def _take(self, first: Ints, last: Ints, write: npt.NDArray[np.bool_], groups: Ints) -> None:
        command = np.repeat(np.arange(len(first)), groups)
        within = np.arange(len(command)) - np.repeat(np.cumsum(groups) - groups, groups)
        page = _chosen_page((first[command] >> self._level) + within, self._level)
        inside = (first[command] <= page) & (page <= last[command])
        self._pages.append(page[inside])
        self._writes.append(write[command[inside]])
        self._held += len(self._pages[-1])
        while self._held > MAX_ACCESSES and self._level < _MAX_LEVEL:
            self._thin_out()

    def _thin_out(self) -> None:
        """Forget half of the pages: those that the next level does not have."""
        pages, writes = self._collected()
        self._level += 1
        kept = _chosen_page(pages >> self._level, self._level) == pages
        self._pages, self._writes = [pages[kept]], [writes[kept]]
        self._held = int(np.count_nonzero(kept))

    def _collected(self) -> tuple[Ints, npt.NDArray[np.bool_]]:
        none = np.empty(0, np.int64)
        return np.concatenate([none, *self._pages]), np.concatenate(
            [none.astype(np.bool_), *self._writes]
        )

    def unwritten_reads(self) -> int:
        """Return how many page reads were of pages that no earlier command wrote."""
        pages, writes = self._collected()
        _, page = np.unique(pages, return_inverse=True)
        first_write = np.full(len(pages) + 1, len(pages))
        np.minimum.at(first_write, page[writes], np.flatnonzero(writes))
        return int(np.count_nonzero(np.arange(len(pages)) < first_write[page])) << self._level

    def finish(self) -> Reuse:
        """Return the figures."""
        pages, writes = self._collected()
        scale = 1 << self._level
        distances = reuse_distances(pages)
        again = distances[distances >= 0] * scale
        # SHARDS-adj: hot pages make a sample too large or too small; the difference is in
        # accesses that are soon repeated.
        missing = self._accesses / scale - len(pages)
        first = int(np.count_nonzero(distances < 0))
        total = max(self._accesses / scale, 1)
        working = len(np.unique(pages)) * scale
        ordered = np.sort(again)
        curve = []
        for size in _cache_pages(working):
            hits = int(np.searchsorted(ordered, size)) + missing
            curve.append((size * PAGE_BYTES, float(np.clip(1 - hits / total, 0, 1))))
        held = np.searchsorted(_BOUNDS, again * PAGE_BYTES)
        counts = np.bincount(held, minlength=len(_BOUNDS) + 1).astype(np.int64) * scale
        return Reuse(
            page_bytes=PAGE_BYTES,
            accesses=self._accesses,
            sampling_rate=1 / scale,
            working_set_bytes=working * PAGE_BYTES,
            read_set_bytes=len(np.unique(pages[~writes])) * scale * PAGE_BYTES,
            written_set_bytes=len(np.unique(pages[writes])) * scale * PAGE_BYTES,
            distances=Histogram(
                bounds=_BOUNDS,
                counts=tuple(counts.tolist()),
                min=int(again.min()) * PAGE_BYTES if len(again) else None,
                max=int(again.max()) * PAGE_BYTES if len(again) else None,
                mean=float(again.mean()) * PAGE_BYTES if len(again) else None,
            ),
            first_accesses=first * scale,
            miss_ratio=tuple(curve),
            truncated=self._truncated,
        )


def reuse_distances(pages: Ints) -> Ints:
    """Return how many other pages were accessed since each access's previous; -1 for the first.

    With p the previous access to the page of access i, these are the pages whose last access
    before i is after p: i - p - 1 accesses, less those that are repeated before i. An access j is
    such a repetition's first where prev[j] > p, so the inversions of prev count them.
    """
    order = np.argsort(pages, kind="stable")
    same = pages[order[1:]] == pages[order[:-1]]
    previous = np.full(len(pages), -1, np.int64)
    previous[order[1:][same]] = order[:-1][same]
    again = np.flatnonzero(previous >= 0)
    before = previous[again]
    distances = np.full(len(pages), -1, np.int64)
    distances[again] = again - before - 1 - _greater_before(before)
    return distances


def _greater_before(values: Ints) -> Ints:
    """Return for each of distinct values how many greater ones come before it.

    A wavelet tree's way: from the highest bit on, values that agree in the bits so far are
    together, in their order; there those with a 1 before one with a 0 are greater.
    """
    rank = np.empty(len(values), np.int64)
    rank[np.argsort(values)] = np.arange(len(values))
    where = np.arange(len(values))
    count = np.zeros(len(values), np.int64)
    for bit in reversed(range(len(values).bit_length())):
        one = rank >> bit & 1
        node = rank >> bit + 1
        # Nodes are contiguous: the ones before a place in its node are the ones before the place
        # less those before the node.
        ones = np.cumsum(one) - one
        begins = np.flatnonzero(np.diff(node, prepend=-1))
        lengths = np.diff(np.append(begins, len(node)))
        inside = ones - np.repeat(ones[begins], lengths)
        count[where] += np.where(one == 0, inside, 0)
        zeros = np.arange(len(node)) - np.repeat(begins, lengths) - inside
        in_node = np.repeat(np.add.reduceat(1 - one, begins), lengths)
        to = np.repeat(begins, lengths) + np.where(one == 0, zeros, in_node + inside)
        moved, moved_rank = np.empty_like(where), np.empty_like(rank)
        moved[to], moved_rank[to] = where, rank
        where, rank = moved, moved_rank
    return count


def _chosen_page(group: Ints, level: int) -> Ints:
    """Return the page that is taken of each group of 2**level: one of the half's that is taken."""
    page = group
    for bit in reversed(range(level)):
        page = page << 1 | _hash(page, bit)
    return page


def _hash(values: Ints, salt: int) -> Ints:
    """Return a bit for each value, as from a coin (the finalizer of splitmix64)."""
    mixed = values.astype(np.uint64) + np.uint64((salt + 1) * 0x9E3779B97F4A7C15 & (1 << 64) - 1)
    mixed = (mixed ^ mixed >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ mixed >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return (mixed >> np.uint64(63)).astype(np.int64)


def _cache_pages(working: int) -> list[int]:
    """Return sizes of caches in pages: powers of two, and what lies half way between them."""
    sizes = [1]
    while sizes[-1] < working:
        size = sizes[-1]
        sizes += [size + size // 2, size * 2] if size > 1 else [2]
    return sizes
