# SPDX-License-Identifier: MIT
"""`vscsi bench`: one workload over several paths."""

import json
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from vscsi.bench import compare as engine
from vscsi.bench.result import Comparison
from vscsi.bench.table import table
from vscsi.bench.workload import MODES, writes
from vscsi.cli.options import PathType, lun_option
from vscsi.wire.errors import SetupError

MAX_DEPTH = 4096
PIPE_WIDTH = 1000
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


class Size(click.ParamType[int]):
    """A number of bytes in fio's way: 512, 4k, 64M; k, M, G and T are powers of 1024."""

    name = "SIZE"

    def convert(
        self, value: str | int, param: click.Parameter | None, context: click.Context | None
    ) -> int:
        """Return the bytes."""
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d{1,15})([kmgt]?)", value.lower())
        if match is None:
            self.fail(f"{value!r} is no size such as 512, 4k or 64M", param, context)
        return int(match[1]) * _UNITS[match[2]]


@click.command(short_help="one workload over several paths")
@click.argument("paths", metavar="PATH...", type=PathType(), nargs=-1, required=True)
@click.option(
    "--rw",
    "mode",
    type=click.Choice(MODES),
    default="randread",
    show_default=True,
    help="All but read and randread overwrite what is there: see --yes-overwrite.",
)
@click.option(
    "--rwmixread",
    type=click.IntRange(0, 100),
    metavar="PERCENT",
    help="Share of reads in rw and randrw (default 50).",
)
@click.option("--bs", type=Size(), default="4k", show_default=True, help="Bytes of an operation.")
@click.option(
    "--iodepth",
    type=click.IntRange(1, MAX_DEPTH),
    default=1,
    show_default=True,
    help="Commands outstanding at a time.",
)
@click.option("--size", type=Size(), help="Bytes to work on (default: to the smallest path's end).")
@click.option("--offset", type=Size(), default=0, help="Byte where they begin (default 0).")
@click.option(
    "--runtime",
    type=click.FloatRange(0, min_open=True),
    metavar="SECONDS",
    default=5,
    show_default=True,
    help="Measured of each path, over all rounds.",
)
@click.option(
    "--rounds",
    type=click.IntRange(1),
    default=5,
    show_default=True,
    help="Turns that each path gets, so that a noisy machine hits all alike.",
)
@click.option(
    "--ramp-time",
    type=click.FloatRange(0),
    metavar="SECONDS",
    default=0.2,
    show_default=True,
    help="Run before each turn, and not measured.",
)
@click.option("--seed", type=int, default=0, help="Of offsets, mix and data (default 0).")
@lun_option
@click.option(
    "--limit",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Add a bare preadv/pwritev loop on FILE, the most that could be reached.",
)
@click.option(
    "--yes-overwrite",
    is_flag=True,
    help="Agree that data on all PATHs (and in the --limit FILE) is destroyed.",
)
@click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, allow_dash=True),
    metavar="FILE|-",
    help="Write everything as JSON too, or with - instead of the table.",
)
@click.pass_context
def bench(
    context: click.Context,
    paths: Sequence[str],
    mode: str,
    rwmixread: int | None,
    bs: int,
    iodepth: int,
    size: int | None,
    offset: int,
    runtime: float,
    rounds: int,
    ramp_time: float,
    seed: int,
    lun: int,
    limit: Path | None,
    yes_overwrite: bool,
    json_file: str | None,
) -> None:
    """Compare PATHs under one workload: rates, latencies, CPU time of both ends.

    A PATH is srp:DIR, vscsiif:DIR or blkif:DIR, where `vscsi serve` serves DIR, or call:IMAGE,
    the same target without a ring. Options have fio's names. A closed loop keeps --iodepth
    commands outstanding on one path at a time; paths take turns.

    Exit status: 0; 1 if a command or a path failed meanwhile (the rest is shown); 2 if it could
    not begin.

    \b
    vscsi bench srp:run blkif:run --bs 4k --iodepth 8 --limit disk.img
    vscsi bench call:memory:64M --rw randwrite --yes-overwrite --json -
    """
    if writes(mode) and not yes_overwrite:
        raise click.UsageError(f"--rw {mode} destroys data on every PATH: add --yes-overwrite")
    if rwmixread is not None and not mode.endswith("rw"):
        raise click.UsageError(f"--rwmixread goes with rw and randrw, not with {mode}")
    wish = engine.Wish(
        mode, bs, iodepth, offset, size, 50 if rwmixread is None else rwmixread, seed
    )
    schedule = engine.Schedule(rounds, runtime, ramp_time)
    with writer(json_file) as out, engine.opened(paths, wish, lun=lun, limit=limit) as loads:
        with progress(len(loads) * rounds * (ramp_time + runtime / rounds)) as step:
            comparison = engine.compare(loads, schedule, step)
        if out is not None:
            out.truncate(0)
            json.dump(comparison.as_json(), out)
            out.write("\n")
    show(comparison, json_file)
    for problem in comparison.problems:
        click.echo(f"vscsi bench: {problem}", err=True)
    if comparison.problems:
        context.exit(1)


def show(comparison: Comparison, json_file: str | None) -> None:
    """Print the table, or the JSON in its place; a pipe gets as wide a table as it takes."""
    if json_file == "-":
        click.echo(json.dumps(comparison.as_json()))
        return
    console = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH)
    console.print(table(comparison))


@contextmanager
def writer(json_file: str | None) -> Iterator[IO[str] | None]:
    """Open the file for the JSON before any work is done for it; SetupError if it cannot be."""
    if json_file is None or json_file == "-":
        yield None
        return
    try:
        out = Path(json_file).open("a", encoding="utf-8")  # noqa: SIM115 - closed below
    except OSError as error:
        raise SetupError(
            "write", json_file, error.strerror or str(error), "name another file for --json"
        ) from error
    with out:
        yield out


@contextmanager
def progress(total_s: float) -> Iterator[engine.Progress]:
    """Show progress on a terminal's standard error; yield what is told of each turn."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    # It is drawn between runs alone: a thread that draws would be measured.
    with Progress(
        *columns,
        console=console,
        auto_refresh=False,
        transient=True,
        disable=not sys.stderr.isatty(),
    ) as bar:
        task = bar.add_task("", total=total_s)
        done_s = 0.0

        def step(name: str, takes_s: float) -> None:
            nonlocal done_s
            bar.update(task, description=name, completed=done_s, refresh=True)
            done_s += takes_s

        yield step
