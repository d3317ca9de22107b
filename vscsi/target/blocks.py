# SPDX-License-Identifier: MIT
"""SBC commands that move or check blocks: reads, writes, verifies, compare and write, caches.

A handler gets the disk, the task and its decoded CDB. It checks everything before it moves
anything, sets what was moved, and returns a status or the sense of its refusal.
"""

import mmap
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from vscsi.target.base import Status, Task
from vscsi.target.buffers import Views, gather, slice_views
from vscsi.target.refusals import (
    DATA_LENGTH_MISMATCH,
    bad_field,
    miscompare,
    read_failed,
    write_failed,
)
from vscsi.wire.cdb import Cdb
from vscsi.wire.sense import Sense

if TYPE_CHECKING:
    from vscsi.target.disk import Disk

Outcome = Status | Sense

CHUNK_BYTES = 1 << 20
"""How much is compared or repeated at a time: a multiple of every block size."""

_NO_CHECK, _COMPARE, _COMPARE_ONE_BLOCK = 0, 1, 3  # BYTCHK (SBC-4 table 133)


def read(disk: "Disk", task: Task, cdb: Cdb) -> Outcome:
    """READ(6), (10), (12), (16): straight into the initiator's buffer, as far as it reaches."""
    refusal = disk.refuse_transfer(cdb)
    if refusal is not None:
        return refusal
    wanted = cdb.blocks * disk.block_size
    room = min(wanted, task.data_in_length)
    try:
        if cdb.fua:  # SBC-4 4.15: what is newer in the cache goes to the medium first
            disk.store.flush()
        disk.store.readv(cdb.lba * disk.block_size, slice_views(task.data_in, 0, room))
    except OSError as error:
        return read_failed(error, cdb.lba)
    task.moved = room
    task.overflow = wanted - room
    return Status.GOOD


def write(disk: "Disk", task: Task, cdb: Cdb) -> Outcome:
    """WRITE(6), (10), (12), (16): all of it or, where the buffer is too short, nothing."""
    refusal = disk.refuse_transfer(cdb, writes=True)
    if refusal is not None:
        return refusal
    views = _data_out(task, cdb.blocks * disk.block_size)
    if isinstance(views, Sense):
        return views
    return _write(disk, cdb, views, disk.writing.shared()) or Status.GOOD


def write_and_verify(disk: "Disk", task: Task, cdb: Cdb) -> Outcome:
    """WRITE AND VERIFY(10), (12), (16)."""
    refusal = disk.refuse_transfer(cdb, writes=True)
    if refusal is not None:
        return refusal
    if cdb.field("bytchk") not in (_NO_CHECK, _COMPARE):
        return bad_field(cdb, "bytchk")
    views = _data_out(task, cdb.blocks * disk.block_size)
    if isinstance(views, Sense):
        return views
    return (
        _write(disk, cdb, views, disk.writing.shared(), durable=True)
        or _verify(disk, cdb, views if cdb.field("bytchk") == _COMPARE else None)
        or Status.GOOD
    )


def verify(disk: "Disk", task: Task, cdb: Cdb) -> Outcome:
    """VERIFY(10), (12), (16): readable, or equal to data-out, or to one block repeated."""
    refusal = disk.refuse_transfer(cdb)
    if refusal is not None:
        return refusal
    check = cdb.field("bytchk")
    if check == _NO_CHECK:
        return _verify(disk, cdb, None) or Status.GOOD
    if check not in (_COMPARE, _COMPARE_ONE_BLOCK):
        return bad_field(cdb, "bytchk")
    length = disk.block_size * (min(cdb.blocks, 1) if check == _COMPARE_ONE_BLOCK else cdb.blocks)
    views = _data_out(task, length)
    if isinstance(views, Sense):
        return views
    if check == _COMPARE_ONE_BLOCK:
        views = [memoryview(gather(views, length))] * cdb.blocks
    return _verify(disk, cdb, views) or Status.GOOD


def compare_and_write(disk: "Disk", task: Task, cdb: Cdb) -> Outcome:
    """COMPARE AND WRITE: no other write comes between (SBC-4 5.3)."""
    refusal = disk.refuse_transfer(cdb, writes=True)
    if refusal is not None:
        return refusal
    if cdb.blocks > disk.maximum_compare_blocks:
        return bad_field(cdb, "blocks")
    length = cdb.blocks * disk.block_size
    views = _data_out(task, 2 * length)
    if isinstance(views, Sense):
        return views
    both = memoryview(gather(views, 2 * length))  # once: the initiator may go on writing to it
    with disk.writing.alone():
        return (
            _verify(disk, cdb, [both[:length]])
            or _write(disk, cdb, [both[length:]], nullcontext())
            or Status.GOOD
        )


def pre_fetch(disk: "Disk", task: Task, cdb: Cdb) -> Outcome:  # noqa: ARG001
    """PRE-FETCH(10), (16): a hint that is not taken; the blocks must exist all the same."""
    return disk.refuse_medium_access(cdb) or Status.GOOD


def synchronize_cache(disk: "Disk", task: Task, cdb: Cdb) -> Outcome:  # noqa: ARG001
    """SYNCHRONIZE CACHE(10), (16): all blocks, whatever the range; IMMED answers no earlier."""
    refusal = disk.refuse_medium_access(cdb)
    if refusal is not None:
        return refusal
    return disk.flush() or Status.GOOD


def _data_out(task: Task, length: int) -> Views | Sense:
    """Take the first `length` bytes of data-out; a buffer that is shorter is a refusal."""
    missing = length - task.data_out_length
    if missing > 0:
        task.overflow = missing
        return DATA_LENGTH_MISMATCH
    task.moved = length
    return slice_views(task.data_out, 0, length)


def _write(
    disk: "Disk",
    cdb: Cdb,
    views: Views,
    hold: AbstractContextManager[None],
    *,
    durable: bool = False,
) -> Sense | None:
    try:
        with hold:
            disk.store.writev(cdb.lba * disk.block_size, views)
    except OSError as error:
        return write_failed(error, cdb.lba)
    return disk.flush() if durable or cdb.fua else disk.flush_if_write_through()


def _verify(disk: "Disk", cdb: Cdb, expected: Views | None) -> Sense | None:
    """Read a command's blocks, and compare them if anything is expected."""
    total = cdb.blocks * disk.block_size
    scratch = memoryview(mmap.mmap(-1, CHUNK_BYTES))
    for offset in range(0, total, CHUNK_BYTES):
        found = scratch[: min(CHUNK_BYTES, total - offset)]
        try:
            disk.store.readv(cdb.lba * disk.block_size + offset, [found])
        except OSError as error:
            return read_failed(error, cdb.lba + offset // disk.block_size)
        if expected is None:
            continue
        wanted = gather(slice_views(expected, offset, len(found)), len(found))
        if found != wanted:
            return miscompare(offset + next(_differences(found, wanted)))
    return None


def _differences(first: memoryview, second: bytes) -> Iterator[int]:
    return (index for index, pair in enumerate(zip(first, second, strict=True)) if len({*pair}) > 1)
