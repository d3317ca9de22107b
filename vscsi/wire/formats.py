# SPDX-License-Identifier: MIT
"""What every declared format shares: field types with defaults, parsing and building.

A format is a construct declaration whose integer fields default to 0 and whose reserved bytes
default to zeros but are kept when parsed, so that a driver's bytes rebuild to the same bytes.
Codes stay plain integers in parsed values; each format's module has an IntEnum to compare with.
"""

import struct
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

from construct import (
    BitsInteger,
    Bytes,
    Construct,
    ConstructError,
    Container,
    Default,
    FormatFieldError,
    Int8ub,
    Int16sl,
    Int16ub,
    Int16ul,
    Int24ub,
    Int32sb,
    Int32sl,
    Int32ub,
    Int32ul,
    Int64ub,
    Int64ul,
    Struct,
)
from construct.core import stream_read, stream_write

from vscsi.wire.errors import WireError

U8 = Default(Int8ub, 0)
U16B = Default(Int16ub, 0)
U24B = Default(Int24ub, 0)
U32B = Default(Int32ub, 0)
S32B = Default(Int32sb, 0)
U64B = Default(Int64ub, 0)
U16L = Default(Int16ul, 0)
S16L = Default(Int16sl, 0)
U32L = Default(Int32ul, 0)
S32L = Default(Int32sl, 0)
U64L = Default(Int64ul, 0)


def raw(length: int) -> Construct:
    """Bytes kept as they are (reserved, opaque), zeros when nothing is given."""
    return Default(Bytes(length), bytes(length))


def bits(width: int) -> Construct:
    """An unsigned integer of `width` bits inside a BitStruct, 0 when nothing is given."""
    return Default(BitsInteger(width), 0)


class Packed(Struct):  # type: ignore[misc]  # construct has no type hints
    """A Struct of fixed integers and byte strings, taken apart by a single `struct` call.

    Some thirty times faster than Struct, which is what an array of segment descriptors needs; the
    layout still comes from the declaration alone. Multi-byte fields share one byte order.
    """

    def __init__(self, *subcons: Construct) -> None:
        super().__init__(*subcons)
        order, codes, defaults = ">", "", []
        for field in subcons:
            leaf, default = field, None
            while hasattr(leaf, "subcon"):
                default = getattr(leaf, "value", None) if default is None else default
                leaf = leaf.subcon
            if isinstance(leaf, Bytes):
                codes += f"{leaf.length}s"
            else:
                codes += leaf.fmtstr[1]
                order = leaf.fmtstr[0] if leaf.length > 1 else order
            defaults.append(default)
        self._packer = struct.Struct(order + codes)
        self._names = [field.name for field in subcons]
        self._defaults = list(zip(self._names, defaults, strict=True))

    def _parse(self, stream: BytesIO, _context: Container, path: str) -> Container:
        data = stream_read(stream, self._packer.size, path)
        return Container(zip(self._names, self._packer.unpack(data), strict=True))

    def _build(self, obj: Any, stream: BytesIO, _context: Container, path: str) -> Any:
        values: list[Any] = []
        for name, default in self._defaults:
            value: Any = obj.get(name)
            value = default if value is None else value
            if isinstance(default, bytes) and len(value) != len(default):
                raise FormatFieldError(f"{name} takes {len(default)} bytes", path=path)
            values.append(value)
        try:
            data = self._packer.pack(*values)
        except struct.error as error:
            raise FormatFieldError(str(error), path=path) from error
        stream_write(stream, data, len(data), path)
        return obj


def parse(form: Construct, data: bytes | memoryview, what: str) -> Container:
    """Parse the whole of `data`, which nobody else may write to meanwhile.

    Raises WireError, naming `what`, if it is too short, too long or contradicts itself.
    """
    stream = BytesIO(data)
    try:
        value = form.parse_stream(stream)
    except ConstructError as error:
        raise WireError(f"{what}: {' '.join(str(error).split())}") from error
    if stream.tell() != len(data):
        raise WireError(f"{what}: {len(data) - stream.tell()} bytes too many")
    return value


def build(form: Construct, fields: Mapping[str, Any] | Sequence[Any]) -> bytes:
    """Build bytes from our own values (for an array: its elements).

    Raises ValueError if one does not fit its field.
    """
    try:
        data: bytes = form.build(fields)
    except ConstructError as error:
        raise ValueError(" ".join(str(error).split())) from error
    return data


def text(field: bytes) -> str:
    """Return a padded ASCII field as text; other bytes show as the replacement character."""
    return field.split(b"\0")[0].decode("ascii", "replace").rstrip()
