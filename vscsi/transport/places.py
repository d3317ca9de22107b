# SPDX-License-Identifier: MIT
"""A fixed set of buffers on a ring path, each with its requests prepared, that C sends."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from vscsi.domain.base import DomainError
from vscsi.ring import Load
from vscsi.transport.frontend import RingInitiator
from vscsi.transport.initiator import Buffer, Command, TransportError
from vscsi.transport.load import Template
from vscsi.wire import cdb as cdbs

POLL_NS = 50_000
"""How long an idle ring is watched before the thread sleeps; as the backend's."""
UNLIMITED = (1 << 64) - 1
Judge = Callable[[int, Command], None]
"""Is told of a command that did not end well: its place, and the command with its outcome."""


class Places:
    """The places of a `vscsi.ring.Load`: what it reads into and writes from, and says on the ring.

    A place's commands have one length and its buffer; only the address differs. The initiator
    stays its owner's; buffers and grants are given back by `close`.
    """

    def __init__(
        self,
        initiator: RingInitiator[Any],
        lun: bytes,
        block_length: int,
        *,
        length: int,
        depth: int,
        directions: Sequence[bool],
        poll_ns: int,
        page: int | None = None,
        **operations: Any,
    ) -> None:
        """Allocate and prepare `depth` places of `length` bytes each.

        directions: False to read, True to write. page: bytes that a descriptor has at most
        (default: all). operations: which there are, as `vscsi.ring.Load` takes them. Raises
        DomainError if the initiator's memory does not suffice; TransportError if a command takes
        more than one request of the protocol.
        """
        self.initiator = initiator
        self.buffers: list[Buffer] = []
        self._lun = lun
        self._blocks = length // block_length
        self._page = page or length
        self._templates: list[Template] = []
        ring, events = initiator.channel()
        first_tag = initiator.first_tag()
        incoming, outgoing = events.fds
        self.load = Load(
            ring,
            initiator.load_protocol,
            incoming=incoming,
            outgoing=outgoing,
            table=initiator.guest.memory.table,
            poll_ns=poll_ns,
            depth=depth,
            first_tag=first_tag,
            step=length // (initiator.address_bytes or block_length),
            **operations,
        )
        try:
            for place in range(depth):
                self.buffers.append(initiator.alloc(length))
                for write in directions:
                    template = initiator.template(first_tag + place, self.command(place, write))
                    self._templates.append(template)
                    self.load.prepare(
                        place=place,
                        write=write,
                        slot=template.slot,
                        references=template.references,
                    )
        except (DomainError, TransportError):
            self.close()
            raise

    def command(self, place: int, write: bool) -> Command:
        """Return a place's command at LBA 0."""
        buffer = self.buffers[place]
        pieces = [buffer[at : at + self._page] for at in range(0, len(buffer), self._page)]
        return transfer(self._lun, pieces, write, 0, self._blocks)

    def run(self, judge: Judge, timeout_s: float, *, cpu: int | None = None) -> int:
        """Run the load, which has been begun; return the CPU time that took, in ns.

        Where a command is not answered in time, or the path fails, TransportError: buffers of what
        is outstanding then stay the path's until it is closed.
        """
        turn = _Turn(self, judge, cpu)
        try:
            self.initiator.run_exclusively(turn, timeout_s)
        finally:
            if self.load.outstanding and turn.began:
                self.buffers, self._templates = [], []
        if self.load.outstanding:
            raise TransportError(f"no answer to a command within {timeout_s:g} s")
        return turn.cpu_ns

    def close(self) -> None:
        """Give the buffers back; a second call does nothing."""
        self.load.close()
        while self._templates:
            self._templates.pop().let_go()
        while self.buffers:
            self.initiator.free(self.buffers.pop())


class _Turn:
    """One run, in the receiver's thread: a `Job`."""

    def __init__(self, places: Places, judge: Judge, cpu: int | None) -> None:
        self.began = False
        self.cpu_ns = 0
        self._places = places
        self._judge = judge
        self._cpu = cpu

    def run(self) -> None:
        """Run the load; see to what it does not understand."""
        load, initiator = self._places.load, self._places.initiator
        self.began = True
        began = time.thread_time_ns()
        with pinned(self._cpu):
            load.room = initiator.room
            while (slot := load.run()) is not None:
                if load.answered is not None:
                    command = self._places.command(load.answered, load.answered_write)
                    initiator.judge(command, slot)
                    self._judge(load.answered, command)
                    continue
                before = initiator.room
                initiator.take_answers([slot])
                load.room += initiator.room - before
            initiator.take_room(load.room)
        self.cpu_ns = time.thread_time_ns() - began

    def interrupt(self) -> None:
        """Leave what is outstanding."""
        self._places.load.interrupt()


def transfer(
    lun: bytes,
    buffers: Sequence[Buffer],
    write: bool,
    lba: int,
    blocks: int,
    done: Callable[[Command], None] = lambda _command: None,
) -> Command:
    """Return a READ(16) or WRITE(16) with its buffers."""
    cdb = cdbs.build("WRITE(16)" if write else "READ(16)", lba=lba, blocks=blocks)
    if write:
        return Command(lun, cdb, done, data_out=buffers)
    return Command(lun, cdb, done, data_in=buffers)


@contextmanager
def pinned(cpu: int | None) -> Iterator[None]:
    """Keep this thread, and processes that it starts meanwhile, on a CPU; on any for None."""
    if cpu is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
