# SPDX-License-Identifier: MIT
"""What the declared formats share: packed structures, whole input, one-line errors."""

import pytest
from construct import Int16ul, Struct
from hypothesis import given
from hypothesis import strategies as st

from vscsi.wire.errors import WireError
from vscsi.wire.formats import U8, U16B, U32B, Packed, build, parse, raw, text

FIELDS = ("a" / U8, "b" / U32B, "c" / raw(3), "d" / U16B)
PACKED, PLAIN = Packed(*FIELDS), Struct(*FIELDS)


@given(st.binary(min_size=10, max_size=10))
def test_packed_parses_and_builds_as_struct_does(data):
    value = PACKED.parse(data)
    assert value == PLAIN.parse(data)
    assert PACKED.build(value) == PLAIN.build(value) == data
    assert PACKED.sizeof() == PLAIN.sizeof() == 10


def test_what_is_not_given_takes_its_default():
    assert build(PACKED, {"d": 1}) == build(PACKED, {"a": None, "d": 1}) == bytes(9) + b"\x01"


@pytest.mark.parametrize("value", [{"b": 1 << 32}, {"b": -1}, {"b": "1"}, {"c": b"12"}])
def test_values_that_do_not_fit_are_refused(value):
    with pytest.raises(ValueError, match="Error in path"):
        build(PACKED, value)


@pytest.mark.parametrize("size", [9, 11])
def test_the_input_is_the_whole_of_the_format(size):
    with pytest.raises(WireError, match=r"^header: [^\n]+$"):
        parse(PACKED, bytes(size), "header")


def test_memory_views_parse():
    assert parse(Struct("a" / Int16ul), memoryview(b"\x01\x02"), "two bytes").a == 0x0201


def test_padded_text():
    assert text(b"LIO-ORG ") == "LIO-ORG"
    assert text(b"16.a\0\0\0\0") == "16.a"
    assert text(b"\xff ok") == "\ufffd ok"
