# SPDX-License-Identifier: MIT
"""A device's backend ends, one for each of its queues (io/blkif.h, multi-queue)."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack

from vscsi.domain.negotiate import accept_queues, queues_keys
from vscsi.domain.xenbus import Keys, Reader
from vscsi.transport.backend import Connection, RingBackend

MAX_QUEUES = 4
"""Of a device: each has a thread, and the initiator's memory mapped once more, which is bounded."""


class Queues:
    """What the ends of one device have in common: a xenbus `BackendDriver` of one or more.

    Each has its rings, its event channel and its thread. What one of them cannot forgive its
    frontend ends the device.
    """

    def __init__(self, ends: Sequence[RingBackend]) -> None:
        """A frontend may use them all, or the first ones."""
        self.ends = tuple(ends)
        self._used = 0
        self.on_failure: Callable[[str], None] = lambda _reason: None
        """As a `RingBackend`'s, of any of the ends."""
        for end in self.ends:
            end.on_failure = self._failed

    def _failed(self, reason: str) -> None:
        self.on_failure(reason)

    @property
    def connection(self) -> Connection | None:
        """The first queue's connection: another one whenever the frontend connects anew."""
        return self.ends[0].connection

    # xenbus

    def features(self) -> Keys:
        """Return what is published before InitWait."""
        features = self.ends[0].features()
        return {**features, **queues_keys(len(self.ends))} if len(self.ends) > 1 else features

    def connect(self, frontend: Reader) -> Keys:
        """Attach as many queues as the frontend has made, and serve them."""
        self._used = accept_queues(frontend, len(self.ends))
        properties: Keys = {}
        for number, end in enumerate(self.ends[: self._used]):
            own = frontend.queue(number) if self._used > 1 else frontend
            properties = {**properties, **end.connect(own)}
        return properties

    def connected(self, frontend: Reader) -> Keys:
        """Take notice that the frontend is Connected."""
        return self.ends[0].connected(frontend)

    def reconfigure(self, frontend: Reader) -> Keys:
        """Change what is served, where the protocol has that."""
        return self.ends[0].reconfigure(frontend)

    def disconnect(self) -> None:
        """Stop serving every queue, and give back everything."""
        with ExitStack() as ends:
            for end in self.ends[: max(1, self._used)]:
                ends.callback(end.disconnect)

    # What the device's owner asks.

    def report(self) -> dict[str, object]:
        """Return the only queue's report; with several their sums, and each one's in `queues`."""
        reports = [end.report() for end in self.ends if end.connection is not None]
        if len(reports) <= 1:
            return reports[0] if reports else {}
        sums: dict[str, object] = {}
        for name in reports[0]:
            values = [value for each in reports if isinstance(value := each.get(name), int)]
            if len(values) == len(reports):
                sums[name] = sum(values)
        return {**sums, "queues": reports}
