# SPDX-License-Identifier: MIT
"""Units of LIO as `vscsi serve` and `vscsi bench` use them."""

import os
import re
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import click

from tgt_glue import units
from tgt_glue.backing import Backing, file_backing, ramdisk_backing
from tgt_glue.configfs import Storage, Unit, attributes
from tgt_glue.kernel import check_root
from tgt_glue.lio_unit import LioUnit, open_sg
from tgt_glue.names import HOST
from tgt_glue.nodes import SYSFS, Hctl, block_node, device_type, rescan
from tgt_glue.unit_port import UnitPort
from vscsi.cli.options import Size
from vscsi.cli.served import Served
from vscsi.target.base import Nexus
from vscsi.target.disk import Disk
from vscsi.target.router import TaskRouter
from vscsi.target.stores.file import FileStore
from vscsi.transport.call import CallInitiator
from vscsi.transport.connect import connect as connect_ring
from vscsi.transport.hba import Hba
from vscsi.wire.errors import SetupError
from vscsi.wire.opcodes import DeviceType

PATHS = ("lio", "sg")
"""Kinds of paths to units of the kernel without a ring: lio:NAME and sg:/dev/sgN."""
_NODE_TIMEOUT_S = 10
"""How long the kernel's disk driver may take to look at a unit."""


class NewUnit(click.ParamType[tuple[str, Backing]]):
    """A unit to be made: its name, and what it stands on."""

    name = "file:PATH|ramdisk:SIZE"

    def convert(
        self,
        value: str | tuple[str, Backing],
        param: click.Parameter | None,
        context: click.Context | None,
    ) -> tuple[str, Backing]:
        """Return name and backing; SetupError for a file that cannot be one."""
        if isinstance(value, tuple):
            return value
        kind, _, rest = value.partition(":")
        if kind == "file" and rest:
            return Path(rest).name, file_backing(rest)
        if kind != "ramdisk":
            self.fail(f"{value!r} is neither file:PATH nor ramdisk:SIZE", param, context)
        return f"ramdisk-{rest}", ramdisk_backing(Size().convert(rest, param, context))


def make(files: ExitStack, name: str, backing: Backing) -> None:
    """Make a unit that is removed at the end; SetupError, also where there is one of that name."""
    check_root()
    if any(unit.name == name for unit in units.units()):
        raise SetupError(
            "make unit",
            name,
            "there is one of that name",
            f"`--lio {name}` serves it, `vscsi lio remove {name}` removes it",
        )
    units.create(name, backing, {})
    files.callback(_remove, name)


def _remove(name: str) -> None:
    try:
        units.remove(name)
    except SetupError as error:
        click.echo(f"vscsi serve: unit {name} stays: {error}", err=True)


def open_unit(name: str, *, direct: bool = False) -> Served:
    """Return a unit of LIO with the disk beside it; SetupError.

    direct: let the kernel work on an initiator's memory, as `SgNode` has it.
    """
    found, storage = _find(name)
    title = f"lio:{name}"
    disk, refresh, reason = None, None, ""
    try:
        disk, refresh = _disk(title, found, storage)
    except SetupError as error:
        reason = str(error)
    unit = LioUnit(UnitPort(name), open_device=partial(open_sg, direct=direct))
    served = Served(
        title,
        unit,
        disk,
        storage.serial,
        kind=" on ".join(filter(None, (storage.plugin, storage.device))),
        size_bytes=storage.size_bytes or None,
        without_disk=reason,
        refresh=refresh,
    )
    if disk is not None:
        served.files.callback(disk.store.close)
    served.files.callback(unit.close)
    return served


def _find(name: str) -> tuple[Unit, Storage]:
    check_root()
    found = units.find(name)
    if found.storage is None or not found.whole:
        raise SetupError("serve unit", name, "it is half made", f"`vscsi lio remove {name}`")
    return found, found.storage


def _disk(name: str, unit: Unit, storage: Storage) -> tuple[Disk, Callable[[], None] | None]:
    """Return a disk on a unit's own blocks, and what has them counted again if that can be.

    They are its file, or the block device that the host has. Writes are as durable as LIO's.
    Raises SetupError, as where there is neither.
    """
    if storage.plugin == "fileio":
        store, refresh = _file(storage), None
    else:
        hctl, node = _node(unit)
        store = FileStore(node, direct=True)
        refresh = partial(_refresh, hctl, store)
    values = attributes(storage)
    try:
        disk = Disk(
            store,
            block_size=int(values.get("block_size", 512)),
            identity=name,
            write_cache=values.get("emulate_write_cache") != "0",
        )
    except SetupError:
        store.close()
        raise
    return disk, refresh


def _refresh(hctl: Hctl, store: FileStore) -> None:
    """Have the kernel's disk driver, which LIO tells nothing, ask for the size, and then ask it."""
    rescan(hctl)
    store.refresh()


def _file(storage: Storage) -> FileStore:
    """Open a unit's file. LIO's I/O and ours meet in the page cache."""
    store = FileStore(storage.device, shared=True)
    store.size_bytes = min(storage.size_bytes, store.size_bytes)  # what LIO uses of it
    return store


def _node(unit: Unit) -> tuple[Hctl, Path]:
    """Return the host's block device of a unit."""
    host = unit.attachment(HOST)
    if host is None:
        raise SetupError(
            "find the block device of unit",
            unit.name,
            "this machine is not attached to it",
            f"`vscsi lio attach {unit.name} {HOST}`",
        )
    if device_type(host.hctl) != DeviceType.DISK:
        raise SetupError("use as a disk", unit.name, "it is none", "use srp or vscsiif")
    loaded = (SYSFS / "module/sd_mod").exists()
    return host.hctl, block_node(host.hctl, timeout_s=_NODE_TIMEOUT_S if loaded else 0)


class _Node:
    """A `lio_unit.Port`: an sg node that is there, the same for every nexus."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def attach(self, _nexus: Nexus) -> Path:
        """Return the node."""
        return self.path

    def detach(self, _nexus: Nexus) -> None:
        """Do nothing: the node stays."""

    def may_register(self, _nexus: Nexus) -> bool:
        """Allow it: all nexuses are one initiator, whoever else uses the node."""
        return True


class LioPath(CallInitiator):
    """A unit of the kernel's without a ring: commands go to it as those from a ring do."""

    def __init__(self, url: str) -> None:
        """url: lio:NAME or sg:/dev/sgN. Raises SetupError."""
        kind, _, name = url.partition(":")
        port: UnitPort | _Node
        if kind == "lio":
            _find(name)
            port = UnitPort(name)
        else:
            port = _Node(Path(name))
            open_sg(port.path).close()  # says why it cannot be
        self._unit = LioUnit(port)
        self._router = TaskRouter()
        self._router.add(0, self._unit)
        super().__init__(self._router, Nexus(f"process-{os.getpid()}", url))

    def close(self) -> None:
        """End the nexus and let go of the unit."""
        super().close()
        self._router.close()
        self._unit.close()


def is_lio_path(path: str) -> bool:
    """Whether a path leads to a unit of the kernel without a ring."""
    return re.match(f"({'|'.join(PATHS)}):.", path) is not None


def connect(url: str) -> Hba:
    """Connect to any path, those of the kernel's units too; raises as `transport.connect`."""
    return Hba(LioPath(url)) if is_lio_path(url) else connect_ring(url)
