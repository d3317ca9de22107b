# SPDX-License-Identifier: MIT
"""What is configured now: LIO's configfs tree, read without touching anything.

rtslib writes the tree (see `steps`), but is no reader for us: looking a target up gives it a
nexus if it has none, and one half-made object of anybody's fails the whole listing.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tgt_glue import names
from tgt_glue.nodes import Hctl
from vscsi.wire.errors import SetupError

CONFIGFS = Path("/sys/kernel/config/target")
PLUGINS = {
    "fileio": "fileio",
    "iblock": "block",
    "rd_mcp": "ramdisk",
    "pscsi": "pscsi",
    "user": "user",
}
"""What configfs calls a backstore plugin, and what rtslib and targetcli call it."""
_ALL_OF_A_PAGE = 3600
"""Bytes of an entry; with more, it may have been cut at a whole line within 4096."""


@dataclass(frozen=True, slots=True)
class Storage:
    """A storage object: what a unit stands on."""

    path: Path
    plugin: str
    device: str
    """File or device node; empty for a ramdisk; of a user-backed one the path it is behind."""
    size_bytes: int
    """0 where the device tells its size itself."""
    serial: str
    enabled: bool
    buffered: bool
    """A file that is written through the page cache: durable only once flushed."""

    @property
    def complete(self) -> bool:
        """Whether everything that makes it ours is done."""
        return self.enabled and (self.plugin == "pscsi" or bool(self.serial))

    @property
    def title(self) -> str:
        """What targetcli calls it."""
        return f"{self.plugin}/{self.path.name}"


@dataclass(frozen=True, slots=True)
class Attachment:
    """An initiator's way to a unit: a loopback target with one nexus and LUN 0."""

    initiator: str
    target: str
    nexus: str
    hctl: Hctl

    @property
    def exact_nexus(self) -> bool:
        """Whether the initiator has the name that we gave it (`targetctl restore` makes one up)."""
        return self.nexus == names.nexus_wwn(self.target)


@dataclass(frozen=True, slots=True)
class Unit:
    """What vscsi made under a name."""

    name: str
    """Of a leftover whose unit is not known: its place in configfs, such as loopback/naa.X."""
    storage: Storage | None
    attachments: tuple[Attachment, ...] = ()
    shells: tuple[str, ...] = ()
    """Targets without a LUN (loopback/naa.X) and backstores without a storage object (core/P_N)."""
    users: tuple[Path, ...] = ()
    """LUNs that others made of our storage object, or in our targets."""

    @property
    def whole(self) -> bool:
        """Whether nothing of it is half made."""
        return self.storage is not None and self.storage.complete and not self.shells

    def attachment(self, initiator: str) -> Attachment | None:
        """Return the way of an initiator to it."""
        return next((each for each in self.attachments if each.initiator == initiator), None)


@dataclass(frozen=True, slots=True)
class State:
    """All that is configured."""

    units: Mapping[str, Unit]
    others: tuple[Storage, ...]
    """Storage objects that vscsi did not make."""

    @property
    def storages(self) -> tuple[Storage, ...]:
        """All storage objects."""
        ours = tuple(unit.storage for unit in self.units.values() if unit.storage is not None)
        return ours + self.others


@dataclass(frozen=True, slots=True)
class _Lun:
    """A link from a target port group to a storage object."""

    directory: Path
    alias: str
    storage: Path


@dataclass(frozen=True, slots=True)
class _Target:
    """A loopback target as it is."""

    wwn: str
    group: Path
    luns: tuple[_Lun, ...]

    @property
    def place(self) -> str:
        return f"loopback/{self.wwn}"

    @property
    def nexus(self) -> str:
        return _text(self.group / "nexus") or ""

    def attachment(self, name: str, storage: Path) -> Attachment | None:
        """Return what it is to a unit: ours, if its name, its LUN and the LUN's link agree."""
        for lun in self.luns:
            named = names.target_wwn(name, lun.alias) == self.wwn
            if named and lun.storage == storage and lun.directory == self.group / "lun" / "lun_0":
                hctl = Hctl.parse(f"{_text(self.group / 'address')}:0")
                return Attachment(lun.alias, self.wwn, self.nexus, hctl) if hctl else None
        return None


def read_state(root: Path = CONFIGFS, *, asked: Iterable[str] = ()) -> State:
    """Read what is configured; nothing, if LIO is not there.

    asked: names whose leftovers are found even if their storage object is gone. Raises SetupError.
    """
    try:
        return _read_state(root, asked)
    except PermissionError as error:
        raise SetupError(
            "read", str(error.filename), error.strerror or str(error), "run it as root"
        ) from error


def attributes(storage: Storage) -> dict[str, str]:
    """Return a storage object's attributes, as they are now, by name."""
    found = sorted((storage.path / "attrib").glob("*"))
    return {path.name: value for path in found if (value := _text(path)) is not None}


def registered(storage: Storage) -> frozenset[str] | None:
    """Return the names of the initiators that are registered for persistent reservations.

    None: not all of them are known, as the kernel shows no more than a page of them. Those that
    are registered with a passed-through device are not LIO's, and not among them.
    """
    text = _text(storage.path / "pr/res_pr_registered_i_pts")
    if text is None or len(text) > _ALL_OF_A_PAGE:
        return None
    return frozenset(re.findall(r" Node: ([^\s,]+)", text))


def device_of(path: str) -> str:
    """Return a device's or file's own path, to compare by."""
    return str(Path(path).resolve())


def _read_state(root: Path, asked: Iterable[str]) -> State:
    ours: dict[str, Storage] = {}
    others = []
    for storage in _storages(root):
        name = names.unit_name(storage.path.name)
        if name is not None and _is_ours(name, storage):
            ours[name] = storage
        else:
            others.append(storage)
    luns = list(_luns(root))
    targets = list(_loopback_targets(root, luns))
    units = {
        name: _unit(root, name, ours.get(name), targets, luns) for name in sorted({*ours, *asked})
    }
    # Without its storage object, a target's nexus tells: nobody else would choose that.
    shells = {
        target.place
        for target in targets
        if not target.luns and target.nexus == names.nexus_wwn(target.wwn)
    }
    shells |= {f"core/{path.name}" for path in _empty_backstores(root)}
    shells -= {place for unit in units.values() for place in unit.shells}
    units |= {place: Unit(place, None, shells=(place,)) for place in sorted(shells)}
    found = {name: unit for name, unit in units.items() if unit.storage or unit.shells}
    return State(found, tuple(others))


def _unit(
    root: Path, name: str, storage: Storage | None, targets: list[_Target], luns: list[_Lun]
) -> Unit:
    own = storage.path.resolve() if storage else None
    ways = {
        target.wwn: way
        for target in targets
        if own is not None and (way := target.attachment(name, own)) is not None
    }
    prefix = names.target_prefix(name)
    shells = [each.place for each in targets if each.wwn.startswith(prefix) and not each.luns]
    shells += [
        f"core/{path.name}"
        for path in _empty_backstores(root)
        if path.name.endswith(f"_{names.hba_index(name)}")
    ]
    users = {lun.directory for lun in luns if lun.storage == own}
    users |= {lun.directory for target in targets if target.wwn in ways for lun in target.luns}
    users -= {target.group / "lun" / "lun_0" for target in targets if target.wwn in ways}
    attachments = sorted(ways.values(), key=lambda way: way.initiator)
    return Unit(name, storage, tuple(attachments), tuple(shells), tuple(sorted(users)))


def _is_ours(name: str, storage: Storage) -> bool:
    """The kernel asks a passed-through device for its serial number; others have the one we set,
    or none yet.
    """
    return storage.plugin == "pscsi" or storage.serial in ("", names.serial(name))


def _storages(root: Path) -> Iterator[Storage]:
    for path in sorted(root.glob("core/*_*/*/")):
        kind = path.parent.name.rpartition("_")[0]
        info = " ".join((_text(path / "info") or "").split())
        yield Storage(
            path=path,
            plugin=PLUGINS.get(kind, kind),
            device=_text(path / "udev_path") or "",
            size_bytes=_size_bytes(info),
            serial=(_text(path / "wwn/vpd_unit_serial") or "").partition(":")[2].strip(),
            enabled=_text(path / "enable") == "1",
            buffered="Mode: Buffered" in info,
        )


def _empty_backstores(root: Path) -> Iterator[Path]:
    """Yield backstores in our range of numbers that hold no storage object."""
    for path in sorted(root.glob("core/*_*")):
        number = path.name.rpartition("_")[2]
        ours = number.isdecimal() and int(number) >= names.HBA_BASE
        if ours and not any(path.glob("*/")):
            yield path


def _size_bytes(info: str) -> int:
    if match := re.search(r" Size: (\d+) (?:Mode|MaxDataAreaMB): ", info):
        return int(match[1])
    if match := re.search(r"PAGES/PAGE_SIZE: (\d+)\*(\d+) ", info):
        return int(match[1]) * int(match[2])
    return 0


def _luns(root: Path) -> Iterator[_Lun]:
    """Yield the LUNs of all targets of all fabrics."""
    for link in sorted(root.glob("*/*/tpgt_*/lun/lun_*/*")):
        if link.is_symlink():
            yield _Lun(link.parent, link.name, link.resolve())


def _loopback_targets(root: Path, luns: list[_Lun]) -> Iterator[_Target]:
    for path in sorted((root / "loopback").glob("naa.*")):
        own = tuple(lun for lun in luns if lun.directory.is_relative_to(path))
        yield _Target(path.name, path / "tpgt_1", own)


def _text(path: Path) -> str | None:
    """Return an entry's text, None if it has none or is leaving."""
    try:
        return path.read_text().strip()
    except PermissionError:
        raise
    except OSError:
        return None
