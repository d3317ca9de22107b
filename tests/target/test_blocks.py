# SPDX-License-Identifier: MIT
"""Commands that move or check blocks: data, ranges, residuals, durability, errors below."""

import contextlib
import errno
import threading

import pytest

from vscsi.target.base import Attribute, Status
from vscsi.target.stores.file import FileStore

BLOCK = 512
BLOCKS = (1 << 20) // BLOCK


def pattern(count, seed=0):
    return bytes((index * 13 + seed) & 0xFF for index in range(count))


@pytest.mark.parametrize("size", ["6", "10", "12", "16"])
def test_what_a_write_puts_a_read_of_any_size_returns(setup, size):
    data = pattern(3 * BLOCK)
    written = setup.run(f"WRITE({size})", lba=7, blocks=3, out=data, cuts=(1, 511, 1000))
    assert (written.code, written.moved, written.overflow) == ("GOOD", 3 * BLOCK, 0)
    assert setup.store.content()[7 * BLOCK : 10 * BLOCK] == data
    for other in ("6", "10", "12", "16"):
        got = setup.run(f"READ({other})", lba=7, blocks=3, into=3 * BLOCK, cuts=(5, 600))
        assert (got.code, got.data, got.overflow) == ("GOOD", data, 0)


@pytest.mark.parametrize("block_size", [512, 4096])
def test_block_size(make_setup, block_size):
    setup = make_setup(block_size=block_size)
    data = pattern(2 * block_size)
    assert setup.run("WRITE(10)", lba=3, blocks=2, out=data).code == "GOOD"
    assert setup.store.content()[3 * block_size : 5 * block_size] == data
    capacity = setup.run("READ CAPACITY(10)", into=8).data
    assert capacity == ((1 << 20) // block_size - 1).to_bytes(4, "big") + block_size.to_bytes(
        4, "big"
    )


def test_read_6_of_length_0_is_256_blocks_and_read_10_of_length_0_none(setup):
    assert setup.run(bytes.fromhex("080000000000"), into=256 * BLOCK).moved == 256 * BLOCK
    none = setup.run("READ(10)", lba=0, blocks=0, into=BLOCK)
    assert (none.code, none.moved, none.overflow) == ("GOOD", 0, 0)


# Residuals (base.Task): what was moved, and what did not fit.


def test_a_read_into_a_shorter_buffer_fills_it_and_tells_the_rest(setup):
    setup.run("WRITE(10)", lba=0, blocks=2, out=pattern(2 * BLOCK))
    got = setup.run("READ(10)", lba=0, blocks=2, into=700, cuts=(3,))
    assert (got.code, got.data, got.overflow) == ("GOOD", pattern(2 * BLOCK)[:700], 324)


def test_a_read_into_a_longer_buffer_leaves_the_rest_alone(setup):
    got = setup.run("READ(10)", lba=0, blocks=1, into=2000)
    assert (got.code, got.moved, got.overflow) == ("GOOD", BLOCK, 0)


def test_a_write_from_a_shorter_buffer_writes_nothing(setup):
    before = setup.store.content()
    got = setup.run("WRITE(10)", lba=0, blocks=2, out=pattern(700))
    assert (got.code, got.moved, got.overflow) == ("5/0e/03", 0, 324)
    assert setup.store.content() == before


def test_a_write_from_a_longer_buffer_writes_what_the_cdb_says(setup):
    got = setup.run("WRITE(10)", lba=0, blocks=1, out=pattern(2000))
    assert (got.code, got.moved) == ("GOOD", BLOCK)
    assert setup.store.content()[: 2 * BLOCK] == pattern(BLOCK) + bytes(BLOCK)


def test_a_buffer_of_the_wrong_direction_is_not_touched(setup):
    data = pattern(BLOCK, 5)
    read = setup.run("READ(10)", lba=0, blocks=1, out=data)
    assert (read.code, read.moved, read.overflow) == ("GOOD", 0, BLOCK)
    write = setup.run("WRITE(10)", lba=0, blocks=1, into=BLOCK)
    assert (write.code, write.moved, write.overflow) == ("5/0e/03", 0, BLOCK)
    assert setup.store.content() == bytes(1 << 20)


# Ranges and refused fields.


@pytest.mark.parametrize(
    "name",
    [
        "READ(10)",
        "WRITE(10)",
        "READ(16)",
        "WRITE(16)",
        "VERIFY(10)",
        "VERIFY(16)",
        "WRITE AND VERIFY(10)",
        "WRITE AND VERIFY(16)",
        "WRITE SAME(10)",
        "WRITE SAME(16)",
        "COMPARE AND WRITE",
        "PRE-FETCH(10)",
        "PRE-FETCH(16)",
        "SYNCHRONIZE CACHE(10)",
        "SYNCHRONIZE CACHE(16)",
    ],
)
def test_blocks_beyond_the_end_are_refused(setup, name):
    data = pattern(8 * BLOCK)
    cases = [(BLOCKS, 1), (BLOCKS - 1, 2), (BLOCKS + 1, 0), (0xFFFFFFFF, 1)]
    if "16" in name or name == "COMPARE AND WRITE":
        cases += [(1 << 63, 1), ((1 << 64) - 1, 2)]
    for lba, blocks in cases:
        got = setup.run(name, lba=lba, blocks=blocks, out=data)
        assert got.code == "5/21/00", (lba, blocks)
        assert got.sense.field_pointer == 2
        assert got.sense.in_cdb
    assert [entry for entry in setup.store.log if entry[0] != "read"] == []


def test_the_lba_behind_the_last_may_be_named_without_blocks(setup):
    assert setup.run("READ(10)", lba=BLOCKS, blocks=0).code == "GOOD"
    assert setup.run("READ(10)", lba=BLOCKS - 1, blocks=1, into=BLOCK).code == "GOOD"


def test_protection_information_is_refused_with_a_pointer(setup):
    for protect in range(1, 8):
        for name in ("READ(10)", "WRITE(16)", "VERIFY(12)", "WRITE SAME(10)"):
            got = setup.run(name, lba=0, blocks=1, protect=protect, out=pattern(BLOCK))
            assert got.code == "5/24/00"
            assert (got.sense.field_pointer, got.sense.bit_pointer) == (1, 7)


def test_more_blocks_than_block_limits_allow_are_refused(setup):
    setup.disk.maximum_transfer_blocks = 8
    got = setup.run("READ(10)", lba=0, blocks=9, into=9 * BLOCK)
    assert (got.code, got.sense.field_pointer) == ("5/24/00", 7)
    assert setup.run("READ(10)", lba=0, blocks=8, into=8 * BLOCK).code == "GOOD"


# Durability.


def operations(setup):
    names = [entry[0] for entry in setup.store.log]
    setup.store.log.clear()
    return names


def test_fua_and_synchronize_cache_flush_before_the_answer(setup):
    block = pattern(BLOCK)
    setup.run("WRITE(10)", lba=0, blocks=1, out=block)
    assert operations(setup) == ["write"]
    setup.run("WRITE(10)", lba=0, blocks=1, fua=1, out=block)
    assert operations(setup) == ["write", "flush"]
    setup.run("READ(10)", lba=0, blocks=1, fua=1, dpo=1, into=BLOCK)
    assert operations(setup) == ["flush", "read"]
    for name in ("SYNCHRONIZE CACHE(10)", "SYNCHRONIZE CACHE(16)"):
        assert setup.run(name, immed=1).code == "GOOD"
        assert operations(setup) == ["flush"]
    setup.run("WRITE AND VERIFY(10)", lba=0, blocks=1, out=block)
    assert operations(setup) == ["write", "flush", "read"]


def test_without_a_write_cache_every_write_is_flushed(make_setup):
    setup = make_setup(write_cache=False)
    setup.store.log.clear()
    zeros = bytes(BLOCK)
    setup.run("WRITE(6)", lba=0, blocks=1, out=zeros)
    assert operations(setup) == ["write", "flush"]
    setup.run("WRITE SAME(10)", lba=0, blocks=1, out=zeros)
    assert operations(setup) == ["write", "flush"]
    setup.run("WRITE SAME(16)", lba=0, blocks=1, unmap=1, out=zeros)
    assert operations(setup) == ["discard", "flush"]
    setup.run("COMPARE AND WRITE", lba=0, blocks=1, out=zeros * 2)
    assert operations(setup) == ["read", "write", "flush"]


# Verify and compare.


@pytest.mark.parametrize("size", ["10", "12", "16"])
def test_verify_compares_what_bytchk_says(setup, size):
    data = pattern(4 * BLOCK)
    setup.run("WRITE(10)", lba=4, blocks=4, out=data)
    name = f"VERIFY({size})"
    medium = setup.run(name, lba=4, blocks=4)
    assert (medium.code, medium.moved) == ("GOOD", 0)
    assert setup.run(name, lba=4, blocks=4, bytchk=1, out=data, cuts=(9,)).code == "GOOD"
    changed = bytearray(data)
    changed[1234] ^= 1
    got = setup.run(name, lba=4, blocks=4, bytchk=1, out=bytes(changed))
    assert (got.code, got.sense.information) == ("e/1d/00", 1234)
    assert setup.run(name, lba=4, blocks=4, bytchk=2, out=data).code == "5/24/00"
    setup.run("WRITE SAME(10)", lba=4, blocks=4, out=data[:BLOCK])
    assert setup.run(name, lba=4, blocks=4, bytchk=3, out=data[:BLOCK]).code == "GOOD"
    got = setup.run(name, lba=3, blocks=4, bytchk=3, out=data[:BLOCK])
    assert (got.code, got.sense.information) == ("e/1d/00", 1)
    assert setup.run(name, lba=4, blocks=4, bytchk=1, out=data[:BLOCK]).code == "5/0e/03"


def test_write_and_verify_compares_with_what_was_sent(setup):
    data = pattern(BLOCK)
    for size in ("10", "12", "16"):
        name = f"WRITE AND VERIFY({size})"
        assert setup.run(name, lba=9, blocks=1, bytchk=1, out=data).code == "GOOD"
        assert setup.run(name, lba=9, blocks=1, bytchk=3, out=data).code == "5/24/00"
    assert setup.store.content()[9 * BLOCK : 10 * BLOCK] == data


def test_compare_and_write(setup):
    old, new = pattern(2 * BLOCK), pattern(2 * BLOCK, 3)
    setup.run("WRITE(10)", lba=1, blocks=2, out=old)
    wrong = bytearray(old)
    wrong[600] ^= 0x80
    got = setup.run("COMPARE AND WRITE", lba=1, blocks=2, out=bytes(wrong) + new)
    assert (got.code, got.sense.information) == ("e/1d/00", 600)
    assert setup.store.content()[BLOCK : 3 * BLOCK] == old
    assert setup.run("COMPARE AND WRITE", lba=1, blocks=2, out=old + new).code == "GOOD"
    assert setup.store.content()[BLOCK : 3 * BLOCK] == new
    assert setup.run("COMPARE AND WRITE", lba=1, blocks=0).code == "GOOD"
    assert setup.run("COMPARE AND WRITE", lba=1, blocks=2, out=old).code == "5/0e/03"
    too_many = setup.run("COMPARE AND WRITE", lba=1, blocks=33, out=bytes(66 * BLOCK))
    assert (too_many.code, too_many.sense.field_pointer) == ("5/24/00", 13)


def test_compare_and_write_is_atomic_among_threads(make_setup):
    """Each thread adds one to a counter on the disk, as often as it wins."""
    setup = make_setup(workers=4)
    rounds, threads = 25, 4

    def count_up():
        for _ in range(rounds):
            while True:
                old = setup.run("READ(10)", lba=0, blocks=1, into=BLOCK).data
                new = (int.from_bytes(old[:8], "big") + 1).to_bytes(8, "big") + old[8:]
                if setup.run("COMPARE AND WRITE", lba=0, blocks=1, out=old + new).code == "GOOD":
                    break

    workers = [threading.Thread(target=count_up) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert int.from_bytes(setup.store.content()[:8], "big") == rounds * threads


def test_pre_fetch_answers_good(setup):
    assert setup.run("PRE-FETCH(10)", lba=0, blocks=8).code == "GOOD"
    assert setup.run("PRE-FETCH(16)", lba=0, blocks=0, immed=1).code == "GOOD"


# Protection and errors below.


WRITES = {
    "WRITE(6)": pattern(BLOCK),
    "WRITE(10)": pattern(BLOCK),
    "WRITE(12)": pattern(BLOCK),
    "WRITE(16)": pattern(BLOCK),
    "WRITE AND VERIFY(10)": pattern(BLOCK),
    "WRITE SAME(10)": pattern(BLOCK),
    "WRITE SAME(16)": pattern(BLOCK),
    "COMPARE AND WRITE": bytes(BLOCK) + pattern(BLOCK),
}


@pytest.mark.parametrize("name", WRITES)
def test_a_read_only_disk_refuses_to_write(make_setup, watched_store, name):
    setup = make_setup(store=watched_store(readonly=True))
    assert setup.run(name, lba=0, blocks=1, out=WRITES[name]).code == "7/27/00"
    assert setup.run("FORMAT UNIT").code == "7/27/00"
    assert setup.run("READ(10)", lba=0, blocks=1, into=BLOCK).code == "GOOD"
    assert setup.run("MODE SENSE(6)", page_code=0x3F, allocation_length=4, into=4).data[2] == 0x90


@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize(
    ("code", "expected", "information"),
    [
        (errno.ENOSPC, "7/27/07", None),
        (errno.EDQUOT, "7/27/07", None),
        (errno.EIO, "3/0c/00", 5),
        (errno.EINVAL, "4/44/00", None),
    ],
)
def test_an_error_of_a_write_below_is_never_acknowledged(setup, name, code, expected, information):
    setup.store.errors["write"] = code
    out = bytes(BLOCK) + WRITES[name] if name == "COMPARE AND WRITE" else WRITES[name]
    got = setup.run(name, lba=5, blocks=1, out=out[-2 * BLOCK :])
    assert (got.code, got.sense.information) == (expected, information)


@pytest.mark.parametrize(
    ("code", "expected", "information"),
    [(errno.EIO, "3/11/00", 5), (errno.ENODEV, "4/44/00", None)],
)
def test_an_error_of_a_read_below_is_never_hidden(setup, code, expected, information):
    setup.store.errors["read"] = code
    for name in ("READ(10)", "VERIFY(10)", "COMPARE AND WRITE"):
        got = setup.run(
            name,
            lba=5,
            blocks=1,
            **({"out": bytes(2 * BLOCK)} if "READ" not in name else {"into": BLOCK}),
        )
        assert (got.code, got.sense.information) == (expected, information)


@pytest.mark.parametrize(("code", "expected"), [(errno.EIO, "3/0c/00"), (errno.ENOSPC, "7/27/07")])
def test_an_error_of_a_flush_is_the_commands(setup, code, expected):
    setup.store.errors["flush"] = code
    assert setup.run("SYNCHRONIZE CACHE(10)").code == expected
    assert setup.run("WRITE(10)", lba=0, blocks=1, fua=1, out=bytes(BLOCK)).code == expected
    assert setup.run("WRITE(10)", lba=0, blocks=1, out=bytes(BLOCK)).code == "GOOD"


def test_a_store_that_breaks_is_an_internal_failure_and_still_an_answer(setup, caplog):
    def explode(*_):
        raise ZeroDivisionError("a bug below")

    setup.store.gates["read"] = explode
    got = setup.run("READ(10)", lba=0, blocks=1, into=BLOCK)
    assert (got.code, got.moved) == ("4/44/00", 0)
    assert "a bug below" in caplog.text
    assert setup.run("TEST UNIT READY").status is Status.GOOD


def test_a_stopped_disk_is_not_ready_for_anything_with_blocks(setup):
    assert setup.run("START STOP UNIT", start=0).code == "GOOD"
    assert operations(setup) == ["flush"]
    for name in ("READ(10)", "WRITE(10)", "VERIFY(10)", "SYNCHRONIZE CACHE(10)", "PRE-FETCH(10)"):
        assert setup.run(name, lba=0, blocks=1, out=bytes(BLOCK)).code == "2/04/02"
    assert setup.run("TEST UNIT READY").code == "2/04/02"
    assert setup.run("INQUIRY", allocation_length=36, into=36).code == "GOOD"
    assert setup.run("START STOP UNIT", start=1).code == "GOOD"
    assert setup.run("TEST UNIT READY").code == "GOOD"
    for field in ({"loej": 1}, {"power_condition": 2}):
        assert setup.run("START STOP UNIT", **field).code == "5/24/00"


def test_an_aca_attribute_is_refused(setup):
    assert setup.run("TEST UNIT READY", attribute=Attribute.ACA).code == "5/24/00"


def test_o_direct_disks_take_buffers_of_any_alignment(make_setup, direct_folder):
    path = direct_folder / "disk.img"
    path.write_bytes(bytes(1 << 20))
    with contextlib.closing(FileStore(path, direct=True)) as store:
        setup = make_setup(store=store, block_size=4096)
        data = pattern(3 * 4096)
        for cuts in ((), (1,), (4096, 8192), (100, 5000, 5001)):
            assert setup.run("WRITE(10)", lba=2, blocks=3, out=data, cuts=cuts).code == "GOOD"
            got = setup.run("READ(10)", lba=2, blocks=3, into=10_000, cuts=cuts)
            assert (got.code, got.data, got.overflow) == ("GOOD", data[:10_000], 2288)
        assert setup.run("VERIFY(10)", lba=2, blocks=3, bytchk=1, out=data).code == "GOOD"
        last = setup.run("READ(10)", lba=255, blocks=1, into=10)
        assert (last.code, last.overflow) == ("GOOD", 4086)
        assert store.staged_bytes > 0
    assert path.read_bytes()[8192 : 8192 + len(data)] == data
