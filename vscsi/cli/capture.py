# SPDX-License-Identifier: MIT
"""`vscsi capture`: record what crosses the rings of a served directory, and show it."""

import contextlib
import json
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import click

from vscsi.capture.choice import Choice, Payload
from vscsi.capture.exchange import Exchange, Exchanges
from vscsi.capture.live import LiveCapture, Output
from vscsi.capture.packed import opened
from vscsi.capture.reader import CaptureReader, NoCapture
from vscsi.capture.rotate import Limits, Rotation
from vscsi.capture.show import line, values
from vscsi.capture.wireshark import SCRIPT
from vscsi.cli.capture_options import (
    chosen,
    filter_options,
    limits,
    payload_option,
    rotation_options,
)
from vscsi.cli.convert import convert
from vscsi.cli.options import captured_path
from vscsi.cli.signals import stopped_by_signals
from vscsi.wire.errors import SetupError, WireError


class _RecordsByDefault(click.Group):
    """A group that records where its first argument is none of its commands."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in context.help_option_names:
            args = ["record", *args]
        return super().parse_args(context, args)


@click.group(cls=_RecordsByDefault)
def capture() -> None:
    """Record what crosses the rings of a served directory, or show a recording.

    `vscsi capture PATH -w FILE` is short for `vscsi capture record PATH -w FILE`.
    """


capture.add_command(convert)


@capture.command()
@click.argument("path")
@click.option("-w", "--write", "file", required=True, help="pcapng file to write, - for stdout.")
@payload_option
@filter_options
@rotation_options
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def record(
    context: click.Context,
    path: str,
    file: str,
    payload: Payload,
    luns: tuple[int, ...],
    opcodes: tuple[str, ...],
    lba: str | None,
    statuses: tuple[str, ...],
    rotate_size: int | None,
    rotate_time: int | None,
    keep: int | None,
    command: tuple[str, ...],
) -> None:
    """Record while COMMAND runs; without one until interrupted. It also ends with the server.

    PATH is DIR for all rings that are served there, srp:DIR, vscsiif:DIR or blkif:DIR for those
    of one protocol. The exit status is COMMAND's. Of a filter's conditions a command must meet one
    of each kind; what is no command is recorded in any case. Files that follow each other are
    FILE-00001.pcapng and so on; each can be read alone.

    \b
    vscsi capture run -w all.pcapng
    vscsi capture run -w reads.pcapng --lun 0 --opcode read --lba 0-2047 --payload 512
    vscsi capture srp:run -w bad.pcapng --status error -- fio job.fio
    vscsi capture run -w day.pcapng --rotate-time 1h --rotate-size 1G --keep 24
    """
    directory, only = captured_path(path)
    choice = Choice(only, payload, chosen(luns, opcodes, lba, statuses))
    rotation = limits(rotate_size, rotate_time, keep)
    if rotation and file == "-":
        raise click.UsageError("files that follow each other need a name")
    live = LiveCapture(directory, choice)
    status = 0
    try:
        with _output(file, rotation) as begin, stopped_by_signals(live.stop):
            with _running(command, live) as process:
                output = begin()
                until = f"until {command[0]} ends" if command else "Ctrl-C ends it"
                click.echo(f"vscsi: recording {path}; {until}", err=True)
                live.copy(output)
            status = process.wait() if process is not None else 0
    except BrokenPipeError:
        raise  # whoever read it has enough
    except OSError as error:
        click.echo(f"vscsi: cannot write {file}: {error.strerror or error}", err=True)
        context.exit(1)
    finally:
        live.close()
    filtered = f", {live.left_out} left out" if choice.filter else ""
    click.echo(
        f"vscsi: {live.recorded} messages recorded, {live.dropped} dropped{filtered}", err=True
    )
    if status:
        context.exit(status if status > 0 else 128 - status)


@capture.command()
@click.argument("file")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def show(file: str, as_json: bool) -> None:
    """Show a recording, one line a command: when it was sent, and what came of it.

    A line is printed when its answer is found; requests without one come at the end, or when it is
    clear that none will come. Times are UTC. FILE is one of `vscsi capture`, gzipped or not, or -
    for standard input.
    """
    exchanges = Exchanges()
    broken = ""
    with _open(file, "rb") as stream:
        try:
            reader = CaptureReader(opened(stream))
            for captured in reader:
                for exchange in exchanges.add(captured):
                    _print(exchange, as_json)
        except NoCapture as error:
            raise SetupError(
                "cannot show", file, str(error), "`vscsi analyze` reads captures of other kinds"
            ) from error
        except WireError as error:
            broken = str(error)
    for exchange in exchanges.rest():
        _print(exchange, as_json)
    if reader.skipped:
        skipped = f"{reader.skipped} packets not understood (the first {reader.first_skipped})"
        broken = f"{skipped}; {broken}" if broken else skipped
    if broken:
        raise WireError(f"{file}: {broken}")
    if reader.dropped:
        click.echo(f"vscsi: {file}: {reader.dropped} messages were dropped", err=True)


@capture.command()
def dissector() -> None:
    """Print the path of the Wireshark dissector.

    It is a script in Lua, for the option below. Or copy it to Wireshark's folder for personal Lua
    plug-ins, ~/.local/lib/wireshark/plugins.

    \b
    tshark -X lua_script:$(vscsi capture dissector) -r FILE
    """
    click.echo(str(SCRIPT))


def _print(exchange: Exchange, as_json: bool) -> None:
    click.echo(json.dumps(values(exchange)) if as_json else line(exchange))


@contextmanager
def _open(file: str, mode: str) -> Iterator[IO[bytes]]:
    """Open a file, or with "-" the standard stream; SetupError if that can't be."""
    try:
        opened = click.open_file(file, mode)
    except OSError as error:
        raise SetupError(
            "cannot open", file, error.strerror or str(error), "name another file"
        ) from error
    with opened as stream:
        yield stream


@contextmanager
def _output(file: str, rotation: Limits) -> Iterator[Callable[[], Output]]:
    """Open what a capture is written to; yield what empties it, when all else could begin.

    What was in a file before stays until then, and a file that was not there goes if it does not
    come to that.
    """
    with contextlib.ExitStack() as stack:
        if rotation:
            files = Rotation(Path(file), rotation)
            yield lambda: stack.enter_context(contextlib.closing(files))
            return
        made = file != "-" and not Path(file).exists()
        stream = stack.enter_context(_open(file, "ab"))
        begun = False

        def begin() -> Output:
            nonlocal begun
            begun = True
            if file != "-" and Path(file).is_file():
                stream.truncate(0)
            return stream

        try:
            yield begin
        finally:
            if made and not begun:
                Path(file).unlink(missing_ok=True)


@contextmanager
def _running(
    command: Sequence[str], live: LiveCapture
) -> Iterator["subprocess.Popen[bytes] | None"]:
    """Run a command, whose end stops the capture; SetupError if it cannot be started."""
    if not command:
        yield None
        return
    try:
        process = subprocess.Popen(command)
    except OSError as error:
        raise SetupError(
            "run", command[0], error.strerror or str(error), "check the command after --"
        ) from error

    def wait() -> None:
        process.wait()
        live.stop()

    waiter = threading.Thread(target=wait, name="capture-command")
    waiter.start()
    try:
        yield process
    finally:
        waiter.join()
