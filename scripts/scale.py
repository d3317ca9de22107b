#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Measure `vscsi analyze` over made-up captures: python -m scripts.scale [MILLIONS ...]

Prints a line a size: wall time, CPU time of all cores, commands a second, peak memory, and how many
commands a second of CPU time the source gives alone. The captures (290 MB a million) are made
before and removed after. Compare CPU times where the machine has other work to do.

All work is in children: a child's peak begins with what its parent had when it was started.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_MILLION = 1_000_000
_READ = """
import sys
from vscsi.capture.sources import Opened
with Opened(sys.argv[1]) as source:
    for _ in source:
        pass
"""
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
            _run("-m", "tests.capture.synthetic", str(file), str(count))
            analyze = "-m", "vscsi", "analyze", "--json", "--engine", options.engine
            wall, cpu, peak = _run(*analyze, "--temp", name, str(file))
            _, alone, _ = _run("-c", _READ, str(file))
            row = f"{count:,}", f"{wall:.1f}", f"{cpu:.1f}", f"{count / wall:,.0f}", f"{peak:.0f}"
            row = (*row, f"{count / alone:,.0f}")
        print("  ".join(f"{cell:>12}" for cell in row), flush=True)


def _run(*arguments: str) -> tuple[float, float, float]:
    """Run Python; return wall and CPU seconds, and peak MiB."""
    begin = time.perf_counter()
    child = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    wall = time.perf_counter() - begin
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{' '.join(arguments)} ended with {child.returncode}")
    return wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


if __name__ == "__main__":
    main()
