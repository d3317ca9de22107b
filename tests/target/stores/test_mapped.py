# SPDX-License-Identifier: MIT
"""A mapped image: what is written reaches the file; a file that shrinks costs its I/O alone."""

import errno
import mmap
import os
import signal
import subprocess
import sys
import threading

import pytest

from vscsi.target.stores.file import FileStore
from vscsi.target.stores.open import open_store
from vscsi.wire.errors import SetupError

SIZE = 1 << 20


@pytest.fixture(params=["disk", "memory"])
def image(request, tmp_path):
    """An image on a disk, or in memory where there is a tmpfs."""
    path = tmp_path / "disk.img"
    if request.param == "memory":
        descriptor = os.memfd_create("disk.img")
        path = f"/proc/{os.getpid()}/fd/{descriptor}"
    with open(path, "wb") as file:
        file.write(bytes(SIZE))
    yield path
    if request.param == "memory":
        os.close(descriptor)


def content(path):
    with open(path, "rb") as file:
        return file.read()


def test_its_name_opens_it(image):
    store = open_store(f"mmap:{image}")
    assert (store.size_bytes, store.readonly, store.alignment) == (SIZE, False, 1)
    store.close()
    with pytest.raises(SetupError, match="No such file"):
        open_store("mmap:/no/such/file")
    readonly = open_store(f"mmap:{image}", readonly=True)
    readonly.readv(0, [memoryview(bytearray(SIZE))])
    assert not readonly.can_discard
    readonly.close()


@pytest.mark.parametrize("size", [512, 5000, 4096 * 3 + 512])
def test_sizes_that_are_no_multiple_of_a_page(image, size):
    os.truncate(image, size)
    store = FileStore(image, mapped=True)
    data = os.urandom(size)
    store.writev(0, [memoryview(data)[:7], memoryview(data)[7:]])
    store.flush()
    assert content(image) == data
    back = bytearray(600)
    store.readv(size - 500, [memoryview(back)[:500]])
    assert back == data[-500:] + bytes(100)
    for move in (store.readv, store.writev):  # the last page goes on, the file does not
        with pytest.raises(OSError, match="Input/output"):
            move(size - 500, [memoryview(back)])
    store.close()
    assert content(image) == data


def test_a_file_cut_short_below_us_is_an_io_error_and_comes_back(image):
    store = FileStore(image, mapped=True)
    os.truncate(image, 6000)
    into = memoryview(bytearray(4096))
    for move in (store.readv, store.writev):
        with pytest.raises(OSError, match="Input/output") as caught:
            move(SIZE - 4096, [into[:1], into[1:]])
        assert caught.value.errno == errno.EIO
    with pytest.raises(OSError, match="Input/output"):
        store.flush()  # what was written to the end of its last page is not in the file
    store.refresh()
    assert store.size_bytes == 6000
    store.flush()
    os.truncate(image, 3 * SIZE)
    store.refresh()
    store.writev(2 * SIZE, [memoryview(b"behind the old end")])
    assert content(image)[2 * SIZE :][:18] == b"behind the old end"
    store.close()


def test_a_file_is_truncated_while_several_threads_copy(image):
    """Each copy ends well or with an error, and what ends well has the right bytes."""
    store = FileStore(image, mapped=True)
    store.writev(0, [memoryview(b"\xaa" * SIZE)])
    outcomes = {"good": 0, "bad": 0}
    stop = threading.Event()
    failures = []

    def copy(writing):
        into = memoryview(mmap.mmap(-1, SIZE))
        into[:] = b"\xaa" * SIZE
        while not stop.is_set():
            try:
                (store.writev if writing else store.readv)(0, [into[:4096], into[4096:]])
            except OSError as error:
                outcomes["bad"] += 1
                # A file that has its size again looks as if its pages could not be had.
                if error.errno not in ((errno.EIO, errno.ENOSPC) if writing else (errno.EIO,)):
                    failures.append(error)
            else:
                outcomes["good"] += 1
                if set(into[::4096]) - {0, 0xAA}:
                    failures.append(bytes(into[::4096]))

    threads = [threading.Thread(target=copy, args=(n == 0,)) for n in range(3)]
    for thread in threads:
        thread.start()
    rounds = 0
    while rounds < 100 or not (outcomes["good"] and outcomes["bad"]):
        os.truncate(image, 4096 * (rounds % 200))
        os.truncate(image, SIZE)
        rounds += 1
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures
    store.close()


def test_a_full_file_system_is_no_space(small_file_system):
    path = small_file_system / "sparse.img"
    with path.open("wb") as file:
        file.truncate(1 << 20)
    store = FileStore(path, mapped=True)
    with pytest.raises(OSError, match="No space") as caught:
        store.writev(0, [memoryview(bytes(1 << 20))])
    assert caught.value.errno == errno.ENOSPC
    store.discard(0, 1 << 20)
    store.writev(1 << 19, [memoryview(b"there is room again")])
    store.close()


_OTHER_FAULT = """
import mmap, os, signal, sys
from vscsi.target.stores.file import FileStore
path, how = sys.argv[1:]
if how == "handled":
    def handler(*_):
        os._exit(7)
    signal.signal(signal.SIGBUS, handler)
store = FileStore(path, mapped=True)
own = mmap.mmap(os.open(path, os.O_RDWR), 0)
os.truncate(path, 4096)
try:
    store.readv(8192, [memoryview(bytearray(10))])
except OSError as error:
    print(error.errno, flush=True)
if how == "fault":
    own[8192]
os.kill(os.getpid(), signal.SIGBUS)
"""


@pytest.mark.parametrize(
    ("how", "status"),
    [("fault", -signal.SIGBUS), ("sent", -signal.SIGBUS), ("handled", 7)],
)
def test_any_other_sigbus_goes_where_it_went_before(tmp_path, how, status):
    path = tmp_path / "image"
    path.write_bytes(bytes(SIZE))
    done = subprocess.run(
        [sys.executable, "-c", _OTHER_FAULT, str(path), how],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (status, f"{errno.EIO}\n")
