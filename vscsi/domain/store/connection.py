# SPDX-License-Identifier: MIT
"""One client's connection: bytes in, bytes out, whatever carries them."""

from collections import deque
from collections.abc import Callable, Iterable, Sequence

from vscsi.domain.base import StoreError
from vscsi.domain.store.permissions import PRIVILEGED
from vscsi.domain.store.requests import handle
from vscsi.domain.store.session import Session, Store
from vscsi.domain.store.stream import EXTENSION_FIRST, Message, MessageReader, close_fds
from vscsi.wire.errors import WireError
from vscsi.wire.xenstore import PAYLOAD_MAX, MessageType

OUTPUT_LIMIT = 65536
"""Bytes of replies that wait for a client before its next request is looked at."""

EVENT_LIMIT = 8192
"""Different events that wait for a client before it is given up."""

Extension = Callable[["Connection", int, bytes, list[int]], tuple[bytes, Sequence[int]]]
"""Answers messages of the types from EXTENSION_FIRST on.

Called with the connection, the type, the payload and the descriptors that came with it: it takes
those that it keeps out of the list, what is left is closed. Returns the reply's payload and the
descriptors to send with it, which are then the connection's to close. A StoreError is answered,
any other exception ends the connection (WireError: the client's fault).
"""


class Connection:
    """The protocol engine of one client, which is untrusted; all that it can make grow is bounded.

    Not thread-safe, but for the events of watches, which arrive from whoever commits: `on_event`
    is called from there, with the store's lock held, when there is something to send.
    """

    def __init__(
        self, store: Store, on_event: Callable[[], None], extension: Extension | None = None
    ) -> None:
        self._session = Session(store, on_event, max_events=EVENT_LIMIT)
        self._extension = extension
        self._reader = MessageReader()
        self._output: deque[tuple[memoryview, Sequence[int]]] = deque()
        self._waiting_bytes = 0

    @property
    def domain(self) -> int:
        """The domain that speaks: 0, as for a tool on Xen's socket, until the owner sets it."""
        return self._session.domain

    @domain.setter
    def domain(self, domain: int) -> None:
        """Make it a guest's for good; what it held as domain 0 is dropped."""
        if self._session.domain != PRIVILEGED:
            raise ValueError(f"the connection is domain {self._session.domain}'s already")
        with self._session.store.lock:
            self._session.reset()
            self._session.domain = domain

    @property
    def wants_input(self) -> bool:
        """False while so many replies wait that more requests would only add to them."""
        return self._waiting_bytes < OUTPUT_LIMIT

    def feed(self, data: bytes, fds: Iterable[int] = ()) -> None:
        """Take received bytes and descriptors, and execute the requests that they complete.

        Raises WireError if the client broke the framing: it must be closed then.
        """
        self._reader.feed(data, fds)
        self._execute()

    def outgoing(self) -> tuple[memoryview, Sequence[int]] | None:
        """Return the bytes to send next and the descriptors to send with the first of them.

        Replies come first, then events (they stay where they are merged as long as replies wait),
        then the replies to requests that were held back. Raises WireError as `feed` does, or if
        the client left more than EVENT_LIMIT events unread.
        """
        if self._session.overflowed:
            raise WireError("watch events are not read")
        if not self._output:
            for path, token in self._session.take_events(1):
                payload = path.encode("ascii") + b"\0" + token + b"\0"
                self._put(Message(MessageType.WATCH_EVENT, 0, 0, payload))
        if not self._output:
            self._execute()
        return self._output[0] if self._output else None

    def sent(self, count: int) -> None:
        """Note that the first bytes of `outgoing` were sent, and its descriptors with them."""
        data, fds = self._output.popleft()
        close_fds(fds)
        self._waiting_bytes -= count
        if count < len(data):
            self._output.appendleft((data[count:], ()))

    def close(self) -> None:
        """Drop everything that the client had: watches, transactions, descriptors."""
        self._session.reset()
        close_fds(self._reader.take_fds())
        for _, fds in self._output:
            close_fds(fds)
        self._output.clear()

    def _execute(self) -> None:
        while self.wants_input:
            request = self._reader.next()
            if request is None:
                self._reader.drop_stray_fds()
                return
            self._answer(request)

    def _answer(self, request: Message) -> None:
        fds: Sequence[int] = ()
        try:
            if request.type >= EXTENSION_FIRST:
                payload, fds = self._extend(request)
            else:
                payload = handle(
                    self._session, request.type, request.transaction_id, request.payload
                )
        except StoreError as error:
            reply_type, payload = int(MessageType.ERROR), error.code.encode("ascii") + b"\0"
        else:
            reply_type = request.type
        self._put(Message(reply_type, request.request_id, request.transaction_id, payload), fds)

    def _extend(self, request: Message) -> tuple[bytes, Sequence[int]]:
        fds = self._reader.take_fds()
        try:
            if self._extension is None:
                raise StoreError("ENOSYS")
            payload, back = self._extension(self, request.type, request.payload, fds)
            if len(payload) > PAYLOAD_MAX:
                close_fds(back)
                raise StoreError("E2BIG")
            return payload, back
        finally:
            close_fds(fds)

    def _put(self, message: Message, fds: Sequence[int] = ()) -> None:
        data = message.encode()
        self._output.append((memoryview(data), fds))
        self._waiting_bytes += len(data)
