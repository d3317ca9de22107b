# SPDX-License-Identifier: MIT
"""Options of a capture: what it keeps of what crosses, and how its files follow each other."""

import re
from collections.abc import Callable
from typing import Any, TypeVar

import click

from vscsi.capture.choice import Filter, Payload, parse_range
from vscsi.capture.rotate import Limits
from vscsi.cli.options import Size

Function = TypeVar("Function", bound=Callable[..., Any])
_PERIODS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_NS_PER_S = 10**9


class _Period(click.ParamType[int]):
    """A time in seconds, or with s, m, h or d behind it; in nanoseconds."""

    name = "TIME"

    def convert(
        self, value: str | int, param: click.Parameter | None, context: click.Context | None
    ) -> int:
        """Return the nanoseconds."""
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d{1,9})([smhd]?)", value)
        if match is None or not int(match[1]):
            self.fail(f"{value!r} is no time such as 60s, 5m or 1h", param, context)
        return int(match[1]) * _PERIODS[match[2]] * _NS_PER_S


class _PayloadType(click.ParamType[Payload]):
    """How much of the data is kept."""

    name = "N|hash"

    def convert(
        self, value: str | Payload, param: click.Parameter | None, context: click.Context | None
    ) -> Payload:
        """Return what the word means."""
        if isinstance(value, Payload):
            return value
        try:
            return Payload.parse(value)
        except ValueError as error:
            self.fail(str(error), param, context)


payload_option = click.option(
    "--payload",
    type=_PayloadType(),
    default="none",
    show_default=True,
    help="Keep the first N bytes of each command's data, at most 65536, or an XXH64 hash of all.",
)
_FILTER_OPTIONS = [
    click.option(
        "--lun",
        "luns",
        metavar="N",
        type=int,
        multiple=True,
        help="This logical unit (repeatable).",
    ),
    click.option(
        "--opcode",
        "opcodes",
        metavar="OPCODE",
        multiple=True,
        help="read, write, flush, unmap, a command's name or a number as in 0x28 (repeatable).",
    ),
    click.option("--lba", metavar="A-B", help="Commands that address a block from A to B."),
    click.option(
        "--status",
        "statuses",
        metavar="STATUS",
        multiple=True,
        help="check-condition, busy, ..., a number, or error: all that is not good, also what was"
        " not answered (repeatable).",
    ),
]
_ROTATION_OPTIONS = [
    click.option(
        "--rotate-size", metavar="SIZE", type=Size(), help="Begin another file after so many bytes."
    ),
    click.option(
        "--rotate-time",
        metavar="TIME",
        type=_Period(),
        help="The same after 60s, 5m, 1h of messages.",
    ),
    click.option(
        "--keep", metavar="N", type=click.IntRange(1), help="Keep the last N files; default: all."
    ),
]


def filter_options(function: Function) -> Function:
    """Give a command the options whose values `chosen` takes."""
    for option in reversed(_FILTER_OPTIONS):
        function = option(function)
    return function


def chosen(
    luns: tuple[int, ...], opcodes: tuple[str, ...], lba: str | None, statuses: tuple[str, ...]
) -> Filter:
    """Return the filter that options ask for; UsageError if there is none such."""
    try:
        return Filter(luns, opcodes, parse_range(lba) if lba is not None else None, statuses)
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def rotation_options(function: Function) -> Function:
    """Give a command the options whose values `limits` takes."""
    for option in reversed(_ROTATION_OPTIONS):
        function = option(function)
    return function


def limits(rotate_size: int | None, rotate_time: int | None, keep: int | None) -> Limits:
    """Return when files are full; UsageError for files of 0 bytes, and for --keep alone."""
    if rotate_size == 0:
        raise click.UsageError("--rotate-size 0: a file holds something")
    asked = Limits(rotate_size, rotate_time, keep)
    if keep is not None and not asked:
        raise click.UsageError("--keep needs --rotate-size or --rotate-time")
    return asked
