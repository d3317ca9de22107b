# SPDX-License-Identifier: MIT
"""A peer may write anything into the ring: RingError when it breaks the rules, and no harm."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vscsi.ring._core import RingEnd
from vscsi.wire.errors import RingError

PAGE = 4096
WRAP = 2**32
SLOT = 1000  # 4 entries in a Xen ring, 2 in a pair: limits are near
GUARD = b"\xee" * PAGE

KINDS = ["front", "back", "pair_front", "pair_back"]


class Arena:
    """Ring memory between guard pages, and the end under test."""

    def __init__(self, kind: str, start: int) -> None:
        self.kind = kind
        self.memories = [bytearray(GUARD + bytes(PAGE) + GUARD) for _ in range(2)]
        self.rings = [memoryview(memory)[PAGE : 2 * PAGE] for memory in self.memories]
        self.header = 128 if kind.startswith("pair") else 64
        if kind.startswith("pair"):
            front = RingEnd.pair_front(*self.rings, SLOT, start=start)
            back = RingEnd.pair_back(*self.rings, SLOT)
            self.put_ring, self.take_ring = self.rings if kind == "pair_front" else self.rings[::-1]
        else:
            front = RingEnd.front(self.rings[0], SLOT, start=start)
            back = RingEnd.back(self.rings[0], SLOT)
            self.put_ring = self.take_ring = self.rings[0]
        self.end = front if kind.endswith("front") else back
        self.prod_at = 8 if kind == "front" else 0
        self.entries = self.end.entries
        self.published = start
        # Of a pair: the peer's index as last accepted; a back can't know how far it was.
        self.consumed = start - self.entries if kind == "pair_back" else start

    def word(self, ring: memoryview, offset: int) -> int:
        (value,) = struct.unpack_from("<I", ring, offset)
        return value

    def slot(self, index: int) -> bytes:
        at = self.header + index % self.entries * SLOT
        return bytes(self.take_ring[at : at + SLOT])

    def take_is_legal(self) -> bool:
        """ring.h's conditions, worded for each side."""
        produced = self.word(self.take_ring, self.prod_at)
        taken = self.end.take_index
        if self.kind == "front":  # responses: to published requests only
            return (produced - taken) % WRAP <= (self.published - taken) % WRAP
        if self.kind == "back":  # requests: those to be answered and the new ones fit the ring
            total = (produced - self.published) % WRAP
            return (taken - self.published) % WRAP <= total <= self.entries
        return (produced - taken) % WRAP <= self.entries

    def put_is_legal(self) -> bool:
        if self.kind in ("front", "back"):
            return True
        consumed = self.word(self.put_ring, 64)
        forward = (consumed - self.consumed) % WRAP
        return forward <= (self.published - self.consumed) % WRAP


words = st.sampled_from([0, 4, 8, 12, 64, 68])
near = st.integers(-3, 3)
deltas = st.one_of(near, st.integers(0, WRAP - 1))
operations = st.one_of(
    st.tuples(st.just("put"), st.binary(max_size=20)),
    st.tuples(st.just("publish")),
    st.tuples(st.just("arm")),
    st.tuples(st.just("free")),
    st.tuples(st.just("take"), st.integers(0, 5)),
    st.tuples(st.just("peer puts"), st.integers(0, 4)),
    st.tuples(st.just("peer takes"), st.integers(0, 4)),
    st.tuples(st.just("scribble"), st.integers(0, 1), words, deltas),
    st.tuples(st.just("scribble"), st.integers(0, 1), st.sampled_from([0, 8, 64]), near),
)


@given(
    kind=st.sampled_from(KINDS),
    start=st.sampled_from([0, 1, WRAP - 1, WRAP - 3]),
    script=st.lists(operations, max_size=30),
)
@settings(deadline=None, max_examples=1000)
def test_indices_from_a_bad_peer_do_no_harm(
    kind: str, start: int, script: list[tuple[object, ...]]
) -> None:
    arena = Arena(kind, start)
    try:
        for operation in script:
            perform(arena, *operation)
    except RingError:
        end = arena.end
        for call in (end.publish, end.take, end.arm, lambda: end.put(b""), lambda: end.free):
            with pytest.raises(RingError):
                call()
    for memory in arena.memories:
        assert memory[:PAGE] == GUARD
        assert memory[2 * PAGE :] == GUARD


def perform(arena: Arena, name: str, *arguments: object) -> None:
    """Do one thing; what the peer did is legal iff the end raises nothing."""
    if name == "scribble":
        ring, offset, delta = arguments
        base = arena.word(arena.rings[ring], offset)
        struct.pack_into("<I", arena.rings[ring], offset, (base + delta) % WRAP)
        return
    if name == "peer puts":
        value = (arena.word(arena.take_ring, arena.prod_at) + arguments[0]) % WRAP
        arena.take_ring[arena.header :] = bytes([value % 251]) * (PAGE - arena.header)
        struct.pack_into("<I", arena.take_ring, arena.prod_at, value)
        return
    if name == "peer takes":
        if arena.kind.startswith("pair"):
            value = (arena.word(arena.put_ring, 64) + arguments[0]) % WRAP
            struct.pack_into("<I", arena.put_ring, 64, value)
        return

    if name in ("take", "arm"):
        legal = arena.take_is_legal()
    elif name in ("put", "free"):
        legal = arena.put_is_legal()
    else:
        legal = True
    if not legal:
        with pytest.raises(RingError):
            call(arena, name, *arguments)
        raise RingError("found out")
    call(arena, name, *arguments)


def call(arena: Arena, name: str, *arguments: object) -> None:
    end = arena.end
    if name == "take":
        before = end.take_index
        expected = [arena.slot(before + n) for n in range(end.entries)]
        taken = end.take(limit=arguments[0])
        assert taken == expected[: len(taken)]
        assert end.take_index == (before + len(taken)) % WRAP
    elif name == "put":
        before, room = end.put_index, end.free
        assert end.put(arguments[0]) == (room > 0)
        assert end.put_index == (before + (room > 0)) % WRAP
    elif name == "free":
        assert 0 <= end.free <= end.entries
    elif name == "publish":
        end.publish()
        arena.published = end.put_index
    else:
        end.arm()
    if arena.kind.startswith("pair") and name in ("put", "free"):
        arena.consumed = arena.word(arena.put_ring, 64)


def broken_front() -> RingEnd:
    memory = bytearray(PAGE)
    front = RingEnd.front(memory, 112)
    front.put(b"a request")
    struct.pack_into("<I", memory, 8, 1)  # an answer before the request was published
    return front


def test_a_response_to_a_request_that_was_not_published_is_an_error() -> None:
    with pytest.raises(RingError, match="producer index is out of range: 1"):
        broken_front().take()


def test_a_bad_index_is_found_out_when_arming_for_an_event() -> None:
    with pytest.raises(RingError):
        broken_front().arm()


def test_more_requests_than_the_ring_holds_are_an_error() -> None:
    memory = bytearray(PAGE)
    RingEnd.front(memory, 112)
    back = RingEnd.back(memory, 112)
    struct.pack_into("<I", memory, 0, 32)
    assert len(back.take()) == 32
    struct.pack_into("<I", memory, 0, 33)  # none is answered yet
    with pytest.raises(RingError):
        back.take()


def test_a_request_over_an_answer_that_was_not_published_is_an_error() -> None:
    memory = bytearray(PAGE)
    RingEnd.front(memory, 112)
    back = RingEnd.back(memory, 112)
    struct.pack_into("<I", memory, 0, 32)
    back.take()
    back.put(b"answer")
    struct.pack_into("<I", memory, 0, 33)  # the front can't know of the free slot yet
    with pytest.raises(RingError):
        back.take()


def test_a_consumer_of_a_pair_that_goes_backwards_is_an_error() -> None:
    requests, responses = bytearray(PAGE), bytearray(PAGE)
    front = RingEnd.pair_front(requests, responses, 128)
    for _ in range(3):
        front.put(b"x")
    front.publish()
    struct.pack_into("<I", requests, 64, 2)
    assert front.free == front.entries - 1
    struct.pack_into("<I", requests, 64, 1)
    with pytest.raises(RingError, match="consumer index"):
        _ = front.free


def test_own_indices_in_shared_memory_are_never_believed() -> None:
    memory = bytearray(PAGE)
    front = RingEnd.front(memory, 112)
    front.put(b"x")
    front.publish()
    struct.pack_into("<I", memory, 0, 1000)
    front.put(b"y")
    front.publish()
    assert struct.unpack_from("<I", memory, 0) == (2,)
