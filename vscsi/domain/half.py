# SPDX-License-Identifier: MIT
"""What the two halves of a xenbus device share: turns, publishing, errors, release.

A half does its work in turns: look at both states in the store, do what they call for, publish.
A turn is due when the watch of either state fires (so also after a publication of our own), and
when the owner asks for something. One thread at a time takes turns: whoever finds the half idle;
others leave a note and go on. So nobody ever waits for a half (XSA-350: connect and disconnect
never overlap; CVE-2023-34324: no lock is held that a driver's I/O thread could need), and a
driver may call `fail` from a thread that its own `disconnect` joins.
"""

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from typing import ClassVar, Protocol

from vscsi.domain.base import DomainError, StoreClient, StoreError, StoreOperations
from vscsi.domain.keys import Reader, XenbusState, fetch, read_state, transact
from vscsi.wire.errors import WireError

_log = logging.getLogger(__name__)

REASON_LIMIT = 200
"""Characters of a reason that go into the store: it may quote the peer."""

Keys = Mapping[str, str | None]
"""Keys below a half's own directory to write, or (None) to remove if they are there."""
OnChange = Callable[[XenbusState, str], None]
_Failure = (WireError, DomainError, StoreError, OSError)


class Driver(Protocol):
    """What both kinds of driver have. Calls never overlap; they come from any thread."""

    def disconnect(self) -> None:
        """Quiesce, unmap or end access, unbind; return when no thread uses any of it.

        Called exactly once for each connection that was begun, also if beginning it raised.
        """


class SupersededError(Exception):
    """What a turn decided on has changed in the store meanwhile: take another turn."""


def error_path(path: str) -> str | None:
    """Return where Linux publishes a device's error: in its domain's own `error` directory."""
    parts = path.split("/")
    if parts[:3] != ["", "local", "domain"] or len(parts) < 5:
        return None
    return "/".join([*parts[:4], "error", *parts[4:], "error"])


def printable(reason: str) -> str:
    """Return a reason as it may go into the store and onto terminals."""
    return "".join(c if " " <= c <= "~" else "?" for c in reason[:REASON_LIMIT])


class Half(ABC):
    """One half of a device; `path` is its own directory, made by the toolstack.

    `on_change(state, reason)` is called after every change of `state`, from the thread that took
    the turn; it must not block, and may call any method but `start`. `reason` says why a
    connection ended, and is empty otherwise. Errors are written to `<path>/error`, for whoever
    looks at the device, and to the domain's error directory, for tools (`error_path`).
    """

    other_key: ClassVar[str]
    """The key in our own directory that names the other half's."""

    def __init__(
        self, store: StoreClient, path: str, driver: Driver, on_change: OnChange | None = None
    ) -> None:
        self.path = path.rstrip("/")
        self.state = XenbusState.UNKNOWN
        """The state published last; UNKNOWN before the first, and while the store shows none."""
        self._store = store
        self._release_driver = driver.disconnect
        self._on_change = on_change
        self._other = ""
        self._stored = XenbusState.UNKNOWN
        self._attached = False
        self._watches = ExitStack()
        self._lock = threading.Condition()
        self._runner: int | None = None
        self._due = False
        self._started = False
        self._stopped = False
        # Wishes, taken up at the beginning of a turn:
        self._close_asked = False
        self._stop_asked = False
        self._fault: str | None = None

    def start(self) -> None:
        """Follow the other half from now on; call once. StoreError if there is no such device."""
        self._other = self._store.read(f"{self.path}/{self.other_key}").rstrip("/")
        with ExitStack() as watches:
            for directory in (self._other, self.path):
                watches.callback(self._store.watch(f"{directory}/state", self._event))
            self._watches = watches.pop_all()
        self._started = True
        self._post()

    def close(self) -> None:
        """Ask for an orderly close: Closing, then Closed when the other half is ready for it."""
        self._close_asked = True
        self._post()

    def fail(self, reason: str) -> None:
        """End the current connection at once and publish why; any thread, never waits."""
        self._fault = reason
        self._post()

    def stop(self) -> None:
        """Disconnect, publish Closed and follow nothing more; return when that is done.

        It waits for a turn in progress, so a thread that `disconnect` joins must not call it;
        from inside a turn it returns at once, and the half stops after the turn.
        """
        self._stop_asked = True
        while not self._stopped:
            self._post()
            with self._lock:
                if self._runner == threading.get_ident():
                    return
                self._lock.wait_for(lambda: self._runner is None)

    # Turns

    def _event(self, _path: str) -> None:
        if self._started and not self._stop_asked:
            self._post()

    def _post(self) -> None:
        """Make a turn due, and take it unless another thread is at it."""
        with self._lock:
            self._due = True
            if self._runner is not None:
                return
            self._runner = threading.get_ident()
        try:
            while self._next():
                self._turn()
        except BaseException:  # an interrupt must not leave a runner behind that does not run
            with self._lock:
                self._runner = None
                self._lock.notify_all()
            raise

    def _next(self) -> bool:
        with self._lock:
            turn = self._due and not self._stopped
            self._due = False
            if not turn:
                self._runner = None
                self._lock.notify_all()
            return turn

    def _turn(self) -> None:
        if self._stop_asked:
            self._shut_down()
            return
        try:
            self._stored = read_state(self._store, self.path)
            other = read_state(self._store, self._other)
        except _Failure as error:
            self._lose(f"the store is lost: {error}")
            return
        try:
            self._obey_store()
            if (fault := self._fault) is not None:
                self._fault = None
                if self.state not in (XenbusState.UNKNOWN, XenbusState.CLOSED):
                    self._give_up(fault)
                    return
            if self._close_asked:
                self._close_asked = False
                self._begin_close()
            if self._stored is not XenbusState.UNKNOWN:
                self._step(other)
        except SupersededError:
            self._due = True
        except _Failure as error:
            self._give_up(str(error))
        except Exception as error:  # a driver's bug ends its device, not the watch dispatcher
            _log.exception("%s: driver failed", self.path)
            self._give_up(f"internal error: {error!r}")

    @abstractmethod
    def _step(self, other: XenbusState) -> None:
        """Do what our state and the other half's call for; nothing if they call for nothing."""

    @abstractmethod
    def _begin_close(self) -> None:
        """Take up `close`."""

    @abstractmethod
    def _begin_reconfiguration(self) -> None:
        """Take up a Reconfiguring that the toolstack wrote, if it means anything here."""

    def _obey_store(self) -> None:
        """Take up what somebody else, the toolstack, has done to our own state node.

        Gone: the device was removed. Initialising: it was made anew. Reconfiguring: see
        `_begin_reconfiguration`. Anything else that we did not write asks us to close (it writes
        Closing to unplug).
        """
        stored = self._stored
        if stored is self.state or self.state is XenbusState.UNKNOWN:
            return
        if stored is XenbusState.UNKNOWN:
            self._lose("the device was removed")
        elif stored is XenbusState.INITIALISING:
            self._lose("the device was made anew")
        elif stored is XenbusState.RECONFIGURING:
            self._begin_reconfiguration()
        elif self.state is not XenbusState.CLOSING:
            self._enter(XenbusState.CLOSING, "the toolstack asked to close")

    def _shut_down(self) -> None:
        with suppress(*_Failure):
            self._watches.close()
        self._release()
        with suppress(SupersededError, *_Failure):
            self._stored = read_state(self._store, self.path)
            if self._started and self._stored is not XenbusState.UNKNOWN:
                self._write(XenbusState.CLOSED, {}, None)
        self._enter(XenbusState.CLOSED, "stopped")
        with self._lock:
            self._stopped = True

    # What a step is made of

    def _attach(self) -> None:
        """Note that from here on the driver holds something that `disconnect` must release."""
        self._attached = True

    def _release(self) -> None:
        if not self._attached:
            return
        self._attached = False
        try:
            self._release_driver()
        except Exception:  # whatever a driver's release met, the half must go on to Closed
            _log.exception("%s: disconnect failed", self.path)
        # The driver is quiet now: a fault reported before this was of the connection that ended.
        self._fault = None

    def _enter(self, state: XenbusState, reason: str = "") -> None:
        self.state = state
        if self._on_change is not None:
            try:
                self._on_change(state, reason)
            except Exception:  # the owner's callback; its bug is not the device's
                _log.exception("%s: on_change failed", self.path)

    def _write(self, state: XenbusState, keys: Keys, seen: Reader | None) -> None:
        """Write keys and state in one transaction, if the store still is as this turn saw it.

        Never brings a removed device back, never overwrites what the toolstack asked for, and
        with `seen` never answers to keys that the peer has replaced since.
        """

        def body(operations: StoreOperations) -> None:
            if read_state(operations, self.path) is not self._stored:
                raise SupersededError
            if seen is not None and seen.changed(operations):
                raise SupersededError
            for key, value in keys.items():
                if value is not None:
                    operations.write(f"{self.path}/{key}", value)
                elif fetch(operations, f"{self.path}/{key}") is not None:
                    operations.rm(f"{self.path}/{key}")
            operations.write(f"{self.path}/state", str(int(state)))

        transact(self._store, body)

    def _publish(
        self,
        state: XenbusState,
        keys: Keys | None = None,
        reason: str = "",
        *,
        seen: Reader | None = None,
    ) -> None:
        self._write(state, keys or {}, seen)
        self._stored = state
        self._enter(state, reason)

    def _give_up(self, reason: str) -> None:
        """Disconnect now, publish the reason and Closing; another turn does the rest."""
        self._release()
        text = printable(reason)
        if (record := error_path(self.path)) is not None:
            with suppress(*_Failure):
                self._store.write(record, text)
        try:
            self._publish(XenbusState.CLOSING, {"error": text}, text)
        except SupersededError:
            self._fault = reason
            self._due = True
        except _Failure as error:
            self._lose(f"{text} (and the store refused that: {error})")

    def _lose(self, reason: str) -> None:
        """Let go of everything; begin anew if the store shows our device again."""
        self._release()
        if self.state is not XenbusState.UNKNOWN:
            self._enter(XenbusState.UNKNOWN, reason)
