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
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypedDict

from tgt_glue.capacity import ask_geometry
from tgt_glue.checks import Geometry, Plan, needs_geometry, plan, plan_unknown, settle
from tgt_glue.outcome import failure_of, is_good, is_unit_attention, no_answer, take_over
from tgt_glue.sg import SgDevice, SgNode
from tgt_glue.sg_file import Answer
from vscsi.ring import Store, Unit
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
from vscsi.target.refusals import (
    CAPACITY_CHANGED,
    INSUFFICIENT_REGISTRATION_RESOURCES,
    INVALID_FIELD_IN_CDB,
    MEDIUM_MAY_HAVE_CHANGED,
)
from vscsi.wire.cdb import Cdb, build, lookup, named
from vscsi.wire.errors import SetupError
from vscsi.wire.opcodes import COMMANDS, Command, DeviceType, Direction
from vscsi.wire.sense import Sense, SenseKey, parse_sense

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
        """Take it away again, unless LIO keeps a registration by it. Raises SetupError."""

    def may_register(self, nexus: Nexus) -> bool:
        """Tell whether LIO may keep a registration of this nexus. Raises SetupError."""


def open_sg(path: Path, *, direct: bool = False) -> SgDevice:
    """Open an sg node of the running kernel; direct: see `SgNode`."""
    return SgDevice(SgNode(path, direct=direct), str(path))


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
        self._timeout_s = timeout_s
        self._port = port
        self._open_device = open_device
        self._devices: dict[Nexus, SgDevice] = {}  # replaced, never changed
        self._reserved: set[Nexus] = set()
        self._geometry: Geometry | None = None
        """As told last; None: nobody knows another."""
        self._geometry_holds = False
        self._telling = threading.Lock()
        self.native = self._gate = Unit(Store.null(), 512, 0)  # which all nexuses' units share
        self._be(DeviceType.DISK)

    def _be(self, device_type: int) -> None:
        known = device_type in _COMMANDS
        self.device_type = DeviceType(device_type) if known else DeviceType.DISK
        self.commands = _COMMANDS[self.device_type] if known else _COMMON

    # What a ring's backend calls.

    def native_for(self, nexus: Nexus) -> Unit | None:
        """Return a nexus' way to the unit for the C path, if it is a disk; in the ring's thread."""
        device = self._devices.get(nexus)
        if device is None or device.traits.device_type != DeviceType.DISK:
            return None
        unit = device.native_unit(self._gate)
        self._tell_native()
        return unit

    def _tell_native(self) -> None:
        """Let the C path have commands as long as the size is known."""
        with self._telling:  # who is last tells what holds
            geometry = self._geometry if self._geometry_holds else None
            size = (geometry.blocks, geometry.block_size) if geometry else (0, 0)
            for device in self._devices.values():
                device.set_native(*size, self._timeout_s)

    # What the router calls.

    def attach(self, nexus: Nexus) -> None:
        """Give a nexus its way to the unit; without one, its tasks end as those of no unit."""
        try:
            device = self._open(nexus)
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
        self._leave(nexus)

    def _open(self, nexus: Nexus) -> SgDevice:
        path = self._port.attach(nexus)
        try:
            return self._open_device(path)
        except SetupError:
            self._leave(nexus)
            raise

    def _leave(self, nexus: Nexus) -> None:
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

    @property
    def timeout_s(self) -> float:
        """After which the kernel aborts a command."""
        return self._timeout_s

    @timeout_s.setter
    def timeout_s(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._tell_native()

    def rescan(self) -> None:
        """Find out whether the unit has another size, which LIO itself does not tell anybody."""
        for device in self._devices.values():
            for _ in range(_ATTENTIONS):
                try:
                    found = self._ask_geometry(device)
                except OSError:
                    break
                if isinstance(found, Geometry):
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
        if self._hangs(task):
            return no_answer(task, DeliveryFailure.TIMED_OUT)
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
        if cdb is not None and cdb.row in _REGISTERS and not self._may_register(task.nexus):
            return INSUFFICIENT_REGISTRATION_RESOURCES
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
                    residue_bytes=planned.residue_bytes,
                    **_data(task, planned.direction, piece.offset, piece.length),
                )
                arrived += answer.arrived
                if not is_good(answer):
                    if answer.arrived:  # a tape's, at a mark
                        settle(task, cdb, planned, arrived)
                    return self._refused(task, answer)
        except OSError as error:
            _log.warning("%s: %s", task.nexus, error)
            return no_answer(task, failure_of(error))
        if cdb is not None and cdb.row in _RESERVES:
            self._reserved.add(task.nexus)
        return settle(task, cdb, planned, arrived) or Status.GOOD

    def _plan(self, device: SgDevice, task: Task, cdb: Cdb | None) -> Plan | Sense | Answer:
        limit = device.traits.max_bytes
        if cdb is None:
            return plan_unknown(task, limit)
        geometry = self._geometry if self._geometry_holds else None
        if geometry is None and (needs_geometry(cdb.row) or cdb.row in _TELL_SIZE):
            found = self._ask_geometry(device)
            if isinstance(found, Answer):
                return found  # what keeps the unit from telling keeps the command from its blocks
            geometry = found
        return plan(task, cdb, geometry, limit)

    def _ask_geometry(self, device: SgDevice) -> Geometry | Answer:
        """Ask for the unit's size and remember it; if it is another, all nexuses are told.

        OSError as `SgDevice.execute`.
        """
        found = ask_geometry(device, self.timeout_s)
        if isinstance(found, Geometry):
            before, self._geometry, self._geometry_holds = self._geometry, found, True
            self._tell_native()
            if before not in (None, found):
                self.attentions.establish(CAPACITY_CHANGED)
        return found

    def _may_register(self, nexus: Nexus) -> bool:
        try:
            return self._port.may_register(nexus)
        except SetupError as error:
            _log.warning("%s: may it register? %s", nexus, error)
            return False

    def _refused(self, task: Task, answer: Answer) -> Status | Sense:
        """Take over an outcome that is not GOOD."""
        if is_unit_attention(answer):
            self._heed(task.nexus, parse_sense(answer.sense))
        return take_over(task, answer)

    def _heed(self, nexus: Nexus, told: Sense | None) -> None:
        """Note what a unit attention means for others."""
        self._geometry_holds = False
        for each in _OF_THE_DEVICE:
            if told is not None and (told.asc, told.ascq) == (each.asc, each.ascq):
                self._geometry = None
                self.attentions.establish(each, but=nexus)
        self._tell_native()

    def _hangs(self, task: Task) -> bool:
        """Heed what commands in C were told, and nobody else; tell if this is one that hangs."""
        device = self._devices.get(task.nexus)
        if device is None:
            return False
        senses, hangs = device.take_told(task.cdb)
        for told in map(parse_sense, senses):
            if told is not None and told.key == SenseKey.UNIT_ATTENTION:
                self._heed(task.nexus, told)
                self.attentions.establish(told, only=task.nexus)
        if hangs:  # until the unit answers again, all commands are for those who can wait
            self._geometry_holds = False
            self._tell_native()
        return hangs


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
_OF_THE_DEVICE = (CAPACITY_CHANGED, MEDIUM_MAY_HAVE_CHANGED)
"""Unit attentions that a passed-through device has for its only initiator, which LIO is: whichever
nexus of ours meets one, all others are to hear of it."""
_TELL_SIZE = (named("READ CAPACITY(10)"), named("READ CAPACITY(16)"))
"""An initiator that was told a size is to hear of another one: so it is known here too."""
_RESERVES = (named("RESERVE(6)"), named("RESERVE(10)"))
_REGISTERS = (
    named("PERSISTENT RESERVE OUT REGISTER"),
    named("PERSISTENT RESERVE OUT REGISTER AND IGNORE EXISTING KEY"),
    named("PERSISTENT RESERVE OUT REGISTER AND MOVE"),
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
