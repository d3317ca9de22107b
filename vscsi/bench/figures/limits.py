# SPDX-License-Identifier: MIT
"""What the machine allows: the loops of limits.c, compiled here, each run in its own process."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

from vscsi.bench.figures.figure import Measured, UnmeasurableError
from vscsi.wire.errors import SetupError

SOURCE = Path(__file__).with_name("limits.c")
FLAGS = ("-std=c11", "-O2", "-Wall", "-Wextra", "-Wconversion", "-Werror", "-D_GNU_SOURCE")


def compile_limits(directory: Path) -> Path:
    """Compile limits.c into a directory; return the program."""
    program = directory / "limits"
    command = ["cc", *FLAGS, "-pthread", str(SOURCE), "-o", str(program)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise SetupError("run", "cc", error.strerror or str(error), "install gcc") from error
    if done.returncode:
        raise SetupError("compile", str(SOURCE), done.stderr.strip(), "see the compiler's words")
    return program


@dataclass(frozen=True, slots=True)
class Limit:
    """A `Probe` of one of the bare loops: preadv, preadv-sequential, memcpy, ring, eventfd, clock.

    Runs on the backend's CPU; ring and eventfd have their asking thread on the frontend's.
    """

    program: Path
    loop: str
    backend_cpu: int
    frontend_cpu: int
    file: Path
    block_bytes: int
    depth: int
    """Buffers that are used in turn; ring: slots outstanding."""

    def run(self, duration_s: float) -> Measured:
        """Run the loop once."""
        command = (
            self.program, self.loop, duration_s, self.backend_cpu, self.frontend_cpu, self.file,
            self.block_bytes, self.depth,
        )  # fmt: skip
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
        if done.returncode:
            raise UnmeasurableError(f"the bare {self.loop} loop: {done.stderr.strip()}")
        return Measured(*map(int, done.stdout.split()))
