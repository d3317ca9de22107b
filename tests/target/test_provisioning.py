# SPDX-License-Identifier: MIT
"""WRITE SAME, UNMAP, FORMAT UNIT; running out of space."""

import errno

import pytest

from vscsi.target.stores.file import FileStore
from vscsi.wire.parameters import build_unmap

BLOCK = 512
BLOCKS = (1 << 20) // BLOCK
FULL = b"\xff" * (1 << 20)


@pytest.fixture
def full(setup):
    """A disk full of ones."""
    setup.store.writev(0, [memoryview(FULL)])
    setup.store.log.clear()
    return setup


def block_of(data, lba):
    return data[lba * BLOCK : (lba + 1) * BLOCK]


@pytest.mark.parametrize("name", ["WRITE SAME(10)", "WRITE SAME(16)"])
def test_write_same_repeats_its_block(full, name):
    block = bytes(range(256)) * 2
    got = full.run(name, lba=10, blocks=1025, out=block, cuts=(100,))
    assert (got.code, got.moved) == ("GOOD", BLOCK)
    content = full.store.content()
    assert content[10 * BLOCK : 1035 * BLOCK] == block * 1025
    assert content[: 10 * BLOCK] + content[1035 * BLOCK :] == FULL[1025 * BLOCK :]


def test_write_same_larger_than_a_chunk_ends_where_it_should(make_setup, watched_store):
    setup = make_setup(store=watched_store(4 << 20))
    block = bytes(range(256)) * 2
    assert setup.run("WRITE SAME(16)", lba=1, blocks=5000, out=block).code == "GOOD"
    expected = bytes(BLOCK) + block * 5000 + bytes((4 << 20) - 5001 * BLOCK)
    assert setup.store.content() == expected


@pytest.mark.parametrize("name", ["WRITE SAME(10)", "WRITE SAME(16)"])
def test_write_same_with_unmap_punches_only_what_reads_back_the_same(full, name):
    full.run(name, lba=8, blocks=8, unmap=1, out=bytes(BLOCK))
    assert full.store.log == [("discard", 8 * BLOCK, 8 * BLOCK)]
    full.store.log.clear()
    full.run(name, lba=16, blocks=8, unmap=1, out=b"x" * BLOCK)
    assert [entry[0] for entry in full.store.log] == ["write"]
    content = full.store.content()
    assert content[8 * BLOCK : 24 * BLOCK] == bytes(8 * BLOCK) + b"x" * (8 * BLOCK)


def test_write_same_without_data_out_writes_zeros(full):
    assert full.run("WRITE SAME(16)", lba=2, blocks=2, ndob=1).code == "GOOD"
    assert full.run("WRITE SAME(16)", lba=6, blocks=2, ndob=1, unmap=1).code == "GOOD"
    assert [entry[0] for entry in full.store.log] == ["write", "discard"]
    content = full.store.content()
    assert content[2 * BLOCK : 4 * BLOCK] == content[6 * BLOCK : 8 * BLOCK] == bytes(2 * BLOCK)


def test_what_write_same_refuses(full):
    zero = bytes(BLOCK)
    for fields, out, code, pointer in (
        ({"blocks": 0}, zero, "5/24/00", 10),  # WSNZ=1
        ({"blocks": 1, "anchor": 1}, zero, "5/24/00", 1),
        ({"blocks": 1}, zero[:100], "5/0e/03", None),
        ({"blocks": 1}, zero * 2, "5/0e/03", None),
    ):
        got = full.run("WRITE SAME(16)", lba=0, **fields, out=out)
        assert (got.code, got.sense.field_pointer) == (code, pointer)
    full.disk.maximum_write_same_blocks = 4
    assert full.run("WRITE SAME(16)", lba=0, blocks=5, out=zero).code == "5/24/00"
    assert full.store.content() == FULL


def test_unmap_deallocates_every_descriptor(full):
    data = build_unmap([(0, 1), (100, 0), (BLOCKS - 2, 2)])
    got = full.run("UNMAP", parameter_list_length=len(data), out=data, cuts=(3, 9))
    assert (got.code, got.moved) == ("GOOD", len(data))
    content = full.store.content()
    assert [lba for lba in range(BLOCKS) if block_of(content, lba) == bytes(BLOCK)] == [
        0,
        BLOCKS - 2,
        BLOCKS - 1,
    ]


@pytest.mark.parametrize(
    ("data", "cdb", "code", "pointer"),
    [
        (build_unmap([(0, 1), (BLOCKS - 1, 2)]), {}, "5/21/00", 24),
        (build_unmap([(0, 1), (1 << 63, 1)]), {}, "5/21/00", 24),
        (build_unmap([(0, 1)])[:7], {}, "5/1a/00", None),
        (build_unmap([(0, 1)])[:20], {}, "5/1a/00", None),
        (build_unmap([(0, 1)]), {"anchor": 1}, "5/24/00", 1),
        (build_unmap([(0, 1)]), {"parameter_list_length": 25}, "5/0e/03", None),
    ],
)
def test_what_unmap_refuses_takes_no_effect(full, data, cdb, code, pointer):
    got = full.run("UNMAP", out=data, **{"parameter_list_length": len(data), **cdb})
    assert (got.code, got.sense.field_pointer) == (code, pointer)
    assert full.store.log == []


def test_more_than_block_limits_allow_to_unmap_is_refused(full):
    full.disk.maximum_unmap_blocks = 10
    data = build_unmap([(0, 5), (10, 6)])
    assert full.run("UNMAP", parameter_list_length=len(data), out=data).code == "5/26/00"
    full.disk.maximum_unmap_descriptors = 1
    data = build_unmap([(0, 5), (10, 5)])
    assert full.run("UNMAP", parameter_list_length=len(data), out=data).code == "5/26/00"
    assert full.store.content() == FULL


def test_unmap_of_nothing_is_good(full):
    assert full.run("UNMAP", parameter_list_length=0).code == "GOOD"
    assert full.run("UNMAP", parameter_list_length=8, out=build_unmap([])).code == "GOOD"


def test_a_parameter_list_is_looked_at_once(setup):
    """The store rewrites the initiator's memory while the first range is being deallocated."""
    memory = bytearray(build_unmap([(0, 1), (8, 1)]))
    hostile = build_unmap([(0, 1), (1 << 40, 0xFFFFFFFF)])
    setup.store.gates["discard"] = lambda *_: memory.__setitem__(slice(None), hostile)
    finished = []
    task = setup.run.task(
        "UNMAP",
        parameter_list_length=len(memory),
        data_out=[memoryview(memory)],
        done=finished.append,
    )
    setup.router.submit(task)
    assert finished == [task]
    assert setup.store.log == [("discard", 0, BLOCK), ("discard", 8 * BLOCK, BLOCK)]


def test_a_disk_that_cannot_discard_says_so_everywhere(make_setup, watched_store):
    store = watched_store()
    store.can_discard = False
    setup = make_setup(store=store)
    data = build_unmap([(0, 1)])
    assert setup.run("UNMAP", parameter_list_length=len(data), out=data).code == "5/20/00"
    for name in ("WRITE SAME(10)", "WRITE SAME(16)"):
        got = setup.run(name, lba=0, blocks=1, unmap=1, out=bytes(BLOCK))
        assert (got.code, got.sense.bit_pointer) == ("5/24/00", 3)
    pages = setup.run("INQUIRY", evpd=1, page_code=0, allocation_length=64, into=64).data[4:]
    assert 0xB2 not in pages
    capacity = setup.run("READ CAPACITY(16)", allocation_length=32, into=32).data
    assert capacity[14] == 0
    limits = setup.run("INQUIRY", evpd=1, page_code=0xB0, allocation_length=64, into=64).data
    assert limits[20:36] == bytes(16)
    got = setup.run(
        "REPORT SUPPORTED OPERATION CODES",
        reporting_options=1,
        requested_operation_code=0x42,
        allocation_length=64,
        into=64,
    )
    assert got.data[1] == 1


def test_format_unit_deallocates_a_thin_disk(full):
    assert full.run("FORMAT UNIT").code == "GOOD"
    assert full.store.content() == bytes(1 << 20)


@pytest.mark.parametrize(
    ("cdb", "out", "code"),
    [
        ({"fmtpinfo": 2}, None, "5/24/00"),
        ({"fmtdata": 1}, b"\0\x02\0\0", "GOOD"),
        ({"fmtdata": 1}, b"\0\x02", "5/0e/03"),
        ({"fmtdata": 1}, b"\0\x08\0\0", "5/26/00"),
        ({"fmtdata": 1}, b"\0\0\0\x08", "5/26/00"),
        ({"fmtdata": 1, "longlist": 1}, b"\0\0\0\0\0\0\0\x08", "5/26/00"),
        ({"fmtdata": 1, "longlist": 1}, bytes(8), "GOOD"),
    ],
)
def test_format_unit_keeps_the_format(full, cdb, out, code):
    assert full.run("FORMAT UNIT", **cdb, out=out).code == code
    assert (full.store.content() == FULL) == (code != "GOOD")


def test_an_error_of_a_discard_below_is_never_acknowledged(full):
    full.store.errors["discard"] = errno.EIO
    data = build_unmap([(6, 1)])
    got = full.run("UNMAP", parameter_list_length=len(data), out=data)
    assert (got.code, got.sense.information) == ("3/0c/00", 6)
    full.store.errors["discard"] = errno.ENOSPC
    assert full.run("WRITE SAME(16)", lba=0, blocks=1, unmap=1, ndob=1).code == "7/27/07"
    assert full.run("FORMAT UNIT").code == "7/27/07"


def test_a_full_file_system_is_a_space_allocation_failure(make_setup, small_file_system):
    path = small_file_system / "sparse.img"
    with path.open("wb") as image:
        image.truncate(1 << 20)
    store = FileStore(path)
    setup = make_setup(store=store)
    chunk = b"x" * 65536
    codes = [
        setup.run("WRITE(10)", lba=lba, blocks=128, out=chunk).code for lba in range(0, BLOCKS, 128)
    ]
    stored = codes.index("7/27/07")
    assert codes == ["GOOD"] * stored + ["7/27/07"] * (len(codes) - stored)
    assert 1 <= stored <= 4
    data = build_unmap([(0, 128)])
    assert setup.run("UNMAP", parameter_list_length=len(data), out=data).code == "GOOD"
    assert setup.run("WRITE(10)", lba=0, blocks=120, out=chunk[: 120 * BLOCK]).code == "GOOD"
    assert setup.run("READ(10)", lba=0, blocks=120, into=120 * BLOCK).data == chunk[: 120 * BLOCK]
    store.close()
