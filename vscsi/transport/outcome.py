# SPDX-License-Identifier: MIT
"""How a task came out, between a target's words and a protocol's; the same for each of them."""

from vscsi.target.base import Status, Task
from vscsi.wire import cdb as cdbs
from vscsi.wire.errors import WireError
from vscsi.wire.opcodes import Direction


def residuals(task: Task) -> tuple[int, int]:
    """Return the residuals of data-out and data-in in bytes: > 0 not moved, < 0 buffer too short.

    They hold whatever the status was (SRP r16a RSP). The buffer of the direction that the command
    does not have was not touched; a command that is not in the table has its buffer's.
    """
    data_out, data_in = task.data_out_length, task.data_in_length
    row = cdbs.lookup(task.cdb)
    by_buffer = Direction.OUT if data_out else Direction.IN
    direction = row.direction if row is not None else by_buffer
    if direction is Direction.OUT:
        data_out = -task.overflow if task.overflow else data_out - task.moved
    elif direction is Direction.IN:
        data_in = -task.overflow if task.overflow else data_in - task.moved
    return data_out, data_in


def moved_in(task: Task) -> int:
    """Return the bytes of data-in that are in their buffer, from its beginning."""
    return task.data_in_length - max(0, residuals(task)[1])


def status_of(code: int) -> Status:
    """Return a status that a target's end sent; WireError if there is none of that code."""
    try:
        return Status(code)
    except ValueError:
        raise WireError(f"SCSI status 0x{code:02x}") from None
