# SPDX-License-Identifier: MIT
"""SPC commands that every device type implements alike."""

from collections.abc import Callable

from vscsi.target.base import Status, Task
from vscsi.target.logical_unit import Implemented, LogicalUnit, Outcome
from vscsi.target.refusals import bad_cdb_byte, bad_field
from vscsi.wire.cdb import Cdb, named
from vscsi.wire.formats import build
from vscsi.wire.inquiry import VpdPage
from vscsi.wire.lun import REPORT_LUNS_WLUN
from vscsi.wire.opcodes import GROUP_NAMES, Command
from vscsi.wire.parameters import (
    CTDP,
    NOT_SUPPORTED,
    ONE_COMMAND_CTDP,
    SERVACTV,
    SUPPORTED,
    AllCommands,
    OneCommand,
    build_report_luns,
)

_CMDDT = 0x02
"""INQUIRY's obsolete bit in byte 1, which must not be taken for a plain INQUIRY."""
_LUNS, _WELL_KNOWN, _ALL_LUNS = 0, 1, 2  # SELECT REPORT (SPC-5 table 203)
_ANY, _OPCODE, _SERVICE_ACTION, _EITHER = 0, 1, 2, 3  # REPORTING OPTIONS (SPC-5 table 207)


def test_unit_ready(unit: LogicalUnit, task: Task, cdb: Cdb) -> Outcome:  # noqa: ARG001
    """TEST UNIT READY."""
    return unit.refuse_not_ready() or Status.GOOD


def request_sense(unit: LogicalUnit, task: Task, cdb: Cdb) -> Outcome:
    """REQUEST SENSE: a pending unit attention as data, which clears it."""
    sense = unit.attentions.take(task.nexus) or unit.sense_without_attention()
    return sense.build(descriptor=bool(cdb.field("desc")))


def inquiry(unit: LogicalUnit, task: Task, cdb: Cdb) -> Outcome:  # noqa: ARG001
    """INQUIRY."""
    page = cdb.field("page_code")
    if cdb.data[1] & _CMDDT:
        return bad_cdb_byte(1, _CMDDT)
    if not cdb.field("evpd"):
        return bad_field(cdb, "page_code") if page else unit.standard_inquiry()
    pages = unit.vpd_pages()
    if page == VpdPage.SUPPORTED_PAGES:
        return unit.vpd(VpdPage.SUPPORTED_PAGES, page_codes=sorted({0, *pages}))
    make = pages.get(page)
    return make() if make else bad_field(cdb, "page_code")


def report_luns(unit: LogicalUnit, task: Task, cdb: Cdb) -> Outcome:
    """REPORT LUNS."""
    if cdb.allocation_length < 16:
        return bad_field(cdb, "allocation_length")
    selected = cdb.field("select_report")
    if selected not in (_LUNS, _WELL_KNOWN, _ALL_LUNS):
        return bad_field(cdb, "select_report")
    luns = [] if selected == _WELL_KNOWN else list(unit.inventory.luns())
    if selected != _LUNS:
        luns.append(REPORT_LUNS_WLUN)
    unit.inventory.inventory_reported(task.nexus)
    return build_report_luns(luns)


def report_supported_operation_codes(
    unit: LogicalUnit,
    task: Task,  # noqa: ARG001
    cdb: Cdb,
) -> Outcome:
    """REPORT SUPPORTED OPERATION CODES, from the table that dispatches."""
    option = cdb.field("reporting_options")
    timeouts = bool(cdb.field("rctd"))
    if option == _ANY:
        rows = sorted(unit.commands, key=lambda row: (row.opcode, row.service_action or 0))
        return build(AllCommands, [_descriptor(row, timeouts) for row in rows])
    if option not in (_OPCODE, _SERVICE_ACTION, _EITHER):
        return bad_field(cdb, "reporting_options")
    opcode = cdb.field("requested_operation_code")
    action: int | None = cdb.field("requested_service_action")
    if opcode in GROUP_NAMES and option == _OPCODE:
        return bad_field(cdb, "requested_operation_code")
    if opcode not in GROUP_NAMES:
        if option == _SERVICE_ACTION:
            return bad_field(cdb, "requested_service_action")
        action = None
    for row, entry in unit.commands.items():
        if (row.opcode, row.service_action) == (opcode, action):
            return _one_command(SUPPORTED, row.usage_map(entry.ignored), timeouts)
    return _one_command(NOT_SUPPORTED, b"", timeouts=False)


def _descriptor(row: Command, timeouts: bool) -> dict[str, int]:
    flags = CTDP if timeouts else 0
    if row.service_action is not None:
        flags |= SERVACTV
    return {
        "opcode": row.opcode,
        "service_action": row.service_action or 0,
        "flags": flags,
        "cdb_length": row.length,
    }


def _one_command(support: int, usage: bytes, timeouts: bool) -> bytes:
    flags = ONE_COMMAND_CTDP if timeouts else 0
    return build(OneCommand, {"support": support | flags, "usage": usage})


def entry(
    name: str,
    handler: Callable[..., Outcome],
    *ignored: str,
    despite_attention: bool = False,
) -> tuple[Command, Implemented]:
    """Make a table entry for a command of every device type, or of disks."""
    return named(name), Implemented(handler, despite_attention, frozenset(ignored))


ALWAYS = dict(
    (
        entry("INQUIRY", inquiry, despite_attention=True),
        entry("REPORT LUNS", report_luns, despite_attention=True),
        entry("REQUEST SENSE", request_sense, despite_attention=True),
    )
)
"""What even a logical unit that is not there does."""

PRIMARY = ALWAYS | dict(
    (
        entry("TEST UNIT READY", test_unit_ready),
        entry("REPORT SUPPORTED OPERATION CODES", report_supported_operation_codes),
    )
)
"""What every logical unit does."""
