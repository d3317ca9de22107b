# SPDX-License-Identifier: MIT
"""Two ends at full speed lose, double, reorder and tear nothing; no wake-up is lost."""

import os
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from vscsi.domain.events import EventChannel
from vscsi.ring._core import PageMap, RingEnd

WRAP = 2**32
ECHO = Path(__file__).with_name("echo_back.py")

# Layout, pages, slot bytes, messages each way. Few entries mean many sleeps.
RINGS = [
    ("xen", 1, 112, 400_000),
    ("xen", 1, 2000, 20_000),
    ("xen", 2, 108, 400_000),
    ("xen", 16, 252, 400_000),
    ("pair", 1, 128, 300_000),
    ("pair", 3, 61, 400_000),
    ("pair", 16, 64, 800_000),
]


@pytest.mark.parametrize("wait", ["event", "poll"])
@pytest.mark.parametrize(("layout", "pages", "slot_size", "messages"), RINGS)
def test_two_processes_echo_every_message_once_and_in_order(
    program: Callable[..., str], layout: str, wait: str, pages: int, slot_size: int, messages: int
) -> None:
    start = WRAP - messages // 2
    program("stress", "plain", layout, wait, "fork", pages, slot_size, messages, start)


@pytest.mark.parametrize("sanitizer", ["thread", "address"])
@pytest.mark.parametrize("wait", ["event", "poll"])
@pytest.mark.parametrize("layout", ["xen", "pair"])
def test_sanitizers_find_no_race_and_no_stray_access_between_two_threads(
    program: Callable[..., str], layout: str, wait: str, sanitizer: str
) -> None:
    program("stress", sanitizer, layout, wait, "thread", 1, 112, 100_000, WRAP - 50_000)


def test_no_call_leaves_the_ring_whatever_the_peer_writes(program: Callable[..., str]) -> None:
    program("hostile", "address", 10_000)


@pytest.mark.parametrize("wait", ["event", "poll"])
@pytest.mark.parametrize("layout", ["xen", "pair"])
def test_python_ends_in_two_processes_echo_every_message(layout: str, wait: str) -> None:
    pages, slot_size, messages = 1, 112, 40_000
    fd = os.memfd_create("ring")
    os.ftruncate(fd, 2 * pages * 4096)
    memory = memoryview(PageMap(fd, range(2 * pages), readonly=False))
    requests, responses = memory[: pages * 4096], memory[pages * 4096 :]
    if layout == "xen":
        end = RingEnd.front(requests, slot_size, start=WRAP - messages // 2)
    else:
        end = RingEnd.pair_front(requests, responses, slot_size, start=WRAP - messages // 2)
    channel, other = EventChannel.pair(1, 2)
    numbers = map(str, (pages, slot_size, messages, fd, *other.fds))
    peer = subprocess.Popen(
        [sys.executable, str(ECHO), layout, wait, *numbers],
        env={**os.environ, "PYTHONPATH": str(ECHO.parents[2])},
        pass_fds=(fd, *other.fds),
    )
    try:
        send_and_receive(end, channel, messages, sleeping=wait == "event")
        assert peer.wait(timeout=60) == 0
    finally:
        peer.kill()
        peer.wait()
        channel.close()
        other.close()
        os.close(fd)
    assert end.put_index == end.take_index == messages // 2


def send_and_receive(end: RingEnd, channel: EventChannel, messages: int, *, sleeping: bool) -> None:
    slot_size, deadline = end.slot_size, time.monotonic() + 60
    sent = received = 0
    while received < messages:
        assert time.monotonic() < deadline
        for _ in range(min(end.free, end.entries - (sent - received), messages - sent)):
            assert end.put(message(sent, slot_size))
            sent += 1
        if end.publish():
            channel.notify()
        answers = end.take(limit=1 + received % 30)
        for answer in answers:
            assert answer[::-1] == message(received, slot_size)
            received += 1
        if answers:
            continue
        if not sleeping:
            os.sched_yield()
        elif not end.arm():
            assert select.select([channel], [], [], 30)[0], "lost wake-up"
            channel.clear()


def message(number: int, length: int) -> bytes:
    """Return a slot whose every 4 bytes are its number."""
    return number.to_bytes(4, "little") * (length // 4)
