# SPDX-License-Identifier: MIT
"""`vscsi capture`: recorded by processes of their own, ended and killed at any moment."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import vscsi
from vscsi.transport.initiator import TransportError
from vscsi.wire.record import Protocol, Way

HANG_S = 60


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "run"


@pytest.fixture
def server(start, directory):
    """A server's process, which captures to a file beside its directory."""
    return start(
        "serve", "memory:4M", "--dir", str(directory), "--capture", str(directory) + ".pcapng"
    )


@pytest.fixture
def record(start):
    """Start a recording: returns its process, which records already."""

    def starter(path, file):
        command = ["capture", str(path), "-w", str(file)]
        wrapper = ("sh", "-c", 'exec "$@" 2>&1 >/dev/null', "sh")
        return start(*command, prefix=wrapper, wait_on="vscsi: recording")

    return starter


def work(directory, kind="srp", turns=20):
    with vscsi.connect(f"{kind}:{directory}") as hba:
        for turn in range(turns):
            hba.lun(0).write(turn, bytes(512))


def shown(cli, file, status=0):
    done = cli("capture", "show", "--json", file)
    assert done.returncode == status, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()], done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_recording_ends_with_a_signal(cli, server, directory, record, tmp_path, number):
    recording = record(directory, tmp_path / "a.pcapng")
    work(directory)
    recording.process.send_signal(number)
    output, _ = recording.process.communicate(timeout=HANG_S)
    assert recording.process.returncode == 0
    lines, errors = shown(cli, tmp_path / "a.pcapng")
    assert errors == ""
    assert [line["status"] for line in lines if str(line["request"]).startswith("WRITE")] == [
        "GOOD"
    ] * 20
    messages = sum(2 if line["answered"] else 1 for line in lines)
    assert output.decode().strip() == f"vscsi: {messages} messages recorded, 0 dropped"


@pytest.mark.parametrize("status", [0, 3])
def test_recording_ends_with_the_command_that_it_runs(cli, server, directory, tmp_path, status):
    file, url = tmp_path / "a.pcapng", f"srp:{directory}"
    script = f'"$0" -m vscsi cdb "$1" "00 00 00 00 00 00"; exit {status}'
    command = ["sh", "-c", script, sys.executable, url]
    done = cli("capture", directory, "-w", file, "--", *command)
    assert done.returncode == status, done.stderr
    lines, _ = shown(cli, file)
    assert "TEST UNIT READY" in [line["request"] for line in lines]
    assert "GOOD" in done.stdout


def test_a_command_that_cannot_be_run_is_one_line(cli, server, directory, tmp_path):
    done = cli("capture", directory, "-w", tmp_path / "a.pcapng", "--", "/no/such/program")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("vscsi: ")
    assert "No such file" in done.stderr


def test_recording_ends_with_the_server_and_only_one_protocol_is_recorded(
    cli, server, directory, record, tmp_path
):
    recording = record(f"srp:{directory}", tmp_path / "a.pcapng")
    for kind in ("blkif", "srp"):
        work(directory, kind)
    assert server.end(signal.SIGTERM) == (0, "")
    recording.process.communicate(timeout=HANG_S)
    assert recording.process.returncode == 0
    lines, _ = shown(cli, tmp_path / "a.pcapng")
    assert {line["path"] for line in lines} == {"srp"}
    whole, _ = shown(cli, Path(str(directory) + ".pcapng"))
    assert [line for line in whole if line["path"] == "srp"] != []
    assert {line["path"] for line in whole} == {"srp", "blkif"}


def test_a_killed_server_leaves_files_that_can_be_read(
    cli, server, directory, record, tmp_path, wireshark
):
    recording = record(directory, tmp_path / "a.pcapng")
    written = threading.Semaphore(0)

    def write_until_it_dies():
        with vscsi.connect(f"srp:{directory}") as hba, contextlib.suppress(TransportError):
            while True:
                hba.lun(0).write(0, bytes(512))
                written.release()

    writing = threading.Thread(target=write_until_it_dies)
    writing.start()
    for _ in range(20):
        assert written.acquire(timeout=HANG_S)
    server.process.kill()
    server.process.communicate()
    writing.join(HANG_S)
    assert not writing.is_alive()
    recording.process.communicate(timeout=HANG_S)
    assert recording.process.returncode == 0
    live, _ = shown(cli, tmp_path / "a.pcapng")
    assert "Number of packets" in wireshark("capinfos", tmp_path / "a.pcapng")
    done = cli("capture", "show", "--json", str(directory) + ".pcapng")
    own = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0 or "broken at byte" in done.stderr
    for lines in (live, own):
        writes = [line for line in lines if str(line["request"]).startswith("WRITE")]
        assert all(line["status"] == "GOOD" for line in writes[:-1])


def test_a_killed_recording_leaves_a_file_that_can_be_read(
    cli, server, directory, record, tmp_path
):
    recording = record(directory, tmp_path / "a.pcapng")
    work(directory)
    recording.process.kill()
    recording.process.communicate()
    shown(cli, tmp_path / "a.pcapng")
    work(directory)  # the server does not mind
    assert server.end(signal.SIGTERM) == (0, "")
    whole, _ = shown(cli, Path(str(directory) + ".pcapng"))
    assert len([line for line in whole if str(line["request"]).startswith("WRITE")]) == 40


def test_a_recording_may_be_shown_as_it_is_made(start, server, directory):
    """Through a pipe, line by line."""
    command = f"vscsi capture srp:{directory} -w - | vscsi capture show -"
    path = f"{Path(vscsi.__file__).parents[1] / '.venv/bin'}:{os.environ['PATH']}"
    shell = subprocess.Popen(
        ["sh", "-c", command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PATH": path},
    )
    assert shell.stderr is not None
    assert shell.stdout is not None
    assert shell.stderr.readline().startswith("vscsi: recording")
    work(directory)
    line = ""
    while "WRITE" not in line:
        line = shell.stdout.readline()
        assert line
    assert "-> GOOD, 512 bytes" in line
    server.end(signal.SIGTERM)
    shell.communicate(timeout=HANG_S)
    assert shell.returncode == 0


def test_a_full_disk_ends_a_recording_with_one_line(server, directory, cli):
    done = cli("capture", directory, "-w", "/dev/full")
    assert done.returncode == 1
    assert done.stderr.splitlines()[1:] == [
        "vscsi: cannot write /dev/full: No space left on device"
    ]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("nowhere", "-w", "x"), "cannot connect to nowhere"),
        (("srp:nowhere", "-w", "x"), "cannot connect to nowhere"),
        (("nowhere",), "Missing option '-w'"),
        (("show", "no-such-file"), "cannot open no-such-file"),
        (("show", "/"), "cannot open /"),
        (("show",), "Missing argument"),
    ],
)
def test_what_cannot_begin_is_one_line_and_status_2(cli, tmp_path, arguments, says):
    done = cli("capture", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert says in done.stderr
    assert not (tmp_path / "x").exists()


def test_a_file_that_cannot_be_written_is_named(cli, server, directory, tmp_path):
    done = cli("capture", directory, "-w", tmp_path / "no" / "x")
    assert done.returncode == 2
    assert "No such file or directory" in done.stderr


def test_help_names_both_ways_to_use_it(cli):
    done = cli("capture", "--help")
    assert done.returncode == 0
    assert "record" in done.stdout
    assert "show" in done.stdout


def test_show_reads_what_it_can_and_says_where_it_broke(cli, stock_capture, tmp_path):
    data, count = stock_capture
    file = tmp_path / "cut.pcapng"
    file.write_bytes(data[:-10])
    lines, errors = shown(cli, file, status=1)
    assert len(lines) == count // 2
    assert [line["answered"] for line in lines] == [True] * (count // 2 - 1) + [False]
    assert errors.startswith(f"vscsi: {file}: broken at byte ")
    assert len(errors.splitlines()) == 1


def test_show_counts_packets_that_it_does_not_understand(cli, capture_file, make_record, tmp_path):
    good = make_record(Protocol.BLKIF, Way.TO_TARGET, 0, bytes(112))
    file = tmp_path / "a.pcapng"
    file.write_bytes(capture_file([(0, b"\x07" + good[1:]), (1, good), (2, b"")]))
    lines, errors = shown(cli, file, status=1)
    assert len(lines) == 1
    assert "2 packets not understood (the first at byte" in errors


def test_show_reads_standard_input(cli, stock_capture):
    data, count = stock_capture
    done = cli("capture", "show", "-", input=data, text=False)
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == count // 2
