# SPDX-License-Identifier: MIT
"""What the answers say: latencies beside the recorded ones, and every answer that is another."""

from collections import Counter
from dataclasses import dataclass, field

from vscsi.capture.commands import Fate, Operation
from vscsi.capture.latency import Latencies
from vscsi.capture.replay.step import Row, Step
from vscsi.capture.replay.translate import Effect, Unit, Wanted, executed
from vscsi.capture.replay.verify import Access, Content
from vscsi.target.base import Status
from vscsi.transport.hba import Reply
from vscsi.wire import cdb as cdbs
from vscsi.wire.sense import Sense, SenseKey

MAX_DIFFERENCES = 100
"""Differences that are kept; the others are counted."""
MAX_NAMES = 512
"""Commands by name; those beyond are one."""
_MANY = 4096


class Figures:
    """Latencies that are counted many at a time, which takes less of the replay's time."""

    def __init__(self) -> None:
        self._latencies = Latencies()
        self._waiting: list[int] = []

    def add(self, latency_ns: int) -> None:
        """Count one."""
        self._waiting.append(latency_ns)
        if len(self._waiting) >= _MANY:
            self._take()

    def _take(self) -> None:
        self._latencies.add(Counter(self._waiting))
        self._waiting.clear()

    def us(self) -> dict[str, float] | None:
        """Return mean, percentiles and extremes in us; None of nothing."""
        self._take()
        return self._latencies.figures_us()


@dataclass(slots=True)
class Kind:
    """The commands of one name."""

    opcode: int | None
    service_action: int | None
    sent: int = 0
    recorded: Figures = field(default_factory=Figures)
    replayed: Figures = field(default_factory=Figures)


@dataclass(frozen=True, slots=True)
class Difference:
    """An answer that is not the recorded one."""

    serial: int
    sent_ns: int
    disk: int
    command: str
    kind: str
    """status, sense, residual, data, or failure."""
    recorded: str
    replayed: str


class Judge:
    """Takes what was sent and what came of it."""

    def __init__(self, *, verify: bool) -> None:
        """verify: compare data too."""
        self.kinds: dict[str, Kind] = {}
        self.differences: list[Difference] = []
        self.counts: Counter[str] = Counter()
        """Of differences by their kind."""
        self.attentions = 0
        """Answers, recorded or not, that were unit attentions: there is nothing to compare."""
        self.compared = 0
        self.not_comparable = 0
        """Answers whose command was not answered in the capture."""
        self.made_up = 0
        """Writes whose data the capture has not got whole."""
        self._verify = verify
        self._contents: dict[Unit, Content] = {}

    @property
    def checked_bytes(self) -> int:
        """Bytes that were read and compared."""
        return sum(content.checked for content in self._contents.values())

    @property
    def unchecked_bytes(self) -> int:
        """Bytes that were read and could not be compared with anything."""
        return sum(content.unchecked for content in self._contents.values())

    def sent(self, row: Row, wanted: Wanted, unit: Unit) -> Access | None:
        """Take note of a command before it is sent."""
        kind = self._kind(row)
        kind.sent += 1
        self.made_up += wanted.effect is Effect.PATTERN
        if not self._verify:
            return None
        if unit not in self._contents:
            self._contents[unit] = Content(unit.block_bytes)
        return self._contents[unit].sent(wanted)

    def ended(
        self,
        step: Step,
        wanted: Wanted,
        unit: Unit,
        access: Access | None,
        reply: Reply | None,
        latency_ns: int,
    ) -> None:
        """Compare an answer; None is one of an aborted command."""
        row = step.row
        if row is None:
            return
        kind = self._kind(row)
        if reply is not None:
            kind.replayed.add(latency_ns)
        if row.latency_ns is not None:
            kind.recorded.add(row.latency_ns)
        good = reply is not None and reply.status is Status.GOOD
        if reply is None or not self._comparable(row, reply):
            self.not_comparable += 1
        else:
            self.compared += 1
            for name, recorded, replayed in _differences(row, wanted, reply):
                self._differ(step, row, name, recorded, replayed)
            if access is not None and good and executed(row):
                self._compare_data(step, row, unit, access, reply)
        if access is not None:
            self._contents[unit].ended(access, good)

    def _comparable(self, row: Row, reply: Reply) -> bool:
        if row.fate not in (Fate.ANSWERED, Fate.FAILED):
            return False
        sense = reply.decoded_sense
        if SenseKey.UNIT_ATTENTION in (row.sense_key, sense.key if sense else None):
            self.attentions += 1
            return False
        return True

    def _compare_data(self, step: Step, row: Row, unit: Unit, access: Access, reply: Reply) -> None:
        captured = (row.data or b"")[row.data_out :]
        at = self._contents[unit].differs(access, reply.data, captured)
        if at is not None:
            block = access.wanted.lba + at // unit.block_bytes
            found = reply.data[at : at + 8].hex(" ")
            self._differ(
                step, row, "data", "other bytes", f"from byte {at}, block {block}: {found}"
            )

    def _differ(self, step: Step, row: Row, kind: str, recorded: str, replayed: str) -> None:
        self.counts[kind] += 1
        if len(self.differences) < MAX_DIFFERENCES:
            self.differences.append(
                Difference(row.serial, step.sent_ns, row.disk, words(row), kind, recorded, replayed)
            )

    def _kind(self, row: Row) -> Kind:
        name = name_of(row)
        kind = self.kinds.get(name)
        if kind is None:
            if len(self.kinds) >= MAX_NAMES:
                return self.kinds.setdefault("others", Kind(None, None))
            opcode = row.opcode if row.cdb is not None else None
            kind = self.kinds[name] = Kind(opcode, row.service_action)
        return kind


def name_of(row: Row) -> str:
    """Return a command's name: of its CDB, or of what it does where there is none."""
    if not row.cdb:
        return Operation(row.operation).name
    command = cdbs.lookup(row.cdb)
    return command.name if command is not None else f"opcode 0x{row.cdb[0]:02x}"


def words(row: Row) -> str:
    """Return a command in one line."""
    if row.cdb:
        return cdbs.describe(row.cdb)
    return f"{name_of(row)} lba {row.lba} blocks {row.blocks}"


def _differences(row: Row, wanted: Wanted, reply: Reply) -> list[tuple[str, str, str]]:
    """Return kind, recorded and replayed of what differs."""
    good = reply.status is Status.GOOD
    if row.fate == Fate.FAILED:
        return [("failure", "not executed", reply.status.name)] if good else []
    recorded = Status.GOOD if row.status is None else row.status
    if recorded != reply.status:
        return [("status", _status(row, recorded), _replayed(reply))]
    found = []
    sense = reply.decoded_sense
    ours = (sense.key, sense.asc, sense.ascq) if sense else None
    if row.sense_key is not None and ours != (row.sense_key, row.asc, row.ascq):
        found.append(("sense", _status(row, recorded), _replayed(reply)))
    if wanted.as_recorded and row.residual is not None and row.residual != reply.residual:
        found.append(("residual", str(row.residual), str(reply.residual)))
    return found


def _status(row: Row, status: int) -> str:
    try:
        name = Status(status).name.replace("_", " ")
    except ValueError:
        name = f"status 0x{status:02x}"
    if row.sense_key is None:
        return name
    return f"{name}, {Sense(row.sense_key, row.asc or 0, row.ascq or 0).describe()}"


def _replayed(reply: Reply) -> str:
    name = reply.status.name.replace("_", " ")
    sense = reply.decoded_sense
    return f"{name}, {Sense(sense.key, sense.asc, sense.ascq).describe()}" if sense else name
