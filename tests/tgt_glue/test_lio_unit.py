# SPDX-License-Identifier: MIT
"""A logical unit that a kernel executes the commands of, behind the router, over a fake kernel."""

import os
import queue
import threading
from pathlib import Path

import pytest

from tgt_glue import sg
from tgt_glue.lio_unit import open_sg
from vscsi import connect
from vscsi.target.base import (
    Attribute,
    DeliveryFailure,
    Function,
    Nexus,
    ServiceResponse,
    Status,
    Task,
)
from vscsi.target.task_manager import TaskManager
from vscsi.transport.export import Export
from vscsi.transport.hba import TransportError
from vscsi.wire.cdb import build, named
from vscsi.wire.errors import SetupError
from vscsi.wire.lun import encode
from vscsi.wire.opcodes import DeviceType
from vscsi.wire.parameters import parse_report_luns
from vscsi.wire.sense import Sense, parse_sense

LUN = encode(0)
TEST_UNIT_READY = bytes(6)
CAPACITY_512 = bytes.fromhex("00000fff00000200")
HANG_S = 30


def code(answer):
    """Key, ASC and ASCQ as the standards' tables have them, or the status' name."""
    sense = parse_sense(answer.sense) if answer.sense else None
    return f"{sense.key:x}/{sense.asc:02x}/{sense.ascq:02x}" if sense else answer.status.name


def executes(replies, reply):
    """Make a kernel that answers by opcode: a Reply, or a function of what was sent."""

    def execute(sent):
        answer = replies.get(sent.cdb[0], reply())
        return answer(sent) if callable(answer) else answer

    return execute


class Held:
    """A command of the kernel's that ends when it is told to."""

    def __init__(self, answer):
        self.answer = answer
        self.begun = queue.SimpleQueue()
        self.end = threading.Event()

    def __call__(self, sent):
        self.begun.put(sent)
        assert self.end.wait(HANG_S)
        return self.answer


# Data.


def test_what_is_written_is_read_again(make_setup):
    hba = make_setup().hba()
    data = os.urandom(3 * 512)
    hba.lun(0).write(7, data)
    assert hba.lun(0).read(6, 5) == bytes(512) + data + bytes(512)


@pytest.mark.parametrize("block_size", [512, 4096])
def test_transfers_over_the_kernels_limit_are_split(make_setup, block_size):
    setup = make_setup(block_size=block_size, blocks=1024, max_bytes=40960)
    hba = setup.hba()
    data = os.urandom(200 * block_size)
    hba.lun(0).write(3, data)
    assert hba.lun(0).read(3, 200) == data
    assert max(sent.length for sent in hba.node.sent) == 40960


def test_a_split_command_ends_with_the_first_error(make_setup, reply):
    medium_error = Sense(3, 0x11, 0, information=80).build()

    def read(sent):
        at = int.from_bytes(sent.cdb[2:6], "big")
        return reply(b"", 2, medium_error, driver=8) if at == 80 else reply(bytes(sent.length))

    execute = executes({0x25: reply(CAPACITY_512), 0x28: read}, reply)
    hba = make_setup(execute, max_bytes=40960).hba()
    answer = hba.command(LUN, build("READ(10)", blocks=200), data_in=200 * 512)
    assert (code(answer), answer.sense, answer.residual) == ("3/11/00", medium_error, 200 * 512)
    assert [sent.cdb[0] for sent in hba.node.sent] == [0x25, 0x28, 0x28]


@pytest.mark.parametrize(
    ("cdb", "buffers", "expected", "residual"),
    [
        (build("READ(10)", blocks=2), {"data_in": 700}, "GOOD", -324),
        (build("READ(10)", blocks=2), {"data_in": 1600}, "GOOD", 576),
        (build("WRITE(10)", blocks=2), {"data_out": bytes(1600)}, "GOOD", 576),
        (build("WRITE(10)", blocks=2), {"data_out": bytes(1000)}, "5/0e/03", -24),
        (build("WRITE(10)", blocks=2), {"data_in": 1024}, "5/0e/03", 1024),
        (build("INQUIRY", allocation_length=36), {"data_in": 20}, "GOOD", -16),
        (build("INQUIRY", allocation_length=20), {"data_in": 36}, "GOOD", 16),
        (build("TEST UNIT READY"), {"data_in": 36}, "GOOD", 36),
        (build("READ(10)", lba=4096, blocks=1), {"data_in": 512}, "5/21/00", 512),
        (build("READ(10)", blocks=1, control=4), {"data_in": 512}, "5/24/00", 512),
        (b"\xc1" + bytes(15), {"data_in": 40}, "5/20/00", 40),
    ],
)
def test_lio_never_sees_a_buffer_that_is_not_the_cdbs(make_setup, cdb, buffers, expected, residual):
    """The disk behind the fake node fails the test for one."""
    answer = make_setup().hba().command(LUN, cdb, **buffers)
    assert (code(answer), answer.residual) == (expected, residual)


def test_an_unknown_commands_data_arrive(make_setup, reply):
    setup = make_setup(executes({0xC1: reply(b"vendor")}, reply))
    answer = setup.hba().command(LUN, b"\xc1" + bytes(15), data_in=10)
    assert (answer.status, answer.data) == (Status.GOOD, b"vendor")


def test_a_device_type_without_a_table_is_believed_about_the_direction(make_setup, reply):
    """A7h is MOVE MEDIUM's neighbour to a changer; 28h might be anything to a printer."""
    setup = make_setup(executes({0x28: reply(b"12345")}, reply), device_type=8)
    hba = setup.hba()
    assert hba.command(LUN, build("READ(10)", blocks=2), data_in=5).data == b"12345"
    assert hba.node.sent[-1].length == 5


# What comes before LIO.


def test_a_nexus_begins_with_power_on(make_setup):
    hba = make_setup().hba(attentions=True)
    inquiry = build("INQUIRY", allocation_length=36)
    assert code(hba.command(LUN, inquiry, data_in=36)) == "GOOD"
    assert code(hba.command(LUN, TEST_UNIT_READY)) == "6/29/01"
    assert code(hba.command(LUN, TEST_UNIT_READY)) == "GOOD"


def test_request_sense_takes_what_is_pending_and_then_asks_lio(make_setup):
    hba = make_setup().hba(attentions=True)
    request = build("REQUEST SENSE", allocation_length=252)
    assert parse_sense(hba.command(LUN, request, data_in=252).data).asc == 0x29
    assert not hba.node.sent
    assert parse_sense(hba.command(LUN, request, data_in=252).data).key == 0
    assert hba.node.sent


def test_report_luns_tells_the_targets_inventory(make_setup):
    setup = make_setup()
    hba = setup.hba()
    assert hba.report_luns() == [LUN]
    assert not hba.node.sent
    answer = hba.command(encode(5), build("REPORT LUNS", allocation_length=64), data_in=64)
    assert list(parse_report_luns(answer.data)) == [LUN]
    assert code(hba.command(encode(5), TEST_UNIT_READY)) == "5/25/00"


def test_each_nexus_has_a_port_of_its_own(make_setup):
    setup = make_setup()
    one, other = setup.hba("one"), setup.hba("other")
    one.lun(0).write(0, b"1" * 512)
    assert other.lun(0).read(0, 1) == b"1" * 512
    assert one.node is not other.node
    assert all(sent.cdb[0] != 0x8A for sent in other.node.sent)


def test_as_many_commands_are_outstanding_as_there_are_workers(make_setup, reply):
    together = threading.Barrier(6)

    def read(sent):
        together.wait(HANG_S)
        return reply(bytes(sent.length))

    execute = executes({0x25: reply(CAPACITY_512), 0x28: read}, reply)
    hba = make_setup(execute, depth=6).hba()
    futures = [hba.start(LUN, build("READ(10)", blocks=1), data_in=512) for _ in range(12)]
    assert {future.result(HANG_S).status for future in futures} == {Status.GOOD}


def test_ordered_tasks_wait_in_front_of_lio(make_setup, reply):
    held = Held(reply())
    hba = make_setup(executes({0x35: held}, reply)).hba()
    first = hba.start(LUN, build("SYNCHRONIZE CACHE(10)"))
    held.begun.get(timeout=HANG_S)
    ordered = hba.start(LUN, TEST_UNIT_READY, attribute=Attribute.ORDERED)
    last = hba.start(LUN, build("PREVENT ALLOW MEDIUM REMOVAL"))
    head = hba.start(LUN, build("START STOP UNIT", start=1), attribute=Attribute.HEAD_OF_QUEUE)
    head.result(HANG_S)
    held.end.set()
    for future in (first, ordered, last):
        future.result(HANG_S)
    assert [sent.cdb[0] for sent in hba.node.sent] == [0x35, 0x1B, 0x00, 0x1E]


def test_no_unit_waits_for_another(make_setup, reply):
    """A unit all of whose workers hang leaves the target's others alone."""
    held = Held(reply())
    setup = make_setup(executes({0x35: held}, reply), depth=2)
    other = make_setup(executes({}, reply))
    setup.router.add(1, other.unit)
    hba = setup.hba()
    stuck = [hba.start(LUN, build("SYNCHRONIZE CACHE(10)")) for _ in range(4)]
    held.begun.get(timeout=HANG_S)
    hba.command(encode(1), TEST_UNIT_READY)
    assert hba.command(encode(1), TEST_UNIT_READY).status is Status.GOOD
    held.end.set()
    assert [future.result(HANG_S).status for future in stuck] == [Status.GOOD] * 4


# What goes wrong.


def submit(setup, nexus, cdb):
    """Submit a task of a nexus; return it when it is done."""
    finished = queue.SimpleQueue()
    setup.router.submit(Task(nexus, LUN, 1, cdb, finished.put))
    return finished.get(timeout=HANG_S)


@pytest.mark.parametrize(
    ("answer", "failure", "sense"),
    [
        ({"host": 1}, DeliveryFailure.GONE, "5/25/00"),
        ({"host": 3}, DeliveryFailure.TIMED_OUT, "b/08/01"),
        ({"host": 0xE}, DeliveryFailure.FAILED, "b/08/00"),
        ({"driver": 6}, DeliveryFailure.FAILED, "b/08/00"),
        ({"status": 0x22}, DeliveryFailure.FAILED, "b/08/00"),
    ],
)
def test_what_is_no_scsi_answer_is_a_delivery_failure(make_setup, reply, answer, failure, sense):
    setup = make_setup(executes({0x35: reply(**answer)}, reply))
    hba = setup.hba()
    task = submit(setup, hba.nexus, build("SYNCHRONIZE CACHE(10)"))
    assert (task.status, task.delivery_failure) == (Status.CHECK_CONDITION, failure)
    assert code(task) == sense  # for protocols that have no word for it
    with pytest.raises(TransportError, match=failure.name):
        hba.command(LUN, build("SYNCHRONIZE CACHE(10)"))


@pytest.mark.parametrize("status", [Status.BUSY, Status.RESERVATION_CONFLICT, Status.TASK_SET_FULL])
def test_a_status_passes(make_setup, reply, status):
    hba = make_setup(executes({0x35: reply(status=status)}, reply)).hba()
    assert hba.command(LUN, build("SYNCHRONIZE CACHE(10)")).status is status


def test_a_node_that_left_is_a_unit_that_is_gone(make_setup):
    setup = make_setup()
    hba = setup.hba()
    device = setup.unit._devices[hba.nexus]
    while device._idle:
        device._idle.pop().close()
    hba.node.open_error = OSError(19, "No such device")
    task = submit(setup, hba.nexus, TEST_UNIT_READY)
    assert task.delivery_failure is DeliveryFailure.GONE


def test_a_nexus_without_a_port_has_an_answer_to_everything(make_setup, caplog):
    setup = make_setup()
    setup.port.error = SetupError("attach", "disk", "File exists", "`vscsi lio list`")
    hba = setup.hba()
    assert "no way to its logical unit: attach disk: File exists" in caplog.text
    task = submit(setup, hba.nexus, TEST_UNIT_READY)
    assert task.delivery_failure is DeliveryFailure.GONE
    assert hba.manage(LUN, Function.LOGICAL_UNIT_RESET) is ServiceResponse.FAILED
    hba.close()
    assert not setup.port.gone


def test_a_command_that_the_kernel_keeps_is_answered_in_bounded_time(
    make_setup, reply, monkeypatch
):
    monkeypatch.setattr(sg, "GRACE_S", 0.05)
    setup = make_setup(executes({0x35: lambda _: None}, reply), timeout_s=0.0)
    hba = setup.hba()
    task = submit(setup, hba.nexus, build("SYNCHRONIZE CACHE(10)"))
    assert task.delivery_failure is DeliveryFailure.TIMED_OUT
    setup.unit.timeout_s = 20.0
    assert hba.command(LUN, TEST_UNIT_READY).status is Status.GOOD
    assert hba.manage(LUN, Function.LOGICAL_UNIT_RESET) is ServiceResponse.FAILED


# Task management.


def test_aborting_what_runs_waits_for_it_and_drops_it(make_setup, reply, monkeypatch):
    aborting, original = threading.Event(), TaskManager.abort

    def note(manager, *arguments):
        original(manager, *arguments)
        aborting.set()

    monkeypatch.setattr(TaskManager, "abort", note)
    held = Held(reply())
    hba = make_setup(executes({0x35: held}, reply)).hba()
    future = hba.start(LUN, build("SYNCHRONIZE CACHE(10)"))
    held.begun.get(timeout=HANG_S)
    came_to = queue.SimpleQueue()

    def abort():
        came_to.put(hba.manage(LUN, Function.ABORT_TASK, managed=future.command))

    thread = threading.Thread(target=abort)
    thread.start()
    assert aborting.wait(HANG_S)
    assert came_to.empty()
    held.end.set()
    assert came_to.get(timeout=HANG_S) is ServiceResponse.FUNCTION_COMPLETE
    thread.join(HANG_S)
    with pytest.raises(TransportError, match="aborted"):
        future.result(HANG_S)


def test_an_abort_that_the_kernel_did_not_carry_out_has_failed(make_setup, reply, monkeypatch):
    monkeypatch.setattr(sg, "GRACE_S", 0.3)
    begun = queue.SimpleQueue()
    setup = make_setup(executes({0x35: lambda sent: begun.put(sent)}, reply), timeout_s=0.0)
    hba = setup.hba()
    future = hba.start(LUN, build("SYNCHRONIZE CACHE(10)"))
    begun.get(timeout=HANG_S)
    assert hba.manage(LUN, Function.ABORT_TASK_SET) is ServiceResponse.FAILED
    with pytest.raises(TransportError):
        future.result(HANG_S)


def test_a_reset_is_the_kernels(make_setup):
    setup = make_setup()
    one, other = setup.hba("one"), setup.hba("other")
    assert one.manage(LUN, Function.LOGICAL_UNIT_RESET) is ServiceResponse.FUNCTION_COMPLETE
    assert (len(one.node.resets), len(other.node.resets)) == (1, 0)
    one.node.reset_error = OSError(5, "Input/output error")
    assert one.manage(LUN, Function.LOGICAL_UNIT_RESET) is ServiceResponse.FAILED
    assert one.manage(LUN, Function.CLEAR_ACA) is ServiceResponse.NOT_SUPPORTED
    assert one.manage(encode(3), Function.ABORT_TASK_SET) is ServiceResponse.INCORRECT_LOGICAL_UNIT


# Nexuses that end, sizes that change.


def test_the_port_goes_with_the_nexus(make_setup):
    setup = make_setup()
    hba = setup.hba()
    hba.close()
    assert setup.port.gone == [Nexus("a", "target")]
    assert setup.unit.staged_bytes == 0


def test_a_reservation_goes_with_the_nexus(make_setup, reply):
    setup = make_setup(executes({}, reply))
    hba = setup.hba()
    hba.command(LUN, build("RESERVE(6)"))
    hba.close()
    assert [sent.cdb[0] for sent in hba.node.sent] == [0x16, 0x17]


REGISTRATIONS = ["REGISTER", "REGISTER AND IGNORE EXISTING KEY", "REGISTER AND MOVE"]


@pytest.mark.parametrize("action", REGISTRATIONS)
def test_a_registration_that_there_is_no_room_for_is_refused(make_setup, reply, action):
    """SPC-5 5.14.7: INSUFFICIENT REGISTRATION RESOURCES."""
    setup = make_setup(executes({}, reply))
    hba = setup.hba()
    cdb = build(f"PERSISTENT RESERVE OUT {action}", parameter_list_length=24)
    setup.port.full = True
    assert code(hba.command(LUN, cdb, data_out=bytes(24))) == "5/55/04"
    assert not hba.node.sent
    other = build("PERSISTENT RESERVE OUT CLEAR", parameter_list_length=24)
    assert code(hba.command(LUN, other, data_out=bytes(24))) == "GOOD"
    setup.port.full = False
    assert code(hba.command(LUN, cdb, data_out=bytes(24))) == "GOOD"


def test_a_port_whose_node_cannot_be_opened_is_given_back(make_setup, caplog):
    setup = make_setup()
    setup.unit._open_device = lambda path: open_sg(Path("/nowhere"))
    setup.hba()
    assert "open /nowhere: No such file" in caplog.text
    assert setup.port.gone == [Nexus("a", "target")]


@pytest.mark.parametrize("known_by", ["READ CAPACITY(16)", "a rescan"])
def test_another_size_reaches_every_nexus(make_setup, reply, known_by):
    sizes = [CAPACITY_512]
    setup = make_setup(executes({0x25: lambda _: reply(sizes[-1])}, reply))
    one, other = setup.hba("one"), setup.hba("other")
    if known_by == "READ CAPACITY(16)":
        one.command(LUN, build("READ CAPACITY(16)", allocation_length=32), data_in=32)
    else:
        setup.unit.rescan()
    assert code(one.command(LUN, TEST_UNIT_READY)) == "GOOD"
    sizes.append(bytes.fromhex("00001fff00000200"))
    setup.unit.rescan()
    for hba in (one, other):
        assert code(hba.command(LUN, TEST_UNIT_READY)) == "6/2a/09"
        assert code(hba.command(LUN, TEST_UNIT_READY)) == "GOOD"


@pytest.mark.parametrize(("asc", "told"), [(0x28, "6/28/00"), (0x2A, "6/2a/09")])
def test_what_a_device_tells_one_nexus_all_are_told(make_setup, reply, asc, told):
    """A passed-through device has one initiator, the host: its unit attention comes once."""
    pending = [Sense(6, asc, 0x09 if asc == 0x2A else 0).build()]

    def synchronize(_):
        return reply(b"", 2, pending.pop(), driver=8) if pending else reply()

    setup = make_setup(executes({0x25: reply(CAPACITY_512), 0x35: synchronize}, reply))
    one, other = setup.hba("one"), setup.hba("other")
    seen = []
    setup.unit.attentions.observe(lambda sense, nexuses: seen.append((sense.asc, [*nexuses])))
    assert code(one.command(LUN, build("SYNCHRONIZE CACHE(10)"))) == told
    assert seen == [(asc, [other.nexus])]
    assert code(other.command(LUN, TEST_UNIT_READY)) == told
    assert {code(hba.command(LUN, TEST_UNIT_READY)) for hba in (one, other)} == {"GOOD"}


def test_another_size_is_not_missed_behind_another_attention(make_setup, reply):
    """Whatever else LIO had to tell in between."""
    replies = {0x25: reply(CAPACITY_512), 0x35: reply(b"", 2, Sense(6, 0x29, 7).build(), driver=8)}
    setup = make_setup(executes(replies, reply))
    hba = setup.hba()
    setup.unit.rescan()
    hba.command(LUN, build("SYNCHRONIZE CACHE(10)"))
    replies[0x25] = reply(bytes.fromhex("00001fff00000200"))
    setup.unit.rescan()
    assert code(hba.command(LUN, TEST_UNIT_READY)) == "6/2a/09"


def test_an_attention_that_a_rescan_met_is_passed_on(make_setup, reply):
    pending = [Sense(6, 0x3F, 0x0E).build()]

    def capacity(_):
        return reply(b"", 2, pending.pop(), driver=8) if pending else reply(CAPACITY_512)

    setup = make_setup(executes({0x25: capacity}, reply))
    hba = setup.hba()
    setup.unit.rescan()
    assert code(hba.command(LUN, TEST_UNIT_READY)) == "6/3f/0e"


def test_what_keeps_the_size_from_being_known_is_a_reads_answer(make_setup, reply):
    no_medium = Sense(2, 0x3A, 0).build()
    setup = make_setup(executes({0x25: reply(b"", 2, no_medium, driver=8)}, reply), device_type=5)
    hba = setup.hba()
    answer = hba.command(LUN, build("READ(10)", blocks=1), data_in=2048)
    assert (code(answer), answer.residual) == ("2/3a/00", 2048)
    assert [sent.cdb[0] for sent in hba.node.sent] == [0x25]


def test_a_unit_attention_has_the_size_asked_for_again(make_setup, reply):
    changed = Sense(6, 0x28, 0).build()
    replies = {0x25: reply(CAPACITY_512), 0x28: lambda sent: reply(bytes(sent.length))}
    setup = make_setup(executes(replies, reply))
    hba = setup.hba()
    read = build("READ(10)", blocks=1)
    assert hba.command(LUN, read, data_in=4096).residual == 4096 - 512
    replies[0x35] = reply(b"", 2, changed, driver=8)
    assert code(hba.command(LUN, build("SYNCHRONIZE CACHE(10)"))) == "6/28/00"
    replies[0x25] = reply(bytes.fromhex("00000fff00000800"))
    assert hba.command(LUN, read, data_in=4096).residual == 4096 - 2048


def test_a_disk_over_2_tib_is_asked_with_the_long_command(make_setup, reply):
    long = (1 << 33).to_bytes(8, "big") + (512).to_bytes(4, "big") + bytes(20)
    replies = {0x25: reply(b"\xff\xff\xff\xff\0\0\2\0"), 0x9E: reply(long)}
    replies[0x88] = lambda sent: reply(bytes(sent.length))
    hba = make_setup(executes(replies, reply), max_bytes=4096).hba()
    read = build("READ(16)", lba=1 << 32, blocks=16)
    assert code(hba.command(LUN, read, data_in=8192)) == "GOOD"


def test_a_size_that_cannot_be_is_a_delivery_failure(make_setup, reply):
    setup = make_setup(executes({0x25: reply(bytes(8))}, reply))
    hba = setup.hba()
    task = submit(setup, hba.nexus, build("READ(10)", blocks=1))
    assert task.delivery_failure is DeliveryFailure.FAILED


# A tape's READ may come with data and CHECK CONDITION (SSC-4).


@pytest.mark.parametrize(
    ("fixed", "asked", "sense", "residual", "came"),
    [
        (0, 10, Sense(0, 0, 0, information=4, ili=True), 4, 6),
        (0, 10, Sense(0, 0, 0, information=4, ili=True), 0, 6),
        (0, 10, Sense(0, 0, 0, information=2, ili=True), 4, 6),
        (0, 10, Sense(0, 0, 0, information=0xFFFF_FFF0, ili=True), 0, 10),
        (0, 10, Sense(0, 0, 1, information=10, filemark=True), 10, 0),
        (0, 10, Sense(0, 0, 2, information=0, eom=True), 0, 10),
        (1, 5, Sense(0, 0, 1, information=2, filemark=True), 4, 6),
        (1, 5, Sense(0, 0, 1, information=9, filemark=True), 0, 0),
        (0, 10, Sense(0, 0, 0, information=4), 4, 0),
        (0, 10, Sense(0, 0, 0, ili=True), 4, 0),
        (0, 10, Sense(8, 0, 5, information=4), 0, 0),
        (0, 10, Sense(3, 0x11, 0, information=4, ili=True), 0, 0),
    ],
)
def test_what_a_tape_read_before_a_mark_arrives_with_the_sense(
    make_setup, reply, tmp_path, fixed, asked, sense, residual, came
):
    answer = reply(b"0123456789", 2, sense.build(), driver=8, residual=residual)
    unit = make_setup(executes({0x08: answer}, reply), device_type=1).router.remove(0)
    read = build(named("READ(6)", DeviceType.TAPE), fixed=fixed, transfer_length=asked)
    export = Export(tmp_path, {0: unit})
    export.start()
    try:
        for kind in ("srp", "vscsiif"):
            with connect(f"{kind}:{tmp_path}") as hba:
                hba.command(LUN, TEST_UNIT_READY)
                told = hba.command(LUN, read, data_in=10)
                assert (told.status, told.sense) == (Status.CHECK_CONDITION, sense.build())
                assert (told.residual, told.data) == (10 - came, b"0123456789"[:came])
    finally:
        export.stop()


# Over the rings.


@pytest.mark.parametrize(
    ("host", "vscsiif", "srp"),
    [(1, "NO_CONNECT", "5/25/00"), (3, "TIME_OUT", "b/08/01"), (0xE, "ERROR", "b/08/00")],
)
def test_each_ring_has_its_word_for_a_delivery_failure(
    make_setup, reply, tmp_path, host, vscsiif, srp
):
    unit = make_setup(executes({0x35: reply(host=host)}, reply)).router.remove(0)
    export = Export(tmp_path, {0: unit})
    export.start()
    try:
        with connect(f"srp:{tmp_path}") as hba:
            hba.command(LUN, TEST_UNIT_READY)
            assert code(hba.command(LUN, build("SYNCHRONIZE CACHE(10)"))) == srp
        with connect(f"vscsiif:{tmp_path}") as hba:
            hba.command(LUN, TEST_UNIT_READY)
            with pytest.raises(TransportError, match=f"host status {vscsiif}"):
                hba.command(LUN, build("SYNCHRONIZE CACHE(10)"))
    finally:
        export.stop()
