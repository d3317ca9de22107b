# SPDX-License-Identifier: MIT
"""What is done: reads and writes of one size, at which offsets, how many at a time."""

import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Protocol

MAX_RATE_PER_S = 1e9
_BITS = (1 << 64) - 1
MODES = ("read", "write", "randread", "randwrite", "rw", "randrw")
"""fio's words for --rw."""


class Offered(Protocol):
    """What results say of a workload, whatever it is."""

    @property
    def rate_per_s(self) -> float | None:
        """Commands that come a second; None: a closed loop."""

    @property
    def words(self) -> str:
        """One line for people."""

    @property
    def mean_bytes(self) -> float:
        """Bytes that an operation moves."""

    def as_json(self) -> dict[str, object]:
        """Return it as values of JSON."""


@dataclass(frozen=True, slots=True)
class Workload:
    """One workload. Sizes and offsets in bytes; blocks of `block_bytes` are aligned to
    `offset_bytes`, and lie within `size_bytes` from there.
    """

    mode: str
    block_bytes: int
    depth: int
    offset_bytes: int
    size_bytes: int
    read_percent: int = 50
    """Share of reads in the modes rw and randrw."""
    seed: int = 0
    rate_per_s: float | None = None
    """Open loop: commands that come a second, on time or not. None: a closed loop."""

    def __post_init__(self) -> None:
        """Raise ValueError for what is no workload."""
        if self.mode not in MODES:
            raise ValueError(f"mode {self.mode!r} is none of {', '.join(MODES)}")
        if not 0 <= self.read_percent <= 100:
            raise ValueError(f"{self.read_percent} % reads")
        if self.rate_per_s is not None and not 0 < self.rate_per_s <= MAX_RATE_PER_S:
            raise ValueError(f"a rate of {self.rate_per_s} commands a second")
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
    def mixed(self) -> bool:
        """Whether it reads and writes."""
        return self.mode.endswith("rw")

    @property
    def at_random(self) -> bool:
        """Whether each operation's block is drawn."""
        return self.mode.startswith("rand")

    @property
    def blocks(self) -> int:
        """Whole blocks in the range; what is left at its end is not touched."""
        return self.size_bytes // self.block_bytes

    @property
    def words(self) -> str:
        """One line for people."""
        words = f"{self.mode}, blocks of {self.block_bytes}, depth {self.depth}"
        if self.mixed:
            words += f", {self.read_percent} % reads"
        if self.rate_per_s is not None:
            words += f", {self.rate_per_s:,.10g} commands/s"
        return words

    @property
    def mean_bytes(self) -> float:
        """Bytes of each operation."""
        return self.block_bytes

    def as_json(self) -> dict[str, object]:
        """Return its fields."""
        return asdict(self)

    def check_blocks(self, block_length: int) -> None:
        """Raise ValueError if block size or offset are no multiples of a logical unit's block."""
        if self.block_bytes % block_length or self.offset_bytes % block_length:
            raise ValueError(f"block size and offset are multiples of {block_length}")

    def operations(self) -> Iterator[tuple[bool, int]]:
        """Yield (is a write, offset in bytes) without end; the same sequence for the same seed.

        Sequential modes go up through the range, reads and writes together, and start again at
        its end. Random ones hit any block at any time (fio's norandommap). Not thread-safe.
        ring/core/load.c does the same.
        """
        numbers = splitmix64(self.seed)
        mixed, at_random = self.mixed, self.at_random
        write = self.mode.endswith("write")
        blocks = self.blocks
        block = 0
        while True:
            if at_random:
                block = next(numbers) * blocks >> 64
            if mixed:
                write = next(numbers) * 100 >> 64 >= self.read_percent
            yield write, self.offset_bytes + block * self.block_bytes
            if not at_random:
                block = (block + 1) % blocks

    def pattern(self) -> bytes:
        """Return the block that is written: random, so that nothing below can compress it."""
        return random.Random(self.seed).randbytes(self.block_bytes)  # noqa: S311 - as above


def splitmix64(seed: int) -> Iterator[int]:
    """Yield numbers of 64 bits without end (Steele, Lea, Flood 2014)."""
    state = seed
    while True:
        state = (state + 0x9E3779B97F4A7C15) & _BITS
        mixed = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & _BITS
        mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB & _BITS
        yield mixed ^ mixed >> 31


def writes(mode: str) -> bool:
    """Tell whether a mode may overwrite anything."""
    return not mode.endswith("read")
