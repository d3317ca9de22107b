# SPDX-License-Identifier: MIT
"""On what a figure was measured: no number without its machine."""

import os
import platform
from pathlib import Path

import vscsi

CPUINFO = Path("/proc/cpuinfo")


def describe(cpuinfo: Path = CPUINFO) -> dict[str, object]:
    """Return CPU, cores that this process may use and that there are, kernel, Python, load."""
    return {
        "cpu": cpu_model(cpuinfo) or platform.processor() or platform.machine(),
        "cores_usable": len(os.sched_getaffinity(0)),
        "cores": os.cpu_count() or 0,
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "vscsi": vscsi.__version__,
        "load_average": round(os.getloadavg()[0], 2),
    }


def cpu_model(cpuinfo: Path = CPUINFO) -> str:
    """Return the first processor's model; empty where the kernel does not say (some ARM)."""
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return ""
