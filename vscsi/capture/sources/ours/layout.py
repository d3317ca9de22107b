# SPDX-License-Identifier: MIT
"""Declared formats as numpy sees them, and fields of many messages gathered at once."""

import struct
from contextlib import suppress
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from construct import Computed, Construct, SizeofError

from vscsi.wire.formats import Leaf

Array = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@cache
def dtype_of(form: Construct) -> np.dtype[Any]:
    """Return the fields of a format up to the first of variable size.

    Byte strings and arrays are void.
    """
    names, formats = [], []
    for field in form.subcons:
        if isinstance(getattr(field, "subcon", None), Computed):
            continue
        try:
            size = field.sizeof()
        except (SizeofError, KeyError, AttributeError):
            break
        code = f"V{size}"
        with suppress(AttributeError):  # an array of structures
            leaf = Leaf.of(field)
            if struct.calcsize(f"={leaf.code}") == size and not leaf.code.endswith("s"):
                code = f"{leaf.order}{'i' if leaf.code.islower() else 'u'}{size}"
        names.append(field.name)
        formats.append(code)
    return np.dtype({"names": names, "formats": formats, "offsets": _offsets(formats)})


def _offsets(formats: list[str]) -> list[int]:
    sizes = [np.dtype(code).itemsize for code in formats]
    return [sum(sizes[:at]) for at in range(len(sizes))]


def after_each_other(**parts: np.dtype[Any]) -> np.dtype[Any]:
    """Return a structure of structures without gaps."""
    return np.dtype(list(parts.items()))


class Bytes:
    """A run's bytes."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self._bytes: npt.NDArray[np.uint8] = np.frombuffer(data, np.uint8)

    def gather(self, dtype: np.dtype[Any], at: Ints) -> Array:
        """Return the structures at these offsets; what lies beyond the end is not looked at.

        Its place is taken by other bytes: whoever asks knows which are whole.
        """
        count = len(self.data) - dtype.itemsize + 1
        if count <= 0:
            return np.zeros(len(at), dtype)
        every = np.ndarray((count,), f"V{dtype.itemsize}", self.data, strides=(1,))
        return every[np.clip(at, 0, count - 1)].view(dtype)

    def byte(self, at: Ints) -> npt.NDArray[np.uint8]:
        """Return the bytes at these offsets, of the last one what lies beyond."""
        return self._bytes[np.clip(at, 0, len(self._bytes) - 1)]

    def slices(self, at: Ints, lengths: Ints) -> pa.Array:
        """Return the byte strings there, within the run, as Arrow's binary; null for -1 bytes."""
        sizes = np.maximum(lengths, 0)
        ends = np.zeros(len(sizes) + 1, np.int32)
        np.cumsum(sizes, out=ends[1:])
        index = np.arange(ends[-1]) + np.repeat(at - ends[:-1], sizes)
        known = lengths >= 0
        return pa.Array.from_buffers(
            pa.binary(),
            len(sizes),
            [
                None if known.all() else pa.py_buffer(np.packbits(known, bitorder="little")),
                pa.py_buffer(ends),
                pa.py_buffer(self._bytes[index]),
            ],
        )

    def tables(self, dtype: np.dtype[Any], at: Ints, counts: Ints) -> tuple[Array, Ints]:
        """Return all entries of the tables there, and which table each is of."""
        owner = np.repeat(np.arange(len(at)), counts)
        number = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
        return self.gather(dtype, at[owner] + number * dtype.itemsize), owner
