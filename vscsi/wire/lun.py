# SPDX-License-Identifier: MIT
"""SAM LUNs (SAM-6 4.7): eight bytes, four addressing methods, well known logical units."""

from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache

from vscsi.wire.errors import WireError

REPORT_LUNS_WLUN = bytes.fromhex("c101000000000000")
ACCESS_CONTROLS_WLUN = bytes.fromhex("c102000000000000")
TARGET_LOG_PAGES_WLUN = bytes.fromhex("c103000000000000")


class Method(IntEnum):
    """Address methods: the top two bits of a LUN."""

    PERIPHERAL = 0
    FLAT = 1
    LOGICAL_UNIT = 2
    EXTENDED = 3


@dataclass(frozen=True, slots=True)
class Lun:
    """A LUN taken apart.

    `value` is the first level's logical unit number (EXTENDED: the extended value; with
    PERIPHERAL and bus != 0 it is a target below that bus, whose LUN the next level has).
    """

    method: Method
    value: int
    bus: int = 0
    target: int = 0
    extended_method: int | None = None
    """EXTENDED only: 1 well known, 2 flat."""
    levels: tuple[int, ...] = ()
    """The 16-bit words of the levels below the first; all 0 for a single-level LUN."""

    @property
    def wlun(self) -> int | None:
        """The W-LUN of a well known logical unit (1 REPORT LUNS), or None."""
        return self.value if self.extended_method == 1 else None

    @property
    def single_level(self) -> bool:
        """Whether the levels below the first are all zero."""
        return not any(self.levels)


def encode(lun: int) -> bytes:
    """Return the 8 bytes of a logical unit number: peripheral, flat or (from 16384) extended flat.

    Raises ValueError beyond 24 bits.
    """
    if 0 <= lun < 256:
        first = bytes((0, lun))
    elif 256 <= lun < 0x4000:
        first = (0x4000 | lun).to_bytes(2, "big")
    elif 0x4000 <= lun < 1 << 24:
        first = b"\xd2" + lun.to_bytes(3, "big")
    else:
        raise ValueError(f"logical unit number {lun}")
    return first.ljust(8, b"\0")


def decode(lun: bytes) -> Lun:
    """Take a LUN apart; raise WireError if it has not 8 bytes."""
    if len(lun) != 8:
        raise WireError(f"LUN of {len(lun)} bytes")
    method = Method(lun[0] >> 6)
    low6 = lun[0] & 0x3F
    if method is Method.EXTENDED:
        # SAM-6: LENGTH 0 to 3 stands for 2, 4, 6 or 8 bytes of this level.
        size = 2 + 2 * (low6 >> 4)
        return Lun(
            method,
            int.from_bytes(lun[1:size], "big"),
            extended_method=low6 & 0x0F,
            levels=_words(lun[size:]),
        )
    levels = _words(lun[2:])
    if method is Method.FLAT:
        return Lun(method, low6 << 8 | lun[1], levels=levels)
    if method is Method.LOGICAL_UNIT:
        return Lun(method, lun[1] & 0x1F, bus=lun[1] >> 5, target=low6, levels=levels)
    return Lun(method, lun[1], bus=low6, levels=levels)


@lru_cache(256)
def logical_unit_number(lun: bytes) -> int | None:
    """Return the number of the single-level logical unit that a LUN names, or None.

    One number has several LUNs: peripheral, flat and extended flat, and the logical unit form that
    ibmvscsi sends (0x8000 | target << 8 | bus << 5 | LUN), of which target 0 on bus 0 is ours.
    Raises WireError if it has not 8 bytes.
    """
    address = decode(lun)
    if not address.single_level or address.bus or address.target:
        return None
    if address.method is Method.EXTENDED and address.extended_method != 2:
        return None
    return address.value


def _words(data: bytes) -> tuple[int, ...]:
    return tuple(int.from_bytes(data[i : i + 2], "big") for i in range(0, len(data), 2))
