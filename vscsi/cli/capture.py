# SPDX-License-Identifier: MIT
"""`vscsi capture`: record what crosses the rings of a served directory, and show it."""

import json
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO

import click

from vscsi.capture.exchange import Exchange, Exchanges
from vscsi.capture.live import LiveCapture
from vscsi.capture.reader import CaptureReader
from vscsi.capture.show import line, values
from vscsi.wire.errors import SetupError, WireError
from vscsi.wire.record import Protocol

_PATHS = {protocol.name.lower(): protocol for protocol in Protocol}


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


@capture.command()
@click.argument("path")
@click.option("-w", "--write", "file", required=True, help="pcapng file to write, - for stdout.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def record(context: click.Context, path: str, file: str, command: tuple[str, ...]) -> None:
    """Record while COMMAND runs; without one until interrupted. It also ends with the server.

    PATH is DIR for all rings that are served there, srp:DIR, vscsiif:DIR or blkif:DIR for those
    of one protocol. The exit status is COMMAND's.
    """
    directory, only = _parse_path(path)
    live = LiveCapture(directory, only)
    status = 0
    try:
        with _open(file, "wb") as output, _stopped_by_signals(live):
            until = "until it ends" if command else "Ctrl-C ends it"
            click.echo(f"vscsi: recording {path}; {until}", err=True)
            with _running(command, live) as process:
                live.copy(output)
            status = process.wait() if process is not None else 0
    except BrokenPipeError:
        raise  # whoever read it has enough
    except OSError as error:
        click.echo(f"vscsi: cannot write {file}: {error.strerror or error}", err=True)
        context.exit(1)
    finally:
        live.close()
    click.echo(f"vscsi: {live.recorded} messages recorded, {live.dropped} dropped", err=True)
    if status:
        context.exit(status if status > 0 else 128 - status)


@capture.command()
@click.argument("file")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def show(file: str, as_json: bool) -> None:
    """Show a recording, one line a command: when it was sent, and what came of it.

    A line is printed when its answer is found; requests without one come at the end, or when it is
    clear that none will come. Times are UTC. FILE may be - for standard input.
    """
    exchanges = Exchanges()
    broken = ""
    with _open(file, "rb") as stream:
        reader = CaptureReader(stream)
        try:
            for captured in reader:
                for exchange in exchanges.add(captured):
                    _print(exchange, as_json)
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


def _print(exchange: Exchange, as_json: bool) -> None:
    click.echo(json.dumps(values(exchange)) if as_json else line(exchange))


def _parse_path(path: str) -> tuple[Path, Protocol | None]:
    kind, colon, rest = path.partition(":")
    if colon and kind in _PATHS and rest:
        return Path(rest), _PATHS[kind]
    return Path(path), None


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
