# SPDX-License-Identifier: MIT
"""A source's commands taken apart: requests and answers as messages, in the order of their times.

A source has a command when it has ended, which may be long after it was sent. So the commands go
to a temporary file first, and DuckDB sorts it in bounded memory.
"""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import duckdb
import pyarrow.parquet as pq

from vscsi.capture.commands import SCHEMA, Fate, Source

_Setting = str | bool | int | float | list[str]

_MEMORY = "384MB"
_ROWS = 1 << 13
_ORDER = """
WITH commands AS (SELECT * FROM read_parquet($file, file_row_number = true))
SELECT time_ns AS at, 1 AS phase, serial AS place, file_row_number AS number,
       channel, disk, tag, cdb, operation, attribute, fua, lba, blocks, data_out, data_in,
       fate, status, sense, residual, data,
       coalesce(fate IN ($answered, $failed) AND latency_ns >= 0, false) AS answered
FROM commands
UNION ALL
SELECT time_ns + latency_ns, CASE latency_ns WHEN 0 THEN 2 ELSE 0 END, file_row_number,
       file_row_number, channel, disk, tag, cdb, operation, attribute, fua, lba, blocks,
       data_out, data_in, fate, status, sense, residual, data, true
FROM commands
WHERE fate IN ($answered, $failed) AND latency_ns >= 0
ORDER BY 1, 2, 3
"""
"""At one time, answers come before requests, except those to requests of that time."""


class Message(NamedTuple):
    """A request or an answer; either has the whole command's columns."""

    time_ns: int
    phase: int
    place: int
    number: int
    """Of the command."""
    channel: int
    disk: int
    tag: int | None
    cdb: bytes | None
    operation: int
    attribute: int | None
    fua: bool
    lba: int | None
    blocks: int | None
    data_out: int
    data_in: int
    fate: int
    status: int | None
    sense: bytes | None
    residual: int | None
    data: bytes | None
    answered: bool
    """Whether an answer comes, or this is it."""

    @property
    def is_request(self) -> bool:
        """Return whether it is the request."""
        return self.phase == 1


def messages(source: Source) -> Iterator[Message]:
    """Yield a source's messages once it was read to its end."""
    with TemporaryDirectory(prefix="vscsi-") as directory:
        file = str(Path(directory) / "commands.parquet")
        with pq.ParquetWriter(file, SCHEMA, compression="lz4") as writer:
            for batch in source:
                writer.write_batch(batch)
        settings: dict[str, _Setting] = {"memory_limit": _MEMORY, "temp_directory": directory}
        with closing(duckdb.connect(config=settings)) as database:
            values = {"file": file, "answered": Fate.ANSWERED.value, "failed": Fate.FAILED.value}
            relation = database.sql(_ORDER, params=values)
            for batch in relation.to_arrow_reader(_ROWS):
                columns = [column.to_pylist() for column in batch.columns]
                yield from map(Message._make, zip(*columns, strict=True))
