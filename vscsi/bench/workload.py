# SPDX-License-Identifier: MIT
"""What is done: reads and writes of one size, at which offsets, how many at a time."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

MODES = ("read", "write", "randread", "randwrite", "rw", "randrw")
"""fio's words for --rw."""


@dataclass(frozen=True, slots=True)
class Workload:
    """One closed-loop workload. Sizes and offsets in bytes; blocks of `block_bytes` are aligned
    to `offset_bytes`, and lie within `size_bytes` from there.
    """

    mode: str
    block_bytes: int
    depth: int
    offset_bytes: int
    size_bytes: int
    read_percent: int = 50
    """Share of reads in the modes rw and randrw."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise ValueError for what is no workload."""
        if self.mode not in MODES:
            raise ValueError(f"mode {self.mode!r} is none of {', '.join(MODES)}")
        if not 0 <= self.read_percent <= 100:
            raise ValueError(f"{self.read_percent} % reads")
        if min(self.block_bytes, self.depth) < 1 or self.offset_bytes < 0:
            raise ValueError("block size and depth are at least 1, the offset at least 0")
        if self.size_bytes < self.block_bytes:
            raise ValueError(
                f"a range of {self.size_bytes} bytes holds no block of {self.block_bytes}"
            )

    @property
    def writes(self) -> bool:
        """Whether it may overwrite anything."""
        return writes(self.mode)

    @property
    def blocks(self) -> int:
        """Whole blocks in the range; what is left at its end is not touched."""
        return self.size_bytes // self.block_bytes

    def operations(self) -> Iterator[tuple[bool, int]]:
        """Yield (is a write, offset in bytes) without end; the same sequence for the same seed.

        Sequential modes go up through the range, reads and writes together, and start again at
        its end. Random ones hit any block at any time (fio's norandommap). Not thread-safe.
        """
        source = random.Random(self.seed)  # noqa: S311 - repeatable on purpose
        mixed = self.mode.endswith("rw")
        write = self.mode.endswith("write")
        at_random = self.mode.startswith("rand")
        blocks = self.blocks
        block = 0
        while True:
            if at_random:
                block = source.randrange(blocks)
            if mixed:
                write = source.random() * 100 >= self.read_percent
            yield write, self.offset_bytes + block * self.block_bytes
            if not at_random:
                block = (block + 1) % blocks

    def pattern(self) -> bytes:
        """Return the block that is written: random, so that nothing below can compress it."""
        return random.Random(self.seed).randbytes(self.block_bytes)  # noqa: S311 - as above


def writes(mode: str) -> bool:
    """Tell whether a mode may overwrite anything."""
    return not mode.endswith("read")
