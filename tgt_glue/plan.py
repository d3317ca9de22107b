# SPDX-License-Identifier: MIT
"""From what is wanted and what is there to the steps between, and their execution as a whole."""

import errno
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tgt_glue import names
from tgt_glue.backing import Backing
from tgt_glue.configfs import State, Storage, Unit
from tgt_glue.kernel import KernelLog
from tgt_glue.steps import (
    Abandon,
    Attach,
    Detach,
    DropShell,
    MakeFile,
    MakeStorage,
    RemoveStorage,
    SetAttributes,
    Step,
    rtslib,
)
from vscsi.wire.errors import SetupError

_WRITE_CACHE = "emulate_write_cache"
_NEXT_STEPS = {
    errno.EPERM: "run it as root",
    errno.EACCES: "run it as root",
    errno.EBUSY: "find who uses it: `fuser -v`, `targetcli ls`",
    errno.EEXIST: "see `targetcli ls` for the other owner",
    errno.ENODEV: "`vscsi doctor` tells what is missing",
    errno.ENOMEM: "free memory",
    errno.ENOSPC: "free space",
}


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a unit shall be; what is not said stays as it is."""

    name: str
    backing: Backing | None = None
    """None: the unit is there already."""
    attributes: Mapping[str, str] = field(default_factory=dict)
    initiators: tuple[str, ...] = ()
    """Who shall be attached; others may be, too."""
    exact_nexus: bool = False
    """Whether attached initiators whose name `targetctl restore` made up get their own again."""


def to_have(wanted: Wanted, state: State, now: Mapping[str, str]) -> list[Step]:
    """Return the steps that make a unit as wanted, none if it is so already.

    now: the attributes that its storage object has. Raises SetupError where the name stands for
    something else.
    """
    unit = state.units.get(wanted.name, Unit(wanted.name, None))
    storage, backing = unit.storage, wanted.backing
    if storage is not None and storage.complete:
        plugin = storage.plugin
        steps: list[Step] = [DropShell(place) for place in unit.shells]
        steps += _to_change(wanted, storage, now)
    elif backing is not None:
        plugin = backing.plugin
        steps = [*to_remove(unit, force=False), *_to_make(wanted, backing, state)]
        unit = Unit(wanted.name, None)
    elif storage is not None:
        raise SetupError(
            "use unit", wanted.name, "it is half made", f"`vscsi lio remove {wanted.name}`"
        )
    else:
        raise SetupError("find unit", wanted.name, "there is none", "`vscsi lio list`")
    for initiator in wanted.initiators:
        steps += _to_attach(unit, plugin, initiator, exact_nexus=wanted.exact_nexus)
    return steps


def to_detach(unit: Unit, initiator: str, *, force: bool) -> list[Step]:
    """Return the steps that leave an initiator without its way to a unit; raises SetupError."""
    attachment = unit.attachment(initiator)
    if attachment is None or unit.storage is None:
        return []
    for user in unit.users:
        if attachment.target in user.parts:
            raise _used(f"detach {initiator} from", unit, user)
    return [Detach(unit.name, unit.storage.plugin, attachment, force)]


def to_remove(unit: Unit, *, force: bool, let_go: Step | None = None) -> list[Step]:
    """Return the steps that leave nothing of a unit but its file or device; raises SetupError.

    let_go: ends the serving of a user-backed unit, when nobody is attached any more; without it,
    nobody serves.
    """
    for user in unit.users:
        raise _used("remove", unit, user)
    steps: list[Step] = []
    if unit.storage is not None:
        plugin = unit.storage.plugin
        if plugin == "user" and let_go is None and unit.storage.enabled:  # else it has no ring yet
            steps.append(Abandon(unit.name, unit.storage, unit.attachments))
        steps += [Detach(unit.name, plugin, each, force) for each in unit.attachments]
    if let_go is not None:
        steps.append(let_go)
    steps += [DropShell(place) for place in unit.shells]
    if unit.storage is not None:
        steps.append(RemoveStorage(unit.storage))
    return steps


def apply(steps: Sequence[Step]) -> None:
    """Do all steps, or none: when one fails, those before it are undone.

    Raises SetupError, which says what was refused, why, and what could not be undone.
    """
    refusals = (OSError, LookupError, rtslib().RTSLibError)  # LookupError: pyudev's
    done: list[Step] = []
    try:
        for step in steps:
            with KernelLog() as log:
                try:
                    step.do()
                except refusals as error:
                    raise _refused(step, error, log.complaints()) from error
            done.append(step)
    except BaseException as error:  # Ctrl-C, too, leaves nothing half made
        left = []
        for step in reversed(done):
            try:
                step.undo()
            except (SetupError, *refusals) as failure:
                left.append(f"{step.describe()}: {failure}")
        if not left:
            raise
        raise SetupError(
            "undo", "; ".join(left), f"after: {error}", "`vscsi lio list` shows what is left"
        ) from error


def _to_make(wanted: Wanted, backing: Backing, state: State) -> list[Step]:
    name = names.storage_name(wanted.name)
    for other in state.others:
        if other.path.name == name:
            raise SetupError(
                "make unit",
                wanted.name,
                f"name in use: {other.title} was not made by vscsi",
                "take another name",
            )
    steps: list[Step] = []
    if backing.new_file:
        steps.append(MakeFile(backing.device, backing.size_bytes))
    # Set later, the attribute would leave the file open for durable writes only.
    write_back = backing.plugin == "fileio" and wanted.attributes.get(_WRITE_CACHE) == "1"
    steps.append(MakeStorage(wanted.name, backing, write_back))
    if wanted.attributes:
        steps.append(SetAttributes(wanted.name, backing.plugin, dict(wanted.attributes)))
    return steps


def _to_change(wanted: Wanted, storage: Storage, now: Mapping[str, str]) -> list[Step]:
    differences = wanted.backing.differences(storage) if wanted.backing else []
    cached = wanted.attributes.get(_WRITE_CACHE)
    if storage.plugin == "fileio" and cached == "0" and storage.buffered:
        differences.append("its file is written through the page cache")
    if differences:
        raise SetupError(
            "make unit",
            wanted.name,
            f"name in use: {'; '.join(differences)}",
            f"take another name, or `vscsi lio remove {wanted.name}` first",
        )
    changed = {key: value for key, value in wanted.attributes.items() if now.get(key) != value}
    return [SetAttributes(wanted.name, storage.plugin, changed)] if changed else []


def _to_attach(unit: Unit, plugin: str, initiator: str, *, exact_nexus: bool) -> list[Step]:
    attachment = unit.attachment(initiator)
    step = Attach(unit.name, plugin, initiator)
    if attachment is None:
        return [step]
    if attachment.exact_nexus or not exact_nexus:
        return []
    return [*to_detach(unit, initiator, force=False), step]


def _refused(step: Step, error: Exception, complaints: Sequence[str]) -> SetupError:
    """Return configfs' refusal with the kernel's words."""
    number = next((each.errno for each in _chain(error) if isinstance(each, OSError)), None)
    reason = "; kernel: ".join([str(error), *complaints])
    return SetupError(
        "configfs refused to", step.describe(), reason, _NEXT_STEPS.get(number or 0, "see `dmesg`")
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and what it came from: rtslib's own keep only the text of the kernel's."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _used(tried: str, unit: Unit, user: Path) -> SetupError:
    return SetupError(
        tried, unit.name, f"in use: {user} was not made by vscsi", "remove that with `targetcli`"
    )
