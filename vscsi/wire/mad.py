# SPDX-License-Identifier: MIT
"""CRQ elements and management datagrams (MADs) of IBM's VSCSI (PAPR), and two MADs of our own.

Big-endian, except for the grant references in a directory page, which are native to the guest's
memory: little-endian.
"""

from collections.abc import Sequence
from enum import IntEnum, IntFlag
from typing import Any

from construct import Array, Construct, Container, Default, GreedyBytes, Int32ub, Optional, Struct

from vscsi.wire.formats import U8, U16B, U32B, U32L, U64B, Packed, build, parse, raw


class CrqValid(IntEnum):
    """Byte 0 of a CRQ element."""

    FREE = 0x00
    COMMAND_RESPONSE = 0x80
    INITIALISATION = 0xC0
    TRANSPORT_EVENT = 0xFF


class CrqFormat(IntEnum):
    """Byte 1 of a CRQ element that is a command or response; beyond these, headers disagree."""

    SRP = 1
    MAD = 2
    OS400 = 3
    AIX = 4


class CrqInitialisation(IntEnum):
    """Byte 1 of an initialisation element."""

    INIT = 1
    INIT_COMPLETE = 2


class CrqTransportEvent(IntEnum):
    """Byte 1 of a transport event."""

    PARTNER_FAILED = 0x01
    PARTNER_DEREGISTERED = 0x02
    MIGRATED = 0x06
    PREPARE_FOR_SUSPEND = 0x09
    RESUMED = 0x0A


class CrqStatus(IntEnum):
    """Byte 3 of a CRQ element."""

    OK = 0x00
    NONRECOVERABLE_ERROR = 0x01
    VIOLATES_MAX_TRANSFER = 0x02
    PARTNER_PANIC = 0x03
    DEVICE_BUSY = 0x08
    ADAPTER_FAILURE = 0x10
    OK2 = 0x99


class MadType(IntEnum):
    """The first word of a MAD. The last two are ours ("VS" and a number)."""

    EMPTY_IU = 1
    ERROR_LOG = 2
    ADAPTER_INFO = 3
    HOST_CONFIG = 4
    CAPABILITIES = 5
    ENABLE_FAST_FAIL = 8
    REGISTER_REGION = 0x56530001
    UNREGISTER_REGION = 0x56530002


class MadStatus(IntEnum):
    """Status of an answered MAD."""

    SUCCESS = 0x00
    NOT_SUPPORTED = 0xF1
    FAILED = 0xF7


class OsType(IntEnum):
    """Who is at the other end (adapter info)."""

    OS400 = 1
    LINUX = 2
    AIX = 3
    OPEN_FIRMWARE = 4


class CapabilityType(IntEnum):
    """Capabilities in the capabilities buffer."""

    MIGRATION = 1
    RESERVATION = 2


class ServerSupport(IntEnum):
    """What the server says to a capability."""

    NO = 0
    YES = 1
    DATA = 2


class CapabilityFlags(IntFlag):
    """The first word of the capabilities buffer."""

    CLIENT_MIGRATED = 1
    CLIENT_RECONNECT = 2
    LIST_SUPPORTED = 4
    LIST_DATA = 8


class RegionFlags(IntFlag):
    """Flags of REGISTER_REGION."""

    READ_ONLY = 1


SRP_VERSION = b"16.a".ljust(8, b"\0")
MAD_VERSION = 1
REFERENCES_PER_PAGE = 1024
"""Grant references in a directory page of 4096 bytes."""

Crq = Packed(
    "valid" / U8,
    "format" / U8,
    "reserved" / raw(1),
    "status" / U8,
    "timeout_s" / U16B,
    "iu_length" / U16B,
    "iu_pointer" / U64B,
)

_HEADER = ("type" / Int32ub, "status" / U16B, "length" / U16B, "tag" / U64B)
_TRAILING = "trailing" / Default(GreedyBytes, b"")

MadHeader = Struct(*_HEADER, _TRAILING)
"""Any MAD: fast fail is just this, an unknown type has the rest in `trailing`."""

BufferMad = Struct(*_HEADER, "buffer" / U64B, _TRAILING)
"""Error log, adapter info, host config, capabilities: `length` bytes at address `buffer`."""

EmptyIu = Struct(*_HEADER, "buffer" / U64B, "port" / U32B, _TRAILING)
"""28 bytes; compilers with 8-byte alignment add 4 (`trailing`)."""

RegionMad = Struct(
    *_HEADER,
    "handle" / U32B,
    "flags" / U16B,
    "directory_count" / Default(U16B, lambda c: len(c.get("directory") or ())),
    "pages" / U32B,
    # Grant references of directory pages.
    "directory" / Default(Array(lambda c: c.directory_count, Int32ub), ()),
    _TRAILING,
)
"""REGISTER_REGION: call a run of granted pages by a handle; UNREGISTER_REGION: forget it."""

DirectoryPage = Array(REFERENCES_PER_PAGE, U32L)
"""Grant references of a region's pages, in order; those beyond its last page are 0."""

AdapterInfoData = Struct(
    "srp_version" / raw(8),
    "partition_name" / raw(96),
    "partition_number" / U32B,
    "mad_version" / U32B,
    "os_type" / U32B,
    # Bytes that one command may transfer, for each port.
    "port_max_transfer" / Default(Array(8, U32B), (0,) * 8),
)

_CAPABILITY = ("type" / U32B, "length" / U16B, "server_support" / U16B)
MigrationCapability = Packed(*_CAPABILITY, "ecl" / U32B)
ReserveCapability = Packed(*_CAPABILITY, "reserve_type" / U32B)

CapabilitiesData = Struct(
    "flags" / U32B,
    "name" / raw(32),
    "location" / raw(32),
    "migration" / Default(MigrationCapability, {}),
    # A buffer that ends here says nothing about reservations.
    "reserve" / Optional(ReserveCapability),
    _TRAILING,
)

FORMATS: dict[int, Construct] = {
    MadType.EMPTY_IU: EmptyIu,
    MadType.ERROR_LOG: BufferMad,
    MadType.ADAPTER_INFO: BufferMad,
    MadType.HOST_CONFIG: BufferMad,
    MadType.CAPABILITIES: BufferMad,
    MadType.REGISTER_REGION: RegionMad,
    MadType.UNREGISTER_REGION: RegionMad,
}


def parse_mad(data: bytes) -> Container:
    """Parse a MAD; one of unknown type has its header's fields only (answer NOT_SUPPORTED).

    Raises WireError if it ends before its fields do.
    """
    kind = int.from_bytes(data[:4], "big")
    return parse(FORMATS.get(kind, MadHeader), data, f"MAD 0x{kind:x}")


def build_mad(kind: int, /, **fields: Any) -> bytes:
    """Build a MAD; raise ValueError if a value does not fit its field."""
    return build(FORMATS.get(kind, MadHeader), {"type": kind, **fields})


def parse_directory(page: bytes) -> list[int]:
    """Return the grant references of one directory page (4096 bytes, a private copy)."""
    return list(parse(DirectoryPage, page, "directory page"))


def build_directory(references: Sequence[int]) -> list[bytes]:
    """Return the directory pages that list the pages of a region."""
    pages = []
    for start in range(0, len(references), REFERENCES_PER_PAGE):
        part = list(references[start : start + REFERENCES_PER_PAGE])
        pages.append(build(DirectoryPage, part + [0] * (REFERENCES_PER_PAGE - len(part))))
    return pages
