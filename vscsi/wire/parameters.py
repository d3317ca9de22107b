# SPDX-License-Identifier: MIT
"""Parameter data of other commands (SPC-5, SBC-4): capacities, LUNs, UNMAP, supported opcodes."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from construct import (
    BitStruct,
    Bytes,
    Container,
    Default,
    GreedyRange,
    If,
    Int32ub,
    Prefixed,
    Struct,
    this,
)

from vscsi.wire.errors import WireError
from vscsi.wire.formats import U8, U16B, U32B, U64B, Packed, bits, build, parse, raw

ReadCapacity10 = Packed("last_lba" / U32B, "block_length" / U32B)
"""SBC-4 READ CAPACITY (10) parameter data; last_lba FFFFFFFFh: ask READ CAPACITY(16)."""

ReadCapacity16 = BitStruct(
    "last_lba" / bits(64),
    "block_length" / bits(32),
    "reserved1" / bits(2),
    "rc_basis" / bits(2),
    "p_type" / bits(3),
    "prot_en" / bits(1),
    "p_i_exponent" / bits(4),
    "lbppbe" / bits(4),
    "lbpme" / bits(1),
    "lbprz" / bits(1),
    "lowest_aligned_lba" / bits(14),
    "reserved2" / bits(128),
)
"""SBC-4 READ CAPACITY (16) parameter data, 32 bytes."""

_LunList = Struct("length" / U32B, "reserved" / raw(4), "luns" / GreedyRange(Bytes(8)))

UnmapHeader = Packed(
    "data_length" / U16B, "block_descriptor_data_length" / U16B, "reserved" / raw(4)
)
UnmapDescriptor = Packed("lba" / U64B, "blocks" / U32B, "reserved" / raw(4))
_UnmapDescriptors = GreedyRange(UnmapDescriptor)

SERVACTV = 0x01
CTDP = 0x02
"""Flags of a command descriptor."""
ONE_COMMAND_CTDP = 0x80
"""In one-command parameter data, beside SUPPORT."""

CommandTimeouts = Packed(
    "length" / Default(U16B, 10),
    "reserved" / raw(1),
    "command_specific" / U8,
    "nominal_timeout_s" / U32B,
    "recommended_timeout_s" / U32B,
)

CommandDescriptor = Struct(
    "opcode" / U8,
    "reserved1" / raw(1),
    "service_action" / U16B,
    "reserved2" / raw(1),
    "flags" / U8,
    "cdb_length" / U16B,
    "timeouts" / If(this.flags & CTDP, Default(CommandTimeouts, {})),
)

AllCommands = Prefixed(Int32ub, GreedyRange(CommandDescriptor))
"""SPC-5 all_commands parameter data of REPORT SUPPORTED OPERATION CODES."""

OneCommand = Struct(
    "reserved" / raw(1),
    "support" / U8,
    "cdb_size" / Default(U16B, lambda c: len(c.get("usage") or b"")),
    "usage" / Default(Bytes(this.cdb_size), b""),
    "timeouts" / If(this.support & ONE_COMMAND_CTDP, Default(CommandTimeouts, {})),
)
"""SPC-5 one_command parameter data of REPORT SUPPORTED OPERATION CODES."""

NOT_SUPPORTED, SUPPORTED, VENDOR_SPECIFIC = 1, 3, 5
"""SUPPORT in one-command parameter data: not, as the standard says, in a vendor's way."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """What an initiator needs of READ CAPACITY data."""

    blocks: int
    block_length: int
    """Bytes."""
    physical_block_exponent: int = 0
    provisioning_management: bool = False
    """LBPME: UNMAP and the like are there."""
    reads_zeros: bool = False
    """LBPRZ: unmapped blocks read as zeros."""


def parse_capacity_10(data: bytes) -> Capacity:
    """Parse READ CAPACITY(10) data; raise WireError unless it is 8 bytes with a block length."""
    return _capacity(parse(ReadCapacity10, data, "READ CAPACITY(10) data"))


def parse_capacity_16(data: bytes) -> Capacity:
    """Parse READ CAPACITY(16) data, of which at least 12 bytes are there; WireError otherwise."""
    if len(data) < 12:
        raise WireError(f"READ CAPACITY(16) data of {len(data)} bytes")
    size = ReadCapacity16.sizeof()
    return _capacity(parse(ReadCapacity16, data[:size].ljust(size, b"\0"), "READ CAPACITY(16)"))


def _capacity(data: Container) -> Capacity:
    if data.block_length == 0:
        raise WireError("READ CAPACITY data: block length 0")
    return Capacity(
        data.last_lba + 1,
        data.block_length,
        data.get("lbppbe", 0),
        bool(data.get("lbpme", 0)),
        bool(data.get("lbprz", 0)),
    )


def build_report_luns(luns: Iterable[bytes]) -> bytes:
    """Build REPORT LUNS data from LUNs of 8 bytes."""
    inventory = list(luns)
    return build(_LunList, {"length": 8 * len(inventory), "luns": inventory})


def parse_report_luns(data: bytes) -> list[bytes]:
    """Return the whole LUNs in REPORT LUNS data that may be cut; WireError without its header."""
    length = int.from_bytes(data[:4], "big")
    end = 8 + min(length, max(len(data) - 8, 0)) // 8 * 8
    return list(parse(_LunList, data[:end], "REPORT LUNS data").luns)


def build_unmap(ranges: Iterable[tuple[int, int]]) -> bytes:
    """Build an UNMAP parameter list from (LBA, blocks); ValueError if it gets too long."""
    table = build(_UnmapDescriptors, [{"lba": lba, "blocks": blocks} for lba, blocks in ranges])
    lengths = {"data_length": 6 + len(table), "block_descriptor_data_length": len(table)}
    return build(UnmapHeader, lengths) + table


def parse_unmap(data: bytes) -> list[tuple[int, int]]:
    """Return (LBA, blocks) of each whole descriptor in an UNMAP parameter list.

    Bytes behind the last whole descriptor are ignored (SBC-4 UNMAP parameter list). Raises
    WireError if the header is cut or claims descriptors beyond the data.
    """
    size = UnmapHeader.sizeof()
    header = parse(UnmapHeader, data[:size], "UNMAP parameter list")
    length = header.block_descriptor_data_length
    if length > len(data) - size:
        raise WireError(f"UNMAP parameter list: {length} bytes of descriptors in {len(data)}")
    end = size + length // UnmapDescriptor.sizeof() * UnmapDescriptor.sizeof()
    table = parse(_UnmapDescriptors, data[size:end], "UNMAP block descriptors")
    return [(entry.lba, entry.blocks) for entry in table]


def build_all_commands(descriptors: Iterable[Mapping[str, int]]) -> bytes:
    """Build all_commands data of REPORT SUPPORTED OPERATION CODES from CommandDescriptor fields."""
    return build(AllCommands, list(descriptors))


def parse_one_command(data: bytes) -> Container:
    """Parse one_command data of REPORT SUPPORTED OPERATION CODES; WireError if they are cut."""
    return parse(OneCommand, data, "supported operation code")


def parse_all_commands(data: bytes) -> list[Container]:
    """Return the CommandDescriptors in all_commands data; WireError if they are cut."""
    return list(parse(AllCommands, data, "supported operation codes"))
