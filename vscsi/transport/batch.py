# SPDX-License-Identifier: MIT
"""Many small reads and writes in one call of C: of one thread's, and of many threads' together."""

import threading
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vscsi.transport.frontend import RingInitiator
from vscsi.transport.initiator import Command
from vscsi.transport.places import POLL_NS, UNLIMITED, Places

TIMEOUT_S = 30.0


class Batch:
    """Reads and writes of `length` bytes each, at most `depth` at a time, on a ring of their own.

    The n-th operation's data is in `buffers[n]`, which is this object's: fill it before a write,
    take from it after a read. One thread at a time; nothing else may be in flight on the channel.
    """

    def __init__(
        self,
        initiator: RingInitiator[Any],
        lun: bytes,
        block_length: int,
        *,
        length: int,
        depth: int,
    ) -> None:
        """length: a multiple of block_length, else ValueError.

        Raises DomainError if there is no memory for depth * length bytes, TransportError if such a
        command takes more than one request.
        """
        if length % block_length:
            raise ValueError(f"{length} bytes are no multiple of {block_length}")
        self.depth = depth
        self._places = Places(
            initiator,
            lun,
            block_length,
            length=length,
            depth=depth,
            directions=(False, True),
            poll_ns=POLL_NS,
            blocks=UNLIMITED,
            first_address=0,
            at_random=False,
            mixed=True,
            seed=0,
            read_percent=100,
            period_ns=0.0,
        )

    @property
    def buffers(self) -> list[memoryview]:
        """The operations' data."""
        return [buffer.view for buffer in self._places.buffers]

    def run(self, operations: Sequence[tuple[bool, int]]) -> dict[int, Command]:
        """Perform operations: (whether it is a write, which `length` of the unit it is about).

        Returns when all are answered: those that did not end well, by their place in the sequence,
        with status, sense and residual. Raises TransportError if the path fails or does not answer,
        ValueError for more than `depth` operations.
        """
        if len(operations) > self.depth:
            raise ValueError(f"{len(operations)} operations, {self.depth} at a time")
        if not operations:
            return {}
        failed: dict[int, Command] = {}
        self._places.load.begin(
            duration_ns=UNLIMITED,
            commands=len(operations),
            operations=array("Q", [number << 1 | write for write, number in operations]),
        )
        self._places.run(failed.__setitem__, TIMEOUT_S)
        return failed

    def close(self) -> None:
        """Give the buffers back; a second call does nothing."""
        self._places.close()


@dataclass(slots=True, eq=False)
class _Wish:
    """What one thread wants: consecutive operations, and where their data is."""

    write: bool
    first: int
    data: memoryview
    done: bool = False
    good: bool = False


class Combiner:
    """A `Batch` for many threads: whoever finds it idle performs what all of them wait for."""

    def __init__(self, batch: Batch, length: int) -> None:
        """The batch becomes ours; length: of its operations, in bytes."""
        self._batch = batch
        self._length = length
        self._buffers = batch.buffers
        self._wishes: list[_Wish] = []
        self._busy = False
        self._failure: Exception | None = None
        self._changed = threading.Condition()

    @property
    def most(self) -> int:
        """Bytes of a transfer at most."""
        return self._batch.depth * self._length

    def transfer(self, write: bool, offset: int, data: memoryview) -> bool:
        """Move whole lengths from or to an offset in bytes; False if a command did not end well.

        What was moved then is not known: perform it again by commands that tell why. Raises what
        the channel failed with, now or earlier; ValueError for more than `most`, or no whole
        lengths.
        """
        if len(data) > self.most or (offset | len(data)) % self._length:
            raise ValueError(f"{len(data)} bytes at {offset}")
        wish = _Wish(write, offset // self._length, data)
        with self._changed:
            self._wishes.append(wish)
            while not wish.done and self._busy:
                self._changed.wait()
            if wish.done:
                return self._result(wish)
            self._busy = True
            mine = self._next(wish)
        try:
            if self._failure is None:
                self._perform(mine)
        except Exception as error:
            self._failure = error
            raise
        finally:
            with self._changed:
                self._busy = False
                for each in mine:
                    each.done = True
                self._changed.notify_all()
        return self._result(wish)

    def _result(self, wish: _Wish) -> bool:
        if self._failure is not None and not wish.good:
            raise self._failure
        return wish.good

    def _next(self, own: _Wish) -> list[_Wish]:
        """Take wishes that fit into one batch, our own among them (with the lock)."""
        room = self._batch.depth - len(own.data) // self._length
        taken = [own]
        left = []
        for wish in self._wishes:
            count = len(wish.data) // self._length
            if wish is not own and count <= room:
                taken.append(wish)
                room -= count
            elif wish is not own:
                left.append(wish)
        self._wishes = left
        return taken

    def _perform(self, wishes: Sequence[_Wish]) -> None:
        operations: list[tuple[bool, int]] = []
        owners: list[tuple[_Wish, memoryview]] = []
        for wish in wishes:
            for at in range(0, len(wish.data), self._length):
                piece = wish.data[at : at + self._length]
                if wish.write:
                    self._buffers[len(operations)][:] = piece
                operations.append((wish.write, wish.first + at // self._length))
                owners.append((wish, piece))
        failed = {id(owners[place][0]) for place in self._batch.run(operations)}
        for (wish, piece), buffer in zip(owners, self._buffers, strict=False):
            if not wish.write:
                piece[:] = buffer
        for wish in wishes:
            wish.good = id(wish) not in failed

    def close(self) -> None:
        """Give the buffers back."""
        self._batch.close()
