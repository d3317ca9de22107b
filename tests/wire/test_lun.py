# SPDX-License-Identifier: MIT
"""LUNs in all four address methods."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vscsi.wire import lun
from vscsi.wire.errors import WireError


def padded(text):
    return bytes.fromhex(text).ljust(8, b"\0")


@pytest.mark.parametrize(
    ("number", "encoded"),
    [
        (0, "0000"),
        (5, "0005"),
        (255, "00ff"),
        (256, "4100"),
        (16383, "7fff"),
        (16384, "d2004000"),
        (0xFFFFFF, "d2ffffff"),
    ],
)
def test_encode(number, encoded):
    assert lun.encode(number) == padded(encoded)
    assert lun.logical_unit_number(padded(encoded)) == number


@pytest.mark.parametrize("number", [-1, 1 << 24])
def test_numbers_out_of_range(number):
    with pytest.raises(ValueError, match="logical unit number"):
        lun.encode(number)


@pytest.mark.parametrize(
    ("encoded", "number"),
    [
        ("0005", 5),  # peripheral
        ("4005", 5),  # flat form of a small number: the same logical unit
        ("8005", 5),  # logical unit method, target 0 on bus 0, as ibmvscsi sends it
        ("d2000005", 5),  # extended flat
        ("8105", None),  # target 1
        ("8025", None),  # bus 1
        ("0105", None),  # peripheral of bus 1: LUN 256 packed without method bits
        ("00050001", None),  # two levels
        ("c101", None),  # well known
    ],
)
def test_which_logical_unit_a_lun_names(encoded, number):
    assert lun.logical_unit_number(padded(encoded)) == number


@pytest.mark.parametrize(
    ("encoded", "expected"),
    [
        ("0005", lun.Lun(lun.Method.PERIPHERAL, 5, levels=(0, 0, 0))),
        ("0307", lun.Lun(lun.Method.PERIPHERAL, 7, bus=3, levels=(0, 0, 0))),
        ("4123", lun.Lun(lun.Method.FLAT, 0x123, levels=(0, 0, 0))),
        # 0x8000 | target 2 << 8 | bus 1 << 5 | LUN 3
        ("8223", lun.Lun(lun.Method.LOGICAL_UNIT, 3, bus=1, target=2, levels=(0, 0, 0))),
        ("00010002", lun.Lun(lun.Method.PERIPHERAL, 1, levels=(2, 0, 0))),
        (
            "d2123456",
            lun.Lun(lun.Method.EXTENDED, 0x123456, extended_method=2, levels=(0, 0)),
        ),
    ],
)
def test_decode(encoded, expected):
    assert lun.decode(padded(encoded)) == expected


@pytest.mark.parametrize(
    ("address", "number"),
    [(lun.REPORT_LUNS_WLUN, 1), (lun.ACCESS_CONTROLS_WLUN, 2), (lun.TARGET_LOG_PAGES_WLUN, 3)],
)
def test_well_known_logical_units(address, number, constants):
    assert lun.decode(address).wlun == number
    assert address.hex() in constants["scsi"]["wlun"].values()


@given(st.integers(0, (1 << 24) - 1))
def test_every_number_comes_back(number):
    assert lun.logical_unit_number(lun.encode(number)) == number


@given(st.binary(min_size=8, max_size=8))
def test_any_eight_bytes_decode(data):
    number = lun.logical_unit_number(data)
    assert lun.decode(data).single_level or number is None


@given(st.binary(max_size=16).filter(lambda data: len(data) != 8))
def test_other_lengths_are_refused(data):
    with pytest.raises(WireError):
        lun.decode(data)
