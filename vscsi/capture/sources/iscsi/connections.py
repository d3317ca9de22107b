# SPDX-License-Identifier: MIT
"""One connection: what its PDUs mean. Each handler takes one, as `framing.Handler` says."""

from collections.abc import Sequence
from dataclasses import replace
from enum import IntEnum

from vscsi.capture.commands import Channel, Event, Fate
from vscsi.capture.sources.columns import MAX_NAMES
from vscsi.capture.sources.iscsi.fields import unpacker
from vscsi.capture.sources.iscsi.framing import UNKNOWN, Framer, Handler
from vscsi.capture.sources.iscsi.keys import TEXT_BYTES, Keys, outcome
from vscsi.capture.sources.iscsi.sessions import (
    DATA_BYTES,
    MAX_MANAGEMENT,
    Ledger,
    Managed,
    Session,
)
from vscsi.target.base import Function
from vscsi.wire import iscsi
from vscsi.wire.formats import parse
from vscsi.wire.iscsi import (
    BHS_BYTES,
    FULL_FEATURE,
    AsyncEvent,
    Flags,
    Opcode,
    RejectReason,
    TaskFunction,
    TaskResponse,
)
from vscsi.wire.lun import logical_unit_number
from vscsi.wire.sense import parse_sense

_MAX_SENSE = 2 + 252


_data_in = unpacker("flags buffer_offset", iscsi.DataIn)
_data_out = unpacker("buffer_offset", iscsi.DataOut)
_TAG, _TAG_END = 16, 20
"""Where headers have the Initiator Task Tag."""
_STATUS = int(Flags.STATUS)
FUNCTIONS = {
    TaskFunction.ABORT_TASK: Function.ABORT_TASK,
    TaskFunction.ABORT_TASK_SET: Function.ABORT_TASK_SET,
    TaskFunction.CLEAR_ACA: Function.CLEAR_ACA,
    TaskFunction.CLEAR_TASK_SET: Function.CLEAR_TASK_SET,
    TaskFunction.LOGICAL_UNIT_RESET: Function.LOGICAL_UNIT_RESET,
}
"""Those that SAM has; the others are of a whole target, or iSCSI's own."""


class Connection:
    """A TCP connection with iSCSI; `framers` are its two ways, named by who may send on them."""

    def __init__(self, ledger: Ledger, ends: tuple[str, str]) -> None:
        """ends: of the first and the second framer's sender."""
        self.header_digest = UNKNOWN
        self.data_digest = UNKNOWN
        self.handlers: Sequence[tuple[int, Handler]] = self._handlers()
        self.framers = Framer(self), Framer(self)
        self.gaps = 0
        self.gap_bytes = 0
        self.strays = 0
        """How often bytes that are no PDU came where one should."""
        self.number = UNKNOWN
        """Its channel's."""
        self._ends = ends
        self._ledger = ledger
        self._session: Session | None = None
        self._keys = Keys()
        self._login: tuple[int, int] | None = None
        """TSIH and time of the first request of a login under way."""
        self._agreed = False
        """Whether a login said which digests there are."""

    @property
    def used(self) -> bool:
        """Return whether PDUs were found."""
        return self.framers[0].started or self.framers[1].started

    def close(self) -> None:
        """The connection is closed: what has no answer gets none."""
        if self._session is not None:
            self._ledger.leave(self._session)
            self._session = None

    # What the framers say.

    def started(self, framer: Framer) -> None:
        """Learn that PDUs were found: who is who is known then."""
        if self.number != UNKNOWN or len(self._ledger.channels) >= MAX_NAMES:
            return
        first_is_target = (framer is self.framers[0]) == framer.of_target
        if first_is_target:
            self._ends = self._ends[1], self._ends[0]
        self.number = len(self._ledger.channels)
        self._ledger.channels.append(Channel(" to ".join(self._ends), "iscsi"))

    def interrupted(self, framer: Framer, missing: int) -> None:
        """Learn that PDUs are missing."""
        if missing:
            self.gaps += 1
            self.gap_bytes += missing
        else:
            self.strays += 1
        if framer.of_target and self._session is not None:
            self._session.uncertain = self._ledger.serial
        if not self._agreed:
            self.header_digest = self.data_digest = UNKNOWN

    # Commands

    def _on_command(self, data: bytes, at: int, ahs: int, payload: bytes, time: int) -> None:
        if self.number < 0:
            self._ledger.refused += 1
            return
        session = self._session or self._join()
        header = data[at : at + BHS_BYTES]
        lun = header[8:16]
        unit = session.units.get(lun) or self._ledger.unit(session, lun)
        if unit is not None:
            segments = data[at + BHS_BYTES : at + BHS_BYTES + ahs]
            self._ledger.begin(session, unit, self.number, time, header, segments, payload)

    def _on_data_out(self, data: bytes, at: int, ahs: int, payload: bytes, time: int) -> None:
        if not payload or self._session is None:
            return
        (offset,) = _data_out(data, at)
        command = self._session.open.get(data[at + _TAG : at + _TAG_END])
        if command is not None and offset == len(command.sent):
            command.sent = (command.sent + payload)[:DATA_BYTES]

    def _on_data_in(self, data: bytes, at: int, ahs: int, payload: bytes, time: int) -> None:
        flags, offset = _data_in(data, at)
        session = self._session
        command = None if session is None else session.open.get(data[at + _TAG : at + _TAG_END])
        if command is None or session is None:
            self._ledger.unmatched += flags & _STATUS
            return
        if payload and offset == len(command.received):
            command.received = (command.received + payload)[:DATA_BYTES]
        if flags & _STATUS:
            self._ledger.end(session, command, Fate.ANSWERED, time, data[at : at + BHS_BYTES])

    def _on_response(self, data: bytes, at: int, ahs: int, payload: bytes, time: int) -> None:
        header = data[at : at + BHS_BYTES]
        session = self._session
        command = None if session is None else session.open.get(header[_TAG:_TAG_END])
        if command is None or session is None:
            self._ledger.unmatched += 1
            return
        sense = _sense(payload) or None if payload else None
        self._ledger.end(session, command, Fate.ANSWERED, time, header, sense)

    # Task management

    def _on_management(self, data: bytes, at: int, ahs: int, payload: bytes, time: int) -> None:
        if self.number < 0:
            return
        asked = parse(iscsi.TaskManagement, data[at : at + BHS_BYTES], "task management")
        session = self._session or self._join()
        code = asked.function & ~Flags.FINAL
        function = FUNCTIONS.get(code)
        words = _name(TaskFunction, code, "function")
        tag = asked.referenced_tag if code == TaskFunction.ABORT_TASK else None
        if tag is not None:
            words += f" tag 0x{tag:x}"
        unit = session.units.get(asked.lun)
        event = Event(
            time,
            self.number,
            words,
            function=function,
            disk=unit.number
            if unit is not None and code < TaskFunction.TARGET_WARM_RESET
            else None,
            managed_tag=tag,
        )
        waiting = session.management
        waiting.pop(asked.itt, None)
        if len(waiting) >= MAX_MANAGEMENT:
            self._note(waiting.pop(next(iter(waiting))).event)
        whole = code in (TaskFunction.TARGET_WARM_RESET, TaskFunction.TARGET_COLD_RESET)
        waiting[asked.itt] = Managed(event, unit, self._ledger.serial, whole)

    def _on_managed(self, data: bytes, at: int, ahs: int, payload: bytes, time: int) -> None:
        answer = parse(iscsi.TaskManagementResponse, data[at : at + BHS_BYTES], "response")
        session = self._session
        managed = session.management.pop(answer.itt, None) if session is not None else None
        if managed is None or session is None:
            self._ledger.unmatched += 1
            return
        said = _name(TaskResponse, answer.response, "response")
        if answer.response == TaskResponse.FUNCTION_COMPLETE:
            self._ledger.abort(session, managed)
        latency = max(0, time - managed.event.time_ns)
        self._note(replace(managed.event, outcome=said, latency_ns=latency))

    # Logins, and what a target says unasked

    def _on_login(self, data: bytes, at: int, ahs: int, payload: bytes, time: int) -> None:
        asked = parse(iscsi.LoginRequest, data[at : at + BHS_BYTES], "login")
        if self._login is None:
            self.close()
            self._keys = Keys()
            self._login = asked.tsih, time
            self.header_digest = self.data_digest = 0
        self._keys.isid = asked.isid
        self._keys.take(payload, of_target=False)

    def _on_logged_in(self, data: bytes, at: int, ahs: int, payload: bytes, time: int) -> None:
        answer = parse(iscsi.LoginResponse, data[at : at + BHS_BYTES], "login response")
        self._keys.isid = answer.isid
        self._keys.take(payload, of_target=True)
        final = answer.flags & Flags.FINAL and answer.flags & FULL_FEATURE == FULL_FEATURE
        if not final and not answer.status_class:
            return
        asked, self._login = self._login, None
        if not answer.status_class:
            self.header_digest = self._keys.digest("HeaderDigest")
            self.data_digest = self._keys.digest("DataDigest")
            self._agreed = True
            self._join(again=asked is not None and not asked[0])
        if self.number >= 0:
            channels = self._ledger.channels
            channels[self.number] = replace(channels[self.number], parameters=self._keys.parameters)
        began = asked[1] if asked is not None else time
        said = outcome(answer.status_class, answer.status_detail)
        self._note(
            Event(began, self.number, self._keys.words(), said, latency_ns=max(0, time - began))
        )

    def _on_logout(self, data: bytes, at: int, ahs: int, payload: bytes, time: int) -> None:
        self._note(Event(time, self.number, "LOGOUT"))

    def _on_async(self, data: bytes, at: int, ahs: int, payload: bytes, time: int) -> None:
        said = parse(iscsi.AsyncMessage, data[at : at + BHS_BYTES], "asynchronous message")
        words = f"ASYNC MESSAGE {_name(AsyncEvent, said.event, 'event')}"
        sense = parse_sense(_sense(payload))
        if said.event == AsyncEvent.SCSI_EVENT and sense is not None:
            words += f": lun {_lun(said.lun)}: {sense.describe()}"
        self._note(Event(time, self.number, words))

    def _on_reject(self, data: bytes, at: int, ahs: int, payload: bytes, time: int) -> None:
        said = parse(iscsi.Reject, data[at : at + BHS_BYTES], "reject")
        words = f"REJECT {_name(RejectReason, said.reason, 'reason')}"
        self._note(Event(time, self.number, words))
        session = self._session
        refused = payload[:1]
        if session is not None and refused and refused[0] & ~0x40 == Opcode.SCSI_COMMAND:
            command = session.open.get(payload[_TAG:_TAG_END])
            if command is not None:
                self._ledger.end(session, command, Fate.FAILED, time)

    def _ignored(self, data: bytes, at: int, ahs: int, payload: bytes, time: int) -> None:
        """Take what has no meaning for commands."""

    # Helpers

    def _join(self, *, again: bool = False) -> Session:
        """Take part in the session that the login names; without one, in one of its own."""
        self.close()
        initiator, target = self._ends
        port = self._keys.initiator_port or initiator
        self._session = self._ledger.session(f"{target}/{port}", again=again)
        return self._session

    def _note(self, event: Event) -> None:
        if self.number >= 0:
            self._ledger.note(event)

    def _handlers(self) -> Sequence[tuple[int, Handler]]:
        taken: dict[Opcode, tuple[int, Handler]] = {
            Opcode.SCSI_COMMAND: (DATA_BYTES, self._on_command),
            Opcode.TASK_MANAGEMENT: (0, self._on_management),
            Opcode.LOGIN_REQUEST: (TEXT_BYTES, self._on_login),
            Opcode.DATA_OUT: (DATA_BYTES, self._on_data_out),
            Opcode.LOGOUT_REQUEST: (0, self._on_logout),
            Opcode.SCSI_RESPONSE: (_MAX_SENSE, self._on_response),
            Opcode.TASK_MANAGEMENT_RESPONSE: (0, self._on_managed),
            Opcode.LOGIN_RESPONSE: (TEXT_BYTES, self._on_logged_in),
            Opcode.DATA_IN: (DATA_BYTES, self._on_data_in),
            Opcode.ASYNC_MESSAGE: (_MAX_SENSE, self._on_async),
            Opcode.REJECT: (BHS_BYTES, self._on_reject),
        }
        by_code = {int(opcode): each for opcode, each in taken.items()}
        return tuple(by_code.get(code, (0, self._ignored)) for code in range(64))


def _sense(payload: bytes) -> bytes:
    return payload[2 : 2 + int.from_bytes(payload[:2], "big")]


def _lun(lun: bytes) -> str:
    number = logical_unit_number(lun)
    return lun.hex() if number is None else str(number)


def _name(kind: type[IntEnum], code: int, what: str) -> str:
    try:
        return kind(code).name.replace("_", " ")
    except ValueError:
        return f"{what} 0x{code:x}"
