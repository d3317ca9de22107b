# SPDX-License-Identifier: MIT
"""The task router (SAM-6 4.6): many logical units behind one target."""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from vscsi.target.base import Function, Management, Nexus, ServiceResponse, Task
from vscsi.target.executor import Executor, Inline, Workers
from vscsi.target.logical_unit import LogicalUnit
from vscsi.target.refusals import REPORTED_LUNS_CHANGED
from vscsi.target.task_manager import TaskManager
from vscsi.target.taskset import Fate
from vscsi.target.wellknown import MissingUnit, ReportLunsUnit
from vscsi.wire.errors import WireError
from vscsi.wire.lun import REPORT_LUNS_WLUN, encode, logical_unit_number

_log = logging.getLogger(__name__)

DEPTH = 4096
"""Unfinished tasks per logical unit before TASK SET FULL: more than eight full 16-page rings."""


class _Place(NamedTuple):
    """A logical unit and the task manager that feeds it."""

    unit: LogicalUnit
    tasks: TaskManager


class TaskRouter:
    """A `Target` of logical units by number.

    `workers` threads execute commands; with none, the thread that submits does. A LUN that names
    nothing is served by a logical unit too: one that is not there.
    """

    def __init__(self, *, workers: int = 0, depth: int = DEPTH) -> None:
        self._executor: Executor = Workers(workers) if workers else Inline()
        self._depth = depth
        self._lock = threading.Lock()
        self._nexuses: frozenset[Nexus] = frozenset()
        self._places: dict[int, _Place] = {}  # replaced, never changed: readers take no lock
        self._units: dict[bytes, LogicalUnit] = {}  # the same
        self._retired: list[_Place] = []
        self._report_luns = self._place(ReportLunsUnit())
        self._missing = self._place(MissingUnit())

    def _place(self, unit: LogicalUnit) -> _Place:
        unit.inventory = self
        executor = unit.executor or self._executor
        return _Place(unit, TaskManager(unit, executor, self._depth, unit.native))

    # Configuration.

    def add(self, number: int, unit: LogicalUnit) -> None:
        """Put a logical unit at a number (below 2**24); every nexus hears of the new inventory.

        Raises ValueError if the number is taken or out of range.
        """
        encode(number)
        with self._lock:
            if number in self._places:
                raise ValueError(f"logical unit {number} exists")
            self._inventory_changed()
            place = self._place(unit)
            for nexus in self._nexuses:  # before anybody can ask for its way to the unit
                unit.attach(nexus)
            self._set_places({**self._places, number: place})

    def remove(self, number: int) -> LogicalUnit:
        """Take a logical unit away and return it: its tasks have ended, with TASK ABORTED.

        Must not be called from a task's `done`. Raises KeyError if there is none.
        """
        with self._lock:
            place = self._places[number]
            self._set_places({key: kept for key, kept in self._places.items() if key != number})
            self._retired.append(place)  # a submit that found it before may still be on its way
            self._inventory_changed()
        _abort_and_wait([place], lambda _: Fate.TASK_ABORTED)
        if place.unit.native is not None:
            place.unit.native.close()  # for good
        return place.unit

    def _set_places(self, places: dict[int, _Place]) -> None:
        self._places = places
        self._units = {encode(number): places[number].unit for number in sorted(places)}

    def _inventory_changed(self) -> None:
        for place in self._places.values():
            place.unit.attentions.establish(REPORTED_LUNS_CHANGED)

    def close(self) -> None:
        """Return when every submitted task has ended; none may be submitted after."""
        for place in (*self._places.values(), *self._retired):
            if place.unit.executor is not None:
                place.unit.executor.close()
        self._executor.close()

    # Target.

    def attach(self, nexus: Nexus) -> None:
        """Establish an I_T nexus: its logical units report power on as a unit attention."""
        with self._lock:
            self._nexuses |= {nexus}
            for place in self._places.values():
                place.unit.attach(nexus)

    def detach(self, nexus: Nexus) -> None:
        """Lose an I_T nexus; return when nobody touches its buffers any more.

        Must not be called from a task's `done`: it would wait for itself.
        """
        with self._lock:
            self._nexuses -= {nexus}
        self.abandon(lambda task: task.nexus == nexus)
        for place in self._all_places():
            place.unit.detach(nexus)

    def abandon(self, meant: Callable[[Task], bool]) -> None:
        """End tasks without an answer; return when nobody touches their buffers any more.

        Must not be called from a task's `done`.
        """
        _abort_and_wait(self._all_places(), lambda task: Fate.SILENT if meant(task) else None)

    def _all_places(self) -> list[_Place]:
        with self._lock:
            return [*self._places.values(), *self._retired, self._report_luns, self._missing]

    def submit(self, task: Task) -> None:
        """Take a task; it may be finished before this returns."""
        self._find(task.lun).tasks.submit(task)

    def manage(self, request: Management) -> None:
        """Perform a task management function (SAM-6 7).

        Its own nexus' tasks end silently, those of others with TASK ABORTED (TAS=1).
        """
        place = self._find(request.lun)
        if place is self._missing:
            request.response = ServiceResponse.INCORRECT_LOGICAL_UNIT
            _answer(request)
            return
        if request.function not in _AFFECTED:
            request.response = ServiceResponse.NOT_SUPPORTED  # CLEAR ACA: NormACA is 0
            _answer(request)
            return

        affected: list[Task] = []

        def fate_of(task: Task) -> Fate | None:
            fate = _AFFECTED[request.function](task, request)
            if fate is not None:
                affected.append(task)
            return fate

        def conclude() -> None:
            request.response = place.unit.managed(request, affected)
            _answer(request)

        def finish(aborted_tasks: int) -> None:
            request.aborted_tasks = aborted_tasks
            if place.unit.executor is None:
                conclude()
            else:  # it may have to wait for a device
                place.unit.executor.call(conclude)

        place.tasks.abort(fate_of, finish)

    def units(self) -> Mapping[bytes, LogicalUnit]:
        """Return the logical units in the inventory; another object whenever that changes."""
        return self._units

    def luns(self) -> Sequence[bytes]:
        """Return the LUNs in the inventory, ascending."""
        return list(self._units)

    def inventory_reported(self, nexus: Nexus) -> None:
        """Clear REPORTED LUNS DATA HAS CHANGED everywhere: the nexus has just seen it."""
        for place in self._places.values():
            place.unit.attentions.clear(nexus, REPORTED_LUNS_CHANGED)

    def _find(self, lun: bytes) -> _Place:
        if lun == REPORT_LUNS_WLUN:
            return self._report_luns
        try:
            number = logical_unit_number(lun)
        except WireError:
            number = None
        return self._missing if number is None else self._places.get(number, self._missing)


def _own_task(task: Task, request: Management) -> Fate | None:
    mine = task.nexus == request.nexus and task.tag == request.managed_tag
    return Fate.SILENT if mine else None


def _own_tasks(task: Task, request: Management) -> Fate | None:
    return Fate.SILENT if task.nexus == request.nexus else None


def _all_tasks(task: Task, request: Management) -> Fate | None:
    return Fate.SILENT if task.nexus == request.nexus else Fate.TASK_ABORTED


_AFFECTED: dict[Function, Callable[[Task, Management], Fate | None]] = {
    Function.ABORT_TASK: _own_task,
    Function.ABORT_TASK_SET: _own_tasks,
    Function.CLEAR_TASK_SET: _all_tasks,
    Function.LOGICAL_UNIT_RESET: _all_tasks,
}


def _answer(request: Management) -> None:
    try:
        request.done(request)
    except Exception:
        # A transport's fault must not cost the worker that happens to be here.
        _log.exception("the transport failed to answer %r", request)


def _abort_and_wait(places: Sequence[_Place], fate_of: Callable[[Task], Fate | None]) -> None:
    gone = threading.Semaphore(0)
    for place in places:
        place.tasks.abort(fate_of, lambda _: gone.release())
    for _ in places:
        gone.acquire()
