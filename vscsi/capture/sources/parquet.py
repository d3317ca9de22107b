# SPDX-License-Identifier: MIT
"""Parquet files that `vscsi.capture.sinks.parquet` has written."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vscsi.capture.about import from_json
from vscsi.capture.commands import BATCH_ROWS, SCHEMA, Fate, Operation
from vscsi.capture.sinks.parquet import METADATA_KEY
from vscsi.capture.sources.base import Reading
from vscsi.wire.errors import WireError

NAME = "Parquet of captured commands"
_MAGIC = b"PAR1"
MAX_GROUP_ROWS = 1 << 22
MAX_GROUP_BYTES = 256 << 20
"""Of a row group, unpacked: Arrow allocates what a group says that it has."""
MAX_THRIFT = 64 << 20
"""Bytes of a text, and entries of a list, in the file's metadata."""
MAX_NUMBER = 1 << 62
"""Either side of 0: of times, latencies and lengths, so that two of them may be added."""


def recognise(head: bytes) -> bool:
    """Tell whether it is a Parquet file."""
    return head.startswith(_MAGIC)


def read(stream: IO[bytes]) -> "ParquetSource":
    """Return the commands of a Parquet file; what can't be sought in is copied to a file first."""
    return ParquetSource(NAME, stream)


class ParquetSource(Reading):
    """See `vscsi.capture.commands.Source`; channels and disks are known with the first batch."""

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        group = 0
        with ExitStack() as stack:
            try:
                file = pq.ParquetFile(
                    _seekable(self._stream, stack),
                    thrift_string_size_limit=MAX_THRIFT,
                    thrift_container_size_limit=MAX_THRIFT,
                )
                self._begin(file)
                for group in range(file.num_row_groups):
                    _check_group(file.metadata.row_group(group))
                    for batch in file.iter_batches(BATCH_ROWS, [group], use_threads=False):
                        yield self._checked(batch)
            except (WireError, pa.ArrowException, OSError, EOFError, ValueError) as error:
                reason = " ".join(str(error).split())[:200]
                self.broke(f"in row group {group}: {reason}")

    def _begin(self, file: pq.ParquetFile) -> None:
        found = {field.name: field.type for field in file.schema_arrow}
        if found != {field.name: field.type for field in SCHEMA}:
            raise WireError("its columns are not those of captured commands")
        about = (file.metadata.metadata or {}).get(METADATA_KEY.encode())
        if about is None:
            raise WireError(f"no {METADATA_KEY} in its metadata")
        try:
            from_json(about, self)
        except WireError as error:
            raise WireError(f"{METADATA_KEY} in its metadata: {error}") from error

    def _checked(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Return a batch as SCHEMA has it; WireError if a value is none that a source yields."""
        limits = {
            "channel": (0, len(self.channels) - 1),
            "disk": (0, len(self.disks) - 1),
            "operation": (0, max(Operation)),
            "fate": (0, max(Fate)),
            "time_ns": (-MAX_NUMBER, MAX_NUMBER),
            "latency_ns": (0, MAX_NUMBER),
            "data_out": (0, MAX_NUMBER),
            "data_in": (0, MAX_NUMBER),
            "serial": (0, MAX_NUMBER),
            "residual": (-MAX_NUMBER, MAX_NUMBER),
        }
        columns = []
        for field in SCHEMA:
            column = batch.column(field.name)
            if column.null_count and not field.nullable:
                raise WireError(f"{field.name} is null")
            if field.name in limits and column.null_count < len(column):
                least, most = limits[field.name]
                found: dict[str, Any] = pc.min_max(column).as_py()
                if found["min"] < least or found["max"] > most:
                    raise WireError(f"{field.name} from {found['min']} to {found['max']}")
            columns.append(column)
        return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


def _seekable(stream: IO[bytes], stack: ExitStack) -> IO[bytes]:
    if stream.seekable():
        return stream
    with ExitStack() as opened:
        copy = opened.enter_context(tempfile.TemporaryFile())
        shutil.copyfileobj(stream, copy)
        copy.seek(0)
        stack.push(opened.pop_all())
    return copy


def _check_group(group: pq.RowGroupMetaData) -> None:
    if group.num_rows > MAX_GROUP_ROWS or group.total_byte_size > MAX_GROUP_BYTES:
        size = f"{group.num_rows} rows and {group.total_byte_size} bytes"
        raise WireError(f"a row group of {size}")
