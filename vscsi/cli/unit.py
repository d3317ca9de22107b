# SPDX-License-Identifier: MIT
"""What a logical unit says of itself, asked over any path."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

from vscsi.cli.options import unit_path
from vscsi.domain.base import PAGE_SIZE
from vscsi.transport.blkif.frontend import FIRST_VBD
from vscsi.transport.blkif.initiator import BlkifInitiator
from vscsi.transport.connect import connect
from vscsi.transport.export import VBD_STEP
from vscsi.transport.hba import Hba, Lun, ScsiError
from vscsi.wire import cdb as cdbs
from vscsi.wire.errors import WireError
from vscsi.wire.formats import text
from vscsi.wire.inquiry import VpdPage, parse_vpd
from vscsi.wire.lun import logical_unit_number
from vscsi.wire.mode import DeviceSpecific, ModePage, parse_parameters
from vscsi.wire.opcodes import DeviceType
from vscsi.wire.parameters import SUPPORTED, Capacity, parse_one_command
from vscsi.wire.sense import SenseKey

_MODE_BYTES = 255
_MAX_PIECE_BYTES = 1 << 20
_ONE_OPERATION_CODE = 0b001
"""REPORTING OPTIONS: one command, which has no service action (SPC-5 6.35)."""
_ONE_COMMAND_BYTES = 64
_SUPPORT = 0b111
"""SUPPORT in one-command parameter data."""
NO_UNIT = 0b001
"""Peripheral qualifiers from here on: no logical unit is there (SPC-5 6.7.2)."""


@dataclass(frozen=True, slots=True)
class Unit:
    """A logical unit in the words of INQUIRY, READ CAPACITY and MODE SENSE."""

    number: int
    device_type: int
    vendor: str
    product: str
    revision: str
    serial: str
    capacity: Capacity | None
    """None: it has none, or it is not ready."""
    read_only: bool
    fua: bool
    write_cache: bool
    removable: bool

    @property
    def type_name(self) -> str:
        """The peripheral device type as a word."""
        return device_type_name(self.device_type)

    @property
    def size_bytes(self) -> int:
        """Size of the medium, 0 if there is none."""
        return self.capacity.blocks * self.capacity.block_length if self.capacity else 0

    def flags(self) -> list[str]:
        """Return what is particular about it, as words."""
        thin = self.capacity is not None and self.capacity.provisioning_management
        words = {
            "ro": self.read_only,
            "removable": self.removable,
            "thin": thin,
            "fua": self.fua,
            "wce": self.write_cache,
            "not-ready": self.capacity is None,
        }
        return [word for word, is_so in words.items() if is_so]


def device_type_name(device_type: int) -> str:
    """Return a peripheral device type as a word, as in "disk"."""
    try:
        return DeviceType(device_type).name.lower().replace("_", "-")
    except ValueError:
        return f"type-{device_type:02x}h"


def look(hba: Hba, number: int) -> Unit | None:
    """Ask a logical unit what it is; None if there is none at this number.

    Raises TransportError and ScsiError; a command that the unit does not know is no error.
    """
    lun = hba.lun(number)
    inquiry = lun.inquiry()
    if inquiry.peripheral_qualifier >= NO_UNIT:
        return None
    specific, write_cache = _mode(lun)
    return Unit(
        number=number,
        device_type=inquiry.peripheral_device_type,
        vendor=text(inquiry.vendor),
        product=text(inquiry.product),
        revision=text(inquiry.revision),
        serial=_serial(lun),
        capacity=_capacity(lun),
        read_only=bool(specific & DeviceSpecific.WP),
        fua=bool(specific & DeviceSpecific.DPOFUA),
        write_cache=write_cache,
        removable=bool(inquiry.rmb),
    )


def look_at_all(path: str) -> Iterator[Unit]:
    """Ask every logical unit behind a path: those of REPORT LUNS, over blkif every disk."""
    with connect(path) as hba:
        yield from _units(hba)
        disks = _disks(hba) if unit_path(path, 0)[0] != path else []
    for number in disks:
        with connect(unit_path(path, number)[0]) as hba:
            for unit in _units(hba):
                yield replace(unit, number=number)


def supports(lun: Lun, command: str) -> bool:
    """Ask REPORT SUPPORTED OPERATION CODES for a command; False if that itself is not known."""
    row = cdbs.named(command)
    cdb = cdbs.build(
        "REPORT SUPPORTED OPERATION CODES",
        reporting_options=_ONE_OPERATION_CODE,
        requested_operation_code=row.opcode,
        allocation_length=_ONE_COMMAND_BYTES,
    )
    try:
        answer = parse_one_command(lun.command(cdb, data_in=_ONE_COMMAND_BYTES))
    except (ScsiError, WireError):
        return False
    return bool(answer.support & _SUPPORT == SUPPORTED)


def longest_transfer(hba: Hba, lun: Lun) -> int:
    """Return how many bytes one READ or WRITE may move over this path: whole blocks.

    At most 1 MiB: sixteen of them, of any sizes, always fit a frontend's memory.
    """
    block = lun.capacity().block_length
    longest = _MAX_PIECE_BYTES
    segments = hba.parameters().get("segments")
    if isinstance(segments, int):
        longest = min(longest, segments * PAGE_SIZE)
    with suppress(ScsiError, WireError):
        limit = parse_vpd(lun.vpd(VpdPage.BLOCK_LIMITS)).maximum_transfer_length
        longest = min(longest, limit * block or longest)
    return max(longest // block, 1) * block


def _disks(hba: Hba) -> list[int]:
    """Return the numbers of the disks that a domain has been given, but for the first."""
    if not isinstance(hba.initiator, BlkifInitiator):
        return []
    guest = hba.initiator.guest
    handles = guest.store.directory(f"/local/domain/{guest.domain}/device/vbd")
    numbers = sorted((int(handle) - FIRST_VBD) // VBD_STEP for handle in handles)
    return [number for number in numbers if number]


def _units(hba: Hba) -> Iterator[Unit]:
    for address in hba.report_luns():
        number = logical_unit_number(address)
        unit = look(hba, number) if number is not None else None
        if unit is not None:
            yield unit


def _capacity(lun: Lun) -> Capacity | None:
    try:
        return lun.capacity()
    except ScsiError as error:
        sense = error.reply.decoded_sense
        if sense is not None and sense.key in (SenseKey.NOT_READY, SenseKey.ILLEGAL_REQUEST):
            return None
        raise


def _serial(lun: Lun) -> str:
    try:
        return text(parse_vpd(lun.vpd(VpdPage.UNIT_SERIAL_NUMBER)).serial_number)
    except (ScsiError, WireError):
        return ""


def _mode(lun: Lun) -> tuple[int, bool]:
    """Return DEVICE-SPECIFIC PARAMETER and WCE; zeros from a unit without MODE SENSE."""
    cdb = cdbs.build(
        "MODE SENSE(6)", dbd=1, page_code=ModePage.CACHING, allocation_length=_MODE_BYTES
    )
    try:
        data = lun.command(cdb, data_in=_MODE_BYTES)
        parameters = parse_parameters(data, ten=False)
        caching = [page.fields() for page in parameters.pages if page.code == ModePage.CACHING]
    except ScsiError:
        return 0, False
    return parameters.device_specific, any(fields.wce for fields in caching)
