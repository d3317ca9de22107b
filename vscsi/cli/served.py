# SPDX-License-Identifier: MIT
"""What `vscsi serve` serves: logical units, the disks beside them for blkif; and saying so."""

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from tgt_glue.lio_unit import LioUnit
from vscsi import __version__
from vscsi.cli.output import print_json, size_text
from vscsi.target.disk import Disk
from vscsi.target.logical_unit import LogicalUnit
from vscsi.target.stores.file import FileStore
from vscsi.target.stores.open import open_store
from vscsi.wire.errors import SetupError

APPLICATION = f"vscsi {__version__}"


@dataclass(frozen=True, slots=True)
class Served:
    """One logical unit, as the user named it; whoever has it closes it."""

    name: str
    unit: LogicalUnit
    disk: Disk | None
    """What blkif serves: the unit itself, or a disk on the same blocks."""
    serial: str
    kind: str = ""
    """Of a unit of LIO: what it stands on."""
    size_bytes: int | None = None
    """Of a unit without a disk, as far as known."""
    without_disk: str = ""
    """Why there is no disk."""
    refresh: Callable[[], None] | None = None
    """Has the disk's blocks counted again; OSError, SetupError. None: their number stays."""
    files: ExitStack = field(default_factory=ExitStack)
    """What it has open."""

    def close(self) -> None:
        """Put everything on stable storage (what fails is said), and let go of it."""
        try:
            if self.disk is not None:
                self.disk.store.flush()
        except OSError as error:
            reason = error.strerror or str(error)
            click.echo(f"vscsi serve: cannot flush {self.name}: {reason}", err=True)
        self.files.close()


def open_image(image: str, *, block_size: int, readonly: bool, direct: bool) -> Served:
    """Return an image as a disk of the embedded target; SetupError."""
    store = open_store(image, readonly=readonly, direct=direct)
    identity = os.path.realpath(store.path) if isinstance(store, FileStore) else None
    try:
        disk = Disk(store, block_size=block_size, identity=identity)
    except SetupError:
        store.close()
        raise
    refresh = store.refresh if isinstance(store, FileStore) else None
    served = Served(image, disk, disk, disk.serial_number, refresh=refresh)
    served.files.callback(store.close)
    return served


def close(units: Mapping[int, Served]) -> None:
    """Close all that there are."""
    for each in units.values():
        each.close()


def read_sizes(units: Mapping[int, Served]) -> None:
    """Take over the size of each unit that has changed, as far as it is whole blocks."""
    for number, each in units.items():
        if isinstance(each.unit, LioUnit):
            each.unit.rescan()
        disk = each.disk
        if disk is None or each.refresh is None:
            continue
        before = disk.blocks
        try:
            each.refresh()
        except (OSError, SetupError) as error:
            click.echo(f"vscsi serve: {error}", err=True)
            continue
        if disk.store.size_bytes // disk.block_size != before:
            disk.resize()
            old, new = (size_text(blocks * disk.block_size) for blocks in (before, disk.blocks))
            click.echo(f"vscsi serve: LUN {number} ({each.name}): {old} -> {new}", err=True)


def announce(
    directory: Path,
    units: Mapping[int, Served],
    capture: Path | None,
    metrics: str | None,
    *,
    as_json: bool,
) -> None:
    """Say what is served, and how to look at it. metrics: the URL that is scraped."""
    if as_json:
        print_json(
            {
                "ready": True,
                "directory": str(directory),
                "paths": [f"{kind}:{directory}" for kind in ("srp", "vscsiif", "blkif")],
                "units": [_as_json(directory, number, each) for number, each in units.items()],
                "capture": str(capture) if capture else None,
                "metrics": metrics,
                "pid": os.getpid(),
            }
        )
        return
    width = max(len(each.name) for each in units.values())
    lines = [f"{APPLICATION}, process {os.getpid()}"]
    for number, each in units.items():
        lines.append(f"  LUN {number}  {each.name:{width}}  {'  '.join(words(each))}")
        if each.disk is None:
            lines.append(f"    no vbd: {each.without_disk}")
    first_disk = next((number for number, each in units.items() if each.disk is not None), None)
    disk_path = f"blkif:{directory}" + (f"?disk={first_disk}" if first_disk else "")
    lines += [
        f"  paths  srp:{directory}  vscsiif:{directory}  blkif:{directory}",
        *([f"  capture  {capture}"] if capture else []),
        *([f"  metrics  {metrics}"] if metrics else []),
        "Look at it from another terminal:",
        f"  vscsi ls srp:{directory}",
        f"  vscsi nbd {f'srp:{directory}' if first_disk is None else disk_path} --socket nbd.sock",
        f"  XENSTORED_RUNDIR={directory} xenstore-ls",
        "Ctrl-C ends it; SIGHUP looks for other sizes, and which units of LIO there are.",
        f"ready: serving {directory}",
    ]
    click.echo("\n".join(lines))


def words(each: Served) -> list[str]:
    """Say in words what a unit is: its size and kind."""
    disk = each.disk
    kind = [each.kind] if each.kind else []
    if disk is None:
        size = f"{size_text(each.size_bytes):>9}" if each.size_bytes else f"{'-':>9}"
        return [size, *kind]
    size = f"{size_text(disk.blocks * disk.block_size):>9}"
    mode = "read-only" if disk.write_protected else "writable"
    return [size, f"{disk.block_size}-byte blocks", mode, *kind]


def _as_json(directory: Path, number: int, each: Served) -> dict[str, Any]:
    disk = each.disk
    return {
        "lun": number,
        "image": each.name,
        "size_bytes": disk.blocks * disk.block_size if disk else each.size_bytes,
        "block_bytes": disk.block_size if disk else None,
        "read_only": disk.write_protected if disk else None,
        "serial": each.serial,
        "blkif": f"blkif:{directory}?disk={number}" if disk else None,
        "no_vbd": each.without_disk or None,
    }
