# SPDX-License-Identifier: MIT
"""Arguments and options that several verbs have."""

import re

import click

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
