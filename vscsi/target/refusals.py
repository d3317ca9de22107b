# SPDX-License-Identifier: MIT
"""The sense of every refusal and unit attention that a logical unit gives, as values."""

import errno

from vscsi.wire.cdb import Cdb
from vscsi.wire.opcodes import Field
from vscsi.wire.sense import Sense, SenseKey

# Unit attention conditions (SAM-6 5.14).
POWER_ON = Sense(SenseKey.UNIT_ATTENTION, 0x29, 0x01)
BUS_DEVICE_RESET = Sense(SenseKey.UNIT_ATTENTION, 0x29, 0x03)
MEDIUM_MAY_HAVE_CHANGED = Sense(SenseKey.UNIT_ATTENTION, 0x28, 0x00)
MODE_PARAMETERS_CHANGED = Sense(SenseKey.UNIT_ATTENTION, 0x2A, 0x01)
CAPACITY_CHANGED = Sense(SenseKey.UNIT_ATTENTION, 0x2A, 0x09)
REPORTED_LUNS_CHANGED = Sense(SenseKey.UNIT_ATTENTION, 0x3F, 0x0E)

NO_SENSE = Sense(SenseKey.NO_SENSE, 0x00, 0x00)
STOPPED = Sense(SenseKey.NOT_READY, 0x04, 0x02)
INVALID_OPCODE = Sense(SenseKey.ILLEGAL_REQUEST, 0x20, 0x00)
LOGICAL_UNIT_NOT_SUPPORTED = Sense(SenseKey.ILLEGAL_REQUEST, 0x25, 0x00)
INVALID_FIELD_IN_CDB = Sense(SenseKey.ILLEGAL_REQUEST, 0x24, 0x00)
"""A fault of the command that no CDB byte shows: its attribute, a CDB cut short."""
DATA_LENGTH_MISMATCH = Sense(SenseKey.ILLEGAL_REQUEST, 0x0E, 0x03)
"""INVALID FIELD IN COMMAND INFORMATION UNIT: data-out and the CDB disagree."""
PARAMETER_LIST_LENGTH = Sense(SenseKey.ILLEGAL_REQUEST, 0x1A, 0x00)
INSUFFICIENT_REGISTRATION_RESOURCES = Sense(SenseKey.ILLEGAL_REQUEST, 0x55, 0x04)
SAVING_NOT_SUPPORTED = Sense(SenseKey.ILLEGAL_REQUEST, 0x39, 0x00)
WRITE_PROTECTED = Sense(SenseKey.DATA_PROTECT, 0x27, 0x00)
SOFTWARE_WRITE_PROTECTED = Sense(SenseKey.DATA_PROTECT, 0x27, 0x02)
SPACE_ALLOCATION_FAILED = Sense(SenseKey.DATA_PROTECT, 0x27, 0x07)
OVERLAPPED = Sense(SenseKey.ABORTED_COMMAND, 0x4E, 0x00)
INTERNAL_FAILURE = Sense(SenseKey.HARDWARE_ERROR, 0x44, 0x00)


def _in_cdb(asc: int, field: Field) -> Sense:
    """Point at a field: its first byte, and its leftmost bit unless it is made of whole bytes."""
    top = field.mask.bit_length() - 1
    partial = field.mask + 1 != 1 << 8 * field.size
    return Sense(
        SenseKey.ILLEGAL_REQUEST,
        asc,
        0x00,
        field_pointer=field.offset + field.size - 1 - top // 8,
        bit_pointer=top % 8 if partial else None,
    )


def bad_field(cdb: Cdb, name: str) -> Sense:
    """INVALID FIELD IN CDB, with a pointer to the field (SPC-5 4.4.2.4.2)."""
    return _in_cdb(0x24, cdb.row.fields[name])


def bad_cdb_byte(offset: int, mask: int = 0xFF) -> Sense:
    """INVALID FIELD IN CDB, for bits that are no field of the command's own."""
    return _in_cdb(0x24, Field(offset, 1, mask))


def out_of_range(cdb: Cdb) -> Sense:
    """LOGICAL BLOCK ADDRESS OUT OF RANGE."""
    return _in_cdb(0x21, cdb.row.fields["lba"])


def out_of_range_parameter(offset: int) -> Sense:
    """LOGICAL BLOCK ADDRESS OUT OF RANGE, for an LBA at a byte of the parameter list."""
    return Sense(SenseKey.ILLEGAL_REQUEST, 0x21, 0x00, field_pointer=offset, in_cdb=False)


def bad_parameter(offset: int, bit: int | None = None) -> Sense:
    """INVALID FIELD IN PARAMETER LIST, at a byte of the list."""
    return Sense(
        SenseKey.ILLEGAL_REQUEST, 0x26, 0x00, field_pointer=offset, in_cdb=False, bit_pointer=bit
    )


def miscompare(offset: int) -> Sense:
    """MISCOMPARE DURING VERIFY OPERATION, at this byte of the data compared (SBC-4 5.3)."""
    return Sense(SenseKey.MISCOMPARE, 0x1D, 0x00, information=offset)


def read_failed(error: OSError, lba: int) -> Sense:
    """Return what a store's error in a read from `lba` on means."""
    if error.errno == errno.EIO:
        return Sense(SenseKey.MEDIUM_ERROR, 0x11, 0x00, information=lba)
    return INTERNAL_FAILURE


def write_failed(error: OSError, lba: int | None = None) -> Sense:
    """Return what a store's error in a write from `lba` on, or in a flush, means."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return SPACE_ALLOCATION_FAILED
    if error.errno == errno.EIO:
        return Sense(SenseKey.MEDIUM_ERROR, 0x0C, 0x00, information=lba)
    return INTERNAL_FAILURE
