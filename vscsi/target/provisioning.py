# SPDX-License-Identifier: MIT
"""SBC commands that fill or deallocate ranges: WRITE SAME, UNMAP, FORMAT UNIT."""

import mmap
from typing import TYPE_CHECKING

from vscsi.target.base import Status, Task
from vscsi.target.blocks import CHUNK_BYTES, Outcome
from vscsi.target.logical_unit import parameter_list
from vscsi.target.refusals import (
    DATA_LENGTH_MISMATCH,
    PARAMETER_LIST_LENGTH,
    bad_field,
    bad_parameter,
    out_of_range_parameter,
    write_failed,
)
from vscsi.wire.cdb import Cdb
from vscsi.wire.errors import WireError
from vscsi.wire.parameters import UnmapDescriptor, UnmapHeader, parse_unmap
from vscsi.wire.sense import Sense

if TYPE_CHECKING:
    from vscsi.target.disk import Disk

_UNMAP_HEADER = UnmapHeader.sizeof()
_UNMAP_DESCRIPTOR = UnmapDescriptor.sizeof()
_INITIALIZATION_PATTERN = 0x08
"""IP in byte 1 of FORMAT UNIT's parameter list header (SBC-4 5.4.2)."""


def write_same(disk: "Disk", task: Task, cdb: Cdb) -> Outcome:
    """WRITE SAME(10), (16): one block from data-out over a range, or a hole where that is equal."""
    refusal = disk.refuse_medium_access(cdb, writes=True)
    if refusal is not None:
        return refusal
    unmap = bool(cdb.field("unmap"))
    if cdb.field("anchor"):
        return bad_field(cdb, "anchor")
    if unmap and not disk.thin:
        return bad_field(cdb, "unmap")
    if not 0 < cdb.blocks <= disk.maximum_write_same_blocks:  # WSNZ=1: 0 is not "to the end"
        return bad_field(cdb, "blocks")
    block = bytes(disk.block_size)
    if not cdb.field("ndob"):
        given = parameter_list(task, disk.block_size)
        if isinstance(given, Sense):
            return given
        if task.data_out_length > disk.block_size:
            return DATA_LENGTH_MISMATCH
        block = given
    offset, length = cdb.lba * disk.block_size, cdb.blocks * disk.block_size
    try:
        with disk.writing.shared():
            if unmap and not any(block):  # LBPRZ=1: reads back as what would have been written
                disk.store.discard(offset, length)
            else:
                _fill(disk, block, offset, length)
    except OSError as error:
        return write_failed(error, cdb.lba)
    return disk.flush_if_write_through() or Status.GOOD


def _fill(disk: "Disk", block: bytes, offset: int, length: int) -> None:
    chunk = memoryview(mmap.mmap(-1, min(length, CHUNK_BYTES)))  # a page's start: nothing to stage
    chunk[:] = block * (len(chunk) // len(block))
    for done in range(0, length, len(chunk)):
        disk.store.writev(offset + done, [chunk[: length - done]])


def unmap(disk: "Disk", task: Task, cdb: Cdb) -> Outcome:
    """UNMAP: all descriptors are checked before any takes effect."""
    refusal = disk.refuse_medium_access(cdb, writes=True)
    if refusal is not None:
        return refusal
    if cdb.field("anchor"):
        return bad_field(cdb, "anchor")
    if cdb.parameter_list_length == 0:
        return Status.GOOD
    data = parameter_list(task, cdb.parameter_list_length)
    if isinstance(data, Sense):
        return data
    try:
        ranges = parse_unmap(data)
    except WireError:
        return PARAMETER_LIST_LENGTH
    total = 0
    for index, (lba, blocks) in enumerate(ranges):
        at = _UNMAP_HEADER + index * _UNMAP_DESCRIPTOR
        if lba + blocks > disk.blocks:
            return out_of_range_parameter(at)
        total += blocks
        if total > disk.maximum_unmap_blocks:
            return bad_parameter(at + 8)
    if len(ranges) > disk.maximum_unmap_descriptors:
        return bad_parameter(2)
    for lba, blocks in ranges:
        if blocks == 0:
            continue
        try:
            with disk.writing.shared():
                disk.store.discard(lba * disk.block_size, blocks * disk.block_size)
        except OSError as error:
            return write_failed(error, lba)
    return disk.flush_if_write_through() or Status.GOOD


def format_unit(disk: "Disk", task: Task, cdb: Cdb) -> Outcome:
    """FORMAT UNIT: a thin disk is deallocated, another keeps its data (SBC-4 5.4 permits both).

    The format stays what it is: no protection information, no defect list, no pattern.
    """
    refusal = disk.refuse_medium_access(cdb, writes=True)
    if refusal is not None:
        return refusal
    if cdb.field("fmtpinfo"):
        return bad_field(cdb, "fmtpinfo")
    if cdb.field("fmtdata"):
        long = bool(cdb.field("longlist"))
        header = parameter_list(task, 8 if long else 4)
        if isinstance(header, Sense):
            return header
        if header[1] & _INITIALIZATION_PATTERN:
            return bad_parameter(1, 3)
        if any(header[4:] if long else header[2:]):
            return bad_parameter(4 if long else 2)
    if not disk.thin:
        return Status.GOOD
    try:
        with disk.writing.alone():
            disk.store.discard(0, disk.blocks * disk.block_size)
    except OSError as error:
        return write_failed(error)
    return disk.flush_if_write_through() or Status.GOOD
