# SPDX-License-Identifier: MIT
"""INQUIRY data and VPD pages in words: (name, value) pairs in the order of the bytes."""

from collections.abc import Callable, Iterator, Mapping
from enum import IntEnum

from construct import Container

from vscsi.cli.unit import device_type_name
from vscsi.wire.formats import text
from vscsi.wire.inquiry import (
    Association,
    CodeSet,
    DesignatorType,
    ProtocolIdentifier,
    ProvisioningType,
    Version,
    VersionDescriptor,
    VpdPage,
)

Fields = list[tuple[str, str]]

_QUALIFIERS = {0: "connected", 1: "not connected", 3: "no such unit"}
_UNLIMITED = 0xFFFF_FFFF
_TEXTS = ("vendor", "product", "revision", "serial_number")
_UNNAMED = ("reserved", "obsolete", "rest", "vs", "vendor_specific", "version_descriptors")
_HEADER = ("peripheral_qualifier", "peripheral_device_type", "page_code", "page_length")


def page_title(code: int) -> str:
    """Return a VPD page's heading, as in "VPD page B0h: block limits"."""
    name = _name(VpdPage, code) or "not decoded"
    return f"VPD page {code:02X}h: {name}"


def standard_fields(data: Container) -> Fields:
    """Return standard INQUIRY data in words."""
    qualifier = _QUALIFIERS.get(data.peripheral_qualifier, str(data.peripheral_qualifier))
    version = _name(Version, data.version)
    claims = [code for code in data.version_descriptors if code]
    return [
        ("device type", f"{device_type_name(data.peripheral_device_type)}, {qualifier}"),
        ("vendor", text(data.vendor)),
        ("product", text(data.product)),
        ("revision", text(data.revision)),
        ("version", f"{version.upper().replace(' ', '-') or '?'} ({data.version:02X}h)"),
        ("claims", ", ".join(map(_claim, claims)) or "-"),
        ("response data format", str(data.response_data_format)),
        ("set", _set_bits(data)),
    ]


def page_fields(page: Container) -> Fields:
    """Return a parsed VPD page in words; nothing for a page whose format is not known."""
    if page.page_code == VpdPage.SUPPORTED_PAGES:
        return [("pages", " ".join(f"{code:02X}h" for code in page.page_codes))]
    if page.page_code == VpdPage.DEVICE_IDENTIFICATION:
        designators = enumerate(page.designators, 1)
        return [(f"designator {number}", _designator(each)) for number, each in designators]
    if "data" in page:
        return []
    return list(_described(page))


def plain(value: object) -> object:
    """Return a parsed value as JSON can hold it: texts as text, other bytes in hexadecimal."""
    if isinstance(value, Mapping):
        return {
            key: text(each) if key in _TEXTS else plain(each)
            for key, each in value.items()
            if not _unnamed(key)
        }
    if isinstance(value, bytes):
        return value.hex()
    return list(map(plain, value)) if isinstance(value, list) else value


def _described(page: Container) -> Iterator[tuple[str, str]]:
    for key, value in page.items():
        if key in _HEADER or _unnamed(key):
            continue
        words = _WORDS.get(key)
        shown = text(value) if isinstance(value, bytes) else str(value)
        yield key.replace("_", " "), words(value) if words else shown


def _unnamed(key: str) -> bool:
    return key.startswith("_") or key.rstrip("0123456789") in _UNNAMED


def _name(names: type[IntEnum], code: int) -> str:
    """Return a code's name in small letters, empty if it has none."""
    return names(code).name.lower().replace("_", " ") if code in set(names) else ""


def _claim(code: int) -> str:
    name = _name(VersionDescriptor, code).upper().replace(" ", "-")
    return name or f"{code:04X}h"


def _set_bits(data: Container) -> str:
    """Return the names of the one-bit fields that are 1."""
    bits = ("rmb", "lu_cong", "normaca", "hisup", "sccs", "third_party_copy", "protect")
    more = ("encserv", "multip", "cmdque")
    return " ".join(name for name in (*bits, *more) if data[name]) or "-"


def _designator(entry: Container) -> str:
    kind = _name(DesignatorType, entry.designator_type) or f"type {entry.designator_type}"
    is_text = entry.code_set in (CodeSet.ASCII, CodeSet.UTF_8)
    value = text(entry.designator) if is_text else entry.designator.hex()
    words = [f"{kind}: {value}", f"of the {_name(Association, entry.association) or '?'}"]
    if entry.piv:
        words.append(_name(ProtocolIdentifier, entry.protocol_identifier) or "?")
    return ", ".join(words)


def _blocks(value: int) -> str:
    if not value:
        return "not reported"
    return "unlimited" if value >= _UNLIMITED else f"{value} blocks"


def _rotation(value: int) -> str:
    return {0: "not reported", 1: "non-rotating medium"}.get(value, f"{value} rpm")


def _provisioning(value: int) -> str:
    return _name(ProvisioningType, value) or f"type {value}"


_WORDS: dict[str, Callable[[int], str]] = {
    "maximum_compare_and_write_length": _blocks,
    "optimal_transfer_length_granularity": _blocks,
    "maximum_transfer_length": _blocks,
    "optimal_transfer_length": _blocks,
    "maximum_prefetch_length": _blocks,
    "maximum_unmap_lba_count": _blocks,
    "optimal_unmap_granularity": _blocks,
    "maximum_write_same_length": _blocks,
    "maximum_atomic_transfer_length": _blocks,
    "atomic_alignment": _blocks,
    "atomic_transfer_length_granularity": _blocks,
    "maximum_atomic_transfer_length_with_boundary": _blocks,
    "maximum_atomic_boundary_size": _blocks,
    "medium_rotation_rate": _rotation,
    "provisioning_type": _provisioning,
}
