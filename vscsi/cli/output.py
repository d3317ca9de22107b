# SPDX-License-Identifier: MIT
"""How results look: tables for people, plain columns for pipes, JSON for programs."""

import json
import sys
from collections.abc import Iterator, Sequence
from typing import Protocol

import click

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_DUMP_BYTES = 16
_STYLES = {"ok": "green", "missing": "red"}
_RULED = "    \n" * 2 + " ── \n" + "    \n" * 5
"""A line below the heads and nothing else, not even room for columns' borders."""


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


def say_troubles(file: str, troubles: Troubles) -> bool:
    """Say on standard error, in one line, what could not be read; return whether all could."""
    words = []
    if troubles.skipped:
        words.append(
            f"{troubles.skipped} records not understood (the first {troubles.first_skipped})"
        )
    if troubles.broken:
        words.append(troubles.broken)
    if troubles.dropped:
        words.append(f"{troubles.dropped} messages were dropped")
    words += troubles.notes
    if words:
        click.echo(f"vscsi: {printable(f'{file}: ' + '; '.join(words))}", err=True)
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
