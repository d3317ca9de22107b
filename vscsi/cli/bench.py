# SPDX-License-Identifier: MIT
"""`vscsi bench`: one workload over several paths."""

import json
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO, TYPE_CHECKING

import click
from click.core import ParameterSource
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from vscsi.bench import compare as engine
from vscsi.bench.load import Load
from vscsi.bench.result import Comparison
from vscsi.bench.table import table
from vscsi.bench.workload import MAX_RATE_PER_S, MODES, writes
from vscsi.cli.lio_units import connect, is_lio_path
from vscsi.cli.options import PathType, Size, lun_option, unit_path
from vscsi.cli.output import Troubles, say_troubles, written
from vscsi.wire.errors import SetupError

if TYPE_CHECKING:
    from vscsi.bench.captured import CapturedWorkload

MAX_DEPTH = 4096
PIPE_WIDTH = 1000


class BenchPathType(PathType):
    """A path's URL, or a unit of the kernel's without a ring: lio:NAME, sg:/dev/sgN."""

    def convert(
        self, value: str, param: click.Parameter | None, context: click.Context | None
    ) -> str:
        """Return the value if it begins like one of them."""
        return value if is_lio_path(value) else super().convert(value, param, context)


@click.command(short_help="one workload over several paths")
@click.argument("paths", metavar="PATH...", type=BenchPathType(), nargs=-1)
@click.option(
    "--rw",
    "mode",
    type=click.Choice(MODES),
    default="randread",
    show_default=True,
    help="All but read and randread overwrite what is there: see --yes-overwrite.",
)
@click.option(
    "--workload",
    "capture",
    metavar="CAPTURE",
    help="Send the reads, writes, flushes and unmaps of this capture, instead of --rw and --bs.",
)
@click.option(
    "--fio-job",
    metavar="OUT",
    help="Write a fio job file with the capture's profile too, or without a PATH that alone.",
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
    help="Commands outstanding at a time (default 1; of a capture as many as it had).",
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
@click.option(
    "--rate",
    type=click.FloatRange(0, MAX_RATE_PER_S, min_open=True),
    metavar="NUMBER",
    help="Commands that come a second, whatever the path does (rings alone; default: closed loop).",
)
@click.option(
    "--load",
    "generator",
    type=click.Choice(("native", "python")),
    default="native",
    show_default=True,
    help="Generate it in C where there is a ring, or in Python everywhere.",
)
@click.option(
    "--pin",
    type=click.IntRange(0),
    metavar="CPU",
    help="Generate the load of rings on this CPU.",
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
    capture: str | None,
    fio_job: str | None,
    rwmixread: int | None,
    bs: int,
    iodepth: int | None,
    size: int | None,
    offset: int,
    runtime: float,
    rounds: int,
    ramp_time: float,
    rate: float | None,
    generator: str,
    pin: int | None,
    seed: int,
    lun: int,
    limit: Path | None,
    yes_overwrite: bool,
    json_file: str | None,
) -> None:
    """Compare PATHs under one workload: rates, latencies, CPU time of both ends.

    A PATH is srp:DIR, vscsiif:DIR or blkif:DIR, where `vscsi serve` serves DIR, or call:IMAGE,
    the same target without a ring. lio:NAME (a unit of `vscsi lio`) and sg:/dev/sgN send to the
    kernel what a ring's backend would send, without a ring. Options have fio's names. A closed
    loop keeps --iodepth commands outstanding on one path at a time; with --rate commands come at
    their time instead, and up to --iodepth are outstanding. Paths take turns.
    A capture's commands follow each other in that way too, over and over, with their addresses
    modulo the size of the smallest path.

    Exit status: 0; 1 if a command or a path failed meanwhile, or not all of the capture could be
    read (the rest is shown); 2 if it could not begin.

    \b
    vscsi bench srp:run blkif:run --bs 4k --iodepth 8 --limit disk.img
    vscsi bench call:memory:64M --rw randwrite --yes-overwrite --json -
    """
    whole = True
    if capture is not None:
        _check_captured(context)
        if fio_job is not None:
            troubles = _write_job(capture, fio_job)
            if not paths:
                context.exit(not say_troubles(capture, troubles))
    elif fio_job is not None:
        raise click.UsageError("--fio-job goes with --workload")
    if not paths:
        raise click.UsageError("Missing argument 'PATH...'.")
    if capture is None and writes(mode) and not yes_overwrite:
        raise click.UsageError(f"--rw {mode} destroys data on every PATH: add --yes-overwrite")
    if rwmixread is not None and not mode.endswith("rw"):
        raise click.UsageError(f"--rwmixread goes with rw and randrw, not with {mode}")
    if rate is not None and limit is not None:
        raise click.UsageError("--limit is the most that could be reached: not with --rate")
    wish: engine.Wish | CapturedWorkload
    if capture is not None:
        wish, whole = _captured(capture, iodepth)
        if wish.writes and not yes_overwrite:
            raise click.UsageError(f"{capture} destroys data on every PATH: add --yes-overwrite")
    else:
        percent = 50 if rwmixread is None else rwmixread
        wish = engine.Wish(mode, bs, iodepth or 1, offset, size, percent, seed, rate)
    # LUN 0 needs no translation, and the path keeps the name that it was given.
    units = [unit_path(path, lun) if lun and not is_lio_path(path) else (path, 0) for path in paths]
    schedule = engine.Schedule(rounds, runtime, ramp_time)
    with (
        writer(json_file) as out,
        Interruptible() as interrupt,
        engine.opened(
            units, wish, limit=limit, connect=connect, native=generator == "native", cpu=pin
        ) as loads,
    ):
        interrupt.loads = loads
        with progress(len(loads) * rounds * (ramp_time + runtime / rounds), interrupt) as step:
            comparison = engine.compare(loads, schedule, step)
        interrupt.check()
        if out is not None:
            out.write(json.dumps(comparison.as_json()).encode() + b"\n")
    show(comparison, json_file)
    for problem in comparison.problems:
        click.echo(f"vscsi bench: {problem}", err=True)
    if comparison.problems or not whole:
        context.exit(1)


def _check_captured(context: click.Context) -> None:
    """Refuse what a capture says itself, or cannot have."""
    for name in ("mode", "rwmixread", "bs", "size", "offset", "rate", "limit"):
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            option = "--rw" if name == "mode" else f"--{name}"
            raise click.UsageError(f"{option} does not go with --workload")


def _captured(file: str, depth: int | None) -> "tuple[CapturedWorkload, bool]":
    """Return a capture's workload, and whether all of the capture could be read."""
    # What reads captures needs libraries that nothing else here does.
    from vscsi.bench.captured import captured_workload
    from vscsi.capture.sources import Opened

    with Opened(file) as source:
        found = captured_workload(source, file, depth)
        return found, say_troubles(file, source.troubles)


def _write_job(file: str, output: str) -> Troubles:
    from vscsi.capture.sinks import fio_job
    from vscsi.capture.sources import Opened

    with Opened(file) as source:
        try:
            with click.open_file(output, "wb") as stream:
                fio_job.write(source, stream)
        except OSError as error:
            raise SetupError(
                "write", output, error.strerror or str(error), "name another file for --fio-job"
            ) from error
        return source.troubles


def show(comparison: Comparison, json_file: str | None) -> None:
    """Print the table, or the JSON in its place; a pipe gets as wide a table as it takes."""
    if json_file == "-":
        click.echo(json.dumps(comparison.as_json()))
        return
    console = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH)
    console.print(table(comparison))


@contextmanager
def writer(json_file: str | None) -> Iterator[IO[bytes] | None]:
    """Open the file for the JSON before any work is done for it; SetupError if it cannot be."""
    if json_file is None or json_file == "-":
        yield None
        return
    with written(json_file, own="--json") as out:
        yield out


class Interruptible:
    """Ends runs in order when the user interrupts, and then the command; a second time at once.

    An exception in the middle of a transport's code would leave locks behind that closing needs.
    """

    def __init__(self) -> None:
        self.loads: Sequence[Load] = ()
        self._interrupted = False

    def __enter__(self) -> "Interruptible":
        self._before = signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(self, *_error: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _interrupt(self, _signal: int, _frame: FrameType | None) -> None:
        self._interrupted = True
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        for load in self.loads:
            load.stop()

    def check(self) -> None:
        """Leave if the user wants to (between runs)."""
        if self._interrupted:
            raise click.Abort


@contextmanager
def progress(total_s: float, interrupt: Interruptible) -> Iterator[engine.Progress]:
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
            interrupt.check()
            bar.update(task, description=name, completed=done_s, refresh=True)
            done_s += takes_s

        yield step
