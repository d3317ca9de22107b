# SPDX-License-Identifier: MIT
"""Reading the other half's xenstore keys with suspicion, and transactions that retry."""

import re
from collections.abc import Callable
from enum import IntEnum

from vscsi.domain.base import StoreClient, StoreError, StoreOperations
from vscsi.wire.errors import WireError

TEXT_LIMIT = 256
"""Characters that a value may have: far above any real key, far below xenstore's 4096."""
NAMES_LIMIT = 256
"""Children that a directory of the peer may have."""
TRANSACTION_TRIES = 16
_U32_MAX = 0xFFFF_FFFF
_DECIMAL = re.compile(r"[0-9]{1,20}")
_OF_A_QUEUE = re.compile(r"(response-)?ring-ref[0-9]*|event-channel")


class XenbusState(IntEnum):
    """xenbus states (io/xenbus.h); UNKNOWN also stands for a node that is gone or unreadable."""

    UNKNOWN = 0
    INITIALISING = 1
    INIT_WAIT = 2
    INITIALISED = 3
    CONNECTED = 4
    CLOSING = 5
    CLOSED = 6
    RECONFIGURING = 7
    RECONFIGURED = 8


def fetch(operations: StoreOperations, path: str) -> str | None:
    """Return a node's value, None if there is no such node; other StoreErrors pass."""
    try:
        return operations.read(path)
    except StoreError as error:
        if error.code != "ENOENT":
            raise
        return None


def parse_state(text: str | None) -> XenbusState:
    """Return the state that a node's text names; UNKNOWN for anything that is no state."""
    if text is None or not re.fullmatch("[0-8]", text):
        return XenbusState.UNKNOWN
    return XenbusState(int(text))


def read_state(operations: StoreOperations, directory: str) -> XenbusState:
    """Return the state below `directory`; UNKNOWN if it is gone, junk, or hidden from us."""
    try:
        return parse_state(fetch(operations, f"{directory}/state"))
    except WireError:  # not even text
        return XenbusState.UNKNOWN
    except StoreError as error:
        if error.code != "EACCES":
            raise
        return XenbusState.UNKNOWN


def transact(store: StoreClient, body: Callable[[StoreOperations], None]) -> None:
    """Run `body` in a transaction, again on a conflict, at most TRANSACTION_TRIES times.

    `body` may run several times, so it has no effect but on the store. The last conflict leaves
    as StoreError("EAGAIN").
    """
    for _ in range(TRANSACTION_TRIES):
        try:
            with store.transaction() as operations:
                body(operations)
            return
        except StoreError as error:
            if error.code != "EAGAIN":
                raise
            conflict = error
    raise conflict


class Reader:
    """The other half's keys, each read from the store at most once.

    The peer may rewrite a key at any moment: what was checked is what is used (xenstore's form
    of a double fetch). Values are hostile; one that is too long or not what it must be raises
    WireError with the key's name. Make a new Reader for each connection.
    """

    def __init__(self, operations: StoreOperations, path: str) -> None:
        self.path = path
        self._operations = operations
        self._values: dict[str, str | None] = {}

    def queue(self, number: int) -> "Reader":
        """Return a Reader of one of a device's queues (io/blkif.h, multi-queue).

        Rings and event channel are the queue's, all other keys the device's. What either has read
        counts as read by both.
        """
        return _QueueReader(self, number)

    def _name(self, key: str) -> str:
        """Return what a key is called below `path`."""
        return key

    def _at(self, key: str) -> str:
        return f"{self.path}/{self._name(key)}"

    def _value(self, key: str) -> str | None:
        name = self._name(key)
        if name not in self._values:
            try:
                self._values[name] = fetch(self._operations, self._at(key))
            except WireError as error:
                raise WireError(f"{self._at(key)}: {error}") from error
            except StoreError as error:
                if error.code != "EACCES":
                    raise
                raise WireError(f"{self._at(key)} may not be read") from error
        return self._values[name]

    def has(self, key: str) -> bool:
        """Tell whether the key is there."""
        return self._value(key) is not None

    def text(self, key: str, default: str | None = None) -> str:
        """Return a key's value; if it is absent, the default, or WireError without one."""
        value = self._value(key)
        if value is None:
            if default is None:
                raise WireError(f"{self._at(key)} is missing")
            return default
        if len(value) > TEXT_LIMIT:
            raise WireError(f"{self._at(key)} has {len(value)} characters")
        return value

    def number(
        self, key: str, default: int | None = None, low: int = 0, high: int = _U32_MAX
    ) -> int:
        """Return a key's unsigned decimal value, from `low` to `high`.

        An absent key gives the default, which is not checked, or WireError without one. Signs,
        spaces, and anything else that is no ASCII digit are refused.
        """
        if default is not None and not self.has(key):
            return default
        text = self.text(key)
        if not _DECIMAL.fullmatch(text):
            raise WireError(f"{self._at(key)} is no decimal number: {text[:32]!a}")
        if not low <= int(text) <= high:
            raise WireError(f"{self._at(key)} is {text}, not in {low} to {high}")
        return int(text)

    def names(self, key: str) -> list[str]:
        """Return the names below a key, sorted; none if it is absent."""
        try:
            names = self._operations.directory(self._at(key))
        except StoreError as error:
            if error.code == "ENOENT":
                return []
            if error.code == "EACCES":
                raise WireError(f"{self._at(key)} may not be listed") from error
            raise
        if len(names) > NAMES_LIMIT:
            raise WireError(f"{self._at(key)} has {len(names)} entries")
        return sorted(names)

    def changed(self, operations: StoreOperations, *, but: str = "") -> bool:
        """Tell whether a key that was read, `but` one, has another value now."""
        return any(
            fetch(operations, f"{self.path}/{key}") != value
            for key, value in self._values.items()
            if key != but
        )


def queue_key(number: int, key: str) -> str:
    """Return what a key of a device with several queues is called for one of them."""
    return f"queue-{number}/{key}" if _OF_A_QUEUE.fullmatch(key) else key


class _QueueReader(Reader):
    def __init__(self, device: Reader, number: int) -> None:
        super().__init__(device._operations, device.path)
        self._values = device._values
        self._number = number

    def _name(self, key: str) -> str:
        return queue_key(self._number, key)
