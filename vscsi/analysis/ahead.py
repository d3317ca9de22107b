# SPDX-License-Identifier: MIT
"""An iterator that is a little ahead of whoever reads it, in a thread of its own.

Decoding a batch and working on the one before it take turns at the interpreter, but spend most of
their time in numpy, Arrow and DuckDB, which let go of it.
"""

import queue
import threading
from collections.abc import Generator, Iterable
from typing import TypeVar

_Item = TypeVar("_Item")
_DEPTH = 2
_TURN_S = 0.1
"""After which a thread with a full queue looks whether anybody is still there."""


def ahead(items: Iterable[_Item]) -> Generator[_Item, None, None]:
    """Yield items in their order; what their iterator raises comes where it would have come.

    The thread has ended when the generator has, however it ends.
    """
    waiting: queue.Queue[tuple[_Item, ...] | BaseException] = queue.Queue(_DEPTH)
    gone = threading.Event()

    def put(what: "tuple[_Item, ...] | BaseException") -> bool:
        while not gone.is_set():
            try:
                waiting.put(what, timeout=_TURN_S)
            except queue.Full:
                continue
            return True
        return False

    def run() -> None:
        try:
            for item in items:
                if not put((item,)):
                    return
        except BaseException as error:  # it is raised again over there
            put(error)
        else:
            put(())

    thread = threading.Thread(target=run, name="ahead", daemon=True)
    thread.start()
    try:
        while got := waiting.get():
            if isinstance(got, BaseException):
                raise got
            yield got[0]
    finally:
        gone.set()
        thread.join()
