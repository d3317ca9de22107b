# SPDX-License-Identifier: MIT
"""Formats of which a few leading fields say how the rest is laid out.

construct asks at every field of every message what follows, which takes it twenty to forty times
as long as `struct`. But a message of a ring has one of few shapes; within a shape everything has
its place, and the declaration need not be asked again.
"""

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from construct import (
    Bytes,
    Computed,
    Const,
    Construct,
    ConstructError,
    Container,
    GreedyBytes,
    Pass,
    Rebuild,
    SizeofError,
    Switch,
)

from vscsi.wire.formats import Leaf, Packed, Quick, order_of

SHAPES = 64
"""How many shapes of a format are remembered; of a peer that sends others it costs nobody else."""

_NOT_THIS_WAY = (
    ConstructError,
    struct.error,
    KeyError,
    AttributeError,
    TypeError,
    ValueError,
    OverflowError,
    MemoryError,
)
"""How fields say that they do not fit; construct then finds the words for it."""


@dataclass(slots=True)
class _Head:
    """The fields before the first whose size is not fixed."""

    leaves: list[Leaf] = field(default_factory=list)
    defaults: list[Any] = field(default_factory=list)
    constants: list[tuple[int, Any]] = field(default_factory=list)
    given: list[tuple[int, str, Callable[[Any], Any]]] = field(default_factory=list)
    """What is computed where it is not given (construct's Default)."""
    derived: list[tuple[int, Callable[[Any], Any]]] = field(default_factory=list)
    """What is computed always (construct's Rebuild)."""


@dataclass(slots=True)
class _Shape:
    """Where everything is in a message of one shape. `trailing` follows."""

    packer: struct.Struct
    names: list[str]
    """Of the parsed value's fields, `trailing` included."""
    inserted: list[tuple[int, Any]]
    """What has no bytes of its own: index among the values, value."""
    nested: list[tuple[int, int, list[str]]]
    """Which values make up a field: first index, end, names; the last first."""
    tail: list[tuple[str, int | Packed]]
    """What follows the head when building: so many bytes, or a structure."""


class Shaped(Quick):
    """A Struct whose fixed head has all that its layout depends on: the fields named in `by`.

    Those are whole bytes, and what computes anything looks at them alone when parsing. The last
    field is `trailing`. A shape with more than byte strings and `Packed` structures behind the
    head is left to construct.
    """

    def __init__(self, *subcons: Construct, by: tuple[str, ...]) -> None:
        super().__init__(*subcons)
        self._by = by
        self._head = _Head()
        self._rest: list[Construct] = []
        for each in subcons:
            self._take(each)
        names = [leaf.name for leaf in self._head.leaves]
        self._index = {name: index for index, name in enumerate(names)}
        self._key_index = [self._index[name] for name in by]
        order = order_of(self._head.leaves)
        self._size = struct.calcsize(order + "".join(leaf.code for leaf in self._head.leaves))
        self._key = struct.Struct(
            order
            + "".join(
                leaf.code if leaf.name in by else f"{struct.calcsize(order + leaf.code)}x"
                for leaf in self._head.leaves
            )
        )
        self._shape = lru_cache(SHAPES)(self._lay_out)

    def _take(self, each: Construct) -> None:
        """Sort a field into head or rest."""
        inner = each.subcon
        if self._rest or not _is_fixed(each):
            self._rest.append(each)
        elif not isinstance(inner, Computed):
            head, leaf, at = self._head, Leaf.of(each), len(self._head.leaves)
            default = getattr(inner, "value", None)
            if isinstance(inner, Const):
                head.constants.append((at, inner.value))
            elif isinstance(inner, Rebuild):
                head.derived.append((at, inner.func))
            elif callable(default):
                head.given.append((at, leaf.name, default))
            head.leaves.append(leaf)
            head.defaults.append(default)

    def quick_parse(self, data: bytes | memoryview) -> Container | None:
        """Return what all of `data` means, or None."""
        if len(data) < self._size:
            return None
        shape = self._shape(*self._key.unpack_from(data))
        if shape is None or len(data) < shape.packer.size:
            return None
        values = list(shape.packer.unpack_from(data))
        for index, constant in self._head.constants:
            if values[index] != constant:
                return None
        for start, end, names in shape.nested:
            values[start:end] = [Container(zip(names, values[start:end], strict=True))]
        for index, value in shape.inserted:
            values.insert(index, value)
        values.append(bytes(data[shape.packer.size :]))
        return Container(zip(shape.names, values, strict=True))

    def quick_build(self, fields: Mapping[str, Any]) -> bytes | None:
        """Return the bytes of `fields`, or None."""
        head = self._head
        values = list(head.defaults)
        context = Container(fields)
        try:
            for name, value in fields.items():
                index = self._index.get(name)
                if index is not None and value is not None:
                    values[index] = value
            for index, constant in head.constants:
                if values[index] != constant:
                    return None
            for index, name, compute in head.given:
                if fields.get(name) is None:
                    values[index] = compute(context)
            for index, compute in head.derived:
                values[index] = compute(context)
            for value, default in zip(values, head.defaults, strict=True):
                if type(default) is bytes and len(value) != len(default):
                    return None
            shape = self._shape(*[int(values[index]) for index in self._key_index])
            if shape is None:
                return None
            for name, part in shape.tail:
                value = fields.get(name)
                if isinstance(part, Packed):
                    values += part.values(value, "")  # type: ignore[arg-type]  # None: not this way
                    continue
                value = b"" if value is None else value
                if type(value) is not bytes or len(value) != part:
                    return None
                values.append(value)
            trailing = fields.get("trailing")
            return shape.packer.pack(*values) + (b"" if trailing is None else trailing)
        except _NOT_THIS_WAY:
            return None

    def _lay_out(self, *key: int) -> _Shape | None:
        """Return where everything is if the fields of `by` have these values, or None."""
        known = dict(zip(self._by, key, strict=True))
        context = Container(known)
        try:
            return self._lay_out_in(context)
        except _NOT_THIS_WAY:
            return None

    def _lay_out_in(self, context: Container) -> _Shape | None:
        leaves = self._head.leaves
        code, at = "".join(leaf.code for leaf in leaves), len(leaves)
        names: list[str] = []
        inserted: list[tuple[int, Any]] = []
        nested: list[tuple[int, int, list[str]]] = []
        tail: list[tuple[str, int | Packed]] = []
        for each in self.subcons[: len(self.subcons) - len(self._rest)]:
            if isinstance(each.subcon, Computed):
                context[each.name] = each.subcon.func(context)
                inserted.append((len(names), context[each.name]))
            names.append(each.name)
        for each in self._rest:
            names.append(each.name)
            inner = each.subcon.subcon  # below its name and its default
            if isinstance(inner, Switch):
                inner = inner.cases.get(inner.keyfunc(context), inner.default)
            if inner is GreedyBytes and each is self._rest[-1]:
                continue
            if inner is Pass:
                inserted.append((len(names) - 1, None))
            elif isinstance(inner, Bytes):
                length = inner.length(context)
                code, at = f"{code}{length}s", at + 1
                tail.append((each.name, length))
            elif isinstance(inner, Packed):
                end = at + len(inner.names)
                nested.insert(0, (at, end, inner.names))
                code, at = code + inner.code, end
                tail.append((each.name, inner))
            else:
                return None
        packer = struct.Struct(order_of(leaves) + code)
        return _Shape(packer, names, inserted, nested, tail)


def _is_fixed(each: Construct) -> bool:
    try:
        each.sizeof()
    except (SizeofError, KeyError, AttributeError):
        return False
    return True
