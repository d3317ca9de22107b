# SPDX-License-Identifier: MIT
"""A part of a source: what crossed by some protocols."""

from collections.abc import Collection, Iterator

import numpy as np
import pyarrow as pa

from vscsi.analysis.columns import numbers
from vscsi.capture.commands import Channel, Disk, Event, Source, Troubles


class OfProtocols:
    """A Source without the commands and events of other protocols; events come at the end."""

    def __init__(self, source: Source, protocols: Collection[str]) -> None:
        """protocols: as in Channel.protocol."""
        self._source = source
        self._protocols = protocols
        self.format = source.format
        self.channels: list[Channel] = source.channels
        self.disks: list[Disk] = source.disks
        self.events: list[Event] = []
        self.events_dropped = 0
        self.troubles: Troubles = source.troubles

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        """Yield batches of SCHEMA."""
        for batch in self._source:
            ours = np.array([each.protocol in self._protocols for each in self.channels], np.bool_)
            kept = ours[numbers(batch, "channel")]
            yield batch if kept.all() else batch.filter(pa.array(kept))
        for event in self._source.events:
            if self.channels[event.channel].protocol in self._protocols:
                self.events.append(event)
        self.events_dropped = self._source.events_dropped
