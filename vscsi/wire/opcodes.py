# SPDX-License-Identifier: MIT
"""The table of SCSI commands: one row a command, with where each of its fields is.

Dispatch, REPORT SUPPORTED OPERATION CODES, captures and frontends all use these rows. `standard`
is the one with a clause that bears the command's name; obsolete commands cite the last that had
them. The same opcode may mean another command to another device type.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import Enum, IntEnum


class DeviceType(IntEnum):
    """PERIPHERAL DEVICE TYPE of INQUIRY data (SPC-5 6.7)."""

    DISK = 0x00
    TAPE = 0x01
    CDROM = 0x05
    CHANGER = 0x08
    ENCLOSURE = 0x0D
    RBC = 0x0E
    WELL_KNOWN = 0x1E
    NONE = 0x1F


class Direction(Enum):
    """Where a command's data goes, if it has any, as the initiator sees it."""

    NONE = "none"
    OUT = "out"
    IN = "in"


@dataclass(frozen=True, slots=True)
class Field:
    """A big-endian field of a CDB: `mask` selects its bits from `size` bytes at `offset`."""

    offset: int
    size: int
    mask: int

    @property
    def shift(self) -> int:
        """Bits below the field's least significant one."""
        return (self.mask & -self.mask).bit_length() - 1

    def get(self, cdb: bytes) -> int:
        """Return the field's value in a CDB that is long enough."""
        word = int.from_bytes(cdb[self.offset : self.offset + self.size], "big")
        return (word & self.mask) >> self.shift

    def put(self, cdb: bytearray, value: int) -> None:
        """Set the field; raise ValueError if the value does not fit."""
        if value < 0 or value << self.shift & ~self.mask:
            raise ValueError(f"{value} does not fit a field of {self.mask.bit_count()} bits")
        span = slice(self.offset, self.offset + self.size)
        word = int.from_bytes(cdb[span], "big") & ~self.mask | value << self.shift
        cdb[span] = word.to_bytes(self.size, "big")


VARIABLE_LENGTH = 0x7F
NACA = 0x04
"""In the CONTROL byte (SAM-6 5.2)."""


@dataclass(frozen=True, eq=False, slots=True)
class Command:
    """A row: one command, identified by opcode and, where the opcode has them, service action."""

    opcode: int
    service_action: int | None
    name: str
    length: int
    """Bytes of the CDB."""
    direction: Direction
    standard: str
    fields: Mapping[str, Field]

    @property
    def control_offset(self) -> int:
        """Where the CONTROL byte is: last, or second in a variable length CDB."""
        return 1 if self.opcode == VARIABLE_LENGTH else self.length - 1

    def usage_map(self, ignored: Collection[str] = ()) -> bytes:
        """Return CDB USAGE DATA (SPC-5 REPORT SUPPORTED OPERATION CODES, one_command data).

        The opcode and the service action are themselves, of other fields the evaluated bits are 1.

        `ignored` names fields that the device server does not evaluate.
        """
        usage = bytearray(self.length)
        usage[0] = self.opcode
        for name, field in self.fields.items():
            if name not in ignored:
                field.put(usage, field.mask >> field.shift)
        if self.service_action is not None:
            service_action_field(self.opcode).put(usage, self.service_action)
        if self.opcode == VARIABLE_LENGTH:
            usage[7] = self.length - 8
        usage[self.control_offset] |= NACA
        return bytes(usage)


def service_action_field(opcode: int) -> Field:
    """Return where an opcode that has service actions keeps them (SPC-5 4.2.5)."""
    return Field(8, 2, 0xFFFF) if opcode == VARIABLE_LENGTH else Field(1, 1, 0x1F)


def _bytes(offset: int, size: int = 1) -> Field:
    return Field(offset, size, (1 << 8 * size) - 1)


def _bits(offset: int, mask: int) -> Field:
    return Field(offset, 1, mask)


_NONE, _OUT, _IN = Direction.NONE, Direction.OUT, Direction.IN


def _row(
    opcode: int | tuple[int, int],
    name: str,
    length: int,
    direction: Direction,
    standard: str,
    **fields: Field,
) -> Command:
    code, action = (opcode, None) if isinstance(opcode, int) else opcode
    return Command(code, action, name, length, direction, standard, fields)


# Fields that many rows share.
_IMMED_0 = {"immed": _bits(1, 0x01)}
_IMMED_1 = {"immed": _bits(1, 0x02)}
_PROTECT = {"protect": _bits(1, 0xE0)}
_ACCESS = {**_PROTECT, "dpo": _bits(1, 0x10), "fua": _bits(1, 0x08)}
_CHECK = {**_PROTECT, "dpo": _bits(1, 0x10), "bytchk": _bits(1, 0x06)}
_ANCHOR_UNMAP = {"anchor": _bits(1, 0x10), "unmap": _bits(1, 0x08)}
_DEFECT_LISTS = {
    "req_plist": _bits(1, 0x10),
    "req_glist": _bits(1, 0x08),
    "defect_list_format": _bits(1, 0x07),
}
_LBA_6 = {"lba": Field(1, 3, 0x1FFFFF)}
_LBA_10 = {"lba": _bytes(2, 4)}
_LBA_16 = {"lba": _bytes(2, 8)}
_GROUP_10 = {"group": _bits(6, 0x3F)}
_GROUP_12 = {"group": _bits(10, 0x3F)}
_GROUP_16 = {"group": _bits(14, 0x3F)}
_RANGE_6 = {**_LBA_6, "blocks": _bytes(4)}
_RANGE_10 = {**_LBA_10, **_GROUP_10, "blocks": _bytes(7, 2)}
_RANGE_12 = {**_LBA_10, "blocks": _bytes(6, 4), **_GROUP_12}
_RANGE_16 = {**_LBA_16, "blocks": _bytes(10, 4), **_GROUP_16}
_RANGE_32 = {
    "group": _bits(6, 0x3F),
    "lba": _bytes(12, 8),
    "expected_reference_tag": _bytes(20, 4),
    "expected_application_tag": _bytes(24, 2),
    "application_tag_mask": _bytes(26, 2),
    "blocks": _bytes(28, 4),
}
_PROTECT_32 = {"protect": _bits(10, 0xE0)}
_ACCESS_32 = {**_PROTECT_32, "dpo": _bits(10, 0x10), "fua": _bits(10, 0x08), **_RANGE_32}
_CHECK_32 = {**_PROTECT_32, "dpo": _bits(10, 0x10), "bytchk": _bits(10, 0x06), **_RANGE_32}
_ALLOC_4 = {"allocation_length": _bytes(4)}
_ALLOC_3 = {"allocation_length": _bytes(3, 2)}
_ALLOC_6 = {"allocation_length": _bytes(6, 4)}
_ALLOC_7 = {"allocation_length": _bytes(7, 2)}
_ALLOC_8 = {"allocation_length": _bytes(8, 2)}
_ALLOC_10 = {"allocation_length": _bytes(10, 4)}
_LIST_4 = {"parameter_list_length": _bytes(4)}
_LIST_7 = {"parameter_list_length": _bytes(7, 2)}
_LIST_6 = {"parameter_list_length": _bytes(6, 4)}
_LIST_10 = {"parameter_list_length": _bytes(10, 4)}
_PAGE = {"pc": _bits(2, 0xC0), "page_code": _bits(2, 0x3F), "subpage_code": _bytes(3)}
_MODE_SELECT = {"pf": _bits(1, 0x10), "rtd": _bits(1, 0x02), "sp": _bits(1, 0x01)}
_BUFFER = {"mode": _bits(1, 0x1F), "buffer_id": _bytes(2), "buffer_offset": _bytes(3, 3)}
_SECURITY = {
    "security_protocol": _bytes(1),
    "security_protocol_specific": _bytes(2, 2),
    "inc_512": _bits(4, 0x80),
}
_PR_OUT = {
    "scope": _bits(2, 0xF0),
    "type": _bits(2, 0x0F),
    "parameter_list_length": _bytes(5, 4),
}
_TOKEN = {"list_identifier": _bytes(6, 4), **_LIST_10, **_GROUP_16}
_SANITIZE = {"immed": _bits(1, 0x80), "ause": _bits(1, 0x20), **_LIST_7}
_COPY_STATUS = {"list_identifier": _bytes(2), **_ALLOC_10}

# Commands of every device type.
_PRIMARY = (
    _row(0x00, "TEST UNIT READY", 6, _NONE, "SPC-5"),
    _row(0x03, "REQUEST SENSE", 6, _IN, "SPC-5", desc=_bits(1, 0x01), **_ALLOC_4),
    _row(0x12, "INQUIRY", 6, _IN, "SPC-5", evpd=_bits(1, 0x01), page_code=_bytes(2), **_ALLOC_3),
    _row(0x15, "MODE SELECT(6)", 6, _OUT, "SPC-5", **_MODE_SELECT, **_LIST_4),
    _row(0x16, "RESERVE(6)", 6, _NONE, "SPC-2"),
    _row(0x17, "RELEASE(6)", 6, _NONE, "SPC-2"),
    _row(0x1A, "MODE SENSE(6)", 6, _IN, "SPC-5", dbd=_bits(1, 0x08), **_PAGE, **_ALLOC_4),
    _row(
        0x1C,
        "RECEIVE DIAGNOSTIC RESULTS",
        6,
        _IN,
        "SPC-5",
        pcv=_bits(1, 0x01),
        page_code=_bytes(2),
        **_ALLOC_3,
    ),
    _row(
        0x1D,
        "SEND DIAGNOSTIC",
        6,
        _OUT,
        "SPC-5",
        self_test_code=_bits(1, 0xE0),
        pf=_bits(1, 0x10),
        selftest=_bits(1, 0x04),
        devoffl=_bits(1, 0x02),
        unitoffl=_bits(1, 0x01),
        parameter_list_length=_bytes(3, 2),
    ),
    _row(0x1E, "PREVENT ALLOW MEDIUM REMOVAL", 6, _NONE, "SBC-4", prevent=_bits(4, 0x03)),
    _row(0x3B, "WRITE BUFFER", 10, _OUT, "SPC-5", **_BUFFER, parameter_list_length=_bytes(6, 3)),
    _row(0x3C, "READ BUFFER(10)", 10, _IN, "SPC-5", **_BUFFER, allocation_length=_bytes(6, 3)),
    _row(
        0x4C,
        "LOG SELECT",
        10,
        _OUT,
        "SPC-5",
        pcr=_bits(1, 0x02),
        sp=_bits(1, 0x01),
        **_PAGE,
        **_LIST_7,
    ),
    _row(
        0x4D,
        "LOG SENSE",
        10,
        _IN,
        "SPC-5",
        sp=_bits(1, 0x01),
        **_PAGE,
        parameter_pointer=_bytes(5, 2),
        **_ALLOC_7,
    ),
    _row(0x55, "MODE SELECT(10)", 10, _OUT, "SPC-5", **_MODE_SELECT, **_LIST_7),
    _row(0x56, "RESERVE(10)", 10, _OUT, "SPC-2", **_LIST_7),
    _row(0x57, "RELEASE(10)", 10, _OUT, "SPC-2", **_LIST_7),
    _row(
        0x5A,
        "MODE SENSE(10)",
        10,
        _IN,
        "SPC-5",
        llbaa=_bits(1, 0x10),
        dbd=_bits(1, 0x08),
        **_PAGE,
        **_ALLOC_7,
    ),
    _row((0x5E, 0x00), "PERSISTENT RESERVE IN READ KEYS", 10, _IN, "SPC-5", **_ALLOC_7),
    _row((0x5E, 0x01), "PERSISTENT RESERVE IN READ RESERVATION", 10, _IN, "SPC-5", **_ALLOC_7),
    _row((0x5E, 0x02), "PERSISTENT RESERVE IN REPORT CAPABILITIES", 10, _IN, "SPC-5", **_ALLOC_7),
    _row((0x5E, 0x03), "PERSISTENT RESERVE IN READ FULL STATUS", 10, _IN, "SPC-5", **_ALLOC_7),
    _row((0x5F, 0x00), "PERSISTENT RESERVE OUT REGISTER", 10, _OUT, "SPC-5", **_PR_OUT),
    _row((0x5F, 0x01), "PERSISTENT RESERVE OUT RESERVE", 10, _OUT, "SPC-5", **_PR_OUT),
    _row((0x5F, 0x02), "PERSISTENT RESERVE OUT RELEASE", 10, _OUT, "SPC-5", **_PR_OUT),
    _row((0x5F, 0x03), "PERSISTENT RESERVE OUT CLEAR", 10, _OUT, "SPC-5", **_PR_OUT),
    _row((0x5F, 0x04), "PERSISTENT RESERVE OUT PREEMPT", 10, _OUT, "SPC-5", **_PR_OUT),
    _row((0x5F, 0x05), "PERSISTENT RESERVE OUT PREEMPT AND ABORT", 10, _OUT, "SPC-5", **_PR_OUT),
    _row(
        (0x5F, 0x06),
        "PERSISTENT RESERVE OUT REGISTER AND IGNORE EXISTING KEY",
        10,
        _OUT,
        "SPC-5",
        **_PR_OUT,
    ),
    _row((0x5F, 0x07), "PERSISTENT RESERVE OUT REGISTER AND MOVE", 10, _OUT, "SPC-5", **_PR_OUT),
    _row(
        (0x5F, 0x08),
        "PERSISTENT RESERVE OUT REPLACE LOST RESERVATION",
        10,
        _OUT,
        "SPC-5",
        **_PR_OUT,
    ),
    _row((0x83, 0x00), "EXTENDED COPY(LID1)", 16, _OUT, "SPC-5", **_LIST_10),
    _row((0x83, 0x01), "EXTENDED COPY(LID4)", 16, _OUT, "SPC-5", **_LIST_10),
    _row((0x84, 0x00), "RECEIVE COPY STATUS(LID1)", 16, _IN, "SPC-4", **_COPY_STATUS),
    _row((0x84, 0x01), "RECEIVE COPY DATA(LID1)", 16, _IN, "SPC-4", **_COPY_STATUS),
    _row((0x84, 0x03), "RECEIVE COPY OPERATING PARAMETERS", 16, _IN, "SPC-4", **_ALLOC_10),
    _row((0x84, 0x04), "RECEIVE COPY FAILURE DETAILS(LID1)", 16, _IN, "SPC-4", **_COPY_STATUS),
    _row(0xA0, "REPORT LUNS", 12, _IN, "SPC-5", select_report=_bytes(2), **_ALLOC_6),
    _row(0xA2, "SECURITY PROTOCOL IN", 12, _IN, "SPC-5", **_SECURITY, **_ALLOC_6),
    _row(
        (0xA3, 0x0A),
        "REPORT TARGET PORT GROUPS",
        12,
        _IN,
        "SPC-5",
        parameter_data_format=_bits(1, 0xE0),
        **_ALLOC_6,
    ),
    _row(
        (0xA3, 0x0C),
        "REPORT SUPPORTED OPERATION CODES",
        12,
        _IN,
        "SPC-5",
        rctd=_bits(2, 0x80),
        reporting_options=_bits(2, 0x07),
        requested_operation_code=_bytes(3),
        requested_service_action=_bytes(4, 2),
        **_ALLOC_6,
    ),
    _row(
        (0xA3, 0x0D),
        "REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS",
        12,
        _IN,
        "SPC-5",
        repd=_bits(2, 0x80),
        **_ALLOC_6,
    ),
    _row((0xA3, 0x0F), "REPORT TIMESTAMP", 12, _IN, "SPC-5", **_ALLOC_6),
    _row((0xA4, 0x0A), "SET TARGET PORT GROUPS", 12, _OUT, "SPC-5", **_LIST_6),
    _row((0xA4, 0x0F), "SET TIMESTAMP", 12, _OUT, "SPC-5", **_LIST_6),
    _row(0xB5, "SECURITY PROTOCOL OUT", 12, _OUT, "SPC-5", **_SECURITY, **_LIST_6),
)

# Disks.
_BLOCK = (
    _row(0x01, "REZERO UNIT", 6, _NONE, "SCSI-2"),
    _row(
        0x04,
        "FORMAT UNIT",
        6,
        _OUT,
        "SBC-4",
        fmtpinfo=_bits(1, 0xC0),
        longlist=_bits(1, 0x20),
        fmtdata=_bits(1, 0x10),
        cmplst=_bits(1, 0x08),
        defect_list_format=_bits(1, 0x07),
    ),
    _row(
        0x07, "REASSIGN BLOCKS", 6, _OUT, "SBC-4", longlba=_bits(1, 0x02), longlist=_bits(1, 0x01)
    ),
    _row(0x08, "READ(6)", 6, _IN, "SBC-3", **_RANGE_6),
    _row(0x0A, "WRITE(6)", 6, _OUT, "SBC-3", **_RANGE_6),
    _row(0x0B, "SEEK(6)", 6, _NONE, "SCSI-2", **_LBA_6),
    _row(
        0x1B,
        "START STOP UNIT",
        6,
        _NONE,
        "SBC-4",
        **_IMMED_0,
        power_condition_modifier=_bits(3, 0x0F),
        power_condition=_bits(4, 0xF0),
        no_flush=_bits(4, 0x04),
        loej=_bits(4, 0x02),
        start=_bits(4, 0x01),
    ),
    _row(0x25, "READ CAPACITY(10)", 10, _IN, "SBC-4", **_LBA_10, pmi=_bits(8, 0x01)),
    _row(0x28, "READ(10)", 10, _IN, "SBC-4", **_ACCESS, **_RANGE_10),
    _row(0x2A, "WRITE(10)", 10, _OUT, "SBC-4", **_ACCESS, **_RANGE_10),
    _row(0x2B, "SEEK(10)", 10, _NONE, "SBC", **_LBA_10),
    _row(0x2E, "WRITE AND VERIFY(10)", 10, _OUT, "SBC-4", **_CHECK, **_RANGE_10),
    _row(0x2F, "VERIFY(10)", 10, _OUT, "SBC-4", **_CHECK, **_RANGE_10),
    _row(0x34, "PRE-FETCH(10)", 10, _NONE, "SBC-4", **_IMMED_1, **_RANGE_10),
    _row(0x35, "SYNCHRONIZE CACHE(10)", 10, _NONE, "SBC-4", **_IMMED_1, **_RANGE_10),
    _row(
        0x37,
        "READ DEFECT DATA(10)",
        10,
        _IN,
        "SBC-4",
        req_plist=_bits(2, 0x10),
        req_glist=_bits(2, 0x08),
        defect_list_format=_bits(2, 0x07),
        **_ALLOC_7,
    ),
    _row(0x41, "WRITE SAME(10)", 10, _OUT, "SBC-4", **_PROTECT, **_ANCHOR_UNMAP, **_RANGE_10),
    _row(0x42, "UNMAP", 10, _OUT, "SBC-4", anchor=_bits(1, 0x01), **_GROUP_10, **_LIST_7),
    _row((0x48, 0x01), "SANITIZE OVERWRITE", 10, _OUT, "SBC-4", **_SANITIZE),
    _row((0x48, 0x02), "SANITIZE BLOCK ERASE", 10, _NONE, "SBC-4", **_SANITIZE),
    _row((0x48, 0x03), "SANITIZE CRYPTOGRAPHIC ERASE", 10, _NONE, "SBC-4", **_SANITIZE),
    _row((0x48, 0x1F), "SANITIZE EXIT FAILURE MODE", 10, _NONE, "SBC-4", **_SANITIZE),
    _row((0x7F, 0x0009), "READ(32)", 32, _IN, "SBC-4", **_ACCESS_32),
    _row((0x7F, 0x000A), "VERIFY(32)", 32, _OUT, "SBC-4", **_CHECK_32),
    _row((0x7F, 0x000B), "WRITE(32)", 32, _OUT, "SBC-4", **_ACCESS_32),
    _row((0x7F, 0x000C), "WRITE AND VERIFY(32)", 32, _OUT, "SBC-4", **_CHECK_32),
    _row(
        (0x7F, 0x000D),
        "WRITE SAME(32)",
        32,
        _OUT,
        "SBC-4",
        **_PROTECT_32,
        anchor=_bits(10, 0x10),
        unmap=_bits(10, 0x08),
        ndob=_bits(10, 0x01),
        **_RANGE_32,
    ),
    _row((0x83, 0x10), "POPULATE TOKEN", 16, _OUT, "SBC-4", **_TOKEN),
    _row((0x83, 0x11), "WRITE USING TOKEN", 16, _OUT, "SBC-4", **_TOKEN),
    _row(
        0x85,
        "ATA PASS-THROUGH(16)",
        16,
        _IN,
        "SAT-4",
        ata_protocol=_bits(1, 0x1E),
        extend=_bits(1, 0x01),
        features=_bytes(3, 2),
        count=_bytes(5, 2),
        device=_bytes(13),
        command=_bytes(14),
    ),
    _row(0x88, "READ(16)", 16, _IN, "SBC-4", **_ACCESS, **_RANGE_16),
    _row(
        0x89,
        "COMPARE AND WRITE",
        16,
        _OUT,
        "SBC-4",
        **_ACCESS,
        **_LBA_16,
        blocks=_bytes(13),
        **_GROUP_16,
    ),
    _row(0x8A, "WRITE(16)", 16, _OUT, "SBC-4", **_ACCESS, **_RANGE_16),
    _row(0x8B, "ORWRITE(16)", 16, _OUT, "SBC-4", **_ACCESS, **_RANGE_16),
    _row(0x8E, "WRITE AND VERIFY(16)", 16, _OUT, "SBC-4", **_CHECK, **_RANGE_16),
    _row(0x8F, "VERIFY(16)", 16, _OUT, "SBC-4", **_CHECK, **_RANGE_16),
    _row(0x90, "PRE-FETCH(16)", 16, _NONE, "SBC-4", **_IMMED_1, **_RANGE_16),
    _row(0x91, "SYNCHRONIZE CACHE(16)", 16, _NONE, "SBC-4", **_IMMED_1, **_RANGE_16),
    _row(
        0x93,
        "WRITE SAME(16)",
        16,
        _OUT,
        "SBC-4",
        **_PROTECT,
        **_ANCHOR_UNMAP,
        ndob=_bits(1, 0x01),
        **_RANGE_16,
    ),
    _row(
        0x9C,
        "WRITE ATOMIC(16)",
        16,
        _OUT,
        "SBC-4",
        **_ACCESS,
        **_LBA_16,
        atomic_boundary=_bytes(10, 2),
        blocks=_bytes(12, 2),
        **_GROUP_16,
    ),
    _row(
        (0x9E, 0x10),
        "READ CAPACITY(16)",
        16,
        _IN,
        "SBC-4",
        **_LBA_16,
        **_ALLOC_10,
        pmi=_bits(14, 0x01),
    ),
    _row((0x9E, 0x12), "GET LBA STATUS", 16, _IN, "SBC-4", **_LBA_16, **_ALLOC_10),
    _row(
        (0x9E, 0x13),
        "REPORT REFERRALS",
        16,
        _IN,
        "SBC-4",
        **_LBA_16,
        **_ALLOC_10,
        one_seg=_bits(14, 0x01),
    ),
    _row(0xA8, "READ(12)", 12, _IN, "SBC-4", **_ACCESS, **_RANGE_12),
    _row(0xAA, "WRITE(12)", 12, _OUT, "SBC-4", **_ACCESS, **_RANGE_12),
    _row(0xAE, "WRITE AND VERIFY(12)", 12, _OUT, "SBC-4", **_CHECK, **_RANGE_12),
    _row(0xAF, "VERIFY(12)", 12, _OUT, "SBC-4", **_CHECK, **_RANGE_12),
    _row(0xB7, "READ DEFECT DATA(12)", 12, _IN, "SBC-4", **_DEFECT_LISTS, **_ALLOC_6),
)

# Tapes.
_STREAM = (
    _row(0x01, "REWIND", 6, _NONE, "SSC-4", **_IMMED_0),
    _row(0x05, "READ BLOCK LIMITS", 6, _IN, "SSC-4", mloi=_bits(1, 0x01)),
    _row(
        0x08,
        "READ(6)",
        6,
        _IN,
        "SSC-4",
        sili=_bits(1, 0x02),
        fixed=_bits(1, 0x01),
        transfer_length=_bytes(2, 3),
    ),
    _row(0x0A, "WRITE(6)", 6, _OUT, "SSC-4", fixed=_bits(1, 0x01), transfer_length=_bytes(2, 3)),
    _row(0x10, "WRITE FILEMARKS(6)", 6, _NONE, "SSC-4", **_IMMED_0, filemark_count=_bytes(2, 3)),
    _row(0x11, "SPACE(6)", 6, _NONE, "SSC-4", code=_bits(1, 0x0F), count=_bytes(2, 3)),
    _row(0x19, "ERASE(6)", 6, _NONE, "SSC-4", **_IMMED_1, long=_bits(1, 0x01)),
    _row(
        0x1B,
        "LOAD UNLOAD",
        6,
        _NONE,
        "SSC-4",
        **_IMMED_0,
        hold=_bits(4, 0x08),
        eot=_bits(4, 0x04),
        reten=_bits(4, 0x02),
        load=_bits(4, 0x01),
    ),
    _row(
        0x2B,
        "LOCATE(10)",
        10,
        _NONE,
        "SSC-4",
        bt=_bits(1, 0x04),
        cp=_bits(1, 0x02),
        **_IMMED_0,
        logical_object_identifier=_bytes(3, 4),
        partition=_bytes(8),
    ),
    _row(0x34, "READ POSITION", 10, _IN, "SSC-4", form=_bits(1, 0x1F), **_ALLOC_7),
    _row(
        0x44,
        "REPORT DENSITY SUPPORT",
        10,
        _IN,
        "SSC-4",
        medium_type=_bits(1, 0x02),
        media=_bits(1, 0x01),
        **_ALLOC_7,
    ),
)

# CD and DVD drives; what they share with disks is found there.
_MULTIMEDIA = (
    _row(
        0x42,
        "READ SUB-CHANNEL",
        10,
        _IN,
        "MMC-6",
        msf=_bits(1, 0x02),
        subq=_bits(2, 0x40),
        format=_bytes(3),
        track=_bytes(6),
        **_ALLOC_7,
    ),
    _row(
        0x43,
        "READ TOC/PMA/ATIP",
        10,
        _IN,
        "MMC-6",
        msf=_bits(1, 0x02),
        format=_bits(2, 0x0F),
        track=_bytes(6),
        **_ALLOC_7,
    ),
    _row(
        0x46,
        "GET CONFIGURATION",
        10,
        _IN,
        "MMC-6",
        rt=_bits(1, 0x03),
        starting_feature=_bytes(2, 2),
        **_ALLOC_7,
    ),
    _row(
        0x4A,
        "GET EVENT STATUS NOTIFICATION",
        10,
        _IN,
        "MMC-6",
        polled=_bits(1, 0x01),
        class_request=_bytes(4),
        **_ALLOC_7,
    ),
    _row(0x51, "READ DISC INFORMATION", 10, _IN, "MMC-6", data_type=_bits(1, 0x07), **_ALLOC_7),
    _row(
        0xAD,
        "READ DISC STRUCTURE",
        12,
        _IN,
        "MMC-6",
        media_type=_bits(1, 0x0F),
        address=_bytes(2, 4),
        layer=_bytes(6),
        format=_bytes(7),
        **_ALLOC_8,
        agid=_bits(10, 0xC0),
    ),
    _row(0xBD, "MECHANISM STATUS", 12, _IN, "MMC-6", **_ALLOC_8),
    _row(
        0xBE,
        "READ CD",
        12,
        _IN,
        "MMC-6",
        sector_type=_bits(1, 0x1C),
        dap=_bits(1, 0x02),
        **_LBA_10,
        blocks=_bytes(6, 3),
        main_channel=_bits(9, 0xF8),
        c2=_bits(9, 0x06),
        subchannel=_bits(10, 0x07),
    ),
)

COMMANDS: Mapping[DeviceType, tuple[Command, ...]] = {
    DeviceType.DISK: _PRIMARY + _BLOCK,
    DeviceType.TAPE: _PRIMARY + _STREAM,
    DeviceType.CDROM: _PRIMARY + _MULTIMEDIA,
}

GROUP_NAMES: Mapping[int, str] = {
    0x48: "SANITIZE",
    0x5E: "PERSISTENT RESERVE IN",
    0x5F: "PERSISTENT RESERVE OUT",
    0x7F: "VARIABLE LENGTH",
    0x83: "THIRD-PARTY COPY OUT",
    0x84: "THIRD-PARTY COPY IN",
    0x9D: "SERVICE ACTION BIDIRECTIONAL",
    0x9E: "SERVICE ACTION IN(16)",
    0xA3: "MAINTENANCE IN",
    0xA4: "MAINTENANCE OUT",
}
"""Opcodes whose command is named by a service action."""
