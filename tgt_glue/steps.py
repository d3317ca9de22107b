# SPDX-License-Identifier: MIT
"""The changes that configuring a unit consists of: each is done or not, and can be undone.

All writing to configfs is rtslib's, but for a new target's nexus: rtslib would make its name up.
"""

import importlib
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from tgt_glue import names
from tgt_glue.backing import Backing, check_free, in_use
from tgt_glue.configfs import CONFIGFS, Attachment, Storage, read_state
from tgt_glue.nodes import all_nodes
from vscsi.wire.errors import SetupError

_MANY = 5


class Step(Protocol):
    """One change."""

    def describe(self) -> str:
        """Return what it does, as an order: "make ...", "attach ..."."""

    def do(self) -> None:
        """Make the change, or none; raises SetupError, OSError, or rtslib's RTSLibError."""

    def undo(self) -> None:
        """Take the change back, as far as it can be; raises what `do` does."""


@dataclass
class MakeFile:
    """Make a file of a size, with its space reserved; one that is there must be empty."""

    path: str
    size_bytes: int
    _made: bool = field(default=False, init=False, compare=False)

    def describe(self) -> str:
        """Return what it does."""
        return f"make file {self.path} of {self.size_bytes} bytes"

    def do(self) -> None:
        """Make the file."""
        self._made = not os.path.exists(self.path)
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, self.size_bytes)
            except BaseException:  # also Ctrl-C while the space is reserved
                self.undo()
                raise
            finally:
                os.close(descriptor)
        except OSError as error:
            raise SetupError(
                f"reserve {self.size_bytes} bytes for",
                self.path,
                error.strerror or str(error),
                "name another --file, or a smaller --size",
            ) from error

    def undo(self) -> None:
        """Remove the file, or make it empty again."""
        if self._made:
            os.unlink(self.path)
        else:
            os.truncate(self.path, 0)


@dataclass
class MakeStorage:
    """Make a unit's storage object."""

    name: str
    backing: Backing
    write_back: bool

    def describe(self) -> str:
        """Return what it does."""
        cached = ", through the page cache" if self.write_back else ""
        return f"make storage object {names.storage_name(self.name)}: {self.backing}{cached}"

    def do(self) -> None:
        """Make it; rtslib itself takes back what it has made if the kernel refuses a part."""
        backing, storage, serial = (
            self.backing,
            names.storage_name(self.name),
            names.serial(self.name),
        )
        check_free(backing, read_state().storages)
        lib = rtslib()
        index = _free_index(self.name)
        if backing.plugin == "fileio":
            lib.FileIOStorageObject(
                storage,
                backing.device,
                backing.size_bytes,
                serial,
                write_back=self.write_back,
                index=index,
            )
        elif backing.plugin == "block":
            lib.BlockStorageObject(storage, backing.device, serial, index=index)
        elif backing.plugin == "ramdisk":
            lib.RDMCPStorageObject(storage, backing.size_bytes, serial, index=index)
        elif backing.plugin == "user":
            self._make_user(lib, storage, serial, index)
        else:
            lib.PSCSIStorageObject(storage, backing.device, index)

    def _make_user(self, lib: Any, storage: str, serial: str, index: int) -> None:
        """-1: the kernel asks no daemon (tcmu-runner) whether it knows such a device."""
        options = f"hw_block_size={self.backing.block_bytes},nl_reply_supported=-1"
        made = lib.UserBackedStorageObject(
            storage, f"vscsi/{self.name}", self.backing.size_bytes, serial, None, options, index
        )
        try:
            Path(made.path, "udev_path").write_text(self.backing.device)
        except BaseException:
            made.delete()
            raise

    def undo(self) -> None:
        """Remove it."""
        storage_object(self.backing.plugin, self.name).delete()


@dataclass
class SetAttributes:
    """Set attributes of a unit's storage object."""

    name: str
    plugin: str
    values: dict[str, str]
    _old: dict[str, str] = field(default_factory=dict, init=False, compare=False)

    def describe(self) -> str:
        """Return what it does."""
        values = " ".join(f"{key}={value}" for key, value in self.values.items())
        if len(self.values) > _MANY:
            values = f"{len(self.values)} attributes"
        return f"set {values} of {self.name}"

    def do(self) -> None:
        """Set those that differ."""
        target = storage_object(self.plugin, self.name)
        try:
            for key, value in self.values.items():
                known = target.list_attributes()
                if key not in known:
                    raise SetupError(
                        "set attribute",
                        key,
                        "there is none of that name",
                        f"there are {', '.join(known)}",
                    )
                old = target.get_attribute(key)
                if old != value:
                    target.set_attribute(key, value)
                    self._old[key] = old
        except BaseException:  # also Ctrl-C between two
            self.undo()
            raise

    def undo(self) -> None:
        """Set back what was set."""
        target = storage_object(self.plugin, self.name)
        for key, value in reversed(self._old.items()):
            target.set_attribute(key, value)
        self._old.clear()


@dataclass
class Attach:
    """Make a loopback target with one initiator's nexus, and the unit its LUN 0."""

    name: str
    plugin: str
    initiator: str

    def describe(self) -> str:
        """Return what it does."""
        return f"attach {self.initiator} to {self.name}"

    def do(self) -> None:
        """Make target, nexus and LUN."""
        lib = rtslib()
        wwn = names.target_wwn(self.name, self.initiator)
        target = lib.Target(lib.FabricModule("loopback"), wwn, "create")
        try:
            group = Path(target.path, "tpgt_1")
            group.mkdir()
            group.joinpath("nexus").write_text(names.nexus_wwn(wwn))
            lib.LUN(
                lib.TPG(target, 1),
                0,
                storage_object(self.plugin, self.name),
                alias=self.initiator,
            )
        except BaseException:  # also Ctrl-C in the middle
            target.delete()
            raise

    def undo(self) -> None:
        """Remove them."""
        _delete_target(names.target_wwn(self.name, self.initiator))


@dataclass
class Detach:
    """Remove an initiator's target; the kernel waits until its commands have ended."""

    name: str
    plugin: str
    attachment: Attachment
    force: bool

    def describe(self) -> str:
        """Return what it does."""
        return f"detach {self.attachment.initiator} from {self.name}"

    def do(self) -> None:
        """Remove it, unless the host uses its disk."""
        for node in all_nodes(self.attachment.hctl):
            if not self.force and in_use(node):
                raise SetupError(
                    f"detach {self.attachment.initiator} from",
                    self.name,
                    f"device busy: {node} is in use",
                    "unmount it; --force takes it away nevertheless",
                )
        _delete_target(self.attachment.target)

    def undo(self) -> None:
        """Make it again."""
        Attach(self.name, self.plugin, self.attachment.initiator).do()


@dataclass
class Abandon:
    """Have a user-backed unit that nobody serves answer at once, with errors: what waits on its
    ring would keep the kernel from removing it until it times out.
    """

    name: str
    storage: Storage
    attachments: Sequence[Attachment]

    def describe(self) -> str:
        """Return what it does."""
        return f"fail the commands of {self.name}, which nobody serves"

    def do(self) -> None:
        """Let no command through, and end what waits; raises SetupError if a process serves it."""
        # Loaded here: with the formats of the ring it takes a third of what `lio` takes to load.
        from tgt_glue.tcmu import is_served, reset_ring

        if is_served(self.storage.path):
            raise SetupError("remove", self.name, "`vscsi hba` serves it", "end that (Ctrl-C)")
        # Not the disk's own state: while it is removed, its driver flushes it even if offline.
        for each in self.attachments:
            set_transport(each, "offline")
        reset_ring(self.storage.path)

    def undo(self) -> None:
        """Let commands through again; what waited stays failed."""
        for each in self.attachments:
            set_transport(each, "online")


@dataclass
class DropShell:
    """Remove a target without a LUN or a backstore without a storage object, which a killed
    command leaves, or a restore with its file missing.
    """

    place: str
    """In configfs."""

    def describe(self) -> str:
        """Return what it does."""
        return f"remove half-made {self.place}"

    def do(self) -> None:
        """Remove it."""
        fabric, _, name = self.place.partition("/")
        if fabric == "core":
            (CONFIGFS / self.place).rmdir()
        else:
            _delete_target(name)

    def undo(self) -> None:
        """Nothing is lost with it."""


@dataclass
class RemoveStorage:
    """Remove a storage object: comes last, or before it is made anew. Files and devices stay."""

    storage: Storage

    def describe(self) -> str:
        """Return what it does."""
        half = "" if self.storage.complete else "half-made "
        return f"remove {half}storage object {self.storage.path.name}"

    def do(self) -> None:
        """Remove it."""
        lib = rtslib()
        lib.tcm.StorageObject.so_from_path(self.storage.path).delete()

    def undo(self) -> None:
        """Nothing is lost with a half-made one."""


def rtslib() -> Any:
    """Return rtslib, imported when it is needed: that takes libudev. Raises SetupError.

    Its memory of storage objects is cleared: other programs make and remove some.
    """
    try:
        lib = importlib.import_module("rtslib_fb")
    except ImportError as error:
        raise SetupError(
            "import", "rtslib_fb", str(error), "`pip install 'vscsi[lio]'`; `apt install libudev1`"
        ) from error
    lib.tcm.bs_cache.clear()
    # Else it would move the kernel's directory of persistent reservations to its own choice.
    with suppress(OSError):
        dbroot = Path(lib.RTSRoot.configfs_dir, "dbroot").read_text().strip()
        lib.RTSRoot._preferred_dbroot = dbroot
    return lib


def storage_object(plugin: str, name: str) -> Any:
    """Return rtslib's object for a unit's storage object; raises RTSLibError if there is none."""
    return rtslib().tcm.so_mapping[plugin](names.storage_name(name))


def _free_index(name: str) -> int:
    """Return the first number from a unit's own on that no backstore has."""
    taken = {path.name.rpartition("_")[2] for path in CONFIGFS.glob("core/*_*")}
    index = names.hba_index(name)
    while str(index) in taken:
        index += 1
    return index


def set_transport(attachment: Attachment, status: str) -> None:
    """Have a loopback target take commands ("online") or fail them at once ("offline").

    Raises OSError.
    """
    group = CONFIGFS / "loopback" / attachment.target / "tpgt_1"
    (group / "transport_status").write_text(status)


def _delete_target(wwn: str) -> None:
    lib = rtslib()
    lib.Target(lib.FabricModule("loopback"), wwn, "lookup").delete()
