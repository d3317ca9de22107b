# SPDX-License-Identifier: MIT
"""The limit: bare system calls on a file."""

import os
from pathlib import Path

import pytest

from vscsi.bench.bare_loop import BareLoop, file_size
from vscsi.bench.workload import Workload
from vscsi.wire.errors import SetupError

BLOCK = 4096


def image(tmp_path: Path, blocks: int = 8) -> Path:
    path = tmp_path / "image"
    path.write_bytes(os.urandom(blocks * BLOCK))
    return path


def test_with_a_clock_that_counts_the_run_is_what_arithmetic_says(tmp_path: Path, clock) -> None:
    load = BareLoop(image(tmp_path), Workload("read", BLOCK, 8, 0, 8 * BLOCK), clock=clock)
    run = load.run(100_000)
    load.close()
    assert run.read_latencies == {1000: 50}
    assert (run.elapsed_ns, run.outstanding, run.on_ring) == (100_000, 1, None)


def test_sequential_writes_cover_the_range_and_nothing_else(tmp_path: Path, clock) -> None:
    path = image(tmp_path)
    before = path.read_bytes()
    workload = Workload("write", BLOCK, 1, 2 * BLOCK, 4 * BLOCK)
    load = BareLoop(path, workload, clock=clock)
    run = load.run(8_000)  # two looks at the clock each: four operations
    load.close()
    assert (run.write_latencies.total(), run.errors.total()) == (4, 0)
    assert path.read_bytes() == before[: 2 * BLOCK] + workload.pattern() * 4 + before[6 * BLOCK :]


def test_runs_follow_on_in_the_same_sequence(tmp_path: Path, clock) -> None:
    path = image(tmp_path)
    workload = Workload("write", BLOCK, 1, 0, 8 * BLOCK)
    load = BareLoop(path, workload, clock=clock)
    load.run(6_000)
    load.run(10_000)
    load.close()
    assert path.read_bytes() == workload.pattern() * 8


def test_a_file_that_shrank_and_one_that_refuses_are_errors(tmp_path: Path, clock) -> None:
    path = image(tmp_path)
    load = BareLoop(path, Workload("read", BLOCK, 1, 0, 8 * BLOCK), clock=clock)
    os.truncate(path, 6 * BLOCK)
    run = load.run(16_000)
    load.close()
    assert (run.operations, dict(run.errors)) == (6, {"4096 bytes were not moved": 2})


def test_a_full_device_is_an_error_by_its_name(tmp_path: Path, clock) -> None:
    path = image(tmp_path)
    load = BareLoop(path, Workload("write", BLOCK, 1, 0, 8 * BLOCK), clock=clock)
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, load._fd)
    os.close(full)
    run = load.run(16_000)
    load.close()
    assert (run.operations, dict(run.errors)) == (0, {"ENOSPC": 8})


def test_a_load_that_was_stopped_does_nothing_more(tmp_path: Path) -> None:
    load = BareLoop(image(tmp_path), Workload("read", BLOCK, 1, 0, 8 * BLOCK))
    load.stop()
    assert load.run(10**15).operations == 0
    load.close()


def test_what_is_no_file_is_refused_with_the_reason(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path, reason in (
        (tmp_path / "missing", "No such file"),
        (tmp_path, "neither a regular file"),
        (tmp_path / "fifo", "neither a regular file"),
    ):
        with pytest.raises(SetupError, match=reason):
            file_size(path)
        with pytest.raises(SetupError, match=reason):
            BareLoop(path, Workload("read", BLOCK, 1, 0, BLOCK))


def test_the_size_is_the_files(tmp_path: Path) -> None:
    assert file_size(image(tmp_path, 3)) == 3 * BLOCK
