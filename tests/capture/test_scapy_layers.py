# SPDX-License-Identifier: MIT
"""The scapy layers have the fields of vscsi.wire, value for value, and build the same bytes."""

import pytest
from construct import Container
from scapy.packet import Packet
from scapy.utils import PcapNgReader, rdpcap, wrpcapng

from vscsi.capture import scapy_layers as layers
from vscsi.capture.scapy_layers import (
    DescriptorSense,
    FixedSense,
    IndirectDescriptor,
    MemoryDescriptor,
    Record,
    SrpCmd,
    SrpRsp,
    SrpSlot,
    VscsiifRequest,
    VscsiifResponse,
    VscsiifSegment,
    cdb,
)
from vscsi.wire import blkif, mad, sense, srp, vscsiif
from vscsi.wire.cdb import build as build_cdb
from vscsi.wire.cdb import named
from vscsi.wire.opcodes import COMMANDS
from vscsi.wire.record import LayoutCode, PayloadKind, Protocol, Way, parse_record
from vscsi.wire.srp_ring import SlotFormat, build_slot, parse_slot

BLKIF = {LayoutCode.X86_64: blkif.X86_64, LayoutCode.X86_32: blkif.X86_32}


def rebuilt(packet):
    """Return a packet's bytes, made from its fields."""
    packet.clear_cache()
    return bytes(packet)


def same(packet, parsed):
    """Compare each field of a layer with the parsed value; returns how many there were."""
    count = 0
    for name, expected in parsed.items():
        if name in ("_io", "additional_cdb", "data_formats"):  # the last: its halves are compared
            continue
        found = packet.getfieldval(name if name in packet.fields else f"{name}_")
        count += same_value(found, expected, packet, name)
    return count


def same_value(found, expected, packet, name):
    if isinstance(expected, Container):
        return same(found, expected)
    if isinstance(expected, list):
        assert len(found) == len(expected), name
        pairs = zip(found, expected, strict=True)
        return sum(same_value(each, other, packet, name) for each, other in pairs)
    if isinstance(found, Packet):
        whole = expected
        if name == "cdb" and isinstance(packet, SrpCmd):
            whole = srp.cdb_of(srp.parse_iu(bytes(packet)))
        assert bytes(found) == whole, name
    else:
        assert (b"" if found is None and expected == b"" else found) == expected, name
    return 1


def check_record(packet, data):
    """Compare a dissected record with what vscsi.wire parses; build it again."""
    record = parse_record(data)
    header = {k: v for k, v in record.items() if k not in ("message", "segments", "_io")}
    same(packet, header)
    message = packet.message
    if record.protocol == Protocol.SRP:
        form, unit = parse_slot(record.message)
        parsed = mad.parse_mad(unit) if form is SlotFormat.MAD else srp.parse_iu(unit)
        same(message.unit, parsed)
    else:
        request = record.direction == Way.TO_TARGET
        codec = vscsiif if record.protocol == Protocol.VSCSIIF else BLKIF[record.layout]
        parse = codec.parse_request if request else codec.parse_response
        same(message, parse(record.message))
    assert rebuilt(packet) == data


def test_every_message_of_stock_drivers_dissects_as_it_parses(stock_capture, read, tmp_path):
    data, count = stock_capture
    file = tmp_path / "a.pcapng"
    file.write_bytes(data)
    packets = rdpcap(str(file))
    assert len(packets) == count
    raw = [bytes(packet) for packet in packets]
    for packet, bytes_, message in zip(packets, raw, read(data)[0], strict=True):
        assert type(packet) is Record
        check_record(packet, bytes_)
        assert int(packet.time * 10**9) == message.time_ns


def test_what_scapy_writes_is_a_capture_that_we_read(stock_capture, read, tmp_path):
    data, count = stock_capture
    ours, theirs = tmp_path / "ours.pcapng", tmp_path / "theirs.pcapng"
    ours.write_bytes(data)
    with PcapNgReader(str(ours)) as packets:
        wrpcapng(str(theirs), list(packets))
    again, _ = read(theirs.read_bytes())
    assert [message.record for message in again] == [message.record for message in read(data)[0]]
    assert len(again) == count


def test_srp_vectors(vectors):
    for name in vectors:
        if name.startswith("srp_"):
            data = bytes.fromhex(vectors[name]["wire"])
            parsed = srp.parse_iu(data)
            layer = layers.IUS[parsed.type]
            packet = layer(data)
            assert same(packet, parsed) >= 3
            assert rebuilt(packet) == data


@pytest.mark.parametrize("code", BLKIF)
def test_blkif_vectors(vectors, code):
    layout = BLKIF[code]
    suffix = "" if code is LayoutCode.X86_64 else "32"
    names = {"rw": "Rw", "discard": "Discard", "indirect": "Indirect"}
    abi = layout.protocol.removesuffix("-abi")
    for name, layer_name in names.items():
        data = bytes.fromhex(vectors[f"blkif_request_{name}"][abi])
        data = data.ljust(layout.slot_size, b"\0")
        packet = getattr(layers, f"Blkif{layer_name}{suffix}")(data)
        assert same(packet, layout.parse_request(data)) >= 6
        assert rebuilt(packet) == data
    data = bytes.fromhex(vectors["blkif_response"][abi])
    packet = getattr(layers, f"BlkifResponse{suffix}")(data)
    assert same(packet, layout.parse_response(data)) >= 3
    assert rebuilt(packet) == data


def test_vscsiif_vectors(vectors):
    for name in ("vscsiif_request", "vscsiif_request_sg_grant"):
        data = bytes.fromhex(vectors[name]["all_le"])
        packet = VscsiifRequest(data)
        assert same(packet, vscsiif.parse_request(data)) > 80
        assert rebuilt(packet) == data
    data = bytes.fromhex(vectors["vscsiif_response"]["all_le"])
    packet = VscsiifResponse(data)
    assert same(packet, vscsiif.parse_response(data)) == 7
    assert rebuilt(packet) == data


def test_every_layer_has_the_fields_of_its_format():
    """Also those that no recorded message has."""
    pairs = [
        (layers.IUS[kind], srp.FORMATS[kind]) for kind in srp.IuType if kind is not srp.IuType.CMD
    ]
    pairs += [
        (layers.BufferMad, mad.BufferMad),
        (layers.EmptyIu, mad.EmptyIu),
        (layers.RegionMad, mad.RegionMad),
        (layers.Mad, mad.MadHeader),
        (layers.VscsiifPreset, vscsiif.SgPreset),
        (layers.MemoryDescriptor, srp.MemoryDescriptor),
        (layers.ImmediateDescriptor, srp.ImmediateDescriptor),
        (layers.InformationDescriptor, sense.InformationDescriptor),
        (layers.CommandSpecificDescriptor, sense.CommandSpecificDescriptor),
        (layers.SenseKeySpecificDescriptor, sense.SenseKeySpecificDescriptor),
        (layers.StreamDescriptor, sense.StreamDescriptor),
        (layers.BlkifSegment, blkif.Segment),
        (layers.VscsiifSegment, vscsiif.Segment),
    ]
    for code, suffix in ((LayoutCode.X86_64, ""), (LayoutCode.X86_32, "32")):
        for name in ("rw", "discard", "indirect", "other", "response"):
            layer = getattr(layers, f"Blkif{name.title()}{suffix}")
            pairs.append((layer, getattr(BLKIF[code].formats, name)))
    for layer, form in pairs:
        names = [field.name.removesuffix("_") for field in layer.fields_desc]
        assert names == [field.name for field in form.subcons], layer


ROWS = {row.name: row for rows in COMMANDS.values() for row in rows}


@pytest.mark.parametrize("name", ROWS)
def test_a_crafted_cdb_of_every_command(name):
    """Each field alone, at its greatest, and all of them."""
    row = named(name)
    greatest = {field: place.mask >> place.shift for field, place in row.fields.items()}
    for values in ({}, greatest, *({field: value} for field, value in greatest.items())):
        ours = bytearray(build_cdb(row, control=0xA5))
        for field, value in values.items():
            row.fields[field].put(ours, value)
        crafted = {f"{k}_" if hasattr(Packet, k) else k: v for k, v in values.items()}
        packet = cdb(name, control=0xA5, **crafted)
        assert bytes(packet) == ours
        again = type(packet)(bytes(ours))
        assert {field: again.getfieldval(field) for field in crafted} == crafted
        assert again.unused == b""


def test_no_such_command():
    with pytest.raises(ValueError, match="no command"):
        cdb("FROBNICATE")


DESCRIPTORS = [{"address": n << 12, "handle": 9, "length": 4096} for n in range(3)]


@pytest.mark.parametrize(
    ("data_out", "data_in"),
    [
        (None, None),
        (None, "direct"),
        ("direct", None),
        ("indirect", "direct"),
        ("immediate", "indirect"),
    ],
)
@pytest.mark.parametrize("command", ["READ(10)", "READ(32)", "TEST UNIT READY"])
def test_crafted_srp_commands(data_out, data_in, command):
    table = {"address": 1, "handle": 2, "length": 48}
    wire = {
        "direct": table,
        "indirect": {"table": table, "total_length": 12288, "descriptors": DESCRIPTORS},
        "immediate": {"length": 77},
    }
    crafted = {
        "direct": MemoryDescriptor(**table),
        "indirect": IndirectDescriptor(
            table=MemoryDescriptor(**table),
            total_length=12288,
            descriptors=[MemoryDescriptor(**each) for each in DESCRIPTORS],
        ),
        "immediate": layers.ImmediateDescriptor(length=77),
    }
    ours = srp.build_iu(
        srp.IuType.CMD,
        tag=5,
        lun=bytes([0, 3] + [0] * 6),
        attribute=2,
        data_out=wire.get(data_out),
        data_in=wire.get(data_in),
        **srp.cdb_fields(build_cdb(command)),
    )
    packet = SrpCmd(
        tag=5,
        lun=bytes([0, 3] + [0] * 6),
        attribute=2,
        cdb=cdb(command),
        data_out=crafted.get(data_out),
        data_in=crafted.get(data_in),
    )
    assert bytes(packet) == ours
    assert same(SrpCmd(ours), srp.parse_iu(ours)) > 15


FIXED = sense.Sense(5, 0x24, 0, field_pointer=2)
DESCRIBED = sense.Sense(3, 0x11, 0, information=1 << 40, command_specific=4, ili=True)


def test_crafted_sense():
    packet = FixedSense(
        response_code=0x70, key=5, asc=0x24, sense_key_specific=bytes.fromhex("c00002")
    )
    assert bytes(packet) == FIXED.build()
    packet = DescriptorSense(
        response_code=0x72,
        key=3,
        asc=0x11,
        descriptors=[
            layers.InformationDescriptor(information=1 << 40),
            layers.CommandSpecificDescriptor(command_specific=4),
            layers.StreamDescriptor(flags=0x20),
        ],
    )
    assert bytes(packet) == DESCRIBED.build(descriptor=True)


def test_dissected_sense():
    unknown = bytes.fromhex("0f03aabbcc")
    data = bytearray(DESCRIBED.build(descriptor=True) + unknown)
    data[7] += len(unknown)
    packet = DescriptorSense(bytes(data) + b"more")
    assert [each.name for each in packet.descriptors] == [
        "InformationDescriptor",
        "CommandSpecificDescriptor",
        "StreamDescriptor",
        "OtherDescriptor",
    ]
    assert packet.descriptors[3].data == b"\xaa\xbb\xcc"
    assert packet.more == b"more"
    assert rebuilt(packet) == bytes(data) + b"more"


def test_crafted_answers():
    sense_data = FIXED.build()
    ours = srp.build_iu(srp.IuType.RSP, tag=5, status=2, flags=0x02, sense_data=sense_data)
    packet = SrpRsp(tag=5, status=2, flags=0x02, sense_data=FixedSense(sense_data))
    assert bytes(packet) == ours
    ours = vscsiif.build_response(rqid=5, rslt=2, sense_buffer=sense_data)
    packet = VscsiifResponse(rqid=5, rslt=2, sense_buffer=FixedSense(sense_data))
    assert bytes(packet) == ours
    assert bytes(layers.BlkifResponse(id=5, operation=1, status=-2)) == (
        blkif.X86_64.build_response(id=5, operation=1, status=-2)
    )


def test_crafted_requests():
    segments = [{"gref": n, "offset": 0, "length": 512} for n in range(2)]
    ours = vscsiif.build_request(
        rqid=1, cdb=build_cdb("READ(10)", lba=7), direction=2, segments=segments
    )
    packet = VscsiifRequest(
        rqid=1,
        cdb=cdb("READ(10)", lba=7),
        direction_=2,
        segments=[VscsiifSegment(**each) for each in segments],
    )
    assert bytes(packet) == ours
    ours = vscsiif.build_request(rqid=1, act=vscsiif.Act.SG_PRESET, segments=segments)
    packet = layers.VscsiifPreset(rqid=1, segments=[VscsiifSegment(**each) for each in segments])
    assert bytes(packet) == ours
    segments = [{"gref": n, "first_sect": 1, "last_sect": 7} for n in range(3)]
    crafted = [layers.BlkifSegment(**each) for each in segments]
    for layout, suffix in ((blkif.X86_64, ""), (blkif.X86_32, "32")):
        for operation, name, fields, wire in (
            (1, "Rw", {"segments": crafted}, {"segments": segments}),
            (5, "Discard", {"nr_sectors": 9}, {"nr_sectors": 9}),
            (6, "Indirect", {"nr_segments": 9, "indirect_grefs": [4, 5]}, None),
        ):
            packet = getattr(layers, f"Blkif{name}{suffix}")(
                operation=operation, id=8, sector_number=16, handle=3, **fields
            )
            ours = layout.build_request(
                operation, id=8, sector_number=16, handle=3, **(wire or fields)
            )
            assert bytes(packet) == ours


def test_a_crafted_record(make_record):
    unit = srp.build_iu(srp.IuType.TSK_MGMT, tag=1, function=8)
    ours = make_record(
        Protocol.SRP, Way.TO_TARGET, 3, build_slot(SlotFormat.SRP, unit), queue=1, in_flight=2
    )
    packet = Record(
        protocol=Protocol.SRP,
        domain=7,
        device=3,
        queue=1,
        in_flight=2,
        ring_index=3,
        message=SrpSlot(format=SlotFormat.SRP, unit=layers.TskMgmt(tag=1, function=8)),
    )
    assert bytes(packet) == ours
    ours = make_record(
        Protocol.BLKIF,
        Way.TO_TARGET,
        3,
        blkif.X86_64.build_request(6, id=8),
        segments=blkif.build_segments([{"gref": 1}] * 200),
    )
    packet = Record(
        protocol=Protocol.BLKIF,
        layout=LayoutCode.X86_64,
        domain=7,
        device=3,
        ring_index=3,
        message=layers.BlkifIndirect(operation=6, id=8),
        segments=[layers.BlkifSegment(gref=1)] * 200,
    )
    assert bytes(packet) == ours
    assert len(Record(ours).segments) == 200


def test_a_record_with_data(make_record):
    ours = make_record(
        Protocol.VSCSIIF,
        Way.TO_TARGET,
        3,
        vscsiif.build_request(rqid=1, cdb=bytes(6)),
        segments=vscsiif.build_segments([{"gref": 9}] * 3),
        payload_kind=PayloadKind.HEAD,
        data_length=4096,
        payload=b"first bytes",
    )
    packet = Record(ours)
    assert (packet.payload_kind, packet.data_length) == (PayloadKind.HEAD, 4096)
    assert packet.payload_ == b"first bytes"
    assert [segment.gref for segment in packet.segments] == [9] * 3
    assert bytes(packet) == ours
    packet = Record(
        protocol=Protocol.VSCSIIF,
        domain=7,
        device=3,
        ring_index=3,
        payload_kind=PayloadKind.HEAD,
        data_length=4096,
        message=layers.VscsiifRequest(rqid=1, cdb=layers.cdb("TEST UNIT READY")),
        segments=[layers.VscsiifSegment(gref=9)] * 3,
        payload_=b"first bytes",
    )
    assert bytes(packet) == ours


def test_mads():
    ours = mad.build_mad(mad.MadType.REGISTER_REGION, tag=1, handle=2, pages=9, directory=[7, 8])
    packet = layers.RegionMad(
        type=mad.MadType.REGISTER_REGION, tag=1, handle=2, pages=9, directory=[7, 8]
    )
    assert bytes(packet) == ours
    for kind in (*mad.MadType, 0x99):
        data = mad.build_mad(kind, tag=5, status=3)
        slot = SrpSlot(build_slot(SlotFormat.MAD, data))
        assert same(slot.unit, mad.parse_mad(data)) >= 4
        assert rebuilt(slot.unit) == data


def test_what_cannot_be_dissected_keeps_its_bytes(make_record):
    """Cut messages, unknown codes: nothing is raised, nothing is lost."""
    unit = srp.build_iu(srp.IuType.CMD, data_in=DESCRIPTORS[0], **srp.cdb_fields(b"\xee" * 16))
    slot = build_slot(SlotFormat.SRP, unit)
    for length in range(len(slot)):
        for message in (slot[:length], bytes([1, 0, length, 0]) + unit[:length], b"\xff" * length):
            for protocol in (*Protocol, 9):
                for way in Way:
                    data = make_record(protocol, way, 0, message)
                    packet = Record(data)
                    assert bytes(packet) == data
                    assert bytes(packet.message or b"") == message
