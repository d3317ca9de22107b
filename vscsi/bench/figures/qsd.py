# SPDX-License-Identifier: MIT
"""The yardstick: QEMU's storage daemon on the same file, over NBD on a UNIX socket, with fio."""

import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vscsi.bench.figures.figure import Measured, UnmeasurableError
from vscsi.transport.places import pinned
from vscsi.wire.errors import SetupError

START_S = 10.0
DAEMON, CLIENT = "qemu-storage-daemon", "fio"
PACKAGES = {DAEMON: "qemu-system-common", CLIENT: "fio"}


@dataclass(frozen=True, slots=True)
class Qsd:
    """A `Probe`: 4 KiB random reads at a depth by fio's nbd engine, the fastest of the clients.

    qemu-img bench and nbdcopy (sequential) were slower or equal, see docs/performance.md.
    """

    socket: Path
    size_bytes: int
    depth: int
    cpu: int

    def run(self, duration_s: float) -> Measured:
        """Run fio once."""
        command = [
            CLIENT, "--name=qsd", "--ioengine=nbd", f"--uri=nbd+unix:///disk?socket={self.socket}",
            "--rw=randread", "--bs=4k", f"--iodepth={self.depth}", f"--size={self.size_bytes}",
            "--time_based", f"--runtime={round(duration_s * 1000)}ms", "--output-format=json",
        ]  # fmt: skip
        with pinned(self.cpu):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UnmeasurableError(f"fio: {done.stderr.strip() or done.stdout.strip()}")
        job = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]["read"]
        return Measured(job["total_ios"], job["runtime"] * 1_000_000, 0)


@contextmanager
def storage_daemon(file: Path, cpu: int) -> Iterator[Path]:
    """Have the daemon export a file (io_uring, page cache) on one CPU; yield its socket."""
    for program, package in PACKAGES.items():
        if shutil.which(program) is None:
            raise SetupError("run", program, "it is not installed", f"install {package}")
    with tempfile.TemporaryDirectory(prefix="vscsi-qsd-") as directory:
        socket = Path(directory) / "nbd.sock"
        command = [
            DAEMON,
            "--blockdev", f"driver=file,filename={file},node-name=disk,aio=io_uring,read-only=on",
            "--nbd-server", f"addr.type=unix,addr.path={socket}",
            "--export", "type=nbd,id=disk,node-name=disk,name=disk,writable=off",
        ]  # fmt: skip
        with pinned(cpu):
            daemon = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            deadline = time.monotonic() + START_S
            while not socket.exists():
                if daemon.poll() is not None or time.monotonic() > deadline:
                    daemon.kill()
                    raise UnmeasurableError(f"{DAEMON}: {daemon.communicate()[1].strip()}")
                time.sleep(0.01)
            yield socket
        finally:
            daemon.terminate()
            daemon.communicate()
