# SPDX-License-Identifier: MIT
"""Ended commands as rows, and rows as batches of the common table: headers taken apart by numpy."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from vscsi.capture.commands import BATCH_ROWS, Disk, Fate
from vscsi.capture.sources.columns import Column, assemble, of_cdbs
from vscsi.capture.sources.iscsi.fields import table
from vscsi.target.base import Attribute
from vscsi.wire import iscsi
from vscsi.wire.cdb import cdb_length
from vscsi.wire.errors import WireError
from vscsi.wire.iscsi import ATTRIBUTES, BHS_BYTES, AhsType, Flags, Opcode, TaskAttribute
from vscsi.wire.opcodes import VARIABLE_LENGTH, DeviceType
from vscsi.wire.sense import parse_sense

Row = tuple[
    int, int, int, int, int, bytes, bytes, Fate, int | None, bytes, bytes | None, bytes | None
]
"""Serial, time, channel, disk, outstanding; header and additional header segments of the command;
fate, latency, header of the answer (or NO_ANSWER), sense data, data."""
NO_ANSWER = bytes(BHS_BYTES)
_OF_CDBS = ("opcode", "service_action", "operation", "lba", "blocks", "fua")
_CDB_BYTES = 16
_MEANT = {
    TaskAttribute.SIMPLE: Attribute.SIMPLE,
    TaskAttribute.ORDERED: Attribute.ORDERED,
    TaskAttribute.HEAD_OF_QUEUE: Attribute.HEAD_OF_QUEUE,
    TaskAttribute.ACA: Attribute.ACA,
}
_ATTRIBUTES = np.full(ATTRIBUTES + 1, 0xFF, np.uint8)
_ATTRIBUTES[list(_MEANT)] = list(_MEANT.values())


def _length_of(opcode: int) -> int:
    """Return how long CDBs with an opcode are, as far as the header holds them."""
    try:
        return cdb_length(bytes([opcode])) if opcode != VARIABLE_LENGTH else _CDB_BYTES
    except WireError:
        return _CDB_BYTES


_LENGTHS = np.array([_length_of(opcode) for opcode in range(256)], np.int64)


def batch(rows: Sequence[Row], disks: Sequence[Disk]) -> pa.RecordBatch:
    """Return rows, 1 to BATCH_ROWS, as a batch; disks: what the rows' disk numbers mean."""
    if len(rows) > BATCH_ROWS:
        raise ValueError(f"{len(rows)} rows")
    (serial, time, channel, disk, outstanding, headers, segments, fates, latency, answers, sense,
     data) = zip(*rows, strict=True)  # fmt: skip
    asked = table(iscsi.ScsiCommand, b"".join(headers))
    longer, read = _additional(segments)
    cdbs = _cdbs(asked["cdb"], longer)
    said = table(iscsi.ScsiResponse, b"".join(answers))
    response = said["opcode"] == Opcode.SCSI_RESPONSE
    failed = response & (said["response"] != 0)
    fate = np.where(failed, np.uint8(Fate.FAILED), np.array(fates, np.uint8))
    silent = (said["opcode"] & 0x3F) == 0
    attribute = _ATTRIBUTES[asked["flags"] & ATTRIBUTES]
    numbers = np.array(disk, np.int32)
    columns: dict[str, Column] = {
        "serial": np.array(serial, np.int64),
        "time_ns": np.array(time, np.int64),
        "channel": np.array(channel, np.int32),
        "disk": numbers,
        "tag": asked["itt"].astype(np.uint64),
        "cdb": cdbs,
        "attribute": pa.array(attribute, mask=attribute == 0xFF),
        "outstanding": np.array(outstanding, np.uint32),
        "fate": fate,
        "latency_ns": pa.array(latency, pa.int64()),
        "status": pa.array(said["status"], mask=silent | failed),
        "sense": pa.array(sense, pa.binary()),
        "residual": pa.array(_residual(said, response), mask=silent),
        "data": pa.array(data, pa.binary()),
    }
    columns["data_out"], columns["data_in"] = _lengths(asked, read)
    columns["sense_key"], columns["asc"], columns["ascq"] = zip(*map(_sense, sense), strict=True)
    return assemble(len(rows), columns | _cdb_columns(cdbs, numbers, disks))


def _lengths(
    asked: npt.NDArray[Any], read: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return bytes out and in. read: of commands with both, what goes in."""
    expected = asked["expected_length"].astype(np.int64)
    writes = (asked["flags"] & Flags.WRITE) != 0
    reads = (asked["flags"] & Flags.READ) != 0
    return np.where(writes, expected, 0), np.where(reads, np.where(writes, read, expected), 0)


def _residual(said: npt.NDArray[Any], response: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Return the residuals of both directions: > 0 not moved, < 0 buffers too short.

    Data-In has them where a SCSI Response has them, but only one.
    """
    total = np.zeros(len(said), np.int64)
    for name, under, over, there in (
        ("residual", Flags.UNDERFLOW, Flags.OVERFLOW, True),
        ("bidi_residual", Flags.BIDI_UNDERFLOW, Flags.BIDI_OVERFLOW, response),
    ):
        count = said[name].astype(np.int64) * there
        total += np.where(said["flags"] & under, count, np.where(said["flags"] & over, -count, 0))
    return total


def _additional(segments: Sequence[bytes]) -> tuple[dict[int, bytes], npt.NDArray[np.int64]]:
    """Return what additional header segments have: rests of CDBs by row, read lengths of all."""
    cdbs: dict[int, bytes] = {}
    read = np.zeros(len(segments), np.int64)
    for row, data in enumerate(segments):
        at = 0
        while at + 4 <= len(data):
            length, kind = int.from_bytes(data[at : at + 2], "big"), data[at + 2]
            body = data[at + 4 : at + 3 + length]
            if kind == AhsType.EXTENDED_CDB:
                cdbs[row] = body
            elif kind == AhsType.READ_LENGTH and len(body) == 4:
                read[row] = int.from_bytes(body, "big")
            at += 3 + length + -(3 + length) % 4
    return cdbs, read


def _cdbs(fields: npt.NDArray[np.uint8], longer: dict[int, bytes]) -> pa.Array:
    """Return CDBs without the padding of their field, if that is zeros, and with their rests."""
    place = np.arange(_CDB_BYTES)
    lengths = _LENGTHS[fields[:, 0]]
    padded = ~np.any((fields != 0) & (place >= lengths[:, None]), axis=1)
    lengths = np.where(padded, lengths, _CDB_BYTES)
    offsets = np.zeros(len(fields) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    content = fields[place < lengths[:, None]].tobytes()
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(content)]
    cdbs = pa.Array.from_buffers(pa.binary(), len(fields), buffers)
    if not longer:
        return cdbs
    values = cdbs.to_pylist()
    for row, rest in longer.items():
        values[row] = fields[row].tobytes() + rest
    return pa.array(values, pa.binary())


def _cdb_columns(
    cdbs: pa.Array, numbers: npt.NDArray[np.int32], disks: Sequence[Disk]
) -> dict[str, Column]:
    """Return what the CDBs say, each to its logical unit's kind of device."""
    kind_of = np.array([disk.device_type for disk in disks])[numbers]
    kinds = np.unique(kind_of)
    if len(kinds) == 1:
        return of_cdbs(cdbs, DeviceType(kinds[0]))
    order, parts = [], []
    for kind in kinds:
        at = np.flatnonzero(kind_of == kind)
        order.append(at)
        parts.append(of_cdbs(cdbs.take(pa.array(at)), DeviceType(kind)))
    back = pa.array(np.argsort(np.concatenate(order)))
    return {
        name: pa.concat_arrays([pa.array(part[name]) for part in parts]).take(back)
        for name in _OF_CDBS
    }


@lru_cache(1 << 10)
def _sense(data: bytes | None) -> tuple[int | None, int | None, int | None]:
    sense = parse_sense(data) if data else None
    return (None, None, None) if sense is None else (sense.key, sense.asc, sense.ascq)
