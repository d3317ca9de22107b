# SPDX-License-Identifier: MIT
"""A store served on a real socket, clients of it, and how to speak to it in raw bytes."""

import os
import queue
import socket
import struct
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from vscsi.domain.base import StoreError
from vscsi.domain.store.client import SocketClient
from vscsi.domain.store.connection import Connection
from vscsi.domain.store.daemon import Daemon
from vscsi.domain.store.local import LocalClient

HANG_S = 30.0

BECOME, ECHO, KEEP, DROP, FAIL, CRASH, LONG = range(0x100, 0x107)


class Served:
    """A daemon whose extension turns connections into guests and plays with descriptors."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.path = directory / "socket"
        self.closed: queue.Queue[Connection] = queue.Queue()
        self.kept: list[int] = []
        self.daemon = Daemon(self.path, extension=self._extend, on_close=self.closed.put)
        self.store = self.daemon.store
        self._stack = stack
        self.daemon.start()
        stack.callback(self.daemon.stop)

    def local(self, domain: int = 0) -> LocalClient:
        client = LocalClient(self.daemon, domain)
        self._stack.callback(client.close)
        return client

    def connect(self, domain: int = 0, on_lost: Callable[[], None] | None = None) -> SocketClient:
        client = self._stack.enter_context(SocketClient(self.path, on_lost=on_lost))
        if domain:
            client.request(BECOME, str(domain).encode())
        return client

    def raw(self) -> socket.socket:
        sock = self._stack.enter_context(socket.socket(socket.AF_UNIX))
        sock.settimeout(HANG_S)
        sock.connect(os.fspath(self.path))
        return sock

    def in_loop(self, function: Callable[[], object]) -> None:
        """Run a function in the loop thread and wait for it: all before it has happened."""
        done: queue.Queue[object] = queue.Queue()
        self.daemon.call_soon(lambda: done.put(function()))
        done.get(timeout=HANG_S)

    def _extend(
        self, connection: Connection, message_type: int, payload: bytes, fds: list[int]
    ) -> tuple[bytes, Sequence[int]]:
        if message_type == BECOME:
            connection.domain = int(payload)
        elif message_type == ECHO:
            back = list(fds)
            fds.clear()
            return payload, back
        elif message_type == KEEP:
            self.kept += fds
            fds.clear()
        elif message_type == LONG:
            return bytes(4097), [fds.pop()]
        elif message_type == FAIL:
            raise StoreError("EBUSY")
        elif message_type == CRASH:
            raise RuntimeError("the owner's mistake")
        return b"", ()


@pytest.fixture
def served() -> Iterator[Served]:
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        yield Served(Path(directory), stack)


def encode(
    message_type: int, payload: bytes, request_id: int = 0, transaction_id: int = 0
) -> bytes:
    """Build a message from xs_wire.h's words, apart from the code under test."""
    return struct.pack("<4I", message_type, request_id, transaction_id, len(payload)) + payload


def receive_message(sock: socket.socket) -> tuple[int, int, bytes]:
    """Return type, request id and payload of the next message."""
    header = sock.recv(16, socket.MSG_WAITALL)
    if len(header) < 16:
        raise ConnectionError("closed")
    message_type, request_id, _, length = struct.unpack("<4I", header)
    return message_type, request_id, sock.recv(length, socket.MSG_WAITALL) if length else b""


@pytest.fixture(scope="session")
def wire() -> type["Wire"]:
    return Wire


class Wire:
    """What the tests of raw bytes need (there are no importable test modules)."""

    BECOME, ECHO, KEEP, DROP, FAIL, CRASH, LONG = BECOME, ECHO, KEEP, DROP, FAIL, CRASH, LONG
    HANG_S = HANG_S
    encode = staticmethod(encode)
    receive = staticmethod(receive_message)


@pytest.fixture
def events() -> Iterator["queue.Queue[str]"]:
    """A queue for watch callbacks; nothing may be left in it that a test did not expect."""
    collected: queue.Queue[str] = queue.Queue()
    yield collected
    assert collected.empty(), f"unexpected event {collected.get()}"
