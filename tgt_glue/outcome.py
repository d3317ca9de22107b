# SPDX-License-Identifier: MIT
"""How a command of the kernel's came out, in a task's words."""

import errno

from tgt_glue.sg_file import Answer
from vscsi.target.base import DeliveryFailure, Status, Task
from vscsi.target.refusals import LOGICAL_UNIT_NOT_SUPPORTED
from vscsi.wire.sense import Sense, SenseKey, parse_sense

_HOST_FAILURES = {
    1: DeliveryFailure.GONE,  # DID_NO_CONNECT
    3: DeliveryFailure.TIMED_OUT,  # DID_TIME_OUT
    4: DeliveryFailure.GONE,  # DID_BAD_TARGET
}
_ERRNO_FAILURES = {
    errno.ENODEV: DeliveryFailure.GONE,
    errno.ENXIO: DeliveryFailure.GONE,
    errno.ENOENT: DeliveryFailure.GONE,  # its node is
    errno.ETIMEDOUT: DeliveryFailure.TIMED_OUT,
}
_SENSES = {
    DeliveryFailure.GONE: LOGICAL_UNIT_NOT_SUPPORTED,
    DeliveryFailure.TIMED_OUT: Sense(SenseKey.ABORTED_COMMAND, 0x08, 0x01),
    DeliveryFailure.FAILED: Sense(SenseKey.ABORTED_COMMAND, 0x08, 0x00),
}
"""For protocols without words for it: LOGICAL UNIT COMMUNICATION FAILURE, or TIME-OUT."""
_NO_DRIVER_ERROR = (0, 8)  # DRIVER_OK, DRIVER_SENSE


def is_good(answer: Answer) -> bool:
    """Whether a command came to a status of GOOD, and nothing on its way failed."""
    return (
        answer.status == Status.GOOD
        and not answer.host_status
        and answer.driver_status in _NO_DRIVER_ERROR
    )


def is_unit_attention(answer: Answer) -> bool:
    """Whether the unit had something to tell before it would execute the command."""
    sense = parse_sense(answer.sense) if answer.status == Status.CHECK_CONDITION else None
    return sense is not None and sense.key == SenseKey.UNIT_ATTENTION


def take_over(task: Task, answer: Answer) -> Status | Sense:
    """Set a task's outcome from an answer that is not good; return its status or sense."""
    if answer.host_status:
        return no_answer(task, _HOST_FAILURES.get(answer.host_status, DeliveryFailure.FAILED))
    try:
        status = Status(answer.status)
    except ValueError:
        return no_answer(task, DeliveryFailure.FAILED)
    if status is Status.GOOD:  # but the driver failed
        return no_answer(task, DeliveryFailure.FAILED)
    if status is Status.CHECK_CONDITION:
        task.sense = answer.sense
    return status


def failure_of(error: OSError) -> DeliveryFailure:
    """Return what it means that the kernel refused a command."""
    return _ERRNO_FAILURES.get(error.errno or 0, DeliveryFailure.FAILED)


def no_answer(task: Task, failure: DeliveryFailure) -> Sense:
    """Say of a task that nothing came back; return the sense for who has no word for that."""
    task.delivery_failure = failure
    return _SENSES[failure]
