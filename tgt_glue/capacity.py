# SPDX-License-Identifier: MIT
"""The size of a unit that a kernel has."""

import errno

from tgt_glue.checks import Geometry
from tgt_glue.outcome import is_good
from tgt_glue.sg import SgDevice
from tgt_glue.sg_file import Answer
from vscsi.wire.cdb import build
from vscsi.wire.formats import parse
from vscsi.wire.parameters import ReadCapacity10, ReadCapacity16

_ASKED = (
    (build("READ CAPACITY(10)"), ReadCapacity10),
    (build("READ CAPACITY(16)", allocation_length=32), ReadCapacity16),
)
"""The short one first: it is all that a CD-ROM has."""
_TOO_LARGE = 0xFFFF_FFFF
"""The last LBA that sends to READ CAPACITY(16)."""


def ask_geometry(device: SgDevice, timeout_s: float) -> Geometry | Answer:
    """Return a block device's size, or the answer by which it does not tell.

    Raises OSError as `SgDevice.execute` does, and for a size that cannot be.
    """
    for cdb, form in _ASKED:
        data = bytearray(form.sizeof())
        answer = device.execute(cdb, timeout_s=timeout_s, into=[memoryview(data)], wanted=len(data))
        if not is_good(answer):
            return answer
        told = parse(form, bytes(data), "capacity")
        if told.last_lba != _TOO_LARGE:
            break
    if not told.block_length:
        raise OSError(errno.EIO, "the unit tells no block size")
    return Geometry(told.last_lba + 1, told.block_length)
