# SPDX-License-Identifier: MIT
"""`vscsi capture convert`: a capture of any known format as a file of another."""

import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from vscsi.capture.sinks import FORMATS
from vscsi.cli.capture_options import chosen, filter_options
from vscsi.wire.errors import SetupError

if TYPE_CHECKING:
    from vscsi.capture.choice import Filter
    from vscsi.capture.commands import Source, Troubles
    from vscsi.capture.filtered import Filtered
    from vscsi.capture.sinks import Written

_MODULES = {name: f"vscsi.capture.sinks.{module}" for name, module in FORMATS.items()}
# Histograms are an analysis, which is beyond what a capture can do by itself.
_MODULES["vscsistats"] = "vscsi.analysis.vscsistats"


@click.command(short_help="write a capture in another form")
@click.argument("file")
@click.option("--to", type=click.Choice(tuple(_MODULES)), required=True, help="What to write.")
@click.option("-o", "--output", metavar="OUT", required=True, help="File to write, - for stdout.")
@click.option("--format", "form", metavar="F", help="What FILE is, if its content is not to tell.")
@click.option(
    "--disk", "disks", metavar="NAME", multiple=True, help="Convert this disk alone (repeatable)."
)
@filter_options
@click.pass_context
def convert(
    context: click.Context,
    file: str,
    to: str,
    output: str,
    form: str | None,
    disks: Sequence[str],
    luns: tuple[int, ...],
    opcodes: tuple[str, ...],
    lba: str | None,
    statuses: tuple[str, ...],
) -> None:
    """Write the commands of a capture in another form.

    \b
    iscsi        pcapng with iSCSI over TCP, for any Wireshark or tshark
    vscsi-trace  the .vscsi format, version 2
    iolog        fio's I/O log, version 3
    vscsistats   histograms as CSV, as vscsiStats prints them
    parquet      a table with a row a command
    fio-job      a fio job file with the mix, sizes, places and rates of each disk

    FILE is a capture of any known format, also gzipped, or - for standard input. What could not be
    read is said; the exit status is 1 then. A filter's conditions are those of `vscsi capture`.

    A .vscsi file has one disk: the one with the most commands, of standard input the first one.
    """
    from vscsi.capture.sources import Opened  # what reads captures: not before there is a file

    wanted = chosen(luns, opcodes, lba, statuses)
    sink = importlib.import_module(_MODULES[to])
    if Path(output).is_file() and Path(file).is_file() and Path(output).samefile(file):
        raise SetupError("write", output, "it is what is read", "name another file")
    chosen_disk: dict[str, Any] = {}
    if to == "vscsi-trace" and Path(file).is_file():  # which can be read twice
        with Opened(file, form) as source:
            chosen_disk["disk"] = sink.busiest(_part(source, disks, wanted))
    try:
        with Opened(file, form) as source, _open(output) as stream:
            written: Written = sink.write(_part(source, disks, wanted), stream, **chosen_disk)
    except BrokenPipeError:
        raise  # whoever read it has enough
    except OSError as error:
        click.echo(f"vscsi: cannot write {output}: {error.strerror or error}", err=True)
        context.exit(1)
    names = [disk.name for disk in source.disks]
    if disks and not set(disks) & set(names):
        raise SetupError("convert", file, "it has no such disk", f"it has {', '.join(names)}")
    _say(file, source.troubles, written)
    if source.troubles.broken or source.troubles.skipped:
        context.exit(1)


def _part(source: "Source", disks: Sequence[str], wanted: "Filter") -> "Source | Filtered":
    """Return what of a source is to be converted."""
    from vscsi.capture import filtered

    return filtered.Filtered(source, wanted, disks) if wanted or disks else source


@contextmanager
def _open(output: str) -> Iterator[IO[bytes]]:
    """Open a file to write; SetupError if that can't be."""
    try:
        opened = click.open_file(output, "wb")
    except OSError as error:
        reason = error.strerror or str(error)
        raise SetupError("cannot write", output, reason, "name another file") from error
    with opened as stream:
        yield stream


def _say(file: str, troubles: "Troubles", written: "Written") -> None:
    """Say what became of the commands, and what could not be read, a line each."""
    lines = [f"{written.commands} commands written"]
    if written.left_out:
        lines[0] += f", {written.left_out} left out: {written.why}"
    if written.note:
        lines.append(written.note)
    if troubles.dropped:
        lines.append(f"{file}: {troubles.dropped} messages were dropped")
    lines += [f"{file}: {note}" for note in troubles.notes]
    if troubles.skipped:
        first = troubles.first_skipped
        lines.append(f"{file}: {troubles.skipped} records not understood (the first {first})")
    if troubles.broken:
        lines.append(f"{file}: {troubles.broken}")
    for line in lines:
        click.echo(f"vscsi: {line}", err=True)
