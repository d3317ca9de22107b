# SPDX-License-Identifier: MIT
"""SRP IUs: what their fields promise and what of it is believed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vscsi.wire import srp
from vscsi.wire.errors import WireError

ENTRY = {"address": 0x1000, "handle": 7, "length": 512}
TABLE = {
    "table": {"address": 0, "handle": 7, "length": 32},
    "total_length": 1024,
    "descriptors": [ENTRY, ENTRY],
}


def test_formats_counts_and_lengths_follow_from_the_data():
    data = srp.build_iu(
        srp.IuType.CMD,
        tag=5,
        data_out=TABLE,
        data_in=ENTRY,
        **srp.cdb_fields(bytes(range(1, 33))),
    )
    assert len(data) == 48 + 16 + 20 + 2 * 16 + 16
    assert data[5:8] == bytes((0x21, 2, 0))
    cmd = srp.parse_iu(data)
    assert (cmd.data_out, cmd.data_in) == (TABLE, ENTRY)
    assert srp.cdb_of(cmd) == bytes(range(1, 33))


def test_a_short_cdb_is_padded():
    cmd = srp.parse_iu(srp.build_iu(srp.IuType.CMD, **srp.cdb_fields(b"\x12\0\0\0\x24\0")))
    assert srp.cdb_of(cmd) == b"\x12\0\0\0\x24".ljust(16, b"\0")


def test_immediate_data_stay_behind_the_descriptors():
    data = srp.build_iu(srp.IuType.CMD, data_out={"length": 4}, trailing=b"\0\0\0\0data")
    cmd = srp.parse_iu(data)
    assert cmd.data_out_format == srp.BufferFormat.IMMEDIATE
    assert cmd.data_out.length == 4
    assert cmd.trailing == b"\0\0\0\0data"


def test_the_reserved_bits_of_the_additional_length_are_no_length():
    data = bytearray(srp.build_iu(srp.IuType.CMD))
    data[31] = 3
    cmd = srp.parse_iu(bytes(data))
    assert cmd.additional_cdb == b""
    assert srp.build_iu(cmd.type, **cmd) == data


@pytest.mark.parametrize("formats", [0x40, 0x04, 0x03, 0xF0])
def test_reserved_buffer_formats_are_refused(formats):
    data = bytearray(srp.build_iu(srp.IuType.CMD)) + bytes(64)
    data[5] = formats
    with pytest.raises(WireError, match="SRP CMD"):
        srp.parse_iu(bytes(data))


def test_a_count_beyond_the_iu_is_refused():
    data = bytearray(srp.build_iu(srp.IuType.CMD, data_out=TABLE))
    data[6] = 3
    with pytest.raises(WireError, match="SRP CMD"):
        srp.parse_iu(bytes(data))


def test_a_sense_length_beyond_the_iu_is_refused():
    fields = {"flags": srp.RspFlags.SNSVALID, "status": 2, "sense_data": bytes(18)}
    data = srp.build_iu(srp.IuType.RSP, **fields)
    with pytest.raises(WireError, match="SRP RSP"):
        srp.parse_iu(data[:-1])


def test_lengths_without_their_flag_are_not_believed():
    data = bytearray(srp.build_iu(srp.IuType.RSP))
    data[28:36] = b"\xff" * 8
    answer = srp.parse_iu(bytes(data))
    assert (answer.sense_data, answer.response_data) == (b"", b"")
    assert srp.build_iu(answer.type, **answer) == data


def test_response_data_come_before_sense_data():
    flags = srp.RspFlags.RSPVALID | srp.RspFlags.SNSVALID
    data = srp.build_iu(
        srp.IuType.RSP, flags=flags, response_data=b"\0\0\0\x02", sense_data=b"sense"
    )
    assert data[36:] == b"\0\0\0\x02sense"
    assert srp.rsp_code(srp.parse_iu(data)) == srp.RspCode.REQUEST_FIELDS_INVALID


@pytest.mark.parametrize("kind", srp.IuType)
def test_every_truncation_is_refused(kind):
    data = srp.build_iu(kind)
    assert srp.parse_iu(data).type is kind
    for length in range(len(data)):
        with pytest.raises(WireError):
            srp.parse_iu(data[:length])


@pytest.mark.parametrize("kind", set(range(256)) - set(srp.IuType))
def test_unknown_types_are_refused(kind):
    with pytest.raises(WireError, match="unknown type"):
        srp.parse_iu(bytes((kind,)).ljust(64, b"\0"))


def test_values_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="tag"):
        srp.build_iu(srp.IuType.CMD, tag=1 << 64)
    with pytest.raises(ValueError, match="lun"):
        srp.build_iu(srp.IuType.CMD, lun=bytes(7))
    with pytest.raises(ValueError, match="data_in"):
        srp.build_iu(srp.IuType.CMD, data_in={**ENTRY, "length": 1 << 32})


ENTRIES = st.fixed_dictionaries(
    {
        "address": st.integers(0, (1 << 64) - 1),
        "handle": st.integers(0, (1 << 32) - 1),
        "length": st.integers(0, (1 << 32) - 1),
    }
)
AREAS = (
    st.none()
    | ENTRIES
    | st.fixed_dictionaries(
        {
            "table": ENTRIES,
            "total_length": st.integers(0, (1 << 32) - 1),
            "descriptors": st.lists(ENTRIES, max_size=8),
        }
    )
)


@given(
    AREAS,
    AREAS,
    st.integers(0, (1 << 64) - 1),
    st.binary(min_size=1, max_size=63).map(lambda extra: extra * 4),
    st.binary(min_size=8, max_size=8),
)
def test_commands_come_back_as_they_were(data_out, data_in, tag, additional, lun):
    fields = {"tag": tag, "additional_cdb": additional, "lun": lun}
    cmd = srp.parse_iu(srp.build_iu(srp.IuType.CMD, data_out=data_out, data_in=data_in, **fields))
    assert (cmd.data_out, cmd.data_in) == (data_out, data_in)
    assert {name: cmd[name] for name in fields} == fields
