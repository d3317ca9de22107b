# SPDX-License-Identifier: MIT
"""The rule of notification never loses a wake-up: every interleaving of a small ring is visited.

The model: a front and a back, each with the atomic steps of `ring_publish` and `ring_arm`, a store
buffer that drains at any moment (x86's TSO, where a load passes an earlier store), and an event
that coalesces. Indices are counted modulo 8 and wrap on the way. A wake-up is lost in a state where
nobody can step and not every message was answered.
"""

from collections.abc import Iterator
from typing import NamedTuple

import pytest

MODULO = 8
START = 6
ENTRIES = 2
MESSAGES = 4

# Shared words: the front publishes requests, the back responses; each arms the other's event.
REQ_PROD, REQ_EVENT, RSP_PROD, RSP_EVENT = range(4)
FRONT, BACK = range(2)
PUT_PROD, PUT_EVENT = (REQ_PROD, RSP_PROD), (REQ_EVENT, RSP_EVENT)
TAKE_PROD, TAKE_EVENT = (RSP_PROD, REQ_PROD), (RSP_EVENT, REQ_EVENT)

# What is left out of the rule, or done wrongly, to see that the checker would find it.
NO_PUBLISH_FENCE = "the producer's look at the threshold may pass its store"
NO_ARM_FENCE = "the consumer's final check may pass its threshold"
NO_FINAL_CHECK = "the consumer sleeps without a final check"
LATE_THRESHOLD = "the consumer asks for an event one message late"
LATE_CLEAR = "the consumer clears events after it looked at the ring"
FAULTS = [NO_PUBLISH_FENCE, NO_ARM_FENCE, NO_FINAL_CHECK, LATE_THRESHOLD, LATE_CLEAR]


class End(NamedTuple):
    """One end: where it is in its code, its private counts, its stores not yet in memory."""

    at: str = "put"
    put: int = 0
    published: int = 0
    taken: int = 0
    buffer: tuple[tuple[int, int], ...] = ()


class State(NamedTuple):
    memory: tuple[int, ...]
    pending: tuple[bool, bool]
    ends: tuple[End, End]


def index(count: int) -> int:
    return (START + count) % MODULO


def replaced(values: tuple, position: int, value: object) -> tuple:
    return (*values[:position], value, *values[position + 1 :])


def steps(state: State, who: int, fault: str) -> Iterator[State]:
    """Yield every state that one step of an end (or of its store buffer) leads to."""
    end = state.ends[who]

    def to(**changes: object) -> State:
        return state._replace(ends=replaced(state.ends, who, end._replace(**changes)))

    if end.buffer:
        (word, value), *rest = end.buffer
        drained = to(buffer=tuple(rest))
        yield drained._replace(memory=replaced(state.memory, word, value))

    def store(word: int, value: int, at: str) -> State:
        return to(buffer=(*end.buffer, (word, value)), at=at)

    waiting = (state.memory[TAKE_PROD[who]] - index(end.taken)) % MODULO

    if end.at == "take":
        for count in range(1, waiting + 1):
            yield to(taken=end.taken + count, at="put")
        if not waiting:
            yield to(at="put")
    elif end.at == "put":
        if who == FRONT:
            room = min(ENTRIES - (end.put - end.taken), MESSAGES - end.put)
            least = min(room, 1) if end.put == end.taken else 0
        else:
            room = end.taken - end.put
            least = min(room, 1)
        for count in range(least, room + 1):
            yield to(put=end.put + count, at="publish")
    elif end.at == "publish":
        if end.put == end.published:
            yield to(at="next")
        else:
            yield store(PUT_PROD[who], index(end.put), "publish fence")
    elif end.at == "publish fence":
        if not end.buffer or fault == NO_PUBLISH_FENCE:
            yield to(at="look at threshold")
    elif end.at == "look at threshold":
        since = (index(end.put) - state.memory[PUT_EVENT[who]]) % MODULO
        wanted = since < (index(end.put) - index(end.published)) % MODULO
        yield to(published=end.put, at="notify" if wanted else "next")
    elif end.at == "notify":
        yield to(at="next")._replace(pending=replaced(state.pending, 1 - who, True))
    elif end.at == "next":
        if (end.taken if who == FRONT else end.published) == MESSAGES:
            yield to(at="done")
        else:
            yield to(at="arm" if who == FRONT or end.put == end.taken else "take")
    elif end.at == "arm":
        if waiting:
            yield to(at="take")
        else:
            ahead = 2 if fault == LATE_THRESHOLD else 1
            yield store(TAKE_EVENT[who], index(end.taken + ahead), "arm fence")
    elif end.at == "arm fence":
        if not end.buffer or fault == NO_ARM_FENCE:
            yield to(at="sleep" if fault == NO_FINAL_CHECK else "final check")
    elif end.at == "final check":
        nothing = "clear" if fault == LATE_CLEAR else "sleep"
        yield to(at="take" if waiting else nothing)
    elif end.at == "clear":
        yield to(at="sleep")._replace(pending=replaced(state.pending, who, False))
    elif end.at == "sleep" and state.pending[who]:
        yield to(at="take")._replace(pending=replaced(state.pending, who, False))


def explore(fault: str) -> tuple[int, list[State]]:
    """Visit every reachable state; return how many there are, and those with a lost wake-up."""
    memory = (index(0), index(1), index(0), index(1))
    first = State(memory, (False, False), (End(), End(at="arm")))
    seen, todo, lost = {first}, [first], []
    while todo:
        state = todo.pop()
        following = [after for who in (FRONT, BACK) for after in steps(state, who, fault)]
        if not following and any(end.at != "done" for end in state.ends):
            lost.append(state)
        for after in following:
            if after not in seen:
                seen.add(after)
                todo.append(after)
    return len(seen), lost


def test_no_interleaving_loses_a_wake_up() -> None:
    states, lost = explore("")
    assert lost == []
    assert states > 1000


@pytest.mark.parametrize("fault", FAULTS)
def test_leaving_any_part_of_the_rule_out_loses_one(fault: str) -> None:
    _, lost = explore(fault)
    assert lost
    assert all("sleep" in (end.at for end in state.ends) for state in lost)
