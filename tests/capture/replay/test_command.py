# SPDX-License-Identifier: MIT
"""`vscsi replay`: what one server's disk went through, over again on another's."""

import gzip
import json
import os
import pty
import random
import signal
import subprocess
import sys
from collections import deque
from contextlib import suppress
from pathlib import Path

import pytest

import vscsi
from vscsi.capture.commands import Operation
from vscsi.capture.sources import Opened
from vscsi.transport.initiator import TransportError
from vscsi.wire import cdb as cdbs

SIZE = 4 << 20
COMMAND = Path(sys.executable).with_name("vscsi")
MSR_TICKS = 128_166_372_003_061_629


@pytest.fixture
def disk_server(start, tmp_path):
    """Serve a disk of zeros in a process: its directory, its image and its capture."""

    class DiskServer:
        def __init__(self, name, **options):
            self.directory, self.image = tmp_path / name, tmp_path / f"{name}.img"
            self.capture = tmp_path / f"{name}.pcapng"
            with self.image.open("wb") as image:
                image.truncate(options.pop("size", SIZE))
            self.served = start(
                "serve", str(self.image), "--dir", str(self.directory),
                "--capture", str(self.capture),
            )  # fmt: skip
            self.process = self.served.process

        def url(self, kind="srp"):
            return f"{kind}:{self.directory}"

        def end(self):
            assert self.served.end(signal.SIGTERM)[0] == 0

    return DiskServer


def work(url, commands=400, depth=8, seed=3, refused=True):
    """Send reads, writes and flushes, several at a time, and one that is refused."""
    drawn = random.Random(seed)
    with vscsi.connect(url) as hba:
        lun, waiting = hba.lun(0), deque()
        lun.capacity()  # and past the unit attention of a new nexus
        for _ in range(commands):
            lba, blocks = drawn.randrange(SIZE // 512 - 16), drawn.randint(1, 16)
            what = drawn.choice(("READ(10)", "WRITE(10)", "WRITE(16)", "SYNCHRONIZE CACHE(10)"))
            if what.startswith("SYNC"):
                waiting.append(hba.start(lun, cdbs.build(what)))
            elif what.startswith("READ"):
                cdb = cdbs.build(what, lba=lba, blocks=blocks)
                waiting.append(hba.start(lun, cdb, data_in=blocks * 512))
            else:
                cdb = cdbs.build(what, lba=lba, blocks=blocks, fua=drawn.random() < 0.1)
                waiting.append(hba.start(lun, cdb, data_out=drawn.randbytes(blocks * 512)))
            while len(waiting) > depth:
                waiting.popleft().result()
        while waiting:
            waiting.popleft().result()
        if refused:
            hba.command(lun, cdbs.build("READ(10)", lba=1 << 24, blocks=1), data_in=512)


def replayed(cli, *arguments, status=0):
    done = cli("replay", *arguments, "--json")
    assert done.returncode == status, done.stderr
    return json.loads(done.stdout)


def commands_in(file):
    """Return the commands of a capture that touch the disk, in the order of sending."""
    with Opened(str(file)) as source:
        rows = [row for batch in source for row in batch.to_pylist()]
    rows.sort(key=lambda row: row["serial"])
    return [row for row in rows if row["operation"] != Operation.OTHER]


def test_a_disk_goes_through_the_same_twice(cli, disk_server):
    """From one server to a second, and from the second's own capture to a third."""
    first, second, third = (disk_server(name) for name in ("first", "second", "third"))
    work(first.url())
    first.end()
    told = replayed(cli, first.capture, second.url(), "--verify", "--speed", "10x", "--yes")
    second.end()
    assert told["answers"]["different"] == {}
    assert told["left_out"] == {}
    # The first met the unit attention of a new nexus, which a replay has behind it.
    assert told["answers"]["unit_attentions"] == 1
    assert told["answers"]["compared"] + 1 == told["commands"] == 403
    assert told["data"]["compared_bytes"] > 0
    replayed(cli, second.capture, third.url(), "--verify", "--speed", "max")
    third.end()
    assert second.image.read_bytes() == third.image.read_bytes() != bytes(SIZE)

    ours, theirs = commands_in(first.capture), commands_in(second.capture)
    same = ("cdb", "attribute", "data_out", "data_in", "status", "residual", "sense_key", "asc")
    assert [[row[name] for name in same] for row in theirs] == [
        [row[name] for name in same] for row in ours
    ]
    waits = 0
    for late in range(len(ours)):
        for early in range(max(0, late - 40), late):
            if ours[early]["time_ns"] + ours[early]["latency_ns"] <= ours[late]["time_ns"]:
                waits += 1
                ended = theirs[early]["time_ns"] + theirs[early]["latency_ns"]
                assert ended <= theirs[late]["time_ns"], "it came after the other's end"
    assert waits > len(ours)
    # The report's own concurrency, which the second capture cannot exceed.
    assert max(row["outstanding"] for row in theirs) < told["most_in_flight"]


WORK = """
import random, sys
import vscsi
from vscsi.target.base import Attribute, Function
from vscsi.wire import cdb as cdbs

drawn = random.Random(5)
with vscsi.connect(sys.argv[1]) as hba:
    lun = hba.lun(0)
    lun.capacity()
    for turn in range(60):
        lba, blocks = drawn.randrange(8000), drawn.randint(1, 64)
        waiting = []
        for _ in range(drawn.randint(1, 4)):
            cdb = cdbs.build("WRITE(16)", lba=lba, blocks=blocks)
            data = drawn.randbytes(blocks * 512)
            attribute = drawn.choice((Attribute.ORDERED, Attribute.SIMPLE, Attribute.HEAD_OF_QUEUE))
            waiting.append(hba.start(lun, cdb, data_out=data, attribute=attribute))
            lba += blocks
        for each in waiting:
            each.result()
        lun.unmap(lba - blocks, drawn.randint(1, blocks))
        lun.read(lba - blocks, blocks)
        if turn % 20 == 19:
            hba.manage(lun, Function.LOGICAL_UNIT_RESET)
            hba.command(lun, cdbs.build("TEST UNIT READY"))  # its unit attention
"""


def test_with_the_data_both_disks_are_the_same(cli, disk_server, tmp_path):
    """Writes, unmaps and resets, recorded with their data while a program does them."""
    first, second = disk_server("first"), disk_server("second")
    file = tmp_path / "whole.pcapng"
    command = [sys.executable, "-c", WORK, first.url()]
    done = cli("capture", first.directory, "-w", file, "--payload", "65536", "--", *command)
    assert done.returncode == 0, done.stderr
    first.end()
    told = replayed(cli, file, second.url(), "--verify", "--yes")
    second.end()
    assert first.image.read_bytes() == second.image.read_bytes() != bytes(SIZE)
    assert told["answers"]["different"] == {}
    assert told["made_up_writes"] == 0
    assert told["left_out"] == {}
    assert told["task_management"] == {"LOGICAL UNIT RESET: FUNCTION COMPLETE": 3}
    assert told["data"]["compared_bytes"] > 0
    ours, theirs = commands_in(first.capture), commands_in(second.capture)
    for name in ("cdb", "attribute", "status"):
        assert [row[name] for row in theirs] == [row[name] for row in ours]


@pytest.mark.parametrize("kind", ["vscsiif", "blkif"])
def test_over_other_protocols(cli, disk_server, kind):
    first, second = disk_server("first"), disk_server("second")
    work(first.url(), commands=100)
    first.end()
    told = replayed(cli, first.capture, second.url(kind), "--verify", "--speed", "max", "--yes")
    second.end()
    assert told["answers"]["different"] == {}
    if kind == "blkif":
        assert list(told["left_out"]) == ["blkif has no request like it"]
    wanted = [row["operation"] for row in commands_in(first.capture)]
    found = [row["operation"] for row in commands_in(second.capture)]
    if kind == "blkif":  # where FUA is a flush behind the write, and what it cannot carry stays
        wanted = [each for each in wanted[:-1] if each != Operation.FLUSH]
        found = [each for each in found if each != Operation.FLUSH]
    assert found == wanted


def test_a_capture_of_blkif_over_srp(cli, disk_server):
    first, second = disk_server("first"), disk_server("second")
    with vscsi.connect(first.url("blkif")) as hba:
        lun = hba.lun(0)
        lun.write(8, b"a" * 4096)
        lun.flush()
        lun.unmap(8, 8)
        lun.read(0, 8)
    first.end()
    told = replayed(cli, first.capture, second.url(), "--speed", "max", "--yes")
    second.end()
    names = [cdbs.lookup(row["cdb"]).name for row in commands_in(second.capture)]
    assert names == ["WRITE(16)", "SYNCHRONIZE CACHE(16)", "UNMAP", "READ(16)"]
    assert told["answers"]["different"] == {}
    assert second.image.read_bytes() == bytes(SIZE)


@pytest.mark.parametrize("form", ["iscsi", "vscsi-trace", "iolog", "parquet"])
def test_a_converted_capture_does_the_same(cli, disk_server, tmp_path, form):
    """In formats that have less: what the disk looks like afterwards is the same."""
    first = disk_server("first")
    work(first.url(), commands=100, refused=False)
    first.end()
    images = []
    for file in (first.capture, tmp_path / f"converted.{form}"):
        if not file.exists():
            done = cli("capture", "convert", first.capture, "--to", form, "-o", file)
            assert done.returncode == 0, done.stderr
        images.append(tmp_path / f"{len(images)}.img")
        images[-1].write_bytes(bytes(SIZE))
        told = replayed(cli, file, f"call:{images[-1]}", "--speed", "max", "--verify")
        assert told["made_up_writes"] > 20
    assert images[0].read_bytes() == images[1].read_bytes() != bytes(SIZE)


@pytest.fixture
def msr(tmp_path):
    """Write a trace in MSR Cambridge's form; rows are (ns, write, offset, size, latency in ns)."""

    def make(rows, name="trace.csv"):
        file = tmp_path / name
        lines = (
            f"{MSR_TICKS + at // 100},host,0,{'Write' if write else 'Read'},{offset},{size},"
            f"{latency // 100}\n"
            for at, write, offset, size, latency in rows
        )
        file.write_text("".join(lines))
        return file

    return make


def some_writes(count=50, every_ns=1000):
    return [(at * every_ns, True, at * 4096, 4096, 500) for at in range(count)]


def test_damage_on_the_way_is_exit_status_1(cli, msr, tmp_path):
    reads = [(10**6 + at, False, at, 4096, 1) for at in range(0, 40960, 4096)]
    file = msr([*some_writes(), *reads])
    done = cli("replay", file, "call:null:4M", "--verify", "--speed", "max")
    assert done.returncode == 1
    assert "from byte 0, block 0" in done.stdout
    assert done.stderr == ""
    done = cli("replay", file, "call:null:4M", "--speed", "max")
    assert done.returncode == 0


def test_it_asks_before_it_writes_to_a_disk_with_data(cli, msr, tmp_path):
    file, image = msr(some_writes()), tmp_path / "disk.img"
    image.write_bytes(bytes(100_000) + b"data" + bytes(SIZE - 100_004))
    before = image.read_bytes()
    done = cli("replay", file, f"call:{image}", stdin=subprocess.DEVNULL)
    assert (done.returncode, image.read_bytes()) == (2, before)
    assert done.stderr == (
        f"vscsi: replay to call:{image}: it is not empty, as at byte 100000; --yes overwrites\n"
    )
    told = replayed(cli, file, f"call:{image}", "--read-only", "--speed", "max")
    assert told["left_out"] == {"it may change the disk": 50}
    assert image.read_bytes() == before
    replayed(cli, file, f"call:{image}", "--yes", "--speed", "max")
    assert image.read_bytes() != before


@pytest.mark.parametrize(("answer", "status"), [(b"n\n", 130), (b"y\n", 0)])
def test_on_a_terminal_it_is_asked(msr, tmp_path, answer, status):
    file, image = msr(some_writes()), tmp_path / "disk.img"
    image.write_bytes(b"data" + bytes(SIZE - 4))
    master, slave = pty.openpty()
    command = [COMMAND, "replay", file, f"call:{image}", "--speed", "max"]
    process = subprocess.Popen(
        command, stdin=slave, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    os.close(slave)
    os.write(master, answer)
    _, errors = process.communicate(timeout=60)
    os.close(master)
    assert process.returncode == status, errors
    assert b"is not empty (there are data at byte 0); overwrite it?" in errors
    assert (image.read_bytes()[:4] == b"data") is (status != 0)


def test_beyond_the_end_is_refused_before_anything_is_sent(cli, msr, tmp_path):
    file, image = msr([*some_writes(3), (10**6, True, 9 << 20, 4096, 1)]), tmp_path / "disk.img"
    image.write_bytes(bytes(SIZE))
    done = cli("replay", file, f"call:{image}", "--speed", "max")
    assert done.returncode == 2
    assert "reach to byte 9441280, and the unit has 4194304" in done.stderr
    assert image.read_bytes() == bytes(SIZE)
    told = replayed(cli, file, f"call:{image}", "--speed", "max", "--wrap")
    assert told["commands"] == 4
    assert image.read_bytes()[1 << 20 :][:4096] != bytes(4096)


def test_standard_input_and_compressed_files(cli, msr, tmp_path):
    file, image = msr(some_writes()), tmp_path / "disk.img"
    image.write_bytes(bytes(SIZE))
    packed = tmp_path / "trace.gz"
    packed.write_bytes(gzip.compress(file.read_bytes()))
    assert replayed(cli, packed, f"call:{image}", "--speed", "max")["commands"] == 50
    done = cli("replay", "-", "call:memory:4M", "--speed", "max", "--json", input=file.read_text())
    assert json.loads(done.stdout)["commands"] == 50
    done = cli("replay", "-", f"call:{image}", input=file.read_text())
    assert done.returncode == 2
    assert "it is not empty" in done.stderr


def test_what_can_be_read_of_a_broken_file_is_sent(cli, disk_server, tmp_path):
    server = disk_server("first")
    work(server.url(), commands=50)
    server.end()
    cut = tmp_path / "cut.pcapng"
    cut.write_bytes(server.capture.read_bytes()[:-150])
    told = replayed(cli, cut, "call:memory:4M", "--speed", "max", status=1)
    assert told["commands"] > 40


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["/no/such/file", "call:memory:1M"], "No such file"),
        (["{file}", "call:memory:4M", "--speed", "0x"], "'0x' is no speed"),
        (["{file}", "call:memory:4M", "--speed", "fast"], "'fast' is no speed"),
        (["{file}", "nothing:here"], "is none of"),
        (["{file}", "srp:/no/such/dir"], "vscsi serve"),
        (["{file}", "call:memory:4M", "--disk", "other"], "no commands of those disks, but of"),
        (["{file}", "call:memory:4M", "--lun", "7"], "--lun names the unit to use"),
    ],
)
def test_what_cannot_begin_is_one_line_and_exit_status_2(cli, msr, arguments, says):
    file = msr(some_writes(3))
    done = cli("replay", *(word.format(file=file) for word in arguments))
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert says in done.stderr


@pytest.fixture
def in_the_middle(start, msr, disk_server):
    """A replay that has begun and does not end by itself: its process and its server."""
    server = disk_server("second")
    hour = 3600 * 10**9
    file = msr([*some_writes(20), (hour, True, 0, 4096, 1000)])
    replay = subprocess.Popen(
        [str(word) for word in (COMMAND, "replay", file, server.url(), "--json")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with vscsi.connect(server.url()) as hba:
        while not any(hba.lun(0).read(19 * 8, 1)):
            assert replay.poll() is None
    yield replay, server
    with suppress(ProcessLookupError):
        replay.kill()
    replay.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_in_order_with_a_report(in_the_middle, number):
    replay, _ = in_the_middle
    replay.send_signal(number)
    output, errors = replay.communicate(timeout=60)
    assert (replay.returncode, errors) == (130, b"")
    told = json.loads(output)
    assert (told["commands"], told["interrupted"]) == (20, True)


def test_a_killed_server_is_one_line_and_exit_status_1(cli, msr, disk_server):
    server = disk_server("second")
    file = msr([(at * 10**6, True, at % 500 * 4096, 4096, 500) for at in range(100_000)])
    replay = subprocess.Popen(
        [str(word) for word in (COMMAND, "replay", file, server.url(), "--json")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with vscsi.connect(server.url()) as hba, suppress(TransportError):
        while not any(hba.lun(0).read(19 * 8, 1)):
            assert replay.poll() is None
    server.process.kill()
    output, errors = replay.communicate(timeout=60)
    assert replay.returncode == 1
    assert len(errors.splitlines()) == 1, errors
    told = json.loads(output)
    assert told["failure"] in errors.decode()
    assert 20 <= told["commands"] < 100_000


def test_a_recorded_kernels_unmaps_are_sent_and_the_report_says_what_its_latencies_are(cli):
    capture = Path(__file__).parents[3] / "captures" / "linux-srp.pcapng.gz"
    recorded = [row for row in commands_in(capture) if row["operation"] == Operation.UNMAP]
    arguments = (capture, "call:memory:64M", "--speed", "max", "--yes")
    told = replayed(cli, *arguments)
    (unmaps,) = [each for each in told["latency_us"] if each["name"] == "UNMAP"]
    unmap = sum(row["opcode"] == cdbs.named("UNMAP").opcode for row in recorded)
    assert unmaps["count"] == unmap > 0
    assert not [why for why in told["left_out"] if "list" in why or "UNMAP" in why]
    assert "now: round trips of Python" in cli("replay", *arguments).stdout
