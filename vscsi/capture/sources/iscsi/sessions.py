# SPDX-License-Identifier: MIT
"""Open commands of I_T nexuses, and what became of them."""

from dataclasses import dataclass, field
from functools import lru_cache

from vscsi.capture.commands import Disk, Event, Fate
from vscsi.capture.exchange import MAX_OPEN
from vscsi.capture.sources.base import Reading
from vscsi.capture.sources.columns import MAX_NAMES
from vscsi.capture.sources.iscsi.rows import NO_ANSWER, Row
from vscsi.target.base import Function
from vscsi.wire.errors import WireError
from vscsi.wire.lun import logical_unit_number
from vscsi.wire.opcodes import DeviceType
from vscsi.wire.parameters import Capacity, parse_capacity_10, parse_capacity_16

DATA_BYTES = 512
"""Of a command's data, each way, that is kept: parameter data, mostly."""
MAX_MANAGEMENT = 256
"""Task management requests of a session that wait for their answers."""
_STATUS_AT = 3
"""In the headers of answers."""
_OPCODE_AT = 32
"""In a command's header: where the CDB begins."""
_INQUIRY, _READ_CAPACITY_10, _SERVICE_ACTION_IN_16 = 0x12, 0x25, 0x9E
_LEARNED_FROM = frozenset({_INQUIRY, _READ_CAPACITY_10, _SERVICE_ACTION_IN_16})
_READ_CAPACITY_16 = 0x10
_MAX_BLOCK_BYTES = 1 << 20
_TYPES = frozenset(DeviceType)
_OF_A_UNIT = (Function.ABORT_TASK_SET, Function.CLEAR_TASK_SET, Function.LOGICAL_UNIT_RESET)


class Command:
    """A command that has no answer yet."""

    __slots__ = ("channel", "header", "outstanding", "received", "segments", "sent", "serial",
                 "time", "unit")  # fmt: skip

    def __init__(
        self,
        serial: int,
        time: int,
        channel: int,
        unit: "Unit",
        header: bytes,
        segments: bytes,
        sent: bytes,
    ) -> None:
        self.serial = serial
        self.time = time
        self.channel = channel
        self.unit = unit
        self.header = header
        """Of the PDU, and"""
        self.segments = segments
        """its additional header segments."""
        self.outstanding = len(unit.open)
        self.sent = sent
        """The first bytes of its data-out, and"""
        self.received = b""
        """of its data-in."""


@dataclass(slots=True, eq=False)
class Unit:
    """A logical unit as a session sees it."""

    number: int
    """Of its disk."""
    open: dict[bytes, Command] = field(default_factory=dict)
    """By Initiator Task Tag, as in the headers, from the oldest on."""


@dataclass(slots=True, eq=False)
class Session:
    """What an initiator port has with a target port, over one connection or several."""

    name: str
    units: dict[bytes, Unit] = field(default_factory=dict)
    """By LUN."""
    open: dict[bytes, Command] = field(default_factory=dict)
    """By Initiator Task Tag, from the oldest on."""
    management: "dict[int, Managed]" = field(default_factory=dict)
    connections: int = 0
    uncertain: int = 0
    """Answers to commands with lower serials may have been in a gap."""


@dataclass(frozen=True, slots=True)
class Managed:
    """A task management request that has no answer yet."""

    event: Event
    unit: Unit | None
    serial: int
    """Of the first command behind it."""
    whole: bool
    """Whether it is about all logical units of the target."""


class Ledger:
    """All sessions' commands: gives them numbers, and makes rows of those that ended."""

    def __init__(self, reading: Reading) -> None:
        self.channels = reading.channels
        self.disks = reading.disks
        self.note = reading.happened
        self.rows: list[Row] = []
        self.rows_data = 0
        """Bytes of data in the rows."""
        self.unmatched = 0
        """Answers without commands."""
        self.stepped = 0
        """Answers with times before those of their commands."""
        self.refused = 0
        """Commands on more connections, or to more logical units, than one file may have."""
        self.serial = 0
        self._numbers: dict[tuple[str, bytes], int] = {}
        self._sessions: dict[str, Session] = {}
        self._open = 0

    def session(self, name: str, *, again: bool) -> Session:
        """Return the session of a name for another connection; again: not one that is there."""
        found = self._sessions.get(name)
        if found is None or again:
            if found is not None:
                self.give_up(found, Fate.LOST)
            found = self._sessions[name] = Session(name)
        found.connections += 1
        return found

    def leave(self, session: Session) -> None:
        """Take a connection from its session; with the last one the session ends."""
        session.connections -= 1
        if session.connections > 0:
            return
        self.give_up(session, Fate.LOST)
        if self._sessions.get(session.name) is session:
            del self._sessions[session.name]

    def unit(self, session: Session, lun: bytes) -> Unit | None:
        """Return a logical unit that the session has not used; None if there are too many."""
        key = session.name, lun
        number = self._numbers.get(key)
        if number is None:
            if len(self.disks) >= MAX_NAMES:
                self.refused += 1
                return None
            number = self._numbers[key] = len(self.disks)
            known = logical_unit_number(lun)
            name = f"{session.name} lun {lun.hex() if known is None else known}"
            self.disks.append(Disk(name, lun))
        unit = session.units[lun] = Unit(number)
        return unit

    def begin(
        self,
        session: Session,
        unit: Unit,
        channel: int,
        time: int,
        header: bytes,
        segments: bytes,
        sent: bytes,
    ) -> None:
        """Take a command that was sent at a time, with the first bytes of its data-out."""
        tag = header[16:20]
        before = session.open.get(tag)
        if before is None and self._open >= MAX_OPEN and session.open:
            before = next(iter(session.open.values()))
        if before is not None:
            self.end(session, before, Fate.LOST)
        session.open[tag] = unit.open[tag] = Command(
            self.serial, time, channel, unit, header, segments, sent
        )
        self.serial += 1
        self._open += 1

    def end(
        self,
        session: Session,
        command: Command,
        fate: Fate,
        time: int | None = None,
        answer: bytes = NO_ANSWER,
        sense: bytes | None = None,
    ) -> None:
        """Make a row of a command. time: of the answer, if there is one; answer: its header."""
        header, unit = command.header, command.unit
        tag = header[16:20]
        del session.open[tag], unit.open[tag]
        self._open -= 1
        latency = None
        if time is not None:
            latency = time - command.time
            if latency < 0:
                self.stepped += 1
                latency = None
        data = command.sent + command.received
        self.rows_data += len(data)
        self.rows.append(
            (
                command.serial,
                command.time,
                command.channel,
                unit.number,
                command.outstanding,
                header,
                command.segments,
                fate,
                latency,
                answer,
                sense,
                data or None,
            )
        )
        if header[_OPCODE_AT] in _LEARNED_FROM and not answer[_STATUS_AT]:
            _learn(self.disks[unit.number], header[_OPCODE_AT:], command.received)

    def give_up(self, session: Session, fate: Fate, before: int | None = None) -> None:
        """End a session's commands, with serials below `before` if given."""
        while session.open:
            command = next(iter(session.open.values()))
            if before is not None and command.serial >= before:
                break
            self.end(session, command, fate)

    def abort(self, session: Session, managed: Managed) -> None:
        """End what a task management function, confirmed now, aborted."""
        function, unit = managed.event.function, managed.unit
        if function is Function.ABORT_TASK:
            tag = managed.event.managed_tag or 0
            command = session.open.get(tag.to_bytes(4, "big"))
            if command is not None and command.serial < managed.serial:
                self.end(session, command, Fate.ABORTED)
        elif managed.whole:
            self.give_up(session, Fate.ABORTED, managed.serial)
        elif function in _OF_A_UNIT and unit is not None:
            while unit.open:
                command = next(iter(unit.open.values()))
                if command.serial >= managed.serial:
                    break
                self.end(session, command, Fate.ABORTED)

    def rest(self) -> None:
        """End what is still open, at the end of the capture."""
        for session in self._sessions.values():
            self.give_up(session, Fate.LOST, session.uncertain)
            self.give_up(session, Fate.OPEN)
            for managed in session.management.values():
                self.note(managed.event)


def _learn(disk: Disk, cdb: bytes, data: bytes) -> None:
    """Take what an answer says of its logical unit, if it does."""
    if cdb[0] == _INQUIRY:
        # The qualifier is above the type: one of 0 says that the type is there.
        if data and data[0] in _TYPES:
            disk.device_type = DeviceType(data[0])
        return
    if cdb[0] == _READ_CAPACITY_10:
        capacity = _capacity(data[:8])
    else:
        capacity = _capacity(data) if cdb[1] & 0x1F == _READ_CAPACITY_16 else None
    if capacity is not None and capacity.block_length <= _MAX_BLOCK_BYTES:
        disk.block_bytes = capacity.block_length
        disk.block_count = capacity.blocks


@lru_cache(64)
def _capacity(data: bytes) -> Capacity | None:
    """Return what READ CAPACITY data say; None if they are none, or not all could be said."""
    try:
        if len(data) > 8:
            return parse_capacity_16(data)
        capacity = parse_capacity_10(data)
    except WireError:
        return None
    return None if capacity.blocks > 0xFFFF_FFFF else capacity
