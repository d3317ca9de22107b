# SPDX-License-Identifier: MIT
"""The columns of requests, and of rows that have come to an end, on their way to SCHEMA."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vscsi.capture.commands import Fate, Operation
from vscsi.capture.sources.columns import Column, assemble, of_cdbs, of_senses
from vscsi.capture.sources.ours.layout import Bools, Ints
from vscsi.capture.sources.ours.messages import Messages
from vscsi.wire import blkif, parameters
from vscsi.wire.cdb import named
from vscsi.wire.errors import WireError
from vscsi.wire.formats import parse

REQUEST = pa.schema(
    {
        "id": pa.int64(),
        "position": pa.int64(),
        "time_ns": pa.int64(),
        "channel": pa.int32(),
        "disk": pa.int32(),
        "tag": pa.uint64(),
        "cdb": pa.binary(),
        "block_operation": pa.uint8(),
        "lba": pa.uint64(),
        "blocks": pa.uint32(),
        "attribute": pa.uint8(),
        "data_out": pa.int64(),
        "data_in": pa.int64(),
        "ring_index": pa.uint32(),
        "payload_out": pa.binary(),
    }
)
END = pa.schema(
    {
        "fate": pa.uint8(),
        "latency_ns": pa.int64(),
        "status": pa.uint8(),
        "residual": pa.int64(),
        "sense": pa.binary(),
        "payload_in": pa.binary(),
    }
)
ROW = pa.schema([*REQUEST, *END])
MAX_PAYLOADS = 64 << 20
"""Bytes of the data of commands that wait for their answers; beyond that none is kept."""
MAX_BLOCKS = 0xFFFF_FFFF

_SAME: tuple[str, ...] = (
    "time_ns",
    "channel",
    "disk",
    "tag",
    "cdb",
    "attribute",
    "data_out",
    "data_in",
)
_SAME += ("ring_index", "fate", "latency_ns", "status", "sense", "residual")
_OPERATIONS = np.zeros(256, np.uint8)
for _code, _operation in {
    blkif.Operation.READ: Operation.READ,
    blkif.Operation.WRITE: Operation.WRITE,
    blkif.Operation.WRITE_BARRIER: Operation.WRITE,
    blkif.Operation.FLUSH_DISKCACHE: Operation.FLUSH,
    blkif.Operation.DISCARD: Operation.UNMAP,
}.items():
    _OPERATIONS[_code] = _operation
_UNMAP = named("UNMAP").opcode


def table(schema: pa.Schema, rows: Sequence[Sequence[Any]]) -> pa.RecordBatch:
    """Return rows of values as a batch."""
    columns = zip(*rows, strict=True) if rows else [()] * len(schema)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def concatenated(schema: pa.Schema, batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    """Return batches as one."""
    whole = pa.Table.from_batches(batches, schema).combine_chunks().to_batches()
    return whole[0] if whole else table(schema, [])


def limited(requests: pa.RecordBatch) -> pa.RecordBatch:
    """Return requests (REQUEST) that take no more memory than waiting ones may."""
    at = REQUEST.names.index("payload_out")
    if requests.column(at).nbytes <= MAX_PAYLOADS:
        return requests
    nothing = pa.nulls(len(requests), pa.binary())
    return requests.set_column(at, REQUEST.field(at), nothing)


def requests_of(
    messages: Messages, at: Ints, ids: Ints, positions: Ints, disks: Ints
) -> pa.RecordBatch:
    """Return the requests among messages `at`."""
    blocks = messages.blocks[at]
    fits = (blocks >= 0) & (blocks <= MAX_BLOCKS)
    columns = {
        "id": pa.array(ids),
        "position": pa.array(positions),
        "time_ns": pa.array(messages.time_ns[at]),
        "channel": pa.array(messages.channel[at].astype(np.int32)),
        "disk": pa.array(disks.astype(np.int32)),
        "tag": pa.array(messages.tag[at]),
        "cdb": messages.bytes.slices(messages.cdb_at[at], messages.cdb_length[at]),
        "block_operation": _known(messages.block_operation[at], np.uint8),
        "lba": pa.array(messages.lba[at], mask=blocks < 0),
        "blocks": pa.array(np.where(fits, blocks, 0).astype(np.uint32), mask=~fits),
        "attribute": _known(messages.attribute[at], np.uint8),
        "data_out": pa.array(messages.data_out[at]),
        "data_in": pa.array(messages.data_in[at]),
        "ring_index": pa.array(messages.ring_index[at].astype(np.uint32)),
        "payload_out": messages.bytes.slices(messages.payload_at[at], messages.payload_length[at]),
    }
    return pa.RecordBatch.from_arrays([columns[name] for name in REQUEST.names], schema=REQUEST)


def answered(requests: pa.RecordBatch, messages: Messages, at: Ints) -> pa.RecordBatch:
    """Return requests with the answers among messages `at`."""
    latency = messages.time_ns[at] - requests.column("time_ns").to_numpy()
    failed = messages.failed[at]
    sense = messages.sense_length[at]
    columns = {
        "fate": pa.array(np.where(failed, Fate.FAILED, Fate.ANSWERED).astype(np.uint8)),
        "latency_ns": pa.array(latency, mask=latency < 0),
        "status": _known(np.where(failed, -1, messages.status[at]), np.uint8),
        "residual": pa.array(messages.residual[at]),
        "sense": messages.bytes.slices(messages.sense_at[at], np.where(sense > 0, sense, -1)),
        "payload_in": messages.bytes.slices(messages.payload_at[at], messages.payload_length[at]),
    }
    arrays = [*requests.columns, *(columns[name] for name in END.names)]
    return pa.RecordBatch.from_arrays(arrays, schema=ROW)


def _known(values: Ints, kind: type[np.unsignedinteger[Any]]) -> pa.Array:
    """Return numbers, null where they are negative."""
    return pa.array(np.maximum(values, 0).astype(kind), mask=values < 0)


def unanswered(requests: pa.RecordBatch) -> pa.RecordBatch:
    """Return requests as SCHEMA has those that are still open; serials and counts are 0."""
    size = len(requests)
    ends = [pa.nulls(size, field.type) for field in END]
    ends[END.get_field_index("fate")] = pa.array(np.full(size, Fate.OPEN, np.uint8))
    rows = pa.RecordBatch.from_arrays([*requests.columns, *ends], schema=ROW)
    none = np.zeros(size, np.int64)
    return to_schema(rows, none, none)


def to_schema(rows: pa.RecordBatch, serials: Ints, outstanding: Ints) -> pa.RecordBatch:
    """Return rows as SCHEMA has them."""
    cdbs = rows.column("cdb")
    columns: dict[str, Column] = {name: rows.column(name) for name in _SAME}
    if cdbs.null_count == len(rows):
        columns |= _of_blkif(rows)
    else:
        columns |= of_cdbs(cdbs)
        if cdbs.null_count:
            of_blkif = _of_blkif(rows)
            has_cdb = cdbs.is_valid()
            for name, column in of_blkif.items():
                columns[name] = pc.if_else(has_cdb, pa.array(columns[name]), pa.array(column))
    columns |= of_senses(rows.column("sense"))
    data = _data(rows)
    columns |= {"serial": serials, "outstanding": outstanding, "data": data}
    batch = assemble(len(rows), columns)
    return batch if data.null_count == len(rows) else _with_unmapped(batch)


def _of_blkif(rows: pa.RecordBatch) -> dict[str, Column]:
    operation = rows.column("block_operation")
    numbers = operation.fill_null(0xFF).to_numpy()
    return {
        "opcode": operation,
        "operation": pa.array(_OPERATIONS[numbers]),
        "lba": rows.column("lba"),
        "blocks": rows.column("blocks"),
    }


def _data(rows: pa.RecordBatch) -> pa.Array:
    """Return the captured data, out and then in; null where there are neither."""
    out, into = rows.column("payload_out"), rows.column("payload_in")
    if out.null_count == len(rows):
        return into
    if into.null_count == len(rows):
        return out
    both = pc.binary_join_element_wise(out.fill_null(b""), into.fill_null(b""), b"")
    either = pc.or_(out.is_valid(), into.is_valid())
    return pc.if_else(either, both, pa.scalar(None, pa.binary()))


def _with_unmapped(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Give each UNMAP whose parameter list was captured the first of its ranges, and their sum."""
    unmaps: Bools = batch.column("opcode").fill_null(0).to_numpy() == _UNMAP
    unmaps &= np.asarray(batch.column("cdb").is_valid()) & np.asarray(
        batch.column("data").is_valid()
    )
    at = np.flatnonzero(unmaps)
    if not len(at):
        return batch
    lba = batch.column("lba").to_pylist()
    blocks = batch.column("blocks").to_pylist()
    for row in at:
        lba[row], blocks[row] = _unmapped(batch.column("data")[row].as_py())
    columns = {"lba": pa.array(lba, pa.uint64()), "blocks": pa.array(blocks, pa.uint32())}
    arrays = [columns.get(name, batch.column(name)) for name in batch.schema.names]
    return pa.RecordBatch.from_arrays(arrays, schema=batch.schema)


def _unmapped(data: bytes) -> tuple[int | None, int | None]:
    """Return where a parameter list begins to unmap, and how many blocks in all."""
    head_size, size = parameters.UnmapHeader.sizeof(), parameters.UnmapDescriptor.sizeof()
    try:
        head = parse(parameters.UnmapHeader, data[:head_size], "UNMAP")
        length = head.block_descriptor_data_length // size * size
        if len(data) < head_size + length:
            return None, None  # not all of it was captured
        ranges = [
            parse(parameters.UnmapDescriptor, data[each : each + size], "UNMAP")
            for each in range(head_size, head_size + length, size)
        ]
    except WireError:
        return None, None
    total = sum(each.blocks for each in ranges)
    return (ranges[0].lba, total) if ranges and total <= MAX_BLOCKS else (None, None)
