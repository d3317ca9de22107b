# SPDX-License-Identifier: MIT
"""Messages out of a byte stream, and file descriptors beside it."""

import array
import os
import socket
from collections.abc import Iterable
from dataclasses import dataclass

from vscsi.wire.errors import WireError
from vscsi.wire.formats import build
from vscsi.wire.xenstore import HEADER_SIZE, Header, parse_header

MAX_FDS = 8
"""Descriptors that may wait for the message they came with."""

EXTENSION_FIRST = 0x100
"""Message types from here on are not xenstore's; they alone carry descriptors."""

_RECEIVE_BYTES = 16384


@dataclass(frozen=True, slots=True)
class Message:
    """One message, in either direction."""

    type: int
    request_id: int
    transaction_id: int
    payload: bytes

    def encode(self) -> bytes:
        """Return header and payload."""
        fields = {
            "type": self.type,
            "req_id": self.request_id,
            "tx_id": self.transaction_id,
            "length": len(self.payload),
        }
        return build(Header, fields) + self.payload


class MessageReader:
    """Cuts a stream into messages and keeps the descriptors that came with it.

    A descriptor belongs to a message that the same piece of stream brought. So that it is clear
    to which, a sender has at most one message with descriptors on its way.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._fds: list[int] = []

    def feed(self, data: bytes, fds: Iterable[int] = ()) -> None:
        """Add what was received; WireError if too many descriptors wait. Takes the fds."""
        self._buffer += data
        self._fds += fds
        if len(self._fds) > MAX_FDS:
            raise WireError(f"more than {MAX_FDS} file descriptors with one message")

    def next(self) -> Message | None:
        """Return the next whole message; WireError if it is longer than any may be."""
        if len(self._buffer) < HEADER_SIZE:
            return None
        header = parse_header(bytes(self._buffer[:HEADER_SIZE]))
        end = HEADER_SIZE + header.length
        if len(self._buffer) < end:
            return None
        payload = bytes(self._buffer[HEADER_SIZE:end])
        del self._buffer[:end]
        return Message(header.type, header.req_id, header.tx_id, payload)

    def take_fds(self) -> list[int]:
        """Hand over the descriptors that wait; they are the caller's to close."""
        fds, self._fds = self._fds, []
        return fds

    def drop_stray_fds(self) -> None:
        """Close descriptors that no message of the stream can still claim."""
        if not self._buffer:
            close_fds(self.take_fds())


def close_fds(fds: Iterable[int]) -> None:
    """Close file descriptors."""
    for fd in fds:
        os.close(fd)


def receive(sock: socket.socket) -> tuple[bytes, list[int]]:
    """Receive a piece of a stream and the descriptors with it; they are the caller's.

    Raises WireError (and keeps no descriptor) if there were more than MAX_FDS, OSError as recvmsg.
    """
    fds = array.array("i")
    data, ancillary, flags, _ = sock.recvmsg(
        _RECEIVE_BYTES, socket.CMSG_SPACE(MAX_FDS * fds.itemsize), socket.MSG_CMSG_CLOEXEC
    )
    for level, kind, body in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(body[: len(body) - len(body) % fds.itemsize])
    if flags & socket.MSG_CTRUNC:
        close_fds(fds)
        raise WireError("file descriptors were cut off")
    return data, list(fds)


def send(sock: socket.socket, data: bytes | memoryview, fds: Iterable[int] = ()) -> int:
    """Send a piece of a stream, descriptors with its first byte; return the bytes taken."""
    passed = array.array("i", fds)
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, passed)] if passed else []
    return sock.sendmsg([data], rights, socket.MSG_NOSIGNAL)
