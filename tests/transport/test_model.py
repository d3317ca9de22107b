# SPDX-License-Identifier: MIT
"""The same random commands over every path: the same answers, the same bytes, and a model's."""

import contextlib
import itertools
import threading
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vscsi.target.base import Attribute, Nexus, Status
from vscsi.target.disk import Disk
from vscsi.target.router import TaskRouter
from vscsi.target.stores.memory import MemoryStore
from vscsi.transport.call import CallInitiator
from vscsi.transport.hba import Hba
from vscsi.transport.initiator import Command
from vscsi.wire import cdb as cdbs
from vscsi.wire.parameters import build_unmap

SIZE = 1 << 17
HANG_S = 30
UNTOUCHED = 0xA5


@dataclass(frozen=True)
class Step:
    """A command, and a buffer that begins at `offset` of a page and is cut at `cuts`."""

    cdb: bytes
    out: bytes | None = None
    into: int | None = None
    offset: int = 0
    cuts: tuple[int, ...] = ()
    attribute: Attribute = Attribute.SIMPLE


@dataclass(frozen=True)
class Came:
    """What a command came to."""

    status: Status
    sense: bytes
    residual: int
    memory: bytes
    """The buffer, and what is around it."""


def perform(initiator, step):
    length = len(step.out) if step.out is not None else step.into or 0
    whole = initiator.alloc(length + 8192)
    whole.view[:] = bytes([UNTOUCHED]) * len(whole)
    buffer = whole[step.offset : step.offset + length]
    if step.out is not None:
        buffer.view[:] = step.out
    edges = [0, *sorted(cut for cut in step.cuts if cut <= length), length]
    pieces = [buffer[a:b] for a, b in itertools.pairwise(edges)]
    done = threading.Event()
    command = Command(
        lun=bytes(8),
        cdb=step.cdb,
        done=lambda _: done.set(),
        data_out=pieces if step.out is not None else (),
        data_in=pieces if step.out is None and step.into is not None else (),
        attribute=step.attribute,
    )
    initiator.submit(command)
    assert done.wait(HANG_S)
    assert command.error is None
    came = Came(command.status, command.sense, command.residual, bytes(whole.view))
    initiator.free(whole)
    return came


OFFSETS = st.sampled_from([0, 0, 1, 2, 511, 512, 1000, 4095])
CUTS = st.lists(st.integers(0, 9000), max_size=4).map(tuple)
ATTRIBUTES = st.sampled_from([Attribute.SIMPLE] * 3 + [Attribute.ORDERED, Attribute.HEAD_OF_QUEUE])
SPARE = st.sampled_from([0] * 6 + [-1, -512, -700, 1, 99, 512, 5000])


@st.composite
def transfers(draw, block):
    """READ or WRITE of any length, at any place, with a buffer that may not fit."""
    write = draw(st.booleans())
    size = draw(st.sampled_from([6, 10, 12, 16]))
    count = SIZE // block
    blocks = draw(st.integers(0 if size > 6 else 1, 20))
    lba = draw(st.integers(0, count - 1) | st.sampled_from([count - 1, count, count + 5, 0x1FFFFF]))
    fields = {"fua": draw(st.booleans())} if size > 6 else {}
    name = f"{'WRITE' if write else 'READ'}({size})"
    cdb = cdbs.build(name, lba=lba, blocks=blocks, **fields)
    length = max(0, blocks * block + draw(SPARE))
    where = {"offset": draw(OFFSETS), "cuts": draw(CUTS), "attribute": draw(ATTRIBUTES)}
    other_way = draw(st.integers(0, 15)) == 0
    if write != other_way:
        seed = draw(st.integers(1, 250))
        return Step(cdb, out=bytes((seed + n) % 251 for n in range(length)), **where)
    return Step(cdb, into=length, **where)


@st.composite
def unmaps(draw, block):
    count = SIZE // block
    ranges = draw(
        st.lists(st.tuples(st.integers(0, count + 1), st.integers(0, 9)), min_size=0, max_size=3)
    )
    data = build_unmap(ranges)
    length = max(0, len(data) + draw(st.sampled_from([0] * 5 + [-1, -8, 3])))
    cdb = cdbs.build("UNMAP", parameter_list_length=length, anchor=draw(st.integers(0, 9)) == 0)
    return Step(cdb, out=data, offset=draw(OFFSETS), cuts=draw(CUTS))


def others(block):
    count = SIZE // block
    return st.sampled_from(
        [
            Step(cdbs.build("SYNCHRONIZE CACHE(10)")),
            Step(cdbs.build("SYNCHRONIZE CACHE(16)", lba=count - 1, blocks=1)),
            Step(cdbs.build("SYNCHRONIZE CACHE(16)", lba=count, blocks=1)),
            Step(cdbs.build("SYNCHRONIZE CACHE(10)", blocks=9), into=7),
            Step(cdbs.build("TEST UNIT READY")),
            Step(cdbs.build("READ CAPACITY(10)"), into=8),
            Step(cdbs.build("READ CAPACITY(16)", allocation_length=32), into=20, offset=3),
            Step(cdbs.build("REQUEST SENSE", allocation_length=252), into=252),
            Step(cdbs.build("REPORT LUNS", allocation_length=512), into=100, cuts=(8, 9)),
            Step(cdbs.build("READ(10)", blocks=1, control=4), into=512),
            Step(cdbs.build("READ(16)", blocks=65537), into=512),
            Step(cdbs.build("READ(10)", blocks=1)),
            Step(cdbs.build("WRITE(10)", blocks=1)),
            Step(bytes([0xFF] * 6)),
            Step(bytes([0xFF] * 16), into=99),  # (no CDB cut short: SRP's field has no length)
        ]
    )


def steps(block):
    each = transfers(block) | transfers(block) | unmaps(block) | others(block)
    return st.lists(each, min_size=1, max_size=8)


@pytest.mark.parametrize("block", [512, 4096])
def test_every_path_gives_the_answers_of_a_call(serve, block):
    with contextlib.ExitStack() as stack:
        stores = {kind: MemoryStore(SIZE) for kind in ("call", "srp", "vscsiif", "blkif")}
        router = TaskRouter()
        router.add(0, Disk(stores["call"], block_size=block))
        paths = {"call": CallInitiator(router, Nexus("test", "test"))}
        stack.callback(paths["call"].close)
        Hba(paths["call"]).lun(0).capacity()
        for kind in ("srp", "vscsiif", "blkif"):
            server = serve(stores[kind], block_size=block, workers=0)
            hba = stack.enter_context(server.connect(kind))
            hba.lun(0).capacity()
            paths[kind] = hba.initiator

        @settings(max_examples=60)
        @given(steps(block))
        def check(commands):
            for store in stores.values():
                store._memory[:] = bytes(range(256)) * (SIZE // 256)
            for step in commands:
                expected = perform(paths["call"], step)
                for kind in ("srp", "vscsiif", "blkif"):
                    came = perform(paths[kind], step)
                    if kind == "vscsiif":  # its residual has no sign
                        wanted = Came(
                            expected.status,
                            expected.sense,
                            max(expected.residual, 0),
                            expected.memory,
                        )
                    else:
                        wanted = expected
                    assert came == wanted, (kind, cdbs.describe(step.cdb))
                    assert stores[kind]._memory == stores["call"]._memory, kind

        check()
        for kind in ("srp", "vscsiif"):
            assert paths[kind].statistics.staged_bytes == 0
        assert paths["blkif"].statistics.staged_bytes > 0


@pytest.mark.parametrize("options", ["", "?segments=blocks", "?protocol=x86_32-abi"])
def test_cdbs_over_blkif_are_what_a_bytearray_does(serve, options):
    server = serve(MemoryStore(SIZE))
    with server.connect("blkif", options) as hba:
        hba.lun(0).capacity()

        @settings(max_examples=60)
        @given(st.lists(transfers(512), min_size=1, max_size=10))
        def check(commands):
            model = bytearray(range(256)) * (SIZE // 256)
            server.store._memory[:] = model
            for step in commands:
                before = hba.initiator.statistics.staged_bytes
                came = perform(hba.initiator, step)
                assert server.store._memory == self_applied(model, step, came)
                if came.status is not Status.GOOD:
                    assert hba.initiator.statistics.staged_bytes == before

        check()


def self_applied(model, step, came):
    """Apply a step to the model, and check what it came to against it."""
    cdb = cdbs.decode(step.cdb)
    start, length = cdb.lba * 512, cdb.blocks * 512
    out = step.out if step.out is not None else b""
    room = step.into or 0
    bad = start + length > SIZE or (cdb.row.name.startswith("WRITE") and len(out) < length)
    assert came.status is (Status.CHECK_CONDITION if bad else Status.GOOD)
    around = bytearray([UNTOUCHED]) * len(came.memory)
    around[step.offset : step.offset + len(out)] = out
    if not bad and cdb.row.name.startswith("WRITE"):
        model[start : start + length] = out[:length]
        assert came.residual == (len(out) - length if step.out is not None else room)
    elif not bad:
        moved = min(length, room)
        around[step.offset : step.offset + moved] = model[start : start + moved]
        if room:
            assert came.residual == room - length
    assert came.memory == around
    return model
