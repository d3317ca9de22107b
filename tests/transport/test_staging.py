# SPDX-License-Identifier: MIT
"""Which bytes are copied on their way between a guest's buffer and an image opened O_DIRECT."""

import os
import tempfile
import threading
from pathlib import Path

import pytest

from vscsi.target.stores.file import FileStore
from vscsi.transport.initiator import Command
from vscsi.wire.cdb import build

BLOCKS = 64
LENGTH = BLOCKS * 512
HANG_S = 30


def direct_store(folder):
    path = Path(folder) / "image"
    path.write_bytes(bytes(1 << 20))
    try:
        os.close(os.open(path, os.O_RDWR | os.O_DIRECT))
    except OSError:
        return None
    return FileStore(path, direct=True)


@pytest.fixture
def direct(tmp_path, nothing_left):
    """A store that takes only aligned memory; a tmpfs does not have that, the checkout's may."""
    with tempfile.TemporaryDirectory(dir=Path(__file__).parent) as here:
        store = direct_store(tmp_path) or direct_store(here)
        if store is None:
            pytest.skip("no file system here takes O_DIRECT")
        yield store
        store.close()


@pytest.mark.parametrize("protocol", ["srp", "vscsiif", "blkif"])
@pytest.mark.parametrize("workers", [0, 4])
def test_aligned_buffers_cross_without_a_copy_and_others_are_counted(
    serve, direct, protocol, workers
):
    server = serve(direct, workers=workers)
    with server.connect(protocol) as hba:
        hba.lun(0).capacity()
        path = hba.initiator

        def staged():
            return path.statistics.staged_bytes, path.backend_statistics()["staged_bytes"]

        whole = path.alloc(LENGTH + 4096)
        for offset in (0, direct.alignment, 4096, 1, 511, 513):
            buffer = whole[offset : offset + LENGTH]
            data = bytes((offset + n) % 251 for n in range(LENGTH))
            buffer.view[:] = data
            before = staged()
            run(path, build("WRITE(10)", lba=1, blocks=BLOCKS), data_out=[buffer])
            buffer.view[:] = bytes(LENGTH)
            run(path, build("READ(10)", lba=1, blocks=BLOCKS), data_in=[buffer])
            assert buffer.view == data
            frontend, backend = (now - then for now, then in zip(staged(), before, strict=True))
            if offset % direct.alignment == 0:
                assert (frontend, backend) == (0, 0)
            elif protocol == "blkif":  # whole sectors cross, so it is staged where it starts from
                assert (frontend, backend) == (2 * LENGTH, 0)
            else:
                assert frontend == 0
                assert 0 < backend <= 2 * LENGTH
        path.free(whole)


def run(path, cdb, **buffers):
    done = threading.Event()
    command = Command(lun=bytes(8), cdb=cdb, done=lambda _: done.set(), **buffers)
    path.submit(command)
    assert done.wait(HANG_S)
    assert (command.error, command.status) == (None, 0)
