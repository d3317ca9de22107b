# SPDX-License-Identifier: MIT
"""`vscsi replay`: a capture's commands, sent again."""

import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import vscsi
from vscsi.capture.commands import Disk
from vscsi.capture.replay.order import InOrder
from vscsi.capture.replay.report import report
from vscsi.capture.replay.run import How, Replay
from vscsi.capture.replay.step import Steps
from vscsi.capture.replay.survey import Survey, survey
from vscsi.capture.replay.translate import Unit
from vscsi.capture.replay.units import Units, check_size, first_data
from vscsi.capture.sources import FORMATS, Opened
from vscsi.cli.options import PathType, json_option, unit_path
from vscsi.cli.output import print_json, say_troubles
from vscsi.cli.replay_report import show
from vscsi.transport.hba import COMMAND_TIMEOUT_S
from vscsi.wire.errors import SetupError

_SLOWEST = 1e-6
_STEP = 256
"""Commands between two looks at the bar."""


class Speed(click.ParamType[float]):
    """How many times as fast as recorded: 1x, 10x, 0.5x; max is infinite."""

    name = "1x|10x|max"

    def convert(
        self, value: str | float, param: click.Parameter | None, context: click.Context | None
    ) -> float:
        """Return the factor."""
        if isinstance(value, float):
            return value
        try:
            factor = float("inf") if value == "max" else float(value.removesuffix("x"))
        except ValueError:
            factor = 0.0
        if not factor >= _SLOWEST:
            self.fail(f"{value!r} is no speed such as 1x, 10x or max", param, context)
        return factor


@click.command(short_help="send a capture's commands again")
@click.argument("file")
@click.argument("path", type=PathType())
@click.option(
    "--speed", metavar="1x|10x|max", type=Speed(), default="1x", show_default=True, help="How fast."
)
@click.option(
    "--verify",
    is_flag=True,
    help="Check what is read too; any answer that is not the recorded one is exit status 1.",
)
@click.option("--read-only", is_flag=True, help="Leave out what may change the disk.")
@click.option("--wrap", is_flag=True, help="Have addresses beyond the unit's end begin again at 0.")
@click.option(
    "--lun",
    metavar="N",
    type=click.IntRange(0),
    help="Unit that gets everything (default: the one with the captured number).",
)
@click.option(
    "--disk", "disks", metavar="NAME", multiple=True, help="Replay this disk of the capture alone."
)
@click.option(
    "--format", "form", metavar="F", type=click.Choice(tuple(FORMATS)), help="What FILE is."
)
@click.option(
    "--timeout",
    "timeout_s",
    metavar="SECONDS",
    type=click.FloatRange(0.001, 86400),
    default=COMMAND_TIMEOUT_S,
    show_default=True,
    help="Give up when a command is not answered for so long.",
)
@click.option("--yes", is_flag=True, help="Write to a disk that is not empty without asking.")
@json_option
@click.pass_context
def replay(
    context: click.Context,
    file: str,
    path: str,
    speed: float,
    verify: bool,
    read_only: bool,
    wrap: bool,
    lun: int | None,
    disks: Sequence[str],
    form: str | None,
    timeout_s: float,
    yes: bool,
    as_json: bool,
) -> None:
    """Send the commands that FILE has to PATH, in their time, order and concurrency.

    A command is not sent before those have ended that had ended when it was recorded. Writes whose
    data are not in FILE write a pattern, by which --verify knows them again. FILE is anything that
    `vscsi analyze` reads, - for standard input; tags are the path's own.

    Its latencies are round trips of this program, which is Python; captured ones are from a request
    to its answer on the ring. Compare two replays with each other, not one with its capture.

    Exit status: 0; 1 if FILE or the path broke, or --verify found another answer; 2 if it could
    not begin; 130 after an interrupt (the report comes nevertheless).

    \b
    vscsi replay a.pcapng srp:run
    vscsi replay trace.vscsi call:memory:1G --speed max --wrap --verify
    """

    def chosen(disk: Disk) -> bool:
        return not disks or disk.name in disks

    found = _survey(file, form, chosen)
    path, only = (path, lun) if lun is None else unit_path(path, lun)
    with Opened(file, form) as source, vscsi.connect(path) as hba:
        units = Units(hba, only)
        _check(path, units, found, wrap=wrap, writes=not read_only, yes=yes)
        order = InOrder(source)
        how = How(None if speed == float("inf") else speed, wrap, read_only, verify, timeout_s)
        with _bar("sending", found.commands if found else None) as progress:
            run = Replay(
                hba,
                units,
                Steps(order, source.events),
                source.disks,
                how,
                chosen=chosen,
                progress=progress,
            )
            with _interruptible(run):
                run.run()
        result = {"file": file, "path": path, **report(run, late_rows=order.late)}
    if as_json:
        print_json(result)
    else:
        show(result)
    whole = say_troubles(file, source.troubles)
    if run.failure:
        click.echo(f"vscsi: {' '.join(run.failure.split())}", err=True)
    if run.stopped:
        context.exit(130)
    if not whole or run.failure or (verify and run.judge.counts):
        context.exit(1)


# Before


def _survey(file: str, form: str | None, chosen: Callable[[Disk], bool]) -> Survey | None:
    """Read FILE once; None for standard input, which can't be read again."""
    if file == "-":
        return None
    with Opened(file, form) as source, _bar("reading", None) as progress:
        found = survey(source, chosen, progress)
    if not found.disks:
        names = ", ".join(disk.name for disk in source.disks)
        raise SetupError(
            "replay",
            file,
            f"it has no commands of those disks, but of {names}" if names else "it has no commands",
            "`vscsi analyze` shows what it has",
        )
    return found


def _check(
    path: str, units: Units, found: Survey | None, *, wrap: bool, writes: bool, yes: bool
) -> None:
    """Refuse what does not fit the path's units, and ask before data are overwritten.

    Of standard input it is not known what it will do: it may write anywhere.
    """
    touched = [(found.names[index], what) for index, what in found.disks.items()] if found else []
    for disk, what in touched:
        unit = units.of(disk)
        if isinstance(unit, str):
            continue
        if not wrap:
            check_size(unit, disk, what.end)
        if writes and not yes and what.changing:
            size = unit.blocks * unit.block_bytes
            places = [int(lba) * disk.block_bytes % size for lba in what.places]
            _ask(path, unit, places)
    if found is None and writes and not yes:
        unit = units.of(Disk("standard input"))
        if not isinstance(unit, str):
            _ask(path, unit, [])


def _ask(path: str, unit: Unit, places: list[int]) -> None:
    """Have the user agree if a unit to be written to is not empty; SetupError if nobody can."""
    at = first_data(unit, places)
    if at is None:
        return
    what = f"{path} is not empty (there are data at byte {at})"
    if not sys.stdin.isatty():
        raise SetupError("replay to", path, f"it is not empty, as at byte {at}", "--yes overwrites")
    click.confirm(f"vscsi: {what}; overwrite it?", abort=True, err=True)


# Meanwhile


@contextmanager
def _bar(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show progress on a terminal's standard error; yield what is told how many are done."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    console = Console(stderr=True)
    with Progress(
        *columns,
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not sys.stderr.isatty(),
    ) as bar:
        task = bar.add_task(what, total=total)

        def step(done: int) -> None:
            if done % _STEP == 0 or done == total:
                bar.update(task, completed=done)

        yield step


@contextmanager
def _interruptible(run: Replay) -> Iterator[None]:
    """End in order on the first SIGINT or SIGTERM; a second one ends at once."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        for number in before:
            signal.signal(number, signal.SIG_DFL)
        run.stop()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
