# SPDX-License-Identifier: MIT
"""Helpers for the ring tests: the C core built into test programs, memory to share."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vscsi.ring._core import PageMap

HERE = Path(__file__).parent
CORE = HERE.parents[1] / "vscsi" / "ring" / "core"
FLAGS = ("-std=c11", "-O2", "-g", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Wconversion", "-Werror")
PARTS = {
    "grants": ("grants", "grant"),
    "load_loop": ("ring", "grant", "load", "load_protocols"),
    "histogram": (),
    "deferred": (
        *("service", "srp", "regions", "command", "later", "unit", "tap", "xxh64"),
        *("ring", "store", "transfer", "guard", "sg"),
    ),
}
"""Files of the core that a program needs, where that is not ring.c alone."""
SANITIZERS = {
    "plain": (),
    # TSan does not model fences; it checks what the indices' acquire and release order.
    "thread": ("-fsanitize=thread", "-Wno-tsan"),
    "address": ("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
}


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Build tests/ring/NAME.c with what it needs under a sanitizer, run it, return its output."""
    directory = tmp_path_factory.mktemp("programs")

    def run(name: str, sanitizer: str, *arguments: object) -> str:
        binary = directory / f"{name}-{sanitizer}"
        if not binary.exists():
            core = (str(CORE / f"{each}.c") for each in PARTS.get(name, ("ring",)))
            sources = [str(HERE / f"{name}.c"), *core]
            command = ["gcc", *FLAGS, *SANITIZERS[sanitizer], "-pthread", f"-I{CORE}", *sources]
            subprocess.run([*command, "-o", str(binary)], check=True)
        command = [str(binary), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stderr}"
        return done.stdout

    return run


@pytest.fixture
def shared_pages() -> Iterator[Callable[[int], memoryview]]:
    """Return a function that makes zeroed pages in a file of their own."""
    opened = []

    def make(pages: int) -> memoryview:
        fd = os.memfd_create("ring-test")
        opened.append(fd)
        os.ftruncate(fd, pages * 4096)
        return memoryview(PageMap(fd, range(pages), readonly=False))

    yield make
    for fd in opened:
        os.close(fd)
