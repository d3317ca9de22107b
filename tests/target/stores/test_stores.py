# SPDX-License-Identifier: MIT
"""Every store against a bytearray; the file store against the kernel's view of its file."""

import contextlib
import errno
import itertools
import mmap
import os
import subprocess

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.refusal import call_without
from vscsi.target.buffers import length
from vscsi.target.stores.file import FileStore
from vscsi.target.stores.memory import MemoryStore
from vscsi.target.stores.null import NullStore
from vscsi.target.stores.open import open_store
from vscsi.wire.errors import SetupError

SIZE = 1 << 20


@pytest.fixture
def image(direct_folder):
    path = direct_folder / "disk.img"
    path.write_bytes(bytes(SIZE))
    return path


@pytest.fixture(params=["memory", "file", "direct", "mapped"])
def store(request, image):
    made = MemoryStore(SIZE) if request.param == "memory" else None
    kind = request.param
    made = made or FileStore(image, direct=kind == "direct", mapped=kind == "mapped")
    yield made
    made.close()


def views_of(data, *cuts, misaligned=0):
    """Cut data into views (in page aligned memory, shifted by `misaligned` bytes)."""
    memory = memoryview(mmap.mmap(-1, len(data) + 4096))[misaligned : misaligned + len(data)]
    memory[:] = data
    edges = [0, *cuts, len(data)]
    return [memory[start:end] for start, end in itertools.pairwise(edges)]


def pattern(count, seed=1):
    return bytes((index * 7 + seed + index // 251) & 0xFF for index in range(count))


def test_what_is_written_in_segments_reads_back_in_other_segments(store):
    data = pattern(8192)
    store.writev(4096, views_of(data, 512, 512, 1536, 4096))
    into = views_of(bytes(8192), 1, 700, 4097)
    store.readv(4096, into)
    assert b"".join(into) == data
    store.flush()


def test_more_segments_than_one_system_call_takes(store):
    count = os.sysconf("SC_IOV_MAX") * 2 + 5
    data = pattern(4 * count)[: 4 * count // 4096 * 4096]
    store.writev(0, views_of(data, *range(4, len(data), 4)))
    into = views_of(bytes(len(data)), *range(3, len(data), 3))
    store.readv(0, into)
    assert b"".join(into) == data


def test_a_discarded_range_reads_as_zeros(store):
    store.writev(0, views_of(b"\xff" * 65536))
    assert store.can_discard
    store.discard(4096, 8192)
    into = views_of(bytes([1]) * 65536)
    store.readv(0, into)
    assert b"".join(into) == b"\xff" * 4096 + bytes(8192) + b"\xff" * (65536 - 12288)


def test_discard_punches_a_hole(image):
    image.write_bytes(b"\xff" * SIZE)
    os.sync()
    store = FileStore(image)
    before = os.stat(image).st_blocks
    store.discard(65536, 131072)
    descriptor = os.open(image, os.O_RDONLY)
    try:
        assert os.lseek(descriptor, 0, os.SEEK_HOLE) == 65536
        assert os.lseek(descriptor, 65536, os.SEEK_DATA) == 65536 + 131072
    finally:
        os.close(descriptor)
    assert os.stat(image).st_blocks <= before - 131072 // 512
    assert os.stat(image).st_size == SIZE
    store.close()


@pytest.mark.parametrize("kind", ["file", "direct", "mapped"])
def test_discard_writes_zeros_where_there_are_no_holes(image, kind):
    image.write_bytes(b"\xff" * SIZE)

    def discard():
        store = FileStore(image, direct=kind == "direct", mapped=kind == "mapped")
        assert not store.can_discard
        store.discard(4096, SIZE - 8192)
        store.close()

    call_without("fallocate", errno.EOPNOTSUPP, discard)
    assert image.read_bytes() == b"\xff" * 4096 + bytes(SIZE - 8192) + b"\xff" * 4096


def test_any_other_failure_of_a_discard_is_told(image):
    image.write_bytes(b"\xff" * SIZE)
    store = FileStore(image)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)) as caught:
        call_without("fallocate", errno.EIO, lambda: store.discard(0, 4096))
    assert caught.value.errno == errno.EIO
    store.close()
    assert image.read_bytes() == b"\xff" * SIZE


@settings(
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # each example writes it anew
)
@given(data=st.data())
def test_direct_io_stages_unaligned_segments_alone(direct_folder, data):
    path = direct_folder / "disk.img"
    path.write_bytes(pattern(65536))
    with contextlib.closing(FileStore(path, direct=True)) as store:
        total = 4096 * data.draw(st.integers(1, 4))
        misaligned = data.draw(st.sampled_from([0, 0, 1, 4, 100, store.alignment]))
        cuts = sorted(data.draw(st.lists(st.integers(0, total), max_size=6)))
        new = pattern(total, seed=99)
        store.writev(8192, views_of(new, *cuts, misaligned=misaligned))
        staged = store.staged_bytes
        assert path.read_bytes() == pattern(65536)[:8192] + new + pattern(65536)[8192 + total :]
        into = views_of(bytes(total), *cuts, misaligned=misaligned)
        store.readv(8192, into)
        assert b"".join(into) == new
        assert store.staged_bytes == 2 * staged <= 2 * total
        aligned = misaligned % store.alignment == 0 and all(c % store.alignment == 0 for c in cuts)
        assert (staged == 0) == aligned


def test_read_only_memory_can_be_written_from_with_direct_io(image):
    store = FileStore(image, direct=True)
    data = pattern(4096)
    store.writev(0, [memoryview(data)[:100], memoryview(data)[100:]])
    store.close()
    assert image.read_bytes()[:4096] == data


def test_a_direct_read_into_a_part_of_a_block_moves_that_part(image):
    image.write_bytes(pattern(SIZE))
    store = FileStore(image, direct=True)
    into = views_of(bytes(700), 10)
    store.readv(4096, into)
    assert b"".join(into) == pattern(SIZE)[4096:4796]
    store.close()


def test_a_file_cut_short_below_us_is_an_io_error(image):
    store = FileStore(image)
    os.truncate(image, 6000)
    with pytest.raises(OSError, match="Input/output") as caught:
        store.readv(4096, views_of(bytes(4096)))
    assert caught.value.errno == errno.EIO
    store.refresh()
    assert store.size_bytes == 6000
    store.close()


def test_transfers_that_stop_early_are_continued(image):
    """The kernel moves at most 2 GiB less a page at once, which ends inside a view here."""
    view = memoryview(mmap.mmap(-1, 3 << 20))
    most = 0x7FFF_F000
    total = (most // len(view) + 1) * len(view)
    assert most % len(view)
    with image.open("r+b") as file:
        file.seek(total - 7)
        file.write(b"the end")
        file.truncate(total)
    store = FileStore(image, direct=True)  # holes, and nothing of them in the page cache
    store.readv(0, [view] * (total // len(view)))
    assert bytes(view[-7:]) == b"the end"
    store.close()


def test_a_failed_flush_is_never_followed_by_a_successful_one(image):
    """The kernel tells of lost data once: the next fdatasync would succeed."""
    store = FileStore(image)
    reader, writer = os.pipe()
    good = os.dup(store._descriptor)
    os.dup2(writer, store._descriptor)  # a pipe cannot be flushed
    with pytest.raises(OSError, match="Invalid argument") as first:
        store.flush()
    os.dup2(good, store._descriptor)
    with pytest.raises(OSError, match="Invalid argument") as second:
        store.flush()
    assert first.value.errno == second.value.errno == errno.EINVAL
    store.close()
    for fd in (reader, writer, good):
        os.close(fd)


def test_an_image_is_served_once_for_writing_or_many_times_read_only(image):
    writer = FileStore(image)
    for readonly in (False, True):
        with pytest.raises(SetupError, match="served already"):
            FileStore(image, readonly=readonly)
    writer.close()
    writer.close()
    readers = [FileStore(image, readonly=True) for _ in range(2)]
    with pytest.raises(SetupError, match="served already"):
        FileStore(image)
    for reader in readers:
        reader.close()
    FileStore(image).close()


def test_beside_another_server_there_is_no_lock(image):
    first, beside = FileStore(image), FileStore(image, shared=True)
    beside.writev(0, [memoryview(b"beside")])
    data = bytearray(6)
    first.readv(0, [memoryview(data)])
    assert data == b"beside"
    first.close()
    FileStore(image).close()
    beside.close()


def test_the_lock_is_one_that_other_programs_see(image):
    store = FileStore(image)
    command = ["flock", "--nonblock", str(image), "true"]
    assert subprocess.run(command, check=False).returncode == 1
    store.close()
    assert subprocess.run(command, check=False).returncode == 0


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: None, "No such file"),
        (lambda path: path.mkdir(), "neither a regular file nor a block device"),
        (lambda path: os.mkfifo(path), "neither a regular file nor a block device"),
        (lambda path: path.touch(), "it is empty"),
    ],
)
def test_what_cannot_be_served_is_said_in_one_line(tmp_path, make, says):
    path = tmp_path / "thing"
    make(path)
    with pytest.raises(SetupError, match=says) as caught:
        open_store(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_names_of_stores(image):
    assert isinstance(open_store("memory:64K"), MemoryStore)
    assert open_store("memory:64K").size_bytes == 65536
    assert isinstance(open_store("null:1T", readonly=True), NullStore)
    store = open_store(image, readonly=True)
    assert isinstance(store, FileStore)
    assert (store.readonly, store.can_discard) == (True, False)
    store.close()


def test_the_null_store_gives_zeros_whatever_the_memory_held():
    store = NullStore(1 << 40)
    into = views_of(b"\xff" * 1000, 10)
    store.writev(0, into)
    store.readv(1 << 39, into)
    assert b"".join(into) == bytes(1000)
    assert length(into) == 1000
