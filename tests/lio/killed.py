# SPDX-License-Identifier: MIT
"""A process that is killed before one of its changes in configfs, whichever that is."""

import os
import signal
import sys

from tgt_glue.configfs import CONFIGFS


def fork(work, *, kill_at=None):
    """Do something in a child; `kill_at`: which of its changes in configfs it does not survive.

    The status is 0 if all was done.
    """
    child = os.fork()
    if child:
        return child
    changes = 0

    def audit(event, arguments):
        nonlocal changes
        if event not in ("os.mkdir", "os.rmdir", "os.symlink", "os.remove", "open"):
            return
        if event == "open" and not (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR):
            return
        if not any(str(each).startswith(str(CONFIGFS)) for each in arguments):
            return
        if changes == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        changes += 1

    try:
        sys.addaudithook(audit)
        work()
    except BaseException:
        os._exit(1)
    os._exit(0)


def statuses(work, *, prepare):
    """Kill a command before each of its changes in turn; yield after each death."""
    kill_at = 0
    while True:
        prepare()
        _, status = os.waitpid(fork(work, kill_at=kill_at), 0)
        if status == 0:
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
        kill_at += 1
        yield kill_at
    assert kill_at > 4
