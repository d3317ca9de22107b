# SPDX-License-Identifier: MIT
"""Commands that wait for a device while the ring's thread goes on.

A disk that is slow as long as a test wants it to be is a pipe in an image's place: the page cache
knows nothing of it, and io_uring waits until something is written to its other end.
"""

import contextlib
import errno
import os
import random
import tempfile
import threading
from pathlib import Path

import pytest

from tests.refusal import call_without
from vscsi.target.base import Status
from vscsi.target.stores.file import FileStore
from vscsi.target.stores.memory import MemoryStore
from vscsi.transport.initiator import Command, TransportError
from vscsi.wire.cdb import build
from vscsi.wire.lun import encode
from vscsi.wire.parameters import build_unmap
from vscsi.wire.sense import parse_sense

BLOCK = 512
READ = 4096
DEPTH = 32
SIZE = 4 << 20
HANG_S = 30


@pytest.fixture
def folder(tmp_path, nothing_left):
    """A folder on a disk that takes O_DIRECT: the checkout's may if the temporary one does not."""
    for place in (tmp_path, Path(__file__).parent):
        probe = place / "probe"
        try:
            os.close(os.open(probe, os.O_RDWR | os.O_CREAT | os.O_DIRECT, 0o600))
        except OSError:
            continue
        finally:
            probe.unlink(missing_ok=True)
        with tempfile.TemporaryDirectory(dir=place) as name:
            yield Path(name)
        return
    pytest.skip("no file system here takes O_DIRECT")


@pytest.fixture
def image(folder):
    path = folder / "image"
    path.write_bytes(random.Random(1).randbytes(SIZE))
    os.sync()
    forget(path)
    return path


@pytest.fixture
def stores(nothing_left):
    """What closes stores when their servers have stopped."""
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture
def serve(stores, serve):
    """Serve an image's store, and close it."""

    def make(store, *others, **options):
        stores.callback(store.close)
        return serve(store, *others, **options)

    return make


def forget(path):
    """Leave nothing of a file in the page cache."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def same(serve):
    return serve()


def without_io_uring(serve):
    return call_without("io_uring_setup", errno.EPERM, serve)


@pytest.fixture(params=[same, without_io_uring])
def engine(request):
    """What makes a server: with io_uring if there is one; with threads, as in many containers."""
    return request.param


class Waiter:
    """A command under way, and its outcome."""

    def __init__(self, path, cdb, *, lun=0, **buffers):
        self.done = threading.Event()
        self.command = Command(lun=encode(lun), cdb=cdb, done=lambda _: self.done.set(), **buffers)
        path.submit(self.command)

    def end(self):
        assert self.done.wait(HANG_S)
        if self.command.error is not None:
            raise self.command.error
        return self.command.status

    def sense(self):
        assert self.end() is Status.CHECK_CONDITION
        sense = parse_sense(self.command.sense)
        return sense.key, sense.asc, sense.ascq


def read(path, at, buffer, *, lun=0):
    cdb = build("READ(10)", lba=at // BLOCK, blocks=len(buffer) // BLOCK)
    return Waiter(path, cdb, lun=lun, data_in=[buffer])


def write(path, at, buffer):
    cdb = build("WRITE(10)", lba=at // BLOCK, blocks=len(buffer) // BLOCK)
    return Waiter(path, cdb, data_out=[buffer])


def deferred(path):
    return path.backend_statistics()["deferred_in_c"]


# What a real disk does


@pytest.mark.parametrize("direct", [False, True])
def test_cold_reads_and_writes_at_depth_32_move_the_right_bytes(serve, engine, image, direct):
    content = bytearray(image.read_bytes())
    forget(image)
    server = engine(lambda: serve(FileStore(image, direct=direct)))
    with server.connect("srp") as hba:
        path = hba.initiator
        hba.lun(0).capacity()
        pick = random.Random(2)
        spans = [path.alloc(READ + 4096) for _ in range(DEPTH)]
        for _ in range(8):
            places = pick.sample(range(SIZE // READ), DEPTH)
            waiting = []
            for span, place in zip(spans, places, strict=True):
                start = pick.choice([0, 0, 0, 512, 100])  # the last is bounced with O_DIRECT
                buffer = span[start : start + READ]
                at = place * READ
                if pick.random() < 0.3:
                    buffer.view[:] = content[at : at + READ] = pick.randbytes(READ)
                    waiting.append((write(path, at, buffer), at, buffer))
                else:
                    buffer.view[:] = bytes(READ)
                    waiting.append((read(path, at, buffer), at, buffer))
            for waiter, at, buffer in waiting:
                assert waiter.end() is Status.GOOD
                assert buffer.view == content[at : at + READ]
        assert deferred(path) > DEPTH
        assert server.end(path.guest.domain, "vsrp").report()["wire_errors"] == 0
        for span in spans:
            path.free(span)
    assert image.read_bytes() == content


def test_writes_through_to_the_disk_flushes_and_unmaps_wait_for_it(serve, engine, image):
    content = bytearray(image.read_bytes())
    server = engine(lambda: serve(FileStore(image), write_cache=False))
    with server.connect("srp") as hba:
        path = hba.initiator
        hba.lun(0).capacity()
        whole = path.alloc(DEPTH * READ)
        whole.view[:] = content[: DEPTH * READ] = random.Random(3).randbytes(DEPTH * READ)
        parts = [whole[at : at + READ] for at in range(0, DEPTH * READ, READ)]
        waiting = [write(path, n * READ, part) for n, part in enumerate(parts)]
        assert {waiter.end() for waiter in waiting} == {Status.GOOD}
        assert deferred(path) == DEPTH
        assert Waiter(path, build("SYNCHRONIZE CACHE(10)")).end() is Status.GOOD
        data = build_unmap([(8, 8), (100, 0), (SIZE // BLOCK - 8, 8)])
        parts[0].view[: len(data)] = data
        unmap = build("UNMAP", parameter_list_length=len(data))
        assert Waiter(path, unmap, data_out=[parts[0][: len(data)]]).end() is Status.GOOD
        assert deferred(path) == DEPTH + 2
        for at, length in ((8, 8), (SIZE // BLOCK - 8, 8)):
            content[at * BLOCK : (at + length) * BLOCK] = bytes(length * BLOCK)
        path.free(whole)
    assert image.read_bytes() == content
    with open(image, "rb") as file:
        assert os.lseek(file.fileno(), 0, os.SEEK_HOLE) == 4096


@pytest.mark.parametrize("direct", [False, True])
def test_a_file_that_was_cut_short_is_a_medium_error_of_each_command(serve, engine, image, direct):
    server = engine(lambda: serve(FileStore(image, direct=direct)))
    with server.connect("srp") as hba:
        path = hba.initiator
        hba.lun(0).capacity()
        os.truncate(image, 10 * READ)
        whole = path.alloc(DEPTH * READ)
        parts = [whole[at : at + READ] for at in range(0, DEPTH * READ, READ)]
        waiting = [read(path, n * READ, part) for n, part in enumerate(parts)]
        for n, waiter in enumerate(waiting):
            if n < 10:
                assert waiter.end() is Status.GOOD
            else:
                assert waiter.sense() == (3, 0x11, 0)
        path.free(whole)


# A disk that is held


class Pipe:
    """A pipe in the place of a store's file."""

    def __init__(self, store):
        self._store = store
        self._file = os.dup(store._descriptor)
        reader, self._writer = os.pipe()
        os.dup2(reader, store._descriptor)
        os.close(reader)

    def answer(self, count=1):
        """Let as many reads end."""
        for _ in range(count):
            assert os.write(self._writer, b"p" * READ) == READ

    def fail(self):
        """Let all reads, and those that come, fail."""
        os.close(self._writer)
        self._writer = -1

    def restore(self):
        """Put the file back."""
        if self._writer >= 0:
            self.fail()
        if self._file >= 0:
            os.dup2(self._file, self._store._descriptor)
            os.close(self._file)
            self._file = -1


@pytest.fixture
def held(serve, image, eventually):
    """Two disks, the first of which is held with DEPTH reads under way; and their initiator."""
    store = FileStore(image)
    server = serve(store, MemoryStore(1 << 20))
    with contextlib.ExitStack() as stack:
        hba = stack.enter_context(server.connect("srp"))
        path = hba.initiator
        for lun in (0, 1):
            hba.lun(lun).capacity()
        pipe = Pipe(store)
        stack.callback(pipe.restore)
        server.hba, server.path, server.pipe = hba, path, pipe
        server.buffers = [path.alloc(READ) for _ in range(DEPTH)]
        server.waiting = [read(path, n * READ, part) for n, part in enumerate(server.buffers)]
        end = server.end(path.guest.domain, "vsrp")
        server.ring_end = end
        eventually(lambda: end.report()["deferred_in_c"] >= DEPTH or ended(server), "the reads")
        if ended(server):
            pytest.skip("there is no io_uring here")
        yield server


def ended(server):
    return sum(waiter.done.is_set() for waiter in server.waiting)


@pytest.fixture
def let_end(held, eventually):
    """Let so many of the reads end, whichever they are."""

    def let(count=1):
        expected = ended(held) + count
        held.pipe.answer(count)
        eventually(lambda: ended(held) == expected, "the end of a read")

    return let


def test_commands_that_need_not_wait_overtake_those_that_do(held):
    buffer = held.path.alloc(READ)
    for _ in range(3):
        assert read(held.path, 0, buffer, lun=1).end() is Status.GOOD
        assert Waiter(held.path, build("TEST UNIT READY")).end() is Status.GOOD
    assert not ended(held)
    assert held.ring_end.report()["deferred_in_c"] == DEPTH  # all of them at a time
    held.pipe.answer(DEPTH)
    for waiter, part in zip(held.waiting, held.buffers, strict=True):
        assert waiter.end() is Status.GOOD
        assert part.view == b"p" * READ


@pytest.mark.parametrize("cdb", ["SYNCHRONIZE CACHE(10)", "REQUEST SENSE"])
def test_a_flush_and_what_python_executes_come_after_all_that_is_under_way(held, cdb, let_end):
    """And what comes behind it waits for it."""
    room = held.path.alloc(READ)
    fields = {"allocation_length": 18} if cdb == "REQUEST SENSE" else {}
    last = Waiter(held.path, build(cdb, **fields), lun=1, data_in=[room[:18]] if fields else [])
    behind = Waiter(held.path, build("TEST UNIT READY"), lun=1)
    for n in range(DEPTH):
        assert ended(held) == n
        assert not last.done.is_set()
        assert not behind.done.is_set()
        let_end()
    assert last.end() is Status.GOOD
    assert behind.end() is Status.GOOD


def test_the_python_path_of_another_guest_waits_at_the_gate(held, let_end):
    """It executes nothing on a unit while commands of the C path are under way there."""
    with held.connect("srp") as other:
        path = other.initiator
        while Waiter(path, build("TEST UNIT READY"), lun=1).end() is not Status.GOOD:
            pass
        buffer = path.alloc(READ)
        assert read(path, 0, buffer, lun=1).end() is Status.GOOD
        attention = Waiter(path, build("TEST UNIT READY"))  # its unit attention is Python's
        for _ in range(DEPTH):
            assert not attention.done.is_set()
            let_end()
        assert attention.sense()[:2] == (6, 0x29)


def test_each_command_that_fails_is_answered_once_with_its_error(held, let_end):
    let_end(5)
    good = {waiter for waiter in held.waiting if waiter.done.is_set()}
    held.pipe.fail()
    for waiter in held.waiting:
        if waiter in good:
            assert waiter.end() is Status.GOOD
        else:
            assert waiter.sense() == (4, 0x44, 0)  # ESPIPE, when Python tries it again
    held.pipe.restore()
    assert read(held.path, 0, held.buffers[0]).end() is Status.GOOD
    assert held.ring_end.report()["requests"] == held.ring_end.report()["answers"]


def test_what_fails_is_answered_before_the_message_that_waited_for_it(held):
    """Else a command would be executed after the answer to its abort."""
    room = held.path.alloc(READ)
    cdb = build("REQUEST SENSE", allocation_length=18)
    last = Waiter(held.path, cdb, lun=1, data_in=[room[:18]])
    held.pipe.fail()
    assert last.end() is Status.GOOD
    assert ended(held) == DEPTH
    held.pipe.restore()


def test_a_channel_ends_only_after_what_is_under_way(held):
    """The initiator's memory is written to until then; the server goes on for others."""
    closing = threading.Thread(target=held.hba.close)
    closing.start()
    with held.connect("srp") as other:
        path = other.initiator
        buffer = path.alloc(READ)
        while Waiter(path, build("TEST UNIT READY"), lun=1).end() is not Status.GOOD:
            pass
        assert read(path, 0, buffer, lun=1).end() is Status.GOOD
        assert held.ring_end.connection is not None
        held.pipe.answer(DEPTH)
        closing.join(HANG_S)
        assert not closing.is_alive()
    for waiter in held.waiting:
        with contextlib.suppress(TransportError):
            assert waiter.end() is Status.GOOD


def test_more_commands_than_can_be_under_way_wait_for_their_turn(held):
    """The ring has more slots than there are commands."""
    more = [held.path.alloc(READ) for _ in range(DEPTH)]
    waiting = [read(held.path, 0, part) for part in more for _ in range(7)]
    total = DEPTH + len(waiting)
    for _ in range(total):
        held.pipe.answer()
    for waiter in (*held.waiting, *waiting):
        assert waiter.end() is Status.GOOD
