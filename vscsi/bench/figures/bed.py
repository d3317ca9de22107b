# SPDX-License-Identifier: MIT
"""What the figures are measured on: files in memory, servers on one CPU, frontends on the other."""

import os
import shutil
import tempfile
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from vscsi.bench.compare import unit
from vscsi.bench.figures.figure import Measured, UnmeasurableError
from vscsi.bench.figures.limits import Limit, compile_limits
from vscsi.bench.figures.processes import serving
from vscsi.bench.figures.qsd import Qsd, storage_daemon
from vscsi.bench.load import Load
from vscsi.bench.native_loop import NativeLoop
from vscsi.bench.workload import Workload
from vscsi.transport.connect import connect
from vscsi.transport.frontend import RingInitiator
from vscsi.transport.hba import Lun
from vscsi.transport.initiator import TransportError
from vscsi.wire.errors import SetupError

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - a directory of our own in it
WANTED_BYTES = 1 << 30
LEAST_BYTES = 64 << 20
SPARE = 2
"""Times the file's size that stay free in the tmpfs: captures go there too."""
POLL_NS = 50_000
RAMP_S = 0.05


@dataclass(frozen=True, slots=True)
class Work:
    """What a path or a bare loop does. Sequential if not at random."""

    block_bytes: int = 4096
    depth: int = 32
    write: bool = False
    at_random: bool = True

    @property
    def mode(self) -> str:
        """Return fio's word for it."""
        return ("rand" if self.at_random else "") + ("write" if self.write else "read")


@dataclass(frozen=True, slots=True)
class Server:
    """A `vscsi serve` process: on which store, how long it watches an idle ring, what it captures.

    store: file (through the page cache), mmap (the same file, mapped), null.
    """

    store: str = "file"
    poll_ns: int = POLL_NS
    writable: bool = False
    """On a file of its own then."""
    capture: bool = False
    histograms: bool = True


@dataclass(frozen=True, slots=True)
class PathProbe:
    """A `Probe` of one load on one path."""

    load: Load

    def run(self, duration_s: float) -> Measured:
        """Warm up, and run the load once."""
        try:
            for seconds in (RAMP_S, duration_s):
                before = self.load.counters()
                run = self.load.run(round(seconds * 1e9))
                if run.failure is not None or run.errors:
                    raise UnmeasurableError(run.failure or f"{dict(run.errors)}")
            after = self.load.counters()
        except TransportError as error:
            raise UnmeasurableError(str(error)) from error
        if not run.operations:
            raise UnmeasurableError("no command came to its end")
        cpu_ns = (after.backend_cpu_ns or 0) - (before.backend_cpu_ns or 0)
        return Measured(run.operations, run.elapsed_ns, cpu_ns)


class Bed:
    """Files, servers and connections, made when they are first asked for and gone at the end."""

    def __init__(self) -> None:
        """Find two CPUs and the room for a file; SetupError if there are none."""
        cpus = sorted(os.sched_getaffinity(0))
        if len(cpus) < 2:
            raise SetupError("use", "two CPUs", f"there is {len(cpus)}", "allow this process more")
        self.backend_cpu, self.frontend_cpu = cpus[:2]
        self._held = ExitStack()
        self.directory = Path(tempfile.mkdtemp(prefix="vscsi-figures-", dir=SHARED_MEMORY))
        self._held.callback(shutil.rmtree, self.directory, ignore_errors=True)
        self._servers: dict[Server, Path] = {}
        self._units: dict[tuple[str, Server], Lun] = {}
        self._program = compile_limits(self.directory)
        free = shutil.disk_usage(self.directory).free
        self.file_bytes = WANTED_BYTES
        while self.file_bytes * (1 + SPARE) > free and self.file_bytes > LEAST_BYTES:
            self.file_bytes //= 2
        self.file = self.directory / "disk.img"
        fill(self.file, self.file_bytes)

    def __enter__(self) -> Self:
        """Put this process, and so the frontends' threads, on their CPU."""
        self._held.callback(os.sched_setaffinity, 0, os.sched_getaffinity(0))
        os.sched_setaffinity(0, {self.frontend_cpu})
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        """Close connections, end servers, remove files."""
        self._held.close()

    def limit(self, loop: str, work: Work = Work()) -> Limit:
        """Return a bare loop that does the same work on the same file."""
        return Limit(
            self._program, loop, self.backend_cpu, self.frontend_cpu, self.file, work.block_bytes,
            work.depth,
        )  # fmt: skip

    def path(
        self,
        kind: str,
        work: Work = Work(),
        server: Server = Server(),
        poll_ns: int = POLL_NS,
    ) -> PathProbe:
        """Return a load on a path (srp, vscsiif, blkif); UnmeasurableError if there is none.

        poll_ns: how long the frontend watches an idle ring.
        """
        found = self._unit(kind, server)
        initiator = found.hba.initiator
        if not isinstance(initiator, RingInitiator):
            raise UnmeasurableError(f"{kind} has no ring")
        workload = Workload(work.mode, work.block_bytes, work.depth, 0, self.file_bytes)
        try:
            load = NativeLoop(
                kind, initiator, found.address, found.capacity().block_length, workload,
                poll_ns=poll_ns, cpu=self.frontend_cpu,
            )  # fmt: skip
        except (NotImplementedError, TransportError) as error:
            raise UnmeasurableError(f"no native load on {kind}: {error!r}") from error
        return PathProbe(self._held.enter_context(closing(load)))

    def storage_daemon(self, work: Work = Work()) -> Qsd:
        """Return fio's load on QEMU's storage daemon."""
        socket = self._held.enter_context(storage_daemon(self.file, self.backend_cpu))
        return Qsd(socket, self.file_bytes, work.depth, self.frontend_cpu)

    def _unit(self, kind: str, server: Server) -> Lun:
        if (kind, server) not in self._units:
            directory = self._serve(server)
            try:
                found, _ = unit(self._held, f"{kind}:{directory}", 0, connect)
            except SetupError as error:
                raise UnmeasurableError(str(error)) from error
            self._units[kind, server] = found
        return self._units[kind, server]

    def _serve(self, server: Server) -> Path:
        if server not in self._servers:
            name = f"server-{len(self._servers)}"
            directory = self.directory / name
            arguments = [self._image(server), "--dir", str(directory)]
            arguments += ["--poll-us", str(server.poll_ns // 1000)]
            if not server.writable:  # several share the file
                arguments.append("--read-only")
            if not server.histograms:
                arguments.append("--no-histograms")
            if server.capture:
                arguments += ["--capture", str(self.directory / f"{name}.pcapng")]
            log = self.directory / f"{name}.log"
            self._held.enter_context(serving(arguments, log, self.backend_cpu))
            self._servers[server] = directory
        return self._servers[server]

    def _image(self, server: Server) -> str:
        file = self.file
        if server.writable:
            file = file.with_name("written.img")
            fill(file, self.file_bytes)
        images = {"file": f"{file}", "mmap": f"mmap:{file}", "null": f"null:{self.file_bytes}"}
        return images[server.store]


def fill(file: Path, size_bytes: int) -> None:
    """Fill a file, so that every block of it has memory of its own and no zeros in it."""
    chunk = os.urandom(1 << 20)
    with file.open("wb") as out:
        for _ in range(size_bytes // len(chunk)):
            out.write(chunk)
