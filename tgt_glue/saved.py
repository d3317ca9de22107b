# SPDX-License-Identifier: MIT
"""Units in a file, in rtslib's own format: what `targetctl` and targetcli save and restore."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tgt_glue import names
from tgt_glue.backing import (
    Backing,
    block_backing,
    file_backing,
    pscsi_backing,
    ramdisk_backing,
)
from tgt_glue.configfs import Unit
from tgt_glue.plan import Wanted
from tgt_glue.steps import rtslib
from vscsi.wire.errors import SetupError

_Json = Mapping[str, Any]


def store(path: Path, units: Iterable[Unit]) -> None:
    """Write units to a file, all or nothing; raises SetupError.

    The nexus is not in the format: `load` knows it from the initiator, whose name is.
    """
    lib = rtslib()
    fabric = lib.FabricModule("loopback")
    storages, targets = [], []
    try:
        for unit in units:
            if unit.storage is not None:
                storages.append(lib.tcm.StorageObject.so_from_path(unit.storage.path).dump())
            for each in unit.attachments:
                targets.append(lib.Target(fabric, each.target, "lookup").dump())
        document = {"storage_objects": storages, "targets": targets, "fabric_modules": []}
        _write(path, json.dumps(document, indent=2, sort_keys=True) + "\n")
    except (OSError, lib.RTSLibError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise SetupError("save to", str(path), reason, "check the path and its rights") from error


def load(path: Path) -> list[Wanted]:
    """Return the units in a file, and the initiators attached to each.

    Raises SetupError: no such file, not of the format, a unit's file or device missing.
    """
    try:
        document = json.loads(path.read_text())
        storages = [dict(each) for each in document["storage_objects"]]
        attached = list(_attached(document["targets"]))
        found = [each for each in storages if _is_ours(each)]
        return [_wanted(each, attached) for each in found]
    except OSError as error:
        reason = error.strerror or str(error)
        raise SetupError("restore from", str(path), reason, "`vscsi lio save` writes it") from error
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise SetupError(
            "restore from",
            str(path),
            f"not a saved configuration: {type(error).__name__} {error}",
            "name a file of `vscsi lio save` or `targetctl save`",
        ) from error


def _is_ours(storage: _Json) -> bool:
    name = names.unit_name(storage["name"])
    if name is None:
        return False
    return storage["plugin"] == "pscsi" or storage.get("wwn") == names.serial(name)


def _wanted(storage: _Json, attached: Sequence[tuple[str, str, str]]) -> Wanted:
    name = names.unit_name(storage["name"]) or ""
    initiators = tuple(
        initiator
        for title, initiator, wwn in attached
        if title == f"/backstores/{storage['plugin']}/{storage['name']}"
        and wwn == names.target_wwn(name, initiator)
    )
    attributes = {str(key): str(value) for key, value in storage.get("attributes", {}).items()}
    return Wanted(name, _backing(storage), attributes, initiators, exact_nexus=True)


def _attached(targets: Iterable[_Json]) -> Iterator[tuple[str, str, str]]:
    """Yield storage object, initiator and target of every LUN of the loopback fabric."""
    for target in targets:
        if target["fabric"] == "loopback":
            for group in target["tpgs"]:
                for lun in group["luns"]:
                    yield lun["storage_object"], lun["alias"], target["wwn"]


def _backing(storage: _Json) -> Backing:
    plugin = storage["plugin"]
    if plugin == "ramdisk":
        return ramdisk_backing(int(storage["size"]))
    device = str(storage["dev"])
    if plugin == "fileio":
        file_backing(device)  # which must be there: an empty new disk is not what was saved
        return file_backing(device, int(storage["size"]))
    return pscsi_backing(device) if plugin == "pscsi" else block_backing(device)


def _write(path: Path, text: str) -> None:
    """Replace a file at once, and be sure that it is on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(descriptor)
    os.replace(new, path)
