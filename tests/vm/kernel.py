# SPDX-License-Identifier: MIT
"""Debian's stock kernel, unpacked below .vm/ of the project.

The packages are downloaded with apt-get and unpacked, never installed: that needs no root, and the
machine's boot loader and initramfs are not touched. `rm -r .vm` lets the newest be fetched again.
"""

import fcntl
import lzma
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent.parent
CACHE = PROJECT / ".vm"
PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
"""depmod and modprobe are not on every user's path."""

# Offsets in a bzImage: Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header".
SETUP_SECTORS, PAYLOAD_OFFSET, PAYLOAD_LENGTH = 0x1F1, 0x248, 0x24C


class MachineError(Exception):
    """No virtual machine, or it ended before its command did; the text says why."""


@dataclass(frozen=True)
class Kernel:
    """A kernel package unpacked in `root`, beside a static busybox."""

    root: Path

    @property
    def release(self) -> str:
        """Return what `uname -r` says under it."""
        return next((self.root / "lib/modules").iterdir()).name

    @property
    def vmlinux(self) -> Path:
        """Return the ELF image, which QEMU enters by PVH without unpacking it in the guest."""
        return self.root / "vmlinux"

    @property
    def modules(self) -> Path:
        """Return what is /lib/modules under it."""
        return self.root / "lib/modules"

    @property
    def busybox(self) -> Path:
        """Return a busybox that needs no libraries."""
        return self.root / "bin/busybox"

    def files_of(self, names: Sequence[str]) -> list[Path]:
        """Return the files of modules and of what they need, in the order to load them."""
        lines = run(["modprobe", "-d", str(self.root), "-S", self.release, "-a", "-D", *names])
        # "insmod /path/with spaces/x.ko OPTIONS", or "builtin NAME"
        files = dict.fromkeys(re.findall(r"^insmod (.*?\.ko)", lines, re.MULTILINE))
        return [Path(name) for name in files]


def stock_kernel() -> Kernel:
    """Return the newest kernel in the cache; fetch Debian's current one if there is none."""
    CACHE.mkdir(exist_ok=True)
    with locked(CACHE / "lock"):
        cached = sorted(CACHE.glob("linux-image-*"), key=lambda path: path.stat().st_mtime)
        return Kernel(cached[-1] if cached else fetch())


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let one process at a time in; two test runs may start at once."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def fetch() -> Path:
    """Download and unpack into .vm/PACKAGE_VERSION; a half-done directory never has that name."""
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        try:
            packages = download(Path(scratch))
        except MachineError:  # no package lists, or older than the archive
            as_root = [] if os.geteuid() == 0 else ["sudo", "-n"]
            run([*as_root, "apt-get", "update", "-q"])
            packages = download(Path(scratch))
        root = Path(scratch, "root")
        for package in packages:
            run(["dpkg-deb", "-x", str(package), str(root)])
        kernel = Kernel(root)
        image = root / f"boot/vmlinuz-{kernel.release}"
        kernel.vmlinux.write_bytes(payload(image.read_bytes()))
        run(["depmod", "-b", str(root), kernel.release])
        root.chmod(0o755)
        return root.rename(CACHE / packages[0].name.rpartition("_")[0])


def download(directory: Path) -> list[Path]:
    """Return the packages' files, the kernel's first."""
    about = run(["apt-cache", "show", "--no-all-versions", "linux-image-amd64"])
    depends = re.search(r"^Depends: (linux-image-\S+)", about, re.MULTILINE)
    if depends is None:
        raise MachineError("linux-image-amd64 depends on no kernel: is this Debian?")
    names = [depends[1], "busybox-static"]
    run(["apt-get", "download", "-q", "-o", "APT::Sandbox::User=root", *names], cwd=directory)
    return [next(directory.glob(f"{name}_*.deb")) for name in names]


def payload(image: bytes) -> bytes:
    """Return the ELF kernel that a bzImage carries, compressed with xz as Debian's is."""
    start = (image[SETUP_SECTORS] + 1) * 512
    start += int.from_bytes(image[PAYLOAD_OFFSET : PAYLOAD_OFFSET + 4], "little")
    length = int.from_bytes(image[PAYLOAD_LENGTH : PAYLOAD_LENGTH + 4], "little")
    # The kernel's build appends the unpacked size, so this is no plain .xz file.
    return lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(image[start : start + length])


def run(command: Sequence[str], cwd: Path | None = None) -> str:
    """Return a tool's output; MachineError with its own words if it fails or is not there."""
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            env={**os.environ, "PATH": PATH, "LC_ALL": "C.UTF-8"},
            capture_output=True,
            text=True,
            check=True,
        )
    except FileNotFoundError:
        raise MachineError(f"no {command[0]} here; run: sh scripts/packages.sh vm") from None
    except subprocess.CalledProcessError as error:
        raise MachineError(f"`{' '.join(command)}` failed: {error.stderr.strip()}") from None
    return done.stdout
