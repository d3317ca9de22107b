# SPDX-License-Identifier: MIT
"""The client side of the messages: text in, text out, whoever carries them."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import count

from vscsi.domain.base import DomainError, StoreError
from vscsi.wire.errors import WireError
from vscsi.wire.xenstore import PAYLOAD_MAX, MessageType

Request = Callable[[MessageType, int, bytes], bytes]
"""Send type, transaction id and payload; return the reply's payload, or raise StoreError."""

_LOG = logging.getLogger(__name__)
_PART_RETRIES = 64


class Operations:
    """`domain.base.StoreOperations` by requests, in one transaction or (id 0) outside of any.

    What cannot be put into a message is StoreError("EINVAL") or ("E2BIG"); a reply that is not
    as xenstore.txt says, or a value that is not UTF-8, is WireError.
    """

    def __init__(self, request: Request, transaction_id: int = 0) -> None:
        self._request = request
        self._transaction_id = transaction_id

    def read(self, path: str) -> str:
        """Return a node's value."""
        return _text(self._call(MessageType.READ, path))

    def write(self, path: str, value: str) -> None:
        """Create or replace a node, with the parents that it lacks."""
        try:
            data = value.encode()
        except UnicodeEncodeError:
            raise StoreError("EINVAL", path) from None
        self._call(MessageType.WRITE, path, data)

    def mkdir(self, path: str) -> None:
        """Create an empty node unless it exists."""
        self._call(MessageType.MKDIR, path)

    def rm(self, path: str) -> None:
        """Remove a node and all below it."""
        self._call(MessageType.RM, path)

    def directory(self, path: str) -> list[str]:
        """Return the names of a node's children, however many."""
        try:
            return _names(self._call(MessageType.DIRECTORY, path))
        except StoreError as error:
            if error.code != "E2BIG":
                raise
        for _ in range(_PART_RETRIES):
            names = self._directory_in_parts(path)
            if names is not None:
                return names
        raise StoreError("EAGAIN", path)

    def get_perms(self, path: str) -> list[str]:
        """Return permissions as in "n0", "r1"."""
        return _names(self._call(MessageType.GET_PERMS, path))

    def set_perms(self, path: str, perms: Sequence[str]) -> None:
        """Replace a node's permissions."""
        self._call(MessageType.SET_PERMS, path, b"".join(map(_string, perms)))

    def _directory_in_parts(self, path: str) -> list[str] | None:
        """Return the children, or None if the node changed between two parts."""
        generation, names = None, b""
        while True:
            reply = self._call(MessageType.DIRECTORY_PART, path, b"%d\0" % len(names))
            found, nul, part = reply.partition(b"\0")
            if not nul or not part:
                raise WireError("xenstore DIRECTORY_PART reply without names")
            if generation not in (None, found):
                return None
            generation = found
            names += part
            if part == b"\0" or part.endswith(b"\0\0"):
                return _names(names[:-1])

    def _call(self, message_type: MessageType, path: str, rest: bytes = b"") -> bytes:
        payload = _string(path) + rest
        if len(payload) > PAYLOAD_MAX:
            raise StoreError("E2BIG", path)
        try:
            return self._request(message_type, self._transaction_id, payload)
        except StoreError as error:
            raise StoreError(error.code, path) from None


class ClientOperations(Operations):
    """A client: operations outside of any transaction, transactions, and watches.

    The subclass calls `_deliver` for each event from its dispatcher.
    """

    def __init__(self, request: Request) -> None:
        super().__init__(request)
        self._callbacks: dict[bytes, Callable[[str], None]] = {}
        self._tokens = count(1)

    @contextmanager
    def transaction(self) -> Iterator[Operations]:
        """Commit on a normal exit, abort on an exception; StoreError("EAGAIN") is a conflict."""
        reply = _text(self._request(MessageType.TRANSACTION_START, 0, b"\0")).removesuffix("\0")
        if not (reply.isascii() and reply.isdigit() and len(reply) <= 10):
            raise WireError("xenstore transaction id is no number")
        transaction_id = int(reply) & 0xFFFFFFFF
        try:
            yield Operations(self._request, transaction_id)
        except BaseException:
            with suppress(StoreError, DomainError):  # the first exception is the one to tell
                self._request(MessageType.TRANSACTION_END, transaction_id, b"F\0")
            raise
        self._request(MessageType.TRANSACTION_END, transaction_id, b"T\0")

    def watch(self, path: str, callback: Callable[[str], None]) -> Callable[[], None]:
        """Call back for every change at or below; return the function that ends the watch.

        After the end, no callback begins any more; ended in another thread than the dispatcher,
        one may still be running.
        """
        token = b"%d" % next(self._tokens)
        self._callbacks[token] = callback
        try:
            self._call(MessageType.WATCH, path, token + b"\0")
        except BaseException:
            self._callbacks.pop(token, None)
            raise

        def end() -> None:
            if self._callbacks.pop(token, None) is not None:
                with suppress(DomainError):  # then it has ended with the connection
                    self._call(MessageType.UNWATCH, path, token + b"\0")

        return end

    def _deliver(self, path: str, token: bytes) -> None:
        callback = self._callbacks.get(token)
        if callback is None:  # ended meanwhile
            return
        try:
            callback(path)
        except Exception:  # one watcher's fault is not the next one's
            _LOG.exception("watch callback failed for %s", path)


def _string(text: str) -> bytes:
    """Return a path, token or permission as the wire has it, with its NUL."""
    if not text.isascii() or not text or "\0" in text:
        raise StoreError("EINVAL")
    return text.encode("ascii") + b"\0"


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise WireError("a value in xenstore is not UTF-8") from None


def _names(data: bytes) -> list[str]:
    if data and not data.endswith(b"\0"):
        raise WireError("xenstore list without its last NUL")
    return _text(data).split("\0")[:-1]
