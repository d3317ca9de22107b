# SPDX-License-Identifier: MIT
"""Sources made of Python rows, and hypothesis strategies for them."""

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
from hypothesis import strategies as st

from vscsi.capture.commands import SCHEMA, Channel, Disk, Event, Fate, Operation, Troubles
from vscsi.wire.cdb import build

OPCODES = {
    Operation.OTHER: 0x00,
    Operation.READ: 0x28,
    Operation.WRITE: 0x2A,
    Operation.FLUSH: 0x35,
    Operation.UNMAP: 0x42,
}
NAMES = {
    Operation.OTHER: "TEST UNIT READY",
    Operation.READ: "READ(10)",
    Operation.WRITE: "WRITE(10)",
    Operation.FLUSH: "SYNCHRONIZE CACHE(10)",
    Operation.UNMAP: "UNMAP",
}
_MOVES = (Operation.READ, Operation.WRITE)


class Made:
    """A Source of rows of SCHEMA; a command comes out when it has ended, as of a real one."""

    format = "made"

    def __init__(
        self,
        rows: Sequence[dict[str, Any]],
        *,
        batch_rows: int = 7,
        disks: Sequence[Disk] = (Disk("disk 0"), Disk("disk 1")),
        channels: Sequence[Channel] = (Channel("ring 0", "srp"), Channel("ring 1", "blkif")),
        events: Sequence[Event] = (),
        troubles: Troubles | None = None,
    ) -> None:
        self.channels, self.disks, self.events = list(channels), list(disks), list(events)
        self.events_dropped = 0
        self.troubles = troubles or Troubles()
        self._rows = sorted(rows, key=_ended)
        self._batch_rows = batch_rows

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        for start in range(0, len(self._rows), self._batch_rows):
            rows = self._rows[start : start + self._batch_rows]
            yield pa.RecordBatch.from_pylist(rows, schema=SCHEMA)


def _ended(row: dict[str, Any]) -> tuple[bool, int]:
    if row["fate"] == Fate.OPEN:
        return True, row["serial"]
    return False, row["time_ns"] + (row["latency_ns"] or 0)


def row(serial: int = 0, **values: Any) -> dict[str, Any]:
    """Return a row of SCHEMA: a READ(10) of 8 blocks, unless values say otherwise."""
    operation = values.get("operation", Operation.READ)
    moves = operation in _MOVES
    lba = values.get("lba", 0 if moves else None)
    blocks = values.get("blocks", 8 if moves else None)
    length = (blocks or 0) * 512
    fields = {"lba": lba & 0xFFFF_FFFF, "blocks": blocks & 0xFFFF} if moves else {}
    return {
        "serial": serial,
        "time_ns": serial * 1000,
        "channel": 0,
        "disk": 0,
        "tag": serial,
        "cdb": build(NAMES.get(operation, "INQUIRY"), **fields),
        "opcode": OPCODES.get(operation),
        "operation": int(operation),
        "fua": False,
        "lba": lba,
        "blocks": blocks,
        "data_out": length if operation == Operation.WRITE else 0,
        "data_in": length if operation == Operation.READ else 0,
        "outstanding": 0,
        "fate": int(Fate.ANSWERED),
        "latency_ns": 500,
        "status": 0,
        "residual": 0,
    } | values


@st.composite
def tables(draw: st.DrawFn, most: int = 60) -> list[dict[str, Any]]:
    """Draw rows in the order of sending: two disks, all operations, addresses near each other."""
    rows = []
    time_ns = draw(st.integers(0, 2**40))
    for serial in range(draw(st.integers(0, most))):
        time_ns += draw(st.sampled_from([0, 1, 700, 5_000, 40_000, 3_000_000, 70_000_000]))
        operation = draw(st.sampled_from([1, 1, 1, 2, 2, 3, 4, 0]))
        fate = draw(st.sampled_from([0] * 12 + [1, 2, 3, 4]))
        values: dict[str, Any] = {
            "time_ns": time_ns,
            "disk": draw(st.integers(0, 1)),
            "operation": operation,
            "outstanding": draw(st.integers(0, 70)),
            "fate": fate,
            "latency_ns": draw(st.sampled_from([0, 1, 999, 1000, 1001, 60_000, 90_000_000]))
            if fate <= Fate.FAILED
            else None,
        }
        if operation in _MOVES:
            values["lba"] = draw(st.integers(0, 300) | st.integers(0, 2**32 - 1))
            values["blocks"] = draw(st.sampled_from([0, 1, 7, 8, 9, 60]))
        rows.append(row(serial, **values))
    return rows
