# SPDX-License-Identifier: MIT
"""`vscsi analyze`: what it prints, writes and answers, for good files and bad ones."""

import gzip
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import vscsi
from tests.analysis import expected
from tests.capture.synthetic import write_srp
from tests.conftest import COMMAND, HANG_S

CAPTURE = expected.CAPTURES / "linux-srp.pcapng.gz"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("small") / "small.pcapng"
    with path.open("wb") as stream:
        write_srp(stream, 2000)
    return path


def test_a_person_reads_tables(cli: Any) -> None:
    done = cli("analyze", CAPTURE)
    assert (done.returncode, done.stderr) == (0, "")
    for words in ("READ(10)", "Outstanding commands", "working set", "Slowest", "ABORT TASK"):
        assert words in done.stdout
    assert "\x1b" not in done.stdout


def test_one_call_writes_all_forms(cli: Any, small: Path, tmp_path: Path) -> None:
    html, csv = tmp_path / "a.html", tmp_path / "a.csv"
    done = cli("analyze", small, "--json", "--html", html, "--csv", csv)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["total"]["count"] == 2000
    assert "</html>" in html.read_text()
    assert csv.read_text().startswith("Histogram: IO lengths of commands,")


def test_buckets_are_chosen(cli: Any, small: Path) -> None:
    done = cli("analyze", small, "--json", "--buckets", "pow2", "--buckets", "latency_us=10,100")
    told = json.loads(done.stdout)
    assert told["buckets"] == "pow2 latency_us=10,100"
    assert told["histograms"]["latency_us"]["all"]["bounds"] == [10, 100]
    assert told["histograms"]["io_length_bytes"]["all"]["bounds"][0] == 512


def test_standard_input_and_gzip_are_files(cli: Any, small: Path) -> None:
    packed = gzip.compress(small.read_bytes())
    done = subprocess.run(
        [COMMAND, "analyze", "-", "--json"], input=packed, capture_output=True, timeout=HANG_S
    )
    assert done.returncode == 0
    assert json.loads(done.stdout)["total"]["count"] == 2000


def test_a_file_that_is_cut_off_is_shown_as_far_as_it_goes(
    cli: Any, small: Path, tmp_path: Path
) -> None:
    cut = tmp_path / "cut.pcapng"
    cut.write_bytes(small.read_bytes()[:-1001])
    done = cli("analyze", cut, "--json")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert str(cut) in done.stderr
    assert 1900 < json.loads(done.stdout)["total"]["count"] <= 2000


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.pcapng"], "nowhere.pcapng"),
        ([sys.executable], "no known format"),
        ([CAPTURE, "--buckets", "3,1"], "ascend"),
        ([CAPTURE, "--engine", "abacus"], "abacus"),
        ([CAPTURE, "--diff"], "two FILEs"),
        ([CAPTURE, CAPTURE, "--diff", "--csv", "/nowhere/a.csv"], "--diff"),
        ([CAPTURE, "--html", "/nowhere/a.html"], "/nowhere/a.html"),
        ([CAPTURE, "--format", "tar"], "tar"),
        (["srp:/nowhere"], "nobody serves /nowhere"),
        (["/"], "nobody serves /"),
        (["call:disk.img"], "'call:disk.img' is none of DIR, srp:DIR, vscsiif:DIR, blkif:DIR"),
        ([], "FILE"),
    ],
    ids=str,
)
def test_what_cannot_begin_is_one_line(cli: Any, arguments: list[Any], words: str) -> None:
    done = cli("analyze", *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert words in done.stderr


@pytest.mark.parametrize("option", ["--html", "--csv"])
def test_what_is_read_is_not_written(cli: Any, small: Path, tmp_path: Path, option: str) -> None:
    file = tmp_path / "only.pcapng"
    file.write_bytes(small.read_bytes())
    done = cli("analyze", file, option, file)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"vscsi: write {file}: it is what is read; name another file\n"
    with file.open("rb") as stream:
        assert cli("analyze", "-", option, file, stdin=stream).returncode == 2
    assert file.read_bytes() == small.read_bytes()


@pytest.mark.parametrize("arguments", [["/dev/null"], [sys.executable], [CAPTURE, "--path=blkif"]])
def test_the_last_report_stays_if_there_is_no_new_one(
    cli: Any, tmp_path: Path, arguments: list[Any]
) -> None:
    html = tmp_path / "report.html"
    html.write_text("yesterday")
    assert cli("analyze", *arguments, "--html", html).returncode == 2
    assert html.read_text() == "yesterday"
    assert list(tmp_path.iterdir()) == [html]


@pytest.mark.parametrize("option", ["--html", "--csv"])
def test_a_full_device_is_one_line(cli: Any, option: str) -> None:
    done = cli("analyze", CAPTURE, option, "/dev/full")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "vscsi: cannot write /dev/full: No space left on device\n"


def test_a_report_goes_to_standard_output(cli: Any, small: Path) -> None:
    for name in ("-", "/dev/stdout"):
        done = cli("analyze", small, "--csv", name)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("Histogram: IO lengths of commands,")


def test_two_captures_are_compared(cli: Any, small: Path) -> None:
    done = cli("analyze", "--diff", small, CAPTURE)
    assert (done.returncode, done.stderr) == (0, "")
    assert "READ(10)" in done.stdout
    told = json.loads(cli("analyze", "--diff", "--json", small, CAPTURE).stdout)
    assert told["a"]["total"]["count"] == 2000
    assert {"what": "all", "figure": "count"}.items() <= told["differences"][5].items()


def test_two_paths_of_one_capture_are_compared(cli: Any, start: Any, tmp_path: Path) -> None:
    file = tmp_path / "both.pcapng"
    directory = tmp_path / "run"
    server = start("serve", "memory:4M", "--dir", directory, "--capture", file)
    for kind, turns in (("srp", 12), ("blkif", 5)):
        with vscsi.connect(f"{kind}:{directory}") as hba:
            for turn in range(turns):
                hba.lun(0).write(turn, bytes(512))
    server.process.terminate()
    server.process.wait(HANG_S)
    done = cli("analyze", "--diff", "--json", "--path", "srp", "--path", "blkif", file)
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    writes = [
        sum(row["count"] for row in told[side]["commands"] if "WRITE" in row["name"])
        for side in ("a", "b")
    ]
    assert writes == [12, 5]


def test_a_server_is_analysed_live(cli: Any, start: Any, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    start("serve", "memory:4M", "--dir", directory)
    live = subprocess.Popen(
        [COMMAND, "analyze", f"srp:{directory}", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert live.stderr is not None
    assert "capturing" in live.stderr.readline()
    with vscsi.connect(f"srp:{directory}") as hba:
        for turn in range(20):
            hba.lun(0).write(turn, bytes(512))
    live.send_signal(2)
    output, errors = live.communicate(timeout=HANG_S)
    assert (live.returncode, errors) == (0, "")
    told = json.loads(output)
    assert sum(row["count"] for row in told["commands"] if "WRITE" in row["name"]) == 20


def test_convert_knows_vscsistats(cli: Any, small: Path) -> None:
    done = cli("capture", "convert", small, "--to", "vscsistats", "-o", "-")
    assert done.returncode == 0
    assert done.stdout.startswith("Histogram: IO lengths of commands,")


def test_latencies_are_those_of_tshark(cli: Any) -> None:
    file = expected.CAPTURES / "iscsi-tgt-qemu.pcapng.gz"
    ours = {
        row["opcode"]: row for row in json.loads(cli("analyze", "--json", file).stdout)["commands"]
    }
    compared = 0
    for line in file.with_name("iscsi-tgt-qemu.srt.txt").read_text().splitlines():
        # Opcode, name, calls, then least, most, mean and sum in seconds.
        opcode, *fields = line.split()[:1] + line.split()[-5:] if line.strip() else [""]
        # tshark counts what it knows to be a disk's: not what comes before the INQUIRY data.
        if not opcode.isdigit() or int(opcode) in (0x00, 0x12):
            continue
        calls, least, most, mean, _ = map(float, fields)
        latency = ours[int(opcode)]["latency_us"]
        assert latency["count"] == calls
        for name, wanted in (("min", least), ("max", most), ("mean", mean)):
            assert latency[name] / 1e6 == pytest.approx(wanted, abs=1.1e-6)
        compared += 1
    assert compared == 6


def test_synthetic_captures_say_what_was_put_in(cli: Any, tmp_path: Path) -> None:
    stream = io.BytesIO()
    truth = write_srp(stream, 5000)
    file = tmp_path / "known.pcapng"
    file.write_bytes(stream.getvalue())
    told = json.loads(cli("analyze", "--json", file).stdout)
    assert told["total"]["errors"] == int(truth["failed"].sum())
    rows = {row["name"]: row for row in told["commands"]}
    assert rows["WRITE(10)"]["count"] == int(truth["write"].sum())
    assert told["total"]["latency_us"]["max"] == truth["latency_ns"].max() / 1000
    assert told["histograms"]["outstanding"]["all"]["max"] == int(truth["outstanding"].max())
