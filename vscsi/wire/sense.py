# SPDX-License-Identifier: MIT
"""Sense data, fixed and descriptor format (SPC-5 4.4)."""

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from construct import Bytes, Const, Default, GreedyRange, Int8ub, Struct, this

from vscsi.wire import asc as codes
from vscsi.wire.formats import U8, U16B, U32B, U64B, Packed, build, parse, raw


class SenseKey(IntEnum):
    """SENSE KEY (SPC-5 4.4)."""

    NO_SENSE = 0x0
    RECOVERED_ERROR = 0x1
    NOT_READY = 0x2
    MEDIUM_ERROR = 0x3
    HARDWARE_ERROR = 0x4
    ILLEGAL_REQUEST = 0x5
    UNIT_ATTENTION = 0x6
    DATA_PROTECT = 0x7
    BLANK_CHECK = 0x8
    VENDOR_SPECIFIC = 0x9
    COPY_ABORTED = 0xA
    ABORTED_COMMAND = 0xB
    VOLUME_OVERFLOW = 0xD
    MISCOMPARE = 0xE
    COMPLETED = 0xF


class ResponseCode(IntEnum):
    """RESPONSE CODE, byte 0 without VALID."""

    FIXED_CURRENT = 0x70
    FIXED_DEFERRED = 0x71
    DESCRIPTOR_CURRENT = 0x72
    DESCRIPTOR_DEFERRED = 0x73


SenseKeySpecific = Packed("flags" / U8, "value" / U16B)
"""SENSE KEY SPECIFIC (SPC-5 4.4.2.4): SKSV, C/D, BPV and bit pointer; field pointer or progress."""

FixedFormat = Packed(
    "response_code" / U8,  # and VALID, 0x80
    "obsolete" / raw(1),
    "key" / U8,  # and FILEMARK 0x80, EOM 0x40, ILI 0x20
    "information" / U32B,
    "additional_length" / Default(Int8ub, 10),
    "command_specific" / U32B,
    "asc" / U8,
    "ascq" / U8,
    "fru" / U8,
    "sense_key_specific" / raw(3),
)

DescriptorFormat = Packed(
    "response_code" / U8,
    "key" / U8,
    "asc" / U8,
    "ascq" / U8,
    "flags" / U8,
    "reserved" / raw(2),
    "additional_length" / U8,
)
"""The header; descriptors follow."""

_Descriptors = GreedyRange(
    Struct("type" / Int8ub, "length" / Int8ub, "data" / Bytes(this.length)),
)

InformationDescriptor = Packed(
    "type" / Const(0x00, Int8ub),
    "length" / Const(0x0A, Int8ub),
    "valid" / Default(Int8ub, 0x80),
    "reserved" / raw(1),
    "information" / U64B,
)
CommandSpecificDescriptor = Packed(
    "type" / Const(0x01, Int8ub),
    "length" / Const(0x0A, Int8ub),
    "reserved" / raw(2),
    "command_specific" / U64B,
)
SenseKeySpecificDescriptor = Packed(
    "type" / Const(0x02, Int8ub),
    "length" / Const(0x06, Int8ub),
    "reserved" / raw(2),
    "sense_key_specific" / raw(3),
    "reserved2" / raw(1),
)
StreamDescriptor = Packed(
    "type" / Const(0x04, Int8ub),
    "length" / Const(0x02, Int8ub),
    "reserved" / raw(1),
    "flags" / U8,
)

_FORMS = {
    0x00: InformationDescriptor,
    0x01: CommandSpecificDescriptor,
    0x02: SenseKeySpecificDescriptor,
    0x04: StreamDescriptor,
}
_VALID = 0x80
_FILEMARK, _EOM, _ILI = 0x80, 0x40, 0x20
_SKSV, _IN_CDB, _BPV = 0x80, 0x40, 0x08


@dataclass(frozen=True, slots=True)
class Sense:
    """Why a command was terminated."""

    key: int
    asc: int
    ascq: int
    information: int | None = None
    """An LBA, an offset or a residue; unsigned (a tape's negative residue in two's complement)."""
    field_pointer: int | None = None
    """ILLEGAL REQUEST: the byte at fault, of the CDB or of the parameter list."""
    in_cdb: bool = True
    bit_pointer: int | None = None
    """The most significant bit at fault, with field_pointer."""
    progress: int | None = None
    """NOT READY and NO SENSE: how far an operation is, in 65536ths."""
    command_specific: int | None = None
    filemark: bool = False
    eom: bool = False
    ili: bool = False
    deferred: bool = False

    def build(self, *, descriptor: bool = False) -> bytes:
        """Return the sense data: 18 bytes in fixed format, 8 and its descriptors otherwise.

        Descriptor format is also taken where a value exceeds the 32 bits of fixed format.
        Raises ValueError if a value does not fit.
        """
        wide = max(self.information or 0, self.command_specific or 0) >> 32
        return self._build_descriptor() if descriptor or wide else self._build_fixed()

    def _build_fixed(self) -> bytes:
        valid = _VALID if self.information is not None else 0
        return build(
            FixedFormat,
            {
                "response_code": valid | ResponseCode.FIXED_CURRENT + self.deferred,
                "key": self._flags() | self.key,
                "information": self.information or 0,
                "command_specific": self.command_specific or 0,
                "asc": self.asc,
                "ascq": self.ascq,
                "sense_key_specific": self._specific() or bytes(3),
            },
        )

    def _build_descriptor(self) -> bytes:
        parts = []
        if self.information is not None:
            parts.append(build(InformationDescriptor, {"information": self.information}))
        if self.command_specific is not None:
            values = {"command_specific": self.command_specific}
            parts.append(build(CommandSpecificDescriptor, values))
        if (specific := self._specific()) is not None:
            parts.append(build(SenseKeySpecificDescriptor, {"sense_key_specific": specific}))
        if flags := self._flags():
            parts.append(build(StreamDescriptor, {"flags": flags}))
        tail = b"".join(parts)
        header = {
            "response_code": ResponseCode.DESCRIPTOR_CURRENT + self.deferred,
            "key": self.key,
            "asc": self.asc,
            "ascq": self.ascq,
            "additional_length": len(tail),
        }
        return build(DescriptorFormat, header) + tail

    def _flags(self) -> int:
        return self.filemark * _FILEMARK | self.eom * _EOM | self.ili * _ILI

    def _specific(self) -> bytes | None:
        """Return SENSE KEY SPECIFIC, or None if there is nothing to say."""
        if self.field_pointer is not None:
            first = _SKSV | self.in_cdb * _IN_CDB
            if self.bit_pointer is not None:
                first |= _BPV | self.bit_pointer
            return build(SenseKeySpecific, {"flags": first, "value": self.field_pointer})
        if self.progress is not None:
            return build(SenseKeySpecific, {"flags": _SKSV, "value": self.progress})
        return None

    def describe(self) -> str:
        """Return one line for humans: "ILLEGAL REQUEST, INVALID FIELD IN CDB (5/24/00), ..."."""
        try:
            key = SenseKey(self.key).name.replace("_", " ")
        except ValueError:
            key = f"SENSE KEY {self.key:X}H"
        line = f"{key}, {codes.text(self.asc, self.ascq)}"
        line += f" ({self.key:x}/{self.asc:02x}/{self.ascq:02x})"
        if self.field_pointer is not None:
            line += f", {'CDB' if self.in_cdb else 'parameter'} byte {self.field_pointer}"
            if self.bit_pointer is not None:
                line += f" bit {self.bit_pointer}"
        if self.progress is not None:
            line += f", {self.progress * 100 // 65536} % done"
        if self.information is not None:
            line += f", information {self.information}"
        marks = [name for name in ("filemark", "eom", "ili", "deferred") if getattr(self, name)]
        return ", ".join([line, *marks])


def parse_sense(data: bytes) -> Sense | None:
    """Return what sense data say, or None if they say nothing in a known format. Never raises.

    What was cut off at the end of `data` reads as zero, or as a descriptor that is not there.
    """
    code = data[0] & 0x7F if data else 0
    if code in (ResponseCode.FIXED_CURRENT, ResponseCode.FIXED_DEFERRED):
        return _parse_fixed(data)
    if code in (ResponseCode.DESCRIPTOR_CURRENT, ResponseCode.DESCRIPTOR_DEFERRED):
        return _parse_descriptor(data)
    return None


def _parse_fixed(data: bytes) -> Sense:
    size = FixedFormat.sizeof()
    end = 8 + data[7] if len(data) > 7 else len(data)
    fixed = parse(FixedFormat, data[: min(end, size)].ljust(size, b"\0"), "sense")
    return Sense(
        key=fixed.key & 0x0F,
        asc=fixed.asc,
        ascq=fixed.ascq,
        information=fixed.information if fixed.response_code & _VALID else None,
        command_specific=fixed.command_specific or None,
        deferred=bool(fixed.response_code & 1),
        **_flags_in(fixed.key),
        **_specific_in(fixed.sense_key_specific, fixed.key & 0x0F),
    )


def _parse_descriptor(data: bytes) -> Sense:
    size = DescriptorFormat.sizeof()
    header = parse(DescriptorFormat, data[:size].ljust(size, b"\0"), "sense")
    key = header.key & 0x0F
    found: dict[str, Any] = {}
    for entry in _Descriptors.parse(data[size : size + header.additional_length]):
        form = _FORMS.get(entry.type)
        if form is not None and entry.length == form.sizeof() - 2:
            whole = bytes((entry.type, entry.length)) + entry.data
            found |= parse(form, whole, "sense descriptor")
    return Sense(
        key=key,
        asc=header.asc,
        ascq=header.ascq,
        information=found.get("information") if found.get("valid", 0) & _VALID else None,
        command_specific=found.get("command_specific"),
        deferred=bool(header.response_code & 1),
        **_flags_in(found.get("flags", 0)),
        **_specific_in(found.get("sense_key_specific", bytes(3)), key),
    )


def _flags_in(byte: int) -> dict[str, bool]:
    return {"filemark": byte & _FILEMARK > 0, "eom": byte & _EOM > 0, "ili": byte & _ILI > 0}


def _specific_in(specific: bytes, key: int) -> dict[str, Any]:
    flags, value = parse(SenseKeySpecific, specific, "sense key specific").values()
    if not flags & _SKSV:
        return {}
    if key == SenseKey.ILLEGAL_REQUEST:
        return {
            "field_pointer": value,
            "in_cdb": bool(flags & _IN_CDB),
            "bit_pointer": flags & 0x07 if flags & _BPV else None,
        }
    return {"progress": value} if key in (SenseKey.NO_SENSE, SenseKey.NOT_READY) else {}
