# SPDX-License-Identifier: MIT
"""Slots of the SRP ring, and the MADs and records of our own."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vscsi.wire import mad, record, srp_ring
from vscsi.wire.errors import WireError


def test_the_header_is_one_cache_line_a_side():
    offsets, at = {}, 0
    for field in srp_ring.RingHeader.subcons:
        offsets[field.name] = at
        at += field.sizeof()
    assert (offsets["producer"], offsets["consumer"], offsets["event"], at) == (0, 64, 68, 128)


def test_a_slot_holds_one_unit():
    slot = srp_ring.build_slot(srp_ring.SlotFormat.MAD, b"unit")
    assert slot == b"\x02\0\x04\0unit"
    assert srp_ring.parse_slot(slot + b"stale") == (srp_ring.SlotFormat.MAD, b"unit")


@pytest.mark.parametrize("slot", [b"", b"\x01\0\x01", b"\x01\0\x05\0unit", b"\x03\0\x04\0unit"])
def test_broken_slots_are_refused(slot):
    with pytest.raises(WireError, match="slot header"):
        srp_ring.parse_slot(slot)


def test_a_unit_that_no_length_field_can_hold():
    with pytest.raises(ValueError, match="65535"):
        srp_ring.build_slot(srp_ring.SlotFormat.SRP, bytes(1 << 16))


def test_register_region():
    data = mad.build_mad(
        mad.MadType.REGISTER_REGION,
        tag=1,
        handle=9,
        flags=mad.RegionFlags.READ_ONLY,
        pages=1025,
        directory=[100, 101],
    )
    assert data.hex() == (
        "56530001" "0000" "0000" "0000000000000001" "00000009" "0001" "0002" "00000401"
        "00000064" "00000065"
    )  # fmt: skip
    message = mad.parse_mad(data)
    assert list(message.directory) == [100, 101]
    with pytest.raises(WireError, match="MAD 0x56530001"):
        mad.parse_mad(data[:-1])


def test_as_many_directory_pages_as_a_slot_takes():
    data = mad.build_mad(mad.MadType.REGISTER_REGION, directory=range(24))
    assert len(srp_ring.build_slot(srp_ring.SlotFormat.MAD, data)) == srp_ring.SLOT_SIZE


def test_directory_pages_hold_little_endian_references():
    pages = mad.build_directory(range(1, 1026))
    assert [len(page) for page in pages] == [4096, 4096]
    assert pages[0][:8] == b"\x01\0\0\0\x02\0\0\0"
    assert mad.parse_directory(pages[1]) == [1025] + [0] * 1023


def test_a_mad_of_unknown_type_can_be_answered():
    message = mad.parse_mad(bytes.fromhex("0000007700000010") + b"\x01" * 20)
    assert (message.type, message.tag) == (0x77, 0x0101010101010101)
    answer = mad.build_mad(message.type, **{**message, "status": mad.MadStatus.NOT_SUPPORTED})
    assert answer == bytes.fromhex("0000007700f10010") + b"\x01" * 20


def test_capabilities_without_the_reserve_capability():
    whole = bytes.fromhex("00000003") + bytes(64) + bytes.fromhex("00000001000c000000000000")
    data = mad.CapabilitiesData.parse(whole)
    assert (data.flags, data.migration.type, data.reserve) == (3, 1, None)
    assert mad.CapabilitiesData.parse(whole + bytes(12)).reserve.reserve_type == 0


def test_record_layout():
    data = record.build_record(
        protocol=record.Protocol.BLKIF,
        direction=record.Way.TO_INITIATOR,
        layout=record.LayoutCode.X86_32,
        domain=0x0102,
        device=0x0304,
        queue=0x0506,
        in_flight=0x0708,
        ring_index=0x090A0B0C,
        data_length=0x0D0E0F10,
        payload_kind=record.PayloadKind.HEAD,
        message=b"abc",
        segments=b"rest",
        payload=b"data",
    )
    assert data.hex() == "02030102" "0201" "0403" "0605" "0807" "0c0b0a09" "0300" "0400" + (
        "100f0e0d" "01000000" + b"abcrestdata".hex()
    )  # fmt: skip
    parsed = record.parse_record(data)
    assert (parsed.message, parsed.segments, parsed.payload) == (b"abc", b"rest", b"data")


def test_records_that_are_refused():
    data = record.build_record(protocol=1, message=b"abc")
    with pytest.raises(WireError, match="capture record"):
        record.parse_record(b"\x01" + data[1:])
    with pytest.raises(WireError, match="capture record"):
        record.parse_record(data[:-1])


@given(st.binary(max_size=300), st.binary(max_size=64), st.binary(max_size=64))
def test_records_come_back_as_they_were(message, segments, payload):
    data = record.build_record(protocol=1, message=message, segments=segments, payload=payload)
    parsed = record.parse_record(data)
    assert (parsed.message, parsed.segments, parsed.payload) == (message, segments, payload)
