# SPDX-License-Identifier: MIT
"""A client in the daemon's own process: the same messages, without a socket."""

from vscsi.domain.store.daemon import Daemon
from vscsi.domain.store.operations import ClientOperations
from vscsi.domain.store.permissions import PRIVILEGED
from vscsi.domain.store.requests import handle
from vscsi.domain.store.session import Session
from vscsi.wire.xenstore import MessageType


class LocalClient(ClientOperations):
    """`domain.base.StoreClient` for any domain; usable from every thread.

    Requests are executed at once in the calling thread. Watch callbacks run in the daemon's loop
    thread; waiting in one of them for another client's request would be for ever.
    """

    def __init__(self, daemon: Daemon, domain: int = PRIVILEGED) -> None:
        super().__init__(self._handle)
        self._session = Session(
            daemon.store, lambda: daemon.call_soon(self._deliver_waiting), domain=domain
        )

    def close(self) -> None:
        """End all watches and transactions."""
        self._callbacks.clear()
        self._session.reset()

    def _handle(self, message_type: MessageType, transaction_id: int, payload: bytes) -> bytes:
        return handle(self._session, message_type, transaction_id, payload)

    def _deliver_waiting(self) -> None:
        for path, token in self._session.take_events():
            self._deliver(path, token)
