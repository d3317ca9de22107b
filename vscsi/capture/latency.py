# SPDX-License-Identifier: MIT
"""Latencies of many operations, in a histogram with three significant digits (HdrHistogram)."""

import math
from collections.abc import Mapping

from hdrh.histogram import HdrHistogram

HIGHEST_NS = 3_600_000_000_000
"""An hour; a longer latency counts as that."""
DIGITS = 3
PERCENTILES = {"p50": 500, "p90": 900, "p99": 990, "p99.9": 999}
"""In thousandths."""


class Latencies:
    """Counts latencies in ns; a value is kept to 1 in 1000, the extremes exactly."""

    def __init__(self) -> None:
        self._histogram = HdrHistogram(1, HIGHEST_NS, DIGITS)
        self._least: int | None = None
        self._most = 0
        self._sum = 0
        self.count = 0

    def add(self, counts: Mapping[int, int]) -> None:
        """Count many latencies: how often each occurred."""
        for value, times in counts.items():
            self._histogram.record_value(min(max(value, 1), HIGHEST_NS), times)
            self._least = value if self._least is None else min(self._least, value)
            self._most = max(self._most, value)
            self._sum += value * times
            self.count += times

    def figures_us(self) -> dict[str, float] | None:
        """Return mean, min, p50, p90, p99, p99.9 and max in us; None if nothing was counted.

        A percentile is the least counted value that so many percent of them do not exceed.
        """
        if self._least is None:
            return None
        ranks = {
            name: min(self._at_rank(math.ceil(self.count * thousandths / 1000)), self._most) / 1000
            for name, thousandths in PERCENTILES.items()
        }
        return {
            "mean": self._sum / self.count / 1000,
            "min": self._least / 1000,
            **ranks,
            "max": self._most / 1000,
        }

    def _at_rank(self, rank: int) -> int:
        """Return the rank-th least value. The library takes percentiles, and rounds their rank."""
        value: int = self._histogram.get_value_at_percentile(rank * 100 / self.count)
        return value

    def encoded(self) -> str:
        """Return the whole histogram as HdrHistogram tools exchange it: V2, compressed, base64."""
        return bytes(self._histogram.encode()).decode("ascii")
