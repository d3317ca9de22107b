# SPDX-License-Identifier: MIT
"""A capture of ours as a source of commands."""

from collections.abc import Iterator
from typing import IO

import numpy as np
import pyarrow as pa

from vscsi.capture.commands import BATCH_ROWS, Channel
from vscsi.capture.exchange import MAX_OPEN
from vscsi.capture.reader import Captured, CaptureReader, Run
from vscsi.capture.sources.base import Reading
from vscsi.capture.sources.ours.blocks import packets
from vscsi.capture.sources.ours.clock import Clock
from vscsi.capture.sources.ours.exact import Exact
from vscsi.capture.sources.ours.layout import Array, Ints
from vscsi.capture.sources.ours.messages import Messages
from vscsi.capture.sources.ours.pairs import pair
from vscsi.capture.sources.ours.rows import (
    REQUEST,
    answered,
    concatenated,
    limited,
    requests_of,
    table,
    to_schema,
    unanswered,
)
from vscsi.capture.sources.ours.timeline import END_NS, Timeline
from vscsi.capture.sources.ours.units import Units
from vscsi.wire.errors import WireError

NAME = "pcapng of vscsi"
CALM = 32
"""Usual messages after an unusual one that still go one by one: another may follow."""
TOGETHER = 1 << 10
"""Messages outside of runs after which rows are looked for."""
_HALF = 1 << 31
"""Of the numbers that a ring index may have."""


class RingCapture(Reading):
    """The commands of a capture. See `vscsi.capture.commands.Source`."""

    def __init__(self, stream: IO[bytes]) -> None:
        super().__init__(NAME, stream)
        self._reader = CaptureReader(stream)
        self._units = Units(self.disks)
        self._timeline = Timeline()
        self._clock = Clock()
        self._exact = Exact(self._units, self._timeline, self.happened)
        self._parameters: dict[int, dict[str, str]] = self._exact.parameters
        self._open: pa.RecordBatch | None = table(REQUEST, [])
        """Commands without an answer, while everything is usual; else `_exact` has them."""
        self._waiting = table(REQUEST, [])
        """The same, as of the last run after which it was known."""
        self._position = 0
        """Of the message at hand among all."""
        self._unasked = 0

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        try:
            for part in self._reader.runs(packets):
                self._describe_channels()
                if part is None:
                    self._waiting = self._freeze()
                    yield from self._settled(self._clock.latest)
                    continue
                if isinstance(part, Run):
                    self._take(part)
                    self._waiting = self._open if self._open is not None else self._waiting
                elif self._take_one(part):
                    continue
                yield from self._settled(self._clock.until())
        except WireError as error:
            self.broke(str(error))
        except OSError as error:  # a broken disk
            self.broke(f"after message {self._position}: {error}")
        self._describe_channels()
        self._thaw()
        self._exact.rest(self._position)
        yield from self._settled(END_NS)
        self._tell()

    @property
    def dropped(self) -> int:
        """Messages that are missing so far; any thread."""
        return self._reader.dropped

    def waiting(self) -> pa.RecordBatch:
        """Return the commands without an answer so far, oldest first, as rows; any thread."""
        return unanswered(self._waiting)

    def _tell(self) -> None:
        reader, notes = self._reader, self.troubles.notes
        if reader.skipped:
            self.skip(reader.first_skipped, reader.skipped)
        self.troubles.dropped = reader.dropped
        unasked = self._unasked + self._exact.unasked
        if unasked:
            notes.append(f"{unasked} answers to requests that were not captured")
        if self._units.lost:
            notes.append(f"{self._units.lost} commands of further disks count as the last disk's")
        notes += self._clock.notes

    def _describe_channels(self) -> None:
        for number in range(len(self.channels), len(self._reader.interfaces)):
            interface = self._reader.interfaces[number]
            words = (word.partition("=") for word in interface.description.split())
            parameters = tuple((name, value) for name, equals, value in words if equals)
            known = dict(parameters)
            protocol = known.get("path", interface.name.partition("-")[0])
            self.channels.append(Channel(interface.name, protocol, parameters))
            self._parameters[number] = known

    def _settled(self, until_ns: int) -> Iterator[pa.RecordBatch]:
        settled = self._timeline.settle(until_ns)
        if settled is None:
            return
        rows, serials, outstanding = settled
        for at in range(0, len(rows), BATCH_ROWS):
            part = slice(at, at + BATCH_ROWS)
            batch = to_schema(rows.slice(at, BATCH_ROWS), serials[part], outstanding[part])
            self._units.learn(batch)
            yield batch

    # What is usual goes by columns.

    def _take(self, run: Run) -> None:
        messages = Messages(run, self._reader.interfaces)
        for event in self._clock.look(messages):
            self.happened(event)
        self._find_restarts(messages)
        base, count, at = self._position, len(messages), 0
        while at < count:
            opened = self._freeze()
            self._watch_for_tags(messages, at)
            odd = np.flatnonzero(messages.odd[at:])
            end = at + int(odd[0]) if len(odd) else count
            if end > at and len(opened) + end - at <= MAX_OPEN - len(self._exact.others):
                self._open = self._join(opened, messages, at, end, base)
                at = end
                if end == count:
                    break
            self._thaw()
            calm = 0
            while at < count and (calm < CALM or at < end):
                self._position = base + at
                captured = self._reader.message(run, int(run.starts[at]))
                if captured is not None:
                    self._exact.add(captured, self._position)
                calm = 0 if messages.odd[at] else calm + 1
                at += 1
        self._exact.flush()
        self._position = base + count

    def _join(
        self, opened: pa.RecordBatch, messages: Messages, first: int, end: int, base: int
    ) -> pa.RecordBatch:
        """Join messages, all of them usual, with what is open; return what is then."""
        at = np.arange(first, end)
        asks = messages.to_target[first:end]
        asked, replies = at[asks], at[~asks]
        self._remember_indices(messages, asked)
        disks = self._units.numbers(messages, asked, self._parameters)
        ids = self._exact.take_ids(len(asked))
        positions = base + asked
        self._timeline.arrive(ids, messages.time_ns[asked], disks, positions)
        new = requests_of(messages, asked, ids, positions, disks)
        known = concatenated(REQUEST, [opened, new])
        waiting = len(opened)
        requests, answers = pair(
            np.concatenate([_numbers(opened, "channel"), messages.channel[first:end]]),
            np.concatenate([_numbers(opened, "tag"), messages.tag[first:end]]),
            np.concatenate([np.ones(waiting, bool), asks]),
        )
        self._unasked += len(replies) - len(answers)
        # From places among all messages to places among requests.
        place = np.concatenate([np.arange(waiting), waiting + np.cumsum(asks) - 1])
        ended = place[requests]
        answers = answers - waiting + first
        rows = answered(known.take(pa.array(ended)), messages, answers)
        end_ns = np.maximum(messages.time_ns[answers], _numbers(rows, "time_ns"))
        self._timeline.end(
            _numbers(rows, "id"), end_ns, _numbers(rows, "disk"), base + answers, rows
        )
        left = np.ones(len(known), bool)
        left[ended] = False
        return limited(known.filter(pa.array(left)))

    def _find_restarts(self, messages: Messages) -> None:
        """Make odd what is on a ring that was connected anew (see `Exchanges`)."""
        asked = np.flatnonzero(messages.to_target)
        for channel, rows in messages.by_channel(asked):
            index = messages.ring_index[rows]
            last = self._exact.exchanges.ring(channel).last_index
            before = np.concatenate([[index[0] - 1 if last is None else last], index[:-1]])
            messages.odd[rows[(index - before - 1 & 0xFFFF_FFFF) >= _HALF]] = True

    def _remember_indices(self, messages: Messages, asked: Ints) -> None:
        for channel, rows in messages.by_channel(asked):
            self._exact.exchanges.ring(channel).last_index = int(messages.ring_index[rows[-1]])

    def _watch_for_tags(self, messages: Messages, at: int) -> None:
        """Make odd the answers that may be to something else than a command."""
        tags = self._exact.open_tags()
        if tags:
            others = np.isin(messages.tag[at:], np.array(tags, np.uint64))
            messages.odd[at:] |= others & ~messages.to_target[at:]

    # What is unusual goes one by one.

    def _take_one(self, captured: Captured) -> bool:
        """Take a message; return whether there is nothing to be looked for yet."""
        self._thaw()
        event = self._clock.look_at(captured)
        if event is not None:
            self.happened(event)
        self._exact.add(captured, self._position)
        self._position += 1
        if self._position % TOGETHER:
            return True
        self._exact.flush()
        return False

    def _thaw(self) -> None:
        """Have `_exact` wait for the answers to what is open."""
        if self._open is not None:
            self._exact.resume(self._open)
            self._open = None

    def _freeze(self) -> pa.RecordBatch:
        """Have it back."""
        if self._open is None:
            self._open = self._exact.suspend()
        return self._open


def _numbers(batch: pa.RecordBatch, name: str) -> Array:
    numbers: Array = batch.column(name).to_numpy()
    return numbers
