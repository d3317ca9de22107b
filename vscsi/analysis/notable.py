# SPDX-License-Identifier: MIT
"""The commands that are shown one by one: the slowest, the unanswered, those that were refused.

They are kept while the batches, with their CDBs, go by; how many is bounded.
"""

import heapq
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from vscsi.analysis.columns import NONE, CommandKind
from vscsi.analysis.result import ChannelRow, Moment
from vscsi.capture.commands import Disk, Fate
from vscsi.target.base import Status
from vscsi.wire.cdb import describe
from vscsi.wire.sense import Sense, parse_sense

MAX_SLOWEST = 20
MAX_STUCK = 100
MAX_CAUSES = 1024
"""Pairs of a sense code and a kind of command of which the first is kept."""

_FATES = {
    Fate.FAILED: "not executed",
    Fate.ABORTED: "aborted",
    Fate.LOST: "answer lost",
    Fate.OPEN: "no answer",
}

_RENUMBERED = ["channel", "disk", "kind"]


class Notable:
    """Keeps rows of SCHEMA, as dictionaries, with their disk and channel renumbered."""

    def __init__(self) -> None:
        self._slowest: list[tuple[int, int, dict[str, Any]]] = []
        self._stuck: list[tuple[int, int, dict[str, Any]]] = []
        self.causes: dict[tuple[int, int], dict[str, Any]] = {}
        """By sense code (as in RAW) and kind: the first command that was answered so."""
        self._met = 0

    def add(self, batch: pa.RecordBatch, raw: pa.RecordBatch) -> None:
        """Look at a batch of SCHEMA, and the same rows in RAW."""
        latency = raw.column("latency_ns").to_numpy()
        least = self._slowest[0][0] if len(self._slowest) == MAX_SLOWEST else NONE
        candidates = np.flatnonzero(latency > least)
        if len(candidates) > MAX_SLOWEST:
            most = np.argpartition(latency[candidates], -MAX_SLOWEST)[-MAX_SLOWEST:]
            candidates = candidates[most]
        for row in candidates:
            self._push(self._slowest, MAX_SLOWEST, int(latency[row]), batch, raw, int(row))
        time = raw.column("time_ns").to_numpy()
        for row in np.flatnonzero(raw.column("fate").to_numpy() == Fate.OPEN):
            if len(self._stuck) < MAX_STUCK or -time[row] > self._stuck[0][0]:
                self._push(self._stuck, MAX_STUCK, -int(time[row]), batch, raw, int(row))
        self._add_causes(batch, raw)

    def _push(
        self,
        heap: list[tuple[int, int, dict[str, Any]]],
        size: int,
        rank: int,
        batch: pa.RecordBatch,
        raw: pa.RecordBatch,
        row: int,
    ) -> None:
        self._met += 1
        # Of equals the one that was met first stays.
        entry = rank, -self._met, _row(batch, raw, row)
        if len(heap) < size:
            heapq.heappush(heap, entry)
        else:
            heapq.heappushpop(heap, entry)

    def _add_causes(self, batch: pa.RecordBatch, raw: pa.RecordBatch) -> None:
        sense = raw.column("sense").to_numpy()
        refused = np.flatnonzero(sense >= 0)
        kind = raw.column("kind").to_numpy()
        pairs = sense[refused].astype(np.int64) << 16 | kind[refused]
        for pair, first in zip(*np.unique(pairs, return_index=True), strict=True):
            key = int(pair) >> 16, int(pair) & 0xFFFF
            if key not in self.causes and len(self.causes) < MAX_CAUSES:
                self.causes[key] = _row(batch, raw, int(refused[first]))

    def slowest(self) -> list[dict[str, Any]]:
        """Return the slowest, slowest first."""
        return [row for _, _, row in sorted(self._slowest, key=lambda each: each[:2], reverse=True)]

    def stuck(self) -> list[dict[str, Any]]:
        """Return the unanswered that have been waiting longest, oldest first."""
        return [row for _, _, row in sorted(self._stuck, key=lambda each: each[:2], reverse=True)]


def _row(batch: pa.RecordBatch, raw: pa.RecordBatch, row: int) -> dict[str, Any]:
    values: dict[str, Any] = batch.slice(row, 1).to_pylist()[0]
    renumbered: dict[str, Any] = raw.slice(row, 1).select(_RENUMBERED).to_pylist()[0]
    return values | renumbered


class Teller:
    """Puts kept rows into words."""

    def __init__(
        self,
        kinds: Sequence[CommandKind],
        disks: Sequence[Disk],
        channels: Sequence[ChannelRow],
        start_ns: int,
        end_ns: int,
    ) -> None:
        self._kinds, self._disks, self._channels = kinds, disks, channels
        self._start_ns, self._end_ns = start_ns, end_ns

    def moment(self, row: dict[str, Any]) -> Moment:
        """Return a command, decoded."""
        latency = row["latency_ns"]
        if row["fate"] == Fate.OPEN:
            latency = self._end_ns - row["time_ns"]
        return Moment(
            time_s=(row["time_ns"] - self._start_ns) / 1e9,
            time_ns=row["time_ns"],
            disk=self._disks[row["disk"]].name,
            channel=self._channels[row["channel"]].name,
            tag=row["tag"],
            words=self.words(row),
            cdb=(row["cdb"] or b"").hex(),
            answer=answer(row),
            latency_us=None if latency is None else latency / 1000,
        )

    def words(self, row: dict[str, Any]) -> str:
        """Return a request in words."""
        if row["cdb"]:
            return describe(row["cdb"], self._disks[row["disk"]].device_type)
        words: str = self._kinds[row["kind"]].name
        if row["lba"] is not None:
            words += f" lba {row['lba']}"
        if row["blocks"] is not None:
            words += f" blocks {row['blocks']}"
        return words


def answer(row: dict[str, Any]) -> str:
    """Return an answer in words, or what became of a command without one."""
    if row["fate"] in _FATES:
        return _FATES[Fate(row["fate"])]
    words = []
    if row["status"] is not None:
        words.append(_status(row["status"]))
    sense = parse_sense(row["sense"]) if row["sense"] else None
    if sense is None and row["sense_key"] is not None:
        sense = Sense(row["sense_key"], row["asc"] or 0, row["ascq"] or 0)
    if sense is not None:
        words.append(sense.describe())
    return ", ".join(words) or "answered"


def _status(code: int) -> str:
    try:
        return str(Status(code).name).replace("_", " ")
    except ValueError:
        return f"status 0x{code:02x}"
