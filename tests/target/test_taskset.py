# SPDX-License-Identifier: MIT
"""The task set against a model that applies SAM-6 8.6 to every pair of tasks."""

from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from vscsi.target.base import Attribute, Nexus, Task
from vscsi.target.taskset import Admission, Fate, TaskSet

NEXUSES = [Nexus("initiator a", "target"), Nexus("initiator b", "target")]
DEPTH = 6


def make_task(nexus=NEXUSES[0], tag=0, attribute=Attribute.SIMPLE):
    return Task(
        nexus=nexus, lun=bytes(8), tag=tag, cdb=bytes(6), done=lambda _: None, attribute=attribute
    )


@dataclass(eq=False)
class Modelled:
    """What the model remembers of a task: when it came, and how far it is."""

    task: Task
    state: str  # waiting, running, ending
    fate: Fate | None = None
    was_active: bool = False
    """It could start at some moment, so that it still holds others up while it ends."""


def may_start(candidate: Modelled, everyone: list[Modelled]) -> bool:
    """SAM-6 8.6: `everyone` in order of arrival, without the tasks that are gone."""
    if candidate.task.attribute == Attribute.HEAD_OF_QUEUE:
        return True
    older = everyone[: everyone.index(candidate)]
    heads = [
        other
        for other in everyone
        if other.task.attribute == Attribute.HEAD_OF_QUEUE and other is not candidate
    ]
    if candidate.task.attribute == Attribute.ORDERED:
        return not older and not heads
    return not heads and not any(o.task.attribute == Attribute.ORDERED for o in older)


class TaskSetMachine(RuleBasedStateMachine):
    """Two nexuses, every attribute, aborts of every reach, at any depth."""

    def __init__(self):
        super().__init__()
        self.tasks = TaskSet(DEPTH)
        self.model: list[Modelled] = []
        self.rejected: list[Task] = []
        self.waits: list[dict] = []
        self.enabled_reported = 0

    def unfinished(self):
        return [m for m in self.model if m.state in ("waiting", "running")]

    def note_activity(self):
        """A task that may start now stays enabled, whatever comes later."""
        holding = [m for m in self.model if m.state != "ending" or m.was_active]
        for entry in self.model:
            if entry.state == "waiting" and not entry.was_active and may_start(entry, holding):
                entry.was_active = True
        enabled = sum(m.was_active for m in self.model if m.state == "waiting")
        self.enabled_reported += self.tasks.newly_enabled()
        assert self.enabled_reported >= enabled

    @rule(
        nexus=st.sampled_from(NEXUSES),
        tag=st.integers(0, 4),
        attribute=st.sampled_from(
            [Attribute.SIMPLE, Attribute.SIMPLE, Attribute.ORDERED, Attribute.HEAD_OF_QUEUE]
        ),
    )
    def admit(self, nexus, tag, attribute):
        task = make_task(nexus, tag, attribute)
        used = {(m.task.nexus, m.task.tag) for m in self.unfinished()}
        admission = self.tasks.admit(task)
        if (nexus, tag) in used:
            assert admission is Admission.OVERLAPPED
            self.rejected.append(task)
        elif len(used) >= DEPTH:
            assert admission is Admission.FULL
            self.rejected.append(task)
        else:
            assert admission is Admission.ADMITTED
            self.model.append(Modelled(task, "waiting"))
        self.note_activity()

    @rule()
    def start(self):
        task = self.tasks.start()
        startable = [m for m in self.model if m.state == "waiting" and m.was_active]
        if task is None:
            assert not startable
            return
        heads = [m for m in startable if m.task.attribute == Attribute.HEAD_OF_QUEUE]
        expected = heads[-1] if heads else startable[0]
        assert task is expected.task
        expected.state, expected.fate = "running", Fate.ANSWER
        self.enabled_reported -= 1

    @precondition(lambda self: any(m.state == "running" for m in self.model))
    @rule(data=st.data())
    def end(self, data):
        entry = data.draw(st.sampled_from([m for m in self.model if m.state == "running"]))
        assert self.tasks.end(entry.task) is entry.fate
        entry.state = "ending"

    @precondition(lambda self: self.rejected or any(m.state == "ending" for m in self.model))
    @rule(data=st.data())
    def release(self, data):
        ending = self.rejected + [m.task for m in self.model if m.state == "ending"]
        task = data.draw(st.sampled_from(ending))
        fulfilled = self.tasks.release(task)
        self.rejected = [t for t in self.rejected if t is not task]
        self.model = [m for m in self.model if m.task is not task]
        for wait in self.waits:
            wait["tasks"].discard(task)
        expected = [w["callback"] for w in self.waits if not w["tasks"]]
        self.waits = [w for w in self.waits if w["tasks"]]
        assert fulfilled == expected
        self.note_activity()

    @rule(
        nexus=st.sampled_from(NEXUSES),
        tag=st.none() | st.integers(0, 4),
        others=st.booleans(),
    )
    def abort(self, nexus, tag, others):
        """ABORT TASK (a tag), ABORT TASK SET (no tag), CLEAR TASK SET (others as well)."""

        def fate_of(task):
            if task.nexus != nexus:
                return Fate.TASK_ABORTED if others and tag is None else None
            return Fate.SILENT if tag is None or task.tag == tag else None

        ending = {m.task for m in self.model if m.state == "ending"} | set(self.rejected)
        affected = {m.task for m in self.model if fate_of(m.task)}
        affected |= {t for t in self.rejected if fate_of(t)}
        silenced = 0
        removed = {}
        for entry in self.unfinished():
            fate = fate_of(entry.task)
            if fate is None:
                continue
            if entry.state == "waiting":
                removed[entry.task] = fate
                silenced += fate is Fate.SILENT
                entry.state = "ending"
                self.enabled_reported -= entry.was_active
            elif entry.fate is not Fate.SILENT:
                silenced += fate is Fate.SILENT
                entry.fate = fate
        aborted = self.tasks.abort(fate_of)
        assert dict(aborted.removed) == removed
        assert aborted.remaining == affected
        assert aborted.silenced == silenced
        assert not ending & set(removed)

        def callback():
            pass

        assert self.tasks.when_gone(aborted.remaining, callback) == bool(affected)
        if affected:
            self.waits.append({"tasks": affected, "callback": callback})
        self.note_activity()

    @invariant()
    def no_ordered_task_runs_beside_an_older_one(self):
        """Said once more without may_start: what runs now may run together."""
        running = [m for m in self.model if m.state == "running"]
        for entry in running:
            if entry.task.attribute != Attribute.ORDERED:
                continue
            older = self.model[: self.model.index(entry)]
            assert all(
                m.task.attribute == Attribute.HEAD_OF_QUEUE or not m.was_active for m in older
            )


TestTaskSet = TaskSetMachine.TestCase
TestTaskSet.settings = settings(deadline=None, max_examples=150, stateful_step_count=40)


def test_head_of_queue_tasks_start_last_in_first_out_and_before_enabled_simple_ones():
    tasks = TaskSet(8)
    simple = make_task(tag=1)
    first = make_task(tag=2, attribute=Attribute.HEAD_OF_QUEUE)
    second = make_task(tag=3, attribute=Attribute.HEAD_OF_QUEUE)
    for task in (simple, first, second):
        tasks.admit(task)
    assert [tasks.start(), tasks.start(), tasks.start()] == [second, first, simple]


def test_a_tag_is_free_again_while_its_task_is_being_answered():
    tasks = TaskSet(1)
    old, new = make_task(tag=7), make_task(tag=7)
    tasks.admit(old)
    assert tasks.start() is old
    assert tasks.end(old) is Fate.ANSWER
    assert tasks.admit(new) is Admission.ADMITTED


def test_an_ordered_task_waits_until_the_older_answer_is_out():
    tasks = TaskSet(8)
    older, ordered = make_task(tag=1), make_task(tag=2, attribute=Attribute.ORDERED)
    tasks.admit(older)
    tasks.admit(ordered)
    tasks.start()
    tasks.end(older)
    assert tasks.start() is None
    tasks.release(older)
    assert tasks.start() is ordered


def test_aborting_a_dormant_ordered_task_frees_those_behind_it():
    tasks = TaskSet(8)
    older = make_task(tag=1)
    ordered = make_task(tag=2, attribute=Attribute.ORDERED)
    younger = make_task(tag=3)
    for task in (older, ordered, younger):
        tasks.admit(task)
    assert tasks.start() is older
    assert tasks.start() is None
    tasks.abort(lambda task: Fate.SILENT if task is ordered else None)
    assert tasks.start() is younger
