# SPDX-License-Identifier: MIT
"""The error family of everything that a peer can get wrong."""


class WireError(Exception):
    """A peer broke a format or a protocol rule.

    It is counted and answered (an error response, or a closed channel with a reason in the
    store) and never fatal to anyone but that peer.
    """
