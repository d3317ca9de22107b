# SPDX-License-Identifier: MIT
"""Some fields of declared headers at once: what is read of every frame and every PDU."""

import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from vscsi.wire.formats import Leaf, Packed

Unpack = Callable[[bytes, int], tuple[Any, ...]]
_TYPES = {"B": "u1", "H": ">u2", "L": ">u4", "Q": ">u8"}


def unpacker(names: str, *forms: Packed) -> Unpack:
    """Return what takes the named fields, in their order, from headers that follow one another.

    It takes a buffer and where in it the first header begins. names: separated by spaces; each is
    the first field of that name that is not yet taken. Raises ValueError for a field that is not
    there, or not in this order.
    """
    wanted = names.split()
    codes = []
    for form in forms:
        for leaf in map(Leaf.of, form.subcons):
            if wanted and leaf.name == wanted[0]:
                codes.append(leaf.code)
                del wanted[0]
            else:
                codes.append(f"{struct.calcsize(f'>{leaf.code}')}x")
    if wanted:
        raise ValueError(f"no field {wanted[0]!r}, or not in this order")
    return struct.Struct(">" + "".join(codes)).unpack_from


def table(form: Packed, headers: bytes) -> npt.NDArray[Any]:
    """Return headers that follow one another as a structured array; bytes become rows of u1."""
    kinds: list[Any] = []
    for leaf in map(Leaf.of, form.subcons):
        if leaf.code in _TYPES:
            kinds.append((leaf.name, _TYPES[leaf.code]))
        else:
            kinds.append((leaf.name, "u1", (struct.calcsize(leaf.code),)))
    return np.frombuffer(headers, np.dtype(kinds))
