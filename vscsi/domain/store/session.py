# SPDX-License-Identifier: MIT
"""The store that all clients share, and what one client has in it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import RLock

from vscsi.domain.base import StoreError
from vscsi.domain.store import paths
from vscsi.domain.store.permissions import PRIVILEGED
from vscsi.domain.store.transaction import Change, Transaction
from vscsi.domain.store.tree import Quota, Tree
from vscsi.domain.store.watches import Watch, WatchTable
from vscsi.wire.xenstore import ABS_PATH_MAX, PAYLOAD_MAX

INTRODUCE_DOMAIN = "@introduceDomain"
RELEASE_DOMAIN = "@releaseDomain"

_TOKEN_MAX = PAYLOAD_MAX - ABS_PATH_MAX - 2
"""So that every event, a path and a token with their NULs, fits into a message."""


class Store:
    """The tree, the watches on it, and the domains that are there.

    Thread-safe: `lock` is held over every request, whoever makes it.
    """

    def __init__(self, quota: Quota | None = None) -> None:
        self.lock = RLock()
        self.quota = quota or Quota()
        self.tree = Tree(self.quota)
        self.watches = WatchTable()
        self._introduced = {PRIVILEGED}

    def introduce(self, domain: int) -> None:
        """Note that a domain is there (@introduceDomain)."""
        with self.lock:
            self._introduced.add(domain)
            self._fire(Change(INTRODUCE_DOMAIN, None, None, exact=True))

    def release(self, domain: int) -> None:
        """Note that a domain is gone (@releaseDomain)."""
        with self.lock:
            self._introduced.discard(domain)
            self._fire(Change(RELEASE_DOMAIN, None, None, exact=True))

    def is_introduced(self, domain: int) -> bool:
        """Tell whether a domain is there."""
        with self.lock:
            return domain in self._introduced

    def commit(self, transaction: Transaction) -> None:
        """Commit and fire the watches; the lock is held."""
        for change in transaction.commit():
            self._fire(change)

    def _fire(self, change: Change) -> None:
        for watch in self.watches.concerned(change.path, exact=change.exact):
            session = watch.owner
            if session.domain == PRIVILEGED or change.visible_to(session.domain):
                session.add_event(watch, change.path)


class Session:
    """One client: its domain, transactions, watches, and the events it has not seen yet.

    Events are merged by watch and path as long as they wait (XSA-349). `on_event` is called with
    the store's lock held when the first one starts to wait; it must only take a note of it.
    More than `max_events` waiting sets `overflowed`, drops them and is the caller's to act on.
    """

    def __init__(
        self,
        store: Store,
        on_event: Callable[[], None],
        *,
        domain: int = PRIVILEGED,
        max_events: int | None = None,
    ) -> None:
        self.store = store
        self.domain = domain
        self.overflowed = False
        self._on_event = on_event
        self._max_events = max_events
        self._events: dict[tuple[Watch, str], None] = {}
        self._watches: set[Watch] = set()
        self._transactions: dict[int, Transaction] = {}
        self._last_id = 0

    def resolve(self, path: bytes) -> str:
        """Return the absolute path for one from a message."""
        try:
            return paths.resolve(path.decode("ascii"), self.domain)
        except UnicodeDecodeError:
            raise StoreError("EINVAL") from None

    @contextmanager
    def transaction(self, transaction_id: int) -> Iterator[Transaction]:
        """Give a started transaction, or for 0 one of its own that is committed at the end."""
        if transaction_id:
            yield self._started(transaction_id)
        else:
            single = Transaction(self.store.tree, self.domain, isolated=False)
            yield single
            self.store.commit(single)

    def start(self) -> int:
        """Start a transaction and return its id, never 0."""
        limit = self.store.quota.transactions
        if self.domain != PRIVILEGED and len(self._transactions) >= limit:
            raise StoreError("ENOSPC")
        while True:
            self._last_id = (self._last_id + 1) & 0xFFFFFFFF
            if self._last_id and self._last_id not in self._transactions:
                break
        self._transactions[self._last_id] = Transaction(self.store.tree, self.domain, isolated=True)
        return self._last_id

    def end(self, transaction_id: int, *, commit: bool) -> None:
        """End a transaction; StoreError("EAGAIN") if it conflicts, and it is gone all the same."""
        transaction = self._started(transaction_id)
        del self._transactions[transaction_id]
        if commit:
            self.store.commit(transaction)

    def watch(self, path: bytes, token: bytes) -> None:
        """Register a watch and make its first event wait."""
        watch = self._watch(path, token)
        limit = self.store.quota.watches
        if self.domain != PRIVILEGED:
            if paths.is_special(watch.path):
                raise StoreError("EACCES", watch.path)
            if len(self._watches) >= limit:
                raise StoreError("E2BIG", watch.path)
        self.store.watches.add(watch)
        self._watches.add(watch)
        self.add_event(watch, watch.path)

    def unwatch(self, path: bytes, token: bytes) -> None:
        """End a watch; its waiting events are dropped."""
        watch = self._watch(path, token)
        self.store.watches.remove(watch)
        self._watches.discard(watch)
        self._events = {key: None for key in self._events if key[0] != watch}

    def reset(self) -> None:
        """Drop all watches, waiting events and transactions."""
        with self.store.lock:
            for watch in self._watches:
                self.store.watches.remove(watch)
            self._watches.clear()
            self._events.clear()
            self._transactions.clear()

    def add_event(self, watch: Watch, path: str) -> None:
        """Make an event wait, unless the same one does."""
        was_idle = not self._events
        self._events[watch, watch.shown(path)] = None
        if self._max_events is not None and len(self._events) > self._max_events:
            self.overflowed = True
            self._events.clear()
            self._on_event()
        elif was_idle:
            self._on_event()

    def take_events(self, limit: int | None = None) -> list[tuple[str, bytes]]:
        """Take up to `limit` waiting events, oldest first: path and token."""
        with self.store.lock:
            taken = list(self._events)[:limit]
            for key in taken:
                del self._events[key]
        return [(path, watch.token) for watch, path in taken]

    def _started(self, transaction_id: int) -> Transaction:
        if transaction_id not in self._transactions:
            raise StoreError("ENOENT")
        return self._transactions[transaction_id]

    def _watch(self, path: bytes, token: bytes) -> Watch:
        absolute = self.resolve(path)
        if len(token) > _TOKEN_MAX:
            raise StoreError("EINVAL", absolute)
        return Watch(self, absolute, token, absolute[: len(absolute) - len(path)])
