# SPDX-License-Identifier: MIT
"""An SRP target port: who is logged in, and the login rules (SRP r16a 5.2, 6.2)."""

import threading
from collections.abc import Sequence
from typing import Protocol

from construct import Container

from vscsi.target.base import Nexus, Target, Task
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

    def is_mine(self, task: Task) -> bool:
        """Tell whether a task came over this channel."""

    def report_event(self, lun: bytes, sense: bytes) -> None:
        """Tell the initiator of an event at once (AER_REQ)."""


class LoginRejected(Exception):
    """A LOGIN_REQ is answered with LOGIN_REJ; `reason` says why."""

    def __init__(self, reason: LoginRejectReason) -> None:
        super().__init__(reason.name)
        self.reason = reason


class SrpPort:
    """One target port of a target; its channels come from any number of domains. Thread-safe.

    A nexus is an initiator port *of a domain*: one domain cannot name another's port and so end
    its channel or use its reservations.
    """

    def __init__(self, target: Target, port_id: bytes) -> None:
        """port_id has 16 bytes; a login may also name the port by 16 zeros, as ibmvscsi does."""
        self.target = target
        self.port_id = port_id
        self._channels: dict[Nexus, tuple[Channel, ...]] = {}
        self._lock = threading.Lock()

    def login(
        self, channel: Channel, domain: int, request: Container, max_it_iu_length: int
    ) -> tuple[Nexus, LoginRspFlags]:
        """Establish what a LOGIN_REQ asks for; LoginRejected if it cannot be.

        That is a nexus, or another channel of one (multi-channel action 1). What action 0 would
        terminate is another queue of the same device, which it is rejected for. Logins and logouts
        of one domain's channels come one at a time.
        """
        asked = request.requested_max_it_iu_length
        formats = request.required_buffer_formats
        if asked > max_it_iu_length or asked < MIN_MAX_IT_IU_LENGTH:
            raise LoginRejected(LoginRejectReason.REQUESTED_IT_IU_LENGTH_TOO_LARGE)
        if request.target_port_id not in (self.port_id, bytes(16)):
            raise LoginRejected(LoginRejectReason.UNABLE_TO_ASSOCIATE_CHANNEL)
        if formats & ~int(SUPPORTED_FORMATS) or not formats:
            raise LoginRejected(LoginRejectReason.UNSUPPORTED_BUFFER_FORMAT)
        action = request.flags & LoginReqFlags.MULTI_CHANNEL_MASK
        if action & ~LoginReqFlags.MULTI_CHANNEL:
            raise LoginRejected(LoginRejectReason.MULTI_CHANNEL_UNSUPPORTED)
        nexus = Nexus(f"{domain}:{request.initiator_port_id.hex()}", self.port_id.hex())
        with self._lock:
            others = self._channels.get(nexus, ())
            if others and not action:
                raise LoginRejected(LoginRejectReason.CHANNEL_LIMIT_REACHED)
            self._channels[nexus] = (*others, channel)
        if others:
            return nexus, LoginRspFlags.CHANNELS_MAINTAINED
        self.target.attach(nexus)
        return nexus, LoginRspFlags(0)

    def logout(self, channel: Channel, nexus: Nexus) -> None:
        """Lose a channel, with the last one the nexus; returns when none of its tasks runs."""
        with self._lock:
            others = tuple(each for each in self._channels[nexus] if each is not channel)
            if others:
                self._channels[nexus] = others
        if others:
            self.target.abandon(channel.is_mine)
            return
        self.target.detach(nexus)
        with self._lock:
            del self._channels[nexus]

    def report_event(self, nexuses: Sequence[Nexus], lun: bytes, sense: bytes) -> None:
        """Tell those of the nexuses that have a channel here of an event at once (AER_REQ)."""
        with self._lock:
            channels = [self._channels[each][0] for each in nexuses if each in self._channels]
        for channel in channels:
            channel.report_event(lun, sense)
