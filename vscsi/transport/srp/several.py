# SPDX-License-Identifier: MIT
"""A task management function that affects commands on several channels of one nexus."""

import threading
from collections.abc import Callable, Sequence
from functools import partial

from vscsi.target.base import Function, ServiceResponse
from vscsi.transport.frontend import ABORTED, RingInitiator
from vscsi.transport.gate import Gate
from vscsi.transport.initiator import Command, ManagementCommand, TransportError

Request = Command | ManagementCommand
Channels = Sequence[RingInitiator[Request]]


def manage_several(
    channels: Channels,
    gate: Gate,
    begin: Callable[[Command], None],
    request: ManagementCommand,
) -> None:
    """Perform a function for a whole logical unit; hold that unit up meanwhile, and no other.

    What was sent before it has to arrive before it, and what was answered in time to be taken as
    answered. So it is sent once, on the first channel, between two marks on each of the others: a
    mark's answer comes behind those to what the target had taken before it.

    gate: what commands of all channels enter by `begin`. `request.done` is called once.
    """
    first, others, lun = channels[0], channels[1:], request.lun

    def of_the_unit(each: Request) -> bool:
        return isinstance(each, Command) and each.lun == lun

    gate.hold(lun)
    for channel in channels:
        back = channel.take_back(of_the_unit)
        gate.park((each, partial(begin, each)) for each in back if isinstance(each, Command))

    def conclude() -> None:
        gate.release(lun)
        request.done(request)

    def marked(error: TransportError | None) -> None:
        part = ManagementCommand(lun, request.function, performed)
        if error is None:
            _send(first, part)
        else:
            part.error = error
            performed(part)

    def performed(part: ManagementCommand) -> None:
        request.response, request.error = part.response, part.error
        if part.error is None and part.response is ServiceResponse.FUNCTION_COMPLETE:
            _mark(others, lun, ended)
        else:
            conclude()

    def ended(error: TransportError | None) -> None:
        request.error = error
        for channel in others:
            channel.end_all(of_the_unit, TransportError(ABORTED))
        conclude()

    _mark(others, lun, marked)


def _send(channel: RingInitiator[Request], part: ManagementCommand) -> None:
    """Send a function before what waits; one that the channel refuses is done with the error."""
    try:
        channel.enqueue([part], first=True)
    except TransportError as error:
        part.error = error
        part.done(part)


def _mark(
    channels: Channels,
    lun: bytes,
    then: Callable[[TransportError | None], None],
) -> None:
    """Have the target answer on each ring: to an ABORT TASK of a tag that no command has.

    `then` is called once with the first error.
    """
    left = len(channels)
    lock = threading.Lock()
    failure: TransportError | None = None

    def done(part: ManagementCommand) -> None:
        nonlocal left, failure
        with lock:
            left -= 1
            last = not left
            failure = failure or part.error
        if last:
            then(failure)

    for channel in channels:
        _send(channel, ManagementCommand(lun, Function.ABORT_TASK, done))
