# SPDX-License-Identifier: MIT
"""Domains as processes of one machine: memfd for memory, eventfd for events, one UNIX socket.

`LocalHost` is the hypervisor's and toolstack's side, in the process that serves a directory;
`LocalGuest` is a frontend's, in another. The store on the socket speaks xenstore's protocol, so
Xen's tools look into it (XENSTORED_RUNDIR=DIRECTORY xenstore-ls). Who may connect is domain 0, as
on Xen; a connection that attaches memory becomes the new domain, for good. When it closes, the
domain is gone.
"""

import errno
import logging
import os
from collections.abc import Callable, Sequence
from enum import IntEnum
from pathlib import Path

from vscsi.domain.base import DomainError, StoreClient, StoreError
from vscsi.domain.events import EventChannel
from vscsi.domain.memory import DEFAULT_BYTES, GuestAccess, GuestMemory
from vscsi.domain.store.client import SocketClient
from vscsi.domain.store.connection import Connection
from vscsi.domain.store.daemon import Daemon
from vscsi.domain.store.local import LocalClient
from vscsi.domain.store.stream import EXTENSION_FIRST
from vscsi.wire.errors import SetupError, WireError

SOCKET_NAME = "socket"
"""The socket in a served directory: where Xen's tools look for it, too."""
MAX_PORTS = 64
"""Event channels of a domain that nobody has bound; each is two descriptors of the server's."""
MAX_SOCKET_PATH = 107
"""Bytes of a UNIX socket's path (sun_path)."""
MAX_DOMAINS = 64
"""Domains at a time: each may map its memory into the server."""
FIRST_RESERVED_DOMAIN = 0x7FF0
BACKEND_DOMAIN = 0

_log = logging.getLogger(__name__)


class LocalMessage(IntEnum):
    """Message types on the socket that are not xenstore's. Text payloads are ASCII.

    ATTACH: a memfd comes with it; the reply is the new domain's id. EVENT_CHANNEL: the reply is a
    port, and two eventfds: to wait for and to signal. CLOSE_EVENT_CHANNEL: payload is the port.
    CAPTURE: `vscsi.capture.live`. STATISTICS: payload is a device's
    kind and handle ("vbd 51712"); the reply is JSON.
    """

    ATTACH = EXTENSION_FIRST
    EVENT_CHANNEL = EXTENSION_FIRST + 1
    CLOSE_EVENT_CHANNEL = EXTENSION_FIRST + 2
    CAPTURE = EXTENSION_FIRST + 3
    STATISTICS = EXTENSION_FIRST + 4


Answer = tuple[bytes, Sequence[int]]
"""A reply: its payload, and descriptors that are then the connection's to close."""


class LocalPeer:
    """One guest as its host sees it: its memory's grants and its event channels."""

    def __init__(self, domain: int, memory_fd: int) -> None:
        """Take the guest's memfd; WireError if it is not fit to be a guest's memory."""
        self.domain = domain
        self.grants = GuestAccess(memory_fd, BACKEND_DOMAIN)
        self._unbound: dict[int, EventChannel] = {}
        self._next_port = 1

    def open_port(self) -> tuple[int, Sequence[int]]:
        """Allocate a port; return it and the two descriptors of the guest's end."""
        if len(self._unbound) >= MAX_PORTS:
            raise WireError(f"more than {MAX_PORTS} event channels")
        port = self._next_port
        self._next_port += 1
        ours, theirs = EventChannel.pair(port, port)
        self._unbound[port] = ours
        return port, theirs.fds

    def close_port(self, port: int) -> None:
        """Close a port that nobody has bound; one that is bound is the binder's to close."""
        channel = self._unbound.pop(port, None)
        if channel is not None:
            channel.close()

    def bind(self, port: int) -> EventChannel:
        """Return our end of a port, once; WireError if there is no such port."""
        channel = self._unbound.pop(port, None)
        if channel is None:
            raise WireError(f"event channel {port} is not there, or is bound")
        return channel

    def close(self) -> None:
        """Unmap the memory and close what was not bound; no mapping may be in use."""
        for channel in self._unbound.values():
            channel.close()
        self._unbound.clear()
        self.grants.close()


class LocalHost:
    """Serves a directory: its store, and the domains that attach.

    `on_domain(peer)` and `on_domain_gone(peer)` are called in the store's thread, and must not
    wait; the peer is the callee's to close. `answers` has the owner's message types: called with
    the domain and the payload, in the same thread.
    """

    def __init__(
        self,
        directory: Path,
        *,
        on_domain: Callable[[LocalPeer], None],
        on_domain_gone: Callable[[LocalPeer], None],
    ) -> None:
        self.directory = directory
        self._on_domain = on_domain
        self._on_domain_gone = on_domain_gone
        self.answers: dict[LocalMessage, Callable[[int, bytes], Answer]] = {}
        self._peers: dict[Connection, LocalPeer] = {}
        self._last_domain = 0
        self._daemon = Daemon(
            directory / SOCKET_NAME, extension=self._message, on_close=self._connection_closed
        )
        self.store = LocalClient(self._daemon)
        """Domain 0's own connection."""

    def start(self) -> None:
        """Make the directory if it isn't there, and serve it; SetupError if that can't be."""
        length = len(os.fsencode(self.directory / SOCKET_NAME))
        if length > MAX_SOCKET_PATH:
            raise SetupError(
                "cannot serve",
                str(self.directory),
                f"its socket's path has {length} bytes, of {MAX_SOCKET_PATH} at most",
                "choose a shorter --dir",
            )
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._daemon.start()
        except OSError as error:
            raise SetupError(
                "cannot serve",
                str(self.directory),
                "another server uses it"
                if error.errno == errno.EADDRINUSE
                else error.strerror or str(error),
                "choose another --dir",
            ) from error

    def stop(self) -> None:
        """Close all connections, so that all domains are gone; returns when that is done."""
        self._daemon.stop()

    def _message(self, connection: Connection, kind: int, payload: bytes, fds: list[int]) -> Answer:
        peer = self._peers.get(connection)
        try:
            if kind == LocalMessage.ATTACH:
                return self._attach(connection, fds), ()
            if kind == LocalMessage.EVENT_CHANNEL and peer is not None:
                port, ends = peer.open_port()
                return b"%d" % port, ends
            if kind == LocalMessage.CLOSE_EVENT_CHANNEL and peer is not None:
                peer.close_port(int(payload))
                return b"", ()
        except (WireError, ValueError) as error:
            _log.debug("domain %d: %s", connection.domain, error)
            raise StoreError("EINVAL") from error
        except OSError as error:  # no descriptor is left
            _log.warning("domain %d: %s", connection.domain, error)
            raise StoreError("ENOSPC") from error
        for message, answer in self.answers.items():
            if message == kind:
                return answer(connection.domain, payload)
        raise StoreError("ENOSYS")

    def _attach(self, connection: Connection, fds: list[int]) -> bytes:
        if connection.domain != BACKEND_DOMAIN or len(fds) != 1:
            raise WireError("attach needs a connection without a domain, and one memfd")
        if len(self._peers) >= MAX_DOMAINS:
            raise StoreError("ENOSPC")
        domain = self._free_domain()
        peer = LocalPeer(domain, fds.pop())
        try:
            home = f"/local/domain/{domain}"
            self.store.mkdir(home)
            self.store.set_perms(home, [f"n{domain}"])
            connection.domain = domain
            self._peers[connection] = peer
            self._daemon.store.introduce(domain)
            self._on_domain(peer)
        except Exception:
            self._peers.pop(connection, None)
            peer.close()
            raise
        return b"%d" % domain

    def _free_domain(self) -> int:
        """Return the id after the last one that nobody has: a domain's id is not reused soon."""
        used = {peer.domain for peer in self._peers.values()}
        while True:
            self._last_domain = self._last_domain % (FIRST_RESERVED_DOMAIN - 1) + 1
            if self._last_domain not in used:
                return self._last_domain

    def _connection_closed(self, connection: Connection) -> None:
        peer = self._peers.pop(connection, None)
        if peer is not None:
            self._daemon.store.release(peer.domain)
            self._on_domain_gone(peer)


class LocalGuest:
    """A domain that this process is: its memory, its store connection, its event channels.

    `on_lost` is called once, from a thread of its own, if the server goes away.
    """

    def __init__(
        self,
        directory: Path,
        *,
        memory_bytes: int = DEFAULT_BYTES,
        on_lost: Callable[[], None] | None = None,
    ) -> None:
        """Attach to a served directory; SetupError if nobody serves it."""
        connection = connect_store(directory, on_lost=on_lost)
        self._client = connection
        self.store: StoreClient = connection
        self.memory = GuestMemory(memory_bytes)
        try:
            reply, _ = connection.request(LocalMessage.ATTACH, b"", [self.memory.fileno()])
            self.domain = int(reply)
        except (StoreError, DomainError) as error:
            self.close()
            raise SetupError(
                "cannot attach to", str(directory), str(error), "see the server's log"
            ) from error

    def event_channel(self) -> EventChannel:
        """Allocate an event channel to the backends' domain; its port is for them to bind."""
        reply, fds = self._client.request(LocalMessage.EVENT_CHANNEL, b"")
        incoming, outgoing = fds
        return EventChannel(int(reply), incoming, outgoing)

    def ask(self, message: LocalMessage, payload: bytes = b"") -> tuple[bytes, list[int]]:
        """Send one of the owner's messages; return its reply and the descriptors with it."""
        return self._client.request(message, payload)

    @property
    def lost(self) -> bool:
        """Whether the server went away, or the domain is closed."""
        return self._client.lost

    def close(self) -> None:
        """End the domain: disconnect and let go of the memory. A second call does nothing."""
        self._client.close()
        self.memory.close()


def connect_store(directory: Path, *, on_lost: Callable[[], None] | None = None) -> SocketClient:
    """Connect to a served directory's store as domain 0; SetupError if nobody serves it."""
    try:
        return SocketClient(directory / SOCKET_NAME, on_lost=on_lost)
    except DomainError as error:
        raise SetupError(
            "cannot connect to",
            str(directory),
            str(error),
            f"is `vscsi serve IMAGE --dir {directory}` running?",
        ) from error
