# SPDX-License-Identifier: MIT
"""`vscsi top` beside a server and a load: for programs, without a terminal, and on one."""

import fcntl
import itertools
import json
import os
import pty
import select
import signal
import struct
import subprocess
import termios
from contextlib import ExitStack

import pytest

import vscsi
from tests.conftest import COMMAND
from vscsi.transport.hba import ScsiError

HANG_S = 60
MOST_SHOWN = 1 << 18
"""Bytes on a terminal, some minutes of windows: only a test that fails sees so many."""


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "run"


@pytest.fixture
def server(start, directory):
    return start("serve", "memory:4M", "--dir", str(directory))


@pytest.fixture
def watch(start):
    """Start it for programs: returns its process, which watches already, and the lines so far."""

    def starter(path, *options):
        return start("top", str(path), "--json", "--interval", "0.2", *options, wait_on="{")

    return starter


def windows(ready):
    """Return all windows of one that ends by itself."""
    output, errors = ready.process.communicate(timeout=HANG_S)
    lines = [ready.ready, *output.decode().splitlines()]
    return [json.loads(line) for line in lines], errors.decode()


def counted(shown):
    """Return how many commands there were, by disk and name."""
    counts = {}
    for window in shown:
        for disk in window["disks"]:
            assert disk["total"]["count"] == sum(each["count"] for each in disk["commands"])
            for each in disk["commands"]:
                key = disk["disk"].partition("-")[0], each["name"]
                counts[key] = counts.get(key, 0) + each["count"]
    return counts


def test_every_command_is_in_one_window_and_the_servers_end_ends_it(directory, server, watch):
    ready = watch(directory)
    with vscsi.connect(f"srp:{directory}") as hba, vscsi.connect(f"blkif:{directory}") as other:
        for turn in range(300):
            hba.lun(0).write(turn, bytes(512))
            hba.lun(0).read(turn, 8)
        for turn in range(50):
            other.lun(0).read(turn, 1)
    assert server.end(signal.SIGTERM) == (0, "")
    shown, errors = windows(ready)
    assert (ready.process.returncode, errors) == (0, "")
    counts = counted(shown)
    assert counts["srp", "WRITE(16)"] == 300
    assert counts["srp", "READ(16)"] == 300
    assert counts["blkif", "blkif READ"] == 50
    moved = sum(
        each["bytes_per_s"] * window["seconds"]
        for window in shown
        for disk in window["disks"]
        for each in disk["commands"]
        if each["name"] in ("WRITE(16)", "READ(16)", "blkif READ")
    )
    assert moved == pytest.approx(300 * 512 + 300 * 8 * 512 + 50 * 512)
    assert sum(window["dropped"] for window in shown) == 0
    for before, window in itertools.pairwise(shown):  # nothing between them, nothing in both
        assert window["time_ns"] - before["time_ns"] == pytest.approx(window["seconds"] * 1e9)
    for window in shown:
        for disk in window["disks"]:
            latency = disk["total"]["latency_us"]
            if latency is not None:
                assert 0 < latency["p50"] <= latency["p99"] <= latency["max"]


def test_only_the_rings_of_one_protocol_are_watched(directory, server, watch):
    ready = watch(f"blkif:{directory}")
    for kind in ("srp", "blkif"):
        with vscsi.connect(f"{kind}:{directory}") as hba:
            hba.lun(0).read(0, 1)
    server.end(signal.SIGTERM)
    shown, _ = windows(ready)
    assert {disk for disk, _ in counted(shown)} == {"blkif"}


def test_errors_are_counted_and_told(directory, server, watch):
    ready = watch(directory)
    with vscsi.connect(f"srp:{directory}") as hba, pytest.raises(ScsiError):
        hba.lun(0).read(1 << 20, 8)
    server.end(signal.SIGTERM)
    shown, _ = windows(ready)
    errors = sum(disk["total"]["errors"] for window in shown for disk in window["disks"])
    told = shown[-1]["failures"]
    assert errors == len(told)
    assert told[-1]["words"].startswith("READ(16) lba 1048576")
    assert "LOGICAL BLOCK ADDRESS OUT OF RANGE" in told[-1]["answer"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_and_the_server_does_not_mind(directory, server, watch, number):
    ready = watch(directory)
    assert ready.end(number) == (0, "")
    with vscsi.connect(f"srp:{directory}") as hba:
        hba.lun(0).read(0, 1)
    assert server.end(signal.SIGTERM) == (0, "")


def test_it_can_be_killed(directory, server, watch):
    ready = watch(directory)
    ready.process.kill()
    ready.ended()
    with vscsi.connect(f"srp:{directory}") as hba:
        for turn in range(200):
            hba.lun(0).write(turn, bytes(512))
    assert server.end(signal.SIGTERM) == (0, "")


def test_a_number_of_windows_and_no_more(cli, directory, server):
    done = cli("top", directory, "--json", "--interval", "0.1", "--count", "3")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 3
    done = cli("top", directory, "--json", "--interval", "0.1", "--once")
    assert len(done.stdout.splitlines()) == 1


def test_lines_without_a_terminal(start, directory, server):
    ready = start("top", f"srp:{directory}", "--interval", "0.2", "--count", "300", wait_on="")
    assert f"srp:{directory}  0 commands/s" in ready.ready
    with vscsi.connect(f"srp:{directory}") as hba:
        for turn in range(100):
            hba.lun(0).write(turn, bytes(512))
        line = ready.wait_for("  WRITE(16)")
    assert len(line.split()) == 1 + 2 + 3 * 2  # three times have units
    assert "\x1b" not in "".join(ready.output)
    assert ready.end(signal.SIGINT) == (0, "")


class Terminal:
    """A program on a terminal of its own."""

    def __init__(self, *command):
        self.side, other = pty.openpty()
        fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 80, 0, 0))
        self.before = termios.tcgetattr(self.side)
        self.process = subprocess.Popen(
            command,
            stdin=other,
            stdout=other,
            stderr=other,
            env={**os.environ, "TERM": "xterm"},
            start_new_session=True,
        )
        os.close(other)
        self.shown = b""

    def wait_for(self, words):
        while words not in self.shown:
            assert len(self.shown) < MOST_SHOWN, self.shown[-1000:]
            assert select.select([self.side], [], [], HANG_S)[0], self.shown
            self.shown += os.read(self.side, 1 << 16)

    def ended(self):
        """Return the exit status."""
        while select.select([self.side], [], [], HANG_S)[0]:
            try:
                self.shown += os.read(self.side, 1 << 16)
            except OSError:  # nobody has the other side open
                break
        return self.process.wait(HANG_S)

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(HANG_S)
        os.close(self.side)


@pytest.fixture
def terminal():
    with ExitStack() as stack:

        def starter(*command):
            opened = Terminal(*command)
            stack.callback(opened.close)
            return opened

        yield starter


@pytest.mark.parametrize("key", [b"q", b"Q", b"xq"])
def test_on_a_terminal_q_ends_it(terminal, directory, server, key):
    top = terminal(COMMAND, "top", f"srp:{directory}", "--interval", "0.2")
    with vscsi.connect(f"srp:{directory}") as hba:
        top.wait_for(b"q ends")
        hba.lun(0).write(0, bytes(512))
        top.wait_for(b"WRITE(16)")
        os.write(top.side, key)
        assert top.ended() == 0
    assert b"\x1b[?1049h" in top.shown, "the other screen, and"
    assert top.shown.rindex(b"\x1b[?1049l") > top.shown.rindex(b"WRITE(16)"), "back again"
    lines = [line for line in top.shown.split(b"\r\n") if b"WRITE(16)" in line]
    assert lines


def test_on_a_terminal_an_interrupt_ends_it_and_leaves_the_terminal_as_it_was(
    terminal, directory, server
):
    top = terminal(COMMAND, "top", str(directory))
    top.wait_for(b"q ends")
    assert termios.tcgetattr(top.side)[3] & termios.ICANON == 0
    os.killpg(top.process.pid, signal.SIGINT)
    top.wait_for(b"\x1b[?1049l")
    assert top.process.wait(HANG_S) == 0
    assert termios.tcgetattr(top.side) == top.before


def test_what_cannot_begin_is_one_line(cli, directory):
    for arguments in (
        (directory,),
        (directory, "--interval", "0"),
        (directory, "--count", "0"),
        (),
    ):
        done = cli("top", *arguments)
        assert done.returncode == 2, arguments
        assert done.stdout == ""
        assert len(done.stderr.splitlines()) == 1
        assert done.stderr.startswith("vscsi")


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("xyz:run", "'xyz:run' is none of DIR, srp:DIR, vscsiif:DIR, blkif:DIR"),
        ("call:disk.img", "'call:disk.img' is none of DIR, srp:DIR"),
        ("srp:nowhere", "nobody serves nowhere: it has no socket"),
        (".", "nobody serves .: it has no socket"),
    ],
)
def test_a_path_that_nobody_serves_is_one_line_and_status_2(cli, tmp_path, path, says):
    done = cli("top", path, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert says in done.stderr
