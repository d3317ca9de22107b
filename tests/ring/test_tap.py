# SPDX-License-Identifier: MIT
"""The tap's byte ring: entries whole and in order; what finds no room is counted."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vscsi.ring import Tap, tap_packets
from vscsi.wire import pcapng
from vscsi.wire.pcapng import HEAD_SIZE, LITTLE
from vscsi.wire.record import LayoutCode, PayloadKind, Protocol, Way, build_record

SIZE = 1 << 13
HEADER_BYTES = len(build_record(protocol=Protocol.SRP))
PATH = {
    "interface": 3,
    "clock_offset_ns": 1_700_000_000_000_000_000,
    "lost": 0,
    "protocol": Protocol.BLKIF,
    "layout": LayoutCode.X86_32,
    "domain": 7,
    "device": 2,
    "queue": 1,
    "payload_kind": PayloadKind.NONE,
    "payload_bytes": 0,
}
MESSAGES = st.tuples(
    st.sampled_from(Way),
    st.integers(0, 1 << 60),
    st.integers(0, 0xFFFF_FFFF),
    st.integers(0, 0xFFFF),
    st.binary(max_size=600),
    st.binary(max_size=600),
)


def packet(entry, lost):
    """The same packet by the declarations in vscsi.wire."""
    way, time_ns, ring_index, in_flight, message, segments = entry
    record = build_record(
        protocol=PATH["protocol"],
        direction=way,
        layout=PATH["layout"],
        domain=PATH["domain"],
        device=PATH["device"],
        queue=PATH["queue"],
        in_flight=in_flight,
        ring_index=ring_index,
        message=message,
        segments=segments,
    )
    return pcapng.packet(PATH["interface"], time_ns + PATH["clock_offset_ns"], record, lost)


@given(st.lists(st.one_of(st.none(), MESSAGES), max_size=60))
def test_what_is_taken_is_what_was_put_and_the_rest_is_counted(steps):
    """None: take what is there. The packets are those that the wire's own declarations build."""
    tap = Tap(SIZE)
    expected, waiting, lost, dropped = [], [], 0, 0

    def take():
        before = tap.dropped
        entries, count = tap.take(1 << 20)
        assert tap_packets(entries, **PATH) == b"".join(expected)
        assert count == len(expected)
        assert tap.dropped == before == dropped
        expected.clear()
        waiting.clear()

    for step in steps:
        if step is None:
            take()
            continue
        tap.put(*step)
        if tap.dropped > dropped:
            assert sum(waiting) + 2 * 1300 > SIZE  # not without need
            dropped, lost = tap.dropped, lost + 1
            continue
        expected.append(packet(step, lost))
        waiting.append(40 + len(step[4]) + len(step[5]))
        lost = 0
    take()


def test_a_message_that_never_fits_is_dropped():
    tap = Tap(SIZE)
    tap.put(0, 0, 0, 0, bytes(SIZE + 1), b"")
    assert (tap.dropped, tap.take(SIZE)) == (1, (b"", 0))
    tap.put(0, 0, 0, 0, b"next", b"")
    block = tap_packets(tap.take(SIZE)[0], **PATH)
    assert pcapng.parse_packet(LITTLE, block[HEAD_SIZE:-4]).lost == 1


def test_little_room_takes_whole_entries():
    tap = Tap(SIZE)
    for at in range(3):
        tap.put(0, at, at, 0, bytes(100), b"")
    first, count = tap.take(200)
    assert count == 1
    second, count = tap.take(SIZE)
    assert count == 2
    assert len(second) == 2 * len(first)


def test_a_producer_and_a_consumer_at_the_same_time():
    tap = Tap(SIZE)
    total = 50_000
    seen, lost = [], 0

    def produce():
        for at in range(total):
            tap.put(0, at, at, 0, at.to_bytes(4, "little") * (1 + at % 50), b"")

    thread = threading.Thread(target=produce)
    thread.start()
    while True:
        alive = thread.is_alive()
        entries, _ = tap.take(1 << 16)
        blocks = tap_packets(entries, **PATH)
        while blocks:
            _, length = pcapng.parse_head(LITTLE, blocks[:HEAD_SIZE])
            found = pcapng.parse_packet(LITTLE, blocks[HEAD_SIZE : length - 4])
            message = found.data[HEADER_BYTES:]
            at = int.from_bytes(message[:4], "little")
            assert message == message[:4] * (1 + at % 50)
            lost += found.lost
            seen.append(at)
            blocks = blocks[length:]
        if not alive and not entries:
            break
    thread.join()
    assert seen == sorted(seen)
    assert len(seen) + tap.dropped == total
    assert lost <= tap.dropped


@pytest.mark.parametrize("entries", [b"x", bytes(40), b"\xff" * 80])
def test_other_bytes_are_no_entries(entries):
    with pytest.raises(ValueError, match="entries"):
        tap_packets(entries, **PATH)


@pytest.mark.parametrize("size", [0, 4096, SIZE + 8])
def test_its_size_is_a_power_of_two(size):
    with pytest.raises(ValueError, match="power of two"):
        Tap(size)
