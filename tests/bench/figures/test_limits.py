# SPDX-License-Identifier: MIT
"""The bare loops do what they say: counted by the kernel, where it counts that."""

import os
import re
import subprocess

import pytest

from vscsi.bench.figures.figure import UnmeasurableError
from vscsi.bench.figures.limits import Limit, compile_limits

BLOCK = 4096
CPUS = sorted(os.sched_getaffinity(0))

pytestmark = pytest.mark.skipif(len(CPUS) < 2, reason="a machine with one CPU")


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    return compile_limits(tmp_path_factory.mktemp("limits"))


@pytest.fixture
def limit(program, tmp_path):
    file = tmp_path / "disk.img"
    file.write_bytes(os.urandom(64 * BLOCK))

    def make(loop, block=BLOCK, depth=4):
        return Limit(program, loop, CPUS[0], CPUS[1], file, block, depth)

    return make


@pytest.mark.parametrize(
    "loop", ["preadv", "preadv-sequential", "memcpy", "ring", "eventfd", "clock"]
)
@pytest.mark.parametrize("depth", [1, 15, 16, 1024])
def test_every_loop_ends_when_its_time_is_over(limit, loop, depth):
    measured = limit(loop, depth=depth).run(0.01)
    assert measured.operations > 0
    assert measured.elapsed_ns >= 10_000_000


def test_preadv_reads_as_many_blocks_as_it_says(limit):
    before = _read_by_children()
    measured = limit("preadv").run(0.01)
    read = _read_by_children() - before
    assert read >= measured.operations * BLOCK
    assert read - measured.operations * BLOCK < 1 << 20  # the program itself


def test_what_is_no_loop_cannot_be_measured(limit):
    with pytest.raises(UnmeasurableError, match="nonsense"):
        limit("nonsense").run(0.01)


def test_a_wrong_command_line_says_what_is_right(program):
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert re.match("limits NAME", done.stderr)


def _read_by_children():
    """Return bytes that this process and the children it waited for have read."""
    with open("/proc/self/io") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("rchar"))
