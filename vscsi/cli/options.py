# SPDX-License-Identifier: MIT
"""Arguments and options that several verbs have."""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from vscsi.wire.record import Protocol

_MAX_LUN = (1 << 24) - 1
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


class PathType(click.ParamType[str]):
    """A path's URL; `connect` checks what follows the kind."""

    name = "PATH"

    def convert(
        self, value: str, param: click.Parameter | None, context: click.Context | None
    ) -> str:
        """Return the value if it begins like a path."""
        from vscsi.transport.connect import PATHS  # all transports: only for those who name one

        kind, colon, rest = value.partition(":")
        if kind not in PATHS or not colon or not rest:
            kinds = "srp:DIR, vscsiif:DIR, blkif:DIR, call:IMAGE"
            self.fail(f"{value!r} is none of {kinds}", param, context)
        return value


class Size(click.ParamType[int]):
    """A number of bytes in fio's way: 512, 4k, 64M; k, M, G and T are powers of 1024."""

    name = "SIZE"

    def convert(
        self, value: str | int, param: click.Parameter | None, context: click.Context | None
    ) -> int:
        """Return the bytes."""
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d{1,15})([kmgt]?)", value.lower())
        if match is None:
            self.fail(f"{value!r} is no size such as 512, 4k or 64M", param, context)
        return int(match[1]) * _UNITS[match[2]]


class Cpus(click.ParamType[tuple[int, ...]]):
    """CPUs as taskset lists them, as in 0,2-3; each must be ours to use."""

    name = "LIST"

    def convert(
        self,
        value: str | tuple[int, ...],
        param: click.Parameter | None,
        context: click.Context | None,
    ) -> tuple[int, ...]:
        """Return the CPUs in the order of the list."""
        if isinstance(value, tuple):
            return value
        ours = os.sched_getaffinity(0)
        cpus: list[int] = []
        for part in value.split(","):
            match = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", part)
            if match is None:
                self.fail(f"{value!r} is no list of CPUs such as 0,2-3", param, context)
            first, last = int(match[1]), int(match[2] or match[1])
            named = range(first, last + 1)
            if not named or not ours.issuperset(named):
                self.fail(f"{part!r} is not among the CPUs that are ours to use", param, context)
            cpus += named
        return tuple(cpus)


path_argument = click.argument("path", type=PathType())
lun_option = click.option(
    "--lun",
    metavar="N",
    type=click.IntRange(0, _MAX_LUN),
    default=0,
    help="Logical unit number, over blkif the disk's (default 0).",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON on one line.")


def unit_path(path: str, lun: int) -> tuple[str, int]:
    """Return the path and the LUN over it that name a unit.

    blkif has no LUNs, but a ring for each disk, which looks like LUN 0: there N names the disk.
    """
    kind, _, rest = path.partition(":")
    if kind != "blkif" or "disk=" in rest.partition("?")[2]:
        return path, lun
    return f"{path}{'&' if '?' in rest else '?'}disk={lun}", 0


def captured_path(path: str) -> "tuple[Path, Protocol | None]":
    """Return a served directory and whose rings are meant: DIR for all, or srp:DIR and the like.

    UsageError for a path of another kind.
    """
    from vscsi.wire.record import Protocol

    kind, colon, rest = path.partition(":")
    of_kind = {protocol.name.lower(): protocol for protocol in Protocol}
    if colon and kind in of_kind and rest:
        return Path(rest), of_kind[kind]
    if colon and kind.isalpha() and not Path(path).exists():
        kinds = ", ".join(["DIR", *(f"{each}:DIR" for each in of_kind)])
        raise click.UsageError(f"{path!r} is none of {kinds}")
    return Path(path), None
