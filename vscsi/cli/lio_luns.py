# SPDX-License-Identifier: MIT
"""Which unit of LIO has which logical unit number in a server; units that come and go."""

import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from fnmatch import fnmatchcase

import click

from tgt_glue import units
from tgt_glue.configfs import Unit
from tgt_glue.kernel import check_root, exclusive
from vscsi.cli.lio_units import open_unit
from vscsi.cli.served import Served, words
from vscsi.target.base import Nexus
from vscsi.target.refusals import CAPACITY_CHANGED
from vscsi.transport.export import Export
from vscsi.wire.errors import SetupError
from vscsi.wire.sense import Sense


class LioLuns:
    """Opens the units that are asked for, and later what has become of them.

    Each takes the number after the last one's; if it leaves and comes again, the same as before.
    """

    def __init__(self, asked: Sequence[str], first: int, *, direct: bool) -> None:
        """asked: names, or patterns such as "vm1-*". first: the first unit's number."""
        self._asked = asked
        self._first = first
        self._direct = direct
        self._numbers: dict[str, int] = {}
        self._made: dict[str, int] = {}
        """By name, of those that are open: which one it is of all that ever had that name."""

    def open(self, opened: dict[int, Served]) -> None:
        """Open all that are asked for; SetupError if one is not there, or a pattern fits none."""
        if not self._asked:
            return
        check_root()
        for name in self._asked:
            there = self._there(name)
            if not there:
                open_unit(name)  # says why not
            for each in there:
                if each.name not in self._made:
                    self._open(each, opened)

    def follow(self, export: Export, opened: dict[int, Served]) -> None:
        """Serve what has come, and no more what has gone or is another one of the same name."""
        try:
            there = {each.name: each for asked in self._asked for each in self._there(asked)}
        except SetupError as error:
            click.echo(f"vscsi serve: {error}", err=True)
            return
        for name, made in list(self._made.items()):
            if name not in there or _which(there[name]) != made:
                number = self._numbers[name]
                export.remove(number)
                del self._made[name]
                opened.pop(number).close()
                click.echo(f"vscsi serve: LUN {number} (lio:{name}) is gone", err=True)
        for name, unit in there.items():
            if name in self._made:
                continue
            try:
                number, served = self._open(unit, opened)
            except SetupError as error:
                click.echo(f"vscsi serve: {error}", err=True)
                continue
            export.add(number, served.unit, served.disk)
            text = " ".join(" ".join(words(served)).split())
            click.echo(f"vscsi serve: LUN {number} ({served.name}): {text}", err=True)

    def _there(self, asked: str) -> list[Unit]:
        """Return the units of a name or pattern, as they are when nobody is changing them.

        A pattern does not take `vscsi hba`'s units, which may be what is served here already.
        """
        with exclusive():
            found = units.units()
        return [
            each
            for each in found
            if fnmatchcase(each.name, asked)
            and each.storage is not None
            and (each.name == asked or (each.whole and each.storage.plugin != "user"))
        ]

    def _open(self, unit: Unit, opened: dict[int, Served]) -> tuple[int, Served]:
        served = open_unit(unit.name, direct=self._direct)
        number = self._numbers.setdefault(unit.name, self._first + len(self._numbers))
        if served.refresh is not None:
            served.unit.attentions.observe(_look_again)
        opened[number] = served
        self._made[unit.name] = _which(unit)
        return number, served


def _look_again(condition: Sense, _nexuses: Sequence[Nexus]) -> None:
    """Have the server look at sizes: SCSI's initiators know of a new one, blkif's do not yet."""
    if condition == CAPACITY_CHANGED:
        os.kill(os.getpid(), signal.SIGHUP)


def _which(unit: Unit) -> int:
    """Return a number that another unit of the same name does not have."""
    with suppress(OSError):  # it is just leaving
        if unit.storage is not None:
            return os.stat(unit.storage.path).st_ino
    return 0
