# SPDX-License-Identifier: MIT
"""Scatter-gather lists against plain bytes."""

import ctypes
import gc
import mmap
import sys

from hypothesis import given
from hypothesis import strategies as st

from vscsi.target.buffers import address, gather, length, scatter, slice_views

lists = st.lists(st.binary(max_size=20), max_size=6)


def views_over(parts):
    return [memoryview(bytearray(part)) for part in parts]


@given(lists, st.integers(0, 100), st.integers(0, 100))
def test_slicing_a_list_is_slicing_its_bytes(parts, offset, count):
    whole = b"".join(parts)
    pieces = slice_views(views_over(parts), offset, count)
    assert b"".join(pieces) == whole[offset : offset + count]
    assert length(pieces) == len(whole[offset : offset + count])


@given(lists)
def test_slices_share_the_memory(parts):
    views = views_over(parts)
    for piece in slice_views(views, 1, 50):
        piece[:] = b"\xee" * len(piece)
    whole = b"".join(parts)
    assert b"".join(views) == whole[:1] + b"\xee" * len(whole[1:51]) + whole[51:]


@given(lists, st.binary(max_size=100))
def test_scatter_fills_as_far_as_both_reach(parts, data):
    views = views_over(parts)
    whole = b"".join(parts)
    count = min(len(data), len(whole))
    assert scatter(data, views) == count
    assert b"".join(views) == data[:count] + whole[count:]


@given(lists, st.integers(0, 100))
def test_gather_is_a_copy(parts, count):
    views = views_over(parts)
    copy = gather(views, count)
    scatter(b"\xff" * length(views), views)
    assert copy == b"".join(parts)[:count]


def test_addresses_of_writable_and_of_read_only_memory():
    buffer = ctypes.create_string_buffer(100)
    view = memoryview(buffer).cast("B")
    assert address(view[7:]) == ctypes.addressof(buffer) + 7
    assert address(view.toreadonly()[7:]) == ctypes.addressof(buffer) + 7
    assert address(memoryview(mmap.mmap(-1, 8192))[4096:]) % 4096 == 0


def test_asking_for_an_address_keeps_nothing():
    data = bytearray(100)
    view = memoryview(data)
    gc.collect()
    before = sys.getrefcount(data), sys.getrefcount(view)
    for _ in range(100):
        address(view)
    assert (sys.getrefcount(data), sys.getrefcount(view)) == before
    view.release()
    data.append(1)  # raises BufferError while anything is exported
