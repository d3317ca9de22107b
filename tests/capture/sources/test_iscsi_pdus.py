# SPDX-License-Identifier: MIT
"""What each iSCSI PDU means for commands and events; connections and sessions made by hand."""

import itertools
import struct

import pytest

from tests.capture.sources import iscsi_traffic as traffic
from vscsi.capture.commands import Fate
from vscsi.target.base import Attribute, Function
from vscsi.wire import iscsi
from vscsi.wire.cdb import build as cdb
from vscsi.wire.formats import build
from vscsi.wire.iscsi import Flags, Opcode, TaskFunction
from vscsi.wire.lun import encode
from vscsi.wire.sense import Sense

READ = cdb("READ(10)", lba=8, blocks=2)
WRITE = cdb("WRITE(10)", lba=8, blocks=2)
STEP_NS = 1000
SENSE = Sense(5, 0x24, 0).build()


class Talk:
    """A conversation: every PDU is a segment, STEP_NS after the one before."""

    _times = itertools.count(1)

    def __init__(self, initiator_port=50000):
        self.packets = []
        self.sequence = [1000, 2000]
        hosts = bytes((10, 0, 0, 1)), bytes((10, 0, 0, 2))
        ports = struct.pack(">H", initiator_port), struct.pack(">H", 5003)
        self.ends = hosts[0] + hosts[1] + ports[0] + ports[1]
        self.back = hosts[1] + hosts[0] + ports[1] + ports[0]

    def _segment(self, way, payload, flags):
        segment = traffic.Segment.__new__(traffic.Segment)
        segment.time = next(self._times) * STEP_NS
        segment.ends = (self.ends, self.back)[way]
        segment.sequence, segment.acknowledged = self.sequence[way], self.sequence[1 - way]
        segment.flags, segment.payload = flags, payload
        self.packets.append(segment.frame())
        self.sequence[way] += len(payload) + bool(flags & (traffic.SYN | traffic.FIN))
        return self.packets[-1][0]

    def open(self):
        self._segment(0, b"", traffic.SYN)
        self._segment(1, b"", traffic.SYN | traffic.ACK)

    def close(self, flags=traffic.FIN):
        for way in (0, 1):
            self._segment(way, b"", flags | traffic.ACK)

    def say(self, form, data=b"", ahs=b"", **fields):
        """Send a PDU; returns its time."""
        fields["lengths"] = len(ahs) // 4 << 24 | len(data)
        head = build(form, fields)
        return self._segment(head[0] >> 5 & 1, head + ahs + data + bytes(-len(data) % 4), 16)

    def command(self, itt, command=READ, flags=Flags.FINAL | Flags.READ | 1, **fields):
        fields.setdefault("expected_length", 1024)
        fields.setdefault("lun", encode(3))
        head = {"flags": flags, "itt": itt, "cdb": command[:16].ljust(16, b"\0")}
        return self.say(iscsi.ScsiCommand, **head, **fields)

    def response(self, itt, **fields):
        fields.setdefault("flags", Flags.FINAL)
        return self.say(iscsi.ScsiResponse, itt=itt, **fields)

    def manage(self, itt, function, **fields):
        fields.setdefault("lun", encode(3))
        return self.say(iscsi.TaskManagement, itt=itt, function=0x80 | function, **fields)

    def login(self, isid, tsih=0, name=b"iqn.2026-11.test:host"):
        keys = b"InitiatorName=" + name + b"\0TargetName=iqn.2026-11.test:disk\0"
        head = {"flags": 0x87, "isid": isid, "tsih": tsih, "itt": 1}
        self.say(iscsi.LoginRequest, keys, opcode=0x43, **head)
        self.say(iscsi.LoginResponse, b"TargetPortalGroupTag=1\0", **head)

    def read(self):
        return traffic.read(traffic.pcap(self.packets))


def test_a_read_with_its_status_in_data_in():
    talk = Talk()
    began = talk.command(7)
    talk.say(iscsi.DataIn, b"a" * 300, itt=7)
    ended = talk.say(
        iscsi.DataIn,
        b"b" * 300,
        flags=Flags.FINAL | Flags.STATUS | Flags.UNDERFLOW,
        itt=7,
        buffer_offset=300,
        residual=424,
    )
    source, (row,) = talk.read()
    assert row["latency_ns"] == ended - began
    assert (row["status"], row["residual"], row["data_in"]) == (0, 424, 1024)
    assert row["data"] == b"a" * 300 + b"b" * 212
    assert (row["lba"], row["blocks"], row["attribute"]) == (8, 2, Attribute.SIMPLE)
    assert source.channels[0].name == "10.0.0.1:50000 to 10.0.0.2:5003"
    assert source.disks[0].name == "10.0.0.2:5003/10.0.0.1:50000 lun 3"


def test_a_write_with_immediate_and_solicited_data():
    talk = Talk()
    talk.command(1, WRITE, Flags.FINAL | Flags.WRITE | 2, data=b"0" * 100)
    talk.say(iscsi.ReadyToTransfer, flags=0x80, itt=1, buffer_offset=100, desired_length=924)
    talk.say(iscsi.DataOut, b"1" * 200, itt=1, ttt=5, buffer_offset=100)
    talk.say(iscsi.DataOut, b"2" * 724, flags=0x80, itt=1, ttt=5, buffer_offset=300)
    talk.response(1)
    _, (row,) = talk.read()
    assert (row["data_out"], row["data_in"]) == (1024, 0)
    assert row["data"] == b"0" * 100 + b"1" * 200 + b"2" * 212
    assert row["attribute"] == Attribute.ORDERED


@pytest.mark.parametrize(
    ("flags", "residual"),
    [
        (Flags.UNDERFLOW, 100),
        (Flags.OVERFLOW, -100),
        (Flags.BIDI_UNDERFLOW, 7),
        (Flags.BIDI_OVERFLOW | Flags.UNDERFLOW, 93),
        (0, 0),
    ],
)
def test_residuals(flags, residual):
    talk = Talk()
    talk.command(1)
    talk.response(1, flags=0x80 | flags, residual=100, bidi_residual=7)
    assert talk.read()[1][0]["residual"] == residual


def test_check_condition_and_target_failure():
    talk = Talk()
    talk.command(1)
    talk.response(1, data=struct.pack(">H", len(SENSE)) + SENSE, status=2)
    talk.command(2)
    talk.response(2, response=1)
    _, (check, failed) = talk.read()
    assert (check["status"], check["sense"]) == (2, SENSE)
    assert (check["sense_key"], check["asc"], check["ascq"]) == (5, 0x24, 0)
    assert (failed["fate"], failed["status"], failed["sense"]) == (Fate.FAILED, None, None)


def test_long_cdbs_and_both_directions():
    long = cdb("READ(32)", lba=99, blocks=3)
    ahs = build(iscsi.ExtendedCdb, {"length": 17, "cdb": long[16:]})
    ahs += build(iscsi.ReadLength, {"read_length": 2048})
    talk = Talk()
    flags = Flags.FINAL | Flags.READ | Flags.WRITE
    talk.say(iscsi.ScsiCommand, b"out", ahs, flags=flags, itt=1, cdb=long[:16], expected_length=512)
    talk.say(iscsi.DataIn, b"in", itt=1)
    talk.response(1)
    _, (row,) = talk.read()
    assert row["cdb"] == long
    assert (row["data_out"], row["data_in"], row["data"]) == (512, 2048, b"outin")
    assert (row["lba"], row["blocks"], row["attribute"]) == (99, 3, None)


def test_abort_task():
    talk = Talk()
    for tag in (1, 2, 3):
        talk.command(tag)
    asked = talk.manage(9, TaskFunction.ABORT_TASK, referenced_tag=2, opcode=0x42)
    said = talk.say(iscsi.TaskManagementResponse, flags=0x80, itt=9)
    talk.response(1)
    source, rows = talk.read()
    assert [(row["tag"], row["fate"]) for row in rows] == [
        (2, Fate.ABORTED),
        (1, Fate.ANSWERED),
        (3, Fate.OPEN),
    ]
    (event,) = source.events
    assert (event.words, event.outcome) == ("ABORT TASK tag 0x2", "FUNCTION COMPLETE")
    assert (event.function, event.managed_tag) == (Function.ABORT_TASK, 2)
    assert (event.time_ns, event.latency_ns) == (asked, said - asked)


@pytest.mark.parametrize(
    ("function", "response", "aborted"),
    [
        (TaskFunction.LOGICAL_UNIT_RESET, 0, {1}),
        (TaskFunction.ABORT_TASK_SET, 0, {1}),
        (TaskFunction.CLEAR_ACA, 0, set()),
        (TaskFunction.TARGET_WARM_RESET, 0, {1, 2}),
        (TaskFunction.LOGICAL_UNIT_RESET, 5, set()),
    ],
)
def test_what_task_management_aborts(function, response, aborted):
    talk = Talk()
    talk.command(1)
    talk.command(2, lun=encode(4))
    talk.manage(9, function)
    talk.command(3)
    talk.say(iscsi.TaskManagementResponse, flags=0x80, itt=9, response=response)
    source, rows = talk.read()
    assert {row["tag"] for row in rows if row["fate"] == Fate.ABORTED} == aborted
    assert {row["tag"] for row in rows if row["fate"] == Fate.OPEN} == {1, 2, 3} - aborted
    assert source.events[0].outcome == ("NOT SUPPORTED" if response else "FUNCTION COMPLETE")


def test_task_management_without_an_answer_is_an_event():
    talk = Talk()
    talk.command(1)
    talk.manage(2, TaskFunction.TARGET_COLD_RESET)
    source, _ = talk.read()
    (event,) = source.events
    assert (event.words, event.outcome, event.function) == ("TARGET COLD RESET", "", None)


def test_rejects_and_asynchronous_messages():
    talk = Talk()
    talk.command(5)
    head = build(iscsi.ScsiCommand, {"itt": 5, "flags": 0x80})
    talk.say(iscsi.Reject, head, flags=0x80, reason=9)
    attention = Sense(6, 0x3F, 0x0E).build()
    data = struct.pack(">H", len(attention)) + attention
    talk.say(iscsi.AsyncMessage, data, flags=0x80, lun=encode(3))
    talk.say(iscsi.AsyncMessage, flags=0x80, event=1)
    source, (row,) = talk.read()
    assert row["fate"] == Fate.FAILED
    assert [event.words for event in source.events] == [
        "REJECT INVALID PDU FIELD",
        "ASYNC MESSAGE SCSI EVENT: lun 3: UNIT ATTENTION, REPORTED LUNS DATA HAS CHANGED (6/3f/0e)",
        "ASYNC MESSAGE LOGOUT REQUESTED",
    ]


def test_outstanding_and_serials_are_in_the_order_of_sending():
    talk = Talk()
    for tag in (10, 11, 12):
        talk.command(tag)
    talk.command(13, lun=encode(1))
    for tag in (12, 13, 10):
        talk.response(tag)
    talk.command(14)
    _, rows = talk.read()
    assert [(row["tag"], row["serial"], row["outstanding"]) for row in rows] == [
        (12, 2, 2),
        (13, 3, 0),
        (10, 0, 0),
        (11, 1, 1),
        (14, 4, 1),
    ]


def test_a_tag_used_again_ends_its_command():
    talk = Talk()
    talk.command(1)
    talk.command(1, WRITE)
    talk.response(1)
    _, rows = talk.read()
    assert [(row["opcode"], row["fate"]) for row in rows] == [
        (0x28, Fate.LOST),
        (0x2A, Fate.ANSWERED),
    ]


@pytest.mark.parametrize("flags", [traffic.FIN, 4])
def test_the_end_of_a_connection_loses_what_is_open(flags):
    talk = Talk()
    talk.open()
    talk.login(b"\x80\0\0\0\0\1")
    talk.command(1)
    talk.close(flags)
    talk.sequence = [5, 5]
    talk.open()
    talk.login(b"\x80\0\0\0\0\1")
    talk.command(1)
    source, rows = talk.read()
    assert [row["fate"] for row in rows] == [Fate.LOST, Fate.OPEN]
    assert len(source.channels) == 2
    # The same initiator port sees the same logical unit.
    port = "iqn.2026-11.test:host,i,0x800000000001"
    assert [disk.name for disk in source.disks] == [f"10.0.0.2:5003/{port} lun 3"]


def test_two_connections_of_a_session():
    first, second = Talk(50000), Talk(50001)
    first.login(b"\x80\0\0\0\0\2")
    second.login(b"\x80\0\0\0\0\2", tsih=1)
    first.command(1)
    second.command(2)
    second.manage(3, TaskFunction.LOGICAL_UNIT_RESET)
    second.say(iscsi.TaskManagementResponse, flags=0x80, itt=3)
    packets = sorted(first.packets + second.packets)
    source, rows = traffic.read(traffic.pcap(packets))
    assert [(row["channel"], row["outstanding"], row["fate"]) for row in rows] == [
        (0, 0, Fate.ABORTED),
        (1, 1, Fate.ABORTED),
    ]
    assert len(source.disks) == 1


def test_a_session_made_anew_loses_the_commands_of_the_old_one():
    first, second = Talk(50000), Talk(50001)
    first.login(b"\x80\0\0\0\0\2")
    first.command(1)
    second.login(b"\x80\0\0\0\0\2")
    second.command(1)
    _, rows = traffic.read(traffic.pcap(first.packets + second.packets))
    assert [row["fate"] for row in rows] == [Fate.LOST, Fate.OPEN]


def test_a_refused_login_says_why():
    talk = Talk()
    talk.say(iscsi.LoginRequest, b"InitiatorName=iqn.x\0", opcode=0x43, flags=0x81, itt=1)
    talk.say(iscsi.LoginResponse, flags=0, status_class=2, status_detail=1, itt=1)
    source, rows = talk.read()
    assert rows == []
    assert source.events[0].outcome == "REJECTED, INITIATOR ERROR 0x01"


def test_answers_without_commands_are_counted_and_a_clock_that_stepped_is_said():
    talk = Talk()
    talk.response(77)
    talk.command(1)
    talk.response(1)
    time, frame = talk.packets[-1]
    talk.packets[-1] = (time - 10 * STEP_NS, frame)
    source, (row,) = talk.read()
    assert row["latency_ns"] is None
    assert source.troubles.notes == [
        "1 answers to commands that are not in the file",
        "1 answers before their commands: the clock stepped",
    ]


def test_capacity_is_learned():
    talk = Talk()
    talk.command(1, cdb("READ CAPACITY(10)"), expected_length=8)
    data = struct.pack(">II", 999, 4096)
    talk.say(iscsi.DataIn, data, flags=0x81, itt=1)
    source, _ = talk.read()
    assert (source.disks[0].block_bytes, source.disks[0].block_count) == (4096, 1000)


def test_bytes_that_are_no_pdu_are_passed_over_and_counted():
    talk = Talk()
    talk.open()
    talk.command(1)
    talk._segment(0, b"\xee" * 500, 16)
    talk.response(1)
    for tag in (2, 3):
        talk.command(tag)
        talk.response(tag)
    source, rows = talk.read()
    assert [row["tag"] for row in rows] == [1, 2, 3]
    assert source.troubles.skipped == 1
    assert "no PDU" in source.troubles.first_skipped


def test_nops_are_passed_over():
    talk = Talk()
    talk.open()
    nop = struct.pack(">BBHI40x", Opcode.NOP_OUT | 0x40, 0x80, 0, 5) + b"ping!\0\0\0"
    talk._segment(0, nop, 16)
    talk._segment(1, struct.pack(">BBHI40x", Opcode.NOP_IN, 0x80, 0, 5) + b"ping!\0\0\0", 16)
    talk.command(1)
    talk.response(1)
    source, rows = talk.read()
    assert len(rows) == 1
    assert source.troubles.skipped == 0
