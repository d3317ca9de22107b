# SPDX-License-Identifier: MIT
"""Scatter-gather lists: copying into and out of them, cutting them without copying.

A list is a sequence of memoryviews of single bytes, in order. The memory is the initiator's and
may change at any moment: whoever decides on its content gathers it once and looks at the copy.
"""

import ctypes
from collections.abc import Sequence

Views = Sequence[memoryview]


def length(views: Views) -> int:
    """Return the bytes in a list."""
    return sum(map(len, views))


def slice_views(views: Views, offset: int, count: int) -> list[memoryview]:
    """Return up to `count` bytes from `offset` on as a list over the same memory."""
    result = []
    for view in views:
        if count <= 0:
            break
        if offset >= len(view):
            offset -= len(view)
            continue
        piece = view[offset : offset + count]
        offset = 0
        count -= len(piece)
        result.append(piece)
    return result


def scatter(data: bytes | memoryview, views: Views) -> int:
    """Copy data into writable views, truncated to their length; return the bytes copied."""
    source = memoryview(data)
    done = 0
    for view in views:
        count = min(len(view), len(source) - done)
        view[:count] = source[done : done + count]
        done += count
    return done


def gather(views: Views, count: int) -> bytes:
    """Return a copy of the first `count` bytes (fewer if the list is shorter)."""
    return b"".join(slice_views(views, 0, count))


class _PyBuffer(ctypes.Structure):
    """Py_buffer, whose layout the stable ABI fixes since Python 3.11."""

    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.py_object),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    )


_get_buffer = ctypes.PYFUNCTYPE(
    ctypes.c_int, ctypes.py_object, ctypes.POINTER(_PyBuffer), ctypes.c_int
)(("PyObject_GetBuffer", ctypes.pythonapi))
_release_buffer = ctypes.PYFUNCTYPE(None, ctypes.POINTER(_PyBuffer))(
    ("PyBuffer_Release", ctypes.pythonapi)
)


def address(view: memoryview) -> int:
    """Return where a view's memory starts, read-only views included; O_DIRECT asks for it."""
    buffer = _PyBuffer()
    _get_buffer(view, ctypes.byref(buffer), 0)  # PyBUF_SIMPLE
    try:
        return int(buffer.buf or 0)
    finally:
        _release_buffer(ctypes.byref(buffer))
