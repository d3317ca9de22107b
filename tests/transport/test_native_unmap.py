# SPDX-License-Identifier: MIT
"""UNMAP in C and in Python: the same answer and the same blocks, whatever the list is."""

import itertools
import struct

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from vscsi.target.base import Status
from vscsi.target.stores.memory import MemoryStore
from vscsi.wire.cdb import build
from vscsi.wire.parameters import build_unmap
from vscsi.wire.srp import IuType

SIZE = 1 << 20
BLOCK = 512
BLOCKS = SIZE // BLOCK
FULL = b"\xff" * SIZE
LIST_BYTES = 16 << 10


class PythonStore(MemoryStore):
    """The same without the C path."""

    def __init__(self, size_bytes):
        super().__init__(size_bytes)
        self.native = None


class Side:
    """A disk full of ones behind a channel."""

    def __init__(self, serve, raw, store, **options):
        self.store = store
        self.server = serve(store, **options)
        self.channel = raw("srp", at=self.server).connect()
        assert self.channel.login().type is IuType.LOGIN_RSP
        frames = self.channel.region(1, pages=LIST_BYTES // 4096)
        self.memory = self.channel.memory.view(frames[0], len(frames))
        self.channel.ready()
        # An odd end, so that the list comes in several segments.
        self.cuts = (0, 3, 4099)

    @property
    def executed_in_c(self):
        return self.server.end(self.channel.domain, "vsrp").report()["executed_in_c"]

    def unmap(self, data, length, *, room=None, anchor=0):
        self.store.writev(0, [memoryview(FULL)])
        self.memory[: len(data)] = data
        room = length if room is None else room
        edges = [*(cut for cut in self.cuts if cut < room), room]
        pieces = [
            {"address": start, "handle": 1, "length": end - start}
            for start, end in itertools.pairwise(edges)
        ]
        out = None
        if room:
            table = {"address": 0, "handle": 0, "length": 16 * len(pieces)}
            out = {"table": table, "total_length": room, "descriptors": pieces}
        cdb = build("UNMAP", parameter_list_length=length, anchor=anchor)
        answer = self.channel.execute(cdb, data_out=out) if out else self.channel.execute(cdb)
        content = bytearray(SIZE)
        self.store.readv(0, [memoryview(content)])
        return dict(answer), bytes(content)


@pytest.fixture
def sides(serve, raw):
    return [Side(serve, raw, store) for store in (MemoryStore(SIZE), PythonStore(SIZE))]


def same(sides, *arguments, **options):
    """Return what both came to, and whether C executed it."""
    before = sides[0].executed_in_c
    first, second = (side.unmap(*arguments, **options) for side in sides)
    assert first == second
    return *first, sides[0].executed_in_c - before


lba = st.one_of(st.integers(0, BLOCKS + 2), st.sampled_from([(1 << 64) - 1, 1 << 63]))
count = st.one_of(st.integers(0, 8), st.sampled_from([BLOCKS, BLOCKS + 1, 0xFFFF_FFFF]))
good = st.tuples(st.integers(0, BLOCKS - 8), st.integers(0, 8))


@settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    ranges=st.one_of(st.lists(good, max_size=20), st.lists(st.tuples(lba, count), max_size=6)),
    told=st.one_of(st.none(), st.integers(0, 400)),
    length=st.one_of(st.none(), st.integers(0, 200)),
    room=st.one_of(st.none(), st.integers(0, 200)),
    anchor=st.sampled_from([0, 0, 0, 1]),
)
@example(ranges=[(BLOCKS, 0)], told=None, length=None, room=None, anchor=0)
@example(ranges=[(BLOCKS, 1)], told=None, length=None, room=None, anchor=0)
@example(ranges=[(0, BLOCKS)], told=24, length=None, room=None, anchor=0)
def test_any_list_has_the_same_answer_and_effect(sides, ranges, told, length, room, anchor):
    data = bytearray(build_unmap(ranges))
    if told is not None:
        struct.pack_into(">H", data, 2, told)
    same(sides, data, len(data) if length is None else length, room=room, anchor=anchor)


def test_a_plain_list_is_executed_in_c(sides):
    data = build_unmap([(0, 1), (100, 0), (BLOCKS - 2, 2)])
    answer, content, executed = same(sides, data, len(data))
    assert (answer["status"], executed) == (Status.GOOD, 1)
    assert content == bytes(BLOCK) + FULL[BLOCK * 3 :] + bytes(2 * BLOCK)


@pytest.mark.parametrize("descriptors", [512, 513])
def test_a_list_that_is_too_long_for_c_is_pythons(sides, descriptors):
    data = build_unmap([(n * 2, 1) for n in range(descriptors)])
    answer, content, executed = same(sides, data, len(data))
    assert (answer["status"], executed) == (Status.GOOD, int(descriptors == 512))
    assert content == (bytes(BLOCK) + FULL[:BLOCK]) * descriptors + FULL[descriptors * 1024 :]
