# SPDX-License-Identifier: MIT
"""vscsiif messages beyond the golden vectors: short values, presets, refusals."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vscsi.wire import vscsiif
from vscsi.wire.errors import WireError

SEGMENT = {"gref": 8, "offset": 512, "length": 1024}


def test_short_values_are_padded_and_counted():
    slot = vscsiif.build_request(rqid=3, cdb=b"\x12\0\0\0\x24\0", segments=[SEGMENT], direction=2)
    assert len(slot) == vscsiif.SLOT_SIZE
    request = vscsiif.parse_request(slot)
    assert (request.act, request.cmd_len, request.nr_segments) == (vscsiif.Act.CDB, 6, 1)
    assert vscsiif.cdb_of(request) == b"\x12\0\0\0\x24\0"
    assert vscsiif.segments_of(request) == ([SEGMENT], False)


def test_granted_descriptors():
    slot = vscsiif.build_request(segments=[SEGMENT], nr_segments=vscsiif.SG_GRANT | 1)
    assert vscsiif.segments_of(vscsiif.parse_request(slot)) == ([SEGMENT], True)
    memory = vscsiif.build_segments([SEGMENT] * 63)
    assert len(memory) == 504
    assert vscsiif.parse_segments(memory) == [SEGMENT] * 63
    with pytest.raises(WireError, match="too many"):
        vscsiif.parse_segments(memory[:-4])


def test_preset():
    slot = vscsiif.build_request(act=vscsiif.Act.SG_PRESET, rqid=1, segments=[SEGMENT] * 31)
    assert len(slot) == vscsiif.SLOT_SIZE
    assert slot[3] == 31
    request = vscsiif.parse_request(slot)
    assert vscsiif.segments_of(request) == ([SEGMENT] * 31, False)
    assert vscsiif.build_request(**request) == slot


@pytest.mark.parametrize("count", [27, 0x7F, 0x80 | 27, 0xFF])
def test_more_segments_than_there_are(count):
    request = vscsiif.parse_request(vscsiif.build_request(nr_segments=count))
    with pytest.raises(WireError, match="nr_segments"):
        vscsiif.segments_of(request)


def test_a_cdb_longer_than_its_field():
    request = vscsiif.parse_request(vscsiif.build_request(cmd_len=17))
    with pytest.raises(WireError, match="cmd_len"):
        vscsiif.cdb_of(request)
    with pytest.raises(ValueError, match="cdb"):
        vscsiif.build_request(cdb=bytes(17))


def test_response():
    slot = vscsiif.build_response(rqid=5, rslt=vscsiif.pack_rslt(2), sense_buffer=b"\x70\0\x05")
    response = vscsiif.parse_response(slot)
    assert (response.sense_len, response.sense_buffer[:4]) == (3, b"\x70\0\x05\0")
    assert vscsiif.parse_response(slot[:108]) == response
    with pytest.raises(ValueError, match="sense_buffer"):
        vscsiif.build_response(sense_buffer=bytes(97))


@given(st.integers(0, 255), st.sampled_from(vscsiif.Host))
def test_rslt(status, host):
    assert vscsiif.unpack_rslt(vscsiif.pack_rslt(status, host)) == (status, host)


@pytest.mark.parametrize("size", [0, 107, 109, 251, 253])
def test_slots_of_another_size_are_refused(size):
    with pytest.raises(WireError):
        vscsiif.parse_request(bytes(size))
    with pytest.raises(WireError):
        vscsiif.parse_response(bytes(size))
