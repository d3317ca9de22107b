# SPDX-License-Identifier: MIT
"""How results look: tables for people, plain columns for pipes, JSON for programs."""

import errno
import io
import json
import os
import secrets
import stat
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Protocol

import click

from vscsi.wire.errors import SetupError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_DUMP_BYTES = 16
_STYLES = {"ok": "green", "missing": "red"}
_RULED = "    \n" * 2 + " ── \n" + "    \n" * 5
"""A line below the heads and nothing else, not even room for columns' borders."""
_STANDARD_OUTPUT = "-", "/dev/stdout"
_DESCRIPTORS = "/dev/fd/", "/dev/std", "/proc/"
"""They may lead to a file that somebody else has opened: another in its place is of no use."""


class OutputError(OSError):
    """A result cannot be written; `filename` says where, `strerror` why."""


class _Output(io.FileIO):
    """A file whose errors say what it is. That nobody reads it any more stays BrokenPipeError."""

    def __init__(self, name: str, descriptor: int, *, ours: bool = True) -> None:
        """ours: the descriptor is closed with it."""
        super().__init__(descriptor, "wb", closefd=ours)
        self._name = name

    def write(self, data: "ReadableBuffer", /) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputError(error.errno, error.strerror, self._name) from error


def name_standard_output() -> None:
    """Have errors of `sys.stdout` be OutputErrors from now on."""
    before = sys.stdout
    before.flush()
    raw = _Output("standard output", before.fileno(), ours=False)
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(raw),
        before.encoding,
        before.errors,
        line_buffering=before.isatty(),
    )


@contextmanager
def written(file: str, inputs: Sequence[str] = (), *, own: str = "") -> Iterator[IO[bytes]]:
    """Open a file for a result, which is there when the body has ended, whole, or not at all.

    Until then what was there before stays, whatever ends the process. What is no regular file is
    written as the body goes, - is standard output. inputs: what is read meanwhile, - for standard
    input; own: the option that names the file. Raises SetupError before the body if the file is an
    input or cannot be opened, OutputError if it cannot be written.
    """
    if file in _STANDARD_OUTPUT:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    if any(_same(file, each) for each in inputs):
        raise SetupError("write", file, "it is what is read", "name another file")
    other = f"name another file{f' for {own}' if own else ''}"
    with ExitStack() as stack:
        try:
            output, name, target = _opened(file, stack)
        except OSError as error:
            reason = error.strerror or str(error)
            raise SetupError("cannot write", file, reason, other) from error
        stream = io.BufferedWriter(output)
        yield stream
        stream.flush()
        if name is not None:
            try:
                _put(output, name, target)
            except OSError as error:
                raise OutputError(error.errno, error.strerror, file) from error


def is_standard_output(file: str | None) -> bool:
    """Return whether `written` takes it for standard output."""
    return file in _STANDARD_OUTPUT


def _same(file: str, read: str) -> bool:
    one, other = Path(file), Path("/dev/stdin" if read == "-" else read)
    return one.is_file() and other.is_file() and one.samefile(other)


def _opened(file: str, stack: ExitStack) -> tuple[_Output, Path | None, Path]:
    """Return what to write to, its name until it is whole, and the name for then.

    There is no name until then if it is written directly.
    """
    path = Path(file)
    if file.startswith(_DESCRIPTORS) or (path.exists() and not path.is_file()):
        descriptor = os.open(path, os.O_WRONLY | os.O_NOCTTY)
        return stack.enter_context(_Output(file, descriptor)), None, path
    target = path.resolve()
    mode = None
    if target.exists():
        if not os.access(target, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), file)
        mode = stat.S_IMODE(target.stat().st_mode)
    name = target.with_name(f".{target.name[:200]}.{secrets.token_hex(4)}")
    unnamed = _unnamed(target.parent)
    if unnamed is not None:
        descriptor = unnamed
    else:
        descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        stack.callback(name.unlink, missing_ok=True)
    output = stack.enter_context(_Output(file, descriptor))
    if mode is not None:
        os.fchmod(descriptor, mode)
    return output, name, target


def _unnamed(directory: Path) -> int | None:
    """Open a file that is gone with its process, however that ends; None where there is no such."""
    try:
        return os.open(directory, os.O_WRONLY | os.O_TMPFILE, 0o666)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EISDIR):
            return None
        raise


def _put(output: _Output, name: Path, target: Path) -> None:
    """Give a file that is written its name, at once: a link alone replaces nothing."""
    os.fsync(output.fileno())
    if not name.exists():
        # With a directory's descriptor, which an absolute path has no use for, the link in /proc
        # is followed.
        directory = os.open("/", os.O_PATH)
        try:
            os.link(f"/proc/self/fd/{output.fileno()}", name, src_dir_fd=directory)
        finally:
            os.close(directory)
    os.rename(name, target)


def size_text(size_bytes: int) -> str:
    """Return a size for people: "512 B", "64 MiB", "1.5 GiB"."""
    value, unit = float(size_bytes), 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value /= 1024
        unit += 1
    return f"{value:.1f}".removesuffix(".0") + f" {_UNITS[unit]}"


def printable(text: str) -> str:
    """Return a text that a peer wrote without what would steer a terminal."""
    return "".join(each if each.isprintable() else "\ufffd" for each in text)


class Troubles(Protocol):
    """What could not be read of a file; see `vscsi.capture.commands.Troubles`."""

    @property
    def broken(self) -> str:
        """Where reading had to end, and why."""

    @property
    def skipped(self) -> int:
        """Records that were not understood."""

    @property
    def first_skipped(self) -> str:
        """Why the first of them was not."""

    @property
    def dropped(self) -> int:
        """Messages that the file itself says are missing."""

    @property
    def notes(self) -> Sequence[str]:
        """What was repaired."""


def trouble_words(troubles: Troubles) -> str:
    """Return what could not be read, and what was repaired, in a line; empty without any."""
    words = []
    if troubles.skipped:
        words.append(
            f"{troubles.skipped} records not understood (the first {troubles.first_skipped})"
        )
    if troubles.broken:
        words.append(troubles.broken)
    if troubles.dropped:
        words.append(f"{troubles.dropped} messages were dropped")
    return "; ".join([*words, *troubles.notes])


def say_troubles(file: str, troubles: Troubles) -> bool:
    """Say on standard error, in one line, what could not be read; return whether all could."""
    if words := trouble_words(troubles):
        click.echo(f"vscsi: {printable(f'{file}: {words}')}", err=True)
    return not (troubles.broken or troubles.skipped)


def print_json(value: object) -> None:
    """Print one JSON document on one line, for programs."""
    click.echo(json.dumps(value))
    sys.stdout.flush()


def print_table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, right: str = "") -> None:
    """Print a table: ruled on a terminal, where the last column gives way; else plain columns.

    right: the heads, space-separated, of columns of numbers.
    """
    numbers = [head in right.split() for head in heads]
    rows = [[printable(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        _print_ruled(heads, rows, numbers)
        return
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    for row in (heads, *rows):
        cells = (
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(row, widths, numbers, strict=True)
        )
        click.echo("  ".join(cells).rstrip())


def _print_ruled(
    heads: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[bool]
) -> None:
    # Rich is not loaded for a verb that prints no table to a terminal: it is slow to load.
    from rich.box import Box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    ruled = Box(_RULED, ascii=False)
    table = Table(box=ruled, show_edge=False, pad_edge=False, padding=(0, 2, 0, 0))
    for head, number in zip(heads, numbers, strict=True):
        table.add_column(
            head,
            justify="right" if number else "left",
            no_wrap=head != heads[-1],
            overflow="fold",
        )
    for row in rows:
        table.add_row(*(Text(cell, _STYLES.get(cell, "")) for cell in row))
    Console().print(table)


def print_fields(title: str, fields: Sequence[tuple[str, str]]) -> None:
    """Print a title and named values below it, lined up."""
    click.secho(title, bold=True)
    width = max((len(name) for name, _ in fields), default=0)
    for name, value in fields:
        click.echo(f"  {name:{width}}  {printable(value)}".rstrip())


def hex_dump(data: bytes) -> Iterator[str]:
    """Yield lines of 16 bytes: offset, hexadecimal, ASCII."""
    for at in range(0, len(data), _DUMP_BYTES):
        part = data[at : at + _DUMP_BYTES]
        text = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in part)
        yield f"{at:04x}  {part[:8].hex(' '):23}  {part[8:].hex(' '):23}  |{text}|"
