#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Measure `vscsi analyze` over made-up captures: python -m scripts.scale [MILLIONS ...]

Prints a line a size: wall time, CPU time of both cores, commands a second, peak memory and what the
temporary files took. The captures (240 MB a million) are made before and removed after. Compare
CPU times where the machine has other work to do.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.capture.synthetic import write_srp
from vscsi.capture.sources import Opened

_MILLION = 1_000_000
_HEADS = ("commands", "wall s", "CPU s", "commands/s", "peak MiB", "read alone/s")


def main() -> None:
    """Measure what the arguments say."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("millions", type=float, nargs="*", default=[1, 3, 10])
    parser.add_argument("--engine", default="duckdb")
    parser.add_argument("--temp", type=Path, default=Path(tempfile.gettempdir()))
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {options.engine}")
    print("  ".join(f"{head:>12}" for head in _HEADS))
    for millions in options.millions:
        count = int(millions * _MILLION)
        with tempfile.TemporaryDirectory(prefix="vscsi-scale-", dir=options.temp) as name:
            file = Path(name) / "big.pcapng"
            with file.open("wb") as stream:
                write_srp(stream, count)
            row = (f"{count:,}", *_analyse(file, count, options.engine), _read(file))
        print("  ".join(f"{cell:>12}" for cell in row), flush=True)


def _analyse(file: Path, count: int, engine: str) -> tuple[str, ...]:
    command = [sys.executable, "-m", "vscsi", "analyze", "--json", "--engine", engine]
    begin = time.perf_counter()
    child = subprocess.Popen(
        [*command, "--temp", str(file.parent), str(file)], stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    wall = time.perf_counter() - begin
    if child.returncode:
        raise SystemExit(f"vscsi analyze ended with {child.returncode}")
    cpu = usage.ru_utime + usage.ru_stime
    return f"{wall:.1f}", f"{cpu:.1f}", f"{count / wall:,.0f}", f"{usage.ru_maxrss / 1024:.0f}"


def _read(file: Path) -> str:
    """Return how many commands a second the source alone gives, in CPU time."""
    begin = resource.getrusage(resource.RUSAGE_SELF)
    with Opened(str(file)) as source:
        count = sum(batch.num_rows for batch in source)
    end = resource.getrusage(resource.RUSAGE_SELF)
    spent = end.ru_utime + end.ru_stime - begin.ru_utime - begin.ru_stime
    return f"{count / spent:,.0f}"


if __name__ == "__main__":
    main()
