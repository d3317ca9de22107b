# SPDX-License-Identifier: MIT
"""The line that a command becomes, and its values."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vscsi.capture.show import line, values
from vscsi.wire import blkif, mad, srp, vscsiif
from vscsi.wire.cdb import build as build_cdb
from vscsi.wire.lun import encode
from vscsi.wire.record import LayoutCode, Protocol, Way
from vscsi.wire.sense import Sense
from vscsi.wire.srp import IuType, RspFlags, build_iu, cdb_fields
from vscsi.wire.srp_ring import SlotFormat, build_slot

READ = build_cdb("READ(10)", lba=2048, blocks=8, fua=1)
WRITE_32 = build_cdb("WRITE(32)", lba=1 << 33, blocks=1)
SENSE = Sense(5, 0x21, 0, field_pointer=2).build()
BUFFER = {"address": 0x1000, "handle": 1, "length": 4096}
INDIRECT = {
    "table": BUFFER,
    "total_length": 12288,
    "descriptors": [{"address": n, "handle": 1, "length": 4096} for n in range(3)],
}


def iu(kind, **fields):
    return Protocol.SRP, build_slot(SlotFormat.SRP, build_iu(kind, **fields)).ljust(128, b"\0")


def a_mad(kind, **fields):
    return Protocol.SRP, build_slot(SlotFormat.MAD, mad.build_mad(kind, **fields))


def command(**fields):
    return iu(IuType.CMD, **{"tag": 7, "lun": encode(2), **cdb_fields(READ), **fields})


def ask(**fields):
    return Protocol.VSCSIIF, vscsiif.build_request(rqid=5, channel=0, id=1, lun=2, **fields)


def reply(**fields):
    return Protocol.VSCSIIF, vscsiif.build_response(rqid=5, **fields)


def block(operation, layout=blkif.X86_64, **fields):
    return Protocol.BLKIF, layout.build_request(operation, id=0xABC, **fields)


def status(value, layout=blkif.X86_64):
    return Protocol.BLKIF, layout.build_response(id=0xABC, status=value)


def segment(first, last, **fields):
    return {"gref": 9, "first_sect": first, "last_sect": last}


@pytest.fixture
def exchange(make_record, capture_file, joined):
    """Return the exchange of a request and perhaps its answer, 85.2 us later."""

    def make(request, answer=None, way=Way.TO_TARGET, **fields):
        packets = []
        both = [(way, request), (Way(1 - way), answer)]
        for at, (direction, message) in enumerate(both):
            if message is not None:
                protocol, data = message
                extra = (
                    fields
                    if at == 0
                    else {"layout": fields["layout"]}
                    if "layout" in fields
                    else {}
                )
                record = make_record(protocol, direction, 4, data, in_flight=3, **extra)
                packets.append((123456789 + at * 85200, record))
        (found,) = joined(capture_file(packets))
        return found

    return make


def segments_of(count):
    return vscsiif.build_segments([{"gref": n, "offset": 0, "length": 4096} for n in range(count)])


@pytest.mark.parametrize(
    ("request_", "answer", "fields", "expected"),
    [
        (
            command(data_in=BUFFER),
            iu(IuType.RSP, tag=7),
            {},
            "srp domain 7 device 3 lun 2 tag 0x7 READ(10) lba 2048 blocks 8 FUA -> GOOD, "
            "4096 bytes, 85.2 us",
        ),
        (
            command(data_in=BUFFER),
            iu(
                IuType.RSP,
                tag=7,
                status=2,
                flags=RspFlags.SNSVALID | RspFlags.DIUNDER,
                data_in_residual=4096,
                sense_data=SENSE,
            ),
            {},
            "srp domain 7 device 3 lun 2 tag 0x7 READ(10) lba 2048 blocks 8 FUA -> "
            "CHECK CONDITION, ILLEGAL REQUEST, LOGICAL BLOCK ADDRESS OUT OF RANGE (5/21/00), "
            "CDB byte 2, 0 bytes, residual 4096, 85.2 us",
        ),
        (
            command(data_in=BUFFER),
            iu(IuType.RSP, tag=7, flags=RspFlags.DIOVER, data_in_residual=512),
            {},
            "srp domain 7 device 3 lun 2 tag 0x7 READ(10) lba 2048 blocks 8 FUA -> GOOD, "
            "4096 bytes, buffer 512 bytes too short, 85.2 us",
        ),
        (
            command(data_in=BUFFER),
            iu(
                IuType.RSP,
                tag=7,
                flags=RspFlags.RSPVALID,
                response_data=bytes([0, 0, 0, srp.RspCode.REQUEST_FIELDS_INVALID]),
            ),
            {},
            "srp domain 7 device 3 lun 2 tag 0x7 READ(10) lba 2048 blocks 8 FUA -> "
            "REQUEST FIELDS INVALID, 0 bytes, 85.2 us",
        ),
        (
            command(
                **cdb_fields(WRITE_32), data_out=INDIRECT, lun=bytes.fromhex("c101" + "0" * 12)
            ),
            iu(IuType.RSP, tag=7, status=0x28),
            {"queue": 6},
            "srp domain 7 device 3 queue 6 lun c101000000000000 tag 0x7 WRITE(32) lba 8589934592 "
            "blocks 1 -> TASK SET FULL, 12288 bytes, 85.2 us",
        ),
        (
            command(),
            None,
            {},
            "srp domain 7 device 3 lun 2 tag 0x7 READ(10) lba 2048 blocks 8 FUA -> NO ANSWER",
        ),
        (
            iu(IuType.TSK_MGMT, tag=8, lun=encode(2), function=1, managed_tag=7),
            iu(IuType.RSP, tag=8, flags=RspFlags.RSPVALID, response_data=bytes(4)),
            {},
            "srp domain 7 device 3 lun 2 tag 0x8 ABORT TASK tag 0x7 -> FUNCTION COMPLETE, 85.2 us",
        ),
        (
            iu(IuType.TSK_MGMT, tag=8, lun=encode(2), function=0x77),
            iu(IuType.RSP, tag=8, flags=RspFlags.RSPVALID, response_data=bytes([0, 0, 0, 4])),
            {},
            "srp domain 7 device 3 lun 2 tag 0x8 function 0x77 -> "
            "TASK MANAGEMENT NOT SUPPORTED, 85.2 us",
        ),
        (
            iu(IuType.LOGIN_REQ, tag=1, requested_max_it_iu_length=64, required_buffer_formats=6),
            iu(IuType.LOGIN_RSP, tag=1, request_limit_delta=9, max_it_iu_length=64),
            {},
            "srp domain 7 device 3 tag 0x1 LOGIN IUs of 64 bytes, direct|indirect buffers, "
            "initiator "
            + "0" * 32
            + " -> ACCEPTED, request limit 9, IUs of 64 and 0 bytes, 85.2 us",
        ),
        (
            iu(IuType.LOGIN_REQ, tag=1),
            iu(IuType.LOGIN_REJ, tag=1, reason=srp.LoginRejectReason.CHANNEL_LIMIT_REACHED),
            {},
            "srp domain 7 device 3 tag 0x1 LOGIN IUs of 0 bytes, no buffers, initiator "
            + "0" * 32
            + " -> REJECTED, CHANNEL LIMIT REACHED, 85.2 us",
        ),
        (iu(IuType.I_LOGOUT, tag=1), None, {}, "srp domain 7 device 3 tag 0x1 I_LOGOUT"),
        (
            iu(IuType.T_LOGOUT, tag=1, reason=2),
            None,
            {"way": Way.TO_INITIATOR},
            "srp domain 7 device 3 tag 0x1 T_LOGOUT INVALID IU TYPE",
        ),
        (
            iu(IuType.CRED_REQ, tag=3, request_limit_delta=-4),
            iu(IuType.CRED_RSP, tag=3),
            {"way": Way.TO_INITIATOR},
            "srp domain 7 device 3 tag 0x3 CRED_REQ request limit -4 -> CRED_RSP, 85.2 us",
        ),
        (
            iu(IuType.AER_REQ, tag=3, lun=encode(1), sense_data=Sense(6, 0x2A, 9).build()),
            iu(IuType.AER_RSP, tag=3),
            {"way": Way.TO_INITIATOR},
            "srp domain 7 device 3 lun 1 tag 0x3 AER_REQ UNIT ATTENTION, "
            "CAPACITY DATA HAS CHANGED (6/2a/09) -> AER_RSP, 85.2 us",
        ),
        (
            a_mad(mad.MadType.REGISTER_REGION, tag=2, handle=0x10, pages=64),
            a_mad(mad.MadType.REGISTER_REGION, tag=2, status=mad.MadStatus.FAILED),
            {},
            "srp domain 7 device 3 tag 0x2 REGISTER REGION handle 0x10 pages 64 -> FAILED, 85.2 us",
        ),
        (
            a_mad(0x99, tag=2),
            a_mad(0x99, tag=2, status=mad.MadStatus.NOT_SUPPORTED),
            {},
            "srp domain 7 device 3 tag 0x2 MAD 0x99 -> NOT SUPPORTED, 85.2 us",
        ),
        (
            (Protocol.SRP, bytes.fromhex("01000100ff")),
            None,
            {},
            "srp domain 7 device 3 MALFORMED SRP IU: unknown type 0xff [01000100ff]",
        ),
        (
            ask(cdb=READ, direction=2, segments=[{"gref": 1, "offset": 0, "length": 4096}]),
            reply(rslt=2, sense_buffer=SENSE, residual=4096),
            {},
            "vscsiif domain 7 device 3 lun 0:1:2 tag 0x5 READ(10) lba 2048 blocks 8 FUA -> "
            "CHECK CONDITION, ILLEGAL REQUEST, LOGICAL BLOCK ADDRESS OUT OF RANGE (5/21/00), "
            "CDB byte 2, 0 bytes, residual 4096, 85.2 us",
        ),
        (
            ask(cdb=READ, direction=2, nr_segments=0x80 | 1),
            reply(),
            {"segments": segments_of(64) + b"odd"},
            "vscsiif domain 7 device 3 lun 0:1:2 tag 0x5 READ(10) lba 2048 blocks 8 FUA -> "
            "GOOD, 262144 bytes, 85.2 us",
        ),
        (
            ask(cdb=READ, direction=1, nr_segments=99),
            reply(rslt=vscsiif.pack_rslt(0, vscsiif.Host.TIME_OUT)),
            {},
            "vscsiif domain 7 device 3 lun 0:1:2 tag 0x5 READ(10) lba 2048 blocks 8 FUA -> "
            "host TIME OUT, 0 bytes, 85.2 us",
        ),
        (
            ask(act=vscsiif.Act.RESET),
            reply(rslt=vscsiif.RESET_FAILED),
            {},
            "vscsiif domain 7 device 3 lun 0:1:2 tag 0x5 LOGICAL UNIT RESET -> FAILED, 85.2 us",
        ),
        (
            block(blkif.Operation.WRITE, sector_number=16, segments=[segment(0, 7), segment(2, 3)]),
            status(0),
            {},
            "blkif domain 7 device 3 tag 0xabc WRITE sector 16 sectors 10 -> OKAY, 5120 bytes, "
            "85.2 us",
        ),
        (
            block(blkif.Operation.READ, sector_number=16, segments=[segment(7, 0)]),
            status(-1),
            {},
            "blkif domain 7 device 3 tag 0xabc READ sector 16 sectors 0 -> ERROR, 0 bytes, 85.2 us",
        ),
        (
            block(blkif.Operation.DISCARD, layout=blkif.X86_32, sector_number=8, nr_sectors=4096),
            status(-2, blkif.X86_32),
            {"layout": LayoutCode.X86_32},
            "blkif domain 7 device 3 tag 0xabc DISCARD sector 8 sectors 4096 -> EOPNOTSUPP, "
            "0 bytes, 85.2 us",
        ),
        (
            block(blkif.Operation.INDIRECT, indirect_op=0, nr_segments=100, sector_number=8),
            status(0),
            {"segments": blkif.build_segments([segment(0, 7)] * 100)},
            "blkif domain 7 device 3 tag 0xabc INDIRECT READ sector 8 sectors 800 -> OKAY, "
            "409600 bytes, 85.2 us",
        ),
        (
            (
                Protocol.BLKIF,
                block(
                    blkif.Operation.READ,
                    sector_number=8,
                    nr_segments=12,
                    segments=[segment(0, 7)] * 11,
                )[1]
                + blkif.build_segments([segment(0, 7)] * 14),
            ),
            status(0),
            {},
            "blkif domain 7 device 3 tag 0xabc READ sector 8 sectors 96 -> OKAY, 49152 bytes, "
            "85.2 us",
        ),
        (
            block(77),
            status(-2),
            {},
            "blkif domain 7 device 3 tag 0xabc operation 0x4d -> EOPNOTSUPP, 0 bytes, 85.2 us",
        ),
    ],
)
def test_lines(exchange, request_, answer, fields, expected):
    assert line(exchange(request_, answer, **fields)) == f"22:13:20.123456789 {expected}"


def test_an_answer_without_a_request(make_record, capture_file, joined):
    protocol, data = iu(IuType.RSP, tag=7, status=8)
    (found,) = joined(capture_file([(0, make_record(protocol, Way.TO_INITIATOR, 4, data))]))
    assert line(found) == (
        "22:13:20.000000000 srp domain 7 device 3 tag 0x7 (request not captured) -> BUSY"
    )
    assert values(found)["from"] == "initiator"


MESSAGES = st.one_of(
    st.binary(max_size=300),
    st.binary(min_size=252, max_size=252),
    st.binary(min_size=112, max_size=112),
    st.builds(
        lambda form, kind, rest: build_slot(form, bytes([kind]) + rest),
        st.sampled_from(SlotFormat),
        st.sampled_from(IuType),
        st.binary(max_size=200),
    ),
)


@given(
    messages=st.lists(
        st.tuples(st.sampled_from([*Protocol, 0, 255]), st.integers(0, 3), MESSAGES), max_size=6
    ),
    layout=st.integers(0, 3),
    segments=st.binary(max_size=40),
)
def test_any_message_has_a_line(make_record, capture_file, joined, messages, layout, segments):
    """What a peer sends is never an error of ours."""
    packets = [
        (0, make_record(protocol, way, 0, message, layout=layout, segments=segments))
        for protocol, way, message in messages
    ]
    for found in joined(capture_file(packets)):
        assert line(found).isprintable()
        json.dumps(values(found))


def test_values(exchange):
    answer = iu(
        IuType.RSP,
        tag=7,
        status=2,
        flags=RspFlags.SNSVALID | RspFlags.DIUNDER,
        data_in_residual=4096,
        sense_data=SENSE,
    )
    assert values(exchange(command(data_in=BUFFER), answer)) == {
        "time_ns": 1_700_000_000_123_456_789,
        "path": "srp",
        "domain": 7,
        "device": 3,
        "queue": 0,
        "from": "initiator",
        "ring_index": 4,
        "in_flight": 3,
        "kind": "command",
        "lun": "2",
        "tag": 7,
        "request": "READ(10) lba 2048 blocks 8 FUA",
        "cdb": READ.ljust(16, b"\0").hex(),
        "data_out": 0,
        "data_in": 4096,
        "answered": True,
        "fate": None,
        "status": "CHECK CONDITION",
        "sense": {
            "key": 5,
            "asc": 0x21,
            "ascq": 0,
            "words": "ILLEGAL REQUEST, LOGICAL BLOCK ADDRESS OUT OF RANGE (5/21/00), CDB byte 2",
        },
        "bytes": 0,
        "residual": 4096,
        "latency_ns": 85200,
    }
