# SPDX-License-Identifier: MIT
"""A store in a raw image file or a block device."""

import contextlib
import errno
import fcntl
import mmap
import os
import stat
import threading
from pathlib import Path

from vscsi.ring import Store as NativeStore
from vscsi.target.buffers import Views
from vscsi.wire.errors import SetupError

_LARGEST_PAGE = 4096


class FileStore:
    """A raw image or a block device, locked while it is open.

    A writable store holds an exclusive flock (and O_EXCL on a device, which mounting it also
    takes), a read-only one a shared flock: an image is never served twice. One that is `shared`
    holds neither: it is beside another server, which works on the same page cache. `direct` opens
    with O_DIRECT; offsets and the lengths of writes must then be multiples of `alignment`, and
    segments that are not go through a buffer. `mapped` maps it, for files that are memory (tmpfs,
    DAX): what is behind the end of a file that has become shorter is EIO.

    Raises SetupError if the path cannot be opened or locked.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        readonly: bool = False,
        direct: bool = False,
        mapped: bool = False,
        shared: bool = False,
    ) -> None:
        self.readonly = readonly
        self.alignment = 1
        self.path = str(path)
        self._lock = threading.Lock()
        self._descriptor = _open(self.path, readonly, direct, exclusive=not shared)
        try:
            if not shared:
                _claim(self._descriptor, self.path, readonly)
            self.size_bytes = self._find_size()
            if direct:
                self.alignment = _direct_alignment(self._descriptor, self.path)
            self.native = self._make_native(mapped)
            self.can_discard = not readonly and _can_punch(
                self._descriptor, self.native, self.size_bytes
            )
        except BaseException:
            os.close(self._descriptor)
            raise

    def _make_native(self, mapped: bool) -> NativeStore:
        if not mapped:
            return NativeStore.file(self._descriptor, self.alignment)
        try:
            return NativeStore.mapped(self._descriptor, self.size_bytes, writable=not self.readonly)
        except OSError as error:
            reason = os.strerror(error.errno or 0)
            raise SetupError("map", self.path, reason, "serve it without mmap:") from error

    def _find_size(self) -> int:
        size_bytes = os.lseek(self._descriptor, 0, os.SEEK_END)
        if size_bytes == 0:
            raise SetupError("serve", self.path, "it is empty", "`truncate -s SIZE` gives it one")
        return size_bytes

    def refresh(self) -> None:
        """Learn the size again, after the image has grown or shrunk below us."""
        size_bytes = self._find_size()
        self.native.resize(size_bytes, writable=not self.readonly)
        self.size_bytes = size_bytes

    def readv(self, offset: int, views: Views) -> None:
        """Fill the views; EIO if the file has become shorter than the range."""
        self.native.readv(offset, views)

    def writev(self, offset: int, views: Views) -> None:
        """Write the views."""
        self.native.writev(offset, views)

    @property
    def staged_bytes(self) -> int:
        """Bytes without O_DIRECT's alignment that went through a buffer."""
        return self.native.staged_bytes

    def flush(self) -> None:
        """Put every completed write on stable storage.

        The kernel reports lost dirty pages once and then forgets them. We do not: after one
        failure no later flush may claim that everything before it is stored.
        """
        if not self.readonly:
            self.native.flush()

    def discard(self, offset: int, length: int) -> None:
        """Punch a hole, or write zeros where the file system has no holes."""
        self.native.discard(offset, length)

    def close(self) -> None:
        """Close the file, which unlocks it."""
        with self._lock:
            descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            self.native.close()
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # a mapping, which goes last, would keep it
            os.close(descriptor)


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


def _can_punch(descriptor: int, native: NativeStore, size_bytes: int) -> bool:
    """Find out whether holes can be punched, without punching one."""
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode):
        try:  # beyond the end there is nothing to deallocate
            native.punch(size_bytes, _LARGEST_PAGE)
        except OSError:
            return False
        return True
    device = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    for queue in ("queue", "../queue"):  # a partition's queue is its disk's
        limit = Path(f"/sys/dev/block/{device}/{queue}/discard_max_bytes")
        with contextlib.suppress(OSError, ValueError):
            return int(limit.read_text()) > 0
    return False
