# SPDX-License-Identifier: MIT
"""Version 1 grant entries: the bits are Xen's, and only what is permitted is mapped."""

import struct

import pytest

from vscsi.ring._core import grant_end, grant_map, grant_set, grant_unmap
from vscsi.wire.errors import GrantError

# xen/interface/grant_table.h
PERMIT, ACCEPT_TRANSFER, TRANSITIVE = 1, 2, 3
READONLY, READING, WRITING = 4, 8, 16


@pytest.fixture
def table() -> bytearray:
    return bytearray(16 * 8)


def entry(table: bytearray, reference: int) -> tuple[int, int, int]:
    """Return flags, domid, frame."""
    return struct.unpack_from("<HHI", table, reference * 8)


def test_set_writes_the_entry_of_xens_header(table: bytearray) -> None:
    grant_set(table, 3, 0x7FF0, 0xDEADBEEF, readonly=False)
    grant_set(table, 4, 1, 2, readonly=True)
    assert table[24:32].hex() == "0100f07fefbeadde"
    assert table[32:40].hex() == "0500010002000000"
    assert table[:24] == bytes(24)
    assert table[40:] == bytes(88)


@pytest.mark.parametrize(
    ("granted", "asked", "marks"),
    [(False, False, READING | WRITING), (False, True, READING), (True, True, READING)],
)
def test_map_marks_the_entry_in_use_and_unmap_clears_the_marks(
    table: bytearray, granted: bool, asked: bool, marks: int
) -> None:
    grant_set(table, 9, 5, 77, readonly=granted)
    flags = entry(table, 9)[0]
    assert grant_map(table, 9, 5, readonly=asked) == 77
    assert entry(table, 9) == (flags | marks, 5, 77)
    grant_unmap(table, 9, reading=False, writing=True)
    assert entry(table, 9) == (flags | READING, 5, 77)
    grant_unmap(table, 9, reading=True, writing=False)
    assert entry(table, 9) == (flags, 5, 77)


@pytest.mark.parametrize(
    ("flags", "domain", "readonly", "reason"),
    [
        (0, 5, True, "grants no access"),
        (ACCEPT_TRANSFER, 5, True, "grants no access"),
        (TRANSITIVE, 5, True, "grants no access"),
        (PERMIT, 4, True, "another domain"),
        (PERMIT, 0x105, True, "another domain"),
        (PERMIT | READONLY, 5, False, "read access only"),
    ],
)
def test_map_refuses_what_is_not_permitted_and_changes_nothing(
    table: bytearray, flags: int, domain: int, readonly: bool, reason: str
) -> None:
    struct.pack_into("<HHI", table, 16, flags, domain, 1)
    before = bytes(table)
    with pytest.raises(GrantError, match=f"grant reference 2: .*{reason}"):
        grant_map(table, 2, 5, readonly=readonly)
    assert table == before


@pytest.mark.parametrize("reference", [16, 17, 2**32 - 1, 2**32, 2**64, -1])
def test_a_reference_beyond_the_table_is_refused(table: bytearray, reference: int) -> None:
    with pytest.raises(GrantError, match="beyond the table"):
        grant_map(table, reference, 0, readonly=True)
    with pytest.raises(GrantError, match="beyond the table"):
        grant_unmap(table, reference, reading=True, writing=True)
    with pytest.raises(GrantError, match="beyond the table"):
        grant_set(table, reference, 0, 0, readonly=True)
    with pytest.raises(GrantError, match="beyond the table"):
        grant_end(table, [reference])
    assert table == bytes(128)


def test_end_revokes_all_but_those_in_use(table: bytearray) -> None:
    for reference in range(1, 6):
        grant_set(table, reference, 0, reference, readonly=False)
    grant_map(table, 2, 0, readonly=True)
    grant_map(table, 4, 0, readonly=False)
    assert grant_end(table, [1, 2, 3, 4, 5]) == [2, 4]
    assert [entry(table, n)[0] for n in range(1, 6)] == [0, 9, 0, 25, 0]
    grant_unmap(table, 2, reading=True, writing=False)
    assert grant_end(table, range(2, 5)) == [4]


def test_wrong_arguments_are_errors_of_the_caller(table: bytearray) -> None:
    for domain in (-1, 0x10000, 2**70):
        with pytest.raises(ValueError, match=r"domain id|32 bits"):
            grant_map(table, 1, domain, readonly=True)
    with pytest.raises(ValueError, match="32 bits"):
        grant_set(table, 1, 0, 2**32, readonly=True)
    with pytest.raises(TypeError):
        grant_map(table, "1", 0, readonly=True)
    with pytest.raises(TypeError):
        grant_end(table, 1)
    with pytest.raises((BufferError, TypeError)):
        grant_map(bytes(table), 1, 0, readonly=True)
    with pytest.raises(ValueError, match="aligned"):
        grant_map(memoryview(table)[1:], 1, 0, readonly=True)
