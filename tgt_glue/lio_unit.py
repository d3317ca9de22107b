# SPDX-License-Identifier: MIT
"""A logical unit whose commands LIO executes.

To the task router it is a logical unit like any other, so `TaskRouter` with units of this kind is
the target. The router's task managers keep SAM's order in front of LIO, whose loopback fabric
knows SIMPLE tasks only: what an attribute makes wait reaches the kernel when it may start. Up to
`depth` commands are the kernel's at a time, each with a thread that waits for it; no unit waits for
another's.

Each I_T nexus has a loopback port of its own: to LIO they are different initiators, and what it
keeps for each (reservations, unit attentions) is theirs.
"""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypedDict

from tgt_glue.capacity import ask_geometry
from tgt_glue.checks import Geometry, Plan, needs_geometry, plan, plan_unknown, settle
from tgt_glue.outcome import failure_of, is_good, is_unit_attention, no_answer, take_over
from tgt_glue.sg import SgDevice, SgNode
from tgt_glue.sg_file import Answer
from vscsi.target.base import (
    Attribute,
    DeliveryFailure,
    Function,
    Management,
    Nexus,
    ServiceResponse,
    Status,
    Task,
)
from vscsi.target.buffers import Views, slice_views
from vscsi.target.executor import Workers
from vscsi.target.logical_unit import Implemented, LogicalUnit, Outcome
from vscsi.target.primary import report_luns
from vscsi.target.refusals import CAPACITY_CHANGED, INVALID_FIELD_IN_CDB
from vscsi.wire.cdb import Cdb, build, lookup, named
from vscsi.wire.errors import SetupError
from vscsi.wire.opcodes import COMMANDS, Command, DeviceType, Direction
from vscsi.wire.sense import Sense, parse_sense

_log = logging.getLogger(__name__)

DEPTH = 32
TIMEOUT_S = 30.0
"""Of one command, as Linux' disk driver has it."""

_ATTENTIONS = 8
"""Unit attentions that `rescan` takes in before it gives up."""


class Port(Protocol):
    """Makes initiators' ways to one of LIO's logical units."""

    def attach(self, nexus: Nexus) -> Path:
        """Give a nexus a loopback port of its own; return the sg node. Raises SetupError."""

    def detach(self, nexus: Nexus) -> None:
        """Take it away again. Raises SetupError."""


def open_sg(path: Path) -> SgDevice:
    """Open an sg node of the running kernel."""
    return SgDevice(SgNode(path), str(path))


class LioUnit(LogicalUnit):
    """One of LIO's logical units. Thread-safe.

    timeout_s: after which the kernel aborts a command, and the task ends with a delivery failure.
    """

    def __init__(
        self,
        port: Port,
        *,
        depth: int = DEPTH,
        timeout_s: float = TIMEOUT_S,
        open_device: Callable[[Path], SgDevice] = open_sg,
    ) -> None:
        super().__init__()
        self.executor = self._workers = Workers(depth)
        self.timeout_s = timeout_s
        self._port = port
        self._open_device = open_device
        self._devices: dict[Nexus, SgDevice] = {}  # replaced, never changed
        self._reserved: set[Nexus] = set()
        self._registered: set[Nexus] = set()
        """Whose ports stay when they leave: registrations outlive that (SPC-5 5.14.1)."""
        self._geometry: Geometry | None = None
        self._be(DeviceType.DISK)

    def _be(self, device_type: int) -> None:
        known = device_type in _COMMANDS
        self.device_type = DeviceType(device_type) if known else DeviceType.DISK
        self.commands = _COMMANDS[self.device_type] if known else _COMMON

    # What the router calls.

    def attach(self, nexus: Nexus) -> None:
        """Give a nexus its way to the unit; without one, its tasks end as those of no unit."""
        try:
            device = self._open_device(self._port.attach(nexus))
        except SetupError as error:
            _log.error("%s has no way to its logical unit: %s", nexus, error)
        else:
            self._be(device.traits.device_type)
            self._devices = {**self._devices, nexus: device}
        super().attach(nexus)

    def detach(self, nexus: Nexus) -> None:
        """Take a nexus' way to the unit."""
        super().detach(nexus)
        device = self._devices.get(nexus)
        if device is None:
            return
        self._devices = {key: kept for key, kept in self._devices.items() if key != nexus}
        if nexus in self._reserved:  # SPC-2 5.5.1: it ends with the nexus
            self._reserved.discard(nexus)
            try:
                device.execute(build("RELEASE(6)"), timeout_s=self.timeout_s)
            except OSError as error:
                _log.warning("%s: its reservation stays: %s", nexus, error)
        device.close()
        if nexus not in self._registered:
            try:
                self._port.detach(nexus)
            except SetupError as error:
                _log.warning("%s: its port stays: %s", nexus, error)

    def managed(self, request: Management, affected: Sequence[Task]) -> ServiceResponse:
        """Do what is left of a function: its dormant tasks were aborted, running ones waited for.

        The kernel cannot abort one command of ours; FAILED if it kept any beyond its time.
        """
        if any(task.delivery_failure is DeliveryFailure.TIMED_OUT for task in affected):
            return ServiceResponse.FAILED
        if request.function is Function.LOGICAL_UNIT_RESET:
            device = self._devices.get(request.nexus)
            try:
                if device is None:
                    return ServiceResponse.FAILED
                device.reset()  # LIO tells every nexus itself
            except OSError as error:
                _log.warning("a logical unit reset failed: %s", error)
                return ServiceResponse.FAILED
            self._reserved.clear()
        return ServiceResponse.FUNCTION_COMPLETE

    # What its owner calls.

    def rescan(self) -> None:
        """Find out whether the unit has another size, which LIO itself does not tell anybody."""
        before = self._geometry
        for device in self._devices.values():
            for _ in range(_ATTENTIONS):
                try:
                    found = self._ask_geometry(device)
                except OSError:
                    break
                if isinstance(found, Geometry):
                    if before not in (None, found):
                        self.attentions.establish(CAPACITY_CHANGED)
                    return
                sense = parse_sense(found.sense)
                if sense is None or not is_unit_attention(found):
                    return
                self.attentions.establish(sense)  # it was meant for an initiator

    def close(self) -> None:
        """Let go of the unit; the router that had it must have been closed."""
        self._workers.close()
        for nexus in self._devices:
            self.detach(nexus)

    @property
    def staged_bytes(self) -> int:
        """Bytes that were copied on their way, of the nexuses that there are now."""
        return sum(device.staged_bytes for device in self._devices.values())

    # Executing.

    def _perform(self, task: Task) -> Status | Sense:
        row = lookup(task.cdb, self.device_type)
        if row in self.commands:
            return super()._perform(task)
        if task.attribute == Attribute.ACA:
            return INVALID_FIELD_IN_CDB
        return self.attentions.take(task.nexus) or self.forward(task, None)

    def forward(self, task: Task, cdb: Cdb | None) -> Status | Sense:
        """Have LIO execute a command; cdb: None if no table has it."""
        device = self._devices.get(task.nexus)
        if device is None:
            return no_answer(task, DeliveryFailure.GONE)
        try:
            planned = self._plan(device, task, cdb)
            if isinstance(planned, Answer):
                return self._refused(task, planned)
            if isinstance(planned, Sense):
                return planned
            arrived = 0
            for piece in planned.pieces:
                answer = device.execute(
                    piece.cdb,
                    timeout_s=self.timeout_s,
                    all_or_nothing=planned.all_or_nothing,
                    **_data(task, planned.direction, piece.offset, piece.length),
                )
                if not is_good(answer):
                    return self._refused(task, answer)
                arrived += answer.arrived
        except OSError as error:
            _log.warning("%s: %s", task.nexus, error)
            return no_answer(task, failure_of(error))
        if cdb is not None and cdb.row in _RESERVES:
            self._reserved.add(task.nexus)
        if cdb is not None and cdb.row in _REGISTERS:
            self._registered.add(task.nexus)
        return settle(task, cdb, planned, arrived) or Status.GOOD

    def _plan(self, device: SgDevice, task: Task, cdb: Cdb | None) -> Plan | Sense | Answer:
        limit = device.traits.max_bytes
        if cdb is None:
            return plan_unknown(task, limit)
        geometry = self._geometry
        if geometry is None and needs_geometry(cdb.row):
            found = self._ask_geometry(device)
            if isinstance(found, Answer):
                return found  # what keeps the unit from telling keeps the command from its blocks
            geometry = found
        return plan(task, cdb, geometry, limit)

    def _ask_geometry(self, device: SgDevice) -> Geometry | Answer:
        """Ask for the unit's size and remember it; OSError as `SgDevice.execute`."""
        found = ask_geometry(device, self.timeout_s)
        if isinstance(found, Geometry):
            self._geometry = found
        return found

    def _refused(self, task: Task, answer: Answer) -> Status | Sense:
        """Take over an outcome that is not GOOD: no data came with it."""
        if is_unit_attention(answer):
            self._geometry = None  # another medium, perhaps, or another size
        return take_over(task, answer)


def _forward(unit: LioUnit, task: Task, cdb: Cdb) -> Outcome:
    return unit.forward(task, cdb)


def _request_sense(unit: LioUnit, task: Task, cdb: Cdb) -> Outcome:
    """REQUEST SENSE: a unit attention of ours as data, which clears it; else what LIO has."""
    pending = unit.attentions.take(task.nexus)
    if pending is None:
        return unit.forward(task, cdb)
    return pending.build(descriptor=bool(cdb.field("desc")))


def _table(rows: Collection[Command]) -> Mapping[Command, Implemented]:
    own = {
        named("INQUIRY"): Implemented(_forward, despite_attention=True),
        named("REQUEST SENSE"): Implemented(_request_sense, despite_attention=True),
        # LIO knows of one port's units, the router of the target's.
        named("REPORT LUNS"): Implemented(report_luns, despite_attention=True),
    }
    return {row: Implemented(_forward) for row in rows} | own


_COMMANDS = {
    DeviceType.DISK: _table(COMMANDS[DeviceType.DISK]),
    DeviceType.TAPE: _table(COMMANDS[DeviceType.TAPE]),
    # MMC-6 takes over what it reads and writes with.
    DeviceType.CDROM: _table(COMMANDS[DeviceType.DISK] + COMMANDS[DeviceType.CDROM]),
}
_COMMON = _table(set.intersection(*map(set, COMMANDS.values())))
"""For device types without a table, whose opcodes may mean other commands than a disk's."""
_RESERVES = (named("RESERVE(6)"), named("RESERVE(10)"))
_REGISTERS = (
    named("PERSISTENT RESERVE OUT REGISTER"),
    named("PERSISTENT RESERVE OUT REGISTER AND IGNORE EXISTING KEY"),
)


class _Data(TypedDict, total=False):
    out: Views
    into: Views
    wanted: int


def _data(task: Task, direction: Direction, offset: int, length: int) -> _Data:
    if direction is Direction.OUT:
        return {"out": slice_views(task.data_out, offset, length)}
    if direction is Direction.IN:
        return {"into": slice_views(task.data_in, offset, length), "wanted": length}
    return {}
