# SPDX-License-Identifier: MIT
"""`python -m vscsi.bench.figures`: what `make figures` runs."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from vscsi.bench.figures.bed import WANTED_BYTES, Bed
from vscsi.bench.figures.catalogue import FIGURES
from vscsi.bench.figures.machine import describe
from vscsi.bench.figures.measure import Progress as Step
from vscsi.bench.figures.measure import measure
from vscsi.bench.figures.report import page, rewrite, table, write_json
from vscsi.wire.errors import SetupError

QUIET_LOAD = 0.5
"""Load average of the last minute up to which a machine is quiet."""
PIPE_WIDTH = 200
LEAST_ROUNDS = 5


@click.command()
@click.argument("names", metavar="[FIGURE]...", nargs=-1)
@click.option("--rounds", type=click.IntRange(1), default=7, show_default=True)
@click.option("--runtime", type=float, default=0.3, show_default=True, help="s of each loop.")
@click.option(
    "--realtime",
    is_flag=True,
    help="Keep other processes off the two CPUs meanwhile (SCHED_FIFO), where it isn't quiet.",
)
@click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("figures.json"),
    show_default=True,
)
@click.option(
    "--page",
    "page_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Page whose figures are replaced, docs/performance.md.",
)
def main(
    names: Sequence[str],
    rounds: int,
    runtime: float,
    realtime: bool,
    json_file: Path,
    page_file: Path | None,
) -> None:
    """Measure the project's figures (all, or those named), each in turns with its limit."""
    unknown = set(names) - {figure.name for figure in FIGURES}
    if unknown:
        raise click.UsageError(f"no figure {', '.join(sorted(unknown))}")
    figures = [figure for figure in FIGURES if not names or figure.name in names]
    load = os.getloadavg()[0]
    try:
        if realtime:
            keep_others_off()
        with Bed() as bed, progress() as step:
            results = measure(bed, figures, rounds, runtime, step)
            machine = describe(bed)
            size = f"{bed.file_bytes >> 20} MiB"
        settings = f"{rounds} rounds of {runtime:g} s a loop; file of {size} in a tmpfs."
        if bed.file_bytes < WANTED_BYTES:
            settings += " There was no room for 1 GiB."
        if realtime:
            settings += " Other processes were kept off (SCHED_FIFO)."
        if load > QUIET_LOAD or rounds < LEAST_ROUNDS:
            settings += f" Preliminary: load average {load:.2f} before it began."
            for result in results:
                result.note = f"preliminary; {result.note}"
        write_json(results, json_file)
        if page_file is not None:
            rewrite(page_file, page(figures, results, machine, settings))
    except SetupError as error:
        click.echo(f"figures: {error}", err=True)
        sys.exit(2)
    Console(width=None if sys.stdout.isatty() else PIPE_WIDTH).print(table(results, settings))


def keep_others_off() -> None:
    """Have this process, and those that it starts, run before all ordinary ones."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except OSError as error:
        reason = error.strerror or str(error)
        raise SetupError("use", "SCHED_FIFO", reason, "run it as root, or without") from error


@contextmanager
def progress() -> Iterator[Step]:
    """Show on a terminal what is being measured; it is drawn between measurements alone."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    console = Console(stderr=True)
    disable = not sys.stderr.isatty()
    with Progress(
        *columns, console=console, auto_refresh=False, transient=True, disable=disable
    ) as bar:
        task = bar.add_task("")
        yield lambda name: bar.update(task, description=name, refresh=True)


if __name__ == "__main__":
    main()
