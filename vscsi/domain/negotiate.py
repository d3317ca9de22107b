# SPDX-License-Identifier: MIT
"""What two halves agree on through xenstore keys: ring pages, limits, features, ABI, slot size.

Pure: a backend calls `*_keys` before InitWait, then `accept_*` with a Reader of the frontend's
keys; a frontend calls `choose_*` with a Reader of the backend's and publishes what the choice's
`keys` say. A key that the other side does not have takes its documented default. `accept_*`
raise WireError for anything outside of what was offered.

Ring pages have three generations of keys (spec: io/blkif.h; FreeBSD's blkif.h of 2010 and 2012):

    backend publishes     frontend publishes                references
    max-ring-page-order   ring-page-order                   ring-ref (1 page), ring-ref0.. (more)
    max-ring-pages        num-ring-pages (with the above)   the same
    max-ring-pages        ring-pages                        ring-ref, ring-ref1..
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from vscsi.domain.base import PAGE_SIZE
from vscsi.domain.half import Keys
from vscsi.domain.keys import Reader, queue_key
from vscsi.wire.errors import WireError

MAX_RING_PAGES = 16
"""Pages of one ring that we ever use (order 4, Linux' own maximum)."""

RING_REF = "ring-ref"
RESPONSE_RING_REF = "response-ring-ref"
"""The second ring of a pair (SRP): requests in `ring-ref%u`, responses in this; equal in size."""

DEFAULT_SEGMENTS = 11
MAX_SEGMENTS = 255
"""max-request-segments travels in a u8 (FreeBSD 2010)."""

X86_64, X86_32, ARM = "x86_64-abi", "x86_32-abi", "arm-abi"

DEFAULT_SLOT_SIZE = 128
MAX_SLOT_SIZE = 1024
SLOT_SIZE_STEP = 64


# Ring pages


def ring_keys(max_order: int) -> Keys:
    """Return what a backend publishes to take rings of up to 2**max_order pages."""
    return {"max-ring-page-order": str(max_order), "max-ring-pages": str(1 << max_order)}


def accept_rings(
    frontend: Reader, max_order: int, names: Sequence[str] = (RING_REF,)
) -> tuple[tuple[int, ...], ...]:
    """Return the grant references of each named ring, in order of pages.

    The page count is ring-page-order's, else num-ring-pages', else ring-pages', else one; it
    need not be a power of two in the last three.
    """
    maximum = 1 << max_order
    if frontend.has("ring-page-order"):
        pages = 1 << frontend.number("ring-page-order", high=max_order)
    elif frontend.has("num-ring-pages"):
        pages = frontend.number("num-ring-pages", low=1, high=maximum)
    else:
        pages = frontend.number("ring-pages", 1, low=1, high=maximum)
    return tuple(_references(frontend, name, pages) for name in names)


def _references(frontend: Reader, name: str, pages: int) -> tuple[int, ...]:
    # ring-page-order = 0 means ring-ref0 to Linux >= 5.12 and QEMU, ring-ref to FreeBSD. Without
    # that key one page is ring-ref, whatever an earlier connection left beside it.
    plain_first = pages == 1 and not frontend.has("ring-page-order")
    if frontend.has(f"{name}0") and not (plain_first and frontend.has(name)):
        first = f"{name}0"
    else:
        first = name
    keys = [first, *(f"{name}{page}" for page in range(1, pages))]
    return tuple(frontend.number(key) for key in keys)


@dataclass(frozen=True, slots=True)
class RingChoice:
    """A frontend's choice: pages of each ring, and whether the backend is of 2010 (no order)."""

    pages: int
    counted: bool = False

    def keys(self, rings: Mapping[str, Sequence[int]]) -> Keys:
        """Return the keys that say so, for rings given as {name: references of its pages}.

        What another choice would have left in the directory is removed.
        """
        keys: dict[str, str | None] = dict.fromkeys(
            ("ring-page-order", "num-ring-pages", "ring-pages")
        )
        if self.pages > 1 and self.counted:
            keys["ring-pages"] = str(self.pages)
        elif self.pages > 1:
            keys["ring-page-order"] = str(self.pages.bit_length() - 1)
            keys["num-ring-pages"] = str(self.pages)
        for name, references in rings.items():
            if len(references) != self.pages:
                raise ValueError(f"{name} has {len(references)} pages, not {self.pages}")
            keys |= dict.fromkeys([name, *(f"{name}{page}" for page in range(MAX_RING_PAGES))])
            for page, reference in enumerate(references):
                plain = page == 0 and (self.counted or self.pages == 1)
                keys[name if plain else f"{name}{page}"] = str(reference)
        return keys


def choose_rings(backend: Reader, max_order: int) -> RingChoice:
    """Return the most pages, a power of two, that we want (2**max_order) and the backend takes."""
    if backend.has("max-ring-page-order"):
        order = min(backend.number("max-ring-page-order"), max_order)
        return RingChoice(1 << order)
    pages = min(backend.number("max-ring-pages", 1, low=1), 1 << max_order)
    pages = 1 << (pages.bit_length() - 1)
    return RingChoice(pages, counted=pages > 1)


# Requests


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits on requests: how many at once, segments of each, bytes of each (FreeBSD 2010).

    A backend's maximum, or what a frontend chose within it.
    """

    requests: int
    segments: int = DEFAULT_SEGMENTS
    size_bytes: int = DEFAULT_SEGMENTS * PAGE_SIZE

    def keys(self) -> Keys:
        """Return the keys, which have the same names on both sides."""
        return {
            "max-requests": str(self.requests),
            "max-request-segments": str(self.segments),
            "max-request-size": str(self.size_bytes),
        }

    @classmethod
    def accept(cls, frontend: Reader, offered: Self, ring_entries: int) -> Self:
        """Return what the frontend chose; its defaults are the ring's entries, 11 and 44 KiB.

        The defaults stand even above what was offered: a frontend that doesn't know these keys
        cannot be bound by them.
        """
        requests = frontend.number("max-requests", ring_entries, 1, offered.requests)
        segments = frontend.number(
            "max-request-segments", DEFAULT_SEGMENTS, 1, min(offered.segments, MAX_SEGMENTS)
        )
        size = frontend.number(
            "max-request-size", DEFAULT_SEGMENTS * PAGE_SIZE, 1, offered.size_bytes
        )
        return cls(requests, segments, size)

    @classmethod
    def choose(cls, backend: Reader, wish: Self, ring_entries: int) -> Self:
        """Return our wish lowered to what the backend takes and to what its segments carry.

        Without the backend's max-request-size, one segment is kept for buffers that do not start
        on a page, as the frontend of 2010 did.
        """
        requests = min(wish.requests, backend.number("max-requests", ring_entries, 1))
        segments = min(
            wish.segments,
            MAX_SEGMENTS,
            backend.number("max-request-segments", DEFAULT_SEGMENTS, 1),
        )
        default_size = max(segments - 1, 1) * PAGE_SIZE
        size = min(wish.size_bytes, backend.number("max-request-size", default_size, 1))
        return cls(requests, segments, min(size, segments * PAGE_SIZE))


# The rest


def feature(peer: Reader, key: str) -> bool:
    """Return whether a `feature-*` key is there and not 0."""
    return peer.number(key, 0) != 0


# Queues. With more than one, each has its rings and event channel below `queue-%u`.


def queues_keys(maximum: int) -> Keys:
    """Return what a backend publishes to take up to `maximum` queues."""
    return {"multi-queue-max-queues": str(maximum)}


def accept_queues(frontend: Reader, maximum: int) -> int:
    """Return the number of queues, 1 by default; 0 or too many is refused, as Linux does."""
    return frontend.number("multi-queue-num-queues", 1, 1, maximum)


def choose_queues(backend: Reader, wish: int) -> int:
    """Return the number of queues: our wish, or what the backend takes."""
    return min(wish, backend.number("multi-queue-max-queues", 1, 1))


def chosen_queues_keys(queues: Sequence[Keys]) -> Keys:
    """Return what a frontend publishes for its queues, given each one's own keys."""
    if len(queues) == 1:
        return {**queues[0], "multi-queue-num-queues": None}
    keys: dict[str, str | None] = {"multi-queue-num-queues": str(len(queues))}
    for number, own in enumerate(queues):
        keys |= {queue_key(number, key): value for key, value in own.items()}
    return keys


def accept_protocol(frontend: Reader, default: str, known: Sequence[str] = (X86_64, X86_32)) -> str:
    """Return blkif's ABI, one of `known`.

    `default` stands for an absent key: the backend's native ABI by io/blkif.h, QEMU and FreeBSD;
    x86_32 by Linux' backend on x86.
    """
    protocol = frontend.text("protocol", default)
    if protocol not in known:
        raise WireError(f"{frontend.path}/protocol is {protocol[:32]!a}, which is not served")
    return protocol


def slot_size_keys(maximum: int) -> Keys:
    """Return what a backend publishes to take slots of up to `maximum` bytes (SRP rings)."""
    return {"max-slot-size": str(maximum)}


def accept_slot_size(frontend: Reader, maximum: int) -> int:
    """Return the bytes of a slot that the frontend chose: a multiple of 64 from 128."""
    size = frontend.number("slot-size", DEFAULT_SLOT_SIZE, DEFAULT_SLOT_SIZE, maximum)
    if size % SLOT_SIZE_STEP:
        raise WireError(f"{frontend.path}/slot-size is {size}, no multiple of {SLOT_SIZE_STEP}")
    return size


def choose_slot_size(backend: Reader, wish: int) -> int:
    """Return the bytes of a slot, to publish as slot-size: our wish or what the backend takes."""
    maximum = backend.number("max-slot-size", DEFAULT_SLOT_SIZE, DEFAULT_SLOT_SIZE)
    return min(wish, maximum, MAX_SLOT_SIZE) // SLOT_SIZE_STEP * SLOT_SIZE_STEP
