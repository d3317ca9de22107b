# SPDX-License-Identifier: MIT
"""fio job files: counted against a model, and run by fio itself, whose figures have to be ours."""

import configparser
import io
import itertools
import json
import re
import subprocess
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vscsi.capture.commands import Channel, Disk, Operation, Troubles
from vscsi.capture.sinks import fio_job
from vscsi.capture.sources.columns import assemble

MIB = 1 << 20


class MemorySource:
    format = "a test's"

    def __init__(self, batches, disks):
        self.channels = [Channel("a", "block")]
        self.disks = [Disk(name) for name in disks]
        self.events, self.events_dropped, self.troubles = [], 0, Troubles()
        self._batches = batches

    def __iter__(self):
        yield from self._batches


def commands(rows, disks=("disk 0",)):
    """Make a source of (time in ns, operation, byte, bytes, disk, outstanding)."""
    columns = list(zip(*rows, strict=True)) or [[]] * 6
    names = ("time_ns", "operation", "lba", "blocks", "disk", "outstanding")
    filled = {name: list(column) for name, column in zip(names, columns, strict=True)}
    filled["lba"] = [byte // 512 for byte in filled["lba"]]
    filled["blocks"] = [size // 512 for size in filled["blocks"]]
    filled["serial"] = list(range(len(rows)))
    return MemorySource([assemble(len(rows), filled)], disks)


def job_of(source):
    output = io.BytesIO()
    written = fio_job.write(source, output)
    return output.getvalue().decode(), written


def options(text):
    parser = configparser.ConfigParser(comment_prefixes=(";",), interpolation=None)
    parser.read_string(text)
    return parser


def split(text):
    return {int(size): int(share) for size, share in (part.split("/") for part in text.split(":"))}


def mixture(seed, count=4000):
    """70 % reads of which 4 of 5 are 4 KiB, else 16 KiB; writes of 8 KiB, half of them in a row."""
    drawn = np.random.default_rng(seed)
    rows, end = [], 0
    for at in range(count):
        if drawn.random() < 0.7:
            size = 4096 if drawn.random() < 0.8 else 16384
            rows.append((at * 100_000, Operation.READ, int(drawn.integers(0, 1984)) * 8192, size))
        else:
            start = end if drawn.random() < 0.5 and end else int(drawn.integers(0, 1984)) * 8192
            end = min(start + 8192, 15 * MIB)
            rows.append((at * 100_000, Operation.WRITE, end - 8192, 8192))
    return [(*row, 0, at % 8) for at, row in enumerate(rows)]


def test_a_job_says_what_was_counted():
    rows = mixture(1)
    rows += [(rows[-1][0], Operation.FLUSH, 0, 0, 0, 0)] * 60
    text, written = job_of(commands(rows))
    job = options(text)["disk-0"]
    reads = [row for row in rows if row[1] == Operation.READ]
    writes = [row for row in rows if row[1] == Operation.WRITE]
    assert written.commands == len(rows)
    assert job["rw"] == "randrw"
    assert int(job["rwmixread"]) == round(100 * len(reads) / (len(reads) + len(writes)))
    of_reads, of_writes = job["bssplit"].split(",")
    sizes = Counter(row[3] for row in reads)
    assert split(of_reads) == {
        size: pytest.approx(100 * count / len(reads), abs=0.5) for size, count in sizes.items()
    }
    assert split(of_writes) == {8192: 100}
    in_a_row = sum(one[2] + one[3] == two[2] for one, two in itertools.pairwise(writes))
    assert job["percentage_random"].split(",")[1] == str(100 - round(100 * in_a_row / len(writes)))
    assert int(job["offset"]) == min(row[2] for row in rows[:-60])
    assert int(job["offset"]) + int(job["size"]) == max(row[2] + row[3] for row in rows)
    assert (job["iodepth"], job["blockalign"]) == ("8", "4096")
    seconds = (rows[-1][0] - rows[0][0]) / 1e9
    assert job["rate_iops"] == f"{round(len(reads) / seconds)},{round(len(writes) / seconds)}"
    assert job["fsync"] == str(round(len(writes) / 60))
    assert "random_distribution" not in job


def test_each_disk_is_a_job_and_what_no_job_has_is_left_out():
    rows = [
        (0, Operation.READ, 0, 4096, 0, 0),
        (1, Operation.WRITE, 8192, 4096, 1, 0),
        (2, Operation.UNMAP, 0, 4096, 1, 0),
        (3, Operation.READ, 4096, 4096, 0, 0),
        (4, Operation.OTHER, 0, 0, 2, 0),
    ]
    text, written = job_of(commands(rows, ["a", "b] c", "d"]))
    found = options(text)
    assert found.sections() == ["global", "a", "b-c"]
    assert found["a"]["rw"] == "randread"
    assert found["a"]["percentage_random"] == "50,100"
    assert found["b-c"]["rw"] == "randwrite"
    assert (written.commands, written.left_out) == (3, 2)
    assert written.why


def test_places_that_are_used_more_than_others_are_zones():
    rows = [(at, Operation.READ, at % 4 * 4096, 4096, 0, 0) for at in range(900)]
    rows += [(at, Operation.READ, at * MIB, 4096, 0, 0) for at in range(100)]
    text, _ = job_of(commands(rows))
    zones = options(text)["disk-0"]["random_distribution"].removeprefix("zoned:").split(":")
    assert zones == ["91/10"] + ["1/10"] * 9


def test_an_empty_capture_is_an_empty_job_file():
    text, written = job_of(commands([]))
    assert options(text).sections() == ["global"]
    assert written.commands == 0


@given(st.dictionaries(st.integers(0, 1000), st.integers(1, 10**9), min_size=1, max_size=50))
def test_percents_sum_up_and_none_is_off_by_a_whole_one(counts):
    shares = fio_job.percents(counts)
    total = sum(counts.values())
    assert sum(shares.values()) == 100
    assert list(shares) == sorted(shares)
    for key, count in counts.items():
        assert abs(shares.get(key, 0) - 100 * count / total) < 1


@given(
    st.lists(
        st.tuples(
            st.integers(0, 10**12),
            st.sampled_from(list(Operation)),
            st.integers(0, (1 << 64) - 1).map(lambda lba: lba * 512),
            st.integers(0, (1 << 32) - 1).map(lambda blocks: blocks * 512),
            st.integers(0, 1),
            st.integers(0, (1 << 32) - 1),
        ),
        max_size=30,
    )
)
def test_any_addresses_and_sizes_are_counted(rows):
    _, written = job_of(commands(rows, ["a", "b"]))
    assert written.commands + written.left_out == len(rows)


def test_fio_does_what_the_job_says(tmp_path):
    """fio's own seeds are in the file, so that each of its runs does the same."""
    text, _ = job_of(commands(mixture(2)))
    wanted = options(text)["disk-0"]
    file = tmp_path / "capture.fio"
    file.write_text(text)
    subprocess.run(["fio", "--parse-only", file], check=True, capture_output=True, timeout=60)
    # As fast as it goes, for a number of commands, and on whatever the test's directory is on.
    quick = re.sub(r"(?m)^(rate_iops|runtime|time_based|direct)=.*\n", "", text)
    log = tmp_path / "log"
    file.write_text(
        f"{quick}filename={tmp_path / 'disk'}\nnumber_ios=6000\nio_size=1T\n"
        f"write_iolog={log}\nfsync=0\n"
    )
    done = subprocess.run(
        ["fio", "--output-format=json", file], capture_output=True, check=True, timeout=120
    )
    (job,) = json.loads(done.stdout)["jobs"]
    reads, writes = job["read"], job["write"]
    assert reads["total_ios"] + writes["total_ios"] == 6000
    share = 100 * reads["total_ios"] / 6000
    assert share == pytest.approx(int(wanted["rwmixread"]), abs=3)
    of_reads = split(wanted["bssplit"].split(",")[0])
    mean = sum(size * percent for size, percent in of_reads.items()) / 100
    assert reads["io_bytes"] / reads["total_ios"] == pytest.approx(mean, rel=0.1)
    assert writes["io_bytes"] == writes["total_ios"] * 8192
    accesses = [line.split() for line in log.read_text().splitlines()]
    written = [(int(each[-2]), int(each[-1])) for each in accesses if each[-3] == "write"]
    random = sum(one[0] + one[1] != two[0] for one, two in itertools.pairwise(written))
    expected = int(wanted["percentage_random"].split(",")[1])
    assert 100 * random / len(written) == pytest.approx(expected, abs=5)
    low, size = int(wanted["offset"]), int(wanted["size"])
    assert all(
        low <= int(each[-2]) < low + size for each in accesses if each[-3] in ("read", "write")
    )
