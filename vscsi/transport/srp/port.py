# SPDX-License-Identifier: MIT
"""An SRP target port: who is logged in, and the login rules (SRP r16a 5.2, 6.2)."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from construct import Container

from vscsi.target.base import Nexus, Target
from vscsi.wire.srp import (
    MIN_MAX_IT_IU_LENGTH,
    BufferFormats,
    LoginRejectReason,
    LoginReqFlags,
    LoginRspFlags,
)

SUPPORTED_FORMATS = BufferFormats.DIRECT | BufferFormats.INDIRECT


class Channel(Protocol):
    """What the port needs of a channel."""

    def terminate(self) -> None:
        """End the channel for another one of its nexus: T_LOGOUT, no answers any more."""

    def report_event(self, lun: bytes, sense: bytes) -> None:
        """Tell the initiator of an event at once (AER_REQ)."""


class LoginRejected(Exception):
    """A LOGIN_REQ is answered with LOGIN_REJ; `reason` says why."""

    def __init__(self, reason: LoginRejectReason) -> None:
        super().__init__(reason.name)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Login:
    """An accepted login: the nexus, and LOGIN_RSP's flags (multi-channel result)."""

    nexus: Nexus
    flags: LoginRspFlags


class SrpPort:
    """One target port of a target; its channels come from any number of domains. Thread-safe.

    A nexus is an initiator port *of a domain*: one domain cannot name another's port and so end
    its channel or use its reservations.
    """

    def __init__(self, target: Target, port_id: bytes) -> None:
        """port_id has 16 bytes; a login may also name the port by 16 zeros, as ibmvscsi does."""
        self.target = target
        self.port_id = port_id
        self._channels: dict[Nexus, Channel] = {}
        self._lock = threading.Lock()

    def login(
        self, channel: Channel, domain: int, request: Container, max_it_iu_length: int
    ) -> Login:
        """Establish the nexus that a LOGIN_REQ asks for; LoginRejected if it cannot be.

        An older channel of the same nexus is terminated (multi-channel action 0).
        """
        asked = request.requested_max_it_iu_length
        formats = request.required_buffer_formats
        if asked > max_it_iu_length or asked < MIN_MAX_IT_IU_LENGTH:
            raise LoginRejected(LoginRejectReason.REQUESTED_IT_IU_LENGTH_TOO_LARGE)
        if request.target_port_id not in (self.port_id, bytes(16)):
            raise LoginRejected(LoginRejectReason.UNABLE_TO_ASSOCIATE_CHANNEL)
        if formats & ~int(SUPPORTED_FORMATS) or not formats:
            raise LoginRejected(LoginRejectReason.UNSUPPORTED_BUFFER_FORMAT)
        if request.flags & LoginReqFlags.MULTI_CHANNEL_MASK:
            raise LoginRejected(LoginRejectReason.MULTI_CHANNEL_UNSUPPORTED)
        nexus = Nexus(f"{domain}:{request.initiator_port_id.hex()}", self.port_id.hex())
        with self._lock:
            older = self._channels.get(nexus)
            self._channels[nexus] = channel
        flags = LoginRspFlags(0)
        if older is not None and older is not channel:
            older.terminate()
            self.target.detach(nexus)
            flags = LoginRspFlags.CHANNELS_TERMINATED
        self.target.attach(nexus)
        return Login(nexus, flags)

    def logout(self, channel: Channel, nexus: Nexus) -> None:
        """Lose the nexus, unless a newer channel has it; returns when none of its tasks runs."""
        with self._lock:
            if self._channels.get(nexus) is not channel:
                return
            del self._channels[nexus]
        self.target.detach(nexus)

    def report_event(self, nexuses: Sequence[Nexus], lun: bytes, sense: bytes) -> None:
        """Tell those of the nexuses that have a channel here of an event at once (AER_REQ)."""
        with self._lock:
            channels = [self._channels[each] for each in nexuses if each in self._channels]
        for channel in channels:
            channel.report_event(lun, sense)
