# SPDX-License-Identifier: MIT
"""The transport without a ring: commands reach a target by a call, the floor for every overhead."""

import itertools
import mmap
import threading
from collections.abc import Mapping

from vscsi.target.base import Management, Nexus, Target, Task
from vscsi.transport.initiator import (
    Buffer,
    Command,
    InitiatorStatistics,
    ManagementCommand,
    TransportError,
)
from vscsi.transport.outcome import residuals


class CallInitiator:
    """An `Initiator` in the target's own process; the target stays its owner's."""

    def __init__(self, target: Target, nexus: Nexus) -> None:
        self.statistics = InitiatorStatistics()
        self._target = target
        self._nexus = nexus
        self._tags = itertools.count()
        self._closed = False
        self._lock = threading.Lock()
        target.attach(nexus)

    def alloc(self, length: int) -> Buffer:
        """Return a zeroed, page-aligned buffer of anonymous memory."""
        return Buffer(memoryview(mmap.mmap(-1, max(length, 1)))[:length], 0)

    def free(self, buffer: Buffer) -> None:
        """Do nothing: the memory goes with its last view."""

    def submit(self, command: Command) -> None:
        """Start a command; it may be done before this returns."""
        self._check_open()
        self.statistics.commands += 1
        command.tag = next(self._tags)
        self._target.submit(
            Task(
                nexus=self._nexus,
                lun=command.lun,
                tag=command.tag,
                cdb=command.cdb,
                attribute=command.attribute,
                data_out=[buffer.view for buffer in command.data_out],
                data_in=[buffer.view for buffer in command.data_in],
                done=_done,
                aborted=_aborted,
                context=command,
            )
        )

    def manage(self, request: ManagementCommand) -> None:
        """Start a task management function."""
        self._check_open()

        def done(management: Management) -> None:
            request.response = management.response
            request.done(request)

        tag = request.managed.tag if request.managed is not None else 0
        self._target.manage(
            Management(self._nexus, request.lun, request.function, done, managed_tag=tag)
        )

    def parameters(self) -> Mapping[str, object]:
        """Return what was negotiated: nothing."""
        return {}

    def backend_statistics(self) -> Mapping[str, object]:
        """Return the other end's counters: there is no other end."""
        return {}

    def close(self) -> None:
        """End the nexus; what is in flight is aborted."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._target.detach(self._nexus)

    def _check_open(self) -> None:
        if self._closed:
            raise TransportError("the path is closed")


def _done(task: Task) -> None:
    command = task.context
    if isinstance(command, Command):
        if task.delivery_failure is not None:
            command.error = TransportError(f"delivery failure: {task.delivery_failure.name}")
        data_out, data_in = residuals(task)
        command.status = task.status
        command.sense = task.sense
        command.residual = data_in if command.data_in else data_out
        command.done(command)


def _aborted(task: Task) -> None:
    command = task.context
    if isinstance(command, Command):
        command.error = TransportError("aborted by task management")
        command.done(command)
