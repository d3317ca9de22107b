# SPDX-License-Identifier: MIT
"""The machine brings back what its command did, and says so when it could not."""

import os
import select
import signal
import subprocess
import sys

import pytest

from tests.vm.kernel import PROJECT, MachineError
from tests.vm.machine import Guest

HANG_S = 300
MEGABYTES = 16
"""Far more than the ports and pipes hold when the host is late."""


def test_output_status_and_results_come_back(tmp_path):
    script = f"""
        echo to err >&2
        dd if=/dev/zero bs=1M count={MEGABYTES} status=none | tr '\\0' x
        echo "$WORD" > /run/results/word
        exit 42
    """
    got = {"out": b"", "err": b"", "status": b""}
    with Guest(["sh", "-c", script], tmp_path, {"WORD": "it's here"}) as guest:
        for port, data in guest.output(HANG_S):
            got[port] += data
    assert got["out"] == b"x" * (MEGABYTES << 20)
    assert got["err"] == b"to err\n"
    assert guest.exit_status == 42
    assert (guest.results / "word").read_text() == "it's here\n"


def test_a_panic_is_reported_with_the_consoles_end(tmp_path):
    script = "echo before; echo c > /proc/sysrq-trigger; sleep 1000"
    with Guest(["sh", "-c", script], tmp_path) as guest:
        output = guest.output(HANG_S)
        assert [next(output), next(output)] == [("status", b"up"), ("out", b"before\n")]
        with pytest.raises(MachineError, match=r"(?s)died.*Kernel panic.*sysrq triggered crash"):
            list(output)
        assert guest.exit_status is None


def test_a_guest_that_takes_too_long_is_killed(tmp_path):
    with Guest(["yes"], tmp_path) as guest:
        assert next(guest.output(HANG_S)) == ("status", b"up")
        with pytest.raises(MachineError, match=r"not done within 0\.1 s"):
            list(guest.output(0.1))
        assert guest.process.wait(HANG_S) == -signal.SIGKILL


def test_killing_whoever_started_it_kills_the_guest(tmp_path):
    code = f"""
from pathlib import Path
from tests.vm.machine import Guest
guest = Guest(["sleep", "1000"], Path({str(tmp_path)!r}))
next(guest.output({HANG_S}))
print(guest.process.pid, flush=True)
next(guest.output({HANG_S}))
"""
    starter = subprocess.Popen(
        [sys.executable, "-c", code], cwd=PROJECT, stdout=subprocess.PIPE, text=True
    )
    with starter:
        guest = os.pidfd_open(int(starter.stdout.readline()))
        starter.kill()
    ended, _, _ = select.select([guest], [], [], HANG_S)
    os.close(guest)
    assert ended
