# SPDX-License-Identifier: MIT
"""What a capture says of each ring: words KEY=VALUE in its interface's description.

path=srp domain=3 device=0 queue=0     where it is; layout=x86_64 with blkif
ring-pages=1 request-limit=27 ...      what its ends negotiated
lun0.type=disk lun0.block-bytes=512 lun0.blocks=131072
                                       each logical unit that can be reached, as it was then
clock=monotonic clock-offset-ns=... clock-resolution-ns=1
                                       times are this clock's and the offset, which is the wall
                                       clock's time when the capture began: they never step
payload=none filter=lun:0,opcode:read  what was asked for; no filter, no word
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vscsi.capture.choice import Choice
from vscsi.transport.tap import Geometry, RingPath
from vscsi.wire.record import LayoutCode

MAX_UNITS = 256
"""Logical units that are described; a text of pcapng has 65,535 bytes."""


@dataclass(frozen=True, slots=True)
class Clock:
    """The clock of a capture's times: the monotonic one, carried on from the wall clock's time."""

    offset_ns: int
    """From the monotonic clock to nanoseconds since 1970."""
    resolution_ns: int

    @classmethod
    def start(cls) -> "Clock":
        """Return the clock of a capture that begins now."""
        resolution_ns = max(1, round(time.clock_getres(time.CLOCK_MONOTONIC) * 1e9))
        return cls(time.time_ns() - time.monotonic_ns(), resolution_ns)


def describe(path: RingPath, units: Sequence[Geometry], clock: Clock, choice: Choice) -> str:
    """Return a ring's description."""
    return " ".join(f"{key}={value}" for key, value in _words(path, units, clock, choice))


def _words(
    path: RingPath, units: Sequence[Geometry], clock: Clock, choice: Choice
) -> Iterator[tuple[str, object]]:
    yield "path", path.protocol.name.lower()
    yield "domain", path.domain
    yield "device", path.device
    yield "queue", path.queue
    if path.layout is not LayoutCode.NONE:
        yield "layout", path.layout.name.lower()
    yield from path.parameters
    for unit in units[:MAX_UNITS]:
        yield f"lun{unit.number}.type", unit.device_type.name.lower()
        if unit.block_bytes is not None:
            yield f"lun{unit.number}.block-bytes", unit.block_bytes
            yield f"lun{unit.number}.blocks", unit.block_count
    yield "clock", "monotonic"
    yield "clock-offset-ns", clock.offset_ns
    yield "clock-resolution-ns", clock.resolution_ns
    yield "payload", choice.payload
    if choice.filter:
        yield "filter", ",".join(f"{key}:{value}" for key, value in choice.filter.words)
