# SPDX-License-Identifier: MIT
"""The gate before rings that keep no order: which command may begin when (SAM-6 8.6)."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vscsi.target.base import Attribute
from vscsi.transport.gate import Gate
from vscsi.transport.initiator import Command

SIMPLE, ORDERED, HEAD = Attribute.SIMPLE, Attribute.ORDERED, Attribute.HEAD_OF_QUEUE
LUNS = (bytes(8), bytes(7) + b"\1")


class Bed:
    """A gate, and the order in which commands begin."""

    def __init__(self):
        self.gate = Gate()
        self.commands = []
        self.begun = []

    def enter(self, attribute=SIMPLE, lun=LUNS[0]):
        command = Command(lun, b"", lambda _: None, attribute=attribute)
        self.commands.append(command)
        self.gate.enter(command, lambda: self.begun.append(command))
        return command


steps = st.one_of(
    st.tuples(st.just("enter"), st.sampled_from([SIMPLE] * 3 + [ORDERED, HEAD]), st.integers(0, 1)),
    st.tuples(st.just("leave"), st.integers(0, 20), st.just(0)),
    st.tuples(st.just("hold"), st.integers(0, 1), st.just(0)),
    st.tuples(st.just("release"), st.integers(0, 1), st.just(0)),
    st.tuples(st.just("withdraw"), st.integers(0, 20), st.just(0)),
)


@given(st.lists(steps, max_size=40))
def test_order_holds_and_nothing_is_left_behind(script):
    bed, under_way, holds, withdrawn = Bed(), [], [0, 0], []

    def look():
        for command in bed.begun[len(under_way) + done :]:
            under_way.append(command)
            at = bed.commands.index(command)
            if command.attribute is HEAD:
                continue
            for other in under_way[:-1]:
                assert ORDERED not in (command.attribute, other.attribute), "beside an ORDERED one"
            for earlier in bed.commands[:at]:  # of its unit: a hold lets other units pass
                if earlier.lun == command.lun and earlier.attribute is not HEAD:
                    assert earlier in bed.begun or earlier in withdrawn, "passed an earlier one"

    done = 0
    for what, first, second in script:
        if what == "enter":
            bed.enter(first, LUNS[second])
        elif what == "leave" and under_way:
            command = under_way.pop(first % len(under_way))
            done += 1
            bed.gate.leave(command)
        elif what == "hold":
            bed.gate.hold(LUNS[first])
            holds[first] += 1
        elif what == "release" and holds[first]:
            holds[first] -= 1
            bed.gate.release(LUNS[first])
        elif what == "withdraw" and bed.commands:
            command = bed.commands[first % len(bed.commands)]
            waits = command not in bed.begun and command not in withdrawn
            assert bed.gate.withdraw(command) is waits
            withdrawn += [command] if waits else []
        look()
    for number, count in enumerate(holds):
        for _ in range(count):
            bed.gate.release(LUNS[number])
    look()
    while under_way:
        done += 1
        bed.gate.leave(under_way.pop())
        look()
    assert {id(each) for each in bed.begun} | {id(each) for each in withdrawn} == {
        id(each) for each in bed.commands
    }


def test_a_unit_that_is_held_begins_nothing_and_others_go_on():
    bed = Bed()
    first = bed.enter(ORDERED)
    behind = bed.enter(SIMPLE)
    bed.gate.hold(LUNS[0])
    bed.gate.leave(first)
    other = bed.enter(SIMPLE, LUNS[1])
    assert bed.begun == [first, other]
    later = bed.enter(ORDERED)
    bed.gate.leave(other)
    bed.gate.release(LUNS[0])
    assert bed.begun == [first, other, behind]
    bed.gate.leave(behind)
    assert bed.begun[-1] is later


def test_what_was_taken_back_from_a_ring_begins_again_after_the_hold():
    bed = Bed()
    command = bed.enter(ORDERED)
    bed.gate.hold(LUNS[0])
    bed.gate.park([(command, lambda: bed.begun.append(command))])
    other = bed.enter(SIMPLE, LUNS[1])
    assert bed.begun == [command, other]
    bed.gate.leave(other)
    bed.gate.release(LUNS[0])
    assert bed.begun == [command, other, command]


def test_a_begin_that_raises_holds_up_nobody(nothing_left):
    bed = Bed()
    first = bed.enter(ORDERED)

    def fail():
        raise RuntimeError("an owner's mistake")

    broken = Command(LUNS[0], b"", lambda _: None)
    bed.gate.enter(broken, fail)
    last = bed.enter(SIMPLE)
    bed.gate.leave(first)
    assert bed.begun == [first, last]
    assert "an owner's mistake" in nothing_left.pop()


@pytest.mark.parametrize("threads", [4])
def test_threads_that_enter_and_leave_lose_nothing(threads):
    gate, counts = Gate(), []

    def work():
        for n in range(200):
            begun = threading.Event()
            command = Command(LUNS[0], b"", lambda _: None, attribute=ORDERED if n % 7 else SIMPLE)
            gate.enter(command, begun.set)
            assert begun.wait(30)
            gate.leave(command)
        counts.append(1)

    each = [threading.Thread(target=work) for _ in range(threads)]
    for thread in each:
        thread.start()
    for thread in each:
        thread.join(60)
    assert len(counts) == threads
    assert gate._inside == 0
