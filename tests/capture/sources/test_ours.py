# SPDX-License-Identifier: MIT
"""Our own captures as columns: the same as message by message, whatever is in them."""

import contextlib
import gzip
import io
import json
import os
import signal
import struct

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.capture import recorded, synthetic
from vscsi.capture import exchange as exchange_module
from vscsi.capture import reader as reader_module
from vscsi.capture.commands import SCHEMA, Fate, Operation
from vscsi.capture.decode import Kind
from vscsi.capture.exchange import Exchanges
from vscsi.capture.reader import CaptureReader
from vscsi.capture.sources import Opened, ours
from vscsi.capture.sources.ours import source as source_module
from vscsi.target.base import Function
from vscsi.wire import blkif, cdb, mad, pcapng, vscsiif
from vscsi.wire.errors import WireError
from vscsi.wire.formats import build
from vscsi.wire.lun import encode
from vscsi.wire.parameters import ReadCapacity16, UnmapDescriptor, UnmapHeader
from vscsi.wire.record import LayoutCode, PayloadKind, Protocol, Way
from vscsi.wire.sense import Sense, parse_sense
from vscsi.wire.srp import IuType, RspFlags, build_iu, cdb_fields
from vscsi.wire.srp_ring import SlotFormat, build_slot

PROTOCOLS = (Protocol.SRP, Protocol.VSCSIIF, Protocol.BLKIF, Protocol.SRP)
RINGS = [f"{protocol.name.lower()}-7-{n}" for n, protocol in enumerate(PROTOCOLS)]
BUFFER = {"address": 0, "handle": 1, "length": 4096}
INDIRECT = {"table": BUFFER, "total_length": 8192, "descriptors": [BUFFER, BUFFER]}
SENSE = Sense(3, 0x11, 0).build()
CDBS = [
    cdb.build("READ(10)", lba=77, blocks=8),
    cdb.build("WRITE(16)", lba=1 << 40, blocks=3, fua=1),
    cdb.build("READ(6)", lba=9, blocks=256),
    cdb.build("WRITE(32)", lba=5, blocks=1),
    cdb.build("SYNCHRONIZE CACHE(10)"),
    cdb.build("UNMAP", parameter_list_length=24),
    cdb.build("WRITE SAME(16)", lba=3, blocks=99, unmap=1),
    cdb.build("REPORT SUPPORTED OPERATION CODES", allocation_length=512),
    bytes.fromhex("ff0102"),
    bytes.fromhex("7f00000000000013"),
]


# Messages: protocol by protocol, as (way, message, fields of the record).


def srp_slot(kind, **fields):
    way = Way.TO_INITIATOR if kind & 0x80 else Way.TO_TARGET
    return way, build_slot(SlotFormat.SRP, build_iu(kind, **fields))


TAGS = st.integers(0, 3)
LUNS = st.sampled_from([encode(0), encode(1), bytes.fromhex("c101" + 12 * "0")])
BUFFERS = st.sampled_from([None, BUFFER, INDIRECT])

SRP_COMMANDS = st.builds(
    lambda tag, lun, data, out, into, attribute: srp_slot(
        IuType.CMD,
        tag=tag,
        lun=lun,
        data_out=out,
        data_in=into,
        attribute=attribute,
        **cdb_fields(data),
    ),
    TAGS,
    LUNS,
    st.sampled_from(CDBS),
    st.one_of(BUFFERS, st.just({"length": 12})),
    BUFFERS,
    st.integers(0, 9),
)
SRP_ANSWERS = st.builds(
    lambda tag, status, flags, response, residual: srp_slot(
        IuType.RSP,
        tag=tag,
        status=status,
        flags=flags | (RspFlags.RSPVALID if response is not None else 0),
        sense_data=SENSE if flags & RspFlags.SNSVALID else b"",
        response_data=bytes([0, 0, 0, response]) if response is not None else b"",
        data_in_residual=residual,
        data_out_residual=residual // 2,
    ),
    TAGS,
    st.sampled_from([0, 2, 8]),
    st.sampled_from([0, 2, 4, 8, 16, 32, 2 | 8, 8 | 16, 4 | 32]),
    st.sampled_from([None, None, None, 0, 2]),
    st.integers(0, 5000),
)
SRP_ODD = st.one_of(
    st.builds(
        lambda tag, function, managed, lun: srp_slot(
            IuType.TSK_MGMT, tag=tag, function=function, managed_tag=managed, lun=lun
        ),
        TAGS,
        st.sampled_from([*Function, 0x77]),
        TAGS,
        LUNS,
    ),
    st.builds(
        srp_slot,
        st.sampled_from(sorted({*IuType} - {IuType.CMD, IuType.RSP, IuType.TSK_MGMT})),
        tag=TAGS,
    ),
    st.builds(
        lambda way, tag: (way, build_slot(SlotFormat.MAD, mad.build_mad(0x10, tag=tag))),
        st.sampled_from(Way),
        TAGS,
    ),
)
SEGMENTS = st.lists(
    st.builds(lambda length: {"gref": 1, "offset": 0, "length": length}, st.integers(0, 4096)),
    max_size=4,
)
VSCSIIF_COMMANDS = st.builds(
    lambda tag, lun, data, direction, segments, more: (
        Way.TO_TARGET,
        vscsiif.build_request(
            rqid=tag,
            id=1,
            lun=lun,
            cdb=data[:16],
            direction=direction,
            segments=segments,
            nr_segments=more or len(segments),
        ),
        {"segments": vscsiif.build_segments(segments) + b"odd"},
    ),
    TAGS,
    st.integers(0, 300),
    st.sampled_from(CDBS),
    st.integers(0, 4),
    SEGMENTS,
    st.sampled_from([0, 0, 0x80 | 1, 99]),
)
VSCSIIF_ANSWERS = st.builds(
    lambda tag, rslt, sense, residual: (
        Way.TO_INITIATOR,
        vscsiif.build_response(rqid=tag, rslt=rslt, sense_buffer=sense, residual=residual),
    ),
    TAGS,
    st.sampled_from([0, 2, 8, 7 << 16, 0x2002, 0x2003]),
    st.sampled_from([b"", SENSE]),
    st.sampled_from([0, 512, 0xFFFFFFFF]),
)
VSCSIIF_ODD = st.builds(
    lambda tag, act, ref: (
        Way.TO_TARGET,
        vscsiif.build_request(
            rqid=tag, act=act, **({} if act == vscsiif.Act.SG_PRESET else {"ref_rqid": ref})
        ),
    ),
    TAGS,
    st.sampled_from([2, 3, 4, 9]),
    TAGS,
)
SECTORS = st.lists(
    st.builds(
        lambda first, last: {"gref": 1, "first_sect": first, "last_sect": last},
        st.integers(0, 7),
        st.integers(0, 7),
    ),
    max_size=11,
)
LAYOUTS = st.sampled_from([(LayoutCode.X86_64, blkif.X86_64), (LayoutCode.X86_32, blkif.X86_32)])
BLKIF_COMMANDS = st.builds(
    lambda layout, tag, operation, sector, segments, inner: (
        Way.TO_TARGET,
        layout[1].build_request(
            operation,
            id=tag,
            sector_number=sector,
            **(
                {"indirect_op": inner, "nr_segments": len(segments)}
                if operation == blkif.Operation.INDIRECT
                else {"nr_sectors": 1 << 33 if inner else 64}
                if operation == blkif.Operation.DISCARD
                else {"segments": segments}
            ),
        ),
        {"layout": layout[0], "segments": blkif.build_segments(segments) + b"xyz"},
    ),
    LAYOUTS,
    TAGS,
    st.sampled_from([0, 1, 2, 3, 5, 6]),
    st.sampled_from([0, 8, 1 << 40]),
    SECTORS,
    st.sampled_from([0, 1, 3, 9]),
)
BLKIF_ANSWERS = st.builds(
    lambda layout, tag, status, whole: (
        Way.TO_INITIATOR,
        layout[1].build_response(id=tag, status=status).ljust(layout[1].slot_size * whole, b"\1"),
        {"layout": layout[0]},
    ),
    LAYOUTS,
    TAGS,
    st.sampled_from([0, -1, -2]),
    st.booleans(),
)
BLKIF_ODD = st.builds(
    lambda tag, operation, blocks: (
        Way.TO_TARGET,
        blkif.X86_64.build_request(operation, id=tag)
        + blkif.build_segments([{"gref": 1, "first_sect": 0, "last_sect": 7}] * 14) * blocks,
        {"layout": LayoutCode.X86_64},
    ),
    TAGS,
    st.sampled_from([0, 1, 4, 5, 77]),
    st.integers(0, 2),
)
KINDS = {
    Protocol.SRP: (SRP_COMMANDS, SRP_ANSWERS, SRP_ODD),
    Protocol.VSCSIIF: (VSCSIIF_COMMANDS, VSCSIIF_ANSWERS, VSCSIIF_ODD),
    Protocol.BLKIF: (BLKIF_COMMANDS, BLKIF_ANSWERS, BLKIF_ODD),
}


class File(bytes):
    def __repr__(self):
        return f"{len(self)} bytes"


@st.composite
def captures(draw):
    """A capture of four rings, and how it is cut into runs.

    On a ring a message is no earlier than the ring's last request, and requests come together.
    """
    packets = []
    asked = [0] * len(RINGS)
    clock = [0] * len(RINGS)
    index = [0] * len(RINGS)
    odd = draw(st.sampled_from([0.0, 0.02, 0.3]))
    for turn in range(draw(st.integers(0, 60))):
        ring = turn if turn < len(RINGS) else draw(st.integers(0, len(RINGS) - 1))
        protocol = PROTOCOLS[ring]
        rare = turn >= len(RINGS) and draw(st.floats(0, 1)) < odd
        which = 0 if turn < len(RINGS) else 2 if rare else draw(st.integers(0, 1))
        way, message, *more = draw(KINDS[protocol][which])
        fields = dict(more[0]) if more else {}
        if turn >= len(RINGS):  # the first of every ring are of one time
            clock[ring] += draw(st.integers(0, 3)) * 1000
        if rare:
            way = draw(st.sampled_from([way, way, way, 1 - way, 7]))
        lost, time_ns = 0, clock[ring]
        if way == Way.TO_TARGET:
            time_ns = draw(st.sampled_from([asked[ring], clock[ring]]))
            asked[ring] = time_ns
            index[ring] += 1
            if rare and draw(st.booleans()):
                index[ring] = draw(st.sampled_from([0, 5, 1 << 31]))
        if rare:
            lost = draw(st.sampled_from([0, 0, 3]))
            message = draw(st.sampled_from([message, message[:10], message[:-1], b"", message]))
            protocol = draw(st.sampled_from([protocol, protocol, 9]))
        if draw(st.integers(0, 4)) == 0:
            kind = draw(st.sampled_from(PayloadKind))
            fields |= {"payload_kind": kind, "payload": draw(st.binary(max_size=40))}
        data = recorded.make_record(
            protocol, way, index[ring], message, **{"device": ring % 3, **fields}
        )
        if rare and draw(st.integers(0, 3)) == 0:
            data = draw(st.sampled_from([b"\x07" + data[1:], data[:9], data[:30]]))
        packets.append((time_ns, data, ring, lost))
    return File(recorded.capture_file(packets, RINGS))


# The same without columns.


def one_by_one(data):
    """Return the commands of a capture as SCHEMA's rows, its events, and its stray answers."""
    reader, exchanges = CaptureReader(io.BytesIO(data)), Exchanges()
    arrived, over, events, unasked = {}, [], [], 0
    position = 0

    def ended(exchange, by):
        nonlocal unasked
        if exchange.request is None:
            unasked += 1
        elif exchange.serial in arrived:
            end = (1 << 63) - 1 if by is None else max(by.time_ns, exchange.captured.time_ns)
            over.append((end, position, exchange, by))
        else:
            events.append(exchange)

    for captured in until_broken(reader):
        for exchange in exchanges.add(captured):
            ended(exchange, captured)
        new = exchanges.newest
        of_disk = captured.record.protocol == Protocol.BLKIF
        if new and new.kind is Kind.COMMAND and (of_disk or new.request.cdb):
            arrived[new.serial] = (captured.time_ns, position, new)
        position += 1
    for exchange in exchanges.rest():
        ended(exchange, None)
    over.sort(key=lambda each: each[:2])
    order = sorted(arrived, key=lambda serial: arrived[serial][:2])
    ends = {exchange.serial: (end, at) for end, at, exchange, _ in over}
    rows = []
    for _, _, exchange, by in over:
        mine = arrived[exchange.serial][:2]
        under_way = [
            serial
            for serial in order
            if arrived[serial][:2] < mine < ends[serial]
            and unit(arrived[serial][2]) == unit(exchange)
        ]
        rows.append(row(exchange, by) | {"serial": order.index(exchange.serial)})
        rows[-1]["outstanding"] = len(under_way)
    return rows, events, unasked, reader


def until_broken(reader):
    with contextlib.suppress(WireError):
        yield from reader


def unit(exchange):
    record = exchange.captured.record
    return Protocol(record.protocol), record.domain, record.device, exchange.request.lun


def row(exchange, by):
    request, answer, record = exchange.request, exchange.answer, exchange.captured.record
    of_blkif = record.protocol == Protocol.BLKIF
    given = b"" if of_blkif else request.cdb
    with contextlib.suppress(WireError):
        given = given[: cdb.cdb_length(given)]
    command = None
    with contextlib.suppress(WireError):
        command = cdb.decode(given)
    names = {Operation.READ: "READ(", Operation.WRITE: "WRITE(", Operation.FLUSH: "SYNCHRONIZE"}
    if of_blkif:
        numbers = {0: 1, 1: 2, 2: 2, 3: 3, 5: 4}
        operation = numbers.get(request.block_operation, 0)
    elif command is None:
        operation = 0
    elif command.row.name == "UNMAP" or command.field("unmap"):
        operation = Operation.UNMAP
    else:
        operation = next((op for op, name in names.items() if command.row.name.startswith(name)), 0)
    has_lba = command is not None and "blocks" in command.row.fields
    blocks = request.blocks if request.blocks is None or request.blocks < 1 << 32 else None
    failed = answer is not None and answer.failed
    sense = answer.sense_data or None if answer is not None else None
    parsed = parse_sense(sense) if sense else None
    fate = Fate.FAILED if failed else Fate.ANSWERED
    if answer is None:
        fate = {"": Fate.OPEN, "aborted": Fate.ABORTED}.get(exchange.fate, Fate.LOST)
    kept = [
        captured.record.payload
        for captured in (exchange.captured, by if answer is not None else None)
        if captured is not None and captured.record.payload_kind == PayloadKind.HEAD
    ]
    latency = exchange.latency_ns
    return {
        "time_ns": exchange.captured.time_ns,
        "channel": exchange.captured.interface,
        "tag": request.tag,
        "cdb": None if of_blkif else given,
        "opcode": request.block_operation if of_blkif else given[0],
        "service_action": None if of_blkif else cdb.service_action_of(given),
        "operation": operation,
        "attribute": request.attribute,
        "fua": command.fua if command is not None else False,
        "lba": request.lba if of_blkif else command.lba if has_lba else None,
        "blocks": blocks if of_blkif else command.blocks if has_lba else None,
        "data_out": request.data_out,
        "data_in": request.data_in,
        "ring_index": record.ring_index,
        "fate": fate,
        "latency_ns": latency if latency is not None and latency >= 0 else None,
        "status": None if answer is None or failed else answer.status,
        "sense": sense,
        "sense_key": parsed.key if parsed else None,
        "asc": parsed.asc if parsed else None,
        "ascq": parsed.ascq if parsed else None,
        "residual": answer.residual if answer is not None else None,
        "data": b"".join(kept) if kept else None,
        "unit": unit(exchange),
    }


def read(data):
    source = ours.read(io.BytesIO(data))
    batches = list(source)
    assert all(batch.schema == SCHEMA for batch in batches)
    return pa.Table.from_batches(batches, SCHEMA), source


def of_disk(source, number):
    """Return what `unit` says, of a disk by its name."""
    path, _, lun = source.disks[number].name.partition(" lun ")
    protocol, domain, device = path.split("-")
    return Protocol[protocol.upper()], int(domain), int(device), lun


@given(
    data=captures(),
    run_bytes=st.sampled_from([200, 900, 4000, 1 << 20]),
    calm=st.sampled_from([1, 2, 32]),
    max_open=st.sampled_from([3, 1 << 16]),
)
def test_columns_say_what_messages_say_one_by_one(data, run_bytes, calm, max_open):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader_module, "RUN_BYTES", run_bytes)
        patch.setattr(source_module, "CALM", calm)
        patch.setattr(source_module, "MAX_OPEN", max_open)
        patch.setattr(exchange_module, "MAX_OPEN", max_open)
        table, source = read(data)
        expected, events, unasked, reader = one_by_one(data)
    found = table.to_pylist()
    for each in found:
        each["unit"] = of_disk(source, each.pop("disk"))
    for each, other in zip(found, expected, strict=True):
        unmap = each["opcode"] == 0x42 and each["cdb"] is not None
        ignored = {"lba", "blocks"} if unmap else set()
        for name, value in other.items():
            assert name in ignored or each[name] == value, name
    told = [event.words for event in source.events if "clock" not in event.words]
    assert [words.removeprefix("MALFORMED ") for words in told] == [
        each.request.words for each in events
    ]
    assert source.troubles.skipped == reader.skipped
    assert source.troubles.first_skipped == reader.first_skipped
    assert source.troubles.dropped == reader.dropped
    assert source.troubles.broken == ""
    says = [note for note in source.troubles.notes if "not captured" in note]
    assert says == ([f"{unasked} answers to requests that were not captured"] if unasked else [])


@given(
    data=captures(),
    changes=st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), max_size=8),
    end=st.integers(0, 400),
    run_bytes=st.sampled_from([200, 4000]),
)
def test_columns_say_the_same_of_damaged_files(data, changes, end, run_bytes):
    damaged = bytearray(data[: len(data) - end])
    for at, value in changes:
        damaged[at % len(damaged)] = value
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader_module, "RUN_BYTES", run_bytes)
        table, source = read(bytes(damaged))
        expected, _, _, reader = one_by_one(bytes(damaged))
    found = table.to_pylist()
    for each in found:
        each["unit"] = of_disk(source, each.pop("disk"))
    # With clocks that step the order may be another one.
    ordered = {"serial", "outstanding"}
    unmapped = {"lba", "blocks"}

    def compared(rows):
        return sorted(
            repr(sorted((k, v) for k, v in each.items() if k not in ordered | unmapped))
            for each in rows
        )

    assert compared(found) == compared(
        [
            {k: int(v) if isinstance(v, Fate | Operation) else v for k, v in e.items()}
            for e in expected
        ]
    )
    assert source.troubles.broken == broken_of(bytes(damaged))
    assert source.troubles.skipped == reader.skipped


def broken_of(data):
    try:
        for _ in CaptureReader(io.BytesIO(data)):
            pass
    except WireError as error:
        return str(error)
    return ""


def test_a_load_is_what_it_was_made_as(monkeypatch):
    monkeypatch.setattr(reader_module, "RUN_BYTES", 1 << 18)
    stream = io.BytesIO()
    truth = synthetic.write_srp(stream, 20_000)
    table, source = read(stream.getvalue())
    ends = np.add(*(table.column(name).to_numpy() for name in ("time_ns", "latency_ns")))
    assert (np.diff(ends) >= 0).all()
    table = table.sort_by("serial")
    assert table.column("serial").to_pylist() == list(range(20_000))
    for name in ("time_ns", "latency_ns", "lba", "blocks", "outstanding"):
        assert (table.column(name).to_numpy() == truth[name]).all(), name
    written = table.column("operation").to_numpy() == Operation.WRITE
    assert (written == truth["write"]).all()
    failed = np.array([each == 3 for each in table.column("sense_key").to_pylist()])
    assert (failed == truth["failed"]).all()
    assert failed.any()
    assert [disk.block_bytes for disk in source.disks] == [synthetic.BLOCK_BYTES]
    assert source.troubles.notes == []


def test_what_xen_blkfront_asked_for_is_what_its_slots_say():
    slots = json.loads((recorded.CAPTURES / "xen-blkfront.json").read_text())
    expected = []
    for slot in slots:
        if slot["dir"] == "req":
            data = bytes.fromhex(slot["slot"])
            operation, count = data[0], data[1]
            number, sector = struct.unpack_from("<QQ", data, 8)
            pieces = [data[24 + 8 * n : 32 + 8 * n] for n in range(count)]
            sectors = sum(piece[5] - piece[4] + 1 for piece in pieces)
            flush = operation == 3
            expected.append(
                (operation, number, None if flush else sector, None if flush else sectors)
            )
    table, source = read(recorded.capture("xen-blkfront.json"))
    table = table.sort_by("serial")
    names = ("opcode", "tag", "lba", "blocks")
    assert list(zip(*(table.column(name).to_pylist() for name in names), strict=True)) == expected
    assert [channel.protocol for channel in source.channels] == ["blkif"]
    assert set(table.column("fate").to_pylist()) == {Fate.ANSWERED}


def test_what_xen_scsifront_asked_for_is_what_its_slots_say():
    slots = json.loads((recorded.CAPTURES / "xen-scsifront.json").read_text())
    cdbs = []
    for slot in slots:
        if slot["dir"] == "req":
            data = bytes.fromhex(slot["slot"])
            cdbs.append(data[4 : 4 + data[3]])
    table, source = read(recorded.capture("xen-scsifront.json"))
    table = table.sort_by("serial")
    assert table.column("cdb").to_pylist() == cdbs
    reads = table.filter(pa.compute.equal(table.column("opcode"), 0x28))
    assert reads.column("lba").to_pylist() == [
        int.from_bytes(each[2:6], "big") for each in cdbs if each[0] == 0x28
    ]
    assert reads.column("data_in").to_pylist() == [
        int.from_bytes(each[7:9], "big") * 512 for each in cdbs if each[0] == 0x28
    ]
    assert [disk.name for disk in source.disks] == ["vscsiif-7-3 lun 0:0:0"]


# What is not in the messages.


def conversation(*messages, rings=("srp-7-3",)):
    """Return a capture of messages: (microseconds, message) or more of `capture_file`."""
    packets = []
    for index, (time_us, (way, message), *more) in enumerate(messages):
        ring, fields = more[0] if more else 0, more[1] if len(more) > 1 else {}
        data = recorded.make_record(Protocol.SRP, way, index, message, **fields)
        packets.append((time_us * 1000, data, ring, 0))
    return recorded.capture_file(packets, rings)


def command(tag, data=CDBS[0], **fields):
    return srp_slot(IuType.CMD, tag=tag, lun=encode(0), **cdb_fields(data), **fields)


def answer(tag, **fields):
    return srp_slot(IuType.RSP, tag=tag, **fields)


def test_queues_of_a_device_share_its_disks_in_the_order_of_time():
    """In the file the second queue's messages stand behind all of the first's."""
    data = conversation(
        (0, command(1), 0),
        (0, command(1), 1, {"queue": 1}),
        (10, command(2), 0),
        (50, answer(1), 0),
        (60, command(3), 0),
        (5, command(2), 1, {"queue": 1}),
        (20, command(3), 1, {"queue": 1}),
        (30, answer(2), 1, {"queue": 1}),
        (55, answer(3), 1, {"queue": 1}),
        (60, command(4), 1, {"queue": 1}),
        rings=("srp-7-3", "srp-7-3-1"),
    )
    table, source = read(data)
    assert len(source.disks) == 1
    rows = table.sort_by("serial").select(["channel", "tag", "outstanding"]).to_pylist()
    assert [tuple(each.values()) for each in rows] == [
        (0, 1, 0),
        (1, 1, 1),
        (1, 2, 2),
        (0, 2, 3),
        (1, 3, 4),
        (0, 3, 2),
        (1, 4, 3),
    ]


def test_requests_that_came_together_are_in_each_other_s_company():
    """A request stands behind the answers to those before it, but was there before them."""
    data = conversation(
        (0, command(1)), (7, answer(1)), (0, command(2)), (9, answer(2)), (20, command(3))
    )
    rows = read(data)[0].sort_by("serial").to_pylist()
    assert [each["outstanding"] for each in rows] == [0, 1, 0]
    assert [each["latency_ns"] for each in rows] == [7000, 9000, None]
    assert [each["fate"] for each in rows] == [Fate.ANSWERED, Fate.ANSWERED, Fate.OPEN]


def test_a_clock_that_steps_back_is_told():
    data = conversation((5000, command(1)), (100, answer(1)), (200, command(2)), (300, answer(2)))
    table, source = read(data)
    rows = table.sort_by("time_ns").to_pylist()
    assert [(each["tag"], each["latency_ns"]) for each in rows] == [(2, 100_000), (1, None)]
    assert [event.words for event in source.events] == ["the clock stepped back by 0.004800000 s"]
    assert source.troubles.notes == ["the clock stepped back 1 times on 1 channels; times are kept"]


def described(words, *messages):
    ring = pcapng.interface("srp-7-3", words)
    data = conversation(*messages)
    plain = pcapng.interface("srp-7-3", "")
    assert data.count(plain) == 1
    return data.replace(plain, ring)


CAPACITY = ReadCapacity16.build(
    {name.name: 0 for name in ReadCapacity16.subcon.subcons}
    | {"last_lba": 999, "block_length": 4096}
)
READ_CAPACITY = cdb.build("READ CAPACITY(16)", allocation_length=32)


@pytest.mark.parametrize(
    ("words", "payload", "length", "expected"),
    [
        ("lun0.type=cdrom lun0.block-bytes=2048 lun0.blocks=77", b"", 8, (2048, 77, 5)),
        ("lun0.block-bytes=oh lun0.blocks=-1", b"", 8 * 4096, (4096, None, 0)),
        ("", CAPACITY, 8 * 512, (4096, 1000, 0)),
        ("", b"", 8 * 1024, (1024, None, 0)),
        ("", b"", 77, (512, None, 0)),
    ],
)
def test_geometry(words, payload, length, expected):
    """From the metadata, READ CAPACITY's captured answer, or what reads moved."""
    head = {"payload_kind": PayloadKind.HEAD, "payload": payload} if payload else {}
    buffer = {"address": 0, "handle": 1, "length": length}
    data = described(
        words,
        (0, command(1, READ_CAPACITY)),
        (1, answer(1), 0, head),
        (2, command(2, CDBS[0], data_in=buffer)),
        (3, answer(2)),
    )
    _, source = read(data)
    (disk,) = source.disks
    assert (disk.block_bytes, disk.block_count, disk.device_type) == expected


def test_data_that_was_captured():
    ranges = [{"lba": 8, "blocks": 5}, {"lba": 100, "blocks": 7}]
    length = 16 * len(ranges)
    head = {"data_length": 6 + length, "block_descriptor_data_length": length}
    unmap = build(UnmapHeader, head) + b"".join(build(UnmapDescriptor, each) for each in ranges)
    head = {"payload_kind": PayloadKind.HEAD, "payload": unmap}
    hashed = {"payload_kind": PayloadKind.XXH64, "payload": bytes(8)}
    data = conversation(
        (0, command(1, CDBS[5]), 0, head),
        (1, answer(1)),
        (2, command(2, CDBS[0])),
        (3, answer(2), 0, {**head, "payload": b"read"}),
        (4, command(3, CDBS[0])),
        (5, answer(3), 0, hashed),
    )
    rows = read(data)[0].sort_by("serial").to_pylist()
    assert [each["data"] for each in rows] == [unmap, b"read", None]
    assert (rows[0]["lba"], rows[0]["blocks"]) == (8, 12)


def test_what_is_no_command_is_an_event():
    data = conversation(
        (0, srp_slot(IuType.LOGIN_REQ, tag=9)),
        (1, srp_slot(IuType.LOGIN_RSP, tag=9)),
        (2, command(1)),
        (3, srp_slot(IuType.TSK_MGMT, tag=2, function=1, managed_tag=1, lun=encode(0))),
        (5, answer(2, flags=RspFlags.RSPVALID, response_data=bytes(4))),
    )
    table, source = read(data)
    assert table.column("fate").to_pylist() == [Fate.ABORTED]
    login, abort = source.events
    assert login.words.startswith("LOGIN")
    assert login.outcome.startswith("ACCEPTED")
    assert (abort.words, abort.outcome) == ("ABORT TASK tag 0x1", "FUNCTION COMPLETE")
    assert (abort.function, abort.managed_tag, abort.disk) == (Function.ABORT_TASK, 1, 0)
    assert abort.latency_ns == 2000


def test_rows_come_while_a_pipe_is_open():
    data = conversation((0, command(1)), (7, answer(1)), (9, command(2)))
    reader, writer = os.pipe()
    with open(reader, "rb") as stream, open(writer, "wb", buffering=0) as output:
        output.write(data)
        batch = next(iter(ours.read(stream)))
    assert batch.column("tag").to_pylist() == [1]


@pytest.mark.parametrize("packed", [False, True])
def test_captures_are_recognised_by_content(tmp_path, packed):
    data = recorded.capture("xen-scsifront.json")
    file = tmp_path / "a"
    file.write_bytes(gzip.compress(data) if packed else data)
    with Opened(str(file)) as source:
        assert source.format == ours.NAME
        assert sum(map(len, source)) == 203
    if packed:
        file.write_bytes(gzip.compress(data)[:-2000])
        with Opened(str(file)) as source:
            assert 0 < sum(map(len, source)) < 203
            assert source.troubles.broken


def test_foreign_pcapng_is_not_ours():
    ethernet = struct.pack("<IIHHII", 1, 20, 1, 0, 0, 20)
    assert not ours.recognise(pcapng.section("") + ethernet)
    assert not ours.recognise(b"\n\r\r\n" + bytes(40))
    assert not ours.recognise(b"")
    assert ours.recognise(pcapng.section("x") + pcapng.interface("y", ""))


def test_memory_is_bounded_whatever_a_file_holds():
    """Many disks, and commands without answers that have data."""
    disks = []
    for number in range(6000):
        way, message = srp_slot(
            IuType.CMD, tag=number, lun=number.to_bytes(8, "big"), **cdb_fields(CDBS[0])
        )
        disks.append((number, recorded.make_record(Protocol.SRP, way, number, message)))
    table, source = read(recorded.capture_file(disks, ["srp-7-3"]))
    assert len(table) == 6000
    assert len(source.disks) == 4096
    assert "1904 commands of further disks count as the last disk's" in source.troubles.notes


def test_outstanding_is_what_the_server_counted(cli, start, tmp_path):
    """Each record has how many requests its ring's server had taken and not answered."""
    directory, file = tmp_path / "run", tmp_path / "a.pcapng"
    server = start("serve", "null:64M", "--dir", str(directory), "--capture", str(file))
    paths = [f"{kind}:{directory}" for kind in ("srp", "vscsiif", "blkif")]
    options = ["--iodepth", "8", "--runtime", "0.02", "--ramp-time", "0", "--rounds", "1"]
    done = cli("bench", *paths, *options)
    assert done.returncode == 0, done.stderr
    server.end(signal.SIGTERM)
    data = file.read_bytes()
    counted, dropped = {}, set()
    for captured in CaptureReader(io.BytesIO(data)):
        if captured.lost:
            dropped.add(captured.interface)
        if captured.record.direction == Way.TO_TARGET and captured.interface not in dropped:
            counted[captured.interface, captured.record.ring_index] = captured.record.in_flight
    table, source = read(data)
    names = ("channel", "ring_index", "outstanding")
    rows = list(zip(*(table.column(name).to_pylist() for name in names), strict=True))
    compared = [row for row in rows if row[:2] in counted]
    assert {channel for channel, *_ in compared} == {0, 1, 2}
    assert max(outstanding for *_, outstanding in compared) > 0
    assert [row for row in compared if counted[row[:2]] != row[2]] == []
    assert [channel.protocol for channel in source.channels] == ["srp", "vscsiif", "blkif"]
    assert {disk.block_count for disk in source.disks} == {64 << 11}


@pytest.mark.parametrize(("order", "resolution"), [(">", 9), ("<", 6), (">", 6)])
def test_other_writers_files_say_the_same(order, resolution):
    """Their byte order or clock resolution keeps them from the quick way."""

    def block(kind, body):
        length = struct.pack(f"{order}I", len(body) + 12)
        return struct.pack(f"{order}I", kind) + length + body + length

    data = block(0x0A0D0D0A, struct.pack(f"{order}IHHq", 0x1A2B3C4D, 1, 0, -1))
    data += block(1, struct.pack(f"{order}HHIHHB3xI", 147, 0, 0, 9, 1, resolution, 0))
    packets = list(recorded.records("xen-scsifront.json"))
    for time_ns, record in packets:
        ticks = (recorded.START_NS + time_ns) // 10 ** (9 - resolution)
        head = (0, ticks >> 32, ticks & 0xFFFFFFFF, len(record), len(record))
        data += block(6, struct.pack(f"{order}5I", *head) + record + bytes(-len(record) % 4))
    table, source = read(data)
    assert table == read(recorded.capture_file(packets, ["vscsiif-7-3"]))[0]
    assert source.troubles.broken == ""
