# SPDX-License-Identifier: MIT
"""`vscsi ls`: the logical units behind a path."""

import click

from vscsi.cli.options import json_option, path_argument
from vscsi.cli.output import print_json, print_table, size_text
from vscsi.cli.unit import Unit, look_at_all


@click.command(short_help="list a path's logical units")
@path_argument
@json_option
def ls(path: str, as_json: bool) -> None:
    """List the logical units behind PATH: what REPORT LUNS names, asked one by one.

    Flags: ro (write protected), removable, thin (unmapped blocks are deallocated), fua, wce (a
    write cache: what is not flushed can be lost), not-ready.

    The device is vendor, product and revision of its INQUIRY data.

    blkif has no LUNs but a ring for each disk; blkif:DIR shows them all, blkif:DIR?disk=1 one.

    \b
    vscsi ls srp:run
    vscsi ls --json 'blkif:run?disk=1'
    """
    units = list(look_at_all(path))
    if as_json:
        print_json([_as_json(unit) for unit in units])
        return
    heads = ("LUN", "type", "device", "serial", "size", "block", "flags")
    print_table(heads, [_row(unit) for unit in units], right="LUN size block")


def _row(unit: Unit) -> list[str]:
    block = str(unit.capacity.block_length) if unit.capacity else "-"
    size = size_text(unit.size_bytes) if unit.capacity else "-"
    name = f"{unit.vendor} {unit.product} {unit.revision}"
    words = [str(unit.number), unit.type_name, name, unit.serial or "-", size, block]
    return [*words, " ".join(unit.flags()) or "-"]


def _as_json(unit: Unit) -> dict[str, object]:
    return {
        "lun": unit.number,
        "type": unit.type_name,
        "vendor": unit.vendor,
        "product": unit.product,
        "revision": unit.revision,
        "serial": unit.serial,
        "size_bytes": unit.size_bytes,
        "block_bytes": unit.capacity.block_length if unit.capacity else 0,
        "flags": unit.flags(),
    }
