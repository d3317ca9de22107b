# SPDX-License-Identifier: MIT
"""The machine's description: what of it decides how fast memory and system calls are."""

import re
from pathlib import Path

from vscsi.bench import machine
from vscsi.bench.figures.bed import Bed, Work

PROC, SYS = Path("/proc"), Path("/sys")


def describe(bed: Bed) -> dict[str, object]:
    """Return what /proc and /sys say, and what a look at the clock takes."""
    known = machine.describe()
    clock = bed.limit("clock", Work()).run(0.05)
    return {
        "CPU": known["cpu"],
        "cores": f"{known['cores']}, backend on {bed.backend_cpu}, frontend on {bed.frontend_cpu}",
        "last-level cache": _last_cache(bed.backend_cpu),
        "memory": _memory(),
        "virtual machine": "yes" if "hypervisor" in _cpu_flags() else "no",
        "kernel": known["kernel"],
        "mitigations": _mitigations(),
        "huge pages in a tmpfs": _chosen(SYS / "kernel/mm/transparent_hugepage/shmem_enabled"),
        "Python": known["python"],
        "a look at the clock": f"{clock.time_us * 1000:.0f} ns",
    }


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _memory() -> str:
    found = re.search(r"MemTotal:\s+(\d+) kB", _text(PROC / "meminfo"))
    return f"{int(found[1]) / 2**20:.0f} GiB" if found else "unknown"


def _cpu_flags() -> list[str]:
    found = re.search(r"^flags\s*:(.*)$", _text(PROC / "cpuinfo"), re.MULTILINE)
    return found[1].split() if found else []


def _last_cache(cpu: int) -> str:
    caches = sorted(SYS.glob(f"devices/system/cpu/cpu{cpu}/cache/index*/size"))
    return _text(caches[-1]) if caches else "unknown"


def _mitigations() -> str:
    """Return the mitigations that a system call pays for."""
    folder = SYS / "devices/system/cpu/vulnerabilities"
    found = {path.name: _text(path) for path in sorted(folder.glob("*"))}
    active = [f"{name}: {text}" for name, text in found.items() if text.startswith("Mitigation")]
    return "; ".join(active).replace("Mitigation: ", "") or "none"


def _chosen(path: Path) -> str:
    found = re.search(r"\[(\w+)\]", _text(path))
    return found[1] if found else "unknown"
