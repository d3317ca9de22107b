# SPDX-License-Identifier: MIT
"""Whatever an initiator sends: one answer each, no failure of ours, and the right bytes on disk."""

import logging

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vscsi.target.base import Attribute, Status
from vscsi.wire.cdb import build
from vscsi.wire.opcodes import COMMANDS, DeviceType
from vscsi.wire.parameters import build_unmap

BLOCK = 512
BLOCKS = 64

ROWS = COMMANDS[DeviceType.DISK]


@st.composite
def any_cdb(draw):
    """A known command with some random bytes, or bytes."""
    row = draw(st.sampled_from(ROWS))
    if draw(st.integers(0, 5)) == 0:
        return draw(st.binary(max_size=20))
    cdb = bytearray(build(row))
    for _ in range(draw(st.integers(0, 4))):
        cdb[draw(st.integers(1, len(cdb) - 1))] = draw(st.sampled_from([0, 1, 2, 8, 16, 24, 255]))
    cdb[row.control_offset] = draw(st.sampled_from([0, 0, 0, 0, 4, 255]))
    return bytes(cdb[: draw(st.sampled_from([len(cdb)] * 8 + [1, 5]))])


any_lun = st.sampled_from([bytes(8), bytes(8), bytes(8), bytes.fromhex("c101000000000000")]) | (
    st.binary(min_size=0, max_size=9)
)


@settings(
    deadline=None,
    max_examples=400,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    commands=st.lists(
        st.tuples(
            any_cdb(),
            any_lun,
            st.none() | st.binary(max_size=64) | st.integers(0, 3 * BLOCK).map(bytes),
            st.none() | st.integers(0, 3 * BLOCK),
            st.sampled_from(list(Attribute)),
        ),
        min_size=1,
        max_size=12,
    ),
    data=st.data(),
)
def test_any_bytes_get_one_answer_and_never_an_internal_failure(
    make_setup, watched_store, caplog, commands, data
):
    run = make_setup(store=watched_store(BLOCKS * BLOCK)).run
    for cdb, lun, out, into, attribute in commands:
        cuts = sorted(data.draw(st.lists(st.integers(0, 3 * BLOCK), max_size=3)))
        got = run(cdb, lun=lun, out=out, into=into, cuts=cuts, attribute=attribute)
        assert got.code != "4/44/00", caplog.text
        assert (got.status is Status.CHECK_CONDITION) == (got.sense is not None)
        assert 0 <= got.moved <= max(len(out or b""), into or 0)
        assert got.overflow >= 0
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


lbas = st.integers(0, BLOCKS + 1)
counts = st.integers(0, 9)
fills = st.integers(0, 255)
operations = st.one_of(
    st.tuples(st.just("read"), lbas, counts, st.sampled_from(["6", "10", "12", "16"])),
    st.tuples(st.just("write"), lbas, counts, fills, st.sampled_from(["6", "10", "12", "16"])),
    st.tuples(st.just("same"), lbas, counts, fills, st.booleans()),
    st.tuples(st.just("unmap"), st.lists(st.tuples(lbas, counts), max_size=4)),
    st.tuples(st.just("compare"), lbas, st.integers(0, 3), st.booleans(), fills),
)


class Model:
    """What the disk should hold: a bytearray, and the rule that all of a command counts or none."""

    def __init__(self, run):
        self.run = run
        self.bytes = bytearray(BLOCKS * BLOCK)

    def put(self, lba, data):
        self.bytes[lba * BLOCK : lba * BLOCK + len(data)] = data

    def get(self, lba, count):
        return bytes(self.bytes[lba * BLOCK : (lba + count) * BLOCK])

    def read(self, lba, count, size):
        if size == "6":
            count = count or 256
        got = self.run(f"READ({size})", lba=lba, blocks=count, into=count * BLOCK, cuts=(7, 1000))
        if lba + count > BLOCKS:
            assert got.code == "5/21/00"
        else:
            assert (got.code, got.data) == ("GOOD", self.get(lba, count))

    def write(self, lba, count, fill, size):
        if size == "6":
            count = count or 256
        data = bytes((fill + index // 100) & 0xFF for index in range(count * BLOCK))
        got = self.run(f"WRITE({size})", lba=lba, blocks=count, out=data, cuts=(511, 513))
        if lba + count > BLOCKS:
            assert got.code == "5/21/00"
        else:
            assert got.code == "GOOD"
            self.put(lba, data)

    def same(self, lba, count, fill, unmap):
        block = bytes([fill]) * BLOCK
        got = self.run("WRITE SAME(16)", lba=lba, blocks=count, unmap=unmap, out=block)
        if lba + count > BLOCKS:
            assert got.code == "5/21/00"
        elif count == 0:
            assert got.code == "5/24/00"
        else:
            assert got.code == "GOOD"
            self.put(lba, block * count)

    def unmap(self, ranges):
        data = build_unmap(ranges)
        got = self.run("UNMAP", parameter_list_length=len(data), out=data)
        if any(lba + count > BLOCKS for lba, count in ranges):
            assert got.code == "5/21/00"
        else:
            assert got.code == "GOOD"
            for lba, count in ranges:
                self.put(lba, bytes(count * BLOCK))

    def compare(self, lba, count, right, fill):
        expected = self.get(lba, count) if lba + count <= BLOCKS else bytes(count * BLOCK)
        sent = bytearray(expected)
        if not right and sent:
            sent[-1] ^= 0xFF
        new = bytes([fill]) * len(sent)
        got = self.run("COMPARE AND WRITE", lba=lba, blocks=count, out=bytes(sent) + new)
        if lba + count > BLOCKS:
            assert got.code == "5/21/00"
        elif not right and count:
            assert (got.code, got.sense.information) == ("e/1d/00", len(sent) - 1)
        else:
            assert got.code == "GOOD"
            self.put(lba, new)


@pytest.mark.parametrize("workers", [0, 1])
@settings(
    deadline=None,
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(sequence=st.lists(operations, max_size=20))
def test_the_disk_holds_what_a_bytearray_would(make_setup, watched_store, workers, sequence):
    setup = make_setup(store=watched_store(BLOCKS * BLOCK), workers=workers)
    model = Model(setup.run)
    for operation, *arguments in sequence:
        getattr(model, operation)(*arguments)
    assert setup.store.content() == model.bytes
    setup.router.close()
