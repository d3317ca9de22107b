# SPDX-License-Identifier: MIT
"""Arguments and options that several verbs have."""

import click

from vscsi.transport.connect import PATHS

_MAX_LUN = (1 << 24) - 1


class PathType(click.ParamType[str]):
    """A path's URL; `connect` checks what follows the kind."""

    name = "PATH"

    def convert(
        self, value: str, param: click.Parameter | None, context: click.Context | None
    ) -> str:
        """Return the value if it begins like a path."""
        kind, colon, rest = value.partition(":")
        if kind not in PATHS or not colon or not rest:
            kinds = "srp:DIR, vscsiif:DIR, blkif:DIR, call:IMAGE"
            self.fail(f"{value!r} is none of {kinds}", param, context)
        return value


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
