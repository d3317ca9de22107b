# SPDX-License-Identifier: MIT
"""The request limit at the target's end, and the target's own requests (SRP r16a 4.4, 5.4)."""

import threading
from collections import deque
from typing import Any

from vscsi.wire.errors import WireError
from vscsi.wire.srp import IuType

MAX_EVENTS = 16
"""AER_REQs that wait for the initiator to answer the one before; older ones are dropped."""


class Credits:
    """Counts requests against the limit. Thread-safe.

    Each RSP gives back its request's credit. A command that is aborted gets no RSP; its credit is
    owed, and goes with the next RSP (that of the function that aborted it, if that was ours). If
    nothing is outstanding that will be answered, CRED_REQ carries it. So at any time
    limit == free + outstanding + owed.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.free = limit
        self.outstanding = 0
        self.owed = 0
        self._lock = threading.Lock()
        self._events: deque[tuple[bytes, bytes]] = deque(maxlen=MAX_EVENTS)
        self._request_tag = 0
        self._request_outstanding = False

    @property
    def idle(self) -> bool:
        """Whether no request is outstanding and nothing is owed."""
        with self._lock:
            return not self.outstanding and not self.owed

    def spend(self) -> None:
        """Take a request; WireError if the initiator had no credit for it."""
        with self._lock:
            if self.free <= 0:
                raise WireError(f"a request beyond the request limit of {self.limit}")
            self.free -= 1
            self.outstanding += 1

    def give_back(self) -> int:
        """A request is being answered: return the RSP's request limit delta."""
        with self._lock:
            delta = 1 + self.owed
            self.outstanding -= 1
            self.owed = 0
            self.free += delta
            return delta

    def forgo(self) -> None:
        """A request will not be answered: its credit is owed."""
        with self._lock:
            self.outstanding -= 1
            self.owed += 1

    def queue_event(self, lun: bytes, sense: bytes) -> None:
        """Note an asynchronous event for an AER_REQ."""
        with self._lock:
            self._events.append((lun, sense))

    def next_request(self) -> tuple[IuType, dict[str, Any]] | None:
        """Return the next request of the target's own to send; only one is outstanding."""
        with self._lock:
            fields: dict[str, Any]
            if self._request_outstanding:
                return None
            if self.owed and not self.outstanding:
                kind = IuType.CRED_REQ
                fields = {"request_limit_delta": self.owed}
                self.free += self.owed
                self.owed = 0
            elif self._events:
                lun, sense = self._events.popleft()
                kind = IuType.AER_REQ
                fields = {"lun": lun, "sense_data": sense}
            else:
                return None
            self._request_tag += 1
            self._request_outstanding = True
            return kind, {**fields, "tag": self._request_tag}

    def request_answered(self, tag: int) -> bool:
        """Take a CRED_RSP or AER_RSP; False if it answers nothing."""
        with self._lock:
            expected = self._request_outstanding and tag == self._request_tag
            self._request_outstanding = False
            return expected
