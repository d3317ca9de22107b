# SPDX-License-Identifier: MIT
"""Standard INQUIRY data and vital product data pages (SPC-5 6.7, 7.7; SBC-4 6.6). Big-endian."""

from enum import IntEnum
from typing import Any

from construct import (
    Array,
    BitStruct,
    Bytes,
    Bytewise,
    Construct,
    Container,
    Default,
    GreedyBytes,
    GreedyRange,
    Struct,
    this,
)

from vscsi.wire.errors import WireError
from vscsi.wire.formats import U8, bits, build, parse


class VpdPage(IntEnum):
    """VPD page codes."""

    SUPPORTED_PAGES = 0x00
    UNIT_SERIAL_NUMBER = 0x80
    DEVICE_IDENTIFICATION = 0x83
    EXTENDED_INQUIRY = 0x86
    MODE_PAGE_POLICY = 0x87
    ATA_INFORMATION = 0x89
    THIRD_PARTY_COPY = 0x8F
    BLOCK_LIMITS = 0xB0
    BLOCK_DEVICE_CHARACTERISTICS = 0xB1
    LOGICAL_BLOCK_PROVISIONING = 0xB2
    REFERRALS = 0xB3


class Version(IntEnum):
    """VERSION of standard INQUIRY data."""

    SPC_2 = 0x04
    SPC_3 = 0x05
    SPC_4 = 0x06
    SPC_5 = 0x07


class VersionDescriptor(IntEnum):
    """Standards that a logical unit may claim (SPC-5 6.7)."""

    SAM_4 = 0x0080
    SAM_5 = 0x00A0
    SPC_3 = 0x0300
    SPC_4 = 0x0460
    SPC_5 = 0x05C0
    SBC_3 = 0x04C0
    SBC_4 = 0x0600
    SRP = 0x0940
    SRP_R16A = 0x0955
    SRP_INCITS_365 = 0x095C


class CodeSet(IntEnum):
    """CODE SET of a designator."""

    BINARY = 1
    ASCII = 2
    UTF_8 = 3


class Association(IntEnum):
    """What a designator names."""

    LOGICAL_UNIT = 0
    TARGET_PORT = 1
    TARGET_DEVICE = 2


class DesignatorType(IntEnum):
    """DESIGNATOR TYPE."""

    VENDOR_SPECIFIC = 0
    T10_VENDOR_ID = 1
    EUI_64 = 2
    NAA = 3
    RELATIVE_TARGET_PORT = 4
    TARGET_PORT_GROUP = 5
    LOGICAL_UNIT_GROUP = 6
    MD5 = 7
    SCSI_NAME = 8


class ProtocolIdentifier(IntEnum):
    """PROTOCOL IDENTIFIER (SPC-5 7.6.1)."""

    FCP = 0x0
    SRP = 0x4
    ISCSI = 0x5
    SAS = 0x6
    NONE = 0xF


class ProvisioningType(IntEnum):
    """PROVISIONING TYPE of VPD page B2h."""

    FULL = 0
    RESOURCE = 1
    THIN = 2


_PERIPHERAL = ("peripheral_qualifier" / bits(3), "peripheral_device_type" / bits(5))


def _text(length: int) -> Construct:
    """ASCII inside a BitStruct, padded with spaces by whoever gives it."""
    return Default(Bytewise(Bytes(length)), b" " * length)


StandardInquiry = BitStruct(
    *_PERIPHERAL,
    "rmb" / bits(1),
    "lu_cong" / bits(1),
    "reserved1" / bits(6),
    "version" / bits(8),
    "reserved2" / bits(2),
    "normaca" / bits(1),
    "hisup" / bits(1),
    "response_data_format" / Default(bits(4), 2),
    "additional_length" / Default(bits(8), 91),
    "sccs" / bits(1),
    "obsolete1" / bits(1),
    "tpgs" / bits(2),
    "third_party_copy" / bits(1),
    "reserved3" / bits(2),
    "protect" / bits(1),
    "obsolete2" / bits(1),
    "encserv" / bits(1),
    "vs1" / bits(1),
    "multip" / bits(1),
    "obsolete3" / bits(4),
    "obsolete4" / bits(6),
    "cmdque" / bits(1),
    "vs2" / bits(1),
    "vendor" / _text(8),
    "product" / _text(16),
    "revision" / _text(4),
    "vendor_specific" / bits(160),
    "obsolete5" / bits(16),
    "version_descriptors" / Default(Array(8, bits(16)), (0,) * 8),
    "reserved4" / bits(176),
)
"""96 bytes."""

VpdHeader = BitStruct(*_PERIPHERAL, "page_code" / bits(8), "page_length" / bits(16))

Designator = BitStruct(
    "protocol_identifier" / bits(4),
    "code_set" / bits(4),
    "piv" / bits(1),
    "reserved1" / bits(1),
    "association" / bits(2),
    "designator_type" / bits(4),
    "reserved2" / bits(8),
    "length" / Default(bits(8), lambda c: len(c.designator)),
    "designator" / Bytewise(Bytes(this.length)),
)

# The body formats: what follows the header of a page. A page that an older device cut short
# reads as if zeros followed.
SupportedPages = Struct("page_codes" / GreedyRange(U8))
UnitSerialNumber = Struct("serial_number" / GreedyBytes)
DeviceIdentification = Struct("designators" / GreedyRange(Designator))

ExtendedInquiry = BitStruct(
    "activate_microcode" / bits(2),
    "spt" / bits(3),
    "grd_chk" / bits(1),
    "app_chk" / bits(1),
    "ref_chk" / bits(1),
    "reserved1" / bits(2),
    "uask_sup" / bits(1),
    "group_sup" / bits(1),
    "prior_sup" / bits(1),
    "headsup" / bits(1),
    "ordsup" / bits(1),
    "simpsup" / bits(1),
    "reserved2" / bits(4),
    "wu_sup" / bits(1),
    "crd_sup" / bits(1),
    "nv_sup" / bits(1),
    "v_sup" / bits(1),
    "reserved3" / bits(7),
    "luiclr" / bits(1),
    "rest" / bits(56 * 8),
)

BlockLimits = BitStruct(
    "reserved1" / bits(7),
    "wsnz" / bits(1),
    "maximum_compare_and_write_length" / bits(8),
    "optimal_transfer_length_granularity" / bits(16),
    "maximum_transfer_length" / bits(32),
    "optimal_transfer_length" / bits(32),
    "maximum_prefetch_length" / bits(32),
    "maximum_unmap_lba_count" / bits(32),
    "maximum_unmap_block_descriptor_count" / bits(32),
    "optimal_unmap_granularity" / bits(32),
    "ugavalid" / bits(1),
    "unmap_granularity_alignment" / bits(31),
    "maximum_write_same_length" / bits(64),
    "maximum_atomic_transfer_length" / bits(32),
    "atomic_alignment" / bits(32),
    "atomic_transfer_length_granularity" / bits(32),
    "maximum_atomic_transfer_length_with_boundary" / bits(32),
    "maximum_atomic_boundary_size" / bits(32),
)
"""60 bytes; lengths in logical blocks."""

BlockDeviceCharacteristics = BitStruct(
    "medium_rotation_rate" / bits(16),
    "product_type" / bits(8),
    "wabereq" / bits(2),
    "wacereq" / bits(2),
    "nominal_form_factor" / bits(4),
    "reserved1" / bits(6),
    "fuab" / bits(1),
    "vbuls" / bits(1),
    "rest" / bits(55 * 8),
)

LogicalBlockProvisioning = BitStruct(
    "threshold_exponent" / bits(8),
    "lbpu" / bits(1),
    "lbpws" / bits(1),
    "lbpws10" / bits(1),
    "lbprz" / bits(3),
    "anc_sup" / bits(1),
    "dp" / bits(1),
    "minimum_percentage" / bits(5),
    "provisioning_type" / bits(3),
    "threshold_percentage" / bits(8),
)

_Unknown = Struct("data" / GreedyBytes)

VPD_FORMATS: dict[int, Construct] = {
    VpdPage.SUPPORTED_PAGES: SupportedPages,
    VpdPage.UNIT_SERIAL_NUMBER: UnitSerialNumber,
    VpdPage.DEVICE_IDENTIFICATION: DeviceIdentification,
    VpdPage.EXTENDED_INQUIRY: ExtendedInquiry,
    VpdPage.BLOCK_LIMITS: BlockLimits,
    VpdPage.BLOCK_DEVICE_CHARACTERISTICS: BlockDeviceCharacteristics,
    VpdPage.LOGICAL_BLOCK_PROVISIONING: LogicalBlockProvisioning,
}
_FIXED_PAGES = {
    code: VPD_FORMATS[code].sizeof()
    for code in (
        VpdPage.EXTENDED_INQUIRY,
        VpdPage.BLOCK_LIMITS,
        VpdPage.BLOCK_DEVICE_CHARACTERISTICS,
        VpdPage.LOGICAL_BLOCK_PROVISIONING,
    )
}


def parse_standard(data: bytes) -> Container:
    """Parse standard INQUIRY data; what a short answer left out reads as zero.

    Raises WireError if there are not even 5 bytes.
    """
    if len(data) < 5:
        raise WireError(f"INQUIRY data of {len(data)} bytes")
    size = StandardInquiry.sizeof()
    return parse(StandardInquiry, data[:size].ljust(size, b"\0"), "INQUIRY data")


def build_standard(*, vendor: str, product: str, revision: str, **fields: Any) -> bytes:
    """Build standard INQUIRY data (96 bytes).

    Texts are ASCII of at most 8, 16 and 4 characters; up to 8 version descriptors. Raises
    ValueError if something does not fit.
    """
    claims = list(fields.pop("version_descriptors", ()))
    return build(
        StandardInquiry,
        {
            **fields,
            "vendor": vendor.encode("ascii").ljust(8),
            "product": product.encode("ascii").ljust(16),
            "revision": revision.encode("ascii").ljust(4),
            "version_descriptors": claims + [0] * (8 - len(claims)),
        },
    )


def parse_vpd(data: bytes) -> Container:
    """Parse a VPD page; the value has the header's fields and those of its body.

    A page that we do not know has its body in `data`. Raises WireError if the header is cut or the
    body contradicts itself.
    """
    header = parse(VpdHeader, data[:4], "VPD page")
    body = data[4 : 4 + header.page_length]
    size = _FIXED_PAGES.get(header.page_code)
    if size is not None:
        body = body[:size].ljust(size, b"\0")
    form = VPD_FORMATS.get(header.page_code, _Unknown)
    header.update(parse(form, body, f"VPD page {header.page_code:02X}h"))
    return header


def build_vpd(page: int, *, qualifier: int = 0, device_type: int = 0, **fields: Any) -> bytes:
    """Build a VPD page from its body's fields; raise ValueError if one does not fit."""
    body = build(VPD_FORMATS[page], fields)
    header = {
        "peripheral_qualifier": qualifier,
        "peripheral_device_type": device_type,
        "page_code": page,
        "page_length": len(body),
    }
    return build(VpdHeader, header) + body


def limit_transfers(page: bytes, blocks: int) -> bytes:
    """Return VPD page B0h, or what arrived of it, that claims transfers of at most `blocks`."""
    head, size = VpdHeader.sizeof(), BlockLimits.sizeof()
    body = page[head : head + size].ljust(size, b"\0")
    limits = parse(BlockLimits, body, "VPD page B0h")
    for name in ("maximum_transfer_length", "optimal_transfer_length"):
        limits[name] = min(limits[name], blocks)
    limits.maximum_transfer_length = limits.maximum_transfer_length or blocks  # 0: no limit
    return (page[:head] + build(BlockLimits, limits) + page[head + size :])[: len(page)]
