# SPDX-License-Identifier: MIT
"""Processes beside ours, each on one CPU."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from vscsi.bench.figures.figure import UnmeasurableError
from vscsi.transport.places import pinned

END_TIMEOUT_S = 60.0


@contextmanager
def serving(arguments: Sequence[str], log: Path, cpu: int) -> Iterator[None]:
    """Have a `vscsi serve` with these arguments on one CPU; UnmeasurableError if it won't."""
    reading, writing = os.pipe()
    with log.open("wb") as out, pinned(cpu):
        server = subprocess.Popen(
            [sys.executable, "-m", "vscsi", "serve", *arguments, "--ready-fd", str(writing)],
            stdout=out, stderr=out, pass_fds=[writing],
        )  # fmt: skip
    os.close(writing)
    try:
        with os.fdopen(reading, "rb") as ready:
            if not ready.read(1):
                said = log.read_text().strip().splitlines() or [f"status {server.wait()}"]
                raise UnmeasurableError(f"vscsi serve: {said[-1]}")
        yield
    finally:
        server.terminate()
        server.wait(END_TIMEOUT_S)
