# SPDX-License-Identifier: MIT
"""Event channels: edge triggered, coalescing, and no call ever blocks."""

import os
import select
import threading

import pytest

from vscsi.domain import base
from vscsi.domain.events import EventChannel


@pytest.fixture
def pair():
    ends = EventChannel.pair(3, 4)
    yield ends
    for end in ends:
        end.close()


def pending(end: EventChannel) -> bool:
    return bool(select.select([end], [], [], 0)[0])


def test_an_event_reaches_the_other_end_only(pair: tuple[EventChannel, EventChannel]) -> None:
    here, there = pair
    channel: base.EventChannel = here
    assert (channel.port, there.port) == (3, 4)
    assert not pending(here)
    channel.notify()
    assert pending(there)
    assert not pending(here)
    there.notify()
    assert pending(here)


def test_events_coalesce_until_they_are_cleared(pair: tuple[EventChannel, EventChannel]) -> None:
    here, there = pair
    for _ in range(5):
        here.notify()
    there.clear()
    assert not pending(there)
    there.clear()
    here.notify()
    assert pending(there)


def test_a_counter_that_is_full_is_an_event_that_is_pending(
    pair: tuple[EventChannel, EventChannel],
) -> None:
    here, there = pair
    os.eventfd_write(here.fds[1], 2**64 - 2)
    here.notify()
    assert pending(there)
    there.clear()
    assert not pending(there)


def test_an_end_made_of_received_descriptors_is_the_same_end(
    pair: tuple[EventChannel, EventChannel],
) -> None:
    here, there = pair
    copy = EventChannel(there.port, *map(os.dup, there.fds))
    there.close()
    here.notify()
    assert pending(copy)
    copy.notify()
    assert pending(here)
    copy.close()


def test_clear_does_not_block_when_the_peer_made_the_descriptor_block(
    pair: tuple[EventChannel, EventChannel],
) -> None:
    here, there = pair
    os.set_blocking(there.fds[1], True)  # the same open file as here.fds[0]
    here.clear()
    there.notify()
    here.clear()
    assert not pending(here)


def test_close_frees_a_notify_that_the_peer_stalled(
    pair: tuple[EventChannel, EventChannel],
) -> None:
    here, there = pair
    os.set_blocking(there.fds[0], True)
    os.eventfd_write(there.fds[0], 2**64 - 2)
    stalled = threading.Thread(target=here.notify, daemon=True)
    stalled.start()
    here.close()
    stalled.join(timeout=60)
    assert not stalled.is_alive()


def test_a_closed_end_does_nothing_to_descriptors_that_came_later(
    pair: tuple[EventChannel, EventChannel],
) -> None:
    here, _ = pair
    fds = here.fds
    here.close()
    here.close()
    reader, writer = os.pipe()
    os.dup2(writer, fds[1])
    os.set_blocking(reader, False)
    here.notify()
    here.clear()
    with pytest.raises(BlockingIOError):
        os.read(reader, 1)
    for fd in {reader, writer, fds[1]}:
        os.close(fd)
