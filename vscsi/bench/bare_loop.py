# SPDX-License-Identifier: MIT
"""The limit: the same operations as bare system calls on a file, one after the other."""

import errno
import mmap
import os
import stat
import time
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path

from vscsi.bench.load import Clock, Counters, Run
from vscsi.bench.workload import Workload
from vscsi.wire.errors import SetupError

CHUNK = 256
"""Operations that are decided on at a time, while the clock stands."""


class BareLoop:
    """A `Load` of preadv and pwritev on a file, without any path; depth 1, through the cache."""

    def __init__(
        self, path: Path, workload: Workload, *, clock: Clock = time.perf_counter_ns
    ) -> None:
        """Open the file; SetupError if it cannot be, or does not hold the workload's range."""
        self.name = f"preadv:{path}"
        self.workload = workload
        self._clock = clock
        self._stopped = False
        self._operations: Iterator[tuple[bool, int]] = workload.operations()
        self._decided: deque[tuple[bool, int]] = deque()
        self._memory = memoryview(mmap.mmap(-1, workload.block_bytes))
        self._memory[:] = workload.pattern()
        self._fd = open_file(path, writable=workload.writes)

    def run(self, duration_ns: int) -> Run:
        """Work for a while, and tell."""
        run = Run(outstanding=1)
        while run.elapsed_ns < duration_ns and not self._stopped:
            while len(self._decided) < CHUNK:
                self._decided.append(next(self._operations))
            self._chunk(run, duration_ns - run.elapsed_ns)
        return run

    def stop(self) -> None:
        """End the run, and any later one."""
        self._stopped = True

    def _chunk(self, run: Run, left_ns: int) -> None:
        clock, fd, views, length = self._clock, self._fd, (self._memory,), len(self._memory)
        decided = self._decided
        read, written = run.read_latencies, run.write_latencies
        cpu_began, began = time.thread_time_ns(), clock()
        now = began
        while decided and now - began < left_ns:
            write, offset = decided.popleft()
            started = clock()
            try:
                moved = os.pwritev(fd, views, offset) if write else os.preadv(fd, views, offset)
            except OSError as error:
                now = clock()
                run.errors[errno.errorcode.get(error.errno or 0, str(error))] += 1
                continue
            now = clock()
            if moved != length:
                run.errors[f"{length - moved} bytes were not moved"] += 1
            elif write:
                written[now - started] += 1
            else:
                read[now - started] += 1
        run.elapsed_ns += now - began
        run.cpu_ns += time.thread_time_ns() - cpu_began

    def counters(self) -> Counters:
        """Return none: no ring, no backend."""
        return Counters()

    def parameters(self) -> Mapping[str, object]:
        """Return what was negotiated: nothing."""
        return {}

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def open_file(path: Path, *, writable: bool) -> int:
    """Open a regular file or block device; SetupError says why it cannot be."""
    try:
        kind = path.stat().st_mode
        if not (stat.S_ISREG(kind) or stat.S_ISBLK(kind)):
            raise _no_file(path, "it is neither a regular file nor a block device")
        return os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)
    except OSError as error:
        raise _no_file(path, error.strerror or str(error)) from error


def file_size(path: Path) -> int:
    """Return the size in bytes of a regular file or block device; SetupError as `open_file`."""
    fd = open_file(path, writable=False)
    try:
        return os.lseek(fd, 0, os.SEEK_END)
    except OSError as error:
        raise _no_file(path, error.strerror or str(error)) from error
    finally:
        os.close(fd)


def _no_file(path: Path, reason: str) -> SetupError:
    return SetupError("open", str(path), reason, "name an image or block device")
