# SPDX-License-Identifier: MIT
"""The content that is made up, and the set of blocks that hold it."""

from hypothesis import given
from hypothesis import strategies as st

from vscsi.capture.replay.pattern import PAGE_BLOCKS, Marks, pattern

LBAS = st.integers(0, 3 * PAGE_BLOCKS)
RANGES = st.tuples(LBAS, st.integers(0, 2 * PAGE_BLOCKS))


@given(st.integers(0, (1 << 64) - 100), st.integers(1, 16), st.sampled_from((512, 520, 4096)))
def test_a_block_has_the_same_content_whatever_it_is_written_with(lba, blocks, size):
    whole = pattern(lba, blocks, size)
    assert len(whole) == blocks * size
    for at in range(blocks):
        assert whole[at * size : (at + 1) * size] == pattern(lba + at, 1, size)


@given(st.sets(st.integers(0, (1 << 64) - 1), min_size=2, max_size=50))
def test_no_two_blocks_have_the_same_and_none_is_zeros(lbas):
    contents = {pattern(lba, 1, 512) for lba in lbas}
    assert len(contents) == len(lbas)
    assert bytes(512) not in contents


@given(st.lists(st.tuples(st.booleans(), RANGES), max_size=20), RANGES)
def test_marks_are_a_set(changes, looked_at):
    marks, model = Marks(), set()
    for add, (lba, blocks) in changes:
        if add:
            marks.add(lba, blocks)
            model |= set(range(lba, lba + blocks))
        else:
            marks.remove(lba, blocks)
            model -= set(range(lba, lba + blocks))
    lba, blocks = looked_at
    assert marks.within(lba, blocks).tolist() == [lba + at in model for at in range(blocks)]


def test_marks_are_bounded_and_what_is_too_much_is_not_in_them():
    marks = Marks(max_pages=2)
    marks.add(0, 5 * PAGE_BLOCKS)
    assert marks.within(0, 5 * PAGE_BLOCKS).sum() == 2 * PAGE_BLOCKS
    marks.remove(PAGE_BLOCKS // 2, 1 << 62)
    assert marks.within(0, PAGE_BLOCKS).sum() == PAGE_BLOCKS // 2
    marks.clear()
    assert not marks.within(0, PAGE_BLOCKS).any()
