# SPDX-License-Identifier: MIT
"""What an initiator hands to a frontend end, and gets back: buffers, commands, replies."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from vscsi.domain.base import PAGE_SIZE
from vscsi.target.base import Attribute, Function, ServiceResponse, Status


@dataclass(frozen=True, slots=True)
class Buffer:
    """A run of the initiator's own memory that commands may name; slices share the memory.

    view is writable; address is the byte address of its start in the initiator's memory (for a
    guest: frame number times page size plus offset). Free what `alloc` returned, not a slice.
    """

    view: memoryview
    address: int

    def __len__(self) -> int:
        return len(self.view)

    def __getitem__(self, part: slice) -> "Buffer":
        start, stop, step = part.indices(len(self.view))
        if step != 1:
            raise ValueError("a buffer is sliced in steps of 1 only")
        return Buffer(self.view[start : max(start, stop)], self.address + start)


class TransportError(Exception):
    """A command came to no SCSI status: the channel failed, the target refused or vanished."""


@dataclass(slots=True, eq=False)
class Command:
    """One SCSI command of an initiator.

    `done` is called exactly once, from the receiver's thread or from within `submit`; it must not
    block, and may submit more. Until then the buffers belong to the transport.
    """

    lun: bytes
    cdb: bytes
    done: Callable[["Command"], None]
    data_out: Sequence[Buffer] = ()
    data_in: Sequence[Buffer] = ()
    attribute: Attribute = Attribute.SIMPLE

    # Set by the transport:
    tag: int = 0
    status: Status = Status.GOOD
    sense: bytes = b""
    residual: int = 0
    """Bytes of the buffer that were not moved; negative: bytes for which the buffer was short."""
    error: TransportError | None = None
    """Why there is no status; the fields above then mean nothing."""
    context: object = field(default=None, repr=False)
    """The transport's own."""

    @property
    def data_out_length(self) -> int:
        """Bytes in the data-out buffer."""
        return sum(map(len, self.data_out))

    @property
    def data_in_length(self) -> int:
        """Bytes in the data-in buffer."""
        return sum(map(len, self.data_in))


@dataclass(slots=True, eq=False)
class ManagementCommand:
    """A task management request of an initiator; `done` is called exactly once."""

    lun: bytes
    function: Function
    done: Callable[["ManagementCommand"], None]
    managed: Command | None = None
    """ABORT TASK: the command to abort."""

    tag: int = 0
    response: ServiceResponse = ServiceResponse.FUNCTION_COMPLETE
    error: TransportError | None = None


def finish(request: Command | ManagementCommand) -> None:
    """Tell a request's owner that it is done."""
    if isinstance(request, Command):
        request.done(request)
    else:
        request.done(request)


def page_pieces(buffers: Iterable[Buffer]) -> list[tuple[int, int]]:
    """Cut buffers at page boundaries: (address, length) of each piece."""
    pieces = []
    for buffer in buffers:
        address, left = buffer.address, len(buffer)
        while left:
            length = min(left, PAGE_SIZE - address % PAGE_SIZE)
            pieces.append((address, length))
            address += length
            left -= length
    return pieces


@dataclass(slots=True)
class InitiatorStatistics:
    """Counters of one frontend end since it connected."""

    commands: int = 0
    staged_bytes: int = 0
    notifications_sent: int = 0
    notifications_received: int = 0
    wire_errors: int = 0
    most_in_flight: int = 0
    """Most requests that were on the ring at a time; 0 without a ring."""


class Initiator(Protocol):
    """A frontend end: takes commands, crosses, completes them. Thread-safe."""

    statistics: InitiatorStatistics

    def alloc(self, length: int) -> Buffer:
        """Return a zeroed, page-aligned buffer in this initiator's memory."""

    def free(self, buffer: Buffer) -> None:
        """Give back what `alloc` returned."""

    def submit(self, command: Command) -> None:
        """Start a command; raises TransportError if the channel is closed."""

    def manage(self, request: ManagementCommand) -> None:
        """Start a task management function; raises TransportError if that can't be done."""

    def parameters(self) -> Mapping[str, object]:
        """Return what was negotiated (ring pages, slots, request limit, layout, ...)."""

    def backend_statistics(self) -> Mapping[str, object]:
        """Return the other end's counters, empty if it does not tell."""

    def close(self) -> None:
        """Close the channel; commands in flight end with an error. A second call does nothing."""
