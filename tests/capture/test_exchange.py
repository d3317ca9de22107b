# SPDX-License-Identifier: MIT
"""Requests find their answers, and only theirs."""

import pytest

from vscsi.capture import exchange as exchange_module
from vscsi.capture.decode import Kind
from vscsi.wire import blkif, srp, vscsiif
from vscsi.wire.cdb import build as build_cdb
from vscsi.wire.lun import encode
from vscsi.wire.record import LayoutCode, Protocol, Way
from vscsi.wire.sense import Sense
from vscsi.wire.srp import IuType, RspFlags, build_iu, cdb_fields
from vscsi.wire.srp_ring import SlotFormat, build_slot

READ = build_cdb("READ(10)", lba=5, blocks=1)


class Traffic:
    """Messages of rings, and the exchanges that they are."""

    def __init__(self, make_record, capture_file, joined):
        self._make = make_record
        self._file = capture_file
        self._joined = joined
        self.packets = []
        self.index = 0

    def add(self, protocol, way, message, *, interface=0, lost=0, **fields):
        if way is Way.TO_TARGET:
            self.index += 1
        record = self._make(protocol, way, fields.pop("ring_index", self.index), message, **fields)
        self.packets.append((len(self.packets) * 1000, record, interface, lost))

    def srp(self, kind, interface=0, lost=0, **fields):
        way = Way.TO_INITIATOR if kind & 0x80 else Way.TO_TARGET
        slot = build_slot(SlotFormat.SRP, build_iu(kind, **fields))
        self.add(Protocol.SRP, way, slot, interface=interface, lost=lost)

    def command(self, tag, lun=0, **more):
        data_in = {"address": 0, "handle": 1, "length": 512}
        self.srp(IuType.CMD, tag=tag, lun=encode(lun), data_in=data_in, **cdb_fields(READ), **more)

    def respond(self, tag, **fields):
        self.srp(IuType.RSP, tag=tag, **fields)

    @property
    def exchanges(self):
        return self._joined(self._file(self.packets, interfaces=4))

    @property
    def outcome(self):
        """(tag, latency in us or the fate) of each exchange."""
        return [
            (each.request.tag, each.latency_ns // 1000 if each.answer else each.fate)
            for each in self.exchanges
            if each.request is not None and each.kind is Kind.COMMAND
        ]


@pytest.fixture
def traffic(make_record, capture_file, joined):
    return Traffic(make_record, capture_file, joined)


def test_every_request_of_stock_drivers_has_its_answer(stock_capture, joined):
    data, count = stock_capture
    exchanges = joined(data)
    assert len(exchanges) == count // 2
    for each in exchanges:
        assert each.request is not None
        assert each.answer is not None
        assert each.latency_ns >= 0


def test_what_stock_drivers_moved(stock_records, capture_file, joined):
    exchanges = joined(capture_file(stock_records("xen-blkfront.json")))
    for each in exchanges:
        sectors = int(each.request.words.rpartition(" ")[2])
        assert each.moved == sectors * 512
        assert each.request.words.startswith(("READ", "WRITE", "FLUSH"))
    exchanges = joined(capture_file(stock_records("xen-scsifront.json")))
    reads = [each for each in exchanges if each.request.words.startswith("READ(10)")]
    assert reads
    for each in reads:
        blocks = int(each.request.words.split("blocks ")[1].split()[0])
        assert each.moved == blocks * 512


def test_answers_out_of_order(traffic):
    for tag in (1, 2, 3):
        traffic.command(tag)
    for tag in (3, 1, 2):
        traffic.respond(tag)
    assert traffic.outcome == [(3, 1), (1, 4), (2, 4)]


def test_a_tag_used_again_goes_to_the_older_request_first(traffic):
    request = blkif.X86_64.build_request(blkif.Operation.FLUSH_DISKCACHE, id=9)
    response = blkif.X86_64.build_response(id=9, operation=3, status=0)
    for way in (Way.TO_TARGET, Way.TO_TARGET, Way.TO_INITIATOR, Way.TO_INITIATOR):
        message = request if way is Way.TO_TARGET else response
        traffic.add(Protocol.BLKIF, way, message)
    assert traffic.outcome == [(9, 2), (9, 2)]


def test_rings_do_not_mix(traffic):
    traffic.command(1, interface=0)
    traffic.command(1, interface=1)
    traffic.srp(IuType.RSP, interface=1, tag=1)
    traffic.srp(IuType.RSP, interface=0, tag=1)
    assert traffic.outcome == [(1, 1), (1, 3)]


def test_commands_logins_and_mads_may_share_a_tag(traffic):
    traffic.srp(IuType.LOGIN_REQ, tag=1)
    traffic.srp(IuType.LOGIN_RSP, tag=1)
    traffic.command(1)
    traffic.srp(IuType.AER_REQ, tag=1, lun=encode(0), sense_data=Sense(6, 0x29, 0).build())
    traffic.srp(IuType.AER_RSP, tag=1)
    traffic.respond(1)
    kinds = [(each.kind, each.latency_ns) for each in traffic.exchanges]
    assert kinds == [(Kind.LOGIN, 1000), (Kind.EVENT, 1000), (Kind.COMMAND, 3000)]


def test_what_is_never_answered_is_told_at_the_end(traffic):
    for tag in (1, 2, 3):
        traffic.command(tag)
    traffic.respond(2)
    assert traffic.outcome == [(2, 2), (1, ""), (3, "")]


def test_an_answer_without_its_request(traffic):
    traffic.respond(77)
    (each,) = traffic.exchanges
    assert each.request is None
    assert each.answer.tag == 77
    assert each.moved is None


def test_an_aborted_task_does_not_take_the_answer_to_its_tag_s_next_use(traffic):
    traffic.command(1)
    traffic.command(2)
    traffic.srp(IuType.TSK_MGMT, tag=9, function=1, managed_tag=1, lun=encode(0))
    traffic.respond(9, flags=RspFlags.RSPVALID, response_data=bytes(4))
    traffic.command(1)
    traffic.respond(1)
    traffic.respond(2)
    assert traffic.outcome == [(1, "aborted"), (1, 1), (2, 5)]


def test_a_function_that_failed_aborts_nothing(traffic):
    traffic.command(1)
    traffic.srp(IuType.TSK_MGMT, tag=9, function=1, managed_tag=1, lun=encode(0))
    traffic.respond(9, flags=RspFlags.RSPVALID, response_data=bytes([0, 0, 0, 5]))
    traffic.respond(1)
    assert traffic.outcome == [(1, 3)]


@pytest.mark.parametrize("function", [2, 4, 8])
def test_functions_for_a_logical_unit_abort_what_was_sent_to_it_before(traffic, function):
    traffic.command(1, lun=3)
    traffic.command(2, lun=4)
    traffic.srp(IuType.TSK_MGMT, tag=9, function=function, lun=encode(3))
    traffic.command(3, lun=3)
    traffic.respond(9, flags=RspFlags.RSPVALID, response_data=bytes(4))
    traffic.respond(2, flags=0)
    traffic.respond(3)
    assert traffic.outcome == [(1, "aborted"), (2, 4), (3, 3)]


def test_vscsiif_answers_what_was_aborted(traffic):
    for fields in ({"cdb": READ, "rqid": 1}, {"act": vscsiif.Act.ABORT, "rqid": 2, "ref_rqid": 1}):
        traffic.add(Protocol.VSCSIIF, Way.TO_TARGET, vscsiif.build_request(**fields))
    for fields in (
        {"rqid": 2, "rslt": vscsiif.RESET_SUCCESS},
        {"rqid": 1, "rslt": vscsiif.pack_rslt(0, vscsiif.Host.RESET)},
    ):
        traffic.add(Protocol.VSCSIIF, Way.TO_INITIATOR, vscsiif.build_response(**fields))
    management, command = traffic.exchanges
    assert (management.kind, management.answer.failed) == (Kind.MANAGEMENT, False)
    assert (command.answer.outcome, command.moved) == ("host RESET", 0)


@pytest.mark.parametrize("kind", [IuType.LOGIN_REQ, IuType.I_LOGOUT, IuType.T_LOGOUT])
def test_a_login_or_logout_ends_what_was_open(traffic, kind):
    traffic.command(1)
    traffic.srp(kind, tag=50)
    traffic.command(1)
    traffic.respond(1)
    fate = "login" if kind is IuType.LOGIN_REQ else "logout"
    assert traffic.outcome == [(1, fate), (1, 1)]


def test_a_ring_that_begins_anew_ends_what_was_open(traffic):
    flush = blkif.X86_64.build_request(blkif.Operation.FLUSH_DISKCACHE, id=9)
    response = blkif.X86_64.build_response(id=9, operation=3, status=0)
    for ring_index in (0xFFFFFFFF, 0, 1, 0):  # over the top, on, and back
        traffic.add(Protocol.BLKIF, Way.TO_TARGET, flush, ring_index=ring_index)
    traffic.add(Protocol.BLKIF, Way.TO_INITIATOR, response)
    anew = "the ring was connected anew"
    assert traffic.outcome == [(9, anew), (9, anew), (9, anew), (9, 1)]


def test_after_dropped_messages_no_wrong_pairs_are_made(traffic):
    traffic.command(1)
    traffic.command(1, lost=1)
    traffic.respond(1)
    assert traffic.outcome == [(1, "messages were dropped"), (1, 1)]


def test_requests_without_answers_do_not_pile_up(traffic, monkeypatch):
    monkeypatch.setattr(exchange_module, "MAX_OPEN", 10)
    for tag in range(25):
        traffic.command(tag)
    outcome = traffic.outcome
    assert [tag for tag, _ in outcome] == list(range(25))
    assert [fate for _, fate in outcome] == ["no answer for too long"] * 15 + [""] * 10


def test_a_malformed_message_is_shown_and_disturbs_nothing(traffic):
    traffic.command(1)
    traffic.add(Protocol.SRP, Way.TO_TARGET, b"\x01\x00\xff\xff" + bytes(10))
    traffic.add(9, Way.TO_TARGET, b"")
    traffic.add(Protocol.BLKIF, 4, bytes(112))
    traffic.add(Protocol.BLKIF, Way.TO_TARGET, bytes(3))
    traffic.add(Protocol.BLKIF, Way.TO_TARGET, bytes(112), layout=LayoutCode.NONE)
    traffic.srp(IuType.RSP, tag=1)
    wrong_side = build_slot(SlotFormat.SRP, build_iu(srp.IuType.RSP, tag=1))
    traffic.add(Protocol.SRP, Way.TO_TARGET, wrong_side)
    kinds = [each.kind for each in traffic.exchanges]
    assert kinds == [Kind.MALFORMED] * 5 + [Kind.COMMAND, Kind.MALFORMED]
