# SPDX-License-Identifier: MIT
"""Axes: where a value is between 0 and 1, and which values are written beside it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Words = Callable[[float], str]


@dataclass(frozen=True, slots=True)
class Axis:
    """A scale from 0 to 1, and its ticks."""

    place: Callable[[float], float]
    ticks: tuple[tuple[float, str], ...]
    """Places and words."""


def linear(
    low: float,
    high: float,
    words: Words,
    *,
    ticks: int = 4,
    binary: bool = False,
    whole: bool = False,
) -> Axis:
    """Return an axis over [low, high] with about so many ticks, at 1, 2, 5 times a power of 10.

    binary: at powers of 2; whole: at whole numbers.
    """
    span = high - low
    if not span > abs(low) * 1e-9:
        span = max(1.0, abs(low))
        high = low + span
    step = max(_step(span / ticks, binary), 1.0 if whole else 0.0)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return Axis(
        lambda value: (value - low) / span,
        tuple(((at * step - low) / span, words(at * step)) for at in range(first, last + 1)),
    )


def from_zero(
    values: Sequence[float | None], words: Words, *, ticks: int = 4, whole: bool = False
) -> Axis:
    """Return an axis from 0 to a little above the largest value; whole: at whole numbers."""
    top = max((value for value in values if value is not None), default=0)
    return linear(0, top * 1.04 or 1, words, ticks=ticks, whole=whole)


def logarithmic(
    values: Sequence[float | None], words: Words, *, base: int = 10, ticks: int = 5
) -> Axis:
    """Return an axis around all values above 0, by powers of base."""
    known = [value for value in values if value is not None and value > 0]
    low, high = (min(known), max(known)) if known else (1.0, float(base))
    first = math.floor(math.log(low, base) + 1e-9)
    last = max(math.ceil(math.log(high, base) - 1e-9), first + 1)
    stride = max(1, math.ceil((last - first) / ticks))

    def place(value: float) -> float:
        return (math.log(value, base) - first) / (last - first) if value > 0 else 0.0

    return Axis(
        place,
        tuple(
            ((power - first) / (last - first), words(float(base) ** power))
            for power in range(first, last + 1, stride)
        ),
    )


def buckets(bounds: Sequence[float], words: Words, *, most: int = 20) -> Axis:
    """Return an axis of a histogram's buckets, equally wide; each has its upper bound for a name.

    Places of ticks are the buckets' middles; `place` takes a bucket's number. If not all have
    room for their names, that of 0 has.
    """
    number = len(bounds) + 1
    stride = max(1, math.ceil(number / most))
    first = bounds.index(0) % stride if 0 in bounds else 0
    names = [words(bound) for bound in bounds]
    names.append(">" + names[-1].removeprefix("<") if names else "all")
    shown = range(first, number, stride)
    return Axis(
        lambda bucket: bucket / number,
        tuple(((bucket + 0.5) / number, names[bucket]) for bucket in shown),
    )


def _step(least: float, binary: bool) -> float:
    if binary:
        return float(2 ** max(0, math.ceil(math.log2(least))))
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * 0.85)
