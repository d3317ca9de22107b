# SPDX-License-Identifier: MIT
"""What a unit stands on: checked against the machine before LIO is asked for anything."""

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tgt_glue.configfs import Storage, device_of
from tgt_glue.nodes import SYSFS, Hctl, all_nodes, block_node, device_type, hctl_of
from vscsi.wire.errors import SetupError

BLOCK = 512
PAGE = os.sysconf("SC_PAGE_SIZE")
_DISK = 0x00
"""Peripheral device type: direct access (SPC-6 6.7.2)."""
_PATH_BYTES = 255
"""The kernel's FD_MAX_DEV_NAME, without the final NUL."""


@dataclass(frozen=True, slots=True)
class Backing:
    """What a storage object shall be made of."""

    plugin: str
    """fileio, block, ramdisk, pscsi or user."""
    device: str
    """Absolute path as the user gave it (a link under /dev/disk stays one); empty for a ramdisk;
    of a user-backed one the path that it is behind.
    """
    size_bytes: int = 0
    """0 where the device tells its size itself."""
    new_file: bool = False
    """Whether the file has yet to be made, or filled."""
    block_bytes: int = BLOCK
    """User-backed: what the kernel takes for its logical block."""

    def differences(self, storage: Storage) -> list[str]:
        """Return in what a storage object is something else."""
        found = []
        if storage.plugin != self.plugin:
            found.append(f"it is {storage.plugin}, not {self.plugin}")
        elif self.device and device_of(storage.device) != device_of(self.device):
            found.append(f"it is on {storage.device}, not on {self.device}")
        elif self.size_bytes != storage.size_bytes and self.plugin != "user":
            # The kernel asks whoever serves a user-backed one, which may have grown since.
            found.append(f"it has {storage.size_bytes} bytes, not {self.size_bytes}")
        return found

    def __str__(self) -> str:
        """Return it in words."""
        size = f"{self.size_bytes} bytes" if self.size_bytes else ""
        return " of ".join(word for word in (self.plugin, size, self.device) if word)


def file_backing(path: str | Path, size_bytes: int | None = None) -> Backing:
    """Return a file's backing.

    size_bytes: of a file that is not there or empty, and is made; or how much of a file to use.
    Raises SetupError: missing, no file, too small.
    """
    name = _kernel_path(path)
    try:
        status = os.stat(name)
    except FileNotFoundError:
        if size_bytes is None:
            raise SetupError(
                "use file", name, "no such file", "--size SIZE makes one of that size"
            ) from None
        return Backing("fileio", name, _whole(name, size_bytes, BLOCK), new_file=True)
    except OSError as error:
        raise _refused("use file", name, error) from error
    if stat.S_ISBLK(status.st_mode):
        raise SetupError("use file", name, "it is a block device", "use --block")
    if not stat.S_ISREG(status.st_mode):
        raise SetupError("use file", name, "it is no regular file", "name a disk image")
    if size_bytes is None and not status.st_size:
        raise SetupError("use file", name, "it is empty", "--size SIZE gives it one")
    size = status.st_size if size_bytes is None else size_bytes
    if 0 < status.st_size < size:
        raise SetupError(
            "use file",
            name,
            f"too small: {status.st_size} bytes, not {size}",
            f"`truncate -s {size}` makes it larger",
        )
    return Backing("fileio", name, _whole(name, size, BLOCK), new_file=not status.st_size)


def block_backing(path: str | Path) -> Backing:
    """Return a block device's backing; raises SetupError."""
    name = _kernel_path(path)
    try:
        mode = os.stat(name).st_mode
    except OSError as error:
        raise _refused("use block device", name, error) from error
    if not stat.S_ISBLK(mode):
        raise SetupError("use block device", name, "it is none", "use --file for a disk image")
    return Backing("block", name)


def ramdisk_backing(size_bytes: int) -> Backing:
    """Return a ramdisk's backing, rounded up to whole pages; raises SetupError."""
    _whole("ramdisk", size_bytes, 1)
    return Backing("ramdisk", "", -(-size_bytes // PAGE) * PAGE)


def pscsi_backing(device: str) -> Backing:
    """Return the backing that passes a SCSI device through.

    device: a block, tape or sg node, or H:C:T:L. Raises SetupError.
    """
    tried = ("pass through", device)
    hctl = Hctl.parse(device)
    if hctl is not None:
        nodes = all_nodes(hctl)
        if not nodes:
            raise SetupError(*tried, "no such SCSI device", "see `lsscsi`, `modprobe sg`")
        path = str(nodes[0])
    else:
        path = _kernel_path(device)
        try:
            hctl = hctl_of(path)
        except OSError as error:
            raise _refused("pass through", path, error) from error
        if hctl is None:
            raise SetupError(*tried, "it is no SCSI device", "use --block for other disks")
    if device_type(hctl) == _DISK and not stat.S_ISBLK(os.stat(path).st_mode):
        path = str(block_node(hctl))  # the kernel claims disks by their block device
    return Backing("pscsi", path)


def check_free(backing: Backing, storages: Sequence[Storage]) -> None:
    """Check that nobody else uses a device, and that memory suffices; raises SetupError.

    storages: all that LIO has. LIO itself would serve one file twice.
    """
    if backing.plugin == "ramdisk":
        _check_memory(backing.size_bytes)
    if backing.plugin in ("ramdisk", "user"):
        return
    device = device_of(backing.device)
    for storage in storages:
        if storage.device and device_of(storage.device) == device:
            raise _busy(backing, f"LIO's {storage.title} uses it")
    users = list(_loops(device))
    if backing.plugin in ("block", "pscsi"):
        users += users_of(device)
    if users:
        raise _busy(backing, "; ".join(users))


def in_use(node: str | Path) -> bool:
    """Return whether a block device is mounted, swapped on or otherwise claimed."""
    try:
        status = os.stat(node)
        if not stat.S_ISBLK(status.st_mode):
            return False
        os.close(os.open(node, os.O_RDONLY | os.O_EXCL | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError as error:
        return error.errno == errno.EBUSY
    return False


def users_of(node: str | Path) -> list[str]:
    """Return who claims a block device, in words; raises OSError if it is not there."""
    users = _mounts(node)
    if not users and in_use(node):
        users = ["something has it open for itself alone"]
    return users


def _busy(backing: Backing, reason: str) -> SetupError:
    return SetupError(
        f"make a {backing.plugin} unit of", backing.device, f"busy: {reason}", "free it first"
    )


def _loops(device: str) -> Iterator[str]:
    """Yield the loop devices that stand on a file."""
    for entry in sorted(SYSFS.glob("block/loop*/loop/backing_file")):
        try:
            if device_of(entry.read_text().rstrip("\n")) == device:
                yield f"/dev/{entry.parts[-3]} stands on it"
        except OSError:
            continue


def _mounts(device: str | Path) -> list[str]:
    """Return where a block device is mounted."""
    number = os.stat(device).st_rdev
    device_number = f"{os.major(number)}:{os.minor(number)}"
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    fields = [line.split() for line in lines]
    return [f"mounted on {words[4]}" for words in fields if words[2] == device_number]


def _check_memory(size_bytes: int) -> None:
    """LIO allocates a ramdisk at once, and would have the kernel kill processes for it."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable" and size_bytes > int(value.split()[0]) * 1024:
            raise SetupError(
                "make a ramdisk of",
                f"{size_bytes} bytes",
                f"only {value.strip()} of memory are available",
                "take a smaller one, or --file",
            )


def _kernel_path(path: str | Path) -> str:
    """Return an absolute path that LIO's option parser takes."""
    name = os.path.abspath(path)
    if "," in name or not name.isprintable() or len(os.fsencode(name)) > _PATH_BYTES:
        raise SetupError(
            "use",
            repr(name),
            f"the kernel takes no paths with commas or control characters, or over {_PATH_BYTES}"
            " bytes",
            "make a link to it with another name",
        )
    return name


def _whole(name: str, size_bytes: int, unit: int) -> int:
    if size_bytes <= 0 or size_bytes % unit:
        raise SetupError(
            "use", name, f"{size_bytes} bytes are no whole number of blocks", f"--size N*{unit}"
        )
    return size_bytes


def _refused(tried: str, path: str, error: OSError) -> SetupError:
    return SetupError(tried, path, error.strerror or str(error), "check the path and its rights")
