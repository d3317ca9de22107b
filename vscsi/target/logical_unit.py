# SPDX-License-Identifier: MIT
"""A logical unit's device server: from a task to its outcome, for any device type.

What a device type is made of: its INQUIRY data, its mode pages, and a table of the commands that
it implements. The keys are rows of the table that parses CDBs, so dispatch, decoding and REPORT
SUPPORTED OPERATION CODES cannot disagree.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from vscsi.ring import Unit
from vscsi.target.attention import UnitAttentions
from vscsi.target.base import Attribute, Function, Management, Nexus, ServiceResponse, Status, Task
from vscsi.target.buffers import gather, scatter
from vscsi.target.executor import Executor
from vscsi.target.mode_pages import ModePages
from vscsi.target.refusals import (
    BUS_DEVICE_RESET,
    DATA_LENGTH_MISMATCH,
    INTERNAL_FAILURE,
    INVALID_FIELD_IN_CDB,
    INVALID_OPCODE,
    NO_SENSE,
    OVERLAPPED,
    bad_cdb_byte,
)
from vscsi.wire.cdb import Cdb, decode, lookup
from vscsi.wire.errors import WireError
from vscsi.wire.inquiry import VpdPage, build_vpd
from vscsi.wire.mode import ModePage
from vscsi.wire.opcodes import NACA, Command, DeviceType, service_action_field
from vscsi.wire.sense import Sense

_log = logging.getLogger(__name__)

Outcome = bytes | Status | Sense
"""What a command came to: parameter data (with GOOD), a status, or the sense of a refusal."""

Handler = Callable[[Any, Task, Cdb], Outcome]
"""Executes one command; the first argument is the logical unit."""


@dataclass(frozen=True)
class Implemented:
    """An entry of a logical unit's table."""

    handler: Handler
    despite_attention: bool = False
    """Executed, and the condition left pending, while there is a unit attention (SAM-6 5.14)."""
    ignored: frozenset[str] = frozenset()
    """Fields of the CDB that make no difference."""


class Inventory(Protocol):
    """What a logical unit knows of the target around it."""

    def luns(self) -> Sequence[bytes]:
        """Return the LUNs in the inventory, ascending."""

    def inventory_reported(self, nexus: Nexus) -> None:
        """Note that a nexus has seen the inventory."""


class LogicalUnit:
    """What every device type has. Thread-safe."""

    device_type: DeviceType
    qualifier = 0
    """PERIPHERAL QUALIFIER."""
    commands: Mapping[Command, Implemented]
    unknown_command = INVALID_OPCODE
    inventory: Inventory
    """Set by the router that takes the logical unit in."""
    executor: Executor | None = None
    """Where its commands run, if not in the router's threads: they must not wait for each other."""
    native: Unit | None = None
    """The same unit for the C path, if that may execute commands."""

    def __init__(self, modes: ModePages | None = None) -> None:
        self.attentions = UnitAttentions()
        self.modes = modes or ModePages({}, {})

    # What a device type says.

    def standard_inquiry(self) -> bytes:
        """Return standard INQUIRY data."""
        raise NotImplementedError

    def vpd_pages(self) -> Mapping[int, Callable[[], bytes]]:
        """Return what builds each VPD page, page 00h excepted."""
        return {}

    def device_specific_parameter(self) -> int:
        """Return DEVICE-SPECIFIC PARAMETER for the mode parameter header."""
        return 0

    def block_descriptor(self, *, long: bool) -> bytes:
        """Return the mode parameter block descriptor, or nothing."""
        return b""

    def modes_changed(self) -> Sense | None:
        """Follow changed mode parameters; the sense if that fails."""
        return None

    def refuse_not_ready(self) -> Sense | None:
        """Return why medium access is not possible, if it is not."""
        return None

    def sense_without_attention(self) -> Sense:
        """Return what REQUEST SENSE tells when no unit attention is pending."""
        return NO_SENSE

    @property
    def staged_bytes(self) -> int:
        """Bytes copied on their way because buffers could not be used as they were."""
        return 0

    # What a ring's backend calls.

    def native_for(self, nexus: Nexus) -> Unit | None:
        """Return what the C path executes a nexus' commands on; its gate is that of `native`."""
        return self.native

    # What the router calls.

    def attach(self, nexus: Nexus) -> None:
        """Start to keep state for a nexus."""
        self.attentions.attach(nexus)

    def detach(self, nexus: Nexus) -> None:
        """Drop a nexus' state."""
        self.attentions.detach(nexus)

    def reset(self) -> None:
        """Return to the state after power on (SAM-6 6.3.3), and let every nexus know."""
        self.modes.reset()
        self.attentions.establish(BUS_DEVICE_RESET)

    def managed(self, request: Management, affected: Sequence[Task]) -> ServiceResponse:
        """Do what is left of a task management function when the tasks it affects are gone."""
        if request.function is Function.LOGICAL_UNIT_RESET:
            self.reset()
        return ServiceResponse.FUNCTION_COMPLETE

    def execute(self, task: Task) -> None:
        """Execute a task's command and set its outcome. Never raises."""
        try:
            outcome = self._perform(task)
        except Exception:
            # Whatever a store or a handler of ours gets wrong: the task must have an answer.
            _log.exception("internal failure in %s", task)
            task.moved = task.overflow = 0
            outcome = INTERNAL_FAILURE
        self._set_outcome(task, outcome)

    def refuse_overlapped(self, task: Task) -> None:
        """Set the outcome of a task whose tag was in use (SAM-6 5.11)."""
        self._set_outcome(task, OVERLAPPED)

    # What handlers call.

    def vpd(self, page: VpdPage, **fields: Any) -> bytes:
        """Build a VPD page of this logical unit."""
        return build_vpd(page, qualifier=self.qualifier, device_type=self.device_type, **fields)

    def _perform(self, task: Task) -> Status | Sense:
        if task.attribute == Attribute.ACA:
            return INVALID_FIELD_IN_CDB  # NormACA is 0: there never is an ACA condition
        row = lookup(task.cdb, self.device_type)
        entry = self.commands.get(row) if row else None
        if entry is None or not entry.despite_attention:
            pending = self.attentions.take(task.nexus)
            if pending is not None:
                return pending
        if entry is None:
            return self._refuse_unknown(task.cdb)
        try:
            cdb = decode(task.cdb, self.device_type)
        except WireError:
            return INVALID_FIELD_IN_CDB
        if cdb.naca:
            return bad_cdb_byte(cdb.row.control_offset, NACA)
        outcome = entry.handler(self, task, cdb)
        if isinstance(outcome, bytes):
            _return_data(task, cdb, outcome)
            return Status.GOOD
        return outcome

    def _refuse_unknown(self, cdb: bytes) -> Sense:
        opcode = cdb[0] if cdb else None
        if self.unknown_command is INVALID_OPCODE and any(
            row.opcode == opcode for row in self.commands
        ):
            field = service_action_field(cdb[0])
            return bad_cdb_byte(field.offset, field.mask >> 8 * (field.size - 1))
        return self.unknown_command

    def _set_outcome(self, task: Task, outcome: Status | Sense) -> None:
        if isinstance(outcome, Sense):
            task.status = Status.CHECK_CONDITION
            task.sense = outcome.build(
                descriptor=bool(self.modes.field(ModePage.CONTROL, "d_sense"))
            )
        else:
            task.status = outcome


def parameter_list(task: Task, length: int) -> bytes | Sense:
    """Copy a parameter list, once: what is checked is what is used."""
    missing = length - task.data_out_length
    if missing > 0:
        task.overflow = missing
        return DATA_LENGTH_MISMATCH
    task.moved = length
    return gather(task.data_out, length)


def _return_data(task: Task, cdb: Cdb, data: bytes) -> None:
    """Give parameter data, up to the allocation length and to where the buffer ends."""
    if "allocation_length" in cdb.row.fields:
        data = data[: cdb.allocation_length]
    task.moved = scatter(data, task.data_in)
    task.overflow = len(data) - task.moved
