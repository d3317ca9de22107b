# SPDX-License-Identifier: MIT
"""`vscsi analyze`: what a capture says, from files or live."""

import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType, TracebackType

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
from vscsi.cli.output import print_json, printable
from vscsi.wire.errors import SetupError

_PROTOCOLS = ("srp", "vscsiif", "blkif", "iscsi", "scsi", "block")
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

    The exit status is 1 if a file could not be read as a whole; what could be is shown.
    """
    chosen = Options(parse(buckets), engine, temp)
    sides = _sides(files, paths, diff)
    if diff and csv:
        raise click.UsageError("--csv has no words for --diff")
    with ExitStack() as stack:
        reports = {each: stack.enter_context(_writing(each)) for each in (html, csv) if each}
        results = [_analysis(each, of, form, seconds, chosen) for each, of in sides]
        if html:
            reports[html](_page(sides, results).encode())
        if csv:
            reports[csv](vscsistats.histograms(results[0]).encode())
    whole = all(_say_troubles(each) for each in results)
    _show(sides, results, as_json, bool(html or csv))
    if not whole:
        context.exit(1)


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
            return run(sources, with_bar)
        except OSError as error:
            where = str(options.directory or "the temporary directory")
            reason = error.strerror or str(error)
            raise SetupError("write", where, reason, "name another one by --temp") from error
        finally:
            sources.close()


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
        opened = Opened(file, form)
        with opened as source:
            bar.position = opened.progress
            yield file, _of(source, paths)


def _of(source: Source, paths: Sequence[str]) -> Source:
    if not paths:
        return source
    return OfProtocols(source, paths)


def _served(file: str) -> bool:
    return file.partition(":")[0] in ("srp", "vscsiif", "blkif") or Path(file).is_dir()


@contextmanager
def _live(file: str, seconds: float | None) -> Iterator[Source]:
    """Capture at a server while the source is read; a signal ends it, as does the time."""
    directory, only = captured_path(file)
    live = LiveCapture(directory, Choice(only))
    timer = None if seconds is None else threading.Timer(seconds, live.stop)
    try:
        with _stopped_by_signals(live):
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


@contextmanager
def _stopped_by_signals(live: LiveCapture) -> Iterator[None]:
    """Stop on the first SIGINT or SIGTERM, give up on the second."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        for number in before:
            signal.signal(number, give_up)
        live.stop()

    def give_up(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _writing(file: str) -> Iterator[Callable[[bytes], object]]:
    """Open a file to write before the work begins; SetupError if that cannot be."""
    try:
        stream = click.open_file(file, "wb")
    except OSError as error:
        raise SetupError(
            "cannot write", file, error.strerror or str(error), "name another file"
        ) from error
    with stream:
        yield stream.write


def _say_troubles(analysis: Analysis) -> bool:
    """Say in one line for each file what could not be read; return whether all could."""
    for file in analysis.files:
        words = []
        if file.skipped:
            words.append(f"{file.skipped} records not understood (the first {file.first_skipped})")
        if file.broken:
            words.append(file.broken)
        if file.dropped:
            words.append(f"{file.dropped} messages were dropped")
        words += file.notes
        if words:
            click.echo(f"vscsi: {printable(f'{file.name}: ' + '; '.join(words))}", err=True)
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
