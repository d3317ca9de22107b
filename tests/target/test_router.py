# SPDX-License-Identifier: MIT
"""The task router: LUNs, nexuses, unit attentions, task management, threads."""

import queue
import random
import threading

import pytest

from vscsi.target.base import Attribute, Function, Management, ServiceResponse, Status
from vscsi.target.disk import Disk
from vscsi.target.stores.memory import MemoryStore
from vscsi.wire.lun import REPORT_LUNS_WLUN, encode
from vscsi.wire.sense import parse_sense

BLOCK = 512


def luns_of(run, select=0, lun=0):
    got = run("REPORT LUNS", select_report=select, allocation_length=4096, into=4096, lun=lun)
    assert got.code == "GOOD"
    assert int.from_bytes(got.data[:4], "big") == len(got.data) - 8
    return [got.data[at : at + 8] for at in range(8, len(got.data), 8)]


def small_disk():
    return Disk(MemoryStore(1 << 16))


# LUNs.


@pytest.mark.parametrize(
    "lun",
    ["0005000000000000", "4005000000000000", "8005000000000000", "d200000500000000"],
)
def test_a_logical_unit_answers_to_every_form_of_its_number(setup, lun):
    setup.router.add(5, small_disk())
    for form in (lun, "0005000000000000"):
        got = setup.run("READ CAPACITY(10)", into=8, lun=bytes.fromhex(form))
        if got.code == "6/29/01":
            got = setup.run("READ CAPACITY(10)", into=8, lun=bytes.fromhex(form))
        assert got.data[:4] == (127).to_bytes(4, "big")


@pytest.mark.parametrize(
    "lun",
    [
        "0001000000000000",
        "0100000000000000",  # bus 1
        "0000000100000000",  # second level
        "8020000000000000",  # bus 1, in ibmvscsi's form
        "c102000000000000",  # ACCESS CONTROLS
        "ffffffffffffffff",
        "0000",  # a transport's mistake
    ],
)
def test_a_lun_that_names_nothing_is_a_logical_unit_that_is_not_there(setup, lun):
    lun = bytes.fromhex(lun)
    got = setup.run("INQUIRY", allocation_length=96, into=96, lun=lun)
    assert (got.code, got.data[0]) == ("GOOD", 0x7F)
    assert luns_of(setup.run, lun=lun) == [bytes(8)]
    got = setup.run("REQUEST SENSE", allocation_length=18, into=18, lun=lun)
    assert (got.code, got.data[2], got.data[12]) == ("GOOD", 5, 0x25)
    for name in ("TEST UNIT READY", "READ(10)", "READ CAPACITY(16)"):
        assert setup.run(name, into=512, lun=lun).code == "5/25/00"
    assert setup.run(b"\xee", lun=lun).code == "5/25/00"


def test_the_report_luns_well_known_logical_unit(setup):
    got = setup.run("INQUIRY", allocation_length=96, into=96, lun=REPORT_LUNS_WLUN)
    assert got.data[0] == 0x1E
    assert luns_of(setup.run, lun=REPORT_LUNS_WLUN) == [bytes(8)]
    assert setup.run("TEST UNIT READY", lun=REPORT_LUNS_WLUN).code == "GOOD"
    assert setup.run("READ(10)", into=512, lun=REPORT_LUNS_WLUN).code == "5/20/00"


def test_report_luns_selects(setup):
    for number in (300, 20000, 2):
        setup.router.add(number, small_disk())
    plain = [encode(number) for number in (0, 2, 300, 20000)]
    assert luns_of(setup.run, 0) == plain == list(setup.router.luns())
    assert luns_of(setup.run, 1) == [REPORT_LUNS_WLUN]
    assert luns_of(setup.run, 2) == [*plain, REPORT_LUNS_WLUN]
    got = setup.run("REPORT LUNS", select_report=3, allocation_length=256, into=256)
    assert (got.code, got.sense.field_pointer) == ("5/24/00", 2)
    got = setup.run("REPORT LUNS", allocation_length=15, into=256)
    assert (got.code, got.sense.field_pointer) == ("5/24/00", 6)


def test_numbers_are_taken_once(setup):
    with pytest.raises(ValueError, match="exists"):
        setup.router.add(0, small_disk())
    with pytest.raises(ValueError, match="16777216"):
        setup.router.add(1 << 24, small_disk())
    with pytest.raises(KeyError):
        setup.router.remove(1)


# Unit attentions.


def test_power_on_is_reported_once_per_nexus_and_logical_unit(setup, initiator):
    setup.router.add(1, small_disk())
    run = initiator(setup.router, "new", attentions=True)
    for lun in (0, 1):
        assert run("INQUIRY", allocation_length=5, into=5, lun=lun).code == "GOOD"
        assert run("TEST UNIT READY", lun=lun).code == "6/29/01"
        assert run("TEST UNIT READY", lun=lun).code == "GOOD"
    assert setup.run("TEST UNIT READY").code == "6/3f/0e"


def test_request_sense_returns_a_pending_condition_as_data(setup, initiator):
    run = initiator(setup.router, "new", attentions=True)
    got = run("REQUEST SENSE", allocation_length=18, into=18)
    assert (got.code, got.data[2], got.data[12:14].hex()) == ("GOOD", 6, "2901")
    assert run("TEST UNIT READY").code == "GOOD"


def test_an_unknown_opcode_does_not_hide_a_condition(setup, initiator):
    run = initiator(setup.router, "new", attentions=True)
    assert run(b"\x02" + bytes(5)).code == "6/29/01"
    assert run(b"\x02" + bytes(5)).code == "5/20/00"


def test_conditions_are_reported_by_precedence(setup):
    setup.disk.resize()
    setup.router.add(1, small_disk())
    setup.disk.reset()
    codes = [setup.run("TEST UNIT READY").code for _ in range(4)]
    assert codes == ["6/29/03", "6/2a/09", "6/3f/0e", "GOOD"]


def test_a_condition_is_pending_once_however_often_it_came(setup):
    for _ in range(1000):
        setup.disk.resize()
    assert setup.run("TEST UNIT READY").code == "6/2a/09"
    assert setup.run("TEST UNIT READY").code == "GOOD"


def test_a_changed_inventory_is_told_everywhere_until_report_luns(setup, initiator):
    other = initiator(setup.router, "other")
    setup.router.add(1, small_disk())
    assert other("TEST UNIT READY", lun=1).code == "6/29/01"
    setup.router.add(2, small_disk())
    assert luns_of(setup.run) == [encode(0), encode(1), encode(2)]  # clears it on every LUN
    assert setup.run("TEST UNIT READY").code == "GOOD"
    assert [other("TEST UNIT READY", lun=lun).code for lun in (0, 0, 1, 1)] == [
        "6/3f/0e",
        "GOOD",
        "6/3f/0e",
        "GOOD",
    ]
    setup.router.remove(2)
    assert setup.run("TEST UNIT READY", lun=2).code == "5/25/00"
    assert setup.run("TEST UNIT READY").code == "6/3f/0e"


def test_a_nexus_that_comes_back_starts_anew(setup):
    setup.router.detach(setup.run.nexus)
    setup.router.detach(setup.run.nexus)
    setup.router.attach(setup.run.nexus)
    assert setup.run("TEST UNIT READY").code == "6/29/01"


# Tasks.


class Gate:
    """Holds a store operation in its thread until it is opened."""

    def __init__(self):
        self.entered = threading.Semaphore(0)
        self.opened = threading.Event()

    def __call__(self, *_):
        self.entered.release()
        assert self.opened.wait(30)

    def wait_until_entered(self):
        assert self.entered.acquire(timeout=30)


@pytest.fixture
def threaded(make_setup):
    made = make_setup(workers=2, depth=8)
    yield made
    for gate in made.store.gates.values():
        gate.opened.set()


class Log:
    """What became of tasks, in order."""

    def __init__(self):
        self.events = queue.SimpleQueue()

    def task(self, run, *args, **fields):
        return run.task(
            *args,
            done=lambda task: self.events.put(("done", task.tag, task.status.name)),
            aborted=lambda task: self.events.put(("aborted", task.tag)),
            **fields,
        )

    def management(self, run, function, tag=0, lun=0):
        return Management(
            run.nexus,
            encode(lun),
            function,
            done=lambda request: self.events.put(
                ("managed", request.response.name, request.aborted_tasks)
            ),
            managed_tag=tag,
        )

    def next(self):
        return self.events.get(timeout=30)

    def rest(self):
        found = []
        while not self.events.empty():
            found.append(self.events.get())
        return found


def read_into(log, run, tag, **more):
    fields = {"lba": 0, "blocks": 1, "tag": tag, "data_in": [memoryview(bytearray(BLOCK))], **more}
    return log.task(run, "READ(10)", **fields)


def held_read(setup, log, tag=100, run=None, **more):
    """Submit a read that stays in the store until its gate opens."""
    gate = setup.store.gates["read"] = Gate()
    setup.router.submit(read_into(log, run or setup.run, tag, **more))
    gate.wait_until_entered()
    return gate


def test_ordered_and_head_of_queue_tasks_keep_their_places(threaded):
    log = Log()
    gate = held_read(threaded, log)
    del threaded.store.gates["read"]
    submit = threaded.router.submit
    submit(log.task(threaded.run, "TEST UNIT READY", tag=1, attribute=Attribute.ORDERED))
    submit(log.task(threaded.run, "TEST UNIT READY", tag=2))
    submit(log.task(threaded.run, "TEST UNIT READY", tag=3, attribute=Attribute.HEAD_OF_QUEUE))
    assert log.next() == ("done", 3, "GOOD")
    gate.opened.set()
    assert [log.next() for _ in range(3)] == [
        ("done", 100, "GOOD"),
        ("done", 1, "GOOD"),
        ("done", 2, "GOOD"),
    ]


def test_a_full_task_set_says_so(threaded, initiator):
    other = initiator(threaded.router, "other")
    log = Log()
    gate = held_read(threaded, log, attribute=Attribute.ORDERED)
    for tag in range(7):
        threaded.router.submit(log.task(threaded.run, "TEST UNIT READY", tag=tag))
    threaded.router.submit(log.task(other, "TEST UNIT READY", tag=50))
    assert log.next() == ("done", 50, "TASK_SET_FULL")
    gate.opened.set()
    assert {log.next() for _ in range(8)} == {("done", tag, "GOOD") for tag in (*range(7), 100)}
    assert other("TEST UNIT READY").code == "GOOD"


def test_a_tag_in_use_aborts_both(threaded):
    log = Log()
    gate = held_read(threaded, log, tag=7)
    threaded.router.submit(log.task(threaded.run, "TEST UNIT READY", tag=7))
    assert log.rest() == []  # the first one's buffer is still in use
    gate.opened.set()
    assert [log.next(), log.next()] == [("aborted", 7), ("done", 7, "CHECK_CONDITION")]


def test_the_same_tag_of_another_nexus_or_logical_unit_is_another_tag(threaded, initiator):
    other = initiator(threaded.router, "other")
    log = Log()
    gate = held_read(threaded, log, tag=7)
    threaded.router.submit(log.task(other, "TEST UNIT READY", tag=7))
    assert log.next() == ("done", 7, "GOOD")
    threaded.router.submit(log.task(threaded.run, "INQUIRY", tag=7, lun=9))
    assert log.next() == ("done", 7, "GOOD")
    gate.opened.set()
    assert log.next() == ("done", 7, "GOOD")


def test_overlapped_commands_have_their_sense(threaded):
    gate = held_read(threaded, Log(), tag=7)
    answers = queue.SimpleQueue()
    threaded.router.submit(threaded.run.task("TEST UNIT READY", tag=7, done=answers.put))
    gate.opened.set()
    sense = parse_sense(answers.get(timeout=30).sense)
    assert (sense.key, sense.asc, sense.ascq) == (0xB, 0x4E, 0x00)


# Task management.


def test_a_dormant_task_is_aborted_at_once(threaded):
    log = Log()
    gate = held_read(threaded, log)
    threaded.router.submit(
        log.task(threaded.run, "TEST UNIT READY", tag=1, attribute=Attribute.ORDERED)
    )
    threaded.router.manage(log.management(threaded.run, Function.ABORT_TASK, tag=1))
    assert [log.next(), log.next()] == [("aborted", 1), ("managed", "FUNCTION_COMPLETE", 1)]
    gate.opened.set()
    assert log.next() == ("done", 100, "GOOD")


def test_a_running_task_is_waited_for_and_then_dropped(threaded):
    log = Log()
    gate = held_read(threaded, log)
    for _ in range(2):
        threaded.router.manage(log.management(threaded.run, Function.ABORT_TASK, tag=100))
    assert log.rest() == []
    gate.opened.set()
    assert [log.next() for _ in range(3)] == [
        ("aborted", 100),
        ("managed", "FUNCTION_COMPLETE", 1),
        ("managed", "FUNCTION_COMPLETE", 0),  # counted once
    ]


def test_aborting_an_unknown_tag_completes(setup):
    log = Log()
    setup.router.manage(log.management(setup.run, Function.ABORT_TASK, tag=12345))
    assert log.rest() == [("managed", "FUNCTION_COMPLETE", 0)]


def test_another_nexus_cannot_abort_by_tag(threaded, initiator):
    other = initiator(threaded.router, "other")
    log = Log()
    gate = held_read(threaded, log)
    threaded.router.manage(log.management(other, Function.ABORT_TASK, tag=100))
    threaded.router.manage(log.management(other, Function.ABORT_TASK_SET))
    assert log.rest() == [("managed", "FUNCTION_COMPLETE", 0)] * 2
    gate.opened.set()
    assert log.next() == ("done", 100, "GOOD")


@pytest.mark.parametrize("function", [Function.CLEAR_TASK_SET, Function.LOGICAL_UNIT_RESET])
def test_clearing_answers_the_tasks_of_others_with_task_aborted(threaded, initiator, function):
    other = initiator(threaded.router, "other")
    log = Log()
    gate = held_read(threaded, log, run=other)
    threaded.router.submit(log.task(other, "TEST UNIT READY", tag=1, attribute=Attribute.ORDERED))
    threaded.router.submit(log.task(threaded.run, "TEST UNIT READY", tag=2))
    threaded.router.manage(log.management(threaded.run, function))
    assert {log.next(), log.next()} == {("done", 1, "TASK_ABORTED"), ("aborted", 2)}
    gate.opened.set()
    assert log.next() == ("done", 100, "TASK_ABORTED")
    assert log.next() == ("managed", "FUNCTION_COMPLETE", 1)
    expected = "6/29/03" if function is Function.LOGICAL_UNIT_RESET else "GOOD"
    for run in (threaded.run, other):
        assert run("TEST UNIT READY").code == expected


def test_a_function_waits_for_answers_that_are_on_their_way(threaded):
    """ABORT TASK of a task whose `done` has been entered comes after that answer."""
    log = Log()
    gate = Gate()

    def slow_done(task):
        gate(task)
        log.events.put(("done", task.tag, task.status.name))

    threaded.router.submit(threaded.run.task("TEST UNIT READY", tag=1, done=slow_done))
    gate.wait_until_entered()
    threaded.router.manage(log.management(threaded.run, Function.ABORT_TASK, tag=1))
    assert log.rest() == []
    gate.opened.set()
    assert [log.next(), log.next()] == [("done", 1, "GOOD"), ("managed", "FUNCTION_COMPLETE", 0)]


def test_functions_that_do_not_apply(setup):
    log = Log()
    setup.router.manage(log.management(setup.run, Function.CLEAR_ACA))
    setup.router.manage(log.management(setup.run, Function.LOGICAL_UNIT_RESET, lun=9))
    assert log.rest() == [
        ("managed", ServiceResponse.NOT_SUPPORTED.name, 0),
        ("managed", ServiceResponse.INCORRECT_LOGICAL_UNIT.name, 0),
    ]


def dormant(setup, log, tag, run=None):
    """Submit a task that waits for the held one; its end shows that an abort has begun."""
    run = run or setup.run
    setup.router.submit(log.task(run, "TEST UNIT READY", tag=tag, attribute=Attribute.ORDERED))


def test_detach_returns_when_no_buffer_is_in_use_any_more(threaded, initiator):
    other = initiator(threaded.router, "other")
    log = Log()
    gate = held_read(threaded, log, run=other)
    dormant(threaded, log, 101, other)
    detaching = threading.Thread(
        target=lambda: (threaded.router.detach(other.nexus), log.events.put("detached"))
    )
    detaching.start()
    assert log.next() == ("aborted", 101)
    assert log.rest() == []
    gate.opened.set()
    assert [log.next(), log.next()] == [("aborted", 100), "detached"]
    detaching.join(30)


def test_removing_a_logical_unit_ends_its_tasks(threaded):
    log = Log()
    gate = held_read(threaded, log)
    dormant(threaded, log, 101)
    removing = threading.Thread(target=threaded.router.remove, args=(0,))
    removing.start()
    assert log.next() == ("done", 101, "TASK_ABORTED")
    assert threaded.run("TEST UNIT READY").code == "5/25/00"
    gate.opened.set()
    assert log.next() == ("done", 100, "TASK_ABORTED")
    removing.join(30)


# Threads and stacks.


def test_an_initiator_that_submits_from_done_costs_no_stack(setup):
    left = 3000

    def again(_):
        nonlocal left
        left -= 1
        if left:
            setup.router.submit(setup.run.task("TEST UNIT READY", done=again))

    setup.router.submit(setup.run.task("TEST UNIT READY", done=again))
    assert left == 0


def test_a_transport_that_fails_in_done_stops_nobody_else(threaded, caplog):
    def fail(_):
        raise RuntimeError("the transport broke")

    for _ in range(4):
        threaded.router.submit(threaded.run.task("TEST UNIT READY", done=fail))
    assert threaded.run("TEST UNIT READY").code == "GOOD"
    threaded.router.detach(threaded.run.nexus)
    assert "the transport broke" in caplog.text


@pytest.mark.parametrize("workers", [0, 3])
def test_many_threads_get_every_answer_once_and_their_own_data(make_setup, initiator, workers):
    """Four nexuses write and read back their own blocks, aborting now and then."""
    setup = make_setup(workers=workers, depth=64)
    failures = queue.SimpleQueue()

    def work(index):
        run = initiator(setup.router, f"initiator {index}")
        random_source = random.Random(index)
        outcomes = {}
        expected = {}
        for step in range(60):
            lba = index * 256 + random_source.randrange(256)
            data = random_source.randbytes(BLOCK)
            answer = run("WRITE(10)", lba=lba, blocks=1, out=data)
            if answer.status is not Status.GOOD:
                failures.put(answer)
            expected[lba] = data
            tag = 10_000 + step
            ended = threading.Semaphore(0)

            def note(task, kind, ended=ended):
                outcomes.setdefault(task.tag, []).append(kind)
                ended.release()

            setup.router.submit(
                run.task(
                    "READ(10)",
                    lba=lba,
                    blocks=1,
                    tag=tag,
                    data_in=[memoryview(bytearray(BLOCK))],
                    attribute=random_source.choice(list(Attribute)[:3]),
                    done=lambda task, note=note: note(task, "done"),
                    aborted=lambda task, note=note: note(task, "aborted"),
                )
            )
            managed = threading.Event()
            setup.router.manage(
                Management(
                    run.nexus,
                    encode(0),
                    Function.ABORT_TASK,
                    done=lambda _, managed=managed: managed.set(),
                    managed_tag=tag,
                )
            )
            if not managed.wait(30) or not ended.acquire(timeout=30):
                failures.put(f"task {tag} of {index} hangs")
        for lba, data in expected.items():
            if run("READ(10)", lba=lba, blocks=1, into=BLOCK).data != data:
                failures.put(f"LBA {lba}")
        if any(len(kinds) != 1 for kinds in outcomes.values()) or len(outcomes) != 60:
            failures.put(outcomes)
        setup.router.detach(run.nexus)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures.empty(), failures.get()
    assert not any(thread.is_alive() for thread in threads)


def test_a_reset_that_switches_the_write_cache_off_empties_it(make_setup):
    setup, log = make_setup(write_cache=False), Log()
    on = bytes.fromhex("00000000" + "0812040000000000000000000000000000000000")
    assert setup.run("MODE SELECT(6)", pf=1, parameter_list_length=len(on), out=on).code == "GOOD"
    setup.run("WRITE(10)", lba=0, blocks=1, out=bytes(512))
    setup.store.log.clear()
    setup.router.manage(log.management(setup.run, Function.LOGICAL_UNIT_RESET))
    assert log.next() == ("managed", "FUNCTION_COMPLETE", 0)
    assert setup.store.log == [("flush",)]
    setup.router.manage(log.management(setup.run, Function.ABORT_TASK_SET))
    assert setup.store.log == [("flush",)]
