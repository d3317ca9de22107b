# SPDX-License-Identifier: MIT
"""What LIO needs of the kernel: modules, mounts, directories; and the kernel's own words."""

import fcntl
import os
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

from tgt_glue.configfs import CONFIGFS
from vscsi.wire.errors import SetupError

LOCK = Path("/run/vscsi-lio.lock")
_LOCK_TIMEOUT_S = 30
_LOCK_POLL_S = 0.05
_MODPROBE_TIMEOUT_S = 60
_TOOL_PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
_PLUGIN_MODULES = {
    "fileio": "target_core_file",
    "block": "target_core_iblock",
    "pscsi": "target_core_pscsi",
    "ramdisk": "target_core_mod",
    "user": "target_core_user",
}
_WARNING = 4
_RECORD_BYTES = 8192
_RECORDS = 3


def check_root() -> None:
    """Raise SetupError unless we may configure LIO."""
    if os.geteuid() != 0:
        raise SetupError("configure LIO in", str(CONFIGFS), "not root", "run it with sudo")


def prepare(plugins: Iterable[str]) -> None:
    """Load and mount what units on backstore plugins need; `sd_mod` is left to the user.

    Raises SetupError.
    """
    if "configfs" not in _file_systems():
        _modprobe("configfs")
    mount = CONFIGFS.parent
    if not mount.is_mount():
        _run(["mount", "-t", "configfs", "configfs", str(mount)], "see `dmesg`")
    backstores = [_PLUGIN_MODULES[plugin] for plugin in plugins]
    for module in dict.fromkeys(("target_core_mod", *backstores, "tcm_loop", "sg")):
        if not Path("/sys/module", module).exists():
            _modprobe(module)
    try:
        # Where LIO keeps reservations that outlive a power loss: as the system has it set.
        root = Path((CONFIGFS / "dbroot").read_text().strip())
        for name in ("pr", "alua"):
            (root / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SetupError(
            "make", str(error.filename), error.strerror or str(error), "make it by hand"
        ) from error


@contextmanager
def exclusive() -> Iterator[None]:
    """Keep other `vscsi lio` commands out: reading and changing are one. Raises SetupError."""
    try:
        descriptor = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise SetupError(
            "lock", str(LOCK), error.strerror or str(error), "run it as root"
        ) from error
    try:
        end = time.monotonic() + _LOCK_TIMEOUT_S
        while True:
            with suppress(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            if time.monotonic() >= end:
                raise SetupError(
                    "lock", str(LOCK), "another `vscsi lio` is at work", f"`fuser -v {LOCK}`"
                )
            time.sleep(_LOCK_POLL_S)
        yield
    finally:
        os.close(descriptor)


class KernelLog:
    """What the kernel logs from now on, where /dev/kmsg may be read; else nothing."""

    def __init__(self) -> None:
        self._descriptor: int | None = None

    def __enter__(self) -> Self:
        """Begin."""
        with suppress(OSError):
            self._descriptor = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            os.lseek(self._descriptor, 0, os.SEEK_END)
        return self

    def __exit__(self, *_: object) -> None:
        """End."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def complaints(self) -> list[str]:
        """Return the first few warnings and errors of the kernel's own."""
        found: list[str] = []
        while self._descriptor is not None and len(found) < _RECORDS:
            try:
                record = os.read(self._descriptor, _RECORD_BYTES).decode(errors="replace")
            except BrokenPipeError:
                continue  # older records were overwritten
            except OSError:
                break
            head, _, text = record.partition(";")
            level = head.partition(",")[0]
            words = text.partition("\n")[0].strip()
            serious = level.isdigit() and int(level) <= _WARNING  # facility 0: the kernel
            if serious and words not in found:
                found.append(words)
        return found


def _file_systems() -> list[str]:
    lines = Path("/proc/filesystems").read_text().splitlines()
    return [line.split()[-1] for line in lines if line]


def _modprobe(module: str) -> None:
    modules = Path("/lib/modules", os.uname().release)
    next_step = (
        "see `dmesg`"
        if modules.is_dir()
        else f"install the modules of kernel {os.uname().release} (Debian: linux-image-amd64)"
    )
    _run(["modprobe", module], next_step)


def _run(command: list[str], next_step: str) -> None:
    """Run a tool; raises SetupError with its words."""
    tool = shutil.which(command[0], path=_TOOL_PATH)
    if tool is None:
        raise SetupError("run", command[0], "it is not installed", "`apt install kmod mount`")
    with KernelLog() as log:
        try:
            subprocess.run(
                [tool, *command[1:]],
                capture_output=True,
                text=True,
                errors="replace",
                check=True,
                timeout=_MODPROBE_TIMEOUT_S,
            )
        except subprocess.CalledProcessError as error:
            words = [" ".join(error.stderr.split()) or f"status {error.returncode}"]
            reason = "; kernel: ".join(words + log.complaints())
            raise SetupError(command[0], " ".join(command[1:]), reason, next_step) from error
        except (OSError, subprocess.TimeoutExpired) as error:
            raise SetupError(command[0], " ".join(command[1:]), str(error), next_step) from error
