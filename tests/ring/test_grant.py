# SPDX-License-Identifier: MIT
"""Version 1 grant entries: the bits are Xen's, and only what is permitted is mapped."""

import struct
from collections.abc import Callable

import pytest

from vscsi.ring._core import GrantAccess, grant_end, grant_set
from vscsi.wire.errors import GrantError

# xen/interface/grant_table.h
PERMIT, ACCEPT_TRANSFER, TRANSITIVE = 1, 2, 3
READONLY, READING, WRITING = 4, 8, 16
PAGES = 4


@pytest.fixture
def memory(shared_pages: Callable[[int], memoryview]) -> memoryview:
    """Return pages with a table of 16 entries at their start."""
    return shared_pages(PAGES)


@pytest.fixture
def table(memory: memoryview) -> memoryview:
    return memory[: 16 * 8]


@pytest.fixture
def access(memory: memoryview) -> GrantAccess:
    """Return domain 5's access."""
    return GrantAccess(memory, memory, references=16, domain=5, limit=8)


def entry(table: memoryview, reference: int) -> tuple[int, int, int]:
    """Return flags, domid, frame."""
    return struct.unpack_from("<HHI", table, reference * 8)


def test_set_writes_the_entry_of_xens_header(table: memoryview) -> None:
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
    table: memoryview, access: GrantAccess, granted: bool, asked: bool, marks: int
) -> None:
    grant_set(table, 9, 5, 3, readonly=granted)
    flags = entry(table, 9)[0]
    assert access.map([9], readonly=asked) == [3]
    assert entry(table, 9) == (flags | marks, 5, 3)
    access.unmap([9], readonly=asked)
    assert entry(table, 9) == (flags, 5, 3)


@pytest.mark.parametrize(
    ("flags", "domain", "frame", "readonly", "reason"),
    [
        (0, 5, 1, True, "grants no access"),
        (ACCEPT_TRANSFER, 5, 1, True, "grants no access"),
        (TRANSITIVE, 5, 1, True, "grants no access"),
        (PERMIT, 4, 1, True, "another domain"),
        (PERMIT, 0x105, 1, True, "another domain"),
        (PERMIT | READONLY, 5, 1, False, "read access only"),
        (PERMIT, 5, PAGES, False, "not memory"),
        (PERMIT, 5, 0xFFFF_FFFF, True, "not memory"),
    ],
)
def test_map_refuses_what_is_not_permitted_and_changes_nothing(
    table: memoryview,
    access: GrantAccess,
    flags: int,
    domain: int,
    frame: int,
    readonly: bool,
    reason: str,
) -> None:
    grant_set(table, 1, 5, 0, readonly=False)
    struct.pack_into("<HHI", table, 16, flags, domain, frame)
    before = bytes(table)
    with pytest.raises(GrantError, match=f"grant reference 2: .*{reason}"):
        access.map([1, 2], readonly=readonly)
    assert table == before
    assert access.mapped == 0


@pytest.mark.parametrize("reference", [16, 17, 2**32 - 1, 2**32, 2**64, -1])
def test_a_reference_beyond_the_table_is_refused(
    table: memoryview, access: GrantAccess, reference: int
) -> None:
    with pytest.raises(GrantError, match=f"grant reference {reference}: it is beyond the table"):
        access.map([reference], readonly=True)
    with pytest.raises(ValueError, match="not mapped so"):
        access.unmap([reference], readonly=True)
    with pytest.raises(GrantError, match="beyond the table"):
        grant_set(table, reference, 0, 0, readonly=True)
    with pytest.raises(GrantError, match="beyond the table"):
        grant_end(table, [reference])
    assert table == bytes(128)


def test_end_revokes_all_but_those_in_use(table: memoryview, access: GrantAccess) -> None:
    for reference in range(1, 6):
        grant_set(table, reference, 5, reference % PAGES, readonly=False)
    access.map([2], readonly=True)
    access.map([4], readonly=False)
    assert grant_end(table, [1, 2, 3, 4, 5]) == [2, 4]
    assert [entry(table, n)[0] for n in range(1, 6)] == [0, 9, 0, 25, 0]
    access.unmap([2], readonly=True)
    assert grant_end(table, range(2, 5)) == [4]


def test_wrong_arguments_are_errors_of_the_caller(
    table: memoryview, access: GrantAccess, memory: memoryview
) -> None:
    for domain in (-1, 0x10000, 2**70):
        with pytest.raises(ValueError, match=r"domain id|32 bits"):
            grant_set(table, 1, domain, 0, readonly=True)
    with pytest.raises(ValueError, match="32 bits"):
        grant_set(table, 1, 0, 2**32, readonly=True)
    with pytest.raises(TypeError):
        access.map(["1"], readonly=True)
    with pytest.raises(TypeError):
        access.map(1, readonly=True)
    with pytest.raises(TypeError):
        grant_end(table, 1)
    with pytest.raises((BufferError, TypeError)):
        grant_set(bytes(table), 1, 0, 0, readonly=True)
    with pytest.raises(ValueError, match="aligned"):
        grant_set(table[1:], 1, 0, 0, readonly=True)
    for parts in ((memory[1:], memory[1:]), (memory, memory[:4096])):
        with pytest.raises(ValueError, match="same memory"):
            GrantAccess(*parts, references=16, domain=5, limit=8)
    with pytest.raises(ValueError, match="same memory"):
        GrantAccess(memory, memory, references=PAGES * 512 + 1, domain=5, limit=8)
