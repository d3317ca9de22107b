# SPDX-License-Identifier: MIT
"""The xenbus state machine of a backend and of a frontend (io/xenbus.h).

          Frontend              Backend
      1 Initialising       1 Initialising
                           2 InitWait        features are published
      3 Initialised                          rings and keys are published
                           4 Connected       rings are mapped, properties published
      4 Connected
      5 Closing  <-either->  5 Closing
      6 Closed             6 Closed          back to 1 and 2 if the frontend wants and we may

Each half acts on the pair (own state, other's state) that it finds, not on events, so missed and
merged events do no harm, and any pair has a way on. A frontend gives no ring to a backend before
the backend has acknowledged that it let go of the one before: it goes through Closed (or finds
the backend Closed or not begun) and waits for InitWait. So neither half can take an old state of
the other for an answer to its new one, whoever died in between. Frontends of others that skip
this (scsifront publishes Initialised at once) are caught by comparing the keys (`Reader.changed`).
"""

from collections.abc import Callable
from typing import Protocol

from vscsi.domain.base import StoreClient
from vscsi.domain.half import Driver, Half, Keys, OnChange, SupersededError, printable
from vscsi.domain.keys import Reader, XenbusState, fetch, parse_state

__all__ = [
    "Backend",
    "BackendDriver",
    "Frontend",
    "FrontendDriver",
    "Keys",
    "Reader",
    "XenbusState",
]

UNKNOWN, INITIALISING, INIT_WAIT, INITIALISED, CONNECTED = tuple(XenbusState)[:5]
CLOSING, CLOSED, RECONFIGURING, RECONFIGURED = tuple(XenbusState)[5:]

RECONNECT_LIMIT = 8
"""Attempts in a row of a frontend that never reach Connected, until it stays Closed."""


class BackendDriver(Driver, Protocol):
    """What a backend does at each state.

    Any method may raise WireError, DomainError, StoreError or OSError: the reason is published
    and the connection closed.
    """

    def features(self) -> Keys:
        """Return the keys to publish before each InitWait; called once, by `Backend.start`."""

    def connect(self, frontend: Reader) -> Keys:
        """Map the rings, bind the event channel and start serving; return the properties.

        They are published with Connected. The frontend may put requests on the ring at once.
        """

    def connected(self, frontend: Reader) -> Keys:
        """Take notice that the frontend reached Connected (again after a reconfiguration)."""

    def reconfigure(self, frontend: Reader) -> Keys:
        """The frontend is Reconfiguring: change what is served; published with Reconfigured."""


class FrontendDriver(Driver, Protocol):
    """What a frontend does at each state; errors as for BackendDriver.

    `disconnect` may find its pages still mapped by the backend, if the backend closed: those can
    be given to nobody else before that ends.
    """

    def prepare(self, backend: Reader) -> Keys:
        """Allocate rings and event channel; return the keys to publish with Initialised."""

    def connect(self, backend: Reader) -> Keys:
        """The backend is Connected: start; return keys to publish with our Connected."""

    def reconfigure(self, backend: Reader, state: XenbusState) -> Keys:
        """The backend is Reconfiguring (let go of what goes) or done (take what came)."""


class Backend(Half):
    """The backend's half.

    After a close it returns to InitWait as soon as the frontend is Initialising again and the
    toolstack's `online` is 1. A backend that starts on the leftovers of one that died, with a
    frontend that still believes to be connected, closes first: what that one had in flight is
    not known to it.
    """

    other_key = "frontend"

    def __init__(
        self,
        store: StoreClient,
        path: str,
        driver: BackendDriver,
        on_change: OnChange | None = None,
    ) -> None:
        super().__init__(store, path, driver, on_change)
        self._driver = driver
        self._features: Keys = {}
        self._frontend: Reader | None = None
        self._told = False

    def start(self) -> None:
        """See Half.start; what the driver's `features` raises passes as well."""
        self._features = self._driver.features()
        super().start()

    def _begin_close(self) -> None:
        if self.state not in (UNKNOWN, CLOSING, CLOSED):
            self._publish(CLOSING)

    def _begin_reconfiguration(self) -> None:
        if self.state in (CONNECTED, RECONFIGURED):
            self._enter(RECONFIGURING)
        else:
            self._publish(self.state)  # nothing to reconfigure

    def _step(self, other: XenbusState) -> None:
        if self.state is UNKNOWN:
            self._begin(other)
        elif self.state is INIT_WAIT:
            self._step_init_wait(other)
        elif self.state is CLOSING:
            self._step_closing(other)
        elif self.state is CLOSED:
            if other in (INITIALISING, INIT_WAIT) and self._online():
                self._init_wait()
        else:
            self._step_connected(other)

    def _begin(self, other: XenbusState) -> None:
        used = self._stored >= CONNECTED
        if used and other in (INITIALISED, CONNECTED, CLOSING, RECONFIGURING, RECONFIGURED):
            reason = "the backend was restarted"
            self._publish(CLOSING, {"error": reason}, reason)
        else:
            self._init_wait()

    def _step_init_wait(self, other: XenbusState) -> None:
        if other in (INITIALISED, CONNECTED):
            self._connect(other)
        elif other is CLOSING:
            self._publish(CLOSING)
        elif other in (CLOSED, UNKNOWN):
            self._publish(CLOSED)

    def _step_connected(self, other: XenbusState) -> None:
        if other in (INITIALISING, INIT_WAIT):
            self._init_wait("the frontend was restarted")
        elif other is INITIALISED:
            # It may become Connected just now: that is no restart.
            if self._frontend is not None and self._frontend.changed(self._store, but="state"):
                self._init_wait("the frontend was restarted")
        elif other is CONNECTED:
            self._frontend_connected()
        elif other is CLOSING:
            self._release()
            self._publish(CLOSING)
        elif other in (CLOSED, UNKNOWN):
            self._closed(other)
        elif other is RECONFIGURING and self.state is not RECONFIGURED:
            keys = self._driver.reconfigure(Reader(self._store, self._other))
            self._told = False
            self._publish(RECONFIGURED, keys)

    def _step_closing(self, other: XenbusState) -> None:
        # Connected, or Closing too: the frontend may still be finishing what is in flight.
        if other in (CLOSED, UNKNOWN, INITIALISING, INIT_WAIT):
            self._closed(other)

    def _init_wait(self, reason: str = "") -> None:
        self._release()
        self._publish(INIT_WAIT, {"error": None, **self._features}, reason)

    def _closed(self, other: XenbusState) -> None:
        self._release()
        self._publish(CLOSED, reason="the frontend is gone" if other is UNKNOWN else "")

    def _connect(self, other: XenbusState) -> None:
        frontend = Reader(self._store, self._other)
        if parse_state(frontend.text("state", "")) is not other:
            raise SupersededError
        self._attach()
        try:
            properties = self._driver.connect(frontend)
            self._frontend, self._told = frontend, False
            self._publish(CONNECTED, properties, seen=frontend)
        except SupersededError:
            self._release()
            raise

    def _frontend_connected(self) -> None:
        if self._told or self.state is RECONFIGURING:
            return
        keys = self._driver.connected(Reader(self._store, self._other))
        if keys or self.state is RECONFIGURED:
            self._publish(CONNECTED, keys)
        self._told = True

    def _online(self) -> bool:
        return fetch(self._store, f"{self.path}/online") == "1"


class Frontend(Half):
    """The frontend's half; wants a connection from `start` (or `reopen`) until `close`.

    When the backend ends the connection it stays Closed, or with `reconnect` tries again, up to
    RECONNECT_LIMIT times in a row.
    """

    other_key = "backend"

    def __init__(
        self,
        store: StoreClient,
        path: str,
        driver: FrontendDriver,
        on_change: OnChange | None = None,
        *,
        reconnect: bool = False,
    ) -> None:
        super().__init__(store, path, driver, on_change)
        self._driver = driver
        self._reconnect = reconnect
        self._wanted = True
        self._attempts = 0

    def close(self) -> None:
        """Ask for an orderly close; what is in flight should have been awaited before.

        Closing waits for the backend to let go of the rings; `stop` does not wait for it.
        """
        self._wanted = False
        super().close()

    def reopen(self) -> None:
        """Want a connection again, after `close` or after the backend ended the last one."""
        self._attempts = 0
        self._wanted = True
        self._post()

    def _begin_close(self) -> None:
        if self.state is INITIALISING:
            self._publish(CLOSED)
        elif self.state not in (UNKNOWN, CLOSING, CLOSED):
            self._publish(CLOSING)

    def _begin_reconfiguration(self) -> None:
        self._publish(self.state)  # only a backend can be asked

    def _give_up(self, reason: str) -> None:
        self._wanted = self._wanted and self._reconnect
        super()._give_up(reason)

    def _end(self, reason: str) -> None:
        self._wanted = self._wanted and self._reconnect
        self._release()
        self._publish(CLOSED, reason=reason)

    def _step(self, other: XenbusState) -> None:
        steps: dict[XenbusState, Callable[[XenbusState], None]] = {
            UNKNOWN: self._begin,
            INITIALISING: self._step_initialising,
            INITIALISED: self._step_initialised,
            CONNECTED: self._step_connected,
            RECONFIGURING: self._step_reconfiguring,
            CLOSING: self._step_closing,
            CLOSED: self._step_closed,
        }
        steps[self.state](other)

    def _begin(self, other: XenbusState) -> None:
        if self._stored is INITIALISING or other in (INITIALISING, CLOSED):
            self._publish(INITIALISING)
        else:
            # What a predecessor left: have the backend let go of it (as Linux does after kexec).
            self._publish(CLOSED)

    def _step_initialising(self, other: XenbusState) -> None:
        if not self._wanted or other is CLOSING:
            self._publish(CLOSED)
        elif other is INIT_WAIT:
            self._attempts += 1
            self._attach()
            try:
                keys = self._driver.prepare(Reader(self._store, self._other))
                self._publish(INITIALISED, {"error": None, **keys})
            except SupersededError:
                self._release()
                raise

    def _step_initialised(self, other: XenbusState) -> None:
        if other in (CONNECTED, RECONFIGURING, RECONFIGURED):
            keys = self._driver.connect(Reader(self._store, self._other))
            self._attempts = 0
            self._publish(CONNECTED, keys)
        elif other in (CLOSING, CLOSED, UNKNOWN):
            self._end(self._why(other))

    def _step_connected(self, other: XenbusState) -> None:
        if other is RECONFIGURING:
            self._publish(
                RECONFIGURING,
                self._driver.reconfigure(Reader(self._store, self._other), other),
            )
        elif other not in (CONNECTED, RECONFIGURED):
            self._end(self._why(other))

    def _step_reconfiguring(self, other: XenbusState) -> None:
        if other in (CONNECTED, RECONFIGURED):
            self._publish(
                CONNECTED,
                self._driver.reconfigure(Reader(self._store, self._other), other),
            )
        elif other is not RECONFIGURING:
            self._end(self._why(other))

    def _step_closing(self, other: XenbusState) -> None:
        # A backend that holds our rings says so by Connected; it lets go before Closing.
        if other not in (INITIALISED, CONNECTED, RECONFIGURING, RECONFIGURED):
            self._release()
            self._publish(CLOSED)

    def _step_closed(self, other: XenbusState) -> None:
        if self._wanted and self._attempts < RECONNECT_LIMIT and other in (INITIALISING, CLOSED):
            self._publish(INITIALISING)

    def _why(self, other: XenbusState) -> str:
        if other is UNKNOWN:
            return "the backend is gone"
        if other in (CLOSING, CLOSED):
            error = fetch(self._store, f"{self._other}/error")
            return printable(error or "the backend closed")
        return "the backend was restarted"
