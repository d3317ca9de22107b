# SPDX-License-Identifier: MIT
"""The error family of everything that a peer can get wrong."""


class WireError(Exception):
    """A peer broke a format or a protocol rule.

    It is counted and answered (an error response, or a closed channel with a reason in the
    store) and never fatal to anyone but that peer.
    """


class RingError(WireError):
    """The peer moved a ring index where it may not be; that ring is out of service."""


class GrantError(WireError):
    """A grant reference that is not there, not for us, or does not allow this access."""


class SetupError(Exception):
    """The environment does not offer what was asked for (a file, a module, a right).

    The message is one line for the user: what was tried, the path it was tried on, the reason
    (the kernel's words if it gave any) and the next step.
    """

    def __init__(self, tried: str, path: str, reason: str, next_step: str) -> None:
        super().__init__(f"{tried} {path}: {reason}; {next_step}")
        self.tried = tried
        self.path = path
        self.reason = reason
        self.next_step = next_step
