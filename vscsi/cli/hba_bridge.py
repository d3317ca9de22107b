# SPDX-License-Identifier: MIT
"""Between a TCMU ring and a path: the kernel's commands become an initiator's, many in flight."""

import logging
import os
import select
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Protocol

from tgt_glue.tcmu import Answer, Entry, TcmuRing
from vscsi.domain.base import DomainError
from vscsi.target.base import Function, ServiceResponse, Status
from vscsi.target.buffers import scatter, slice_views
from vscsi.transport.initiator import (
    Buffer,
    Command,
    Initiator,
    ManagementCommand,
    TransportError,
)
from vscsi.wire import cdb as cdbs
from vscsi.wire.errors import RingError, WireError
from vscsi.wire.inquiry import VpdPage, limit_transfers
from vscsi.wire.opcodes import Direction
from vscsi.wire.sense import Sense, SenseKey

UNKNOWN_COMMAND = Sense(SenseKey.ILLEGAL_REQUEST, 0x20, 0x00)
MALFORMED = Sense(SenseKey.ILLEGAL_REQUEST, 0x24, 0x00)
NO_RESOURCES = Sense(SenseKey.ILLEGAL_REQUEST, 0x55, 0x03)
NO_ANSWER = Sense(SenseKey.HARDWARE_ERROR, 0x08, 0x00)
"""LOGICAL UNIT COMMUNICATION FAILURE, with a key that the kernel does not retry."""

_log = logging.getLogger(__name__)


class Device(Protocol):
    """An open TCMU device; see `tgt_glue.tcmu.TcmuDevice`."""

    ring: TcmuRing

    def fileno(self) -> int:
        """Return a descriptor that is readable when there is something new on the ring."""

    def clear(self) -> None:
        """Take notice; OSError if the device is gone."""

    def kick(self) -> None:
        """Have the kernel look at the answers; OSError if the device is gone."""

    def close(self) -> None:
        """Let go of it."""


class Bridge:
    """Serves a device from one path's logical unit, in a thread that alone touches the ring.

    Data is copied between the kernel's data area and the initiator's memory, both of which are
    shared with someone, but not with each other. A path that has failed answers NO_ANSWER at once.
    """

    def __init__(
        self,
        device: Device,
        initiator: Initiator,
        lun: bytes,
        on_end: Callable[[str], None],
        *,
        block_bytes: int,
        most_bytes: int,
    ) -> None:
        """on_end is called, with the reason, if the ring ends before `stop`.

        most_bytes: what one command may move over the path. The kernel learns it where it looks
        for the unit's own limit, VPD page B0h, since tcm_loop is an adapter without one.
        """
        self.commands = 0
        self.most_in_flight = 0
        self.staged_bytes = 0
        self._device = device
        self._ring = device.ring
        self._initiator = initiator
        self._lun = lun
        self._on_end = on_end
        self._most_bytes, self._most_blocks = most_bytes, most_bytes // block_bytes
        self._waiting: deque[Entry] = deque()
        """Taken, but there is no memory for their data yet."""
        self._in_flight: dict[Command, Entry] = {}
        self._done: SimpleQueue[Command] = SimpleQueue()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._stopping = False
        self._thread = threading.Thread(target=self._serve, name="tcmu", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End and close the device; what is in flight gets no answer on the ring any more."""
        if self._stopping:
            return
        self._stopping = True
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        self._device.close()

    def _serve(self) -> None:
        poll = select.poll()
        poll.register(self._device.fileno(), select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        try:
            while not self._stopping:
                self._waiting.extend(self._ring.take())
                answered = self._give_up(self._ring.given_up())
                answered |= self._finish()
                while self._submit() or self._finish():
                    answered = True
                if answered:
                    self._device.kick()
                poll.poll()
                with suppress(BlockingIOError):
                    os.eventfd_read(self._wake)
                self._device.clear()
        except RingError as error:
            self._on_end(f"the kernel's ring is broken: {error}")
        except OSError as error:
            self._on_end(f"the kernel's device is gone: {error.strerror}")

    # Ring to path

    def _submit(self) -> bool:
        """Submit what waits, as far as there is memory; return whether some was answered at once.

        What the path has answered within `submit` is for `_finish`.
        """
        answered = False
        while self._waiting:
            entry = self._waiting[0]
            try:
                refusal = self._start(entry)
            except DomainError:
                if self._in_flight:  # which gives some back
                    break
                refusal = NO_RESOURCES
            self._waiting.popleft()
            self.commands += 1
            if refusal is not None:
                self._refuse(entry, refusal)
                answered = True
        return answered

    def _start(self, entry: Entry) -> Sense | None:
        """Submit a command; return why not. DomainError if there is no memory for it now."""
        if entry.fault:
            _log.warning("TCMU: a command with %s", entry.fault)
            return MALFORMED
        if entry.length > self._most_bytes:
            return MALFORMED  # what a transfer over MAXIMUM TRANSFER LENGTH is (SBC-4 6.6.4)
        try:
            cdb = entry.cdb[: cdbs.cdb_length(entry.cdb)]
        except WireError:
            return UNKNOWN_COMMAND
        row = cdbs.lookup(cdb)
        if row is None and entry.length:
            return UNKNOWN_COMMAND  # only the CDB could tell which way its data go
        buffers: tuple[Buffer, ...] = ()
        if row is not None and row.direction is not Direction.NONE and entry.length:
            try:
                buffers = (self._initiator.alloc(entry.length),)
            except TransportError:
                return NO_ANSWER
        is_out = row is not None and row.direction is Direction.OUT
        if is_out and buffers:
            self._copy_out(entry, buffers[0].view)
        command = Command(
            lun=self._lun,
            cdb=cdb,
            done=self._completed,
            data_out=buffers if is_out else (),
            data_in=() if is_out else buffers,
        )
        self._in_flight[command] = entry
        self.most_in_flight = max(self.most_in_flight, len(self._in_flight))
        try:
            self._initiator.submit(command)
        except TransportError:
            del self._in_flight[command]
            self._free(command)
            return NO_ANSWER
        return None

    def _give_up(self, cmd_ids: list[int]) -> bool:
        """Abort commands; return whether some were answered at once.

        The others are answered once the path has ended them: no earlier, since the kernel then
        sends them again. It does not wait for ever (`user_unit.GIVEN_UP_AFTER_S`).
        """
        waiting = [entry for entry in self._waiting if entry.cmd_id in cmd_ids]
        for entry in waiting:
            self._waiting.remove(entry)
            self._refuse(entry, NO_ANSWER)
        for command, entry in list(self._in_flight.items()):
            if entry.cmd_id in cmd_ids:
                abort = ManagementCommand(self._lun, Function.ABORT_TASK, _say_outcome, command)
                with suppress(TransportError):  # a path that failed has ended its commands
                    self._initiator.manage(abort)
        return bool(waiting)

    def _copy_out(self, entry: Entry, view: memoryview) -> None:
        at = 0
        for area in self._ring.views(entry):
            view[at : at + len(area)] = area
            at += len(area)
        self.staged_bytes += at

    def _completed(self, command: Command) -> None:
        """Take a command back, in whichever thread it ended."""
        self._done.put(command)
        os.eventfd_write(self._wake, 1)

    # Path to ring

    def _finish(self) -> bool:
        """Answer what is done; return whether there was anything."""
        answered = False
        while not self._done.empty():
            command = self._done.get()
            entry = self._in_flight.pop(command)
            self._ring.answer(entry.cmd_id, self._answer(entry, command))
            self._free(command)
            answered = True
        return answered

    def _answer(self, entry: Entry, command: Command) -> Answer:
        if command.error is not None:
            return Answer(Status.CHECK_CONDITION, NO_ANSWER.build())
        if command.data_out or command.status is Status.CHECK_CONDITION:
            return Answer(command.status, command.sense)
        areas = self._ring.views(entry)
        moved = 0
        for buffer in command.data_in:
            moved = len(buffer) - max(0, min(command.residual, len(buffer)))
            data = buffer.view[:moved]
            scatter(self._limited(data) if _asks_for_limits(command.cdb) else data, areas)
        # Else the kernel would take what other commands left there for data.
        for rest in slice_views(areas, moved, entry.length - moved):
            rest[:] = bytes(len(rest))
        self.staged_bytes += moved
        return Answer(command.status, command.sense, moved)

    def _limited(self, page: memoryview) -> memoryview:
        return memoryview(limit_transfers(bytes(page), self._most_blocks))

    def _refuse(self, entry: Entry, sense: Sense) -> None:
        self._ring.answer(entry.cmd_id, Answer(Status.CHECK_CONDITION, sense.build()))

    def _free(self, command: Command) -> None:
        for buffer in (*command.data_out, *command.data_in):
            self._initiator.free(buffer)


def _asks_for_limits(cdb: bytes) -> bool:
    """Return whether a command has VPD page B0h for an answer."""
    row = cdbs.lookup(cdb)
    if row is None or row.name != "INQUIRY":
        return False
    asked = cdbs.decode(cdb)
    return bool(asked.field("evpd")) and asked.field("page_code") == VpdPage.BLOCK_LIMITS


def _say_outcome(abort: ManagementCommand) -> None:
    if abort.error is not None or abort.response is not ServiceResponse.FUNCTION_COMPLETE:
        _log.warning("ABORT TASK: %s", abort.error or abort.response.name)
