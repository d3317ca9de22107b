# SPDX-License-Identifier: MIT
"""Requests and answers of many messages joined at once, as `vscsi.capture.exchange` joins them."""

import numpy as np
import numpy.typing as npt

from vscsi.capture.sources.ours.layout import Bools, Ints


def pair(channels: Ints, tags: npt.NDArray[np.uint64], asks: Bools) -> tuple[Ints, Ints]:
    """Return which messages are requests with answers, and those answers, in the latters' order.

    Of messages in the order of the file: channel, tag, and whether it is a request. An answer
    belongs to the oldest request of its channel and tag that has none yet, if there is one.
    """
    if not len(tags):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    if (channels == channels[0]).all():
        order = np.argsort(tags, kind="stable")
    else:
        order = np.lexsort((tags, channels))
    channels, tags, asks = channels[order], tags[order], asks[order]
    # Messages of one channel and tag lie together now, still in their order.
    begins = np.ones(len(order), bool)
    begins[1:] = (tags[1:] != tags[:-1]) | (channels[1:] != channels[:-1])
    group = np.cumsum(begins) - 1
    step = np.where(asks, 1, -1)
    waiting = _within(np.cumsum(step), step, begins, group)
    answers = ~asks
    if waiting.min() < 0:
        answers &= ~_unasked(waiting, begins, group)
    rank = _within(np.cumsum(asks), asks.astype(np.int64), begins, group)
    answered = np.bincount(group, weights=answers)[group]
    requests = order[asks & (rank <= answered)]
    replies = order[answers]
    in_order = np.argsort(replies, kind="stable")
    return requests[in_order], replies[in_order]


def _within(total: Ints, step: Ints, begins: Bools, group: Ints) -> Ints:
    """Return sums over all as sums over each group."""
    before = total[begins] - step[begins]
    within: Ints = total - before[group]
    return within


def _unasked(waiting: Ints, begins: Bools, group: Ints) -> Bools:
    """Return where a group's sum falls below what it was ever before: answers to nothing."""
    apart = 2 * len(waiting) + 2
    below = np.minimum(waiting, 0) - group * apart
    lowest = np.minimum.accumulate(below) + group * apart
    before = np.zeros(len(waiting), np.int64)
    before[1:] = lowest[:-1]
    before[begins] = 0
    unasked: Bools = lowest < before
    return unasked
