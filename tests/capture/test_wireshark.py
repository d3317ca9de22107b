# SPDX-License-Identifier: MIT
"""The dissector in Lua: its fields are what vscsi.wire parses; Wireshark's SCSI sees the CDBs."""

import json
import subprocess
from collections import defaultdict

import pytest
from construct import Container

import vscsi
from tests.capture.recorded import NAMES
from vscsi.capture.choice import Choice, Payload
from vscsi.capture.exchange import Exchanges
from vscsi.capture.reader import CaptureReader
from vscsi.capture.wireshark import FORMATS, MADS, SCRIPT, fields, script
from vscsi.capture.writer import CaptureWriter
from vscsi.transport.hba import ScsiError
from vscsi.wire import blkif, mad, pcapng, record, srp, vscsiif
from vscsi.wire.cdb import build
from vscsi.wire.errors import WireError
from vscsi.wire.lun import encode
from vscsi.wire.record import LayoutCode, PayloadKind, Protocol, Way
from vscsi.wire.srp import IuType
from vscsi.wire.srp_ring import SlotFormat, SlotHeader, build_slot, parse_slot

LAYOUTS = {LayoutCode.X86_64: (blkif.X86_64, 64), LayoutCode.X86_32: (blkif.X86_32, 32)}


def tshark(file, *options):
    command = ["tshark", "-2", "-X", f"lua_script:{SCRIPT}", "-r", str(file), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Lua" not in done.stderr
    return done.stdout


def collect(node, found):
    """Gather the values of the dissector's fields below a node of tshark's JSON."""
    for key, value in node.items():
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, dict):
                collect(each, found)
            elif key.startswith("vscsi."):
                found[key.removeprefix("vscsi.")].append(each)


def dissected(file):
    frames = json.loads(tshark(file, "-T", "json", "--no-duplicate-keys", "-J", "vscsi"))
    for frame in frames:
        found = defaultdict(list)
        collect(frame["_source"]["layers"], found)
        yield found


# What vscsi.wire says


def add(found, name, values, length=None):
    """length: of the message, where that may end before the format does."""
    for field, at, *_ in fields(FORMATS[name]):
        if length is None or at < length:
            found[f"{name}.{field}"].append(values[field])


def unit_of(found, data):
    add(found, "srp_slot", SlotHeader.parse(data[: SlotHeader.sizeof()]))
    form, unit = parse_slot(data)
    if form is SlotFormat.MAD:
        message = mad.parse_mad(unit)
        add(found, MADS.get(message.type, "mad"), message)
        found["tag"].append(message.tag)
        return
    iu = srp.parse_iu(unit)
    found["tag"].append(iu.tag)
    add(found, f"srp_{iu.type.name.lower()}", {**iu, "type": int(iu.type)})
    for area in (iu.get("data_out"), iu.get("data_in")):
        if area is None:
            continue
        rows = [area.table, *area.descriptors] if "table" in area else [area]
        for row in rows:
            if "handle" in row:
                add(found, "srp_descriptor", row)
    if iu.type is IuType.CMD:
        found["cdb"].append(iu.cdb + iu.additional_cdb)
    if iu.get("response_data"):
        found["response_data"].append(iu.response_data)
    if iu.type is IuType.RSP and iu.sense_data:
        found["sense"].append(iu.sense_data)


def vscsiif_of(found, parsed):
    if parsed.direction == Way.TO_INITIATOR:
        answer = vscsiif.parse_response(parsed.message)
        add(found, "vscsiif_response", answer, len(parsed.message))
        found["tag"].append(answer.rqid)
        if 0 < answer.sense_len <= len(answer.sense_buffer):
            found["sense"].append(answer.sense_buffer[: answer.sense_len])
        return
    request = vscsiif.parse_request(parsed.message)
    preset = request.act == vscsiif.Act.SG_PRESET
    add(found, "vscsiif_preset" if preset else "vscsiif_request", request)
    found["tag"].append(request.rqid)
    count = request.nr_segments & ~vscsiif.SG_GRANT
    rows = list(request.segments[:count])
    if request.nr_segments & vscsiif.SG_GRANT:
        rows += vscsiif.parse_segments(parsed.segments)
    for row in rows:
        add(found, "vscsiif_segment", row)
    if request.act == vscsiif.Act.CDB:
        found["cdb"].append(request.cdb[: max(1, request.cmd_len)])


def blkif_of(found, parsed):
    layout, bits = LAYOUTS[parsed.layout]
    if parsed.direction == Way.TO_INITIATOR:
        answer = layout.parse_response(parsed.message)
        add(found, f"blkif{bits}_response", answer)
        found["tag"].append(answer.id)
        return
    slot = parsed.message[: layout.slot_size]
    request = layout.parse_request(slot)
    operation, rows = request.operation, []
    name = "rw" if operation <= 3 else {5: "discard", 6: "indirect"}.get(operation, "other")
    form = FORMATS[f"blkif{bits}_{name}"]
    values = Container(request)
    if name == "indirect":
        values.indirect_grefs = b"".join(
            each.to_bytes(4, "little") for each in request.indirect_grefs
        )
        rows = blkif.parse_segments(parsed.segments)
    elif name == "rw":
        rows = request.segments
        for at in range(layout.slot_size, len(parsed.message), layout.slot_size):
            rows = [*rows, *layout.parse_segment_block(parsed.message[at : at + layout.slot_size])]
        rows = rows[: request.nr_segments]
    assert form.sizeof is not None
    add(found, f"blkif{bits}_{name}", values)
    found["tag"].append(request.id)
    for row in rows:
        add(found, "blkif_segment", row)


def parsed_fields(parsed):
    """The dissector's fields and their values, by our own parsers."""
    found = defaultdict(list)
    add(found, "record", parsed)
    queue = f"-{parsed.queue}" if parsed.queue else ""
    name = Protocol(parsed.protocol).name.lower()
    found["path"].append(f"{name}-{parsed.domain}-{parsed.device}{queue}")
    if parsed.payload:
        found["payload"].append(parsed.payload)
    found["message"].append(parsed.message)
    {
        Protocol.SRP: lambda: unit_of(found, parsed.message),
        Protocol.VSCSIIF: lambda: vscsiif_of(found, parsed),
        Protocol.BLKIF: lambda: blkif_of(found, parsed),
    }[parsed.protocol]()
    return found


def same(told, value):
    if isinstance(value, bytes):
        return bytes.fromhex(told.replace(":", "")) == value
    if isinstance(value, str):
        return told == value
    return int(told, 0) == int(value)


PAIRS = ("request_in", "answer_in", "time")


def compare(file):
    """Compare every field of every frame; return the frames' exchanges."""
    with open(file, "rb") as stream:
        messages = list(CaptureReader(stream))
    frames = list(dissected(file))
    assert len(frames) == len(messages)
    seen = set()
    for frame, message in zip(frames, messages, strict=True):
        expected = parsed_fields(message.record)
        told = {key: values for key, values in frame.items() if key not in PAIRS}
        assert told.keys() == expected.keys()
        for key, values in expected.items():
            assert len(told[key]) == len(values), key
            assert all(map(same, told[key], values)), (key, told[key], values)
        seen |= expected.keys()
    exchanges = Exchanges()
    for frame, message in zip(frames, messages, strict=True):
        for each in exchanges.add(message):
            if each.answer is not None and each.request is not None:
                assert round(float(frame["time"][0]) * 1e9) == each.latency_ns
    return seen


def test_the_tables_are_those_of_the_declarations():
    assert SCRIPT.read_text() == script(), "run python -m vscsi.capture.wireshark"


@pytest.mark.parametrize("name", NAMES)
def test_stock_drivers_messages(tmp_path, stock_records, capture_file, name):
    file = tmp_path / "a.pcapng"
    file.write_bytes(capture_file(stock_records(name)))
    compare(file)


def units():
    """One of each information unit and MAD, with each kind of buffer."""
    direct = {"address": 0x1122334455667788, "handle": 9, "length": 4096}
    table = {"table": direct, "total_length": 8192, "descriptors": [direct, direct]}
    sense = bytes.fromhex("700005000000000a00000000210000000000")
    lun = encode(300)
    for kind in IuType:
        unit = srp.build_iu(kind, tag=0xFEDCBA9876543210 + kind)
        yield Way.TO_INITIATOR if kind & 0x80 else Way.TO_TARGET, SlotFormat.SRP, unit
    read = build("READ(32)", lba=5, blocks=1)
    more = {"cdb": read[:16], "additional_cdb_length": 16, "additional_cdb": read[16:]}
    for fields_ in (
        {"cdb": build("READ(10)", lba=9, blocks=8).ljust(16, b"\0"), "data_in": direct},
        {"cdb": build("WRITE(10)", lba=9, blocks=8).ljust(16, b"\0"), "data_out": table},
        {**more, "data_in": table, "attribute": 2},
    ):
        yield Way.TO_TARGET, SlotFormat.SRP, srp.build_iu(IuType.CMD, tag=7, lun=lun, **fields_)
        flags = srp.RspFlags.SNSVALID | srp.RspFlags.DIUNDER
        told = {"flags": flags, "status": 2, "sense_data": sense, "data_in_residual": 512}
        yield Way.TO_INITIATOR, SlotFormat.SRP, srp.build_iu(IuType.RSP, tag=7, **told)
    code = {"flags": srp.RspFlags.RSPVALID, "response_data": bytes([0, 0, 0, 2])}
    yield Way.TO_INITIATOR, SlotFormat.SRP, srp.build_iu(IuType.RSP, tag=8, **code)
    for kind in mad.MadType:
        values = {"pages": 3, "directory": [5, 6]} if "REGION" in kind.name else {}
        if kind == mad.MadType.UNREGISTER_REGION:
            values = {}
        for way in Way:
            unit = mad.build_mad(kind, tag=int(kind), status=0xF1 * way, **values)
            yield way, SlotFormat.MAD, unit


def rings():
    """Messages of vscsiif and blkif that are unlike those of stock drivers."""
    segments = [{"gref": at, "offset": 0, "length": 512} for at in range(9)]
    for act in vscsiif.Act:
        yield (
            Protocol.VSCSIIF,
            0,
            Way.TO_TARGET,
            vscsiif.build_request(
                rqid=5, act=act, segments=segments, **({} if act == 4 else {"cdb": bytes(6)})
            ),
            b"",
        )
        rslt = vscsiif.RESET_SUCCESS if act in (2, 3) else 2
        sense = bytes.fromhex("70000600000000") + b"\n" + bytes(10)
        yield (
            Protocol.VSCSIIF,
            0,
            Way.TO_INITIATOR,
            vscsiif.build_response(
                rqid=5, rslt=rslt, sense_buffer=sense if act == 1 else b"", residual=3
            ),
            b"",
        )
    table = vscsiif.build_segments(segments * 7)
    granted = vscsiif.build_request(
        rqid=6, lun=260, cdb=build("READ(16)"), segments=segments[:1], nr_segments=0x81
    )
    yield Protocol.VSCSIIF, 0, Way.TO_TARGET, granted, table
    areas = [{"gref": 3, "first_sect": 1, "last_sect": at % 8} for at in range(11)]
    for code, (layout, _) in LAYOUTS.items():
        for operation in blkif.Operation:
            values = {"id": 77}
            if operation <= blkif.Operation.FLUSH_DISKCACHE:
                values |= {"sector_number": 1 << 40, "segments": areas}
            elif operation == blkif.Operation.DISCARD:
                values |= {"sector_number": 5, "nr_sectors": 1 << 33}
            elif operation == blkif.Operation.INDIRECT:
                values |= {"nr_segments": 30, "indirect_grefs": range(8), "indirect_op": 1}
            more = blkif.build_segments(areas) if operation == blkif.Operation.INDIRECT else b""
            slot = layout.build_request(operation, **values)
            yield Protocol.BLKIF, code, Way.TO_TARGET, slot, more
            answer = layout.build_response(id=77, operation=operation, status=-1)
            yield Protocol.BLKIF, code, Way.TO_INITIATOR, answer, b""
    slots = blkif.X86_64.build_request(0, id=4, nr_segments=14, segments=areas)
    slots += blkif.build_segments(areas[:3]).ljust(112, b"\0")
    yield Protocol.BLKIF, LayoutCode.X86_64, Way.TO_TARGET, slots, b""


def test_each_kind_of_message(tmp_path, make_record, capture_file):
    packets = []
    for way, form, unit in units():
        packets.append((Protocol.SRP, 0, way, build_slot(form, unit), b""))
    packets += rings()
    file = tmp_path / "a.pcapng"
    records = [
        make_record(protocol, way, at, message, layout=layout, segments=more, queue=at % 3 and 1)
        for at, (protocol, layout, way, message, more) in enumerate(packets)
    ]
    file.write_bytes(capture_file([(at * 1000, each) for at, each in enumerate(records)]))
    frames = list(dissected(file))
    messages = [record.parse_record(each) for each in records]
    seen = set()
    for frame, parsed in zip(frames, messages, strict=True):
        expected = parsed_fields(parsed)
        told = {key: values for key, values in frame.items() if key not in PAIRS}
        assert told.keys() == expected.keys()
        for key, values in expected.items():
            assert len(told[key]) == len(values), key
            assert all(map(same, told[key], values)), (key, told[key], values)
        seen |= expected.keys()
    everything = {f"{name}.{field}" for name in FORMATS for field, *_ in fields(FORMATS[name])}
    assert everything - seen == set()


@pytest.fixture
def traffic(serve, tmp_path):
    """A capture of a served disk over all three protocols, with data."""
    served = serve()
    file = tmp_path / "a.pcapng"
    writer = CaptureWriter(
        file.open("wb", buffering=0), "a test", choice=Choice(payload=Payload(65536))
    )
    served.export.tap.add(writer, writer.choice.payload.wanted)
    for kind in ("srp", "vscsiif", "blkif"):
        with vscsi.connect(f"{kind}:{served.directory}") as hba:
            unit = hba.lun(0)
            for lba in range(5):
                unit.write(lba * 8, bytes([lba]) * 4096)
                unit.read(lba, 3)
            unit.unmap(8, 4)
            unit.inquiry()
            with pytest.raises(ScsiError):
                unit.command(build("READ(10)", lba=1 << 30, blocks=1), data_in=512)
    served.stop()
    writer.close()
    return file


def test_traffic(traffic):
    compare(traffic)


def test_wiresharks_own_scsi_dissector_sees_the_commands(traffic, joined):
    """CDBs, statuses, sense, times, data: all fields are Wireshark's."""
    exchanges = [each for each in joined(traffic.read_bytes()) if each.request.cdb]
    assert len(exchanges) >= 30
    columns = ("frame.time_epoch", "vscsi.cdb", "scsi_sbc.opcode", "scsi_sbc.rdwr16.lba")
    options = [word for each in columns for word in ("-e", each)]
    requests = tshark(traffic, "-Y", "vscsi.cdb", "-T", "fields", *options).splitlines()
    assert len(requests) == len(exchanges)
    by_time = {each.captured.time_ns: each for each in exchanges}
    for line in requests:
        time, cdb, opcode, lba = line.split("\t")
        cdb = bytes.fromhex(cdb)
        assert int(time.replace(".", "")) in by_time
        if opcode:
            assert int(opcode.split(",")[0], 0) == cdb[0]
        if cdb[0] in (0x88, 0x8A):
            assert bytes.fromhex(lba) == cdb[2:10]
    answers = tshark(
        traffic, "-Y", "scsi.time", "-T", "fields", "-e", "scsi.time", "-e", "vscsi.time"
    ).splitlines()
    assert len(answers) > 25
    for line in answers:
        theirs, ours = line.split("\t")
        assert theirs.split(",")[0] == ours
    sense = tshark(traffic, "-Y", "scsi.sns.key", "-T", "fields", "-e", "scsi.sns.key")
    assert {int(line, 0) for line in sense.split()} >= {5}
    vendors = tshark(
        traffic, "-Y", "scsi.inquiry.vendor_id", "-T", "fields", "-e", "scsi.inquiry.vendor_id"
    )
    assert set(vendors.split()) == {"VSCSI"}
    options = ("-e", "scsi_sbc.unmap.lba", "-e", "scsi_sbc.unmap.num_blocks")
    ranges = tshark(traffic, "-Y", "scsi_sbc.unmap.lba", "-T", "fields", *options)
    assert set(ranges.splitlines()) == {"8\t4"}


def test_wiresharks_response_times_are_ours(traffic, joined):
    table = tshark(traffic, "-q", "-z", "scsi,srt,0")
    counted = {}
    for line in table.splitlines():
        words = line.split()
        if len(words) > 6 and words[0].isdigit():
            counted[int(words[0])] = int(words[-5]), float(words[-1])
    ours = defaultdict(list)
    for each in joined(traffic.read_bytes()):
        if each.request.cdb and each.answer is not None and each.answer.status == 0:
            ours[each.request.cdb[0]].append(each.latency_ns)
    for opcode in (0x88, 0x8A, 0x42, 0x12):
        count, total = counted[opcode]
        assert count == len(ours[opcode])
        assert total == pytest.approx(sum(ours[opcode]) / 1e9, abs=2e-6)


def test_hostile_records_do_not_stop_it(tmp_path, make_record, capture_file, stock_records):
    """Cut, and with each byte of their beginning changed."""
    packets = []
    for name in NAMES:
        for _, data in stock_records(name)[:3]:
            packets += [(0, data[:length]) for length in range(0, len(data), 7)]
            for at in range(min(60, len(data))):
                changed = bytearray(data)
                changed[at] ^= 0xFF
                packets.append((0, bytes(changed)))
    for protocol in (0, 1, 2, 3, 77):
        for way in (*Way, 9):
            packets += [(0, make_record(protocol, way, 0, bytes(n))) for n in (0, 1, 3, 40, 300)]
    file = tmp_path / "a.pcapng"
    file.write_bytes(capture_file(packets))
    text = tshark(file, "-T", "fields", "-e", "_ws.col.Info", "-e", "_ws.lua.text")
    assert len(text.splitlines()) == len(packets)
    assert "attempt to" not in text


def test_a_dissector_refuses_other_versions(tmp_path, make_record, capture_file):
    file = tmp_path / "a.pcapng"
    data = make_record(Protocol.SRP, Way.TO_TARGET, 0, bytes(64))
    file.write_bytes(capture_file([(0, b"\x01" + data[1:])]))
    assert "no record of this version" in tshark(file, "-V")
    with pytest.raises(WireError):
        record.parse_record(b"\x01" + data[1:])
    assert PayloadKind.NONE == 0
    assert pcapng.LINKTYPE_USER0 == 147
