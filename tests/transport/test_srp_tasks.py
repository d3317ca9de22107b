# SPDX-License-Identifier: MIT
"""Tasks over an SRP channel: the request limit, task management, and what the target asks."""

import pytest

from vscsi.domain.toolstack import VSRP
from vscsi.target.base import Attribute, Function, Nexus, Status
from vscsi.transport.srp.backend import SrpBackend
from vscsi.wire import mad, srp
from vscsi.wire.cdb import build
from vscsi.wire.lun import encode
from vscsi.wire.sense import parse_sense
from vscsi.wire.srp import IuType, RspCode, TLogoutReason

READ = build("READ(10)", lba=0, blocks=1)
WHERE = {"data_in": {"address": 0, "handle": 1, "length": 512}}
LIMIT = 12
MISSING_LUN = encode(77)


class Account:
    """The initiator's side of the request limit: R, and what is in flight (SRP r16a 4.4)."""

    def __init__(self, channel, end):
        self.channel = channel
        self.end = end
        self.limit = LIMIT
        self.sent = set()

    def send(self, tag, cdb=READ, **fields):
        assert self.limit > 0
        self.limit -= 1
        self.sent.add(tag)
        self.channel.command(cdb, tag, **{**WHERE, **fields})

    def manage(self, tag, function, **fields):
        self.limit -= 1
        self.sent.add(tag)
        self.channel.send(IuType.TSK_MGMT, tag=tag, function=function, **fields)

    def receive(self):
        unit = self.channel.receive()
        self.limit += unit.request_limit_delta
        if unit.type is IuType.RSP:
            self.sent.remove(unit.tag)
        return unit

    def settle(self):
        """Return when the target has taken what was sent: a MAD is answered in its turn."""
        assert self.channel.mad(mad.MadType.ENABLE_FAST_FAIL).status == 0

    def check(self):
        """What is said of the limit at both ends is the same."""
        theirs = self.end._credits
        with theirs._lock:
            assert theirs.limit == theirs.free + theirs.outstanding + theirs.owed
            assert theirs.free >= self.limit


@pytest.fixture
def account(raw, server):
    channel = raw("srp").connect()
    channel.login()
    channel.region(1)
    channel.ready()
    return Account(channel, server.end(channel.domain, "vsrp"))


# The request limit


def test_the_limit_comes_back_with_the_answers(account, server):
    for _ in range(3):
        server.store.hold()
        for tag in range(LIMIT):
            account.send(tag)
        server.store.wait_held(4)
        account.check()
        assert account.limit == 0
        server.store.release()
        for _ in range(LIMIT):
            assert account.receive().status == Status.GOOD
            account.check()
        assert account.limit == account.end._credits.free == LIMIT


def test_a_request_beyond_the_limit_ends_the_channel(account, server):
    server.store.hold()
    for tag in range(LIMIT):
        account.send(tag)
    server.store.wait_held(4)
    account.channel.command(READ, 99, **WHERE)
    unit = account.channel.receive()
    assert (unit.type, unit.reason) == (IuType.T_LOGOUT, TLogoutReason.NO_REASON)
    server.store.release()
    assert "beyond the request limit of 12" in account.channel.closed()


def test_commands_end_in_any_order(account, server):
    server.store.hold("read")
    account.send(1)
    server.store.wait_held()
    account.send(2, build("TEST UNIT READY"), data_in=None)
    assert account.receive().tag == 2
    server.store.release()
    assert account.receive().tag == 1


# Task management


def test_an_aborted_command_gets_no_answer_and_its_credit_comes_with_the_function(account, server):
    server.store.hold()
    account.send(1)
    server.store.wait_held()
    account.send(2, attribute=Attribute.ORDERED)  # waits for the first
    account.manage(3, Function.ABORT_TASK, managed_tag=2)
    rsp = account.receive()
    assert (rsp.tag, srp.rsp_code(rsp), rsp.request_limit_delta) == (3, RspCode.NO_FAILURE, 2)
    account.sent.remove(2)
    server.store.release()
    assert account.receive().tag == 1
    assert not account.sent
    assert account.limit == account.end._credits.free == LIMIT


@pytest.mark.parametrize(
    "function", [Function.ABORT_TASK_SET, Function.CLEAR_TASK_SET, Function.LOGICAL_UNIT_RESET]
)
def test_functions_on_a_whole_task_set(account, server, function):
    server.store.hold()
    for tag in range(5):
        account.send(tag)
    server.store.wait_held(4)
    account.manage(9, function)
    account.check()
    # What runs is let run, and the function ends when all that it aborted has ended.
    account.settle()
    server.store.release()
    rsp = account.receive()
    assert (rsp.tag, srp.rsp_code(rsp), rsp.request_limit_delta) == (9, RspCode.NO_FAILURE, 6)
    assert account.limit == account.end._credits.free == LIMIT
    rsp = account.channel.execute(build("TEST UNIT READY"))
    if function is Function.LOGICAL_UNIT_RESET:
        assert parse_sense(rsp.sense_data).asc == 0x29
    else:
        assert rsp.status == Status.GOOD


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"function": Function.ABORT_TASK, "managed_tag": 12345}, RspCode.NO_FAILURE),
        ({"function": Function.ABORT_TASK, "lun": MISSING_LUN}, RspCode.REQUEST_FIELDS_INVALID),
        ({"function": Function.LOGICAL_UNIT_RESET, "lun": MISSING_LUN}, 2),
        ({"function": Function.CLEAR_ACA}, RspCode.TASK_MANAGEMENT_NOT_SUPPORTED),
        ({"function": 0x20}, RspCode.TASK_MANAGEMENT_NOT_SUPPORTED),
        ({"function": 0}, RspCode.TASK_MANAGEMENT_NOT_SUPPORTED),
    ],
)
def test_what_a_function_comes_to(account, fields, code):
    rsp = account.channel.ask(IuType.TSK_MGMT, tag=4, **fields)
    assert (rsp.tag, srp.rsp_code(rsp), rsp.status) == (4, code, 0)
    assert rsp.request_limit_delta == 1


def test_another_initiator_s_commands_end_with_task_aborted(account, server, raw):
    other = raw("srp").connect()
    other.login()
    other.ready()
    server.store.hold()
    account.send(1)
    server.store.wait_held()
    account.send(2, attribute=Attribute.ORDERED)
    account.settle()
    other.send(IuType.TSK_MGMT, tag=1, function=Function.CLEAR_TASK_SET)
    rsp = account.receive()
    assert (rsp.tag, rsp.status) == (2, Status.TASK_ABORTED)
    server.store.release()
    rsp = account.receive()
    assert (rsp.tag, rsp.status) == (1, Status.TASK_ABORTED)
    assert srp.rsp_code(other.receive()) == RspCode.NO_FAILURE
    assert account.limit == LIMIT


def test_an_overlapped_tag_ends_both_commands_and_loses_no_credit(account, server):
    server.store.hold()
    account.send(1)
    server.store.wait_held()
    account.channel.command(READ, 1, **WHERE)
    account.limit -= 1
    account.settle()
    server.store.release()
    rsp = account.receive()
    sense = parse_sense(rsp.sense_data)
    assert (sense.key, sense.asc) == (0x0B, 0x4E)
    assert account.limit == account.end._credits.free == LIMIT


# What the target asks


def test_credit_that_nothing_would_carry_comes_by_itself(account, server):
    """A target that ends a task without being asked to leaves no RSP to carry its credit."""
    tasks = []
    account.end.port.target = type(
        "Silent",
        (),
        {"submit": tasks.append, "detach": server.export.router.detach, "units": dict},
    )
    account.send(1)
    account.send(2)
    account.settle()
    tasks[0].aborted(tasks[0])
    account.check()
    tasks[1].aborted(tasks[1])
    unit = account.receive()
    assert (unit.type, unit.request_limit_delta) == (IuType.CRED_REQ, 2)
    assert account.limit == account.end._credits.free == LIMIT
    account.send(3)
    account.settle()
    tasks[2].aborted(tasks[2])  # the next request waits for the answer to the first
    account.channel.send(IuType.CRED_RSP, tag=unit.tag)
    following = account.receive()
    assert following.type is IuType.CRED_REQ
    assert following.tag != unit.tag
    assert account.limit == LIMIT


def test_changes_of_the_configuration_are_told_one_at_a_time(account, server):
    server.disks[0].resize()
    event = account.receive()
    assert (event.type, event.request_limit_delta, event.lun) == (IuType.AER_REQ, 0, encode(0))
    sense = parse_sense(event.sense_data)
    assert (sense.key, sense.asc, sense.ascq) == (6, 0x2A, 0x09)
    # The unit attention stays until a command is told; so does the next event, for the AER_RSP.
    rsp = account.channel.execute(build("TEST UNIT READY"))
    assert parse_sense(rsp.sense_data).asc == 0x2A
    server.disks[0].resize()
    assert account.channel.execute(build("INQUIRY", allocation_length=5)).type is IuType.RSP
    account.channel.send(IuType.AER_RSP, tag=event.tag)
    assert account.receive().type is IuType.AER_REQ


@pytest.mark.parametrize("kind", [IuType.CRED_RSP, IuType.AER_RSP])
def test_an_answer_to_no_request_ends_the_channel(account, kind):
    unit = account.channel.ask(kind, tag=1)
    assert (unit.type, unit.reason) == (IuType.T_LOGOUT, TLogoutReason.SPURIOUS_RESPONSE)
    assert "to no request" in account.channel.closed()


# Another channel of the same nexus


@pytest.fixture
def second_channel(account, server, raw):
    """A second SRP device of the same domain, which may log in as the same initiator port."""
    guest = server.guest(account.channel.domain)
    guest._serve(VSRP, 1, [SrpBackend(guest.peer, 1, server.export.tap, server.export.port)], {})
    return raw("srp", handle=1, guest=account.channel.guest).connect()


def test_a_nexus_has_one_channel(account, second_channel):
    fields = {
        "requested_max_it_iu_length": 124,
        "required_buffer_formats": 6,
        "initiator_port_id": b"initiator port 1",
    }
    second_channel.send(IuType.LOGIN_REQ, tag=5, **fields)
    rejected = second_channel.receive()
    assert rejected.type == IuType.LOGIN_REJ
    assert rejected.reason == srp.LoginRejectReason.CHANNEL_LIMIT_REACHED
    account.send(1)
    assert account.receive().status == Status.GOOD  # nobody was disturbed
    account.channel.send(IuType.I_LOGOUT, tag=6)
    while (answer := second_channel.ask(IuType.LOGIN_REQ, tag=7, **fields)).type != (
        IuType.LOGIN_RSP
    ):  # until the first one's logout has been taken
        assert answer.reason == srp.LoginRejectReason.CHANNEL_LIMIT_REACHED


def test_another_initiator_port_has_a_nexus_of_its_own(account, second_channel):
    rsp = second_channel.login(initiator_port_id=b"initiator port 2")
    assert (rsp.type, rsp.flags) == (IuType.LOGIN_RSP, 0)
    account.send(1)
    assert account.receive().status == Status.GOOD


def test_the_same_port_id_in_another_domain_is_another_port(account, raw):
    other = raw("srp").connect()
    assert other.login().flags == 0
    account.send(1)
    assert account.receive().status == Status.GOOD


# Many workers


def test_the_account_holds_under_worker_threads_and_aborts(account, server):
    """Commands, aborts and answers in any interleaving: no credit is lost, none is doubled."""
    tag = 0
    for _ in range(40):
        for _ in range(5):
            tag += 1
            account.send(tag, attribute=Attribute(tag % 3))
        victim = tag - 2
        tag += 1
        account.manage(tag, Function.ABORT_TASK, managed_tag=victim)
        answered = set()
        while tag not in answered:
            answered.add(account.receive().tag)
            account.check()
        account.sent.discard(victim)
        while account.sent:
            account.receive()
        assert account.limit == account.end._credits.free == LIMIT
        assert account.end._credits.owed == account.end._credits.outstanding == 0


def test_reports_reach_only_nexuses_with_a_channel(server):
    server.export.port.report_event([Nexus("nobody", "nowhere")], bytes(8), b"")


def test_a_mad_needs_no_credit(account, server):
    server.store.hold()
    for tag in range(LIMIT):
        account.send(tag)
    server.store.wait_held(4)
    assert account.channel.mad(mad.MadType.ENABLE_FAST_FAIL).status == 0
    server.store.release()
    for _ in range(LIMIT):
        account.receive()
