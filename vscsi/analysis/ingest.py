# SPDX-License-Identifier: MIT
"""Sources read into Parquet: first as they come, then in the order of sending, with features.

The second step needs the first: a command comes out of a source when it has ended, and one that
never does comes last of all, so only an external sort has them in order with bounded memory.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vscsi.analysis.ahead import ahead
from vscsi.analysis.columns import RAW, Columns, Ints, Rows, numbers
from vscsi.analysis.engine import DuckDB
from vscsi.analysis.features import FEATURES, Features, ends
from vscsi.analysis.lint import Lint
from vscsi.analysis.notable import Notable
from vscsi.analysis.result import ChannelRow, FileRow
from vscsi.analysis.reuse import ReuseSampler
from vscsi.capture.commands import Channel, Disk, Event, Fate, Source
from vscsi.wire.opcodes import DeviceType

Progress = Callable[[str, int], None]
"""Called with what is being done, and with how many commands it is done."""

_MAX_BLOCK_BYTES = 1 << 16
_BLOCK_DEVICES = (DeviceType.DISK, DeviceType.RBC)
MAX_EVENTS = 1 << 16
"""Over all files."""


class Ingest:
    """Everything that is known of the commands before they are counted."""

    def __init__(self, directory: Path, progress: Progress) -> None:
        """directory: for the Parquet files."""
        self.columns = Columns()
        self.notable = Notable()
        self.lint = Lint()
        self.files: list[FileRow] = []
        self.channels: list[ChannelRow] = []
        self.disks: list[Disk] = []
        self.events: list[Event] = []
        self.events_dropped = 0
        self.start_ns = 0
        self.last_ns = 0
        """Time of the last request."""
        self.end_ns = 0
        """Of the last request or answer."""
        self.reuse: ReuseSampler
        self._progress = progress
        self._directory = directory
        self._channel_numbers: dict[str, int] = {}
        self._disk_numbers: dict[str, int] = {}
        self._commands = 0

    def read(self, sources: Iterable[tuple[str, Source]]) -> None:
        """Read sources, in any order, to their ends; names are for people."""
        with pq.ParquetWriter(self._directory / "raw.parquet", RAW, **_PARQUET) as writer:
            before_ns = None
            for name, source in sources:
                first_ns, last_ns = self._read(name, source, writer)
                if before_ns is not None and first_ns is not None and first_ns < before_ns:
                    self._note("begins before the file before it ends; merged by time")
                before_ns = last_ns if last_ns is not None else before_ns
        self.events.sort(key=lambda each: each.time_ns)

    def _read(
        self, name: str, source: Source, writer: pq.ParquetWriter
    ) -> tuple[int | None, int | None]:
        channels = disks = np.empty(0, np.int64)
        count, first_ns, last_ns = 0, None, None
        for batch in ahead(source):
            if not batch.num_rows:
                continue
            if len(channels) < len(source.channels):
                channels = np.array([self._channel(each) for each in source.channels], np.int64)
            if len(disks) < len(source.disks):
                disks = np.array([self._disk(each) for each in source.disks], np.int64)
            # What a disk is may be learned late.
            types = np.array([int(each.device_type) for each in source.disks], np.int64)
            raw = self.columns.raw(batch, source, len(self.files), channels, disks)
            writer.write_batch(raw)
            self.notable.add(batch, raw)
            self.lint.cdbs(batch, np.isin(types[numbers(batch, "disk")], _BLOCK_DEVICES))
            begin, last = self._times(raw)
            first_ns = begin if first_ns is None else min(first_ns, begin)
            last_ns = last if last_ns is None else max(last_ns, last)
            count += batch.num_rows
            self._commands += batch.num_rows
            self._progress("reading", self._commands)
        self._finish(name, source, count)
        return first_ns, last_ns

    def _times(self, raw: pa.RecordBatch) -> tuple[int, int]:
        rows = _arrays(raw.select(["time_ns", "latency_ns", "fate"]))
        time = rows["time_ns"]
        begin, last = int(time.min()), int(time.max())
        ended = rows["fate"] != Fate.OPEN
        end = int(ends(rows)[ended].max()) if ended.any() else last
        if not self._commands:
            self.start_ns, self.last_ns, self.end_ns = begin, last, end
        self.start_ns = min(self.start_ns, begin)
        self.last_ns = max(self.last_ns, last)
        self.end_ns = max(self.end_ns, last, end)
        return begin, last

    def _finish(self, name: str, source: Source, count: int) -> None:
        """Take what a source knows at its end."""
        channels = [self._channel(each) for each in source.channels]
        disks = [self._disk(each) for each in source.disks]
        for event in source.events[: MAX_EVENTS - len(self.events)]:
            self.events.append(
                Event(
                    event.time_ns,
                    channels[event.channel],
                    event.words,
                    event.outcome,
                    event.function,
                    None if event.disk is None else disks[event.disk],
                    event.managed_tag,
                    event.latency_ns,
                )
            )
        left_out = max(0, len(source.events) - (MAX_EVENTS - len(self.events)))
        self.events_dropped += source.events_dropped + left_out
        troubles = source.troubles
        self.files.append(
            FileRow(
                name=name,
                format=source.format,
                commands=count,
                broken=troubles.broken,
                skipped=troubles.skipped,
                first_skipped=troubles.first_skipped,
                dropped=troubles.dropped,
                notes=tuple(troubles.notes),
            )
        )

    def _note(self, words: str) -> None:
        last = self.files[-1]
        self.files[-1] = FileRow(
            last.name,
            last.format,
            last.commands,
            last.broken,
            last.skipped,
            last.first_skipped,
            last.dropped,
            (*last.notes, words),
        )

    def _channel(self, channel: Channel) -> int:
        number = self._channel_numbers.setdefault(channel.name, len(self.channels))
        if number == len(self.channels):
            row = ChannelRow(channel.name, channel.protocol, dict(channel.parameters))
            self.channels.append(row)
        return number

    def _disk(self, disk: Disk) -> int:
        """Return a disk's number; disks of one name are one, as in the parts of a capture."""
        number = self._disk_numbers.setdefault(disk.name, len(self.disks))
        if number == len(self.disks):
            self.disks.append(disk)
        elif disk.block_count is not None:
            self.disks[number] = disk
        return number

    @property
    def block_bytes(self) -> Ints:
        """Bytes of a block of each disk, within reason."""
        sizes = [min(max(each.block_bytes, 1), _MAX_BLOCK_BYTES) for each in self.disks]
        return np.array(sizes, np.int64)

    def order(self, engine: DuckDB) -> Path:
        """Sort what was read and add FEATURES; return the Parquet file that has them."""
        features = Features(self.block_bytes)
        self.reuse = ReuseSampler(self.block_bytes)
        self.lint.prepare(self.columns.kinds.all, self.disks, self.events)
        raw = engine.table(self._directory / "raw.parquet", "raw")
        # Within a file the serial number tells, whatever its clock did.
        keys = ["serial"] if len(self.files) == 1 else ["time_ns", "file", "serial"]
        path = self._directory / "features.parquet"
        done = 0
        with pq.ParquetWriter(path, FEATURES, **_PARQUET) as writer:
            for batch in ahead(engine.batches(raw.order_by(keys))):
                rows = _arrays(batch)
                writer.write_batch(features.add(rows))
                self.reuse.add(rows)
                self.lint.ordered(rows)
                done += batch.num_rows
                self._progress("ordering", done)
        return path


_PARQUET = {"compression": "lz4", "use_dictionary": False, "write_statistics": False}


def _arrays(batch: pa.RecordBatch) -> Rows:
    names: Sequence[str] = batch.schema.names
    return {name: batch.column(name).to_numpy(zero_copy_only=False) for name in names}
