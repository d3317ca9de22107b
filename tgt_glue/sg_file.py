# SPDX-License-Identifier: MIT
"""One open file of an sg node, and the header through which it takes a command (sg v3)."""

import errno
import mmap
import os
import select
import struct
from collections.abc import Sequence
from typing import NamedTuple

from vscsi.target.base import Status
from vscsi.target.buffers import Views, address
from vscsi.wire.sense import SenseKey, parse_sense

# <scsi/sg.h>
TO_DEVICE, FROM_DEVICE, NO_DATA = -2, -3, -1
DIRECT_IO, MMAP_IO, _AT_TAIL = 0x01, 0x04, 0x10
# struct sg_io_hdr: what is asked, what it came to, two fields that nobody reads and padding.
_REQUEST = struct.Struct("@iiBBHIPPPIIiP")
_RESULT = struct.Struct("@BBBBHHi")
_HEADER_BYTES = struct.calcsize(f"{_REQUEST.format}{_RESULT.format[1:]}II0P")
MAX_IOVEC = 1024
_NEGATIVE = 1 << 31
"""Where INFORMATION, in two's complement, is less than 0."""

# What the kernel reads and writes beside a command's data, in memory of ours that stays put.
_CDB_AT, _SENSE_AT, _IOVEC_AT = 0, 256, 512
_SENSE_BYTES = 252
_CONTROL_BYTES = _IOVEC_AT + MAX_IOVEC * struct.calcsize("@PP")


class Answer(NamedTuple):
    """What the kernel says of a command."""

    status: int
    """The SCSI status, as sent."""
    host_status: int
    """Why there is none (DID_* of the kernel), or 0."""
    driver_status: int
    sense: bytes
    arrived: int
    """Bytes of data-in that came, with a status of GOOD or as a tape's."""


class SgFile:
    """An open file of a node, for one command at a time."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.header = bytearray(_HEADER_BYTES)
        self.reserve: mmap.mmap | None = None
        """Where data-in arrive: the kernel's own reserve buffer if it is `mapped`, else ours."""
        self.mapped = False
        self.copy = b""
        """Data-out that had to be copied: kept until the kernel has it."""
        self._control = mmap.mmap(-1, _CONTROL_BYTES)
        self._address = address(memoryview(self._control))
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLIN)

    @property
    def room(self) -> int:
        """Bytes of the reserve buffer."""
        return len(self.reserve) if self.reserve is not None else 0

    def put_iovec(self, pieces: Sequence[tuple[int, int]]) -> int:
        """Lay out struct sg_iovec entries; return their address."""
        flat = [word for piece in pieces for word in piece]
        struct.pack_into(f"@{len(flat)}P", self._control, _IOVEC_AT, *flat)
        return self._address + _IOVEC_AT

    def fill(
        self,
        cdb: bytes,
        direction: int,
        count: int,
        pointer: int,
        iovecs: int,
        flags: int,
        timeout_s: float,
    ) -> None:
        """Lay out the header for one command."""
        self._control[_CDB_AT : _CDB_AT + len(cdb)] = cdb
        _REQUEST.pack_into(
            self.header,
            0,
            ord("S"),
            direction,
            len(cdb),
            _SENSE_BYTES,
            iovecs,
            count,
            pointer,
            self._address + _CDB_AT,
            self._address + _SENSE_AT,
            int(timeout_s * 1000),
            flags | _AT_TAIL,
            0,
            0,
        )

    def wait(self, limit_s: float | None) -> None:
        """Have the answer in the header; OSError if there is none, TimeoutError if none yet."""
        if not self._poll.poll(None if limit_s is None else limit_s * 1000):
            raise TimeoutError(errno.ETIMEDOUT, "the kernel does not end the command")
        try:
            os.readv(self.descriptor, (self.header,))
        except BlockingIOError as error:  # what woke us was the device leaving, with the command
            if limit_s is not None:
                raise OSError(errno.ENODEV, "the device left while it had a command") from error
            os.set_blocking(self.descriptor, True)
            os.readv(self.descriptor, (self.header,))
        self.copy = b""

    def answer(self, wanted: int, residue_bytes: int = 0) -> Answer:
        """Return what the header says; the kernel's counts are not trusted to be in range.

        residue_bytes: what one of sense data's INFORMATION stands for, where data come with a
        CHECK CONDITION too (SSC-4 READ: at a filemark, or a block of another length); else 0.
        """
        result = _RESULT.unpack_from(self.header, _REQUEST.size)
        status, _, _, sense_length, host, driver, residual = result
        sense_length = min(sense_length, _SENSE_BYTES)
        sense = self._control[_SENSE_AT : _SENSE_AT + sense_length]
        arrived = wanted - min(max(residual, 0), wanted)
        if status == Status.CHECK_CONDITION and not host and residue_bytes:
            arrived = min(arrived, _before_a_mark(sense, wanted, residue_bytes))
        elif status or host:
            arrived = 0
        return Answer(status, host, driver, sense, arrived)

    def reserved(self, count: int) -> memoryview:
        """Return the first bytes of the reserve buffer."""
        return memoryview(self.reserve or b"")[:count]

    def close(self) -> None:
        """Close the file: the kernel keeps what it needs for a command that it still has."""
        os.close(self.descriptor)


def runs(views: Views) -> list[tuple[int, int]]:
    """Return (address, length) of each run of memory that a list is made of."""
    pieces: list[tuple[int, int]] = []
    for view in views:
        if not len(view):
            continue
        start = address(view)
        if pieces and sum(pieces[-1]) == start:
            start, before = pieces.pop()
            pieces.append((start, before + len(view)))
        else:
            pieces.append((start, len(view)))
    return pieces


def _before_a_mark(sense: bytes, wanted: int, residue_bytes: int) -> int:
    """Return how many bytes a tape says it has read although a READ did not come to all of it.

    LIO passes data on under the same conditions (SCF_TREAT_READ_AS_NORMAL); without them, what is
    in the buffer is anybody's.
    """
    told = parse_sense(sense)
    if told is None or told.key != SenseKey.NO_SENSE or told.information is None:
        return 0
    if not (told.filemark or told.eom or told.ili):
        return 0
    missing = told.information
    if missing >= _NEGATIVE:  # the block is longer than what was asked for: all of that came
        missing = 0
    return wanted - min(missing * residue_bytes, wanted)
