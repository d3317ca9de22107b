# SPDX-License-Identifier: MIT
"""blkif messages beyond the golden vectors: padding, extensions, refusals."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vscsi.wire import blkif
from vscsi.wire.errors import WireError

LAYOUTS = st.sampled_from(list(blkif.LAYOUTS.values()))
SEGMENTS = st.lists(
    st.fixed_dictionaries(
        {
            "gref": st.integers(0, (1 << 32) - 1),
            "first_sect": st.integers(0, 7),
            "last_sect": st.integers(0, 7),
        }
    ),
    max_size=blkif.SEGMENTS,
)


@given(LAYOUTS, st.integers(0, 3), SEGMENTS, st.integers(0, (1 << 64) - 1))
def test_requests_come_back_as_they_were(layout, operation, segments, number):
    slot = layout.build_request(operation, id=number, sector_number=number, segments=segments)
    assert len(slot) == layout.slot_size
    request = layout.parse_request(slot)
    assert (request.operation, request.id, request.sector_number) == (operation, number, number)
    assert request.nr_segments == len(segments)
    ours = [
        {name: found[name] for name in given}
        for found, given in zip(request.segments, segments, strict=True)
    ]
    assert ours == segments


@given(LAYOUTS, st.integers(7, 255), st.integers(0, (1 << 64) - 1))
def test_an_unknown_operation_has_an_id_to_answer(layout, operation, number):
    slot = layout.build_request(operation, id=number)
    assert layout.parse_request(slot).id == number


def test_the_id_alone_tells_the_layouts_apart():
    """What a frontend relies on that finds out its backend's layout."""
    slot = blkif.X86_64.build_request(blkif.Operation.FLUSH_DISKCACHE, id=0x1122334455667788)
    wrong = blkif.X86_32.parse_request(slot[:108])
    assert wrong.id == 0x5566778800000000


def test_more_segments_than_a_request_holds():
    slot = bytearray(blkif.X86_64.build_request(blkif.Operation.READ))
    slot[1] = 255
    request = blkif.X86_64.parse_request(bytes(slot))
    assert request.nr_segments == 255
    assert len(request.segments) == blkif.SEGMENTS


@pytest.mark.parametrize(
    ("segments", "slots"), [(0, 1), (11, 1), (12, 2), (25, 2), (26, 3), (255, 19)]
)
def test_slots_with_segment_blocks(segments, slots):
    assert blkif.slots_of(segments) == slots


def test_segment_blocks():
    segments = [{"gref": i, "first_sect": 0, "last_sect": 7} for i in range(14)]
    slot = blkif.build_segments(segments)
    assert [found.gref for found in blkif.X86_64.parse_segment_block(slot)] == list(range(14))
    with pytest.raises(WireError, match="no segment blocks"):
        blkif.X86_32.parse_segment_block(slot[:108])


def test_indirect_pages_hold_512_segments():
    page = blkif.build_segments([{"gref": 1, "last_sect": 7}] * 512)
    assert len(page) == 4096
    assert len(blkif.parse_segments(page)) == blkif.SEGMENTS_PER_INDIRECT_PAGE
    with pytest.raises(WireError, match="too many"):
        blkif.parse_segments(page[:-1])


@pytest.mark.parametrize("layout", blkif.LAYOUTS.values())
@pytest.mark.parametrize("wrong", [-1, 1])
def test_slots_of_another_size_are_refused(layout, wrong):
    with pytest.raises(WireError, match="blkif slot of"):
        layout.parse_request(bytes(layout.slot_size + wrong))
    with pytest.raises(WireError):
        layout.parse_response(bytes(layout.slot_size + 1))
    with pytest.raises(WireError):
        layout.parse_response(bytes(11))


def test_more_than_fits_is_refused():
    with pytest.raises(ValueError, match="segments"):
        blkif.X86_64.build_request(blkif.Operation.READ, segments=[{"gref": 1}] * 12)
    with pytest.raises(ValueError, match="indirect_grefs"):
        blkif.X86_64.build_request(blkif.Operation.INDIRECT, indirect_grefs=[1] * 9)
    with pytest.raises(ValueError, match="bytes"):
        blkif.X86_64.build_request(blkif.Operation.DISCARD, trailing=bytes(200))
