# SPDX-License-Identifier: MIT
"""What is known of a disk's content, against a model that keeps every block."""

from hypothesis import given
from hypothesis import strategies as st

from vscsi.capture.replay.pattern import pattern
from vscsi.capture.replay.translate import Effect, Wanted
from vscsi.capture.replay.verify import Content
from vscsi.target.base import Attribute

BLOCK = 512
SIZE = 64


def wanted(effect, lba, blocks, data=b""):
    return Wanted(b"", data, 0, Attribute.SIMPLE, effect, lba, blocks)


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from((Effect.PATTERN, Effect.WRITE, Effect.CHANGE, Effect.READ)),
        st.integers(0, SIZE - 8),
        st.integers(1, 8),
        st.booleans(),
    ),
    max_size=40,
)


@given(OPERATIONS, st.integers(0, 5), st.randoms(use_true_random=False))
def test_an_honest_disk_is_never_accused(operations, depth, random):
    """Commands that are in flight together take effect in any order, when they end at the latest.

    What is captured of a read is what a second disk, on which they took another order, gave.
    """
    content = Content(BLOCK)
    disk, other = bytearray(SIZE * BLOCK), bytearray(SIZE * BLOCK)
    in_flight = []

    def end(entry):
        effect, lba, blocks, access, good = entry
        span = slice(lba * BLOCK, (lba + blocks) * BLOCK)
        if effect is Effect.READ:
            captured = bytes(other[span])
            # Where a pattern was written the capture's own data were others.
            assert content.differs(access, bytes(disk[span]), b"") is None
            same = bytes(disk[span]) == captured
            assert same or content.differs(access, bytes(disk[span]), captured[:0]) is None
        elif good:
            data = {
                Effect.PATTERN: pattern(lba, blocks, BLOCK),
                Effect.WRITE: bytes([lba + 1]) * blocks * BLOCK,
                Effect.CHANGE: bytes(blocks * BLOCK),
            }[effect]
            disk[span] = other[span] = data
        content.ended(access, good)

    for effect, lba, blocks, good in operations:
        access = content.sent(wanted(effect, lba, blocks))
        in_flight.append((effect, lba, blocks, access, good))
        while len(in_flight) > depth:
            end(in_flight.pop(random.randrange(len(in_flight))))
    while in_flight:
        end(in_flight.pop(random.randrange(len(in_flight))))


def written(content, lba, blocks):
    content.ended(content.sent(wanted(Effect.PATTERN, lba, blocks)), True)


@given(st.integers(0, 8 * BLOCK - 1), st.integers(1, 255))
def test_any_wrong_byte_is_found(at, wrong):
    content = Content(BLOCK)
    written(content, 4, 8)
    data = bytearray(pattern(4, 8, BLOCK))
    read = content.sent(wanted(Effect.READ, 4, 8))
    assert content.differs(read, bytes(data), b"") is None
    data[at] ^= wrong
    assert content.differs(read, bytes(data), b"") == at
    assert content.checked == 2 * 8 * BLOCK


def test_what_the_capture_has_counts_where_no_pattern_was_written():
    content = Content(BLOCK)
    written(content, 1, 1)
    read = content.sent(wanted(Effect.READ, 0, 3))
    data = b"a" * BLOCK + pattern(1, 1, BLOCK) + b"c" * BLOCK
    captured = b"a" * BLOCK + b"b" * BLOCK + b"c" * 10
    assert content.differs(read, data, captured) is None
    assert content.unchecked == BLOCK - 10
    assert content.differs(read, data, captured[:-1] + b"x") == 2 * BLOCK + 9


def test_what_changes_meanwhile_is_not_judged():
    content = Content(BLOCK)
    written(content, 0, 8)
    read = content.sent(wanted(Effect.READ, 0, 8))
    unmap = content.sent(wanted(Effect.CHANGE, 7, 1))
    assert content.differs(read, bytes(8 * BLOCK), b"") is None
    content.ended(unmap, True)
    content.ended(read, True)
    again = content.sent(wanted(Effect.READ, 0, 7))
    assert content.differs(again, bytes(7 * BLOCK), b"") == 0
    anything = content.sent(wanted(Effect.CHANGE, 0, 0))
    content.ended(anything, True)
    last = content.sent(wanted(Effect.READ, 0, 7))
    assert content.differs(last, bytes(7 * BLOCK), b"") is None
