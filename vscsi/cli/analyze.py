# SPDX-License-Identifier: MIT
"""`vscsi analyze`: what a capture says, from files or live."""

import os
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from vscsi.analysis import vscsistats
from vscsi.analysis.buckets import parse
from vscsi.analysis.diff import Diff, compare
from vscsi.analysis.only import OfProtocols
from vscsi.analysis.result import Analysis
from vscsi.analysis.run import Options
from vscsi.analysis.run import analyze as run
from vscsi.capture.choice import Choice
from vscsi.capture.commands import Source
from vscsi.capture.live import LiveCapture
from vscsi.capture.sources import FORMATS, Opened, ours
from vscsi.cli.analysis_tables import print_analysis, print_diff
from vscsi.cli.options import captured_path, json_option
from vscsi.cli.output import (
    is_standard_output,
    print_json,
    printable,
    say_troubles,
    trouble_words,
    written,
)
from vscsi.cli.signals import stopped_by_signals
from vscsi.wire.errors import SetupError

_PROTOCOLS = ("srp", "vscsiif", "blkif", "iscsi", "scsi", "block")
EMPTY = "the file is empty"
"""As `Opened` says it."""
_PIPED_COLUMNS = 160
"""Where no terminal says how wide it is."""

Named = tuple[str, Source]


@click.command(short_help="what a capture says: tables, histograms, a report")
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@json_option
@click.option("--html", metavar="OUT", help="Write a report for a browser.")
@click.option("--csv", metavar="OUT", help="Write the histograms as vscsiStats prints them.")
@click.option(
    "--buckets",
    multiple=True,
    metavar="SET",
    help="esx (vscsiStats', the default), pow2, bounds for all (1,2,4) or for one measure "
    "(latency_us=50,100,500). May be repeated.",
)
@click.option("--diff", is_flag=True, help="Compare two FILEs, or two --path of one.")
@click.option(
    "--path",
    "paths",
    multiple=True,
    type=click.Choice(_PROTOCOLS),
    help="Only what crossed by this protocol. May be repeated.",
)
@click.option("--engine", default="duckdb", help="duckdb, spark (here) or spark://HOST:PORT.")
@click.option(
    "--format",
    "form",
    type=click.Choice(list(FORMATS)),
    help="What the FILEs are, where their content does not say.",
)
@click.option(
    "--seconds", type=click.FloatRange(0, min_open=True), help="Of a server: end after so long."
)
@click.option(
    "--temp",
    type=click.Path(exists=True, file_okay=False, writable=True, path_type=Path),
    help="Where temporary files go; a cluster has to see them.",
)
@click.pass_context
def analyze(
    context: click.Context,
    files: tuple[str, ...],
    as_json: bool,
    html: str | None,
    csv: str | None,
    buckets: tuple[str, ...],
    diff: bool,
    paths: tuple[str, ...],
    engine: str,
    form: str | None,
    seconds: float | None,
    temp: Path | None,
) -> None:
    """Say what captured commands are like: counts, latencies, histograms, what went wrong.

    A FILE is a capture of any known format, gzipped or not, or - for standard input; several are
    merged by time. A directory that is served (DIR, srp:DIR, vscsiif:DIR, blkif:DIR) is captured
    until Ctrl-C, its end, or for --seconds.

    The exit status is 1 if a file could not be read as a whole; what could be is shown. It is 2 if
    nothing could be read in the --format that was named, or nothing crossed by the --path.
    """
    chosen = Options(parse(buckets), engine, temp)
    sides = _sides(files, paths, diff)
    _check_inputs(files, seconds, diff=diff)
    _check_outputs(html, csv, as_json=as_json, diff=diff)
    with ExitStack() as stack:
        outputs = {"--html": html, "--csv": csv}
        reports = {
            option: stack.enter_context(written(file, files, own=option))
            for option, file in outputs.items()
            if file is not None
        }
        results = [_analysis(each, of, form, seconds, chosen) for each, of in sides]
        if html is not None:
            reports["--html"].write(_page(sides, results).encode())
        if csv is not None:
            reports["--csv"].write(vscsistats.histograms(results[0]).encode())
    whole = all(_say_troubles(each) for each in results)
    _show(sides, results, as_json, bool(html or csv))
    if not whole:
        context.exit(1)


def _check_inputs(files: Sequence[str], seconds: float | None, *, diff: bool) -> None:
    """Refuse what would be read twice, and a time for what ends by itself."""
    if seconds is not None and not any(map(_served, files)):
        raise click.UsageError("--seconds is for a server; a FILE is read to its end")
    names = [each if each == "-" or _served(each) else os.path.realpath(each) for each in files]
    for number, name in enumerate(names):
        if name in names[:number] and not (diff and name != "-"):
            raise click.UsageError(f"{files[number]} is named twice")


def _check_outputs(html: str | None, csv: str | None, *, as_json: bool, diff: bool) -> None:
    """Refuse outputs that would be one."""
    if diff and csv is not None:
        raise click.UsageError("--csv has no words for --diff")
    outputs = {"--html": html, "--csv": csv}
    there = [option for option, file in outputs.items() if is_standard_output(file)]
    if as_json:
        there.insert(0, "--json")
    if len(there) > 1:
        raise click.UsageError(f"{' and '.join(there)} both go to standard output")
    if html is not None and csv is not None and os.path.realpath(html) == os.path.realpath(csv):
        raise click.UsageError("--html and --csv name one file")


def _sides(
    files: Sequence[str], paths: Sequence[str], diff: bool
) -> list[tuple[Sequence[str], Sequence[str]]]:
    """Return the files and protocols of the analysis, or of both sides of a comparison."""
    if not diff:
        return [(files, paths)]
    if len(files) == 2 and len(paths) < 2:
        return [([file], paths) for file in files]
    if len(files) == 1 and len(paths) == 2 and files[0] != "-" and not _served(files[0]):
        return [(files, [path]) for path in paths]
    raise click.UsageError("--diff takes two FILEs, or one file and two --path")


def _page(sides: Sequence[tuple[Sequence[str], Sequence[str]]], results: Sequence[Analysis]) -> str:
    """Return the report, of one or of a comparison."""
    from vscsi.analysis.report import render, render_diff

    if len(results) == 2:
        return render_diff(_compared(sides, results))
    return render(results[0])


def _compared(
    sides: Sequence[tuple[Sequence[str], Sequence[str]]], results: Sequence[Analysis]
) -> Diff:
    names = [" ".join([*files, *paths]) for files, paths in sides]
    return compare(names[0], results[0], names[1], results[1])


def _show(
    sides: Sequence[tuple[Sequence[str], Sequence[str]]],
    results: Sequence[Analysis],
    as_json: bool,
    written: bool,
) -> None:
    console = Console(width=None if sys.stdout.isatty() else _PIPED_COLUMNS)
    compared = _compared(sides, results) if len(results) == 2 else None
    if as_json:
        print_json((compared or results[0]).to_json())
    elif compared is not None and not written:
        print_diff(console, compared)
    elif not written:
        print_analysis(console, results[0])


def _analysis(
    files: Sequence[str],
    paths: Sequence[str],
    form: str | None,
    seconds: float | None,
    options: Options,
) -> Analysis:
    with _Bar() as bar:
        sources = _sources(files, paths, form, seconds, bar)
        with_bar = Options(options.buckets, options.engine, options.directory, bar.update)
        try:
            analysis = run(sources, with_bar)
        except OSError as error:
            where = str(options.directory or "the temporary directory")
            reason = error.strerror or str(error)
            raise SetupError("write", where, reason, "name another one by --temp") from error
        finally:
            sources.close()
    if not analysis.total.count and not analysis.events:
        _refuse(analysis, paths, form)
    return analysis


def _refuse(analysis: Analysis, paths: Sequence[str], form: str | None) -> None:
    """Say why there is nothing at all, if that was asked for: SetupError."""
    for file in analysis.files:
        words = trouble_words(file)
        if form is not None and words:
            raise SetupError(
                "cannot read",
                file.name,
                printable(words.rstrip(".")),
                f"--format {form} may be wrong",
            )
    there = sorted({each.protocol for each in analysis.channels} - set(paths))
    if paths and there:
        names = ", ".join(printable(file.name) for file in analysis.files)
        raise SetupError(
            "read", names, f"nothing crossed by {', '.join(paths)}", f"there is {', '.join(there)}"
        )


def _sources(
    files: Sequence[str],
    paths: Sequence[str],
    form: str | None,
    seconds: float | None,
    bar: "_Bar",
) -> Generator[Named, None, None]:
    for file in files:
        if _served(file):
            with _live(file, seconds) as source:
                yield file, _of(source, paths)
            continue
        opened = _opened(file, form)
        with opened as source:
            bar.position = opened.progress
            yield file, _of(source, paths)


def _opened(file: str, form: str | None) -> Opened:
    try:
        return Opened(file, form)
    except SetupError as error:
        if error.reason != EMPTY:
            raise
        # A format's name does not help there.
        raise SetupError(error.tried, error.path, EMPTY, "name another file") from None


def _of(source: Source, paths: Sequence[str]) -> Source:
    if not paths:
        return source
    return OfProtocols(source, paths)


def _served(file: str) -> bool:
    if ":" in file:
        captured_path(file)  # which says so if it is a path that has no rings
    return file.partition(":")[0] in ("srp", "vscsiif", "blkif") or Path(file).is_dir()


@contextmanager
def _live(file: str, seconds: float | None) -> Iterator[Source]:
    """Capture at a server while the source is read; a signal ends it, as does the time."""
    directory, only = captured_path(file)
    live = LiveCapture(directory, Choice(only))
    timer = None if seconds is None else threading.Timer(seconds, live.stop)
    try:
        with stopped_by_signals(live.stop):
            if timer is None:
                click.echo(f"vscsi: capturing {file}; Ctrl-C ends it", err=True)
            else:
                timer.start()
            yield ours.read(live.stream())
    finally:
        if timer is not None:
            timer.cancel()
            timer.join()
        live.close()


def _say_troubles(analysis: Analysis) -> bool:
    """Say in one line for each file what could not be read; return whether all could."""
    for file in analysis.files:
        say_troubles(file.name, file)
    return analysis.whole


class _Bar:
    """Progress on a terminal's standard error; of a pipe the number of commands alone."""

    def __init__(self) -> None:
        self.position: Callable[[], tuple[int, int]] = lambda: (0, 0)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[commands]:,} commands"),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
            disable=not sys.stderr.isatty(),
        )
        self._task = self._progress.add_task("reading", total=None, commands=0)
        self._commands = 0

    def update(self, stage: str, commands: int) -> None:
        """Show how far a stage is."""
        done, whole = self.position() if stage == "reading" else (0, 0)
        if stage == "ordering" and self._commands:
            done, whole = commands, self._commands
        if stage == "reading":
            self._commands = commands
        self._progress.update(
            self._task,
            description=stage,
            completed=done,
            total=whole or None,
            commands=self._commands,
        )

    def __enter__(self) -> "_Bar":
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()
