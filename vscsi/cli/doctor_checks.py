# SPDX-License-Identifier: MIT
"""What `vscsi doctor` looks for: a table of checks. Features are probed for, nothing is changed."""

import fcntl
import importlib
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

Probe = Callable[[], str]
"""Returns what was found; raises Missing."""

_TOOL_PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin:/sbin"
"""Users need not have the places of mke2fs and modprobe in their PATH."""
_PROBE_TIMEOUT_S = 20


class Missing(Exception):
    """What was looked for is not there; the message says what is instead."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that a machine can offer."""

    group: str
    name: str
    probe: Probe
    fix: str
    """The command that gets it."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check came to."""

    check: Check
    ok: bool
    detail: str

    @property
    def state(self) -> str:
        """The outcome as a word."""
        return "ok" if self.ok else "missing"

    @property
    def fix(self) -> str:
        """What to do, empty if there is nothing to do."""
        return "" if self.ok else self.check.fix

    def as_json(self) -> dict[str, str]:
        """Return it as JSON can hold it."""
        return {
            "group": self.check.group,
            "name": self.check.name,
            "state": self.state,
            "detail": self.detail,
            "fix": self.fix,
        }


def examine(checks: Sequence[Check]) -> list[Finding]:
    """Carry out checks."""
    findings = []
    for check in checks:
        try:
            findings.append(Finding(check, True, check.probe()))
        except Missing as missing:
            findings.append(Finding(check, False, str(missing)))
    return findings


def _python() -> str:
    return platform.python_version()


def _core() -> str:
    try:
        core = importlib.import_module("vscsi.ring._core")
    except ImportError as error:
        raise Missing(str(error)) from error
    return Path(core.__file__ or "").name


def _memfd() -> str:
    """Guest memory is a memfd that can be sealed against shrinking."""
    try:
        descriptor = os.memfd_create("vscsi-doctor", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    except OSError as error:
        raise Missing(error.strerror or "memfd_create fails") from error
    try:
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    except OSError as error:
        raise Missing(f"cannot be sealed: {error.strerror}") from error
    finally:
        os.close(descriptor)
    return "with seals"


def _eventfd() -> str:
    try:
        os.close(os.eventfd(0, os.EFD_CLOEXEC))
    except OSError as error:
        raise Missing(error.strerror or "eventfd fails") from error
    return "works"


def _tool(name: str) -> str:
    found = shutil.which(name, path=_TOOL_PATH)
    if found is None:
        raise Missing("not in PATH")
    return found


def _nbdkit_python() -> str:
    """Ask the plugin itself: it tells the version of the Python that it runs scripts with."""
    answer = _output([_tool("nbdkit"), "python", "--dump-plugin"])
    for line in answer.splitlines():
        if line.startswith("python_version="):
            return f"for Python {line.partition('=')[2]}"
    raise Missing("nbdkit has no such plugin")


def _output(command: Sequence[str]) -> str:
    """Return what a command prints; Missing if it fails."""
    try:
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            check=True,
            timeout=_PROBE_TIMEOUT_S,
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise Missing(f"{Path(command[0]).name} fails") from error


def _module(name: str) -> str:
    if Path("/sys/module", name).exists():
        return "in the kernel"
    modules = Path("/lib/modules", platform.release())
    with suppress(OSError):
        built_in = (modules / "modules.builtin").read_text().splitlines()
        if any(Path(line).stem.replace("-", "_") == name for line in built_in):
            return "built in"
    if not modules.is_dir():
        raise Missing(f"no modules for kernel {platform.release()}")
    modprobe = shutil.which("modprobe", path=_TOOL_PATH)
    if modprobe is None:
        raise Missing("not loaded")
    _output([modprobe, "--dry-run", name])
    raise Missing("not loaded")


def _configfs() -> str:
    where = Path("/sys/kernel/config")
    if not where.is_mount():
        raise Missing(f"not mounted on {where}")
    return str(where)


def _hypervisor() -> str:
    try:
        kind = Path("/sys/hypervisor/type").read_text().strip()
    except OSError:
        raise Missing("no hypervisor that tells") from None
    if kind != "xen":
        raise Missing(f"it is {kind}")
    with suppress(OSError):
        version = Path("/sys/hypervisor/version")
        parts = [(version / name).read_text().strip() for name in ("major", "minor")]
        return f"Xen {'.'.join(parts)}"
    return "Xen"


def _path(*candidates: str) -> str:
    for candidate in candidates:
        if os.path.exists(candidate):
            return candidate
    raise Missing(f"no {candidates[0]}")


def _tool_check(group: str, name: str, package: str) -> Check:
    return Check(group, name, partial(_tool, name), f"apt install {package}")


def _module_check(group: str, name: str) -> Check:
    modular = Path("/lib/modules", platform.release()).is_dir()
    fix = f"modprobe {name}" if modular else "apt install linux-image-amd64, and boot it"
    return Check(group, name, partial(_module, name), fix)


_CORE, _NBD, _TOOLS, _LIO, _XEN = "core", "nbd", "tools", "LIO", "Xen"

CHECKS = (
    Check(_CORE, "python", _python, "apt install python3"),
    Check(_CORE, "c-core", _core, "make venv"),
    Check(_CORE, "memfd", _memfd, "boot Linux 3.17 or later"),
    Check(_CORE, "eventfd", _eventfd, "boot Linux 2.6.27 or later"),
    _tool_check(_NBD, "nbdkit", "nbdkit"),
    Check(_NBD, "nbdkit-python", _nbdkit_python, "apt install nbdkit-plugin-python"),
    _tool_check(_NBD, "nbdcopy", "libnbd-bin"),
    _tool_check(_NBD, "qemu-img", "qemu-utils"),
    _tool_check(_TOOLS, "xenstore-ls", "xenstore-utils"),
    _tool_check(_TOOLS, "mke2fs", "e2fsprogs"),
    _tool_check(_TOOLS, "tshark", "tshark"),
    _tool_check(_TOOLS, "fio", "fio"),
    _module_check(_LIO, "target_core_mod"),
    _module_check(_LIO, "target_core_file"),
    _module_check(_LIO, "tcm_loop"),
    _module_check(_LIO, "sg"),
    Check(_LIO, "configfs", _configfs, "mount -t configfs none /sys/kernel/config"),
    Check(_XEN, "hypervisor", _hypervisor, "apt install xen-system-amd64, and boot Xen"),
    Check(_XEN, "gntdev", partial(_path, "/dev/xen/gntdev"), "modprobe xen-gntdev"),
    Check(_XEN, "evtchn", partial(_path, "/dev/xen/evtchn"), "modprobe xen-evtchn"),
    Check(
        _XEN,
        "xenstored",
        partial(_path, "/run/xenstored/socket", "/var/run/xenstored/socket", "/dev/xen/xenbus"),
        "systemctl start xenstored",
    ),
)
