# SPDX-License-Identifier: MIT
"""The server: one thread, one UNIX socket, any number of clients."""

import logging
import os
import socket
import struct
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from selectors import EVENT_READ, EVENT_WRITE, DefaultSelector
from threading import Lock, Thread, current_thread

from vscsi.domain.store.connection import Connection, Extension
from vscsi.domain.store.session import Store
from vscsi.domain.store.stream import receive, send
from vscsi.wire.errors import WireError

_LOG = logging.getLogger(__name__)
_ACCEPT_RETRY_S = 1.0
_MAX_CLIENTS = 256


class Daemon:
    """Serves a store on a socket that its own user (and root) may connect to.

    One thread does all the input and output and never waits for a single client. The callbacks
    (`extension`, `on_close`, what `call_soon` was given, the watches of local clients) run in
    that thread: while one of them runs, nobody is served.
    """

    def __init__(
        self,
        path: Path,
        *,
        store: Store | None = None,
        extension: Extension | None = None,
        on_close: Callable[[Connection], None] | None = None,
    ) -> None:
        self.path = path
        self.store = store or Store()
        self._extension = extension
        self._on_close = on_close
        self._peers: set[_Peer] = set()
        self._selector = DefaultSelector()
        self._listener: socket.socket | None = None
        self._accept_paused = False
        self._thread: Thread | None = None
        self._stopping = False
        self._soon: deque[Callable[[], None]] = deque()
        self._soon_lock = Lock()
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._selector.register(self._wake_fd, EVENT_READ, self._woken)

    def start(self) -> None:
        """Listen and serve; a socket that nobody listens on any more is replaced.

        Raises OSError: EADDRINUSE if somebody does listen, or what bind says.
        """
        _remove_stale(self.path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.setblocking(False)
            listener.bind(os.fspath(self.path))
            self.path.chmod(0o600)  # before anybody can connect
            listener.listen()
        except OSError:
            listener.close()
            raise
        self._listener = listener
        self._selector.register(listener, EVENT_READ, self._accept)
        self._thread = Thread(target=self._run, name="xenstore", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Close all connections and the socket; from any thread, a second call does nothing.

        Has ended when it returns, unless it is called in the loop thread itself.
        """
        self._stopping = True
        self.call_soon(lambda: None)
        if self._thread is None:
            self._shut_down()
        elif self._thread is not current_thread():
            self._thread.join()

    def call_soon(self, function: Callable[[], None]) -> None:
        """Have a function called in the loop thread; from any thread. Nothing after `stop`."""
        with self._soon_lock:
            if self._wake_fd >= 0:
                self._soon.append(function)
                os.eventfd_write(self._wake_fd, 1)

    def _run(self) -> None:
        try:
            while not self._stopping:
                ready = self._selector.select(_ACCEPT_RETRY_S if self._accept_paused else None)
                self._resume_accepting()
                for key, mask in ready:
                    key.data(mask)
                    self._run_soon()
        finally:
            self._shut_down()

    def _shut_down(self) -> None:
        for peer in list(self._peers):
            peer.close()
        if self._listener is not None:
            self._listener.close()
            self._listener = None
            self.path.unlink(missing_ok=True)
        with self._soon_lock:
            if self._wake_fd >= 0:
                self._selector.close()
                os.close(self._wake_fd)
                self._wake_fd = -1
                self._soon.clear()

    def _woken(self, _: int) -> None:
        os.eventfd_read(self._wake_fd)

    def _run_soon(self) -> None:
        for _ in range(len(self._soon)):  # what these add is left for the next round
            function = self._soon.popleft()
            try:
                function()
            except Exception:  # the owner's callback failed; the clients are served on
                _LOG.exception("callback failed")

    def _accept(self, _: int) -> None:
        if self._listener is None:
            return
        try:
            sock, _address = self._listener.accept()
        except BlockingIOError:
            return
        except OSError as error:  # no descriptor is free: don't spin on the waiting client
            _LOG.warning("cannot accept: %s", error)
            self._selector.unregister(self._listener)
            self._accept_paused = True
            return
        if _peer_uid(sock) not in (0, os.geteuid()) or len(self._peers) >= _MAX_CLIENTS:
            sock.close()
            return
        self._peers.add(_Peer(self, sock))

    def _resume_accepting(self) -> None:
        if self._accept_paused and self._listener is not None:
            self._accept_paused = False
            self._selector.register(self._listener, EVENT_READ, self._accept)

    def _closed(self, peer: "_Peer") -> None:
        self._peers.discard(peer)
        if self._on_close is not None:
            try:
                self._on_close(peer.connection)
            except Exception:  # the owner's callback failed; the clients are served on
                _LOG.exception("on_close failed")


class _Peer:
    """A connected client: its socket and its protocol engine."""

    def __init__(self, daemon: Daemon, sock: socket.socket) -> None:
        self._daemon = daemon
        self._sock = sock
        self._closed = False
        self.connection = Connection(
            daemon.store, lambda: daemon.call_soon(self._flush_safely), daemon._extension
        )
        sock.setblocking(False)
        self._mask = EVENT_READ
        daemon._selector.register(sock, self._mask, self._ready)

    def close(self) -> None:
        """Let the client go."""
        if self._closed:
            return
        self._closed = True
        self._daemon._selector.unregister(self._sock)
        self._sock.close()
        self.connection.close()
        self._daemon._closed(self)

    def _flush_safely(self) -> None:
        self._ready(EVENT_WRITE)

    def _ready(self, mask: int) -> None:
        if self._closed:
            return
        try:
            if mask & EVENT_READ and not self._receive():
                self.close()
                return
            self._send()
        except WireError as error:
            _LOG.warning("client closed: %s", error)
            self.close()
        except OSError:  # it went away
            self.close()
        except Exception:  # a fault with one client, perhaps the owner's, is not the others'
            _LOG.exception("client closed")
            self.close()

    def _receive(self) -> bool:
        try:
            data, fds = receive(self._sock)
        except BlockingIOError:
            return True
        if data:
            self.connection.feed(data, fds)
        return bool(data)

    def _send(self) -> None:
        with suppress(BlockingIOError):
            while (piece := self.connection.outgoing()) is not None:
                self.connection.sent(send(self._sock, *piece))
        mask = EVENT_READ if self.connection.wants_input else 0
        if self.connection.outgoing() is not None:
            mask |= EVENT_WRITE
        if mask != self._mask:
            self._mask = mask
            self._daemon._selector.modify(self._sock, mask, self._ready)


def _peer_uid(sock: socket.socket) -> int:
    credentials = struct.Struct("iII")  # struct ucred: pid, uid, gid
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, credentials.size)
    uid: int = credentials.unpack(raw)[1]
    return uid


def _remove_stale(path: Path) -> None:
    """Remove a socket that a dead server left; leave anything else for bind to complain of."""
    if not path.is_socket():
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink()
