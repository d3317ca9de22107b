# SPDX-License-Identifier: MIT
"""fio's I/O log, version 3: fio replays what was asked, at the times of the capture.

Reads, writes, flushes and the ranges of UNMAP become read, write, sync and trim; a log has no words
for other commands, for tags, FUA and answers. Times are in microseconds since the first command.
"""

import re
from collections.abc import Iterator
from typing import IO

import pyarrow as pa

from vscsi.capture.commands import Operation, Source
from vscsi.capture.sinks import Written
from vscsi.capture.sources.complete import InOrder
from vscsi.capture.sources.iolog import ACTIONS, HEADER
from vscsi.wire.errors import WireError
from vscsi.wire.parameters import parse_unmap

NAME = "fio iolog, version 3"
_US_NS = 1000
_WORDS = {operation: word for word, operation in reversed(ACTIONS.items())}
_COLUMNS = ("time_ns", "disk", "operation", "lba", "blocks", "data")
_NAME_LENGTH = 200
"""fio reads names of up to 256 bytes."""


def write(source: Source, output: IO[bytes]) -> Written:
    """Write a source's commands in the order of their sending."""
    sink = _Sink(source, output)
    order = InOrder()
    for batch in source:
        for ready in order.add(batch):
            sink.add(ready)
    for ready in order.rest():
        sink.add(ready)
    sink.close()
    return Written(sink.commands, sink.left_out, sink.why)


class _Sink:
    def __init__(self, source: Source, output: IO[bytes]) -> None:
        self._source = source
        self._output = output
        self._names: dict[int, str] = {}
        self._first_ns: int | None = None
        self._now_us = 0
        self.commands = 0
        self.left_out = 0
        self.why = ""
        output.write(HEADER.format(3).encode())

    def add(self, batch: pa.RecordBatch) -> None:
        columns = [batch.column(name).to_pylist() for name in _COLUMNS]
        lines: list[str] = []
        for time_ns, disk, operation, *rest in zip(*columns, strict=True):
            if self._first_ns is None:
                self._first_ns = time_ns
            # fio knows no way back in time.
            self._now_us = max(self._now_us, (time_ns - self._first_ns) // _US_NS)
            word = _WORDS.get(operation)
            if word is None:
                self._leave_out("a log has no word for it")
                continue
            ranges = list(self._ranges(operation, self._source.disks[disk].block_bytes, *rest))
            if not ranges:
                self._leave_out("it has no address")
                continue
            self.commands += 1
            name = self._names.get(disk) or self._open(disk, lines)
            for offset, length in ranges:
                lines.append(f"{self._now_us} {name} {word} {offset} {length}\n")
        self._output.write("".join(lines).encode())

    def close(self) -> None:
        """Write that no file is used any more."""
        lines = [f"{self._now_us} {name} close\n" for name in self._names.values()]
        self._output.write("".join(lines).encode())

    def _leave_out(self, why: str) -> None:
        self.left_out += 1
        self.why = self.why or why

    @staticmethod
    def _ranges(
        operation: int,
        block_bytes: int,
        lba: int | None,
        blocks: int | None,
        data: bytes | None,
    ) -> Iterator[tuple[int, int]]:
        """Yield the (offset, length) in bytes that a command is about; (0, 0) of a flush."""
        if operation == Operation.FLUSH:
            yield 0, 0
        elif lba is not None and blocks is not None:
            yield lba * block_bytes, blocks * block_bytes
        elif operation == Operation.UNMAP and data:
            try:
                for start, count in parse_unmap(data):
                    yield start * block_bytes, count * block_bytes
            except WireError:  # not all of the list was kept
                return

    def _open(self, disk: int, lines: list[str]) -> str:
        """Give a disk a path that fio takes, and announce it."""
        name = re.sub(r"[^!-~]", "-", self._source.disks[disk].name)[:_NAME_LENGTH]
        name = name if name.startswith("/") else f"/{name}"
        if name in self._names.values():
            name += f"-{disk}"
        self._names[disk] = name
        lines += [f"{self._now_us} {name} {action}\n" for action in ("add", "open")]
        return name
