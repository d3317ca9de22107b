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
