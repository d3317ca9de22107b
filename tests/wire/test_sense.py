# SPDX-License-Identifier: MIT
"""Sense data in both formats, against what kernels and tshark make of them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vscsi.wire import asc
from vscsi.wire.sense import Sense, SenseKey, parse_sense

# What LIO and scsi_debug of Linux 6.1 answered, and to what.
KERNEL = {
    "700005000000000a00000000210000000000": Sense(5, *asc.LBA_OUT_OF_RANGE),
    "f0000e0000004d0a000000001d0000000000": Sense(
        SenseKey.MISCOMPARE, *asc.MISCOMPARE_DURING_VERIFY, information=77
    ),
    "700005000000000a00000000240000c00002": Sense(5, *asc.INVALID_FIELD_IN_CDB, field_pointer=2),
    "700005000000000a00000000240000cc0001": Sense(
        5, *asc.INVALID_FIELD_IN_CDB, field_pointer=1, bit_pointer=4
    ),
    "700005000000000a000000002600008d0004": Sense(
        5, *asc.INVALID_FIELD_IN_PARAM_LIST, field_pointer=4, bit_pointer=5, in_cdb=False
    ),
    "700002000000000a00000000040200000000": Sense(SenseKey.NOT_READY, *asc.INIT_CMD_REQUIRED),
}


@pytest.mark.parametrize("data", KERNEL)
def test_fixed_format_is_what_kernels_send(data):
    assert parse_sense(bytes.fromhex(data)) == KERNEL[data]
    assert KERNEL[data].build().hex() == data


def test_tshark_decodes_the_same(tshark):
    for data, expected in tshark["sense"].items():
        found = parse_sense(bytes.fromhex(data))
        assert (found.key, found.asc, found.ascq) == (
            expected["key"],
            expected["asc"],
            expected["ascq"],
        )


def test_descriptor_format():
    value = Sense(5, 0x24, 0, field_pointer=2, bit_pointer=3, information=1 << 40)
    data = value.build(descriptor=True)
    assert data.hex() == "7205240000000014" + "000a80000000010000000000" + "02060000cb000200"
    assert parse_sense(data) == value


def test_a_value_of_more_than_32_bits_takes_descriptor_format():
    assert Sense(3, 0x11, 0, information=0xFFFFFFFF).build()[0] == 0xF0
    assert Sense(3, 0x11, 0, information=1 << 32).build()[0] == 0x72
    assert Sense(0xE, 0x1D, 0, deferred=True, command_specific=1 << 32).build()[0] == 0x73


SENSES = st.builds(
    Sense,
    key=st.sampled_from(sorted({*SenseKey} - {5})),
    asc=st.integers(0, 255),
    ascq=st.integers(0, 255),
    information=st.none() | st.integers(0, 0xFFFFFFFF),
    command_specific=st.none() | st.integers(1, 0xFFFFFFFF),
    filemark=st.booleans(),
    eom=st.booleans(),
    ili=st.booleans(),
    deferred=st.booleans(),
) | st.one_of(
    st.builds(
        Sense,
        key=st.just(5),
        asc=st.integers(0, 255),
        ascq=st.integers(0, 255),
        field_pointer=st.integers(0, 0xFFFF),
        in_cdb=st.booleans(),
        bit_pointer=st.none() | st.integers(0, 7),
    ),
    st.builds(
        Sense, key=st.just(2), asc=st.just(4), ascq=st.just(4), progress=st.integers(0, 0xFFFF)
    ),
)


@given(SENSES, st.booleans())
def test_what_is_built_parses_to_the_same(value, descriptor):
    data = value.build(descriptor=descriptor)
    assert parse_sense(data) == value
    assert value.describe()


@given(st.binary(max_size=64) | st.tuples(st.sampled_from(range(0x70, 0x74)), st.binary()))
def test_any_bytes_are_sense_or_nothing(data):
    whole = data if isinstance(data, bytes) else bytes((data[0],)) + data[1]
    found = parse_sense(whole)
    assert found is None or found.describe()


def test_truncated_sense_says_what_is_left_of_it():
    full = Sense(6, *asc.POWER_ON).build()
    assert parse_sense(full[:14]) == Sense(6, *asc.POWER_ON)
    assert parse_sense(full[:8]) == Sense(6, 0, 0)
    assert parse_sense(b"") is None
    assert parse_sense(bytes(18)) is None


def test_bytes_beyond_the_additional_length_do_not_count():
    data = bytearray(Sense(5, 0x24, 0, field_pointer=2).build())
    data[7] = 6
    assert parse_sense(bytes(data)) == Sense(5, 0x24, 0)


@pytest.mark.parametrize(
    ("value", "line"),
    [
        (
            Sense(5, 0x24, 0, field_pointer=2, bit_pointer=3),
            "ILLEGAL REQUEST, INVALID FIELD IN CDB (5/24/00), CDB byte 2 bit 3",
        ),
        (
            Sense(2, 4, 4, progress=0x8000),
            "NOT READY, LOGICAL UNIT NOT READY, FORMAT IN PROGRESS (2/04/04), 50 % done",
        ),
        (
            Sense(0, 0, 1, filemark=True, information=7),
            "NO SENSE, FILEMARK DETECTED (0/00/01), information 7, filemark",
        ),
        (Sense(0xC, 0x99, 0), "SENSE KEY CH, VENDOR SPECIFIC (c/99/00)"),
    ],
)
def test_describe(value, line):
    assert value.describe() == line


@given(st.integers(0, 255), st.integers(0, 255))
def test_every_additional_sense_code_has_some_text(code, qualifier):
    assert asc.text(code, qualifier)


def test_texts_of_code_ranges():
    assert asc.text(0x40, 0x85) == "DIAGNOSTIC FAILURE ON COMPONENT 85H"
    assert asc.text(0x4D, 3) == "TAGGED OVERLAPPED COMMANDS (TASK TAG 03H)"
    assert asc.text(0x24, 0x70) == "INVALID FIELD IN CDB (QUALIFIER 70H)"


def test_values_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="65535"):
        Sense(5, 0x24, 0, field_pointer=1 << 16).build()
