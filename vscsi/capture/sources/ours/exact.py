# SPDX-License-Identifier: MIT
"""Messages one by one: through `Exchanges`, and what comes of them as rows and events."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
from construct import Container

from vscsi.capture.commands import Event, Fate
from vscsi.capture.decode import Kind, Request
from vscsi.capture.exchange import Exchange, Exchanges
from vscsi.capture.reader import Captured
from vscsi.capture.show import outcome
from vscsi.capture.sources.ours.layout import Ints
from vscsi.capture.sources.ours.rows import MAX_BLOCKS, REQUEST, ROW, limited, table
from vscsi.capture.sources.ours.timeline import END_NS, Timeline
from vscsi.capture.sources.ours.units import Units
from vscsi.target.base import Function
from vscsi.wire.cdb import cdb_length
from vscsi.wire.errors import WireError
from vscsi.wire.record import PayloadKind, Protocol

_FATES = {"aborted": Fate.ABORTED, "": Fate.OPEN}
_FUNCTIONS = frozenset(Function)
_NO_RECORD = Container()
"""Of a command that was taken apart elsewhere: nobody looks at it."""
_AT = {name: at for at, name in enumerate(REQUEST.names)}


class Exact:
    """Joins messages, and commands that were taken apart elsewhere, exactly as `Exchanges` does."""

    def __init__(self, units: Units, timeline: Timeline, happened: Callable[[Event], None]) -> None:
        self.exchanges = Exchanges()
        self.parameters: dict[int, dict[str, str]] = {}
        """Of the channels."""
        self.others: list[tuple[int, Exchange]] = []
        """While suspended: what waits for an answer and is no command, by its id."""
        self.unasked = 0
        """Answers to requests that were not captured."""
        self._units = units
        self._timeline = timeline
        self._happened = happened
        self._next_id = 0
        self._waiting: dict[int, tuple[int, tuple[Any, ...] | None]] = {}
        """By their serials in `exchanges`: ids, and of commands the values of REQUEST."""
        self._arrived: list[tuple[int, int, int, int]] = []
        self._over: list[tuple[int, int, int, int]] = []
        self._rows: list[tuple[Any, ...]] = []
        """What `flush` gives to the timeline."""

    def take_ids(self, count: int) -> Ints:
        """Return the numbers of requests that come next."""
        ids = np.arange(self._next_id, self._next_id + count)
        self._next_id += count
        return ids

    def open_tags(self) -> list[int]:
        """Return the tags of `others` whose answers look like those to commands."""
        return [
            exchange.request.tag
            for _, exchange in self.others
            if exchange.request is not None
            and exchange.request.tag is not None
            and exchange.kind in (Kind.COMMAND, Kind.MANAGEMENT)
        ]

    def resume(self, commands: pa.RecordBatch) -> None:
        """Have `commands` (REQUEST) and `others` wait for their answers."""
        rows = zip(*(column.to_pylist() for column in commands.columns), strict=True)
        waiting: list[tuple[int, Exchange, tuple[Any, ...] | None]] = [
            (row[_AT["id"]], self._exchange(row), row) for row in rows
        ]
        waiting += [(number, exchange, None) for number, exchange in self.others]
        self.others = []
        for number, exchange, values in sorted(waiting, key=lambda each: each[0]):
            self.exchanges.resume(exchange)
            self._waiting[exchange.serial] = number, values

    def suspend(self) -> pa.RecordBatch:
        """Let go of what waits, and return the commands among it (REQUEST); see `others`."""
        self.flush()
        rows = []
        for exchange in self.exchanges.rest():
            number, values = self._waiting.pop(exchange.serial)
            if values is None:
                self.others.append((number, exchange))
            else:
                rows.append(values)
        return limited(table(REQUEST, rows))

    def add(self, captured: Captured, position: int) -> None:
        """Take a message."""
        for ended in self.exchanges.add(captured):
            self._ended(ended, captured, position)
        new = self.exchanges.newest
        if new is not None:
            (number,) = self.take_ids(1).tolist()
            values = self._values(new, number, position)
            self._waiting[new.serial] = number, values

    def rest(self, position: int) -> None:
        """End what still waits; nothing will come any more."""
        for exchange in self.exchanges.rest():
            self._ended(exchange, None, position)
        self.flush()

    def flush(self) -> None:
        """Give the timeline what has arrived and ended."""
        if self._arrived:
            self._timeline.arrive(*np.array(self._arrived, np.int64).T)
        if self._over:
            ids, end_ns, disks, positions = np.array(self._over, np.int64).T
            self._timeline.end(ids, end_ns, disks, positions, table(ROW, self._rows))
        self._arrived, self._over, self._rows = [], [], []

    def _values(self, exchange: Exchange, number: int, position: int) -> tuple[Any, ...] | None:
        """Return the values of REQUEST; None for what is no command."""
        captured, request = exchange.captured, exchange.request
        if request is None or request.kind is not Kind.COMMAND:
            return None
        record = captured.record
        if record.protocol != Protocol.BLKIF and not request.cdb:
            return None
        disk = self._disk(captured, request)
        self._arrived.append((number, captured.time_ns, disk, position))
        blkif = request.block_operation is not None
        blocks = request.blocks
        return (
            number,
            position,
            captured.time_ns,
            captured.interface,
            disk,
            request.tag,
            None if blkif else trim_cdb(request.cdb),
            request.block_operation,
            request.lba,
            blocks if blocks is None or blocks <= MAX_BLOCKS else None,
            request.attribute,
            request.data_out,
            request.data_in,
            record.ring_index,
            _payload(captured),
        )

    def _disk(self, captured: Captured, request: Request) -> int:
        record = captured.record
        path = record.protocol << 32 | record.domain << 16 | record.device
        known = self.parameters.get(captured.interface, {})
        return self._units.number(path, request.lun, request.address, known)

    def _exchange(self, row: tuple[Any, ...]) -> Exchange:
        """Return what `Exchanges` must know of a command."""
        captured = Captured(row[_AT["time_ns"]], row[_AT["channel"]], _NO_RECORD, 0)
        lun = self._units.name(row[_AT["disk"]])
        return Exchange(captured, Request(Kind.COMMAND, row[_AT["tag"]], "", lun=lun))

    def _ended(self, exchange: Exchange, by: Captured | None, position: int) -> None:
        """Take what came to an end; by: the message that ended it, None at the end of all."""
        number, values = self._waiting.pop(exchange.serial, (0, None))
        if exchange.request is None:
            self.unasked += 1
        elif values is None:
            self._happened(self._event(exchange, exchange.request))
        else:
            disk = values[_AT["disk"]]
            end_ns = END_NS if by is None else max(by.time_ns, values[_AT["time_ns"]])
            self._over.append((number, end_ns, disk, position))
            self._rows.append((*values, *_end(exchange, by)))

    def _event(self, exchange: Exchange, request: Request) -> Event:
        captured, answer = exchange.captured, exchange.answer
        malformed = request.kind is Kind.MALFORMED
        managed = request.kind is Kind.MANAGEMENT
        function = request.function
        return Event(
            captured.time_ns,
            captured.interface,
            f"MALFORMED {request.words}" if malformed else request.words,
            outcome(exchange, answer) if answer is not None else exchange.fate,
            Function(function) if managed and function in _FUNCTIONS else None,
            self._disk(captured, request) if managed else None,
            request.managed_tag if managed and function == Function.ABORT_TASK else None,
            exchange.latency_ns,
        )


def trim_cdb(cdb: bytes) -> bytes:
    """Leave out what is behind a CDB, where its opcode says how long it is (SPC-5 4.2.5.1)."""
    try:
        return cdb[: cdb_length(cdb)]
    except WireError:
        return cdb


def _end(exchange: Exchange, by: Captured | None) -> tuple[Any, ...]:
    """Return the values of END."""
    answer, latency = exchange.answer, exchange.latency_ns
    if answer is None or by is None:
        return _FATES.get(exchange.fate, Fate.LOST), None, None, None, None, None
    return (
        Fate.FAILED if answer.failed else Fate.ANSWERED,
        latency if latency is not None and latency >= 0 else None,
        None if answer.failed else answer.status,
        answer.residual,
        answer.sense_data or None,
        _payload(by),
    )


def _payload(captured: Captured) -> bytes | None:
    """Return the data that a message was captured with."""
    record = captured.record
    if record.payload_kind != PayloadKind.HEAD:
        return None
    payload: bytes = record.payload
    return payload
