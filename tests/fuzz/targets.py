# SPDX-License-Identifier: MIT
"""The fuzz targets: what each is made of, how it is built, its corpus as files.

A corpus file holds an input a line: a name and its bytes in hex.
"""

import shutil
import subprocess
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
CORE = HERE.parents[1] / "vscsi" / "ring" / "core"
CORPUS = HERE / "corpus"
PROTOCOLS = ("srp", "vscsiif", "blkif64", "blkif32")
COMPILER = shutil.which("clang-14") or "clang"
FLAGS = ("-std=c11", "-O1", "-g", "-D_GNU_SOURCE", "-pthread", f"-I{CORE}", f"-I{HERE}")
WARNINGS = ("-Wall", "-Wextra", "-Wconversion", "-Werror")
SANITIZERS = {
    "address": ("-fsanitize=address,undefined,fuzzer-no-link", "-fno-sanitize-recover=all"),
    # libFuzzer's counters are themselves a race between two threads: this one only replays.
    "thread": ("-fsanitize=thread",),
    "coverage": ("-fsanitize=fuzzer-no-link", "-fprofile-instr-generate", "-fcoverage-mapping"),
}
LINK = {
    "address": ("-fsanitize=address,undefined,fuzzer",),
    "thread": ("-fsanitize=thread,fuzzer",),
    "coverage": ("-fsanitize=fuzzer", "-fprofile-instr-generate"),
}


@dataclass(frozen=True)
class Target:
    """One program: its source, and what it is compiled with."""

    name: str
    source: str
    runs: int
    """Inputs of a brief run: a few seconds."""
    defines: tuple[str, ...] = ()
    hooked: bool = False
    """Whether the core calls hooks.h's in place of the C library."""
    races: bool = False
    """Whether it has a second thread, and so replays the corpus of a target without one."""

    @property
    def corpus(self) -> str:
        """The target whose inputs it takes."""
        return self.name.replace("race", "loop")


TARGETS = [
    Target("cdb", "cdb", 100_000),
    Target("regions", "regions", 10_000),
    Target("ring", "ring", 15_000),
    Target("grants", "grants", 15_000),
    Target("filter", "filter", 10_000),
    *(
        Target(f"decode_{name}", "decode", 15_000, (f"-DPROTOCOL={name.upper()}",), hooked=True)
        for name in PROTOCOLS
    ),
    *(
        Target(f"loop_{name}", "loop", 3_000, (f"-DPROTOCOL={name.upper()}",), hooked=True)
        for name in PROTOCOLS
    ),
    *(
        Target(
            f"race_{name}", "loop", 5, (f"-DPROTOCOL={name.upper()}", "-DRACE"), True, races=True
        )
        for name in PROTOCOLS
    ),
]


class Builder:
    """Builds targets in a directory; the C core is compiled once for each way."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._cores: dict[tuple[str, bool], list[Path]] = {}

    def build(self, target: Target, sanitizer: str = "") -> Path:
        """Return a target's program; the sanitizer is its own unless given."""
        sanitizer = sanitizer or ("thread" if target.races else "address")
        program = self._directory / f"{target.name}-{sanitizer}"
        if program.exists():
            return program
        sources = [HERE / f"{target.source}.c", *([HERE / "world.c"] if target.hooked else [])]
        flags = (*SANITIZERS[sanitizer], *target.defines)
        objects = [
            self._compile(source, f"{program.name}-{source.stem}", flags) for source in sources
        ]
        core = self._core(sanitizer, target.hooked)
        link = [COMPILER, "-pthread", *LINK[sanitizer], "-o", program, *objects, *core]
        subprocess.run(link, check=True)
        return program

    def _core(self, sanitizer: str, hooked: bool) -> list[Path]:
        way = sanitizer, hooked
        if way not in self._cores:
            flags = (*SANITIZERS[sanitizer], *(("-include", HERE / "hooks.h") if hooked else ()))
            prefix = f"core-{sanitizer}{'-hooked' * hooked}"
            with ThreadPoolExecutor(2) as pool:
                jobs = [
                    pool.submit(self._compile, source, f"{prefix}-{source.stem}", flags)
                    for source in core_sources()
                ]
                self._cores[way] = [job.result() for job in jobs]
        return self._cores[way]

    def _compile(self, source: Path, name: str, flags: Iterable[str | Path]) -> Path:
        result = self._directory / f"{name}.o"
        command = [COMPILER, *FLAGS, *WARNINGS, *flags, "-c", source, "-o", result]
        subprocess.run(command, check=True)
        return result


def core_sources() -> list[Path]:
    """Return the C core's files without the binding to Python."""
    return [
        path
        for path in sorted(CORE.glob("*.c"))
        if not path.name.startswith("py_") and path.name != "module.c"
    ]


def read_inputs(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the names and bytes of a corpus file."""
    if path.exists():
        for line in path.read_text().splitlines():
            name, _, digits = line.partition(" ")
            yield name, bytes.fromhex(digits)


def unpack(target: Target, directory: Path, kinds: Iterable[str] = ("seeds", "found")) -> Path:
    """Write a target's inputs (seeds, and what fuzzing found) as files; return where."""
    directory.mkdir(parents=True, exist_ok=True)
    for kind in kinds:
        for name, data in read_inputs(CORPUS / f"{target.corpus}.{kind}"):
            (directory / name).write_bytes(data)
    return directory
