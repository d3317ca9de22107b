# SPDX-License-Identifier: MIT
"""Parquet: the common table as it is, and what else a source says as JSON in the metadata."""

from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from vscsi.capture.about import to_json
from vscsi.capture.commands import SCHEMA, Source
from vscsi.capture.sinks import Written

NAME = "Parquet of captured commands"
METADATA_KEY = "vscsi.capture"
"""Of the JSON (`vscsi.capture.about`) among the file's metadata."""
GROUP_ROWS = 1 << 18
GROUP_BYTES = 32 << 20
"""A row group ends with the batch that reaches either."""
_COMPRESSION = "zstd"


def write(source: Source, output: IO[bytes]) -> Written:
    """Write a source's commands; nothing is left out."""
    commands = 0
    with pq.ParquetWriter(output, SCHEMA, compression=_COMPRESSION) as writer:
        group: list[pa.RecordBatch] = []
        for batch in source:
            commands += batch.num_rows
            group.append(batch)
            rows, size = sum(map(len, group)), sum(each.nbytes for each in group)
            if rows >= GROUP_ROWS or size >= GROUP_BYTES:
                _write_group(writer, group)
                group = []
        if group:
            _write_group(writer, group)
        writer.add_key_value_metadata({METADATA_KEY: to_json(source)})
    return Written(commands, 0)


def _write_group(writer: pq.ParquetWriter, group: list[pa.RecordBatch]) -> None:
    writer.write_table(pa.Table.from_batches(group, SCHEMA), row_group_size=sum(map(len, group)))
