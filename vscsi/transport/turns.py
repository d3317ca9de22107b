# SPDX-License-Identifier: MIT
"""One thread a domain, which does all that is to be done about that domain's devices."""

import logging
import queue
import threading
from collections.abc import Callable
from functools import partial

from vscsi.domain.base import StoreClient

log = logging.getLogger(__name__)


class Turns:
    """A thread that calls what it is given, in order; one a domain.

    Tearing a device down waits for what runs on it. Here a guest waits for itself alone.
    """

    def __init__(self, name: str) -> None:
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def post(self, call: Callable[[], None]) -> None:
        """Have something called, after what was posted before; any thread, does not wait."""
        self._queue.put(call)

    def end(self) -> None:
        """End the thread after what was posted before; any thread, does not wait."""
        self._queue.put(None)

    @property
    def alive(self) -> bool:
        """Whether the thread has not ended."""
        return self._thread.is_alive()

    def join(self) -> None:
        """Wait for the thread to end."""
        self._thread.join()

    def _run(self) -> None:
        while (call := self._queue.get()) is not None:
            try:
                call()
            except Exception:  # one device's trouble is not the next one's
                log.exception("%s", self._thread.name)


class WatchingStore:
    """A store client whose watch callbacks are called by a domain's own thread."""

    def __init__(self, store: StoreClient, turns: Turns) -> None:
        self._store = store
        self._turns = turns
        self.read = store.read
        self.write = store.write
        self.mkdir = store.mkdir
        self.rm = store.rm
        self.directory = store.directory
        self.get_perms = store.get_perms
        self.set_perms = store.set_perms
        self.transaction = store.transaction

    def watch(self, path: str, callback: Callable[[str], None]) -> Callable[[], None]:
        """Watch a path; an event that waits for the domain's thread is not posted twice."""
        waiting: set[str] = set()  # as long as what the guest has below the path (XSA-349)

        def call(changed: str) -> None:
            waiting.discard(changed)
            callback(changed)

        def fire(changed: str) -> None:
            if changed not in waiting:
                waiting.add(changed)
                self._turns.post(partial(call, changed))

        return self._store.watch(path, fire)
