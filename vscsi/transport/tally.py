# SPDX-License-Identifier: MIT
"""What each ring's commands came to, by logical unit: what a scrape of the metrics reads.

The C core counts what it executes in a `Tally` of each logical unit; what Python answers is added
to the same one when it is put on the ring. Whoever reads takes no lock.
"""

import threading
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from vscsi.ring import Tally
from vscsi.target.base import Function, ServiceResponse, Status, Task
from vscsi.target.logical_unit import LogicalUnit
from vscsi.wire.blkif import Operation
from vscsi.wire.cdb import lookup
from vscsi.wire.opcodes import DeviceType
from vscsi.wire.sense import SenseKey, parse_sense

OTHER = "other"
"""What has no row of its own: a guest cannot make new ones up."""
_OPCODES = 256
_KEYS = {int(key): key.name for key in SenseKey}


class UnitCounts:
    """The commands of one logical unit over one ring, a row for each that there is."""

    def __init__(self, names: Sequence[str], row_of: Mapping[int, int]) -> None:
        """names: of the rows from 1 on. row_of: which row an opcode is of that C may execute."""
        self.names = (OTHER, *names)
        table = bytes(row_of.get(opcode, 0) for opcode in range(_OPCODES))
        self.tally = Tally(table, len(self.names))


class ScsiCounts(UnitCounts):
    """Those of a logical unit that takes CDBs."""

    def __init__(self, unit: LogicalUnit | None) -> None:
        """unit: None for what is sent to none that there is."""
        commands = list(unit.commands)[: _OPCODES - 1] if unit is not None else []
        self._device_type = unit.device_type if unit is not None else DeviceType.NONE
        self._rows = {command: row for row, command in enumerate(commands, 1)}
        alone = {
            each.opcode: row for each, row in self._rows.items() if each.service_action is None
        }
        super().__init__([each.name for each in commands], alone)

    def row(self, cdb: bytes) -> int:
        """Return the row of a CDB, whatever is in it."""
        command = lookup(cdb, self._device_type)
        return self._rows.get(command, 0) if command is not None else 0


class BlkifCounts(UnitCounts):
    """Those of a disk over blkif: an indirect request is the read or write that it stands for."""

    def __init__(self) -> None:
        operations = [each for each in Operation if each is not Operation.INDIRECT]
        rows = {int(each): row for row, each in enumerate(operations, 1)}
        super().__init__([each.name for each in operations], rows)
        self._rows = rows

    def row(self, operation: int) -> int:
        """Return the row of an operation."""
        return self._rows.get(operation, 0)


@dataclass(frozen=True, slots=True)
class Asked:
    """A command that has come to Python."""

    unit: LogicalUnit | None
    counts: UnitCounts
    row: int
    taken_ns: int

    def ended(self, task: Task) -> "Ended":
        """Return what its task came to."""
        command = lookup(task.cdb)
        length = task.moved if command is not None and "blocks" in command.fields else 0
        if task.status in (Status.GOOD, Status.CONDITION_MET):
            return Ended(self, length)
        sense = parse_sense(task.sense)
        key = _KEYS.get(sense.key, OTHER) if sense is not None else ""
        return Ended(self, length, (task.status.name, key))


@dataclass(frozen=True, slots=True)
class Ended:
    """What it came to."""

    asked: Asked
    length: int = 0
    """Bytes moved from or to the medium."""
    failure: tuple[str, str] | None = None
    """Status and sense key, or one of the protocol's codes and nothing."""


class RingCounts:
    """All that is counted of one ring while its frontend is connected.

    `failures` and `units` are the ring's thread's to change, the others any thread's.
    """

    def __init__(self) -> None:
        self.units: dict[LogicalUnit | None, UnitCounts] = {}
        self.failures: Counter[tuple[LogicalUnit | None, str, str]] = Counter()
        self.aborted: Counter[LogicalUnit | None] = Counter()
        """Commands that got no answer, or the answer that they were aborted."""
        self.managed: Counter[tuple[str, str]] = Counter()
        """Task management, by function and response."""
        self._lock = threading.Lock()

    def scsi(self, unit: LogicalUnit | None) -> ScsiCounts:
        """Return where a logical unit's commands are counted; None: those to none that is there."""
        counts = self.units.get(unit)
        if not isinstance(counts, ScsiCounts):
            counts = self.units[unit] = ScsiCounts(unit)
        return counts

    def blkif(self, disk: LogicalUnit) -> BlkifCounts:
        """Return where a disk's requests are counted."""
        counts = self.units.get(disk)
        if not isinstance(counts, BlkifCounts):
            counts = self.units[disk] = BlkifCounts()
        return counts

    def keep(self, units: Collection[LogicalUnit]) -> None:
        """Forget logical units that have gone."""
        for unit in [each for each in self.units if each is not None and each not in units]:
            del self.units[unit]

    def add(self, ended: Ended) -> None:
        """Count a command that is answered now."""
        asked, now = ended.asked, time.monotonic_ns()
        asked.counts.tally.add(asked.row, now, max(0, now - asked.taken_ns), ended.length)
        if ended.failure is not None:
            self.failures[(asked.unit, *ended.failure)] += 1

    def abort(self, asked: Asked) -> None:
        """Count a command that was aborted."""
        with self._lock:
            self.aborted[asked.unit] += 1

    def manage(self, function: Function | None, response: ServiceResponse) -> None:
        """Count a task management function that is done; None: one that there is not."""
        name = function.name if function is not None else OTHER
        with self._lock:
            self.managed[name, response.name] += 1
