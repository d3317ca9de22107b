# SPDX-License-Identifier: MIT
"""MODE SENSE and MODE SELECT over a logical unit's mode pages (SPC-5 6.13 to 6.16)."""

from vscsi.target.base import Status, Task
from vscsi.target.logical_unit import LogicalUnit, Outcome, parameter_list
from vscsi.target.primary import entry
from vscsi.target.refusals import (
    MODE_PARAMETERS_CHANGED,
    PARAMETER_LIST_LENGTH,
    SAVING_NOT_SUPPORTED,
    bad_field,
    bad_parameter,
)
from vscsi.wire.cdb import Cdb
from vscsi.wire.errors import WireError
from vscsi.wire.mode import (
    ALL_SUBPAGES,
    ModePage,
    PageControl,
    Parameters,
    parse_parameters,
)
from vscsi.wire.sense import Sense

_LONGEST_LIST = 1024
"""Bytes: many times what all pages need, so that a list of nothing but headers costs little."""


def mode_sense(unit: LogicalUnit, task: Task, cdb: Cdb) -> Outcome:  # noqa: ARG001
    """MODE SENSE(6) and (10)."""
    control = PageControl(cdb.field("pc"))
    if control is PageControl.SAVED:
        return SAVING_NOT_SUPPORTED
    if cdb.field("subpage_code") not in (0, ALL_SUBPAGES):
        return bad_field(cdb, "subpage_code")
    code = cdb.field("page_code")
    codes = unit.modes.codes()
    if code != ModePage.ALL:
        if code not in codes:
            return bad_field(cdb, "page_code")
        codes = [code]
    long = bool(cdb.field("llbaa"))
    descriptors = b"" if cdb.field("dbd") else unit.block_descriptor(long=long)
    return Parameters(
        [unit.modes.page(code, control) for code in codes],
        device_specific=unit.device_specific_parameter(),
        block_descriptors=descriptors,
        longlba=long and bool(descriptors),
    ).build(ten=cdb.row.length == 10)


def mode_select(unit: LogicalUnit, task: Task, cdb: Cdb) -> Outcome:
    """MODE SELECT(6) and (10): all pages of the list or none."""
    for name in ("rtd", "sp"):
        if cdb.field(name):
            return bad_field(cdb, name)
    if cdb.parameter_list_length == 0:
        return Status.GOOD
    if not cdb.field("pf"):
        return bad_field(cdb, "pf")
    if cdb.parameter_list_length > _LONGEST_LIST:
        return PARAMETER_LIST_LENGTH
    data = parameter_list(task, cdb.parameter_list_length)
    if isinstance(data, Sense):
        return data
    ten = cdb.row.length == 10
    try:
        wanted = parse_parameters(data, ten=ten)
    except WireError:
        return PARAMETER_LIST_LENGTH
    offset = 8 if ten else 4
    refusal = _refuse_header(unit, wanted, ten, offset)
    if refusal is not None:
        return refusal
    offset += len(wanted.block_descriptors)
    pages = []
    for page in wanted.pages:
        pages.append((offset, page))
        offset += len(page.build())
    changed = unit.modes.select(pages)
    if isinstance(changed, Sense):
        return changed
    if changed:
        unit.attentions.establish(MODE_PARAMETERS_CHANGED, but=task.nexus)
        return unit.modes_changed() or Status.GOOD
    return Status.GOOD


def _refuse_header(unit: LogicalUnit, wanted: Parameters, ten: bool, offset: int) -> Sense | None:
    """Refuse another medium type, and block descriptors that would change the format.

    MODE DATA LENGTH and DEVICE-SPECIFIC PARAMETER are reserved or ignored here (SBC-4 6.5.1).
    """
    if wanted.medium_type:
        return bad_parameter(2 if ten else 1)
    given = wanted.block_descriptors
    current = unit.block_descriptor(long=wanted.longlba)
    if not given or given == current:
        return None
    if len(given) != len(current):
        return bad_parameter(6 if ten else 3)
    if wanted.longlba or any(given[:4]) or given[4:] != current[4:]:
        differing = next(
            i for i, pair in enumerate(zip(given, current, strict=True)) if len({*pair}) > 1
        )
        return bad_parameter(offset + differing)
    return None  # zero blocks: as many as there are (SPC-5 7.5.5.2)


MODE_COMMANDS = dict(
    (
        entry("MODE SENSE(6)", mode_sense),
        entry("MODE SENSE(10)", mode_sense),
        entry("MODE SELECT(6)", mode_select),
        entry("MODE SELECT(10)", mode_select),
    )
)
