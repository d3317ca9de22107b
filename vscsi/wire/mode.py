# SPDX-License-Identifier: MIT
"""Mode parameters (SPC-5 7.5, SBC-4 6.5): headers, block descriptors and pages. Big-endian."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Any

from construct import BitStruct, Construct, Container, Struct

from vscsi.wire.errors import WireError
from vscsi.wire.formats import U8, U16B, U24B, U32B, U64B, Packed, bits, build, parse, raw


class ModePage(IntEnum):
    """Mode page codes."""

    READ_WRITE_ERROR_RECOVERY = 0x01
    DISCONNECT_RECONNECT = 0x02
    CACHING = 0x08
    CONTROL = 0x0A
    POWER_CONDITION = 0x1A
    INFORMATIONAL_EXCEPTIONS = 0x1C
    CD_CAPABILITIES = 0x2A
    ALL = 0x3F


ALL_SUBPAGES = 0xFF


class PageControl(IntEnum):
    """PC in MODE SENSE: which values to return."""

    CURRENT = 0
    CHANGEABLE = 1
    DEFAULT = 2
    SAVED = 3


class DeviceSpecific(IntFlag):
    """DEVICE-SPECIFIC PARAMETER of a disk (SBC-4 6.5.1)."""

    WP = 0x80
    DPOFUA = 0x10


Header6 = Packed(
    "mode_data_length" / U8,
    "medium_type" / U8,
    "device_specific" / U8,
    "block_descriptor_length" / U8,
)

Header10 = Packed(
    "mode_data_length" / U16B,
    "medium_type" / U8,
    "device_specific" / U8,
    "longlba" / U8,
    "reserved" / raw(1),
    "block_descriptor_length" / U16B,
)

ShortBlockDescriptor = Struct("blocks" / U32B, "reserved" / raw(1), "block_length" / U24B)
LongBlockDescriptor = Packed("blocks" / U64B, "reserved" / raw(4), "block_length" / U32B)

_PAGE_CODE = ("ps" / bits(1), "spf" / bits(1), "page_code" / bits(6))
PageHeader = BitStruct(*_PAGE_CODE, "page_length" / bits(8))
SubpageHeader = BitStruct(*_PAGE_CODE, "subpage_code" / bits(8), "page_length" / bits(16))

# What follows a page's header.
ReadWriteErrorRecovery = BitStruct(
    "awre" / bits(1),
    "arre" / bits(1),
    "tb" / bits(1),
    "rc" / bits(1),
    "eer" / bits(1),
    "per" / bits(1),
    "dte" / bits(1),
    "dcr" / bits(1),
    "read_retry_count" / bits(8),
    "obsolete" / bits(24),
    "lbpere" / bits(1),
    "reserved1" / bits(7),
    "write_retry_count" / bits(8),
    "reserved2" / bits(8),
    "recovery_time_limit" / bits(16),
)

Caching = BitStruct(
    "ic" / bits(1),
    "abpf" / bits(1),
    "cap" / bits(1),
    "disc" / bits(1),
    "size" / bits(1),
    "wce" / bits(1),
    "mf" / bits(1),
    "rcd" / bits(1),
    "demand_read_retention_priority" / bits(4),
    "write_retention_priority" / bits(4),
    "disable_prefetch_transfer_length" / bits(16),
    "minimum_prefetch" / bits(16),
    "maximum_prefetch" / bits(16),
    "maximum_prefetch_ceiling" / bits(16),
    "fsw" / bits(1),
    "lbcss" / bits(1),
    "dra" / bits(1),
    "vendor_specific" / bits(2),
    "sync_prog" / bits(2),
    "nv_dis" / bits(1),
    "number_of_cache_segments" / bits(8),
    "cache_segment_size" / bits(16),
    "reserved" / bits(32),
)

Control = BitStruct(
    "tst" / bits(3),
    "tmf_only" / bits(1),
    "dpicz" / bits(1),
    "d_sense" / bits(1),
    "gltsd" / bits(1),
    "rlec" / bits(1),
    "queue_algorithm_modifier" / bits(4),
    "nuar" / bits(1),
    "qerr" / bits(2),
    "obsolete1" / bits(1),
    "vs" / bits(1),
    "rac" / bits(1),
    "ua_intlck_ctrl" / bits(2),
    "swp" / bits(1),
    "obsolete2" / bits(3),
    "ato" / bits(1),
    "tas" / bits(1),
    "atmpe" / bits(1),
    "rwwp" / bits(1),
    "reserved" / bits(1),
    "autoload_mode" / bits(3),
    "obsolete3" / bits(16),
    "busy_timeout_period" / bits(16),
    "extended_self_test_completion_time" / bits(16),
)

InformationalExceptions = BitStruct(
    "perf" / bits(1),
    "reserved1" / bits(1),
    "ebf" / bits(1),
    "ewasc" / bits(1),
    "dexcpt" / bits(1),
    "test" / bits(1),
    "ebackerr" / bits(1),
    "logerr" / bits(1),
    "reserved2" / bits(4),
    "mrie" / bits(4),
    "interval_timer" / bits(32),
    "report_count" / bits(32),
)

PAGE_FORMATS: dict[int, Construct] = {
    ModePage.READ_WRITE_ERROR_RECOVERY: ReadWriteErrorRecovery,
    ModePage.CACHING: Caching,
    ModePage.CONTROL: Control,
    ModePage.INFORMATIONAL_EXCEPTIONS: InformationalExceptions,
}


@dataclass(frozen=True, slots=True)
class Page:
    """A mode page: its body is what follows the header."""

    code: int
    body: bytes
    subpage: int | None = None
    ps: bool = False

    def fields(self) -> Container:
        """Decode the body of a page in PAGE_FORMATS; WireError if its length is wrong."""
        return parse(PAGE_FORMATS[self.code], self.body, f"mode page {self.code:02X}h")

    def build(self) -> bytes:
        """Return header and body."""
        header = {"ps": self.ps, "page_code": self.code, "page_length": len(self.body)}
        if self.subpage is None:
            return build(PageHeader, header) + self.body
        extra = {"spf": 1, "subpage_code": self.subpage}
        return build(SubpageHeader, header | extra) + self.body


@dataclass(frozen=True, slots=True)
class Parameters:
    """Mode parameters: what MODE SENSE returns and MODE SELECT sends."""

    pages: Sequence[Page] = ()
    medium_type: int = 0
    device_specific: int = 0
    block_descriptors: bytes = b""
    longlba: bool = False

    def build(self, *, ten: bool, sense: bool = True) -> bytes:
        """Return the parameters with a 10-byte command's header (`ten`) or a 6-byte command's.

        MODE DATA LENGTH is reserved in MODE SELECT (sense=False). Raises ValueError if the
        parameters are too long for the header.
        """
        form = Header10 if ten else Header6
        tail = self.block_descriptors + b"".join(page.build() for page in self.pages)
        # MODE DATA LENGTH does not count itself.
        length = form.sizeof() - (2 if ten else 1) + len(tail)
        header = {
            "mode_data_length": length if sense else 0,
            "medium_type": self.medium_type,
            "device_specific": self.device_specific,
            "block_descriptor_length": len(self.block_descriptors),
        }
        if ten:
            header["longlba"] = self.longlba
        return build(form, header) + tail


def body(code: int, **fields: Any) -> bytes:
    """Build the body of a page in PAGE_FORMATS; raise ValueError if a value does not fit."""
    return build(PAGE_FORMATS[code], fields)


def parse_parameters(data: bytes, *, ten: bool) -> Parameters:
    """Parse mode parameters, all of `data` (MODE DATA LENGTH is not looked at).

    Raises WireError if the header, the block descriptors or a page end beyond the data.
    """
    form = Header10 if ten else Header6
    at = form.sizeof()
    header = parse(form, data[:at], "mode parameter header")
    end = at + header.block_descriptor_length
    if end > len(data):
        raise WireError(f"mode block descriptors of {header.block_descriptor_length} bytes")
    pages = []
    rest = data[end:]
    while rest:
        page, rest = _split_page(rest)
        pages.append(page)
    return Parameters(
        pages,
        header.medium_type,
        header.device_specific,
        data[at:end],
        bool(header.get("longlba", 0) & 1),
    )


def _split_page(data: bytes) -> tuple[Page, bytes]:
    form = SubpageHeader if data[0] & 0x40 else PageHeader
    size = form.sizeof()
    header = parse(form, data[:size], "mode page header")
    end = size + header.page_length
    if end > len(data):
        raise WireError(f"mode page {header.page_code:02X}h of {header.page_length} bytes")
    page = Page(header.page_code, data[size:end], header.get("subpage_code"), bool(header.ps))
    return page, data[end:]
