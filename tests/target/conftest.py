# SPDX-License-Identifier: MIT
"""What tests of the target share."""

import itertools
import os
import queue
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from vscsi.target.base import Nexus, Status, Task
from vscsi.target.buffers import length
from vscsi.target.disk import Disk
from vscsi.target.router import TaskRouter
from vscsi.target.stores.memory import MemoryStore
from vscsi.wire.cdb import build, lookup
from vscsi.wire.lun import encode
from vscsi.wire.opcodes import Direction
from vscsi.wire.sense import Sense, parse_sense


def _does_direct_io(folder: Path) -> bool:
    probe = folder / "probe"
    try:
        os.close(os.open(probe, os.O_RDWR | os.O_CREAT | os.O_DIRECT, 0o600))
    except OSError:
        return False
    finally:
        probe.unlink(missing_ok=True)
    return True


@pytest.fixture
def direct_folder(tmp_path):
    """A folder on a file system that takes O_DIRECT: tmpfs often does not, the checkout's may."""
    if _does_direct_io(tmp_path):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=Path(__file__).parent) as name:
        if not _does_direct_io(Path(name)):
            pytest.skip("no file system here takes O_DIRECT")
        yield Path(name)


@pytest.fixture
def small_file_system(tmp_path):
    """A real file system of 256 KiB: a tmpfs, or what a user namespace lets us mount."""
    if os.geteuid() or not shutil.which("mount"):
        pytest.skip("mounting a tmpfs takes root")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(tmp_path)], check=False
    )
    if mounted.returncode:
        pytest.skip("this container does not let root mount a tmpfs")
    yield tmp_path
    subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


@dataclass
class Answer:
    """What a task came to."""

    status: Status
    sense: Sense | None
    data: bytes
    """What was moved into data-in; the rest of the buffer is checked to be untouched."""
    moved: int
    overflow: int
    raw_sense: bytes

    @property
    def code(self):
        """Key, ASC and ASCQ as the standards' tables have them, or the status' name."""
        if self.sense is None:
            return self.status.name
        return f"{self.sense.key:x}/{self.sense.asc:02x}/{self.sense.ascq:02x}"


class Initiator:
    """Submits commands over one nexus and waits for their answers."""

    def __init__(self, router, name="initiator", *, attentions=False):
        self.router = router
        self.nexus = Nexus(name, "target")
        self.tags = itertools.count(1)
        router.attach(self.nexus)
        if not attentions:
            for lun in router.luns():
                while self("TEST UNIT READY", lun=lun).status is not Status.GOOD:
                    pass

    def task(self, cdb, *, lun=0, data_out=(), data_in=(), done=None, aborted=None, **fields):
        """Make a task; `cdb` is a command's name and its fields, or bytes."""
        task_fields = {name: fields.pop(name) for name in ("attribute", "tag") if name in fields}
        return Task(
            nexus=self.nexus,
            lun=lun if isinstance(lun, bytes) else encode(lun),
            cdb=cdb if isinstance(cdb, bytes) else build(cdb, **fields),
            done=done or (lambda _: None),
            aborted=aborted,
            data_out=data_out,
            data_in=data_in,
            **{"tag": next(self.tags), **task_fields},
        )

    def __call__(self, cdb, *, out=None, into=None, cuts=(), **more):
        """Execute a command with data-out bytes or a data-in buffer of so many bytes."""
        finished = queue.SimpleQueue()
        room = bytearray(b"\xa5" * (into or 0))
        task = self.task(
            cdb,
            data_out=segments(memoryview(out), cuts) if out is not None else (),
            data_in=segments(memoryview(room), cuts) if into is not None else (),
            done=finished.put,
            **more,
        )
        self.router.submit(task)
        assert finished.get(timeout=30) is task
        assert finished.empty()
        row = lookup(task.cdb)
        moved_in = task.moved if row is not None and row.direction is Direction.IN else 0
        if task.status is Status.GOOD:
            assert room[moved_in:] == b"\xa5" * (len(room) - moved_in)
        return Answer(
            task.status,
            parse_sense(task.sense) if task.sense else None,
            bytes(room[:moved_in]),
            task.moved,
            task.overflow,
            task.sense,
        )


def segments(view, cuts):
    """Cut a view at these offsets."""
    edges = [0, *(cut for cut in cuts if cut <= len(view)), len(view)]
    return [view[start:end] for start, end in itertools.pairwise(edges)]


class WatchedStore(MemoryStore):
    """A memory store that logs what is asked of it, fails or waits where a test says so."""

    def __init__(self, size_bytes=1 << 20, **options):
        super().__init__(size_bytes, **options)
        self.native = None  # all of it goes through here
        self.log = []
        self.errors = {}
        """By operation: the errno to fail with from now on."""
        self.gates = {}
        """By operation: called (in the executing thread) before it."""

    def _pass(self, operation, *what):
        if operation in self.gates:
            self.gates[operation](*what)
        self.log.append((operation, *what))
        if operation in self.errors:
            code = self.errors[operation]
            raise OSError(code, os.strerror(code))

    def readv(self, offset, views):
        self._pass("read", offset, length(views))
        super().readv(offset, views)

    def writev(self, offset, views):
        self._pass("write", offset, length(views))
        super().writev(offset, views)

    def flush(self):
        self._pass("flush")

    def discard(self, offset, length):
        self._pass("discard", offset, length)
        super().discard(offset, length)

    def content(self):
        """All bytes, without a trace in the log."""
        room = bytearray(self.size_bytes)
        super().readv(0, [memoryview(room)])
        return bytes(room)


@dataclass
class Setup:
    """A target with one disk, and an initiator that has seen its unit attentions."""

    store: MemoryStore
    disk: Disk
    router: TaskRouter
    run: Initiator


@pytest.fixture
def make_setup():
    """Make a target with a disk as LUN 0: `make_setup(store=..., workers=..., block_size=...)`."""
    routers = []

    def make(*, store=None, workers=0, depth=64, **options):
        store = store or WatchedStore()
        disk = Disk(store, **{"identity": "a test's disk", **options})
        router = TaskRouter(workers=workers, depth=depth)
        routers.append(router)
        router.add(0, disk)
        return Setup(store, disk, router, Initiator(router))

    yield make
    for router in routers:
        router.close()


@pytest.fixture
def setup(make_setup):
    """A target with a watched 1 MiB disk of 512-byte blocks, executing inline."""
    made = make_setup()
    made.store.log.clear()
    return made


@pytest.fixture
def watched_store():
    return WatchedStore


@pytest.fixture
def initiator():
    return Initiator
