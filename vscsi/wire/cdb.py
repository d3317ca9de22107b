# SPDX-License-Identifier: MIT
"""CDBs through the table of commands: lengths, decoding, building and one line for humans."""

from dataclasses import dataclass

from vscsi.wire.errors import WireError
from vscsi.wire.opcodes import (
    COMMANDS,
    GROUP_NAMES,
    NACA,
    VARIABLE_LENGTH,
    Command,
    DeviceType,
    service_action_field,
)

_DISK = DeviceType.DISK

# A device type's own rows come first; what it lacks is looked for among the others' (a CD-ROM's
# READ(10), or a tape's command in a capture that does not know what it was sent to).
_BY_CODE: dict[DeviceType, dict[tuple[int, int | None], Command]] = {}
_BY_NAME: dict[DeviceType, dict[str, Command]] = {}
for _kind in COMMANDS:
    for _rows in (COMMANDS[_kind], *COMMANDS.values()):
        for _command in _rows:
            _code = _command.opcode, _command.service_action
            _BY_CODE.setdefault(_kind, {}).setdefault(_code, _command)
            _BY_NAME.setdefault(_kind, {}).setdefault(_command.name, _command)

_SHORT = {"allocation_length": "alloc", "parameter_list_length": "list", "page_code": "page"}
_ALWAYS = ("lba", "blocks", "allocation_length", "parameter_list_length")


def cdb_length(cdb: bytes) -> int:
    """Return a CDB's length in bytes from its opcode's group (SPC-5 4.2.5.1).

    Raises WireError if the group does not define one (60h to 7Eh, C0h to FFh), and if a
    variable length CDB ends before its length or is over 260 bytes.
    """
    if not cdb:
        raise WireError("CDB: empty")
    opcode = cdb[0]
    if opcode < 0x20:
        return 6
    if opcode < 0x60:
        return 10
    if opcode == VARIABLE_LENGTH:
        if len(cdb) < 8 or cdb[7] % 4:
            raise WireError("CDB: variable length without a proper length")
        return 8 + cdb[7]
    if 0x80 <= opcode < 0xA0:
        return 16
    if 0xA0 <= opcode < 0xC0:
        return 12
    raise WireError(f"CDB: opcode 0x{opcode:02x} has no defined length")


def service_action_of(cdb: bytes) -> int | None:
    """Return the service action, or None if the opcode has none or the CDB ends before it."""
    if not cdb or cdb[0] not in GROUP_NAMES:
        return None
    field = service_action_field(cdb[0])
    return field.get(cdb) if len(cdb) >= field.offset + field.size else None


def lookup(cdb: bytes, device_type: DeviceType = _DISK) -> Command | None:
    """Return the row of the command that a CDB is, or None. Looks at no other field."""
    rows = _BY_CODE.get(device_type, _BY_CODE[_DISK])
    return rows.get((cdb[0], service_action_of(cdb))) if cdb else None


def named(name: str, device_type: DeviceType = _DISK) -> Command:
    """Return the row of a command by its name, as in "READ(10)"; raise ValueError if none."""
    try:
        return _BY_NAME.get(device_type, _BY_NAME[_DISK])[name]
    except KeyError:
        raise ValueError(f"no command {name!r}") from None


@dataclass(frozen=True, slots=True)
class Cdb:
    """A CDB of a known command. Fields that the command does not have read as 0."""

    row: Command
    data: bytes
    """Exactly row.length bytes."""

    def field(self, name: str) -> int:
        """Return a field's value by its name in the table, 0 if the command has no such field."""
        field = self.row.fields.get(name)
        return field.get(self.data) if field else 0

    @property
    def lba(self) -> int:
        """LOGICAL BLOCK ADDRESS."""
        return self.field("lba")

    @property
    def blocks(self) -> int:
        """TRANSFER LENGTH, or the like, in blocks; in READ(6) and WRITE(6) 0 stands for 256."""
        blocks = self.field("blocks")
        return (
            256 if blocks == 0 and self.row.length == 6 and "blocks" in self.row.fields else blocks
        )

    @property
    def allocation_length(self) -> int:
        """ALLOCATION LENGTH in bytes."""
        return self.field("allocation_length")

    @property
    def parameter_list_length(self) -> int:
        """PARAMETER LIST LENGTH in bytes."""
        return self.field("parameter_list_length")

    @property
    def service_action(self) -> int | None:
        """SERVICE ACTION, None for an opcode without."""
        return self.row.service_action

    @property
    def protect(self) -> int:
        """RDPROTECT, WRPROTECT, VRPROTECT or ORPROTECT."""
        return self.field("protect")

    @property
    def dpo(self) -> bool:
        """Disable page out."""
        return bool(self.field("dpo"))

    @property
    def fua(self) -> bool:
        """Force unit access."""
        return bool(self.field("fua"))

    @property
    def group(self) -> int:
        """GROUP NUMBER."""
        return self.field("group")

    @property
    def control(self) -> int:
        """The CONTROL byte (SAM-6 5.2)."""
        return self.data[self.row.control_offset]

    @property
    def naca(self) -> bool:
        """NACA in the CONTROL byte."""
        return bool(self.control & NACA)


def decode(cdb: bytes, device_type: DeviceType = _DISK) -> Cdb:
    """Decode a CDB; bytes behind its command's length are dropped (SRP's field has always 16).

    Raises WireError if the command is not in the table or the CDB is shorter than it is.
    """
    row = lookup(cdb, device_type)
    if row is None:
        raise WireError(f"CDB: unknown command {cdb[:16].hex()}")
    if len(cdb) < row.length:
        raise WireError(f"CDB: {row.name} in {len(cdb)} bytes")
    if row.opcode == VARIABLE_LENGTH and cdb_length(cdb) != row.length:
        raise WireError(f"CDB: {row.name} with a length of {cdb_length(cdb)}")
    return Cdb(row, cdb[: row.length])


def build(command: str | Command, /, *, control: int = 0, **fields: int) -> bytes:
    """Build a CDB of a command (a row, or a disk command's name) from its fields' values.

    `blocks` is 1 to 256 for READ(6) and WRITE(6). Raises ValueError for an unknown name, a field
    that the command does not have, or a value that does not fit.
    """
    row = named(command) if isinstance(command, str) else command
    cdb = bytearray(row.length)
    cdb[0] = row.opcode
    if row.opcode == VARIABLE_LENGTH:
        cdb[7] = row.length - 8
    if row.service_action is not None:
        service_action_field(row.opcode).put(cdb, row.service_action)
    if row.length == 6 and "blocks" in fields:
        if not 1 <= fields["blocks"] <= 256:
            raise ValueError(f"{row.name}: {fields['blocks']} blocks")
        fields["blocks"] %= 256
    for name, value in fields.items():
        if name not in row.fields:
            raise ValueError(f"{row.name} has no field {name!r}")
        row.fields[name].put(cdb, value)
    cdb[row.control_offset] = control
    return bytes(cdb)


def describe(cdb: bytes, device_type: DeviceType = _DISK) -> str:
    """Return a CDB as one line for humans, as in "READ(10) lba 2048 blocks 8 FUA"; never raises."""
    try:
        command = decode(cdb, device_type)
    except WireError:
        return _describe_unknown(cdb, device_type)
    words, flags = [command.row.name], []
    for name, field in command.row.fields.items():
        value = command.blocks if name == "blocks" else command.field(name)
        if name in _ALWAYS:
            words.append(f"{_SHORT.get(name, name)} {value}")
        elif value and field.mask.bit_count() == 1:
            flags.append(name.upper())
        elif value:
            flags.append(f"{_SHORT.get(name, name)} 0x{value:02x}")
    words += flags
    if command.control:
        words.append(f"control 0x{command.control:02x}")
    return " ".join(words)


def _describe_unknown(cdb: bytes, device_type: DeviceType) -> str:
    if not cdb:
        return "no CDB"
    row = lookup(cdb, device_type)
    name = row.name if row else GROUP_NAMES.get(cdb[0], f"opcode 0x{cdb[0]:02x}")
    return f"{name} [{cdb[:32].hex()}]"
