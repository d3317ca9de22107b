# SPDX-License-Identifier: MIT
"""Shared rings, and the few other words of shared memory that need atomic access.

Ring indices and grant flags are touched by the C core (`core/`, built as `_core`) alone: Python
emits neither barriers nor compare-and-swap. Nothing here knows what a slot means.
"""

from vscsi.ring._core import (
    GrantAccess,
    Load,
    RingEnd,
    Service,
    Store,
    Tally,
    Tap,
    TapFilter,
    Unit,
    tap_packets,
)

__all__ = [
    "GrantAccess",
    "Load",
    "RingEnd",
    "Service",
    "Store",
    "Tally",
    "Tap",
    "TapFilter",
    "Unit",
    "tap_packets",
]
