# SPDX-License-Identifier: MIT
"""How a verb that goes on until it is interrupted ends in order."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def stopped_by_signals(end: Callable[[], None]) -> Iterator[None]:
    """Call `end` on the first SIGINT or SIGTERM, give up on the second."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        for number in before:
            signal.signal(number, give_up)
        end()

    def give_up(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
