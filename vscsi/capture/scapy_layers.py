# SPDX-License-Identifier: GPL-2.0-only
# scapy.contrib.description = vscsi: SRP, vscsiif, blkif, CDBs and sense data in captures of rings
# scapy.contrib.status = loads
"""Scapy layers of a capture: its records, SRP, MADs, vscsiif, blkif, CDBs and sense data.

    from scapy.utils import rdpcap
    from vscsi.capture.scapy_layers import *
    packets = rdpcap("file.pcapng")             # Record / ...
    [p[SrpCmd].cdb for p in packets if SrpCmd in p]
    [p.payload_ for p in packets if p.payload_kind]      # what was captured of the data
    SrpCmd(tag=5, cdb=cdb("READ(10)", lba=8, blocks=1), data_in_format=1,
           data_in=MemoryDescriptor(length=512))

Importing this makes `Record` scapy's layer for link type USER0. The fields, their order, sizes and
defaults are those of vscsi.wire; only what a declaration computes is said again here, as scapy says
it. Names are the same, too; one that scapy uses itself ends in an underscore: `direction_`.

This file's licence is scapy's; nothing else of vscsi imports it.
"""

from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum
from functools import cache
from typing import Any

from construct import Array, Bytes, Construct, FormatField, Struct
from scapy.config import conf
from scapy.fields import (
    BitField,
    EnumField,
    Field,
    FieldLenField,
    FieldListField,
    PacketField,
    PacketLenField,
    PacketListField,
    StrField,
    StrLenField,
    XStrFixedLenField,
)
from scapy.packet import Packet, Raw

from vscsi.wire import blkif, mad, record, sense, srp, srp_ring, vscsiif
from vscsi.wire.cdb import lookup, named
from vscsi.wire.opcodes import VARIABLE_LENGTH, Command, service_action_field
from vscsi.wire.pcapng import LINKTYPE_USER0

__all__ = [
    "AerReq",
    "AerRsp",
    "BlkifDiscard",
    "BlkifDiscard32",
    "BlkifIndirect",
    "BlkifIndirect32",
    "BlkifOther",
    "BlkifOther32",
    "BlkifResponse",
    "BlkifResponse32",
    "BlkifRw",
    "BlkifRw32",
    "BlkifSegment",
    "BufferMad",
    "CommandSpecificDescriptor",
    "CredReq",
    "CredRsp",
    "DescriptorSense",
    "EmptyIu",
    "FixedSense",
    "ILogout",
    "ImmediateDescriptor",
    "IndirectDescriptor",
    "InformationDescriptor",
    "LoginRej",
    "LoginReq",
    "LoginRsp",
    "Mad",
    "MemoryDescriptor",
    "OtherDescriptor",
    "Record",
    "RegionMad",
    "SenseKeySpecificDescriptor",
    "SrpCmd",
    "SrpRsp",
    "SrpSlot",
    "StreamDescriptor",
    "TLogout",
    "TskMgmt",
    "VscsiifPreset",
    "VscsiifRequest",
    "VscsiifResponse",
    "VscsiifSegment",
    "cdb",
]

MAX_ENTRIES = 4096
_Fields = list[Any]
"""Of Field[Any, Any]; scapy's own type for it is private."""
_Choose = Callable[[Packet, bytes], type[Packet]]


class Choice(PacketLenField):
    """A packet whose class depends on what is around it, in so many bytes; padded when built."""

    __slots__ = ("choose", "pad_to")

    def __init__(
        self, name: str, choose: _Choose, length_from: Callable[[Packet], int], pad_to: int = 0
    ) -> None:
        super().__init__(name, None, Raw, length_from)  # type: ignore[arg-type]
        self.choose = choose
        self.pad_to = pad_to

    def m2i(self, pkt: Packet | None, m: bytes) -> Packet:
        """Dissect."""
        return Raw(m) if pkt is None else self.choose(pkt, m)(m, _parent=pkt)

    def addfield(self, pkt: Packet, s: bytes, val: Any) -> bytes:
        """Build."""
        return s + self.i2m(pkt, val).ljust(self.pad_to, b"\0")


class Table(PacketListField):
    """Packets of one class; built, they are filled up with zeros to so many."""

    __slots__ = ("fill_to",)

    def __init__(
        self,
        name: str,
        cls: type[Packet],
        count: Callable[[Packet], int] | None = None,
        fill_to: int = 0,
    ) -> None:
        super().__init__(name, [], cls, count_from=count, max_count=MAX_ENTRIES)
        self.fill_to = fill_to

    def addfield(self, pkt: Packet, s: bytes, val: Any) -> bytes:
        """Build."""
        filling = self.cls(b"") if self.fill_to else None
        return super().addfield(pkt, s, [*val, *[filling] * (self.fill_to - len(val))])


class Message(Packet):
    """What all layers share: what follows is not theirs."""

    def extract_padding(self, s: bytes) -> tuple[bytes, bytes | None]:
        """Leave the rest to whatever holds this one."""
        return b"", s


# From declarations to fields


def _leaf(field: Construct) -> tuple[Construct, Any]:
    """Return what a declared field is underneath, and its default."""
    default = None
    while hasattr(field, "subcon") and not isinstance(field, Array):
        value = getattr(field, "value", None)
        default = value if default is None and not callable(value) else default
        field = field.subcon
    return field, default


def _free(name: str) -> str:
    """Return a field's name, changed if it is one of scapy's own attributes."""
    return f"{name}_" if hasattr(Packet, name) else name


def _scapy_field(field: Construct, names: Mapping[str, type[IntEnum]]) -> Field[Any, Any]:
    name = _free(field.name)
    leaf, default = _leaf(field)
    if isinstance(leaf, FormatField):
        if field.name in names:
            words = {int(member): member.name for member in names[field.name]}
            return EnumField(name, default or 0, words, leaf.fmtstr)
        return Field(name, default or 0, leaf.fmtstr)
    if isinstance(leaf, Bytes) and isinstance(leaf.length, int):
        return XStrFixedLenField(name, default or bytes(leaf.length), leaf.length)
    if name == "trailing":
        return StrField(name, b"")
    raise TypeError(f"{name}: no scapy field for {leaf!r}")


def _fields(
    form: Struct,
    names: Mapping[str, type[IntEnum]] | None = None,
    instead: Mapping[str, Sequence[Field[Any, Any]]] | None = None,
) -> _Fields:
    """Return a form's fields; names: enumerations by field; instead: for what is computed."""
    fields: _Fields = []
    unused = dict(instead or {})
    for declared in form.subcons:
        if declared.name in unused:
            fields += unused.pop(declared.name)
        else:
            fields.append(_scapy_field(declared, names or {}))
    if unused:
        raise TypeError(f"not declared: {', '.join(unused)}")
    return fields


def _layer(name: str, fields: _Fields, base: type[Packet] = Message) -> type[Packet]:
    return type(name, (base,), {"name": name, "fields_desc": fields, "__module__": __name__})


# CDBs


@cache
def cdb_layer(row: Command) -> type[Packet]:
    """Return the layer of a command; `unused` is what a fixed-size field holds behind it."""
    named_bits = {"opcode": (0, 8, row.opcode), "control": (8 * row.control_offset, 8, 0)}
    if row.opcode == VARIABLE_LENGTH:
        named_bits["additional_length"] = (56, 8, row.length - 8)
    places = {name: (field, 0) for name, field in row.fields.items()}
    if row.service_action is not None:
        places["service_action"] = (service_action_field(row.opcode), row.service_action)
    for name, (field, default) in places.items():
        first = 8 * (field.offset + field.size) - field.mask.bit_length()
        named_bits[_free(name)] = (first, field.mask.bit_count(), default)
    fields: _Fields = []
    at = 0
    for name, (first, width, default) in sorted(named_bits.items(), key=lambda item: item[1]):
        if first > at:
            fields.append(BitField(f"reserved{at // 8}_{at % 8}", 0, first - at))
        fields.append(BitField(name, default, width))
        at = first + width
    if at < 8 * row.length:
        fields.append(BitField(f"reserved{at // 8}_{at % 8}", 0, 8 * row.length - at))
    return _layer(row.name, [*fields, StrField("unused", b"")])


def cdb(name: str, **fields: int) -> Packet:
    """Return a CDB by its command's name, as in "READ(10)"; ValueError if there is none."""
    layer: Callable[..., Packet] = cdb_layer(named(name))
    return layer(**fields)


def _cdb_of(_packet: Packet, data: bytes) -> type[Packet]:
    row = lookup(data)
    return cdb_layer(row) if row is not None and row.length <= len(data) else Raw


# Sense data

FixedSense = _layer("FixedSense", [*_fields(sense.FixedFormat), StrField("more", b"")])
InformationDescriptor = _layer("InformationDescriptor", _fields(sense.InformationDescriptor))
CommandSpecificDescriptor = _layer(
    "CommandSpecificDescriptor", _fields(sense.CommandSpecificDescriptor)
)
SenseKeySpecificDescriptor = _layer(
    "SenseKeySpecificDescriptor", _fields(sense.SenseKeySpecificDescriptor)
)
StreamDescriptor = _layer("StreamDescriptor", _fields(sense.StreamDescriptor))
OtherDescriptor = _layer(
    "OtherDescriptor",
    [
        Field("type", 0xFF, "B"),
        FieldLenField("length", None, length_of="data", fmt="B"),
        StrLenField("data", b"", length_from=lambda packet: packet.length),
    ],
)
_DESCRIPTORS = {
    bytes(layer())[:2]: layer
    for layer in (
        InformationDescriptor,
        CommandSpecificDescriptor,
        SenseKeySpecificDescriptor,
        StreamDescriptor,
    )
}


def _descriptor(data: bytes, _parent: Packet | None = None) -> Packet:
    return _DESCRIPTORS.get(data[:2], OtherDescriptor)(data, _parent=_parent)


DescriptorSense = _layer(
    "DescriptorSense",
    [
        *_fields(
            sense.DescriptorFormat,
            instead={
                "additional_length": [
                    FieldLenField("additional_length", None, length_of="descriptors", fmt="B")
                ]
            },
        ),
        PacketListField(
            "descriptors",
            [],
            _descriptor,
            length_from=lambda packet: packet.additional_length,
            max_count=MAX_ENTRIES,
        ),
        StrField("more", b""),
    ],
)


def _sense_of(_packet: Packet, data: bytes) -> type[Packet]:
    code = data[0] & 0x7F
    if code in (sense.ResponseCode.FIXED_CURRENT, sense.ResponseCode.FIXED_DEFERRED):
        return FixedSense
    if code in (sense.ResponseCode.DESCRIPTOR_CURRENT, sense.ResponseCode.DESCRIPTOR_DEFERRED):
        return DescriptorSense
    return Raw


# SRP

_IU_TYPE: dict[str, type[IntEnum]] = {"type": srp.IuType}
MemoryDescriptor = _layer("MemoryDescriptor", _fields(srp.MemoryDescriptor))
ImmediateDescriptor = _layer("ImmediateDescriptor", _fields(srp.ImmediateDescriptor))
IndirectDescriptor = _layer(
    "IndirectDescriptor",
    _fields(
        srp.IndirectDescriptor(0),
        instead={
            "table": [PacketField("table", MemoryDescriptor(), MemoryDescriptor)],
            "descriptors": [Table("descriptors", MemoryDescriptor)],
        },
    ),
)
_BUFFERS: dict[int, type[Packet]] = {
    srp.BufferFormat.DIRECT: MemoryDescriptor,
    srp.BufferFormat.INDIRECT: IndirectDescriptor,
    srp.BufferFormat.IMMEDIATE: ImmediateDescriptor,
}


def _buffer(name: str) -> Choice:
    """Return one of CMD's two buffers: absent, direct, indirect (counted in the CMD), immediate."""

    def length(packet: Packet) -> int:
        form = getattr(packet, f"{name}_format")
        size = len(_BUFFERS[form]()) if form in _BUFFERS else 0
        if form == srp.BufferFormat.INDIRECT:
            size += getattr(packet, f"{name}_count") * len(MemoryDescriptor())
        return size

    return Choice(name, lambda packet, _: _BUFFERS[getattr(packet, f"{name}_format")], length)


class SrpCmd(Message):
    """A command. Formats, counts and the additional CDB's length follow from the data if None."""

    name = "SrpCmd"
    fields_desc = _fields(
        srp.Cmd,
        _IU_TYPE,
        {
            "data_formats": [
                BitField("data_out_format", None, 4),
                BitField("data_in_format", None, 4),
            ],
            "data_out_format": [],
            "data_in_format": [],
            "data_out_count": [Field("data_out_count", None, "B")],
            "data_in_count": [Field("data_in_count", None, "B")],
            "additional_cdb_length": [
                FieldLenField(
                    "additional_cdb_length",
                    None,
                    length_of="cdb",
                    fmt="B",
                    adjust=lambda _, length: max(0, length - 16) + 3 & 0xFC,
                )
            ],
            "cdb": [
                Choice("cdb", _cdb_of, lambda p: 16 + (p.additional_cdb_length & 0xFC), pad_to=16)
            ],
            "additional_cdb": [],
            "data_out": [_buffer("data_out")],
            "data_in": [_buffer("data_in")],
        },
    )

    def post_build(self, pkt: bytes, pay: bytes) -> bytes:
        """Fill in what was not given."""
        head = bytearray(pkt[:8])
        for shift, at, name in ((4, 6, "data_out"), (0, 7, "data_in")):
            area = getattr(self, name)
            if getattr(self, f"{name}_format") is None:
                form = next((f for f, layer in _BUFFERS.items() if isinstance(area, layer)), 0)
                head[5] |= form << shift
            if getattr(self, f"{name}_count") is None and isinstance(area, IndirectDescriptor):
                head[at] = len(area.descriptors)
        return bytes(head) + pkt[8:] + pay


def _length(name: str) -> FieldLenField:
    return FieldLenField(name, None, length_of=name.removesuffix("_length"), fmt=">I")


def _valid(length: str, flag: int) -> Callable[[Packet], int]:
    return lambda packet: int(getattr(packet, length)) if packet.flags & flag else 0


LoginReq = _layer("LoginReq", _fields(srp.LoginReq, _IU_TYPE))
LoginRsp = _layer("LoginRsp", _fields(srp.LoginRsp, _IU_TYPE))
LoginRej = _layer("LoginRej", _fields(srp.LoginRej, {**_IU_TYPE, "reason": srp.LoginRejectReason}))
ILogout = _layer("ILogout", _fields(srp.ILogout, _IU_TYPE))
TLogout = _layer("TLogout", _fields(srp.TLogout, {**_IU_TYPE, "reason": srp.TLogoutReason}))
TskMgmt = _layer("TskMgmt", _fields(srp.TskMgmt, _IU_TYPE))
CredReq = _layer("CredReq", _fields(srp.CredReq, _IU_TYPE))
CredRsp = _layer("CredRsp", _fields(srp.CredRsp, _IU_TYPE))
AerRsp = _layer("AerRsp", _fields(srp.AerRsp, _IU_TYPE))
AerReq = _layer(
    "AerReq",
    _fields(
        srp.AerReq,
        _IU_TYPE,
        {
            "sense_data_length": [_length("sense_data_length")],
            "sense_data": [Choice("sense_data", _sense_of, lambda p: p.sense_data_length)],
        },
    ),
)
SrpRsp = _layer(
    "SrpRsp",
    _fields(
        srp.Rsp,
        _IU_TYPE,
        {
            "sense_data_length": [_length("sense_data_length")],
            "response_data_length": [_length("response_data_length")],
            "response_data": [
                StrLenField(
                    "response_data",
                    b"",
                    length_from=_valid("response_data_length", srp.RspFlags.RSPVALID),
                )
            ],
            "sense_data": [
                Choice("sense_data", _sense_of, _valid("sense_data_length", srp.RspFlags.SNSVALID))
            ],
        },
    ),
)
IUS: dict[int, type[Packet]] = {
    srp.IuType.LOGIN_REQ: LoginReq,
    srp.IuType.TSK_MGMT: TskMgmt,
    srp.IuType.CMD: SrpCmd,
    srp.IuType.I_LOGOUT: ILogout,
    srp.IuType.CRED_RSP: CredRsp,
    srp.IuType.AER_RSP: AerRsp,
    srp.IuType.T_LOGOUT: TLogout,
    srp.IuType.CRED_REQ: CredReq,
    srp.IuType.AER_REQ: AerReq,
    srp.IuType.LOGIN_RSP: LoginRsp,
    srp.IuType.RSP: SrpRsp,
    srp.IuType.LOGIN_REJ: LoginRej,
}

_MAD_CODES: dict[str, type[IntEnum]] = {"type": mad.MadType, "status": mad.MadStatus}
Mad = _layer("Mad", _fields(mad.MadHeader, _MAD_CODES))
BufferMad = _layer("BufferMad", _fields(mad.BufferMad, _MAD_CODES))
EmptyIu = _layer("EmptyIu", _fields(mad.EmptyIu, _MAD_CODES))
RegionMad = _layer(
    "RegionMad",
    _fields(
        mad.RegionMad,
        _MAD_CODES,
        {
            "directory_count": [
                FieldLenField("directory_count", None, count_of="directory", fmt=">H")
            ],
            "directory": [
                FieldListField(
                    "directory",
                    [],
                    Field("", 0, ">I"),
                    count_from=lambda packet: packet.directory_count,
                    max_count=MAX_ENTRIES,
                )
            ],
        },
    ),
)
_MAD_LAYERS = {
    id(form): layer
    for form, layer in (
        (mad.BufferMad, BufferMad),
        (mad.EmptyIu, EmptyIu),
        (mad.RegionMad, RegionMad),
    )
}


def _unit_of(slot: Packet, data: bytes) -> type[Packet]:
    if slot.format == srp_ring.SlotFormat.MAD:
        form = mad.FORMATS.get(int.from_bytes(data[:4], "big"))
        return _MAD_LAYERS.get(id(form), Mad)
    return IUS.get(data[0], Raw)


SrpSlot = _layer(
    "SrpSlot",
    [
        *_fields(
            srp_ring.SlotHeader,
            {"format": srp_ring.SlotFormat},
            {"length": [FieldLenField("length", None, length_of="unit", fmt="<H")]},
        ),
        Choice("unit", _unit_of, lambda slot: slot.length),
        StrField("rest", b""),
    ],
)

# vscsiif

VscsiifSegment = _layer("VscsiifSegment", _fields(vscsiif.Segment))


def _segments(count: int) -> dict[str, Sequence[Field[Any, Any]]]:
    return {
        "nr_segments": [FieldLenField("nr_segments", None, count_of="segments", fmt="B")],
        "segments": [Table("segments", VscsiifSegment, lambda _: count, fill_to=count)],
    }


VscsiifRequest = _layer(
    "VscsiifRequest",
    _fields(
        vscsiif.Request,
        {"act": vscsiif.Act, "direction": vscsiif.Direction},
        {
            "cmd_len": [FieldLenField("cmd_len", None, length_of="cdb", fmt="B")],
            "cdb": [Choice("cdb", _cdb_of, lambda _: 16, pad_to=16)],
            **_segments(vscsiif.SEGMENTS),
        },
    ),
)
VscsiifPreset = _layer(
    "VscsiifPreset",
    _fields(vscsiif.SgPreset, {"act": vscsiif.Act}, _segments(vscsiif.PRESET_SEGMENTS)),
)
_SENSE_ROOM = vscsiif.SENSE_BUFFER_SIZE
VscsiifResponse = _layer(
    "VscsiifResponse",
    _fields(
        vscsiif.Response,
        instead={
            "sense_len": [FieldLenField("sense_len", None, length_of="sense_buffer", fmt="B")],
            "sense_buffer": [
                Choice("sense_buffer", _sense_of, lambda _: _SENSE_ROOM, pad_to=_SENSE_ROOM)
            ],
        },
    ),
)

# blkif

BlkifSegment = _layer("BlkifSegment", _fields(blkif.Segment))


class BlkifRequest(Message):
    """A request's slot: what it does not fill is zeros."""

    slot_size = blkif.X86_64.slot_size

    def post_build(self, pkt: bytes, pay: bytes) -> bytes:
        """Fill the slot up."""
        return pkt.ljust(self.slot_size, b"\0") + pay


class BlkifRequest32(BlkifRequest):
    """The same in x86_32's layout."""

    slot_size = blkif.X86_32.slot_size


class References(FieldListField):
    """The grant references of indirect pages; built, they are filled up with zeros."""

    def addfield(self, pkt: Packet, s: bytes, val: Any) -> bytes:
        """Build."""
        return super().addfield(pkt, s, [*val, *[0] * (blkif.INDIRECT_PAGES - len(val))])


_OPERATION: dict[str, type[IntEnum]] = {"operation": blkif.Operation}


def _blkif(layout: blkif.Layout, base: type[Packet], suffix: str) -> tuple[type[Packet], ...]:
    """Return a layout's read/write, discard, indirect, other request and response layers."""
    formats = layout.formats
    rw = _fields(
        formats.rw,
        _OPERATION,
        {
            "nr_segments": [FieldLenField("nr_segments", None, count_of="segments", fmt="B")],
            "segments": [
                Table("segments", BlkifSegment, lambda p: min(p.nr_segments, blkif.SEGMENTS))
            ],
        },
    )
    references = References(
        "indirect_grefs", [], Field("", 0, "<I"), count_from=lambda _: blkif.INDIRECT_PAGES
    )
    indirect = _fields(
        formats.indirect,
        {**_OPERATION, "indirect_op": blkif.Operation},
        {"indirect_grefs": [references]},
    )
    return (
        _layer(f"BlkifRw{suffix}", rw, base),
        _layer(f"BlkifDiscard{suffix}", _fields(formats.discard, _OPERATION), base),
        _layer(f"BlkifIndirect{suffix}", indirect, base),
        _layer(f"BlkifOther{suffix}", _fields(formats.other), base),
        _layer(
            f"BlkifResponse{suffix}",
            _fields(formats.response, {**_OPERATION, "status": blkif.RspStatus}),
        ),
    )


_BLKIF = {
    record.LayoutCode.X86_64: _blkif(blkif.X86_64, BlkifRequest, ""),
    record.LayoutCode.X86_32: _blkif(blkif.X86_32, BlkifRequest32, "32"),
}
BlkifRw, BlkifDiscard, BlkifIndirect, BlkifOther, BlkifResponse = _BLKIF[record.LayoutCode.X86_64]
BlkifRw32, BlkifDiscard32, BlkifIndirect32, BlkifOther32, BlkifResponse32 = _BLKIF[
    record.LayoutCode.X86_32
]


def _blkif_of(layout: int, way: int, data: bytes) -> type[Packet]:
    if layout not in _BLKIF:
        return Raw
    rw, discard, indirect, other, response = _BLKIF[record.LayoutCode(layout)]
    if way == record.Way.TO_INITIATOR:
        return response
    if data[0] <= blkif.Operation.FLUSH_DISKCACHE:
        return rw
    if data[0] == blkif.Operation.DISCARD:
        return discard
    return indirect if data[0] == blkif.Operation.INDIRECT else other


# Records


def _message_of(packet: Packet, data: bytes) -> type[Packet]:
    if packet.protocol == record.Protocol.SRP:
        return SrpSlot
    if packet.protocol == record.Protocol.BLKIF:
        return _blkif_of(packet.layout, packet.direction_, data)
    if packet.protocol != record.Protocol.VSCSIIF:
        return Raw
    if packet.direction_ == record.Way.TO_INITIATOR:
        return VscsiifResponse
    preset = len(data) > 2 and data[2] == vscsiif.Act.SG_PRESET
    return VscsiifPreset if preset else VscsiifRequest


def _segment(data: bytes, _parent: Packet | None = None) -> Packet:
    is_blkif = _parent is not None and _parent.protocol == record.Protocol.BLKIF
    return (BlkifSegment if is_blkif else VscsiifSegment)(data, _parent=_parent)


Record = _layer(
    "Record",
    _fields(
        record.Record,
        {
            "protocol": record.Protocol,
            "direction": record.Way,
            "layout": record.LayoutCode,
            "payload_kind": record.PayloadKind,
        },
        {
            "message_length": [
                FieldLenField("message_length", None, length_of="message", fmt="<H")
            ],
            "segments_length": [
                FieldLenField("segments_length", None, length_of="segments", fmt="<H")
            ],
            "message": [Choice("message", _message_of, lambda packet: packet.message_length)],
            "segments": [
                PacketListField(
                    "segments",
                    [],
                    _segment,
                    length_from=lambda packet: packet.segments_length,
                    max_count=MAX_ENTRIES,
                )
            ],
            "payload": [StrField("payload_", b"")],
        },
    ),
)
conf.l2types.register(LINKTYPE_USER0, Record)
