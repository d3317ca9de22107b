# SPDX-License-Identifier: MIT
"""The quick way through a format of few shapes leads where construct's own way does."""

import pytest
from construct import ConstructError
from hypothesis import given
from hypothesis import strategies as st

from vscsi.wire import srp
from vscsi.wire.errors import WireError
from vscsi.wire.formats import build, parse
from vscsi.wire.shaped import SHAPES

FORMS = {srp.IuType.CMD: srp.Cmd, srp.IuType.RSP: srp.Rsp}
DIRECT = {"address": 1 << 40, "handle": 7, "length": 4096}
TABLE = {"table": DIRECT, "total_length": 4096, "descriptors": [DIRECT]}
ODD = st.sampled_from([-1, 1 << 64, "text", b"bytes", None, 0])

CMD_FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from([2, 3]),
        "sol_not": st.integers(0, 300) | ODD,
        "reserved1": st.binary(max_size=4) | ODD,
        "data_formats": st.integers(0, 255),
        "data_out_format": st.integers(0, 4),
        "data_in_count": st.integers(0, 2) | ODD,
        "tag": st.integers(0, (1 << 64) - 1) | ODD,
        "lun": st.binary(min_size=8, max_size=8) | ODD,
        "additional_cdb_length": st.integers(0, 12),
        "cdb": st.binary(min_size=16, max_size=16) | ODD,
        "additional_cdb": st.integers(0, 4).map(lambda count: b"additional"[: 2 * count]) | ODD,
        "data_out": st.sampled_from([None, DIRECT, TABLE, {"length": 3}, {"handle": -1}]) | ODD,
        "data_in": st.sampled_from([None, DIRECT, TABLE, {"length": 3}]) | ODD,
        "trailing": st.binary(max_size=3) | ODD,
    },
)
RSP_FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from([0xC1, 3]),
        "request_limit_delta": st.integers(-(1 << 31), 1 << 31) | ODD,
        "tag": st.integers(0, (1 << 64) - 1) | ODD,
        "flags": st.integers(0, 63) | st.sampled_from(list(srp.RspFlags)) | ODD,
        "status": st.integers(0, 256) | ODD,
        "data_in_residual": st.integers(0, 1 << 32) | ODD,
        "sense_data_length": st.integers(0, 6) | ODD,
        "sense_data": st.binary(max_size=6) | ODD,
        "response_data_length": st.integers(0, 4),
        "response_data": st.binary(max_size=4) | ODD,
        "trailing": st.binary(max_size=3) | ODD,
    },
)


def by_construct(action, *arguments):
    """Return what construct itself makes of it; None for what it refuses."""
    try:
        return action(*arguments)
    except (ConstructError, AttributeError, KeyError, TypeError, ValueError):
        return None


def with_shape(head: bytes) -> st.SearchStrategy[bytes]:
    """Bytes that begin like a message, with what decides its shape more often small than not."""
    small = st.sampled_from([0, 0, 0, 1, 2, 4, 8, 0x10, 0x11, 0x20, 0x30, 0xFF])
    return st.tuples(
        st.lists(small, min_size=47, max_size=47).map(bytes), st.binary(max_size=80)
    ).map(lambda parts: head + b"".join(parts))


@pytest.mark.parametrize("kind", FORMS)
def test_any_bytes_mean_the_same_both_ways(kind):
    form = FORMS[kind]

    @given(
        with_shape(bytes([kind])) | st.binary(max_size=120).map(lambda rest: bytes([kind]) + rest)
    )
    def check(data):
        expected = by_construct(form.parse, data)
        quick = form.quick_parse(data)
        if quick is not None:
            assert quick == expected
            assert list(quick) == [name for name in expected if name != "_io"]
        try:
            assert parse(form, memoryview(data), "unit") == expected
        except WireError:
            assert expected is None

    check()


@pytest.mark.parametrize(
    ("kind", "fields"), [(srp.IuType.CMD, CMD_FIELDS), (srp.IuType.RSP, RSP_FIELDS)]
)
def test_any_fields_build_the_same_both_ways(kind, fields):
    form = FORMS[kind]

    @given(fields)
    def check(given_fields):
        expected = by_construct(form.build, given_fields)
        quick = form.quick_build(given_fields)
        assert quick is None or quick == expected
        if expected is not None:
            assert build(form, given_fields) == expected

    check()


@pytest.mark.parametrize("data_in", [None, DIRECT])
@pytest.mark.parametrize("cdb_bytes", [6, 16, 32])
def test_commands_of_one_buffer_go_the_quick_way(data_in, cdb_bytes):
    fields = {"tag": 5, "lun": bytes(8), "data_in": data_in, **srp.cdb_fields(bytes(cdb_bytes))}
    data = srp.Cmd.quick_build(fields)
    assert data == srp.Cmd.build(fields)
    assert srp.Cmd.quick_parse(data + b"after it").trailing == b"after it"


def test_answers_go_the_quick_way_with_and_without_sense():
    for fields in (
        {"tag": 1, "request_limit_delta": -1},
        {"tag": 1, "flags": srp.RspFlags.SNSVALID, "status": 2, "sense_data": bytes(18)},
    ):
        data = srp.Rsp.quick_build(fields)
        assert data == srp.Rsp.build(fields)
        assert srp.Rsp.quick_parse(data).sense_data == fields.get("sense_data", b"")


def test_a_peer_of_many_shapes_takes_no_memory():
    for count in range(4 * SHAPES):
        data = srp.build_iu(srp.IuType.RSP, flags=2, sense_data=bytes(count))
        assert len(srp.parse_iu(data).sense_data) == count
    assert srp.Rsp._shape.cache_info().currsize <= SHAPES
