# SPDX-License-Identifier: MIT
"""Units of LIO as wholes: each call finds out what is there and does the rest, or nothing."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tgt_glue import names
from tgt_glue.backing import Backing
from tgt_glue.configfs import State, Unit, attributes, read_state
from tgt_glue.kernel import check_root, exclusive, prepare
from tgt_glue.plan import Wanted, apply, to_detach, to_have, to_remove
from tgt_glue.saved import load, store
from tgt_glue.steps import Step
from vscsi.wire.errors import SetupError

SAVE_FILE = Path("/etc/target/vscsi.json")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a call came to."""

    steps: tuple[str, ...]
    """What was done, or would be in a dry run; empty if all was as wanted."""
    units: tuple[Unit, ...]
    """Those that it was about, as they are now."""


def units() -> list[Unit]:
    """Return all units and leftovers, by name; raises SetupError."""
    return list(read_state().units.values())


def find(name: str) -> Unit:
    """Return a unit, or what is left of one; raises SetupError if there is nothing."""
    unit = look_up(name)
    if unit is None:
        raise SetupError("find unit", name, "there is none", "`vscsi lio list`")
    return unit


def look_up(name: str) -> Unit | None:
    """Return a unit, or what is left of one, or None; raises SetupError if LIO cannot be read."""
    return read_state(asked=[name]).units.get(name)


def create(
    name: str, backing: Backing, values: Mapping[str, str], *, dry_run: bool = False
) -> Outcome:
    """Have a unit with these attributes, attached to the host; raises SetupError."""
    names.check_name("unit", name)
    return _have([Wanted(name, backing, values, (names.HOST,))], dry_run)


def attach(name: str, initiator: str, *, dry_run: bool = False) -> Outcome:
    """Have an initiator attached to a unit that is there; raises SetupError."""
    names.check_name("initiator", initiator)
    return _have([Wanted(name, initiators=(initiator,))], dry_run)


def detach(name: str, initiator: str, *, force: bool = False, dry_run: bool = False) -> Outcome:
    """Have an initiator not attached to a unit; raises SetupError, unless with `force`, where the
    host uses its disk.
    """

    def plan(state: State) -> list[Step]:
        unit = state.units.get(name)
        return to_detach(unit, initiator, force=force) if unit else []

    return _carry_out([name], plan, dry_run)


def remove(name: str, *, force: bool = False, dry_run: bool = False) -> Outcome:
    """Have nothing left of a unit but its file or device; raises SetupError, see `detach`."""

    def plan(state: State) -> list[Step]:
        unit = state.units.get(name)
        return to_remove(unit, force=force) if unit else []

    return _carry_out([name], plan, dry_run)


def save(path: Path = SAVE_FILE) -> list[Unit]:
    """Write all whole units to a file that `restore` and `targetctl restore` take; return them.

    Raises SetupError.
    """
    check_root()
    with exclusive():
        found = read_state().units.values()
        # Without `vscsi hba` that serves it, a user-backed one is nothing to restore.
        whole = [
            each for each in found if each.storage and each.whole and each.storage.plugin != "user"
        ]
        store(path, whole)
    return whole


def restore(path: Path = SAVE_FILE, *, dry_run: bool = False) -> Outcome:
    """Have the units that a file tells, all or none, with every initiator under its own name.

    path: written by `save`, `targetctl save` or targetcli; what is not vscsi's in it is left
    alone. Raises SetupError.
    """
    return _have(load(path), dry_run)


def _have(wanted: Iterable[Wanted], dry_run: bool) -> Outcome:
    wanted = list(wanted)
    if not dry_run:
        check_root()
        prepare(each.backing.plugin for each in wanted if each.backing)

    def plan(state: State) -> list[Step]:
        steps: list[Step] = []
        for each in wanted:
            unit = state.units.get(each.name)
            now = attributes(unit.storage) if unit and unit.storage else {}
            steps += to_have(each, state, now)
        return steps

    return _carry_out([each.name for each in wanted], plan, dry_run)


def _carry_out(about: list[str], plan: Callable[[State], list[Step]], dry_run: bool) -> Outcome:
    if dry_run:
        state = read_state(asked=about)
        steps = plan(state)
    else:
        check_root()
        with exclusive():
            steps = plan(read_state(asked=about))
            if steps:
                apply(steps)
            state = read_state(asked=about)
    found = tuple(state.units[name] for name in about if name in state.units)
    return Outcome(tuple(step.describe() for step in steps), found)
