# SPDX-License-Identifier: MIT
"""Rows back in the order of sending: sources yield them in the order of completion."""

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa

WINDOW_ROWS = 1 << 15
"""Commands that a row may come late by and still find its place."""
WINDOW_BYTES = 64 << 20
"""Of rows that wait for their place; where they have much data, fewer wait."""
PIECE_ROWS = 1 << 10


class InOrder:
    """Batches of SCHEMA sorted by `serial`, within a window, as pieces of a few rows.

    A row that comes later than that is yielded as soon as it comes, and counted in `late`. It is
    no hazard: what was yielded before it had ended before it had, so none of that waited for it.
    """

    def __init__(
        self,
        batches: Iterable[pa.RecordBatch],
        *,
        rows: int = WINDOW_ROWS,
        size_bytes: int = WINDOW_BYTES,
    ) -> None:
        """Wait with at least `rows` rows, unless they have more than `size_bytes`."""
        self.late = 0
        self._batches = batches
        self._rows = rows
        self._size_bytes = size_bytes
        self._last: int | None = None

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        waiting: list[pa.RecordBatch] = []
        rows = size_bytes = 0
        for batch in self._batches:
            waiting.append(batch)
            rows += batch.num_rows
            size_bytes += batch.nbytes
            if rows < 2 * self._rows and size_bytes < self._size_bytes:
                continue
            table = _sorted(waiting)
            going = rows - min(self._rows, rows // 2)
            yield from self._pieces(table.slice(0, going))
            # Copied, since a slice would keep alive what has gone.
            waiting = _sorted([table.slice(going)]).to_batches()
            rows, size_bytes = rows - going, sum(each.nbytes for each in waiting)
        if waiting:
            yield from self._pieces(_sorted(waiting))

    def _pieces(self, table: pa.Table) -> Iterator[pa.RecordBatch]:
        for piece in table.to_batches(max_chunksize=PIECE_ROWS):
            serials = piece.column("serial").to_numpy()
            if not len(serials):
                continue
            if self._last is not None:
                self.late += int(np.count_nonzero(serials < self._last))
            self._last = max(int(serials[-1]), self._last or 0)
            yield piece


def _sorted(parts: list[pa.RecordBatch] | list[pa.Table]) -> pa.Table:
    tables = [
        pa.Table.from_batches([each]) if isinstance(each, pa.RecordBatch) else each
        for each in parts
    ]
    return pa.concat_tables(tables).sort_by("serial")
