# SPDX-License-Identifier: MIT
"""Guest memory: what is granted is reached, with the rights it was granted with, and no more."""

import fcntl
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
)

from vscsi.domain.base import PAGE_SIZE, GrantError, GrantMapper
from vscsi.domain.memory import (
    TABLE_PAGES,
    GuestAccess,
    GuestMapping,
    GuestMemory,
    OutOfMemoryError,
)
from vscsi.ring._core import RingEnd
from vscsi.wire.errors import WireError

BACKEND = 0
PERMIT, READONLY, READING, WRITING = 1, 4, 8, 16
SMALL = (TABLE_PAGES + 32) * PAGE_SIZE


@pytest.fixture
def guest() -> Iterator[GuestMemory]:
    memory = GuestMemory(SMALL)
    yield memory
    memory.close()


@pytest.fixture
def access(guest: GuestMemory) -> Iterator[GuestAccess]:
    backend = GuestAccess(os.dup(guest.fileno()), BACKEND)
    yield backend
    backend.close()


def entry(guest: GuestMemory, reference: int) -> tuple[int, int, int]:
    """Return flags, domid and frame as another process reads them."""
    return struct.unpack("<HHI", os.pread(guest.fileno(), 8, reference * 8))


def overwrite(guest: GuestMemory, reference: int, flags: int, domain: int, frame: int) -> None:
    os.pwrite(guest.fileno(), struct.pack("<HHI", flags, domain, frame), reference * 8)


# The frontend's side


def test_pages_are_zeroed_when_they_are_handed_out(guest: GuestMemory) -> None:
    frames = guest.alloc(32)
    guest.view(frames[0], 32)[:] = b"\xff" * (32 * PAGE_SIZE)
    guest.free(frames)
    assert guest.alloc(32) == frames
    assert guest.view(frames[0], 32) == bytes(32 * PAGE_SIZE)


def test_a_run_is_preferred_and_can_be_required(guest: GuestMemory) -> None:
    frames = guest.alloc(32)
    assert frames == list(range(TABLE_PAGES, TABLE_PAGES + 32))
    guest.free([frames[0], frames[2], frames[4], frames[5]])
    assert guest.alloc(2) == frames[4:6]
    with pytest.raises(OutOfMemoryError, match="no 2 consecutive pages"):
        guest.alloc(2, contiguous=True)
    assert guest.alloc(2) == [frames[0], frames[2]]
    with pytest.raises(OutOfMemoryError, match="no 1 pages"):
        guest.alloc(1)


def test_pages_that_are_not_ours_to_free_are_refused(guest: GuestMemory) -> None:
    frames = guest.alloc(2)
    (reference,) = guest.grant(frames[:1], BACKEND, readonly=True)
    for wrong in ([0], [frames[0]], [frames[1], frames[1]], [frames[1], frames[1] + 1], [-1]):
        with pytest.raises(ValueError, match="not ours to free"):
            guest.free(wrong)
    guest.end_access([reference])
    guest.free(frames)


def test_views_stay_out_of_the_grant_table_and_inside_the_memory(guest: GuestMemory) -> None:
    for frame, pages in ((0, 1), (TABLE_PAGES - 1, 2), (TABLE_PAGES + 31, 2), (TABLE_PAGES, 0)):
        with pytest.raises(ValueError, match="not in the memory"):
            guest.view(frame, pages)


def test_grants_are_written_as_xen_lays_them_out(guest: GuestMemory) -> None:
    frames = guest.alloc(2)
    one, two = guest.grant(frames, 7, readonly=False)
    (three,) = guest.grant(frames[:1], 7, readonly=True)
    assert (one, two, three) == (8, 9, 10)
    assert entry(guest, one) == (PERMIT, 7, frames[0])
    assert entry(guest, two) == (PERMIT, 7, frames[1])
    assert entry(guest, three) == (PERMIT | READONLY, 7, frames[0])
    assert guest.end_access([one, two, three]) == []
    assert [entry(guest, n)[0] for n in (one, two, three)] == [0, 0, 0]


def test_only_own_allocated_pages_are_granted_and_only_granted_ones_ended(
    guest: GuestMemory,
) -> None:
    for frame in (0, TABLE_PAGES, 10**6):
        with pytest.raises(ValueError, match="not allocated"):
            guest.grant([frame], BACKEND, readonly=True)
    with pytest.raises(ValueError, match="not granted"):
        guest.end_access([8])


def test_grant_references_run_out_with_an_error_and_grant_nothing(guest: GuestMemory) -> None:
    frames = guest.alloc(1)
    total = TABLE_PAGES * PAGE_SIZE // 8 - 8
    references = guest.grant(frames * (total - 1), BACKEND, readonly=True)
    with pytest.raises(OutOfMemoryError, match="no 2 grant references, 1 are free"):
        guest.grant(frames * 2, BACKEND, readonly=True)
    last = guest.grant(frames, BACKEND, readonly=True)
    assert sorted(references + last) == list(range(8, total + 8))


def test_threads_share_the_allocator(guest: GuestMemory) -> None:
    failures: list[BaseException] = []

    def work(tag: int) -> None:
        try:
            for _ in range(200):
                frames = guest.alloc(3)
                for frame in frames:
                    guest.view(frame)[:8] = struct.pack("<Q", tag)
                references = guest.grant(frames, BACKEND, readonly=True)
                for frame in frames:
                    assert guest.view(frame)[:8] == struct.pack("<Q", tag)
                assert guest.end_access(references) == []
                guest.free(frames)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(tag,)) for tag in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(guest.alloc(32)) == 32


# The backend's side


def test_mapped_pages_are_the_guests_own(guest: GuestMemory, access: GuestAccess) -> None:
    mapper: GrantMapper = access
    frames = guest.alloc(3)
    references = guest.grant(frames[::-1], BACKEND, readonly=False)
    mapping = mapper.map(references, readonly=False)
    assert access.mapped == 3
    assert [len(page) for page in mapping.pages] == [PAGE_SIZE] * 3
    mapping.pages[0][5] = 42
    assert guest.view(frames[2])[5] == 42
    guest.view(frames[0])[0] = 7
    assert mapping.pages[2][0] == 7
    mapping.unmap()
    mapping.unmap()
    assert access.mapped == 0


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 0, 1, 1]])
@pytest.mark.parametrize("readonly", [False, True])
def test_a_contiguous_view_follows_the_references(
    guest: GuestMemory, access: GuestAccess, order: list[int], readonly: bool
) -> None:
    frames = guest.alloc(4)
    for number, frame in enumerate(frames):
        guest.view(frame)[:] = bytes([number]) * PAGE_SIZE
    references = guest.grant(frames, BACKEND, readonly=readonly)
    mapping = access.map([references[n] for n in order], readonly=readonly)
    view = mapping.contiguous()
    assert view == b"".join(bytes([n]) * PAGE_SIZE for n in order)
    assert view.readonly == readonly
    if not readonly:
        view[-1] = 99
        assert guest.view(frames[order[-1]])[-1] == 99
    assert mapping.contiguous() is view


def test_a_ring_works_over_pages_in_any_order(guest: GuestMemory, access: GuestAccess) -> None:
    frames = guest.alloc(4, contiguous=True)
    front = RingEnd.front(guest.view(frames[0], 4), 112)
    references = guest.grant(frames, BACKEND, readonly=False)
    back = RingEnd.back(access.map(references, readonly=False).contiguous(), 112)
    for number in range(front.entries):
        front.put(b"%d" % number)
    front.publish()
    assert [int(slot.rstrip(b"\0")) for slot in back.take()] == list(range(128))
    front.close()
    back.close()


def test_nothing_is_written_through_a_read_only_mapping(
    guest: GuestMemory, access: GuestAccess
) -> None:
    frames = guest.alloc(2)
    references = guest.grant(frames, BACKEND, readonly=False)
    mapping = access.map(references, readonly=True)
    for view in (*mapping.pages, mapping.contiguous(), memoryview(mapping.pages[0].obj)):
        with pytest.raises(TypeError):
            view[0] = 1
        with pytest.raises((TypeError, BufferError)):
            os.preadv(guest.fileno(), [view], 0)
    assert guest.view(frames[0], 2) == bytes(2 * PAGE_SIZE)


@pytest.mark.parametrize(
    "wrong", ["absent", "other domain", "read only", "frame", "too large", "negative"]
)
def test_one_bad_reference_maps_none(guest: GuestMemory, access: GuestAccess, wrong: str) -> None:
    frames = guest.alloc(3)
    references = guest.grant(frames, BACKEND, readonly=False)
    bad = {"absent": 3000, "too large": 2**40, "negative": -1}.get(wrong)
    if wrong == "other domain":
        (bad,) = guest.grant(frames[:1], BACKEND + 1, readonly=False)
    elif wrong == "read only":
        (bad,) = guest.grant(frames[:1], BACKEND, readonly=True)
    elif wrong == "frame":
        (bad,) = guest.grant(frames[:1], BACKEND, readonly=False)
        overwrite(guest, bad, PERMIT, BACKEND, TABLE_PAGES + 32)
    with pytest.raises(GrantError, match=f"grant reference {bad}"):
        access.map([*references, bad], readonly=False)
    assert access.mapped == 0
    assert guest.end_access(references) == []
    if wrong == "frame":
        assert entry(guest, bad)[0] == PERMIT


def test_an_empty_mapping_and_one_beyond_the_limit_are_refused(guest: GuestMemory) -> None:
    access = GuestAccess(os.dup(guest.fileno()), BACKEND, max_mapped=3)
    references = guest.grant(guest.alloc(4), BACKEND, readonly=True)
    with pytest.raises(GrantError):
        access.map([], readonly=True)
    first = access.map(references[:2], readonly=True)
    with pytest.raises(GrantError, match="limit is 3"):
        access.map(references[2:], readonly=True)
    first.unmap()
    assert access.map(references[1:], readonly=True)
    access.close()


def test_a_mapped_reference_keeps_its_frame_whatever_the_guest_writes(
    guest: GuestMemory, access: GuestAccess
) -> None:
    frames = guest.alloc(2)
    (reference,) = guest.grant(frames[:1], BACKEND, readonly=False)
    first = access.map([reference], readonly=True)
    overwrite(guest, reference, PERMIT, BACKEND, frames[1])
    second = access.map([reference], readonly=False)
    second.pages[0][0] = 1
    assert guest.view(frames[0])[0] == 1
    assert guest.view(frames[1])[0] == 0
    first.unmap()
    second.unmap()


def test_the_c_path_and_mappings_share_frames_marks_and_the_limit(guest: GuestMemory) -> None:
    access = GuestAccess(os.dup(guest.fileno()), BACKEND, max_mapped=2)
    frames = guest.alloc(2)
    (reference,) = guest.grant(frames[:1], BACKEND, readonly=False)
    in_c = access.native
    assert in_c.map([reference], readonly=False) == frames[:1]
    overwrite(guest, reference, PERMIT | READING | WRITING, BACKEND, frames[1])
    mapping = access.map([reference], readonly=False)
    mapping.pages[0][0] = 1
    assert guest.view(frames[0])[0] == 1
    assert access.mapped == 2
    with pytest.raises(GrantError, match="limit is 2"):
        in_c.map([reference], readonly=True)
    mapping.unmap()
    assert guest.end_access([reference]) == [reference]
    in_c.unmap([reference], readonly=False)
    assert guest.end_access([reference]) == []
    access.close()


def test_a_service_that_is_late_finds_the_memory_there(guest: GuestMemory) -> None:
    access = GuestAccess(os.dup(guest.fileno()), BACKEND)
    references = guest.grant(guest.alloc(1), BACKEND, readonly=False)
    in_c = access.native
    access.close()
    assert access.native is None
    guest_frames = in_c.map(references, readonly=True)
    assert guest_frames == [TABLE_PAGES]
    in_c.unmap(references, readonly=True)


def test_each_mark_goes_with_the_last_mapping_that_needs_it(
    guest: GuestMemory, access: GuestAccess
) -> None:
    (reference,) = guest.grant(guest.alloc(1), BACKEND, readonly=False)
    reader = access.map([reference], readonly=True)
    writers = [access.map([reference], readonly=False) for _ in range(2)]
    marks = []
    for mapping in (*writers, reader):
        marks.append(entry(guest, reference)[0] & ~PERMIT)
        mapping.unmap()
    assert marks == [READING | WRITING, READING | WRITING, READING]
    assert entry(guest, reference)[0] == PERMIT


def test_a_view_is_dead_after_unmap_and_a_part_of_it_sees_mapped_memory(
    guest: GuestMemory, access: GuestAccess
) -> None:
    references = guest.grant(guest.alloc(2), BACKEND, readonly=False)
    mapping = access.map(references, readonly=False)
    page, whole, part = mapping.pages[0], mapping.contiguous(), mapping.pages[1][:10]
    mapping.unmap()
    for view in (page, whole):
        with pytest.raises(ValueError, match="released"):
            view[0]
    with pytest.raises(ValueError, match="unmapped"):
        mapping.contiguous()
    access.close()
    guest.close()
    assert part == bytes(10)


def test_unmap_is_refused_while_a_ring_end_works_on_the_pages(
    guest: GuestMemory, access: GuestAccess
) -> None:
    frames = guest.alloc(2)
    references = guest.grant(frames, BACKEND, readonly=False)
    mapping = access.map(references, readonly=False)
    end = RingEnd.front(mapping.contiguous(), 112)
    with pytest.raises(BufferError):
        mapping.unmap()
    with pytest.raises(BufferError):
        access.close()
    assert guest.end_access(references) == references
    assert access.mapped == 2
    end.close()
    access.close()
    assert access.mapped == 0
    assert guest.end_access(references) == []


def test_closing_unmaps_everything(guest: GuestMemory, access: GuestAccess) -> None:
    references = guest.grant(guest.alloc(4), BACKEND, readonly=False)
    pages = [access.map([reference], readonly=False).pages[0] for reference in references]
    access.close()
    access.close()
    assert access.mapped == 0
    assert guest.end_access(references) == []
    for page in pages:
        with pytest.raises(ValueError, match="released"):
            page[0]
    with pytest.raises(GrantError):
        access.map(references, readonly=False)


def test_nothing_stays_mapped_or_open_after_both_sides_closed() -> None:
    def descriptors_and_maps() -> tuple[int, int]:
        maps = Path("/proc/self/maps").read_text()
        return len(os.listdir("/proc/self/fd")), maps.count("vscsi-guest")

    before = descriptors_and_maps()
    guest = GuestMemory(SMALL)
    access = GuestAccess(os.dup(guest.fileno()), BACKEND)
    references = guest.grant(guest.alloc(3)[::-1], BACKEND, readonly=False)
    mapping = access.map(references, readonly=False)
    mapping.contiguous()
    del mapping
    access.close()
    guest.close()
    guest.close()
    assert descriptors_and_maps() == before


# What a guest may hand over instead of its memory


def unsealed() -> int:
    fd = os.memfd_create("bad", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, SMALL)
    return fd


def sealed(size: int, seals: int = fcntl.F_SEAL_SHRINK) -> int:
    fd = os.memfd_create("bad", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def not_writable() -> int:
    fd = sealed(SMALL)
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (unsealed, "not sealed"),
        (lambda: os.open("/dev/zero", os.O_RDWR), "not a memfd"),
        (lambda: os.open(__file__, os.O_RDONLY), "not a memfd"),
        (lambda: os.eventfd(0), "not a memfd"),
        (lambda: sealed(0), "0 bytes"),
        (lambda: sealed(SMALL + 1), "bytes, beyond"),
        (lambda: sealed(TABLE_PAGES * PAGE_SIZE), "bytes, beyond"),
        (lambda: sealed(1 << 40), "bytes, beyond"),
        (lambda: sealed(SMALL, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_WRITE), "cannot be mapped"),
        (not_writable, "cannot be mapped"),
    ],
)
def test_a_file_that_could_hurt_the_backend_is_refused_and_closed(
    make: Callable[[], int], reason: str
) -> None:
    fd = make()
    with pytest.raises(WireError, match=reason):
        GuestAccess(fd, BACKEND)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_huge_pages_which_may_run_out_are_refused() -> None:
    try:
        fd = os.memfd_create("huge", os.MFD_ALLOW_SEALING | os.MFD_HUGETLB)
    except OSError:
        pytest.skip("no huge pages in this kernel")
    os.ftruncate(fd, 1 << 21)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    with pytest.raises(WireError, match="pages of another size"):
        GuestAccess(fd, BACKEND)


def test_a_guest_of_the_wrong_size_is_an_error_of_the_caller() -> None:
    for size in (0, PAGE_SIZE, TABLE_PAGES * PAGE_SIZE, SMALL + 1):
        with pytest.raises(ValueError, match="whole pages"):
            GuestMemory(size)


def test_another_process_maps_and_answers(guest: GuestMemory) -> None:
    frames = guest.alloc(2)
    references = guest.grant(frames, BACKEND, readonly=False)
    guest.view(frames[0])[:5] = b"hello"
    backend = (
        "import sys; from vscsi.domain.memory import GuestAccess\n"
        "fd, *references = map(int, sys.argv[1:])\n"
        "access = GuestAccess(fd, 0)\n"
        "mapping = access.map(references, readonly=False)\n"
        "mapping.pages[1][:5] = bytes(mapping.pages[0][:5]).upper()\n"
        "sys.stdout.write('mapped\\n'); sys.stdout.flush(); sys.stdin.readline()\n"
        "access.close()\n"
    )
    peer = subprocess.Popen(
        [sys.executable, "-c", backend, *map(str, (guest.fileno(), *references))],
        pass_fds=[guest.fileno()],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert peer.stdout.readline() == b"mapped\n"
    assert guest.view(frames[1])[:5] == b"HELLO"
    assert guest.end_access(references) == references
    peer.communicate(b"\n", timeout=60)
    assert peer.returncode == 0
    assert guest.end_access(references) == []


class Grants(RuleBasedStateMachine):
    """Grants and mappings against sets of (reference, rights): what Xen's rules come to."""

    references = Bundle("references")
    mappings = Bundle("mappings")

    def __init__(self) -> None:
        super().__init__()
        self.guest = GuestMemory(SMALL)
        self.access = GuestAccess(os.dup(self.guest.fileno()), BACKEND)
        self.frames = self.guest.alloc(4)
        for frame in self.frames:
            self.guest.view(frame)[0] = frame
        self.granted: dict[int, tuple[int, int, bool]] = {}
        self.mapped: list[tuple[GuestMapping, list[int], bool]] = []

    def users(self, reference: int, *, writers_only: bool = False) -> int:
        return sum(
            used.count(reference)
            for _, used, readonly in self.mapped
            if not (writers_only and readonly)
        )

    @rule(
        target=references,
        frames=st.lists(st.integers(0, 3), min_size=1, max_size=3),
        domain=st.sampled_from([BACKEND] * 7 + [9]),
        readonly=st.sampled_from([False, False, True]),
    )
    def grant(self, frames: list[int], domain: int, readonly: bool) -> object:
        chosen = [self.frames[n] for n in frames]
        references = self.guest.grant(chosen, domain, readonly=readonly)
        assert not self.granted.keys() & set(references)
        for reference, frame in zip(references, chosen, strict=True):
            self.granted[reference] = (frame, domain, readonly)
        return multiple(*references)

    @rule(
        target=mappings,
        chosen=st.one_of(
            st.lists(references, min_size=1, max_size=2),
            st.lists(st.one_of(references, st.integers(0, 20)), max_size=4),
        ),
        readonly=st.booleans(),
    )
    def map(self, chosen: list[int], readonly: bool) -> object:
        permitted = bool(chosen) and all(
            reference in self.granted
            and self.granted[reference][1] == BACKEND
            and (readonly or not self.granted[reference][2])
            for reference in chosen
        )
        if not permitted:
            with pytest.raises(GrantError):
                self.access.map(chosen, readonly=readonly)
            return multiple()
        mapping = self.access.map(chosen, readonly=readonly)
        assert [page[0] for page in mapping.pages] == [self.granted[n][0] for n in chosen]
        assert all(page.readonly == readonly for page in mapping.pages)
        assert mapping.contiguous()[::PAGE_SIZE].tolist() == [self.granted[n][0] for n in chosen]
        self.mapped.append((mapping, chosen, readonly))
        return mapping

    @rule(mapping=consumes(mappings))
    def unmap(self, mapping: GuestMapping) -> None:
        mapping.unmap()
        mapping.unmap()
        self.mapped = [entry for entry in self.mapped if entry[0] is not mapping]

    @rule(chosen=st.lists(references, unique=True, max_size=4))
    def end_access(self, chosen: list[int]) -> None:
        live = [reference for reference in chosen if reference in self.granted]
        in_use = [reference for reference in live if self.users(reference)]
        assert self.guest.end_access(live) == in_use
        for reference in set(live) - set(in_use):
            del self.granted[reference]

    @invariant()
    def the_table_says_who_uses_what(self) -> None:
        assert self.access.mapped == sum(len(used) for _, used, _ in self.mapped)
        for reference in range(64):
            flags, domain, frame = entry(self.guest, reference)
            if reference not in self.granted:
                assert flags == 0
                continue
            wanted = PERMIT | (READONLY if self.granted[reference][2] else 0)
            if self.users(reference):
                wanted |= READING
            if self.users(reference, writers_only=True):
                wanted |= WRITING
            assert (flags, domain, frame) == (wanted, *self.granted[reference][1::-1])

    def teardown(self) -> None:
        self.access.close()
        assert self.guest.end_access(list(self.granted)) == []
        self.guest.close()


TestGrants = Grants.TestCase
TestGrants.settings = settings(deadline=None, max_examples=100, stateful_step_count=30)
