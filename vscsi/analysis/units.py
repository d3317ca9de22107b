# SPDX-License-Identifier: MIT
"""Numbers for people: three digits that count, and a unit."""

import math
from datetime import UTC, datetime

_BINARY = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_DECIMAL = ("", "k", "M", "G", "T", "P", "E")
_WALL_CLOCK_NS = 10**9 * 86400 * 365
"""Times below count from a start that nobody knows."""
NOTHING = "\u2013"
TIMES = "\u00d7"


def count(value: float | None) -> str:
    """Return a whole number with all its digits: "12,345"."""
    return NOTHING if value is None else f"{value:,.0f}"


def figure(value: float) -> str:
    """Return a number with three digits that count, more before the point if need be."""
    size = abs(value)
    if size and size < 0.001:
        return f"{value:.1g}"
    digits = 0 if size >= 99.95 else 1 if size >= 9.995 else 2 if size >= 0.9995 else 3
    text = f"{value:,.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def short(value: float) -> str:
    """Return a number that is short: "12.3k", "4M"; the powers of 2 that people know stay."""
    if value == int(value) and abs(value) < 100_000 and value % 500:
        return f"{value:.0f}"
    return "".join(_scaled(value, 1000, _DECIMAL))


def size(value: float | None) -> str:
    """Return bytes: "64 KiB"."""
    return NOTHING if value is None else " ".join(_scaled(value, 1024, _BINARY))


def short_size(value: float) -> str:
    """Return bytes for an axis: "64K"; one less than such a number is "<64K"."""
    if value > 0 and value % 1024 == 1023:
        return "<" + short_size(value + 1)
    text, unit = _scaled(value, 1024, _BINARY)
    return text + unit.removesuffix("iB").removesuffix("B")


def duration(us: float | None) -> str:
    """Return microseconds as a time: "12.3 ms"."""
    if us is None:
        return NOTHING
    if abs(us) < 0.9995:
        return f"{figure(us * 1000)} ns" if us else "0 s"
    if abs(us) < 999.5:
        return f"{figure(us)} µs"
    if abs(us) < 999_500:
        return f"{figure(us / 1000)} ms"
    if abs(us) < 119.5e6:
        return f"{figure(us / 1e6)} s"
    minutes, seconds = divmod(round(us / 1e6), 60)
    if minutes < 120:
        return f"{minutes} min {seconds} s" if seconds else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{figure(hours / 24)} d"


def share(part: float, whole: float) -> str:
    """Return a part in per cent; what is not all of it is not 100 %, what is something not 0 %."""
    if not whole:
        return NOTHING
    percent = 100 * part / whole
    if 99.95 <= percent < 100:
        return ">99.9 %"
    if 0 < percent < 0.05:
        return "<0.1 %"
    return f"{percent:.1f} %" if percent < 99.95 else "100 %"


def ratio(value: float) -> str:
    """Return how many times as much something is: "1.25", "0.0031", "12.3k"."""
    size = abs(value)
    if size >= 100:
        return short(round(value))
    if 0 < size < 1e-6:
        return "<0.000001"
    digits = 2 if size >= 0.1 or not size else 1 - math.floor(math.log10(size))
    return f"{value:.{digits}f}"


def rate(value: float) -> str:
    """Return bytes a second, in bench's unit: 10**6 bytes."""
    return f"{figure(value / 1e6)} MB/s"


def clock(time_ns: int) -> str | None:
    """Return a time as UTC; None if it does not count from 1970."""
    if not _WALL_CLOCK_NS <= time_ns < 1 << 62:
        return None
    seconds, rest = divmod(time_ns, 10**9)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}.{rest // 10**6:03} UTC"


def _scaled(value: float, step: int, units: tuple[str, ...]) -> tuple[str, str]:
    index = 0
    while abs(value) >= step * 0.9995 and index < len(units) - 1:
        value /= step
        index += 1
    return figure(value), units[index]
