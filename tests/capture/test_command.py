# SPDX-License-Identifier: MIT
"""`vscsi capture`: recorded by processes of their own, ended and killed at any moment."""

import contextlib
import gzip
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import vscsi
from vscsi.capture.reader import CaptureReader
from vscsi.transport.hba import ScsiError
from vscsi.transport.initiator import TransportError
from vscsi.wire.cdb import build
from vscsi.wire.record import Protocol, Way

HANG_S = 60
ISCSI = (Path(__file__).parents[2] / "captures" / "iscsi-tgt-scan.pcapng.gz").read_bytes()


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

    def starter(path, file, *options):
        command = ["capture", str(path), "-w", str(file), *options]
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
    assert not (tmp_path / "a.pcapng").exists()


@pytest.mark.parametrize("options", [(), ("--rotate-size", "4k")])
def test_nor_does_it_cost_the_file_that_was_there(cli, server, directory, tmp_path, options):
    files = [tmp_path / "a.pcapng", tmp_path / "a-00001.pcapng"]
    for file in files:
        file.write_bytes(b"before")
    done = cli("capture", directory, "-w", files[0], *options, "--", "/no/such/program")
    assert done.returncode == 2
    assert [file.read_bytes() for file in files] == [b"before"] * 2


def test_a_file_that_was_there_is_replaced_when_the_command_runs(cli, server, directory, tmp_path):
    file = tmp_path / "a.pcapng"
    file.write_bytes(bytes(100_000))
    done = cli("capture", directory, "-w", file, "--", "true")
    assert done.returncode == 0
    assert "; until true ends" in done.stderr
    assert file.stat().st_size < 100_000
    shown(cli, file)


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
        (("nowhere", "-w", "x"), "nobody serves nowhere: it has no socket"),
        (("srp:nowhere", "-w", "x"), "nobody serves nowhere: it has no socket"),
        ((".", "-w", "x"), "nobody serves .: it has no socket"),
        (("xyz:run", "-w", "x"), "'xyz:run' is none of DIR, srp:DIR, vscsiif:DIR, blkif:DIR"),
        (("call:disk.img", "-w", "x"), "'call:disk.img' is none of DIR, srp:DIR"),
        (("show", "/dev/null"), "cannot show /dev/null: the file is empty"),
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


@pytest.mark.parametrize("content", [b"", b"abc", bytes(range(256)), b"\x1f\x8b and more", ISCSI])
def test_what_is_no_capture_of_ours_cannot_be_shown(cli, tmp_path, content):
    file = tmp_path / "a"
    file.write_bytes(content)
    done = cli("capture", "show", file)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"vscsi: cannot show {file}: ")
    assert len(done.stderr.splitlines()) == 1
    if content is ISCSI:
        assert "link type 1: not a capture of vscsi; `vscsi analyze` reads" in done.stderr


def test_show_reads_gzipped_captures(cli, stock_capture, tmp_path):
    data, _ = stock_capture
    plain, packed = tmp_path / "a", tmp_path / "a.gz"
    plain.write_bytes(data)
    packed.write_bytes(gzip.compress(data))
    whole, _ = shown(cli, plain)
    assert shown(cli, packed) == (whole, "")
    done = cli("capture", "show", "--json", "-", input=packed.read_bytes(), text=False)
    assert [json.loads(line) for line in done.stdout.splitlines()] == whole
    packed.write_bytes(packed.read_bytes()[: packed.stat().st_size * 3 // 4])
    part, errors = shown(cli, packed, status=1)
    assert 0 < len(part) < len(whole)
    assert errors.startswith(f"vscsi: {packed}: broken at byte ")
    assert errors.endswith(" of the unpacked content: the gzip file ends early\n")


def test_show_reads_standard_input(cli, stock_capture):
    data, count = stock_capture
    done = cli("capture", "show", "-", input=data, text=False)
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == count // 2


def mixed_work(directory, kind):
    """Commands of several kinds on two units, some of which fail."""
    with vscsi.connect(f"{kind}:{directory}") as hba:
        for number in (0, 1) if kind != "blkif" else (0,):
            unit = hba.lun(number)
            for lba in range(0, 64, 8):
                unit.write(lba, bytes(4096))
                unit.read(lba, 8)
            unit.flush()
            with pytest.raises(ScsiError):
                unit.command(build("READ(10)", lba=1 << 30, blocks=1), data_in=512)


def is_of_blkif(line):
    return line["path"] == "blkif"


FILTERS = {
    "--lun 1": lambda line: str(line["lun"]).split(":")[-1] == "1",
    "--lun 0 --opcode write": lambda line: (
        str(line["request"]).startswith("WRITE")
        and (is_of_blkif(line) or str(line["lun"]).split(":")[-1] == "0")
    ),
    "--opcode flush": lambda line: str(line["request"]).startswith(("SYNCHRONIZE", "FLUSH")),
    "--lba 20-39": lambda line: any(
        word in str(line["request"])
        for word in ("lba 16 ", "lba 24 ", "lba 32 ", "sector 16 ", "sector 24 ", "sector 32 ")
    ),
    "--status error": lambda line: line["status"] not in ("GOOD", "OKAY"),
    "--status check-condition --opcode read": lambda line: (
        line["status"] == "CHECK CONDITION" and str(line["request"]).startswith("READ(")
    ),
}


@pytest.mark.parametrize("words", FILTERS)
def test_a_filter_keeps_what_it_says_and_its_answers(
    start, cli, directory, record, tmp_path, words
):
    """Beside a capture of all, of which a naive look at the words takes as much."""
    server = start("serve", "memory:4M", "memory:4M", "--dir", str(directory))
    whole = record(directory, tmp_path / "all.pcapng")
    part = record(directory, tmp_path / "part.pcapng", *words.split())
    for kind in ("srp", "vscsiif", "blkif"):
        mixed_work(directory, kind)
    assert server.end(signal.SIGTERM) == (0, "")
    _, said = [recording.process.communicate(timeout=HANG_S)[0] for recording in (whole, part)]
    everything, _ = shown(cli, tmp_path / "all.pcapng")
    found, _ = shown(cli, tmp_path / "part.pcapng")
    wanted = [line for line in everything if line["kind"] == "command" and FILTERS[words](line)]
    assert wanted
    assert [line for line in found if line["kind"] == "command"] == [
        {**line, "time_ns": other["time_ns"]}
        for line, other in zip(wanted, found_commands(found), strict=True)
    ]
    assert all(line["answered"] for line in found_commands(found))
    messages = sum(1 + line["answered"] for line in found)
    # To a logical unit of SCSI no ring of blkif belongs.
    rings = {line["path"] for line in everything} - ({"blkif"} if "--lun 1" in words else set())
    left_out = sum(1 + each["answered"] for each in everything if each["path"] in rings) - messages
    assert said.decode().strip() == (
        f"vscsi: {messages} messages recorded, 0 dropped, {left_out} left out"
    )


def found_commands(lines):
    return [line for line in lines if line["kind"] == "command"]


def test_files_follow_each_other_and_each_can_be_shown(cli, server, directory, record, tmp_path):
    recording = record(directory, tmp_path / "a.pcapng", "--rotate-size", "4k")
    for kind in ("srp", "blkif"):
        work(directory, kind)
    assert server.end(signal.SIGTERM) == (0, "")
    recording.process.communicate(timeout=HANG_S)
    files = sorted(tmp_path.glob("a-*.pcapng"))
    assert len(files) > 3
    assert files[0].name == "a-00001.pcapng"
    messages = 0
    for file in files:
        with file.open("rb") as stream:
            messages += len(list(CaptureReader(stream)))
        assert file.stat().st_size < 4096 + 200
        cli("capture", "show", file)
    with open(str(directory) + ".pcapng", "rb") as stream:
        assert messages == len(list(CaptureReader(stream)))


def test_metadata_say_what_was_captured_and_how(cli, server, directory, record, tmp_path):
    recording = record(
        directory, tmp_path / "a.pcapng", "--payload", "8", "--opcode", "write", "--lba", "0-9"
    )
    for kind in ("srp", "vscsiif", "blkif"):
        work(directory, kind)
    server.end(signal.SIGTERM)
    recording.process.communicate(timeout=HANG_S)
    with (tmp_path / "a.pcapng").open("rb") as stream:
        reader = CaptureReader(stream)
        list(reader)
    assert len(reader.interfaces) == 3
    for interface in reader.interfaces:
        words = dict(word.split("=") for word in interface.description.split())
        assert interface.name == f"{words['path']}-{words['domain']}-{words['device']}"
        assert int(words["ring-pages"]) >= 1
        assert words["queue"] == "0"
        assert words["lun0.type"] == "disk"
        assert (words["lun0.block-bytes"], words["lun0.blocks"]) == ("512", "8192")
        assert words["clock"] == "monotonic"
        assert abs(int(words["clock-offset-ns"]) - (time.time_ns() - time.monotonic_ns())) < 1e10
        assert words["clock-resolution-ns"] == "1"
        assert words["payload"] == "8"
        assert words["filter"] == "opcode:write,lba:0-9"


def test_a_server_whose_file_may_not_grow_goes_on(start, directory, tmp_path, cli):
    """RLIMIT_FSIZE: what a full disk or a quota is to a capture."""
    file = tmp_path / "a.pcapng"
    limited = ("sh", "-c", 'ulimit -f 8; exec "$@"', "sh")
    command = ("serve", "memory:4M", "--dir", str(directory), "--capture", str(file))
    server = start(*command, prefix=limited)
    for _ in range(3):
        work(directory)
    lines, _ = shown(cli, file, status=1)  # its last block is cut
    assert lines
    status, _ = server.end(signal.SIGTERM)
    assert status == 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--payload", "65537"], "neither hash nor"),
        (["--opcode", "nothing"], "no opcode"),
        (["--status", "fine"], "no status"),
        (["--lba", "9-8"], "ends before it begins"),
        (["--lba", "x"], "no range"),
        (["--keep", "3"], "--keep needs"),
        (["--rotate-time", "never"], "no time"),
        (["--rotate-time", "0s"], "no time"),
        (["--rotate-size", "big"], "no size"),
        (["--rotate-size", "0"], "--rotate-size 0"),
        (["--rotate-time", "0"], "no time"),
    ],
)
def test_options_that_cannot_be_are_one_line_and_status_2(cli, tmp_path, options, says):
    done = cli("capture", tmp_path, "-w", tmp_path / "a.pcapng", *options)
    assert done.returncode == 2
    assert says in done.stderr
    assert not list(tmp_path.glob("*.pcapng"))


def test_the_dissector_is_there(cli):
    done = cli("capture", "dissector")
    assert done.returncode == 0
    assert "Proto(" in Path(done.stdout.strip()).read_text()
