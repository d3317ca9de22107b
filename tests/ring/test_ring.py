# SPDX-License-Identifier: MIT
"""RingEnd: what it writes where, what it refuses, when it asks for an event."""

import gc
import os
import struct
import weakref
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vscsi.ring import _core
from vscsi.ring._core import PAIR_HEADER, XEN_HEADER, PageMap, RingEnd
from vscsi.wire.ring import SharedRing
from vscsi.wire.srp_ring import RingHeader

PAGE = 4096
WRAP = 2**32

LAYOUTS = ["xen", "pair"]


def ends(layout: str, pages: int = 1, slot_size: int = 112, start: int = 0) -> list[object]:
    """Return front, back and the memory of requests and of responses."""
    requests = bytearray(pages * PAGE)
    if layout == "xen":
        front = RingEnd.front(requests, slot_size, start=start)
        return [front, RingEnd.back(requests, slot_size), requests, requests]
    responses = bytearray(pages * PAGE)
    front = RingEnd.pair_front(requests, responses, slot_size, start=start)
    return [front, RingEnd.pair_back(requests, responses, slot_size), requests, responses]


def words(memory: bytearray, *offsets: int) -> list[int]:
    return [int.from_bytes(memory[at : at + 4], "little") for at in offsets]


def poke(memory: bytearray, offset: int, value: int) -> None:
    struct.pack_into("<I", memory, offset, value % WRAP)


@pytest.mark.parametrize(
    ("slot_size", "entries"),
    # Entries for 1, 2, 4, 8, 16 pages (xen/interface/io/ring.h's __RING_SIZE)
    [(112, (32, 64, 128, 256, 512)), (108, (32, 64, 128, 256, 512)), (252, (16, 32, 64, 128, 256))],
)
def test_xen_rings_have_the_entries_of_their_protocol(
    slot_size: int, entries: tuple[int, ...]
) -> None:
    sizes = [bytearray(PAGE << order) for order in range(5)]
    assert tuple(RingEnd.front(size, slot_size).entries for size in sizes) == entries


@given(pages=st.integers(1, 16), slot_size=st.integers(4, 4096), layout=st.sampled_from(LAYOUTS))
@settings(deadline=None)
def test_entries_are_the_largest_power_of_two_that_fits(
    pages: int, slot_size: int, layout: str
) -> None:
    room = (pages * PAGE - (XEN_HEADER if layout == "xen" else PAIR_HEADER)) // slot_size
    if room == 0:
        with pytest.raises(ValueError, match="no slot"):
            ends(layout, pages, slot_size)
        return
    for end in ends(layout, pages, slot_size)[:2]:
        assert end.entries == 1 << (room.bit_length() - 1)
        assert end.slot_size == slot_size


def test_a_xen_front_writes_the_header_and_nothing_else() -> None:
    memory = bytearray(b"\xff" * PAGE)
    RingEnd.front(memory, 112, start=5)
    assert words(memory, 0, 4, 8, 12) == [5, 6, 5, 6]
    assert memory[16:64] == bytes(48)
    assert memory[64:] == b"\xff" * (PAGE - 64)


def test_a_pair_front_writes_both_headers_and_nothing_else() -> None:
    requests, responses = bytearray(b"\xff" * PAGE), bytearray(b"\xff" * PAGE)
    RingEnd.pair_front(requests, responses, 128, start=5)
    for memory in (requests, responses):
        assert words(memory, 0, 64, 68) == [5, 5, 6]
        assert memory[4:64] == bytes(60)
        assert memory[72:128] == bytes(56)
        assert memory[128:] == b"\xff" * (PAGE - 128)


def test_headers_are_those_that_wire_declares() -> None:
    _, _, requests, responses = ends("pair", start=5)
    for memory in (requests, responses):
        pair = RingHeader.parse(memory)
        assert (pair.producer, pair.consumer, pair.event) == (5, 5, 6)
    _, _, memory, _ = ends("xen", start=5)
    xen = SharedRing.parse(memory)
    assert (xen.req_prod, xen.req_event, xen.rsp_prod, xen.rsp_event) == (5, 6, 5, 6)
    assert (SharedRing.sizeof(), RingHeader.sizeof()) == (XEN_HEADER, PAIR_HEADER)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_back_writes_nothing_when_it_attaches(layout: str) -> None:
    requests, responses = bytearray(b"\x11" * PAGE), bytearray(b"\x11" * PAGE)
    if layout == "xen":
        RingEnd.back(requests, 112)
    else:
        RingEnd.pair_back(requests, responses, 112)
    assert requests == responses == b"\x11" * PAGE


@pytest.mark.parametrize("layout", LAYOUTS)
def test_messages_cross_and_come_back_over_the_wrap(layout: str) -> None:
    front, back, *_ = ends(layout, start=WRAP - 40)
    for number in range(100):
        assert front.put(b"ask%d" % number)
        front.publish()
        assert back.take() == [(b"ask%d" % number).ljust(112, b"\0")]
        assert back.put(b"answer%d" % number)
        back.publish()
        assert front.take() == [(b"answer%d" % number).ljust(112, b"\0")]
    assert front.put_index == front.take_index == back.put_index == back.take_index == 60


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nothing_is_visible_before_publish(layout: str) -> None:
    front, back, *_ = ends(layout)
    front.put(b"x")
    assert back.take() == []
    front.publish()
    assert len(back.take()) == 1


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_full_ring_takes_no_more_until_room_is_made(layout: str) -> None:
    front, back, *_ = ends(layout, start=WRAP - 3)
    numbers = [bytes([n]) for n in range(front.entries)]
    assert all(front.put(number) for number in numbers)
    assert front.free == 0
    assert front.put(b"more") is False
    front.publish()
    assert [slot[:1] for slot in back.take(limit=5)] == numbers[:5]
    assert [slot[:1] for slot in back.take()] == numbers[5:]
    for number in numbers[:7]:
        assert back.put(number)
    back.publish()
    front.take()
    assert front.free == (7 if layout == "xen" else front.entries)


def test_a_xen_back_has_a_slot_for_each_request_it_took() -> None:
    front, back, *_ = ends("xen")
    assert back.free == 0
    assert back.put(b"unasked") is False
    for _ in range(3):
        front.put(b"x")
    front.publish()
    assert back.free == 0
    back.take(limit=2)
    assert back.free == 2
    assert [back.put(b"y") for _ in range(3)] == [True, True, False]


def test_the_target_end_of_a_pair_speaks_unasked() -> None:
    front, back, *_ = ends("pair")
    assert back.put(b"hello")
    assert back.publish()
    assert [slot[:5] for slot in front.take()] == [b"hello"]


def test_put_zeroes_the_rest_of_the_slot_and_put_keep_leaves_it() -> None:
    memory = bytearray(PAGE)
    front = RingEnd.front(memory, 112)
    memory[64:] = b"\xaa" * (PAGE - 64)
    front.put(b"one")
    front.put_keep(b"two")
    assert memory[64:176] == b"one".ljust(112, b"\0")
    assert memory[176:288] == b"two".ljust(112, b"\xaa")
    assert memory[288:] == b"\xaa" * (PAGE - 288)


def test_a_message_longer_than_a_slot_is_refused_and_one_as_long_is_not() -> None:
    front, *_ = ends("xen")
    with pytest.raises(ValueError, match="113 bytes in a slot of 112"):
        front.put(bytes(113))
    assert front.put(bytes(112))
    assert front.put(b"")


def test_a_back_takes_again_what_its_predecessor_left_unanswered() -> None:
    front, back, memory, _ = ends("xen", start=WRAP - 2)
    for number in range(4):
        front.put(bytes([number]))
    front.publish()
    back.take()
    back.put(b"answer")
    back.publish()
    back.close()
    again = RingEnd.back(memory, 112)
    assert [slot[0] for slot in again.take()] == [1, 2, 3]
    assert again.free == 3


def test_a_pair_back_goes_on_where_its_predecessor_stood() -> None:
    front, back, requests, responses = ends("pair", start=WRAP - 1)
    for number in range(3):
        front.put(bytes([number]))
    front.publish()
    back.take(limit=2)
    back.put(b"answer")
    back.publish()
    back.close()
    again = RingEnd.pair_back(requests, responses, 112)
    assert [slot[0] for slot in again.take()] == [2]
    assert again.free == again.entries - 1
    again.put(b"next")
    again.publish()
    assert [slot[:6] for slot in front.take()] == [b"answer", b"next\0\0"]


@given(
    layout=st.sampled_from(LAYOUTS),
    start=st.integers(0, WRAP - 1),
    count=st.integers(0, 16),
    distance=st.one_of(st.integers(-20, 20), st.integers(0, WRAP - 1)),
)
@settings(deadline=None)
def test_publish_asks_for_an_event_iff_the_threshold_was_passed(
    layout: str, start: int, count: int, distance: int
) -> None:
    front, _, requests, _ = ends(layout, start=start)
    poke(requests, 4 if layout == "xen" else 68, start + distance)
    for _ in range(count):
        front.put(b"x")
    passed = {(start + step) % WRAP for step in range(1, count + 1)}
    assert front.publish() == ((start + distance) % WRAP in passed)
    assert words(requests, 0) == [(start + count) % WRAP]
    assert front.publish() is False


@pytest.mark.parametrize("layout", LAYOUTS)
def test_arm_sets_the_threshold_one_ahead_unless_a_message_waits(layout: str) -> None:
    front, back, requests, _ = ends(layout, start=WRAP - 2)
    event = 4 if layout == "xen" else 68
    assert back.arm() is False
    assert words(requests, event) == [WRAP - 1]
    front.put(b"x")
    assert front.publish() is True
    assert back.arm() is True
    assert words(requests, event) == [WRAP - 1]
    back.take()
    assert back.arm() is False
    assert words(requests, event) == [0]


def test_the_consumer_of_a_pair_publishes_what_it_took() -> None:
    front, back, requests, _ = ends("pair", start=7)
    for _ in range(5):
        front.put(b"x")
    front.publish()
    back.take(limit=3)
    assert words(requests, 0, 64) == [12, 10]


@pytest.mark.parametrize("size", [0, 1, PAGE - 4, PAGE + 4, 17 * PAGE])
@pytest.mark.parametrize("make", [RingEnd.front, RingEnd.back])
def test_memory_that_is_not_1_to_16_whole_pages_is_refused(
    make: Callable[..., RingEnd], size: int
) -> None:
    with pytest.raises(ValueError, match="1 to 16 whole pages"):
        make(bytearray(size), 112)


@pytest.mark.parametrize("slot_size", [0, 3, 4097, -1, WRAP])
def test_a_slot_size_out_of_range_is_refused(slot_size: int) -> None:
    for make in (RingEnd.front, RingEnd.back):
        with pytest.raises(ValueError, match=r"4 to 4096|32 bits"):
            make(bytearray(2 * PAGE), slot_size)


def test_a_pair_of_two_sizes_memory_askew_and_memory_not_writable_are_refused() -> None:
    with pytest.raises(ValueError, match="a pair alike"):
        RingEnd.pair_front(bytearray(PAGE), bytearray(2 * PAGE), 128)
    with pytest.raises(ValueError, match="aligned"):
        RingEnd.front(memoryview(bytearray(2 * PAGE))[2 : 2 + PAGE], 112)
    with pytest.raises(BufferError):
        RingEnd.front(bytes(PAGE), 112)
    with pytest.raises(TypeError):
        RingEnd()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_end_holds_its_memory_until_it_is_closed(layout: str) -> None:
    front, back, requests, responses = ends(layout)
    back.close()
    for memory in (requests, responses):
        with pytest.raises(BufferError):
            memory.append(0)
    front.close()
    front.close()
    for memory in (requests, responses):
        memory.append(0)
    for call in (front.publish, front.take, front.arm, lambda: front.put(b""), lambda: front.free):
        with pytest.raises(ValueError, match="closed"):
            call()


def test_an_end_that_goes_lets_go_of_its_memory() -> None:
    memory = bytearray(PAGE)
    end = RingEnd.front(memory, 112)
    with pytest.raises(BufferError):
        memory.append(0)
    del end
    memory.append(0)


def test_types_and_objects_of_the_core_do_not_leak() -> None:
    class Memory(bytearray):
        pass

    memory = Memory(PAGE)
    end = RingEnd.front(memory, 112)
    for _ in range(3):
        with pytest.raises(ValueError, match="slot"):
            RingEnd.pair_front(memory, memory, 3)
    gone = weakref.ref(memory)
    del memory, end
    gc.collect()
    assert gone() is None


def test_a_page_map_joins_frames_in_any_order() -> None:
    fd = os.memfd_create("frames")
    os.ftruncate(fd, 8 * PAGE)
    os.pwrite(fd, b"".join(bytes([n]) * PAGE for n in range(8)), 0)
    frames = [5, 6, 7, 2, 2, 0, 1]
    view = memoryview(PageMap(fd, frames, readonly=False))
    os.close(fd)
    assert [view[n * PAGE] for n in range(7)] == frames
    view[3 * PAGE] = 99
    assert view[4 * PAGE] == 99


def test_a_page_map_refuses_frames_that_are_not_there_and_writes_if_read_only() -> None:
    fd = os.memfd_create("frames")
    os.ftruncate(fd, 3 * PAGE - 1)
    for frames in ([2], [0, 3], [0xFFFFFFFF]):
        with pytest.raises(OSError, match="Invalid argument"):
            PageMap(fd, frames, readonly=True)
    for wrong in ([], [-1], [WRAP]):
        with pytest.raises(ValueError, match=r"no frames|32 bits"):
            PageMap(fd, wrong, readonly=True)
    view = memoryview(PageMap(fd, [0, 1], readonly=True))
    os.close(fd)
    with pytest.raises(TypeError):
        view[0] = 1
    with pytest.raises(BufferError):
        RingEnd.front(view[:PAGE], 112)


def test_pages_stay_mapped_while_a_view_of_them_exists(
    shared_pages: Callable[[int], memoryview],
) -> None:
    def mapped() -> int:
        with open("/proc/self/maps") as maps:
            return sum("ring-test" in line for line in maps)

    pages = shared_pages(2)
    part = pages[PAGE:]
    pages.release()
    part[0] = 1
    assert mapped() == 1
    del part, pages
    assert mapped() == 0


def test_the_core_uses_the_stable_abi() -> None:
    assert _core.__file__.endswith(".abi3.so")
