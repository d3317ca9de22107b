# SPDX-License-Identifier: MIT
"""Block layer traces, binary and as blkparse writes them: commands as blkparse sees them."""

import gzip
import itertools
import random
import re
import subprocess
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.capture.sources.blktrace_file import (
    COMPLETE,
    DM0,
    FLUSH,
    ISSUE,
    ONE_OF_EACH,
    QUEUE,
    READ,
    SDA,
    WRITE,
    Trace,
    one_of_each,
)
from vscsi.capture.commands import Fate, Operation
from vscsi.capture.sources.blktrace import events

CAPTURES = Path(__file__).parents[3] / "captures"
FIELDS = ("time_ns", "operation", "lba", "blocks", "data_in", "data_out", "fua", "outstanding")
START_NS = 1_700_000_000_123_456_789


def listed(rows, start_ns=0):
    """Rows as ONE_OF_EACH has them."""
    return [
        (row["time_ns"] - start_ns, *(row[name] for name in (*FIELDS[1:], "fate", "latency_ns")))
        for row in rows
    ]


@pytest.fixture
def blkparse(tmp_path):
    """The text that blkparse makes of some files' content, one a CPU."""

    def parse(*contents):
        for cpu, content in enumerate(contents):
            (tmp_path / f"trace.blktrace.{cpu}").write_bytes(content)
        done = subprocess.run(
            ["blkparse", "-i", "trace"], cwd=tmp_path, capture_output=True, timeout=60, check=True
        )
        return done.stdout

    return parse


@pytest.mark.parametrize("order", ["<", ">"])
def test_commands_are_from_issue_to_completion(read, order):
    rows, source = read("blktrace", one_of_each(order))
    assert listed(rows, START_NS) == ONE_OF_EACH
    assert [disk.name for disk in source.disks] == ["8,0"]
    assert source.troubles.notes == ["1 commands were requeued and issued again"]
    assert not source.troubles.skipped
    assert not source.troubles.broken
    assert rows[5]["cdb"] == bytes.fromhex("120000002400")
    assert (rows[5]["opcode"], rows[6]["opcode"]) == (0x12, None)


def test_what_blkparse_writes_of_them_reads_the_same(read, blkparse):
    rows, source = read("blktrace", blkparse(one_of_each()))
    # blkparse has no bytes in the completions of pass-through, and times from 0.
    assert listed(rows) == [(time - 1000, *rest) for time, *rest in ONE_OF_EACH]
    assert rows[5]["cdb"] == bytes.fromhex("120000002400")
    assert source.troubles.notes == ["1 commands were requeued and issued again"]
    assert not source.troubles.skipped


def made_up(count, cpus, seed=1):
    """A load whose events are on random CPUs: one trace for each."""
    chance = random.Random(seed)
    traces = [Trace().begin() for _ in range(cpus)]
    all_events = []
    for at in range(count):
        time_ns, sector = at * 1000 + chance.randrange(1000), 8 * chance.randrange(1 << 30)
        category, latency = chance.choice([READ, WRITE]), chance.randrange(1, 50_000)
        all_events.append((time_ns, QUEUE, category, sector))
        all_events.append((time_ns + 1, ISSUE, category, sector))
        all_events.append((time_ns + 1 + latency, COMPLETE, category, sector))
    last = 0
    for time_ns, action, category, sector in sorted(all_events):
        last = time_ns = max(last + 1, time_ns)  # no two at one time, whose order is nobody's
        cpu = chance.randrange(cpus)
        traces[cpu].add(time_ns, action, category, sector, 4096, cpu=cpu)
    return [trace.bytes() for trace in traces]


def test_files_of_several_cpus_give_what_blkparse_gives_of_them(read, blkparse):
    contents = made_up(2000, 4)
    text, _ = read("blktrace", blkparse(*contents))
    assert len(text) == 2000
    for files in (contents, contents[::-1]):
        binary, _ = read("blktrace", b"".join(files))
        first = min(row["time_ns"] for row in binary) - min(row["time_ns"] for row in text)
        assert listed(binary, first) == listed(text)


def test_its_own_figures_are_blkparses(read, blkparse):
    """Its summary counts dispatches and completions, and how deep its queue was."""
    contents = made_up(500, 2, seed=2)
    rows, _ = read("blktrace", b"".join(contents))
    summary = blkparse(*contents).decode()
    total = summary[summary.index("Total (") :]
    for name, operation in (("Read", 1), ("Write", 2)):
        count = int(re.search(rf"{name}s Completed:\s+(\d+)", total)[1])
        assert count == sum(row["operation"] == operation for row in rows)
        kib = int(re.search(rf"{name} Dispatches:\s+\d+,\s+(\d+)KiB", total)[1])
        assert kib == sum(4 for row in rows if row["operation"] == operation)


def test_more_than_fits_is_merged_from_disk(read, monkeypatch):
    contents = made_up(3000, 3, seed=3)
    whole, _ = read("blktrace", b"".join(contents))
    monkeypatch.setattr(events, "RUN_EVENTS", 500)
    assert read("blktrace", b"".join(contents))[0] == whole


def test_a_device_without_a_drivers_queue_counts_from_queued_to_completed(read):
    trace = Trace()
    trace.add(10, QUEUE, WRITE, 64, 4096, device=DM0)
    trace.add(20, QUEUE, WRITE, 64, 4096, device=SDA)
    trace.add(30, ISSUE, WRITE, 64, 4096, device=SDA)
    trace.add(40, COMPLETE, WRITE, 64, 4096, device=SDA)
    trace.add(50, COMPLETE, WRITE, 64, 4096, device=DM0)
    rows, source = read("blktrace", trace.bytes())
    names = [source.disks[row["disk"]].name for row in rows]
    times = [(row["time_ns"], row["latency_ns"]) for row in rows]
    assert list(zip(names, times, strict=True)) == [("8,0", (30, 10)), ("253,0", (10, 40))]


def test_equal_reads_at_one_time_and_flushes_beside_them(read):
    trace = Trace()
    for time_ns in (1, 2):
        trace.add(time_ns, ISSUE, READ, 0, 512)
        trace.add(time_ns, ISSUE, READ | FLUSH, 0, 0)
    for time_ns in (11, 22):
        trace.add(time_ns, COMPLETE, READ | FLUSH, 0, 0)
        trace.add(time_ns, COMPLETE, READ, 0, 512)
    rows, _ = read("blktrace", trace.bytes())
    found = [(row["operation"], row["time_ns"], row["latency_ns"]) for row in rows]
    assert found == [(3, 1, 10), (1, 1, 10), (3, 2, 20), (1, 2, 20)]


def test_every_truncation_keeps_what_is_before_it(read):
    data = one_of_each()
    whole, _ = read("blktrace", data)
    ends = set(itertools.accumulate(48 + size for size in payloads(data)))
    for length in range(48, len(data)):
        rows, source = read("blktrace", data[:length])
        answered = [row for row in rows if row["fate"] != Fate.OPEN]
        assert answered == whole[: len(answered)]
        assert bool(source.troubles.broken) == (length not in ends), length


def payloads(data):
    at = 0
    while at < len(data):
        size = int.from_bytes(data[at + 46 : at + 48], "little")
        yield size
        at += 48 + size


def test_damage_costs_what_it_hits_and_is_named(read):
    contents = made_up(100, 1)[0]
    whole, _ = read("blktrace", contents)
    at = len(contents) // 2
    damaged = contents[:at] + b"\xff" * 100 + contents[at + 100 :]
    rows, source = read("blktrace", damaged)
    assert source.troubles.skipped == 1
    assert re.match(r"at byte \d+: no record of blktrace", source.troubles.first_skipped)
    answered = [row for row in rows if row["fate"] == Fate.ANSWERED]
    assert len(whole) - 4 <= len(answered) < len(whole)


def test_marks_inside_of_payloads_are_none(read):
    mark = Trace().add(5, ISSUE, READ, 1, 512).bytes()
    trace = Trace().begin()
    trace.add(1, ISSUE, READ, 8, 512)
    trace.add(2, 2, 1 << 10, payload=mark + b"x" + mark)
    trace.add(3, COMPLETE, READ, 8, 512)
    rows, source = read("blktrace", trace.bytes())
    assert [(row["lba"], row["fate"]) for row in rows] == [(8, Fate.ANSWERED)]
    assert not source.troubles.skipped


def test_text_that_is_damaged_is_counted(read, blkparse):
    text = blkparse(one_of_each())
    damaged = text.replace(b"D  WS 223490", b"D ** 223490")
    assert damaged != text
    rows, source = read("blktrace", damaged)
    assert len(rows) == len(ONE_OF_EACH) - 1
    assert source.troubles.skipped == 1
    assert "D ** 223490" in source.troubles.first_skipped


def test_what_a_stock_kernel_traced_is_what_its_scsi_events_say(read):
    """Debian's Linux 6.1 with scsi_debug: mkfs, fio, fstrim, two unreadable sectors."""
    commands, _ = read(
        "scsi-events", gzip.decompress((CAPTURES / "linux-scsi-events.txt.gz").read_bytes())
    )
    for name in ("linux-blktrace.bin.gz", "linux-blkparse.txt.gz"):
        requests, source = read("blktrace", gzip.decompress((CAPTURES / name).read_bytes()))
        assert not source.troubles.notes
        assert [disk.name for disk in source.disks] == ["8,0"]
        assert Counter(request["fate"] for request in requests) == {Fate.ANSWERED: 391, 1: 2}
        failed = [request["lba"] for request in requests if request["fate"] == Fate.FAILED]
        assert failed == [command["lba"] for command in commands if command["status"] == 2]
        assert sorted(map(essence, requests)) == sorted(map(essence, commands))


def essence(row):
    """What a request of the block layer and its command have in common."""
    # The kernel's "write zeroes" is a write to the block layer, WRITE SAME with UNMAP to the disk.
    operation = Operation.WRITE if row["opcode"] == 0x93 else row["operation"]
    has_range = operation in (Operation.READ, Operation.WRITE)
    return operation, *((row["lba"], row["blocks"]) if has_range else ())


def test_events_are_small():
    assert np.dtype(events.EVENT).itemsize == 48
