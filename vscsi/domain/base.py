# SPDX-License-Identifier: MIT
"""The interfaces between a transport and the hypervisor it runs on (local now, Xen later)."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from vscsi.ring import GrantAccess
from vscsi.wire.errors import GrantError

__all__ = [
    "PAGE_SIZE",
    "DomainError",
    "EventChannel",
    "GrantError",
    "GrantMapper",
    "Mapping",
    "StoreClient",
    "StoreError",
    "StoreOperations",
]

PAGE_SIZE = 4096


class DomainError(Exception):
    """The other domain or the hypervisor between us is gone, or has no more to lend."""


class Mapping(Protocol):
    """Granted pages of another domain, mapped by a backend until `unmap`.

    The memory stays the granting domain's: it may change at any moment. What is decided on must
    be copied first.
    """

    pages: Sequence[memoryview]
    """One view of PAGE_SIZE bytes for each reference, in order; read-only if so mapped."""

    def contiguous(self) -> memoryview:
        """Return all pages as one view, in order of the references (for rings)."""

    def runs(self) -> Sequence[memoryview]:
        """Return the pages as views of as many consecutive ones as lie together (for data)."""

    def unmap(self) -> None:
        """End the mapping and release its grants; a second call does nothing."""


class GrantMapper(Protocol):
    """A backend's access to one other domain's grant table."""

    native: GrantAccess | None
    """The same grants for the C path, if that may map them."""

    @property
    def mapped(self) -> int:
        """Pages mapped at the moment, over all mappings and the C path (a leak shows here)."""

    def map(self, references: Sequence[int], *, readonly: bool) -> Mapping:
        """Map pages; raise GrantError (and map none) if any reference does not permit it."""


class EventChannel(Protocol):
    """One end of an event channel: edge triggered, coalescing, possibly spurious."""

    port: int
    fds: tuple[int, int]
    """Eventfds: the one that we are told by, the one to tell by."""

    def fileno(self) -> int:
        """Return a descriptor that polls readable while an event is pending."""

    def notify(self) -> None:
        """Send an event to the other end; never blocks."""

    def clear(self) -> None:
        """Consume pending events; call before looking at the ring."""

    def close(self) -> None:
        """Close this end; a second call does nothing."""


class StoreError(Exception):
    """A store request failed; `code` is xenstore's error name ("ENOENT", "EACCES", ...)."""

    def __init__(self, code: str, path: str = "") -> None:
        super().__init__(f"{code}: {path}" if path else code)
        self.code = code


class StoreOperations(Protocol):
    """Reads and writes on xenstore, directly or inside a transaction. Values are text."""

    def read(self, path: str) -> str:
        """Return a node's value; StoreError("ENOENT") if there is no such node."""

    def write(self, path: str, value: str) -> None:
        """Create or replace a node, with the parents that it lacks."""

    def mkdir(self, path: str) -> None:
        """Create an empty node unless it exists."""

    def rm(self, path: str) -> None:
        """Remove a node and all below it."""

    def directory(self, path: str) -> list[str]:
        """Return the names of a node's children."""

    def get_perms(self, path: str) -> list[str]:
        """Return permissions as in "n0", "r1": the owner and default first, then the others."""

    def set_perms(self, path: str, perms: Sequence[str]) -> None:
        """Replace a node's permissions."""


class StoreClient(StoreOperations, Protocol):
    """A domain's connection to xenstore."""

    def transaction(self) -> AbstractContextManager[StoreOperations]:
        """Commit on a normal exit, abort on an exception; StoreError("EAGAIN") on a conflict."""

    def watch(self, path: str, callback: Callable[[str], None]) -> Callable[[], None]:
        """Call back with the changed path, once at once and then at every change at or below.

        Callbacks come one at a time from the client's own dispatcher, never from inside a call.
        Events for the same path that have not been delivered yet are merged (XSA-349).
        Returns a function that ends the watch.
        """
