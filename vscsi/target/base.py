# SPDX-License-Identifier: MIT
"""Task and Target: the one interface between every transport and whoever executes commands.

The words are SAM-6's. A transport's backend end makes a `Task` from a message, submits it, and
turns the finished task into its protocol's answer; it never sees who executed it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, IntEnum, auto
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from vscsi.target.logical_unit import LogicalUnit


class Attribute(IntEnum):
    """Task attributes (SAM-6 8.6), with SRP's codes."""

    SIMPLE = 0
    HEAD_OF_QUEUE = 1
    ORDERED = 2
    ACA = 4


class Status(IntEnum):
    """SCSI status codes (SAM-6 5.3.1)."""

    GOOD = 0x00
    CHECK_CONDITION = 0x02
    CONDITION_MET = 0x04
    BUSY = 0x08
    RESERVATION_CONFLICT = 0x18
    TASK_SET_FULL = 0x28
    ACA_ACTIVE = 0x30
    TASK_ABORTED = 0x40


class Function(IntEnum):
    """Task management functions (SAM-6 7), with SRP's codes; I_T nexus reset is `detach`."""

    ABORT_TASK = 0x01
    ABORT_TASK_SET = 0x02
    CLEAR_TASK_SET = 0x04
    LOGICAL_UNIT_RESET = 0x08
    CLEAR_ACA = 0x40


class ServiceResponse(IntEnum):
    """What a task management function came to (SAM-6 7.1), with SRP's RSP_CODEs."""

    FUNCTION_COMPLETE = 0
    INCORRECT_LOGICAL_UNIT = 2
    NOT_SUPPORTED = 4
    FAILED = 5


class DeliveryFailure(Enum):
    """Why a logical unit behind another system gave no answer (SAM-6 5.3: a delivery failure).

    A protocol that has words for it uses those; status and sense say it to the others.
    """

    GONE = auto()
    """The logical unit is not there any more."""
    TIMED_OUT = auto()
    """No answer in time; the command may still take effect."""
    FAILED = auto()
    """Anything else; whether the command took effect is unknown."""


@dataclass(frozen=True, slots=True)
class Nexus:
    """An I_T nexus: who sends, through which target port. Compared and hashed by value."""

    initiator_port: str
    target_port: str


@dataclass(slots=True, eq=False)
class Task:
    """One SCSI command on its way through a target.

    lun is SAM's 8-byte LUN. data_out and data_in are views of the initiator's own memory, which
    it may change at any moment; data_in views are writable. They are the transport's until `done`
    has been called and must not be kept beyond it.

    done is called exactly once, from any thread, unless the task is aborted, when `aborted` is
    called instead (once, no status is sent; the transport frees what the task held).
    """

    nexus: Nexus
    lun: bytes
    tag: int
    cdb: bytes
    done: Callable[["Task"], None]
    aborted: Callable[["Task"], None] | None = None
    attribute: Attribute = Attribute.SIMPLE
    data_out: Sequence[memoryview] = ()
    data_in: Sequence[memoryview] = ()

    # The outcome, set by the target before `done`:
    status: Status = Status.GOOD
    sense: bytes = b""
    moved: int = 0
    """Bytes moved to or from the buffer of the command's direction."""
    overflow: int = 0
    """Bytes the command would have moved had the buffer been larger (SRP's DOOVER, DIOVER)."""
    delivery_failure: DeliveryFailure | None = None
    """Set where nothing came back from the logical unit, beside a status of CHECK CONDITION."""
    context: object = field(default=None, repr=False)
    """The transport's own: what it needs to answer. Nobody else looks at it."""

    @property
    def data_out_length(self) -> int:
        """Bytes in the data-out buffer."""
        return sum(map(len, self.data_out))

    @property
    def data_in_length(self) -> int:
        """Bytes in the data-in buffer."""
        return sum(map(len, self.data_in))


@dataclass(slots=True, eq=False)
class Management:
    """A task management request; `done` is called once, after the answers of affected tasks."""

    nexus: Nexus
    lun: bytes
    function: Function
    done: Callable[["Management"], None]
    managed_tag: int = 0
    """ABORT TASK: the tag of the task to abort."""

    response: ServiceResponse = ServiceResponse.FUNCTION_COMPLETE
    aborted_tasks: int = 0
    """Tasks of this nexus that got (and get) no answer."""
    context: object = field(default=None, repr=False)


class Target(Protocol):
    """Executes tasks. Thread-safe: any transport's thread may call any method at any time."""

    def attach(self, nexus: Nexus) -> None:
        """Establish an I_T nexus: its logical units report power on as a unit attention."""

    def detach(self, nexus: Nexus) -> None:
        """Lose an I_T nexus: its tasks are aborted, its state is dropped. Unknown is ignored.

        Returns when no task of the nexus touches its buffers any more.
        """

    def abandon(self, meant: Callable[[Task], bool]) -> None:
        """End tasks without an answer; return when nobody touches their buffers any more."""

    def submit(self, task: Task) -> None:
        """Take a task; it may be finished before this returns. Never raises for its content."""

    def manage(self, request: Management) -> None:
        """Perform a task management function; it may be finished before this returns."""

    def luns(self) -> Sequence[bytes]:
        """Return the LUNs in the inventory, ascending."""

    def units(self) -> Mapping[bytes, "LogicalUnit"]:
        """Return the logical units in the inventory; another object whenever that changes."""
