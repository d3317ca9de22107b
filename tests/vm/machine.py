# SPDX-License-Identifier: MIT
"""A command on Debian's stock kernel: QEMU under software emulation, the host's files inside.

    python -m tests.vm.machine COMMAND [ARGUMENT ...]

runs one by hand in the project directory, as root, on a throw-away overlay of this machine's root.
The project itself is read-only there; /run/results is the only directory that outlives the guest.
"""

import os
import selectors
import shlex
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.vm.kernel import PROJECT, Kernel, MachineError, run, stock_kernel

HERE = Path(__file__).parent
BOOT_MODULES = ("virtio_pci", "virtio_console", "virtio_rng", "9p", "9pnet_virtio", "overlay")
RESULTS = "/run/results"
"""Where the guest sees `Guest.results`."""
KERNEL_ARGUMENTS = (
    "console=ttyS0 quiet loglevel=4 panic=-1 oops=panic tsc=reliable no_timer_check nokaslr "
    "mitigations=off apparmor=0 audit=0"
)
CONSOLE_LINES = 120
"""How much of the console a failure shows."""


class Guest:
    """One boot with one command; `directory` takes its console.log and its results.

    The guest ends with the context, or with this process however that ends.
    """

    def __init__(
        self,
        command: Sequence[str],
        directory: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.console = directory / "console.log"
        self.results = directory / "results"
        self.results.mkdir()
        run(["qemu-system-x86_64", "--version"])
        self.kernel = stock_kernel()
        self.exit_status: int | None = None
        self.boot_s: float | None = None
        initramfs = directory / "initramfs"
        initramfs.write_bytes(make_initramfs(self.kernel, job(self.kernel, command, environment)))
        self._started = time.monotonic()
        self._status = b""
        self._missing = {"out": 0, "err": 0}
        """Bytes to come on each port, once `exit_status` is known; till then minus what came."""
        self._streams = selectors.DefaultSelector()
        arguments = qemu(self.kernel, initramfs, self.console, self.results)
        ends = []
        for name in ("out", "err", "status"):
            reader, writer = os.pipe()
            self._streams.register(reader, selectors.EVENT_READ, name)
            arguments += ["-chardev", f"file,id={name},path=/proc/self/fd/{writer}"]
            arguments += ["-device", f"virtserialport,chardev={name},name=vm.{name}"]
            ends.append(writer)
        with (directory / "qemu.log").open("wb") as log:
            # setpriv: the kernel kills QEMU when we die, however that happens. Its own session:
            # Ctrl-C is for us.
            self.process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "--", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=ends,
                start_new_session=True,
            )
        for writer in ends:
            os.close(writer)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the guest if it still runs, and give everything back."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for key in list(self._streams.get_map().values()):
            self._streams.unregister(key.fd)
            os.close(key.fd)
        self._streams.close()

    def output(self, timeout_s: float) -> Iterator[tuple[str, bytes]]:
        """Yield ("out" or "err", bytes) as they come, and ("status", line) when it is up and ends.

        It ends with the guest. MachineError if nothing ended within `timeout_s` of the call (the
        guest is killed), or if the guest ended before its command did.
        """
        deadline = time.monotonic() + timeout_s
        while self.exit_status is None or any(self._missing.values()):
            ready = self._streams.select(max(0, deadline - time.monotonic()))
            if time.monotonic() >= deadline:
                self.process.kill()
                raise MachineError(f"not done within {timeout_s:g} s\n{self.last_words()}")
            for key, _ in ready:
                data = os.read(key.fd, 1 << 16)
                if not data and len(self._streams.get_map()) == 1:
                    raise MachineError(f"the guest died\n{self.last_words()}")
                if not data:
                    self._streams.unregister(key.fd)
                    os.close(key.fd)
                elif key.data == "status":
                    yield from (("status", line) for line in self._status_lines(data))
                else:
                    self._missing[key.data] -= len(data)
                    yield key.data, data
        self.process.kill()

    def _status_lines(self, data: bytes) -> list[bytes]:
        *lines, self._status = (self._status + data).split(b"\n")
        for line in lines:
            if line == b"up":
                self.boot_s = time.monotonic() - self._started
            else:
                _, status, *sent = line.split()
                self.exit_status = int(status)
                for port, count in zip(("out", "err"), sent, strict=True):
                    self._missing[port] += int(count)
        return lines

    def last_words(self) -> str:
        """Return the end of the console, and what QEMU itself said."""
        lines = self.console.with_name("qemu.log").read_text(errors="replace").splitlines()
        if self.console.exists():
            lines += self.console.read_text(errors="replace").splitlines()[-CONSOLE_LINES:]
        return "\n".join(["its console's end:", *lines])


def job(kernel: Kernel, command: Sequence[str], environment: Mapping[str, str] | None) -> bytes:
    """Return the shell file that tells the guest's scripts where things are and what to run."""
    settings = [f"{name}={value}" for name, value in (environment or {}).items()]
    return (
        f"PROJECT={shlex.quote(str(PROJECT))}\n"
        f"MODULES={shlex.quote(str(kernel.modules))}\n"
        f"command() {{ exec env {shlex.join([*settings, *command])}; }}\n"
    ).encode()


def make_initramfs(kernel: Kernel, job: bytes) -> bytes:
    """Return a cpio archive ("newc", uncompressed: cheapest to unpack under emulation)."""
    modules = kernel.files_of(BOOT_MODULES)
    files = {
        "init": (HERE / "init.sh").read_bytes(),
        "guest.sh": (HERE / "guest.sh").read_bytes(),
        "job": job,
        "bin/busybox": kernel.busybox.read_bytes(),
        "modules/order": "\n".join(path.name for path in modules).encode(),
        **{f"modules/{path.name}": path.read_bytes() for path in modules},
    }
    entries = [(name, stat.S_IFDIR | 0o755, b"") for name in ("bin", "modules")]
    entries += [(name, stat.S_IFREG | 0o755, data) for name, data in files.items()]
    entries.append(("TRAILER!!!", 0, b""))
    return b"".join(cpio_entry(*entry, number) for number, entry in enumerate(entries, 1))


def cpio_entry(name: str, mode: int, data: bytes, inode: int) -> bytes:
    """Return one entry; fields as in Documentation/driver-api/early-userspace/buffer-format.rst."""
    fields = (inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
    return padded(head) + padded(data)


def padded(data: bytes) -> bytes:
    """Return it filled up to a multiple of four bytes."""
    return data + bytes(-len(data) % 4)


def qemu(kernel: Kernel, initramfs: Path, console: Path, results: Path) -> list[str]:
    """Return QEMU's command line without the ports. q35: microvm has no timer that never fails."""
    shares = {"host": "path=/,readonly=on", "results": f"path={escaped(results)}"}
    arguments = [
        *("qemu-system-x86_64", "-accel", "tcg,thread=multi", "-machine", "q35", "-cpu", "max"),
        *("-smp", "2", "-m", "2G", "-nodefaults", "-no-user-config", "-display", "none"),
        *("-no-reboot", "-kernel", str(kernel.vmlinux), "-initrd", str(initramfs)),
        *("-append", KERNEL_ARGUMENTS, "-chardev", f"file,id=console,path={escaped(console)}"),
        *("-serial", "chardev:console", "-device", "virtio-rng-pci"),
        *("-device", "virtio-serial-pci"),
    ]
    for tag, options in shares.items():
        arguments += ["-fsdev", f"local,id={tag},security_model=none,multidevs=remap,{options}"]
        arguments += ["-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"]
    return arguments


def escaped(path: Path) -> str:
    """Return a path as QEMU's option parser wants it."""
    return str(path).replace(",", ",,")


def main() -> int:
    """Run what the command line says; return its exit status, 125 if the machine failed."""
    if not sys.argv[1:]:
        print(__doc__, file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="vscsi-vm-") as directory:
        try:
            with Guest(sys.argv[1:], Path(directory)) as guest:
                for port, data in guest.output(timeout_s=24 * 3600):
                    if port != "status":
                        os.write({"out": 1, "err": 2}[port], data)
                    elif guest.exit_status is None:
                        print(f"[up in {guest.boot_s:.1f} s]", file=sys.stderr)
                return guest.exit_status or 0
        except MachineError as error:
            print(error, file=sys.stderr)
            return 125


if __name__ == "__main__":
    sys.exit(main())
