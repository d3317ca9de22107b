# SPDX-License-Identifier: MIT
"""From a SCSI address to its device nodes, by sysfs: host and sg numbers are never stable.

The sg node is there when the kernel has added the unit; block and tape nodes follow when their
driver has looked at it (`sd_mod` is the user's to load).
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Self

from vscsi.wire.errors import SetupError

SYSFS = Path("/sys")
DEV = Path("/dev")
_DISK_CLASS, _TAPE_CLASS, _SG_CLASS = "block", "scsi_tape", "scsi_generic"
_POLL_S = 0.01


class Hctl(NamedTuple):
    """A unit's address in the kernel's SCSI midlayer."""

    host: int
    channel: int
    target: int
    lun: int

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Return what "H:C:T:L" says, None if it does not say that."""
        words = text.split(":")
        if len(words) != 4 or not all(word.isascii() and word.isdigit() for word in words):
            return None
        return cls(*map(int, words))

    def __str__(self) -> str:
        """Return "H:C:T:L"."""
        return ":".join(map(str, self))


def sg_node(hctl: Hctl, *, timeout_s: float = 0.0) -> Path:
    """Return the character device that CDBs are sent through.

    timeout_s: how long sysfs is polled for it. Raises SetupError.
    """
    return _wait_for(hctl, _SG_CLASS, timeout_s, "`modprobe sg`")


def block_node(hctl: Hctl, *, timeout_s: float = 0.0) -> Path:
    """Return the disk's block device; raises SetupError, as where `sd_mod` is not loaded."""
    return _wait_for(hctl, _DISK_CLASS, timeout_s, "`modprobe sd_mod`, which makes disks of units")


def all_nodes(hctl: Hctl) -> list[Path]:
    """Return the device nodes that there are now: sg first, then block or tape."""
    return [node for kind in (_SG_CLASS, _DISK_CLASS, _TAPE_CLASS) for node in _nodes(hctl, kind)]


def device_type(hctl: Hctl) -> int | None:
    """Return the peripheral device type (SPC-6 6.7.2) that a unit told the kernel."""
    try:
        return int((_device(hctl) / "type").read_text())
    except (OSError, ValueError):
        return None


def rescan(hctl: Hctl) -> None:
    """Have the driver of a unit's device ask for its size again; OSError."""
    (_device(hctl) / "rescan").write_text("1\n")


def hctl_of(node: str | Path) -> Hctl | None:
    """Return the address behind a block, tape or sg node, None if it is no SCSI unit's.

    Raises OSError if there is no such node.
    """
    status = os.stat(node)
    kind = "block" if _is_block(status.st_mode) else "char"
    device = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    try:
        return Hctl.parse((SYSFS / "dev" / kind / device / "device").resolve(strict=True).name)
    except OSError:
        return None


def _wait_for(hctl: Hctl, kind: str, timeout_s: float, next_step: str) -> Path:
    end = time.monotonic() + timeout_s
    while True:
        for node in _nodes(hctl, kind):
            return node
        if time.monotonic() >= end:
            break
        time.sleep(_POLL_S)
    if not _device(hctl).is_dir():
        raise SetupError("find unit", str(hctl), "it is not there", "`vscsi lio list`")
    raise SetupError(f"find the {kind} node of unit", str(hctl), "it has none", next_step)


def _nodes(hctl: Hctl, kind: str) -> Iterator[Path]:
    """Yield the nodes of a class whose device number is the one that sysfs tells."""
    for entry in sorted((_device(hctl) / kind).glob("*"), key=lambda each: len(each.name)):
        node = DEV / entry.name.replace("!", "/")
        try:
            told = entry.joinpath("dev").read_text().strip()
            number = node.stat().st_rdev
        except OSError:
            continue  # leaving, or not there yet
        if told == f"{os.major(number)}:{os.minor(number)}":
            yield node


def _device(hctl: Hctl) -> Path:
    return SYSFS / "class" / "scsi_device" / str(hctl) / "device"


def _is_block(mode: int) -> bool:
    return (mode & 0o170000) == 0o060000
