# SPDX-License-Identifier: MIT
"""Where the packet blocks of a piece of a capture begin, found all at once."""

import numpy as np

from vscsi.capture.sources.ours.layout import Array, Ints
from vscsi.wire.pcapng import MAX_BLOCK, MIN_BLOCK, BlockType

_WORD = np.dtype("<u4")


def packets(data: bytes) -> tuple[Ints, int]:
    """Return the offsets of the whole packet blocks that `data` begins with, and their end.

    `data` begins with a block of a little-endian section. A block is whole words and says its
    length at both ends; where one does not, the packets end.
    """
    words: Array = np.frombuffer(data, _WORD, len(data) // _WORD.itemsize)
    at = np.flatnonzero(words[:-1] == BlockType.ENHANCED_PACKET)
    length = words[at + 1].astype(np.int64)
    after = at + length // _WORD.itemsize
    fine = (length >= MIN_BLOCK) & (length <= MAX_BLOCK) & (length % _WORD.itemsize == 0)
    fine &= after <= len(words)
    at, after, length = at[fine], after[fine], length[fine]
    fine = words[after - 1] == length
    at, after = at[fine], after[fine]
    if not len(at) or at[0] != 0:
        return at[:0], 0
    apart = np.flatnonzero(at[1:] != after[:-1])
    if len(apart):
        at, after = _followed(at, after)
    return at * _WORD.itemsize, int(after[-1]) * _WORD.itemsize


def _followed(at: Ints, after: Ints) -> tuple[Ints, Ints]:
    """Leave out what looks like a block inside of one, and what is behind the first gap."""
    following = np.searchsorted(at, after)
    following[np.append(at, -1)[following] != after] = -1
    to, each, chain = following.tolist(), 0, []
    while each >= 0:
        chain.append(each)
        each = to[each]
    return at[chain], after[chain]
