# SPDX-License-Identifier: MIT
"""Which unit of a path gets the commands of which disk of a capture, and whether it may."""

import time
from collections.abc import Callable

from vscsi.capture.commands import Disk
from vscsi.capture.replay.survey import PLACE_BYTES
from vscsi.capture.replay.translate import Unit
from vscsi.transport.blkif.initiator import BlkifInitiator
from vscsi.transport.hba import Hba, ScsiError
from vscsi.wire.errors import SetupError, WireError
from vscsi.wire.lun import logical_unit_number

NO_NUMBER = "its unit has no number"
LOOK_BYTES = PLACE_BYTES
MAX_LOOK_S = 5.0
_SPREAD = 256
"""Looks at the whole of the places before those between them get theirs."""


class Units:
    """The units of a path, asked for their capacities once."""

    def __init__(self, hba: Hba, number: int | None = None) -> None:
        """number: of the unit that gets everything; None: the one with the captured number."""
        self._hba = hba
        self._number = number
        self._found: dict[int, Unit] = {}

    def of(self, disk: Disk) -> Unit | str:
        """Return a disk's unit, or why it has none.

        Raises SetupError if the path has no such unit; TransportError.
        """
        number = self._number
        if number is None:
            number = 0 if disk.lun is None else _number(disk.lun)
        if number is None:
            return NO_NUMBER
        if number not in self._found:
            self._found[number] = self._unit(number, disk)
        return self._found[number]

    def _unit(self, number: int, disk: Disk) -> Unit:
        lun = self._hba.lun(number)
        try:
            capacity = lun.capacity()
        except (ScsiError, WireError) as error:
            raise SetupError(
                "replay", disk.name, f"unit {number}: {error}", "--lun names the unit to use"
            ) from error
        only_blocks = isinstance(self._hba.initiator, BlkifInitiator)
        return Unit(lun, capacity.blocks, capacity.block_length, only_blocks)


def _number(lun: bytes) -> int | None:
    try:
        return logical_unit_number(lun)
    except WireError:
        return None


def check_size(unit: Unit, disk: Disk, end: int) -> None:
    """Raise SetupError if a disk's commands reach beyond its unit; end: in the disk's blocks."""
    size, reach = unit.blocks * unit.block_bytes, end * disk.block_bytes
    if reach > size:
        raise SetupError(
            "replay",
            disk.name,
            f"its commands reach to byte {reach}, and the unit has {size}",
            "use a larger one; --wrap has addresses beyond the end begin again at 0",
        )


def first_data(
    unit: Unit,
    places: list[int],
    *,
    clock: Callable[[], float] = time.monotonic,
    most_s: float = MAX_LOOK_S,
) -> int | None:
    """Return where data were found, in bytes; None if there are none as far as was looked.

    It looks at both ends of the unit, and at places (bytes) until the time is over, the first of
    them spread over all.
    Raises ScsiError if the unit cannot be read; TransportError.
    """
    size = unit.blocks * unit.block_bytes
    many = max(1, -(-len(places) // _SPREAD))
    spread = [place for first in range(many) for place in places[first::many]]
    until = clock() + most_s
    for place in (0, size - LOOK_BYTES, *spread):
        lba = max(0, min(place // LOOK_BYTES * LOOK_BYTES, size - LOOK_BYTES)) // unit.block_bytes
        blocks = min(max(LOOK_BYTES // unit.block_bytes, 1), unit.blocks - lba)
        data = unit.lun.read(lba, blocks)
        rest = data.lstrip(b"\0")
        if rest:
            return lba * unit.block_bytes + len(data) - len(rest)
        if clock() > until:
            break
    return None
