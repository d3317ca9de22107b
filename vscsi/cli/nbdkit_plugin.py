# SPDX-License-Identifier: MIT
"""The plugin that `vscsi nbd` has nbdkit load: one logical unit over one path.

nbdkit runs this file with the Python that its plugin was built for, not with ours. Its parameters
are path=PATH, lun=N, piece=BYTES (the longest transfer it will ask for) and ready-fd=N, where a
byte is written when requests are served. nbdkit's blocksize filter above it turns every request
into whole blocks of at most `piece` bytes.
"""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import nbdkit

import vscsi
from vscsi.cli.nbd_errno import errno_of
from vscsi.cli.unit import Unit, look, supports
from vscsi.domain.base import DomainError
from vscsi.transport.batch import Batch, Combiner
from vscsi.transport.frontend import RingInitiator
from vscsi.transport.hba import Hba, Lun, ScsiError
from vscsi.transport.initiator import TransportError
from vscsi.wire import cdb as cdbs
from vscsi.wire.inquiry import VpdPage, parse_vpd

API_VERSION = 2

_PREFERRED_BYTES = 4096
_SMALL_BYTES = 4096
_SMALL_DEPTH = 48
"""Small transfers go in batches: in pieces of so many bytes, so many at a time (an SRP ring of the
default size takes 60)."""
_MAX_SMALL_BYTES = 8 * _SMALL_BYTES
"""A longer one is a command of its own."""
_WRITE_SAME_BLOCKS = 0xFFFF
"""Of one WRITE SAME to a unit that names no limit."""
_UNMAP_BLOCKS = 0xFFFF_FFFF
"""What a descriptor of UNMAP can hold."""

# nbdkit puts a traceback into each error that it logs: a full disk is no fault of this file's.
sys.tracebacklimit = 0


class _Server:
    """The one path of this process, from `after_fork` on."""

    path = ""
    number = 0
    piece = 0
    ready_fd = -1
    hba: Hba
    small: Combiner | None = None
    """All connections' small transfers; None where the path has none (any more)."""
    small_hba: Hba
    """Their channel: whoever runs a batch has the ring to himself."""


class _Disk:
    """The logical unit as one NBD connection found it."""

    def __init__(self, unit: Unit, lun: Lun) -> None:
        capacity = lun.capacity()
        self.lun = lun
        self.size_bytes = unit.size_bytes
        self.block = capacity.block_length
        self.writable = not unit.read_only
        self.thin = capacity.provisioning_management
        self.write_same_blocks = _write_same_limit(lun) if self.writable else 0

    def small(self, write: bool, offset: int, buffer: memoryview) -> bool:
        """Transfer a few blocks together with what other threads want; False if it can't be so."""
        small = _Server.small
        if small is None or len(buffer) > _MAX_SMALL_BYTES:
            return False
        if offset % _SMALL_BYTES or len(buffer) % _SMALL_BYTES:
            return False
        try:
            return small.transfer(write, offset, buffer)
        except TransportError:
            # Its end first: then nothing that was under way on it can come after what follows.
            _Server.small_hba.close()
            _Server.small = None
            return False

    def write_same(self, offset: int, count: int, *, unmap: bool) -> None:
        """Zero a range with WRITE SAME, which unlike UNMAP guarantees zeros."""
        for lba, blocks in self.runs(offset, count, self.write_same_blocks):
            cdb = cdbs.build("WRITE SAME(16)", lba=lba, blocks=blocks, unmap=unmap)
            self.lun.command(cdb, data_out=bytes(self.block))

    def runs(self, offset: int, count: int, most: int) -> Iterator[tuple[int, int]]:
        """Cut a range of bytes into (LBA, blocks) of at most `most` blocks."""
        lba, end = offset // self.block, (offset + count) // self.block
        while lba < end:
            blocks = min(most, end - lba)
            yield lba, blocks
            lba += blocks


def _write_same_limit(lun: Lun) -> int:
    """Return the most blocks of a WRITE SAME(16), 0 if there is no such command."""
    if not supports(lun, "WRITE SAME(16)"):
        return 0
    try:
        limits = parse_vpd(lun.vpd(VpdPage.BLOCK_LIMITS))
    except ScsiError:
        return _WRITE_SAME_BLOCKS
    return min(limits.maximum_write_same_length or _WRITE_SAME_BLOCKS, 0xFFFF_FFFF)


def _small(hba: Hba) -> Combiner | None:
    """Return what performs small transfers over a ring, None if the unit cannot have it."""
    initiator, lun = hba.initiator, hba.lun(_Server.number)
    if not isinstance(initiator, RingInitiator):
        return None
    try:
        block = lun.capacity().block_length  # past the unit attentions
        batch = Batch(initiator, lun.address, block, length=_SMALL_BYTES, depth=_SMALL_DEPTH)
    except (ScsiError, TransportError, DomainError, ValueError):
        return None
    return Combiner(batch, _SMALL_BYTES)


@contextmanager
def _errors() -> Iterator[None]:
    """Tell nbdkit which errno an error is."""
    try:
        yield
    except ScsiError as error:
        nbdkit.set_error(errno_of(error.reply))
        raise
    except TransportError:
        nbdkit.set_error(errno.EIO)
        raise
    except DomainError:
        nbdkit.set_error(errno.ENOMEM)
        raise


# What nbdkit calls, in the order of a server's life.


def config(key: str, value: str) -> None:
    """Take a parameter."""
    if key == "path":
        _Server.path = value
    elif key == "lun":
        _Server.number = int(value)
    elif key == "piece":
        _Server.piece = int(value)
    elif key == "ready-fd":
        _Server.ready_fd = int(value)
    else:
        raise ValueError(f"no parameter {key}")


def thread_model() -> int:
    """Have as many requests in flight as nbdkit has threads."""
    model: int = nbdkit.THREAD_MODEL_PARALLEL
    return model


def after_fork() -> None:
    """Connect: only now may there be threads. The socket takes connections already."""
    _Server.hba = vscsi.connect(_Server.path)
    if isinstance(_Server.hba.initiator, RingInitiator):
        _Server.small_hba = vscsi.connect(_Server.path)
        _Server.small = _small(_Server.small_hba)
    if _Server.ready_fd >= 0:
        os.write(_Server.ready_fd, b"\n")


def cleanup() -> None:
    """Close the path in order."""
    for hba in ("small_hba", "hba"):
        if hasattr(_Server, hba):
            getattr(_Server, hba).close()


def open(_readonly: bool) -> _Disk:  # noqa: A001 - nbdkit's name
    """Look at the logical unit anew for each NBD connection: its size may have changed."""
    with _errors():
        unit = look(_Server.hba, _Server.number)
        if unit is None or unit.capacity is None:
            raise TransportError(f"LUN {_Server.number} is gone or not ready")
        return _Disk(unit, _Server.hba.lun(_Server.number))


def get_size(disk: _Disk) -> int:
    """Return the size in bytes."""
    return disk.size_bytes


def block_size(disk: _Disk) -> tuple[int, int, int]:
    """Return minimum, preferred and maximum size of a request."""
    return disk.block, max(disk.block, _PREFERRED_BYTES), _Server.piece


def is_rotational(_disk: _Disk) -> bool:
    """Answer for a store of unknown kind: seeks need not be avoided."""
    return False


def can_multi_conn(_disk: _Disk) -> bool:
    """All connections are one initiator: a flush on any covers the writes of all."""
    return True


def can_write(disk: _Disk) -> bool:
    """Whether the unit is not write protected."""
    return disk.writable


def can_flush(_disk: _Disk) -> bool:
    """SYNCHRONIZE CACHE is always there."""
    return True


def can_fua(_disk: _Disk) -> int:
    """Writes carry FUA."""
    native: int = nbdkit.FUA_NATIVE
    return native


def can_trim(disk: _Disk) -> bool:
    """Whether blocks can be deallocated."""
    return disk.thin


def can_zero(disk: _Disk) -> bool:
    """Whether there is WRITE SAME; without it nbdkit writes the zeros."""
    return disk.write_same_blocks > 0


def pread(disk: _Disk, buffer: bytearray, offset: int, _flags: int) -> None:
    """Read whole blocks."""
    with _errors():
        if disk.small(False, offset, memoryview(buffer)):
            return
        data = disk.lun.read(offset // disk.block, len(buffer) // disk.block)
        if len(data) != len(buffer):
            raise TransportError(f"{len(data)} bytes of {len(buffer)} came")
        buffer[:] = data


def pwrite(disk: _Disk, buffer: bytearray, offset: int, flags: int) -> None:
    """Write whole blocks."""
    with _errors():
        fua = bool(flags & nbdkit.FLAG_FUA)
        if not fua and disk.small(True, offset, memoryview(buffer)):
            return
        disk.lun.write(offset // disk.block, memoryview(buffer), fua=fua)


def flush(disk: _Disk, _flags: int) -> None:
    """Put all acknowledged writes on stable storage."""
    with _errors():
        disk.lun.flush()


def trim(disk: _Disk, count: int, offset: int, flags: int) -> None:
    """Deallocate whole blocks; what they read as is the unit's affair."""
    with _errors():
        for lba, blocks in disk.runs(offset, count, _UNMAP_BLOCKS):
            disk.lun.unmap(lba, blocks)
        if flags & nbdkit.FLAG_FUA:
            disk.lun.flush()


def zero(disk: _Disk, count: int, offset: int, flags: int) -> None:
    """Make whole blocks read as zeros, deallocated if that may be."""
    with _errors():
        disk.write_same(offset, count, unmap=disk.thin and bool(flags & nbdkit.FLAG_MAY_TRIM))
        if flags & nbdkit.FLAG_FUA:
            disk.lun.flush()
