# SPDX-License-Identifier: MIT
"""`vscsi lio`: units of the kernel's own SCSI target, configured through configfs."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from tgt_glue import configfs, units
from tgt_glue.backing import (
    Backing,
    block_backing,
    file_backing,
    pscsi_backing,
    ramdisk_backing,
)
from tgt_glue.configfs import Attachment, Unit
from tgt_glue.nodes import all_nodes
from vscsi.cli.options import Size, json_option
from vscsi.cli.output import print_fields, print_json, print_table, size_text

_Command = Callable[..., None]


class Attribute(click.ParamType[tuple[str, str]]):
    """An attribute of a storage object and its number: `emulate_tpu=1`."""

    name = "NAME=NUMBER"

    def convert(
        self,
        value: str | tuple[str, str],
        param: click.Parameter | None,
        context: click.Context | None,
    ) -> tuple[str, str]:
        """Return name and number, the number as the kernel shows it."""
        if isinstance(value, tuple):
            return value
        match = re.fullmatch(r"([a-z0-9_]+)=(\d{1,10}|0x[0-9a-fA-F]{1,8})", value)
        if match is None:
            self.fail(f"{value!r} is not like emulate_tpu=1", param, context)
        return match[1], str(int(match[2], 0 if match[2].startswith("0x") else 10))


def _changing(command: _Command) -> _Command:
    """Give a command what all that change something have."""
    dry = click.option("--dry-run", is_flag=True, help="Say what would be done; do nothing.")
    return dry(json_option(command))


_name = click.argument("name")
_initiator = click.argument("initiator")
_force = click.option("--force", is_flag=True, help="Even if the host uses its disk.")
_file = click.argument(
    "file", type=click.Path(path_type=Path, dir_okay=False), default=units.SAVE_FILE
)


@click.group(short_help="make units of the kernel's own SCSI target")
def lio() -> None:
    """Make, show and remove logical units of LIO, the SCSI target in the kernel.

    A unit is a storage object of LIO (vscsi-NAME) and, for each initiator attached to it, a
    loopback target with that initiator's nexus. Every command finds out what is there and does
    the rest, or all of it is undone; a second run changes nothing. `targetcli` shows and edits
    the same objects; those that vscsi didn't make, it leaves alone.

    \b
    vscsi lio create disk0 --file disk0.img --size 64M
    vscsi lio show disk0
    vscsi lio remove disk0
    """


@lio.command()
@_name
@click.option("--file", "file", metavar="PATH", help="Stand on a file (with --size, a new one).")
@click.option("--block", "block", metavar="DEV", help="Stand on a block device.")
@click.option("--ramdisk", type=Size(), help="Stand on memory of this size; lost at a reboot.")
@click.option("--pscsi", metavar="DEV", help="Pass a SCSI device through: its node, or H:C:T:L.")
@click.option("--size", type=Size(), help="Size of a new file, or how much of a file to use.")
@click.option(
    "--attr",
    "attributes",
    type=Attribute(),
    multiple=True,
    help="Set an attribute; may be given several times. What is not named stays as it is.",
)
@_changing
def create(
    name: str,
    file: str | None,
    block: str | None,
    ramdisk: int | None,
    pscsi: str | None,
    size: int | None,
    attributes: Sequence[tuple[str, str]],
    dry_run: bool,
    as_json: bool,
) -> None:
    """Have a unit NAME, attached to the initiator "host": this machine.

    CDBs go to it through a /dev/sg node, which `show` names. A /dev/sd node comes with
    `modprobe sd_mod`. A file is written durably at once, unless its write cache is switched on.

    \b
    vscsi lio create disk0 --file disk0.img --size 64M --attr emulate_write_cache=1
    vscsi lio create fast --ramdisk 128M
    vscsi lio create tape --pscsi /dev/st0
    """
    given = [each for each in (file, block, ramdisk, pscsi) if each is not None]
    if len(given) != 1:
        raise click.UsageError("give one of --file, --block, --ramdisk, --pscsi")
    if size is not None and file is None:
        raise click.UsageError("--size goes with --file")
    backing = _backing(file, block, ramdisk, pscsi, size)
    outcome = units.create(name, backing, dict(attributes), dry_run=dry_run)
    _tell(outcome, dry_run=dry_run, as_json=as_json)


@lio.command()
@_name
@_initiator
@_changing
def attach(name: str, initiator: str, dry_run: bool, as_json: bool) -> None:
    """Have INITIATOR attached to unit NAME: a nexus of its own, under a name made from both.

    Reservations made by one initiator keep the others out.
    """
    _tell(units.attach(name, initiator, dry_run=dry_run), dry_run=dry_run, as_json=as_json)


@lio.command()
@_name
@_initiator
@_force
@_changing
def detach(name: str, initiator: str, force: bool, dry_run: bool, as_json: bool) -> None:
    """Have INITIATOR not attached to unit NAME."""
    outcome = units.detach(name, initiator, force=force, dry_run=dry_run)
    _tell(outcome, dry_run=dry_run, as_json=as_json)


@lio.command()
@_name
@_force
@_changing
def remove(name: str, force: bool, dry_run: bool, as_json: bool) -> None:
    """Have nothing left of unit NAME, whole or half made. Its file or device stays as it is."""
    outcome = units.remove(name, force=force, dry_run=dry_run)
    _tell(outcome, dry_run=dry_run, as_json=as_json)


@lio.command()
@_file
@json_option
def save(file: Path, as_json: bool) -> None:
    """Write all units to FILE, in the format of `targetctl`."""
    saved = units.save(file)
    if as_json:
        print_json({"file": str(file), "units": [unit.name for unit in saved]})
    else:
        click.echo(f"saved to {file}: {' '.join(unit.name for unit in saved) or 'no units'}")


@lio.command()
@_file
@_changing
def restore(file: Path, dry_run: bool, as_json: bool) -> None:
    """Have the units that FILE tells; all others stay as they are.

    FILE may also be `targetctl`'s own, of which only vscsi's units are taken. Initiators that
    `targetctl restore` gave random names get their own back.
    """
    _tell(units.restore(file, dry_run=dry_run), dry_run=dry_run, as_json=as_json)


@lio.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List the units, and what is left of half-made ones."""
    found = units.units()
    if as_json:
        print_json([_as_json(unit) for unit in found])
        return
    rows = [_row(unit) for unit in found]
    print_table(("name", "kind", "size", "state", "initiators", "on"), rows, right="size")


@lio.command()
@_name
@json_option
def show(name: str, as_json: bool) -> None:
    """Show unit NAME: what it stands on, who is attached and through which device nodes."""
    unit = units.find(name)
    if as_json:
        values = configfs.attributes(unit.storage) if unit.storage else {}
        print_json({**_as_json(unit), "attributes": values})
        return
    print_fields(unit.name, list(_fields(unit)))


def _backing(
    file: str | None, block: str | None, ramdisk: int | None, pscsi: str | None, size: int | None
) -> Backing:
    if file is not None:
        return file_backing(file, size)
    if block is not None:
        return block_backing(block)
    if ramdisk is not None:
        return ramdisk_backing(ramdisk)
    return pscsi_backing(pscsi or "")


def _tell(outcome: units.Outcome, *, dry_run: bool, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "changed": bool(outcome.steps) and not dry_run,
                "steps": outcome.steps,
                "units": [_as_json(unit) for unit in outcome.units],
            }
        )
        return
    for step in outcome.steps:
        click.echo(f"would {step}" if dry_run else step)
    if not outcome.steps:
        click.echo("nothing to do")
    for unit in outcome.units:
        for each in unit.attachments:
            click.echo(f"{unit.name}: {_way(each)}")


def _fields(unit: Unit) -> Sequence[tuple[str, str]]:
    found = [("state", _state(unit))]
    if unit.storage:
        changed = configfs.attributes(unit.storage)
        found += [
            ("kind", unit.storage.plugin),
            ("on", unit.storage.device or "-"),
            ("size", _size(unit)),
            ("serial", unit.storage.serial or "-"),
            ("targetcli", f"/backstores/{unit.storage.title}"),
        ]
        found += [
            (key, changed[key]) for key in ("emulate_write_cache", "emulate_tpu") if key in changed
        ]
    for each in unit.attachments:
        made_up = "" if each.exact_nexus else ", not its own name: `vscsi lio restore`"
        found += [("initiator", _way(each)), ("", f"{each.nexus} -> {each.target}{made_up}")]
    found += [("left over", wwn) for wwn in unit.shells]
    found += [("used by", str(path)) for path in unit.users]
    return found


def _way(attachment: Attachment) -> str:
    nodes = " ".join(str(node) for node in all_nodes(attachment.hctl))
    return f"{attachment.initiator} [{attachment.hctl}] {nodes or 'no device node'}"


def _row(unit: Unit) -> list[str]:
    initiators = " ".join(each.initiator for each in unit.attachments)
    kind = unit.storage.plugin if unit.storage else "-"
    device = (unit.storage.device if unit.storage else "") or "-"
    return [unit.name, kind, _size(unit), _state(unit), initiators or "-", device]


def _state(unit: Unit) -> str:
    return "whole" if unit.whole else "half-made"


def _size(unit: Unit) -> str:
    return size_text(unit.storage.size_bytes) if unit.storage and unit.storage.size_bytes else "-"


def _as_json(unit: Unit) -> dict[str, Any]:
    storage = unit.storage
    return {
        "name": unit.name,
        "whole": unit.whole,
        "kind": storage.plugin if storage else None,
        "device": storage.device or None if storage else None,
        "size_bytes": storage.size_bytes or None if storage else None,
        "serial": storage.serial if storage else None,
        "storage_object": storage.title if storage else None,
        "initiators": [
            {
                "name": each.initiator,
                "hctl": str(each.hctl),
                "nodes": [str(node) for node in all_nodes(each.hctl)],
                "target": each.target,
                "nexus": each.nexus,
            }
            for each in unit.attachments
        ],
        "left_over": list(unit.shells),
        "used_by": [str(path) for path in unit.users],
    }
