# SPDX-License-Identifier: MIT
"""The main job, on real input: `make demo`.

Builds an ext4 image from real files, serves it, copies it out and a fresh one in over NBD through
SRP, vscsiif and blkif in turn, checks every copy, compares the paths, and summarises the capture.
Everything it makes is in demo/.
"""

import hashlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "demo"
RUN = (DEMO / "run").relative_to(ROOT)
"""Relative, for short paths in tables; every command runs in ROOT."""
VSCSI = [sys.executable, "-m", "vscsi"]
PATHS = ("srp", "vscsiif", "blkif")
IMAGE_BYTES = 96 << 20
BENCH_SECONDS = 2
GOOD = ("GOOD", "OKAY", "SUCCESS", "ACCEPTED")
"""What the three protocols call it when all is well."""
TOOLS = {"mke2fs": "e2fsprogs", "e2fsck": "e2fsprogs", "nbdcopy": "libnbd-bin", "nbdkit": "nbdkit"}

console = Console(highlight=False)


def main() -> None:
    started = time.monotonic()
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    for tool, package in TOOLS.items():
        if shutil.which(tool) is None:
            fail(f"{tool} is missing: sudo apt-get install {package}")
    shutil.rmtree(DEMO, ignore_errors=True)
    DEMO.mkdir()
    image = DEMO / "disk.img"
    copies = {path: DEMO / f"written-{path}.img" for path in PATHS}

    step("an ext4 image from real files")
    files, size = build_image(image)
    say(f"{files} files, {size / 1e6:.0f} MB, in {image.relative_to(ROOT)}")
    for copy in copies.values():
        with copy.open("wb") as blank:
            blank.truncate(IMAGE_BYTES)
    digest = sha256(image)

    step("serving it, and a blank disk for each path to write")
    capture = DEMO / "capture.pcapng"
    server = serve([image, *copies.values()], capture)
    try:
        for number, path in enumerate(PATHS, start=1):
            step(f"{path}: copy out and in over NBD, with nbdcopy")
            out = DEMO / f"read-{path}.img"
            copy_out(path, out)
            check(out, digest, f"read through {path}")
            out.unlink()
            copy_in(path, number, image)
    finally:
        end(server)

    step("the paths compared: 4 KiB random reads, one workload in turns")
    server = serve([image], None)  # millions of commands, which nobody wants to capture
    try:
        bench()
    finally:
        end(server)

    step("what was written, checked")
    for path, copy in copies.items():
        check(copy, digest, f"written through {path}")
        run(["e2fsck", "-fn", str(copy)])
        say(f"e2fsck -fn: {copy.name} is clean")

    step("what crossed the rings")
    summarise(capture)
    console.print(f"\n[bold green]All checks passed[/] in {time.monotonic() - started:.0f} s.")
    console.print(f"Everything is in {DEMO.relative_to(ROOT)}/: the images, capture.pcapng")
    console.print("(vscsi capture show demo/capture.pcapng), bench.json, serve.log.")


def build_image(image: Path) -> tuple[int, int]:
    """Make an ext4 image of this project's sources and Python's standard library."""
    tree = DEMO / "files"
    keep = shutil.ignore_patterns(
        "__pycache__", "site-packages", "dist-packages", "test", "tests", "idlelib", "config-*",
        "*.a",
    )  # fmt: skip
    shutil.copytree(sysconfig.get_path("stdlib"), tree / "python", ignore=keep, symlinks=True)
    shutil.copytree(ROOT / "vscsi", tree / "vscsi", ignore=keep)
    found = [path for path in tree.rglob("*") if path.is_file() and not path.is_symlink()]
    size = sum(path.stat().st_size for path in found)
    if size > IMAGE_BYTES * 3 // 4:
        fail(f"{size} bytes of files do not fit an image of {IMAGE_BYTES}")
    run(["mke2fs", "-q", "-t", "ext4", "-d", str(tree), str(image), f"{IMAGE_BYTES >> 10}k"])
    shutil.rmtree(tree)
    return len(found), size


def end(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    if server.wait(30) != 0:
        fail(f"vscsi serve ended with status {server.returncode}")


def serve(images: Sequence[Path], capture: Path | None) -> subprocess.Popen[bytes]:
    """Start `vscsi serve` and wait until it is ready."""
    ready, ready_write = os.pipe()
    recorded = [] if capture is None else ["--capture", str(capture)]
    log = (DEMO / "serve.log").open("ab")
    server = subprocess.Popen(
        [*VSCSI, "serve", *map(str, images), "--dir", str(RUN), *recorded,
         "--ready-fd", str(ready_write)],
        stdout=log, stderr=log, pass_fds=[ready_write], cwd=ROOT,
    )  # fmt: skip
    log.close()
    os.close(ready_write)
    if not os.read(ready, 1):
        fail(f"vscsi serve did not start: {(DEMO / 'serve.log').read_text().strip()}")
    os.close(ready)
    say(" ".join(["vscsi serve ... --dir", str(RUN), *recorded]))
    return server


def copy_out(path: str, out: Path) -> None:
    """Copy LUN 0 to a file."""
    begin = time.monotonic()
    nbd(path, 0, f"nbdcopy \"$uri\" '{out}'")
    rate = IMAGE_BYTES / 1e6 / (time.monotonic() - begin)
    say(f"read {IMAGE_BYTES >> 20} MiB at {rate:.0f} MB/s, start-up included")


def copy_in(path: str, lun: int, image: Path) -> None:
    """Copy an image onto a LUN, and have it flushed."""
    begin = time.monotonic()
    nbd(path, lun, f"nbdcopy --flush '{image}' \"$uri\"")
    rate = IMAGE_BYTES / 1e6 / (time.monotonic() - begin)
    say(f"wrote it to LUN {lun} at {rate:.0f} MB/s")


def nbd(path: str, lun: int, command: str) -> None:
    """Run a command while a logical unit is exported."""
    socket = DEMO / "nbd.sock"
    run([*VSCSI, "nbd", f"{path}:{RUN}", "--lun", str(lun), "--socket", str(socket),
         "--run", command])  # fmt: skip


def bench() -> None:
    """Compare the paths; the table goes to the terminal."""
    result = subprocess.run(
        [*VSCSI, "bench", *(f"{path}:{RUN}" for path in PATHS), "--rw", "randread", "--bs", "4k",
         "--iodepth", "8", "--runtime", str(BENCH_SECONDS), "--rounds", "3",
         "--json", str(DEMO / "bench.json")],
        cwd=ROOT, check=False,
    )  # fmt: skip
    if result.returncode:
        fail(f"vscsi bench ended with status {result.returncode}")


def summarise(capture: Path) -> None:
    """Print what commands the capture holds."""
    shown = run([*VSCSI, "capture", "show", "--json", str(capture)])
    count: dict[tuple[str, str], int] = defaultdict(int)
    errors: dict[tuple[str, str], int] = defaultdict(int)
    latency: dict[tuple[str, str], list[float]] = defaultdict(list)
    for line in shown.splitlines():
        entry = json.loads(line)
        words = itertools.takewhile(str.isupper, (entry["request"] or "unknown").split())
        key = (entry["path"], " ".join(words))
        count[key] += 1
        errors[key] += not (entry["status"] or "").startswith(GOOD)
        if entry["latency_ns"] is not None:
            latency[key].append(entry["latency_ns"] / 1000)
    table = Table("path", "command", "count", "not good", "median us")
    for key in sorted(count):
        times = sorted(latency[key])
        median = f"{times[len(times) // 2]:.0f}" if times else "-"
        table.add_row(*key, str(count[key]), str(errors[key]), median)
    console.print(table)
    say("not good: each new nexus is told POWER ON OCCURRED once (unit attention 6/29/01)")


def run(command: list[str]) -> str:
    """Run a command to its end; fail with what it said if it fails."""
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if result.returncode:
        fail(f"{' '.join(command)}: status {result.returncode}\n{result.stdout}{result.stderr}")
    return result.stdout


def check(file: Path, digest: str, what: str) -> None:
    """Compare a file with the image it must equal."""
    if sha256(file) != digest:
        fail(f"{what}: sha256 differs")
    say(f"{what}: sha256 {digest[:16]}... is right")


def sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def step(text: str) -> None:
    console.print(f"\n[bold]{text}[/]")


def say(text: str) -> None:
    console.print(f"  {text}")


def fail(text: str) -> NoReturn:
    console.print(f"[bold red]demo failed:[/] {text}")
    sys.exit(1)


if __name__ == "__main__":
    main()
