# SPDX-License-Identifier: MIT
"""The packets of a piece are those that a walk from block to block finds."""

import struct

from hypothesis import given
from hypothesis import strategies as st

from vscsi.capture.sources.ours.blocks import packets
from vscsi.wire.pcapng import MAX_BLOCK

WORDS = st.sampled_from([6, 6, 6, 12, 16, 20, 24, 0, 13, 1 << 31, 0xFFFFFFFF])
"""Of which blocks are made, and what looks like blocks inside of them."""
BLOCKS = st.builds(
    lambda words: [6, 4 * len(words) + 12, *words, 4 * len(words) + 12],
    st.lists(WORDS, max_size=7),
)
PIECES = st.lists(st.one_of(BLOCKS, BLOCKS, BLOCKS, st.lists(WORDS, max_size=3)), max_size=9)


def walked(data):
    """Return the same by going from block to block."""
    starts, at = [], 0
    while at + 12 <= len(data):
        kind, length = struct.unpack_from("<II", data, at)
        if kind != 6 or length < 12 or length > MAX_BLOCK or length % 4 or at + length > len(data):
            break
        if struct.unpack_from("<I", data, at + length - 4)[0] != length:
            break
        starts.append(at)
        at += length
    return starts, at


@given(PIECES, st.integers(0, 7))
def test_packets_are_those_that_a_walk_finds(pieces, cut):
    words = [word for piece in pieces for word in piece]
    data = struct.pack(f"<{len(words)}I", *words)
    data = data[: max(0, len(data) - cut)]
    starts, end = packets(data)
    assert (starts.tolist(), end) == walked(data)


def test_a_block_that_is_too_long_ends_the_packets():
    block = struct.pack("<II", 6, MAX_BLOCK + 4) + bytes(MAX_BLOCK - 8)
    data = block + struct.pack("<I", MAX_BLOCK + 4)
    assert packets(data)[1] == 0
