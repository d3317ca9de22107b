# SPDX-License-Identifier: MIT
"""Fuzzing at length: `make fuzz` (FUZZ_S seconds a target, two targets at a time).

`python -m tests.fuzz.run [TARGET...]` fuzzes; `--coverage` says what of the C core the corpus in
the tree reaches, `--keep` puts what was found and reaches more into it, `--build DIRECTORY` builds
and no more. What is found stays in .fuzz/ from one run to the next.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.fuzz.targets import (
    CORPUS,
    TARGETS,
    Builder,
    Target,
    core_sources,
    unpack,
)

WORK = Path(".fuzz")
SECONDS = int(os.environ.get("FUZZ_S", "600"))
TOGETHER = 2
MOST_BYTES = 2048
"""Of an input; longer ones find nothing that shorter ones don't."""
DONE = re.compile(r"^Done (\d+) runs in (\d+) second", re.MULTILINE)
COVERED = re.compile(r"cov: (\d+) ft: \d+ corp: (\d+)")


def fuzz(target: Target, program: Path) -> bool:
    """Fuzz one target, print a line about it, and tell whether it is still whole."""
    found = WORK / "corpus" / target.corpus
    crashes = WORK / "crashes"
    crashes.mkdir(parents=True, exist_ok=True)
    found.mkdir(parents=True, exist_ok=True)
    seeds = unpack(target, WORK / "seeds" / target.corpus)
    command = [program, "-timeout=60", f"-artifact_prefix={crashes}/{target.name}-"]
    if target.races:
        whole, log, runs = replay(command, sorted(seeds.iterdir()) + sorted(found.iterdir()))
    else:
        command += [f"-max_len={MOST_BYTES}", f"-max_total_time={SECONDS}", found, seeds]
        done = subprocess.run(command, stderr=subprocess.PIPE, errors="replace", check=False)
        whole, log = done.returncode == 0, done.stderr
        ended = DONE.search(log)
        runs = int(ended[1]) if ended else 0
    (WORK / f"{target.name}.log").write_text(log)
    last = COVERED.findall(log)
    edges = f", {last[-1][0]} edges, {last[-1][1]} inputs" if last else ""
    verdict = "" if whole else f": FOUND SOMETHING, see {WORK / target.name}.log"
    print(f"{target.name:16} {runs:>11} runs, {runs // SECONDS:>6}/s{edges}{verdict}", flush=True)
    return whole


def replay(command: Sequence[object], inputs: Sequence[Path]) -> tuple[bool, str, int]:
    """Run all inputs over and over; libFuzzer's counters are no use to two threads."""
    environment = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1"}
    runs, until = 0, time.monotonic() + SECONDS
    while time.monotonic() < until:
        done = subprocess.run(
            [*map(str, command), "-runs=5", *map(str, inputs)],
            env=environment,
            stderr=subprocess.PIPE,
            errors="replace",
            check=False,
        )
        if done.returncode:
            return False, done.stderr, runs
        runs += 5 * len(inputs)
    return True, "", runs


def keep(targets: Sequence[Target], builder: Builder) -> None:
    """Write corpus/*.found: the fewest inputs that reach what all that were found reach."""
    for target in targets:
        if target.races:
            continue
        with tempfile.TemporaryDirectory() as scratch:
            merged = unpack(target, Path(scratch) / "merged", ["seeds"])
            before = unpack(target, Path(scratch) / "before", ["found"])
            seeds = {path.read_bytes() for path in merged.iterdir()}
            (WORK / "corpus" / target.corpus).mkdir(parents=True, exist_ok=True)
            options = [f"-max_len={MOST_BYTES}", "-set_cover_merge=1", "-use_counters=0"]
            subprocess.run(
                [builder.build(target), *options, merged, before, WORK / "corpus" / target.corpus],
                stderr=subprocess.DEVNULL,
                check=True,
            )
            found = sorted(
                (data for path in merged.iterdir() if (data := path.read_bytes()) not in seeds),
                key=lambda data: (len(data), data),
            )
        lines = [f"{at:04} {data.hex()}" for at, data in enumerate(found)]
        (CORPUS / f"{target.name}.found").write_text("".join(f"{line}\n" for line in lines))
        print(f"{target.name}: {len(lines)} inputs kept", flush=True)


def coverage(targets: Sequence[Target], builder: Builder, directory: Path) -> None:
    """Print what of each file of the C core the inputs in the tree reach, in lines and branches."""
    profiles, programs = [], []
    for target in targets:
        program = builder.build(target, "coverage")
        profile = directory / f"{target.name}.raw"
        inputs = sorted(unpack(target, directory / target.name).iterdir())
        subprocess.run(
            [program, *inputs],
            env={**os.environ, "LLVM_PROFILE_FILE": str(profile)},
            stderr=subprocess.DEVNULL,
            check=True,
        )
        profiles.append(profile)
        programs.append(program)
    data = directory / "all.profile"
    subprocess.run([tool("llvm-profdata"), "merge", "-o", data, *profiles], check=True)
    objects = [argument for program in programs[1:] for argument in ("-object", program)]
    report = subprocess.run(
        [
            *(tool("llvm-cov"), "export", "-summary-only", f"-instr-profile={data}"),
            *(programs[0], *objects, *core_sources()),
        ],
        stdout=subprocess.PIPE,
        check=True,
    )
    for file in json.loads(report.stdout)["data"][0]["files"]:
        lines, branches = file["summary"]["lines"], file["summary"]["branches"]
        shares = f"{lines['percent']:5.1f} % of {lines['count']:4} lines"
        print(
            f"{Path(file['filename']).name:16} {shares}, {branches['percent']:5.1f} % of branches"
        )


def tool(name: str) -> str:
    """Return an LLVM tool's name; exits where there is none."""
    for each in (f"{name}-14", name):
        if shutil.which(each):
            return each
    sys.exit(f"{name} is missing: apt-get install llvm-14")


def main() -> int:
    """Do what the command line says; 1 if something was found."""
    names = [argument for argument in sys.argv[1:] if not argument.startswith("--")]
    place = Path(names.pop(0)) if "--build" in sys.argv else None
    targets = [target for target in TARGETS if not names or target.name in names]
    if unknown := set(names) - {target.name for target in targets}:
        sys.exit(f"no target {', '.join(sorted(unknown))}")
    with tempfile.TemporaryDirectory() as directory:
        builder = Builder(place or Path(directory))
        if "--coverage" in sys.argv:
            coverage(targets, builder, Path(directory))
            return 0
        if "--keep" in sys.argv:
            keep(targets, builder)
            return 0
        if place:
            place.mkdir(parents=True, exist_ok=True)
        programs = [builder.build(target) for target in targets]
        if place:
            return 0
        with ThreadPoolExecutor(TOGETHER) as pool:
            return 0 if all(list(pool.map(fuzz, targets, programs))) else 1


if __name__ == "__main__":
    sys.exit(main())
