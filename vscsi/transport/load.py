# SPDX-License-Identifier: MIT
"""What a load in C needs of a frontend end: requests that are ready, and a ring to itself."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

Completion = Callable[[], None]


class Job(Protocol):
    """Work on a ring that is its own meanwhile (`RingInitiator.run_exclusively`)."""

    def run(self) -> None:
        """Do it, in the receiver's thread; WireError if the backend broke the rules."""

    def interrupt(self) -> None:
        """Make `run` return soon; any thread."""


@dataclass(frozen=True, slots=True)
class Template:
    """A command as a request that can be sent again and again, with another address."""

    slot: bytes
    """Up to its last byte that a backend looks at: the rest would only move cache lines."""
    references: Sequence[int]
    """Grants that the backend needs while the command is outstanding."""
    let_go: Completion
    """Gives back what the request names, buffers excepted."""
