# SPDX-License-Identifier: MIT
"""A store in a raw image file or a block device."""

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path

from vscsi.ring import Store as NativeStore
from vscsi.target.buffers import Views
from vscsi.target.stores.staging import Plan
from vscsi.wire.errors import SetupError

_IOV_MAX = os.sysconf("SC_IOV_MAX")
_PUNCH_HOLE_KEEP_SIZE = 0x03  # fallocate(2): FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
_LARGEST_PAGE = 4096
_ZEROS = memoryview(mmap.mmap(-1, 1 << 20)).toreadonly()

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def _punch_hole(descriptor: int, offset: int, length: int) -> None:
    """Deallocate a range that reads as zeros from now on (works on block devices as well)."""
    if _libc.fallocate(descriptor, _PUNCH_HOLE_KEEP_SIZE, offset, length) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


class FileStore:
    """A raw image or a block device, locked while it is open.

    A writable store holds an exclusive flock (and O_EXCL on a device, which mounting it also
    takes), a read-only one a shared flock: an image is never served twice. One that is `shared`
    holds neither: it is beside another server, which works on the same page cache. `direct` opens
    with O_DIRECT; offsets and the lengths of writes must then be multiples of `alignment`.

    Raises SetupError if the path cannot be opened or locked.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        readonly: bool = False,
        direct: bool = False,
        shared: bool = False,
    ) -> None:
        self.readonly = readonly
        self.alignment = 1
        self.staged_bytes = 0
        self.size_bytes = 0
        self.can_discard = False
        self.native: NativeStore | None = None
        self._path = str(path)
        self._lock = threading.Lock()
        self._descriptor = _open(self._path, readonly, direct, exclusive=not shared)
        try:
            if not shared:
                _claim(self._descriptor, self._path, readonly)
            self.refresh()
            if direct:
                self.alignment = _direct_alignment(self._descriptor, self._path)
            self.can_discard = not readonly and _can_punch(self._descriptor, self.size_bytes)
            self._native = NativeStore.file(self._descriptor)
            self.native = None if direct else self._native
        except BaseException:
            self.close()
            raise

    def refresh(self) -> None:
        """Learn the size again, after the image has grown or shrunk below us."""
        size_bytes = os.lseek(self._descriptor, 0, os.SEEK_END)
        if size_bytes == 0:
            raise SetupError("serve", self._path, "it is empty", "`truncate -s SIZE` gives it one")
        self.size_bytes = size_bytes

    def readv(self, offset: int, views: Views) -> None:
        """Fill the views; EIO if the file has become shorter than the range."""
        if self.alignment == 1:
            _transfer(os.preadv, self._descriptor, offset, views)
            return
        plan = Plan(views, self.alignment)
        _transfer(os.preadv, self._descriptor, offset, plan.views)
        plan.drain()
        self._count(plan)

    def writev(self, offset: int, views: Views) -> None:
        """Write the views."""
        if self.alignment == 1:
            _transfer(os.pwritev, self._descriptor, offset, views)
            return
        plan = Plan(views, self.alignment)
        plan.fill()
        _transfer(os.pwritev, self._descriptor, offset, plan.views)
        self._count(plan)

    def _count(self, plan: Plan) -> None:
        with self._lock:
            self.staged_bytes += plan.staged_bytes

    def flush(self) -> None:
        """Put every completed write on stable storage.

        The kernel reports lost dirty pages once and then forgets them. We do not: after one
        failure no later flush may claim that everything before it is stored.
        """
        if not self.readonly:
            self._native.flush()

    def discard(self, offset: int, length: int) -> None:
        """Punch a hole, or write zeros where the file system has no holes."""
        try:
            _punch_hole(self._descriptor, offset, length)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            for start in range(offset, offset + length, len(_ZEROS)):
                count = min(len(_ZEROS), offset + length - start)
                _transfer(os.pwritev, self._descriptor, start, [_ZEROS[:count]])

    def close(self) -> None:
        """Close the file, which unlocks it."""
        with self._lock:
            descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def _transfer(
    call: Callable[[int, list[memoryview], int], int], descriptor: int, offset: int, views: Views
) -> None:
    """Repeat preadv or pwritev until all is moved: they stop early, and take IOV_MAX segments."""
    waiting = [view for view in views if len(view)]
    first = 0
    while first < len(waiting):
        moved = call(descriptor, waiting[first : first + _IOV_MAX], offset)
        if moved == 0:
            raise OSError(errno.EIO, "the image ends inside the range")
        offset += moved
        while moved:
            if moved < len(waiting[first]):
                waiting[first] = waiting[first][moved:]
                break
            moved -= len(waiting[first])
            first += 1


def _open(path: str, readonly: bool, direct: bool, *, exclusive: bool) -> int:
    """Open a regular file or block device, and nothing that could block or has no size."""
    tried = f"open {'read-only' if readonly else 'for writing'}"
    flags = os.O_CLOEXEC | (os.O_RDONLY if readonly else os.O_RDWR)
    try:
        mode = os.stat(path).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            raise SetupError(
                tried, path, "neither a regular file nor a block device", "name a raw image"
            )
        if stat.S_ISBLK(mode) and not readonly and exclusive:
            flags |= os.O_EXCL
        if direct:
            flags |= os.O_DIRECT
        return os.open(path, flags)
    except OSError as error:
        advice = {
            errno.ENOENT: "check the path",
            errno.EACCES: "check its permissions, or serve it read-only",
            errno.EROFS: "serve it read-only",
            errno.EBUSY: "unmount it or stop what uses it",
            errno.EINVAL: "this file system may not do O_DIRECT: serve it without",
        }.get(error.errno or 0, "check the path and its permissions")
        raise SetupError(tried, path, os.strerror(error.errno or 0), advice) from error


def _claim(descriptor: int, path: str, readonly: bool) -> None:
    """Lock the image against a second server."""
    kind = fcntl.LOCK_SH if readonly else fcntl.LOCK_EX
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno != errno.EWOULDBLOCK:
            raise SetupError(
                "lock", path, os.strerror(error.errno or 0), "use a local disk"
            ) from error
        raise SetupError(
            "lock", path, "it is being served already", "stop the other server (`fuser` names it)"
        ) from error


def _direct_alignment(descriptor: int, path: str) -> int:
    """Find the alignment O_DIRECT wants here by trying; only a later statx(2) can tell."""
    page = memoryview(mmap.mmap(-1, 2 * _LARGEST_PAGE))
    for alignment in (512, 1024, 2048, _LARGEST_PAGE):
        with contextlib.suppress(OSError):
            os.preadv(descriptor, [page[alignment : 2 * alignment]], alignment)
            return alignment
    raise SetupError("read with O_DIRECT from", path, "no alignment works", "serve it without")


def _can_punch(descriptor: int, size_bytes: int) -> bool:
    """Find out whether holes can be punched, without punching one."""
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode):
        try:  # beyond the end there is nothing to deallocate
            _punch_hole(descriptor, size_bytes, _LARGEST_PAGE)
        except OSError:
            return False
        return True
    device = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    for queue in ("queue", "../queue"):  # a partition's queue is its disk's
        limit = Path(f"/sys/dev/block/{device}/{queue}/discard_max_bytes")
        with contextlib.suppress(OSError, ValueError):
            return int(limit.read_text()) > 0
    return False
