# SPDX-License-Identifier: MIT
"""Which step may go when: checked in simulated time, against recorded schedules of any shape."""

import heapq

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vscsi.capture.commands import Event
from vscsi.capture.replay.pace import MAX_IN_FLIGHT, Pace
from vscsi.capture.replay.step import Step
from vscsi.target.base import Function

RESET = Event(0, 0, "LOGICAL UNIT RESET", function=Function.LOGICAL_UNIT_RESET)


@st.composite
def recorded(draw):
    """Steps in the order of sending; some without an end, some of them task management."""
    now, steps = 0, []
    for _ in range(draw(st.integers(1, 40))):
        now += draw(st.integers(0, 20))
        latency = draw(st.none() | st.integers(0, 60))
        first = draw(st.integers(0, 20))
        span = draw(st.none() | st.just((first, first + draw(st.integers(1, 5)))))
        steps.append(
            Step(
                now,
                None if latency is None else now + latency,
                draw(st.integers(0, 1)),
                event=draw(st.sampled_from((None, None, None, RESET))),
                changes=draw(st.booleans()),
                span=span,
            )
        )
    return steps


def simulate(pace, steps, services):
    """Send as soon as it may be; a step takes its service time. Returns begin and end of each.

    A reference for time: what the runner does with threads and clocks.
    """
    now, running, begun, ended = 0, [], {}, {}
    for number, (step, service) in enumerate(zip(steps, services, strict=True)):
        while True:
            while running and running[0][0] <= now:
                at, which = heapq.heappop(running)
                ended[which] = at
                pace.ended(steps[which])
            if pace.may_send(step):
                if now >= pace.due_ns(step):
                    break
                wake = pace.due_ns(step)
                now = min(wake, running[0][0]) if running else wake
            else:
                assert running, "it waits for nothing"
                now = running[0][0]
        begun[number] = now
        pace.sent(step)
        heapq.heappush(running, (now + service, number))
    while running:
        at, which = heapq.heappop(running)
        ended[which] = at
        pace.ended(steps[which])
    return begun, ended


@given(
    recorded(),
    st.sampled_from((None, 0.5, 1.0, 10.0)),
    st.randoms(use_true_random=False),
    st.integers(1, 4),
)
def test_dependencies_times_and_concurrency_are_kept(steps, speed, random, depth):
    pace = Pace(speed, depth=depth)
    services = [random.randrange(0, 200) for _ in steps]
    begun, ended = simulate(pace, steps, services)
    assert pace.in_flight == 0
    order = sorted(begun, key=lambda number: (begun[number], number))
    assert order == list(range(len(steps))), "the order of sending"
    for late, step in enumerate(steps):
        assert begun[late] >= pace.due_ns(step)
        for early in range(late):
            before = steps[early]
            if before.ended_ns is not None and before.ended_ns <= step.sent_ns:
                assert ended[early] <= begun[late], "it came after the other's end"
            if before.ended_ns is None and step.event is None and step.touches(before):
                assert ended[early] <= begun[late], "the order of the two can be seen"
        together = [early for early in range(late) if ended[early] > begun[late]]
        then = [
            early
            for early in range(late)
            if steps[early].ended_ns is None or steps[early].ended_ns > step.sent_ns
        ]
        assert set(together) <= set(then), "no more at a time than there were"
        endless = [early for early in together if steps[early].ended_ns is None]
        if step.ended_ns is None and step.event is None:
            assert len(endless) < depth + sum(steps[each].event is not None for each in endless)


@given(recorded(), st.randoms(use_true_random=False))
def test_no_step_waits_longer_than_for_what_it_has_to(steps, random):
    """Each begins at the latest of: its time, its predecessor's begin, the ends it waits for."""
    steps = [step for step in steps if step.ended_ns is not None]
    pace = Pace(1.0)
    services = [random.randrange(0, 200) for _ in steps]
    begun, ended = simulate(pace, steps, services)
    for late, step in enumerate(steps):
        reasons = [step.sent_ns, begun.get(late - 1, 0)]
        reasons += [ended[early] for early in range(late) if steps[early].ended_ns <= step.sent_ns]
        assert begun[late] == max(reasons)


def test_a_faster_path_reproduces_the_recorded_times():
    steps = [Step(at, at + 50, 0) for at in range(0, 1000, 7)]
    begun, _ = simulate(Pace(1.0), steps, [1] * len(steps))
    assert list(begun.values()) == [step.sent_ns for step in steps]


def test_memory_does_not_grow_behind_a_step_that_takes_long():
    pace = Pace(None)
    long = Step(0, 1 << 60, 0)
    pace.sent(long)
    for at in range(1, 10 * MAX_IN_FLIGHT):
        step = Step(at, at + (1 << 59), 0)
        assert pace.may_send(step)
        pace.sent(step)
        pace.ended(step)
    assert len(pace._by_end) <= 2 * MAX_IN_FLIGHT + 1


def test_no_more_are_in_flight_than_a_path_is_given():
    pace = Pace(None)
    for _ in range(MAX_IN_FLIGHT):
        step = Step(0, 1, 0)
        assert pace.may_send(step)
        pace.sent(step)
    assert not pace.may_send(Step(0, 1, 0))
    pace.ended(step)
    assert pace.may_send(Step(0, 1, 0))


@pytest.mark.parametrize(
    ("one", "other", "seen"),
    [
        ((True, (0, 8)), (False, (4, 12)), True),
        ((True, (0, 8)), (False, (8, 12)), False),
        ((False, (0, 8)), (False, (0, 8)), False),
        ((True, None), (False, (90, 91)), True),
        ((False, None), (True, (90, 91)), True),
    ],
)
def test_the_order_of_two_is_seen_where_one_changes_what_the_other_touches(one, other, seen):
    first, second = (Step(0, None, 0, changes=changes, span=span) for changes, span in (one, other))
    assert first.touches(second) is second.touches(first) is seen
    second.disk = 1
    assert not first.touches(second)
