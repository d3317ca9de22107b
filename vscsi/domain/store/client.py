# SPDX-License-Identifier: MIT
"""A client of a store on a UNIX socket: ours, or any that speaks xenstore's protocol."""

import os
import socket
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from itertools import count
from pathlib import Path
from threading import Condition, Lock, Thread, current_thread
from types import TracebackType

from vscsi.domain.base import DomainError, StoreError
from vscsi.domain.store.operations import ClientOperations
from vscsi.domain.store.stream import (
    EXTENSION_FIRST,
    Message,
    MessageReader,
    close_fds,
    receive,
    send,
)
from vscsi.wire.errors import WireError
from vscsi.wire.xenstore import ERRORS, MessageType

_EVENT_LIMIT = 8192
"""Different events that wait for the dispatcher before the connection is given up."""

_Answer = tuple[Message, list[int]]


class SocketClient(ClientOperations):
    """`domain.base.StoreClient` over a socket; usable from every thread.

    One thread reads, another calls the watch callbacks, so that a callback may make requests.
    Once the connection is lost, every request raises DomainError, also those that wait, and
    `on_lost` is called once by the dispatcher, after the last event; `close` does not call it.
    """

    def __init__(self, path: Path, *, on_lost: Callable[[], None] | None = None) -> None:
        """Connect; DomainError says why if that fails."""
        super().__init__(self._transact)
        self._on_lost = on_lost
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._sock.connect(os.fspath(path))
        except OSError as error:
            self._sock.close()
            raise DomainError(f"no store at {path}: {error.strerror or error}") from error
        self._reader = MessageReader()
        self._send_lock = Lock()
        self._extension_lock = Lock()
        self._state = Condition()
        self._lost: str | None = None
        self._closing = False
        self._request_ids = count(1)
        self._waiting: dict[int, Future[_Answer]] = {}
        self._events: dict[tuple[str, bytes], None] = {}
        self._threads = [
            Thread(target=run, name=f"xenstore-{run.__name__.strip('_')}", daemon=True)
            for run in (self._read, self._dispatch)
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> "SocketClient":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Disconnect; no callback begins any more. A second call does nothing."""
        self._closing = True
        self._callbacks.clear()
        self._lose("closed")
        for thread in self._threads:
            if thread is not current_thread():
                thread.join()

    def request(
        self, message_type: int, payload: bytes, fds: Iterable[int] = ()
    ) -> tuple[bytes, list[int]]:
        """Send a message of an extension type and return the reply and the descriptors with it.

        The descriptors sent remain the caller's, those returned become the caller's. Raises
        StoreError as the server says, DomainError.
        """
        if message_type < EXTENSION_FIRST:
            raise ValueError(f"message type {message_type} is not an extension's")
        with self._extension_lock:  # one at a time: so the descriptors' message is clear
            answer, received = self._exchange(message_type, 0, payload, fds)
        return answer.payload, received

    def _transact(self, message_type: MessageType, transaction_id: int, payload: bytes) -> bytes:
        answer, _ = self._exchange(message_type, transaction_id, payload)
        return answer.payload

    def _exchange(
        self, message_type: int, transaction_id: int, payload: bytes, fds: Iterable[int] = ()
    ) -> _Answer:
        future: Future[_Answer] = Future()
        with self._state:
            if self._lost is not None:
                raise DomainError(f"store connection lost: {self._lost}")
            request_id = next(self._request_ids) & 0xFFFFFFFF
            self._waiting[request_id] = future
        try:
            self._send(Message(message_type, request_id, transaction_id, payload), fds)
            answer, received = future.result()
        finally:
            with self._state:
                self._waiting.pop(request_id, None)
        if answer.type == MessageType.ERROR:
            close_fds(received)
            raise StoreError(_error_code(answer.payload))
        if answer.type != message_type:
            close_fds(received)
            raise WireError(f"xenstore reply of type {answer.type} to type {message_type}")
        return answer, received

    def _send(self, message: Message, fds: Iterable[int]) -> None:
        data = memoryview(message.encode())
        with self._send_lock:
            try:
                sent = send(self._sock, data, fds)
                while sent < len(data):
                    sent += send(self._sock, data[sent:])
            except OSError as error:
                self._lose(str(error))  # which answers the waiting request, too
            except BaseException:
                self._lose("interrupted in the middle of a message")
                raise

    def _read(self) -> None:
        reason = "closed by the server"
        try:
            while True:
                data, fds = receive(self._sock)
                if not data:
                    break
                self._reader.feed(data, fds)
                while (message := self._reader.next()) is not None:
                    self._take(message)
                self._reader.drop_stray_fds()
        except (OSError, WireError) as error:
            reason = str(error)
        finally:
            self._lose(reason)
            close_fds(self._reader.take_fds())
            with self._send_lock:
                self._sock.close()

    def _take(self, message: Message) -> None:
        with self._state:
            if message.type == MessageType.WATCH_EVENT:
                self._events[_event(message.payload)] = None
                if len(self._events) > _EVENT_LIMIT:
                    raise WireError("more watch events than are dealt with")
                self._state.notify_all()
                return
            future = self._waiting.pop(message.request_id, None)
        if future is not None:
            # The answer to the one extension request under way claims what has been received.
            mine = self._reader.take_fds() if message.type >= EXTENSION_FIRST else []
            future.set_result((message, mine))

    def _dispatch(self) -> None:
        while True:
            with self._state:
                self._state.wait_for(lambda: self._events or self._lost is not None)
                if not self._events:
                    break
                path, token = next(iter(self._events))
                del self._events[path, token]
            self._deliver(path, token)
        if self._on_lost is not None and not self._closing:
            self._on_lost()

    @property
    def lost(self) -> bool:
        """Whether the connection is lost, or closed."""
        return self._lost is not None

    def _lose(self, reason: str) -> None:
        """End the connection once and for all; requests that wait are answered with it."""
        with self._state:
            if self._lost is not None:
                return
            self._lost = reason
            waiting, self._waiting = self._waiting, {}
            self._state.notify_all()
        for future in waiting.values():
            future.set_exception(DomainError(f"store connection lost: {reason}"))
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:  # the server was faster
            return


def _event(payload: bytes) -> tuple[str, bytes]:
    path, nul, token = payload.partition(b"\0")
    if not nul or not token.endswith(b"\0") or not path.isascii():
        raise WireError("malformed xenstore watch event")
    return path.decode("ascii"), token[:-1]


def _error_code(payload: bytes) -> str:
    code = payload.removesuffix(b"\0").decode("ascii", "replace")
    if code not in ERRORS:
        raise WireError(f"xenstore error {code!r}")
    return code
