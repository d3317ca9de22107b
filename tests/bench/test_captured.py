# SPDX-License-Identifier: MIT
"""A capture as a workload: the same commands in the same order, on any unit."""

import io
import itertools
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.capture.synthetic import write_srp
from vscsi.bench.captured import MAX_BYTES, CapturedLoop, CapturedWorkload, captured_workload
from vscsi.capture.commands import Channel, Disk, Event, Fate, Operation, Troubles
from vscsi.capture.sources.columns import assemble
from vscsi.target.base import Status
from vscsi.transport.initiator import Command
from vscsi.wire import cdb as cdbs
from vscsi.wire.errors import SetupError
from vscsi.wire.parameters import parse_unmap

MIB = 1 << 20
READ, WRITE, FLUSH, UNMAP = Operation.READ, Operation.WRITE, Operation.FLUSH, Operation.UNMAP
ROWS = [(READ, 0, 8), (WRITE, 100, 16), (FLUSH, None, None), (UNMAP, 64, 32), (READ, 9000, 1)]


class MemorySource:
    """A source of rows (operation, LBA, blocks) of 512 bytes."""

    format = "a test's"

    def __init__(self, rows: Sequence[tuple[int, int | None, int | None]], **columns: Any) -> None:
        self.channels = [Channel("a", "block")]
        self.disks = [Disk("a disk")]
        self.events: list[Event] = []
        self.events_dropped = 0
        self.troubles = Troubles()
        operation, lba, blocks = zip(*rows, strict=True) if rows else ((), (), ())
        self._batch = assemble(
            len(rows),
            {
                "serial": np.arange(len(rows)),
                "time_ns": np.arange(len(rows)),
                "operation": list(map(int, operation)),
                "lba": list(lba),
                "blocks": list(blocks),
                **columns,
            },
        )

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        yield self._batch.slice(0, 2)
        yield self._batch.slice(2)


def commands(workload: CapturedWorkload, count: int, make_loop: Any) -> list[Command]:
    """Return the first commands of a loop on the workload."""
    loop = make_loop(workload)
    return [
        loop.command(loop._buffers[0], *operation, lambda _command: None)
        for operation in itertools.islice(loop.operations, count)
    ]


@pytest.fixture
def make_loop(scripted: Any) -> Any:
    """Make a loop of a workload on an initiator that answers GOOD at once."""

    def make(workload: CapturedWorkload, block_length: int = 512) -> CapturedLoop:
        def good(command: Command) -> None:
            command.status = Status.GOOD
            command.done(command)

        return CapturedLoop("a path", scripted(good), bytes(8), block_length, workload)

    return make


def test_the_sequence_is_sent_again_and_again(make_loop: Any) -> None:
    workload = captured_workload(MemorySource(ROWS), "a capture", 1).workload(16 * MIB, "a path")
    sent = commands(workload, 7, make_loop)
    found = [cdbs.decode(command.cdb) for command in sent]
    assert [(each.row.name, each.lba, each.blocks) for each in found] == [
        ("READ(16)", 0, 8),
        ("WRITE(16)", 100, 16),
        ("SYNCHRONIZE CACHE(16)", 0, 0),
        ("UNMAP", 0, 0),
        ("READ(16)", 9000, 1),
        ("READ(16)", 0, 8),
        ("WRITE(16)", 100, 16),
    ]
    assert (sent[0].data_in_length, sent[1].data_out_length) == (8 * 512, 16 * 512)
    assert parse_unmap(bytes(sent[3].data_out[0].view)) == [(64, 32)]
    assert workload.counts == {"read": 2, "write": 1, "flush": 1, "unmap": 1}
    assert workload.mean_bytes == 25 * 512 / 5
    assert workload.mean_length_bytes == pytest.approx(25 * 512 / 3)
    assert "4,267 bytes a read or write" in workload.words
    assert workload.as_json()["mean_bytes"] == workload.mean_length_bytes
    flushes = captured_workload(MemorySource([(Operation.FLUSH, None, None)]), "a capture")
    assert (flushes.mean_bytes, flushes.mean_length_bytes) == (0, 0)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(list(Operation)),
            st.none() | st.integers(0, (1 << 64) - 1),
            st.none() | st.integers(0, (1 << 32) - 1),
        ),
        min_size=1,
        max_size=20,
    ),
    st.sampled_from((512, 4096)),
    st.integers(MAX_BYTES, 3 * MAX_BYTES).map(lambda size: size // 4096 * 4096),
)
def test_every_command_lies_within_the_unit(
    rows: list[tuple[int, int | None, int | None]], block_length: int, size: int
) -> None:
    try:
        workload = captured_workload(MemorySource(rows), "a capture").workload(size, "a path")
    except SetupError:
        return
    for number, length in enumerate(workload.lengths.tolist()):
        lba, blocks = workload.span(number, block_length)
        assert 0 <= lba <= lba + blocks <= size // block_length
        assert length <= blocks * block_length <= workload.block_bytes <= MAX_BYTES


def test_what_was_refused_and_what_has_no_equivalent_is_left_out() -> None:
    source = MemorySource(
        [*ROWS, (Operation.OTHER, None, None), (READ, 1, 1), (READ, 1, 1)],
        status=[0] * 6 + [2, 0],
        fate=[int(Fate.ANSWERED)] * 7 + [int(Fate.FAILED)],
    )
    workload = captured_workload(source, "a capture")
    assert (len(workload.kinds), workload.left_out) == (5, 3)
    with pytest.raises(SetupError, match="it has no reads, writes"):
        captured_workload(MemorySource([(Operation.OTHER, None, None)]), "a capture")


def test_depth_is_the_captured_one_unless_it_is_given() -> None:
    depths = [0] * 50 + [7] * 50
    source = MemorySource([(READ, 0, 1)] * 100, outstanding=depths)
    assert captured_workload(source, "a capture").depth == 8
    assert captured_workload(source, "a capture", 3).depth == 3


def test_a_unit_that_is_too_small_is_refused() -> None:
    with pytest.raises(SetupError, match="it has 4096 bytes"):
        captured_workload(MemorySource(ROWS), "a capture").workload(4096, "a path")


def test_a_run_counts_what_was_sent(make_loop: Any) -> None:
    workload = captured_workload(MemorySource(ROWS), "a capture", 2).workload(16 * MIB, "a path")
    loop = make_loop(workload)
    run = loop.run(5_000_000)
    assert run.failure is None
    assert run.operations >= 2
    reads = Counter(itertools.islice((not other for other, _ in workload.operations()), 10_000))
    share = run.read_latencies.total() / run.operations
    assert run.operations < 100 or share == pytest.approx(reads[True] / 10_000, abs=0.02)


@pytest.fixture
def trace(tmp_path: Any) -> Any:
    """A capture of 40 writes and 60 reads, in MSR Cambridge's form."""
    file = tmp_path / "trace.csv"
    rows = (
        f"{128166372003061629 + at},host,0,{'Write' if at % 5 < 2 else 'Read'},{at * 4096},4096,9\n"
        for at in range(100)
    )
    file.write_text("".join(rows))
    return file


def test_over_paths_that_take_turns(cli: Any, trace: Any) -> None:
    paths = ["call:memory:1M", "call:memory:64M"]
    done = cli(
        "bench", *paths, "--workload", trace, "--yes-overwrite", "--json", "-",
        "--runtime", "0.1", "--rounds", "2", "--ramp-time", "0",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["workload"]["commands"] == {"read": 60, "write": 40}
    assert told["workload"]["mean_bytes"] == 4096
    assert [path["path"] for path in told["paths"]] == paths
    for path in told["paths"]:
        assert path["errors"] == {}
        assert path["reads"] + path["writes"] == path["operations"] > 0


def test_a_job_file_of_a_capture(cli: Any, trace: Any, tmp_path: Any) -> None:
    done = cli("bench", "--workload", trace, "--fio-job", tmp_path / "a.fio")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert "rwmixread=60" in (tmp_path / "a.fio").read_text()


def test_a_capture_that_breaks_off_is_used_and_said(cli: Any, tmp_path: Any) -> None:
    whole = io.BytesIO()
    write_srp(whole, 200)
    file = tmp_path / "broken.pcapng"
    file.write_bytes(whole.getvalue()[:-7])
    quick = ("--runtime", "0.1", "--rounds", "1", "--ramp-time", "0", "--yes-overwrite")
    job = ("--workload", file, "--fio-job", tmp_path / "a.fio")
    for arguments in (("call:memory:1M", "--workload", file, *quick), job):
        done = cli("bench", *arguments)
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"vscsi: {file}: ")
    assert "rw=" in (tmp_path / "a.fio").read_text()
    both = cli("bench", "call:memory:1M", *job, *quick)
    assert (both.returncode, len(both.stderr.splitlines())) == (1, 1)
    assert "operations/s" in both.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["call:memory:1M", "--workload", "{trace}"], "add --yes-overwrite"),
        (["call:memory:1M", "--workload", "{trace}", "--bs", "4k"], "--bs does not go with"),
        (["call:memory:1M", "--workload", "{trace}", "--rw", "read"], "--rw does not go with"),
        (["call:memory:1M", "--workload", "/no/such/file"], "No such file"),
        (["--workload", "{trace}"], "PATH"),
        (["--fio-job", "out"], "--fio-job goes with --workload"),
        (["--workload", "{trace}", "--fio-job", "/no/such/dir/out"], "--fio-job"),
    ],
)
def test_what_cannot_begin_is_one_line(
    cli: Any, trace: Any, arguments: list[str], says: str
) -> None:
    done = cli("bench", *(word.format(trace=trace) for word in arguments))
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert says in done.stderr
