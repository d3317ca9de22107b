# SPDX-License-Identifier: MIT
"""What every declared format shares: field types with defaults, parsing and building.

A format is a construct declaration whose integer fields default to 0 and whose reserved bytes
default to zeros but are kept when parsed, so that a driver's bytes rebuild to the same bytes.
Codes stay plain integers in parsed values; each format's module has an IntEnum to compare with.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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


class Quick(Struct):  # type: ignore[misc]  # construct has no type hints
    """A Struct that has a quicker way for what is common, derived from its declaration.

    The quick way gives construct's own value or bytes, or None: what it cannot do (and whatever is
    wrong) is construct's to decide.
    """

    def quick_parse(self, data: bytes | memoryview) -> Container | None:
        """Return what all of `data` means, or None."""
        raise NotImplementedError

    def quick_build(self, fields: Mapping[str, Any]) -> bytes | None:
        """Return the bytes of `fields`, or None."""
        raise NotImplementedError


class Packed(Quick):
    """A Struct of fixed integers and byte strings, taken apart by a single `struct` call.

    Some thirty times faster than Struct, which is what an array of segment descriptors needs; the
    layout still comes from the declaration alone. Multi-byte fields share one byte order.
    """

    def __init__(self, *subcons: Construct) -> None:
        super().__init__(*subcons)
        leaves = [Leaf.of(field) for field in subcons]
        self.code = "".join(leaf.code for leaf in leaves)
        """What `struct` calls the fields, without their order."""
        self.order = order_of(leaves)
        self.names = [leaf.name for leaf in leaves]
        self._packer = struct.Struct(self.order + self.code)
        self._defaults = [(leaf.name, leaf.default) for leaf in leaves]

    def quick_parse(self, data: bytes | memoryview) -> Container | None:
        """Return what all of `data` means, or None."""
        if len(data) != self._packer.size:
            return None
        return Container(zip(self.names, self._packer.unpack(data), strict=True))

    def quick_build(self, fields: Mapping[str, Any]) -> bytes | None:
        """Return the bytes of `fields`, or None."""
        try:
            return self._packer.pack(*self.values(fields, ""))
        except (struct.error, FormatFieldError):
            return None

    def values(self, fields: Mapping[str, Any], path: str) -> list[Any]:
        """Return the fields' values in order; FormatFieldError for bytes of another length."""
        values: list[Any] = []
        for name, default in self._defaults:
            value: Any = fields.get(name)
            value = default if value is None else value
            if isinstance(default, bytes) and len(value) != len(default):
                raise FormatFieldError(f"{name} takes {len(default)} bytes", path=path)
            values.append(value)
        return values

    def _parse(self, stream: BytesIO, _context: Container, path: str) -> Container:
        data = stream_read(stream, self._packer.size, path)
        return Container(zip(self.names, self._packer.unpack(data), strict=True))

    def _build(self, obj: Any, stream: BytesIO, _context: Container, path: str) -> Any:
        try:
            data = self._packer.pack(*self.values(obj, path))
        except struct.error as error:
            raise FormatFieldError(str(error), path=path) from error
        stream_write(stream, data, len(data), path)
        return obj


@dataclass(frozen=True, slots=True)
class Leaf:
    """A fixed field of a format, as `struct` wants it."""

    name: str
    code: str
    order: str
    """Of its bytes; empty if that makes no difference."""
    default: Any

    @classmethod
    def of(cls, field: Construct) -> "Leaf":
        """Return what a field is below its name and default; AttributeError if it is no leaf."""
        leaf, default = field, None
        while hasattr(leaf, "subcon"):
            default = getattr(leaf, "value", None) if default is None else default
            leaf = leaf.subcon
        if isinstance(leaf, Bytes):
            return cls(field.name, f"{leaf.length}s", "", default)
        return cls(field.name, leaf.fmtstr[1], leaf.fmtstr[0] if leaf.length > 1 else "", default)


def order_of(leaves: Sequence[Leaf]) -> str:
    """Return the one byte order of fields."""
    return next((leaf.order for leaf in leaves if leaf.order), ">")


def parse(form: Construct, data: bytes | memoryview, what: str) -> Container:
    """Parse the whole of `data`, which nobody else may write to meanwhile.

    Raises WireError, naming `what`, if it is too short, too long or contradicts itself.
    """
    if isinstance(form, Quick) and (quick := form.quick_parse(data)) is not None:
        return quick
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
    if (
        isinstance(form, Quick)
        and isinstance(fields, Mapping)
        and (quick := form.quick_build(fields)) is not None
    ):
        return quick
    try:
        data: bytes = form.build(fields)
    except ConstructError as error:
        raise ValueError(" ".join(str(error).split())) from error
    return data


def text(field: bytes) -> str:
    """Return a padded ASCII field as text; other bytes show as the replacement character."""
    return field.split(b"\0")[0].decode("ascii", "replace").rstrip()
