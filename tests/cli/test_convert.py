# SPDX-License-Identifier: MIT
"""`vscsi capture convert`: what is written, what is said, and how it ends."""

import gzip
from collections import Counter

import pytest

from tests.capture.sources import iscsi_traffic as traffic

INQUIRY = 0x12
RECORD_BYTES = 40
"""Of a .vscsi file, version 2."""
SCAN = traffic.CAPTURES / "iscsi-tgt-scan.pcapng.gz"


@pytest.fixture
def capture(tmp_path):
    """Return a capture that is not packed."""
    file = tmp_path / "scan.pcapng"
    file.write_bytes(gzip.decompress(SCAN.read_bytes()))
    return file


def convert(cli, *arguments, **options):
    return cli("capture", "convert", *arguments, **options)


def test_a_gzipped_capture_recognised_by_its_content(cli, tmp_path):
    out = tmp_path / "out.pcapng"
    result = convert(cli, SCAN, "--to", "iscsi", "-o", out)
    assert (result.returncode, result.stdout, result.stderr) == (
        0,
        "",
        "vscsi: 88 commands written\n",
    )
    source, rows = traffic.read(out.read_bytes())
    assert len(rows) == 88
    assert source.troubles.notes == []


def test_standard_input_and_output(cli, capture):
    with capture.open("rb") as stream:
        result = convert(cli, "-", "--to", "iscsi", "-o", "-", stdin=stream, text=False)
    assert result.returncode == 0
    assert len(traffic.read(result.stdout)[1]) == 88


def test_a_cut_capture_is_converted_up_to_there(cli, capture, tmp_path):
    capture.write_bytes(capture.read_bytes()[:60_000])
    out = tmp_path / "out.pcapng"
    result = convert(cli, capture, "--to", "iscsi", "-o", out, "--format", "iscsi")
    assert result.returncode == 1
    lines = result.stderr.splitlines()
    assert lines[-1].startswith(f"vscsi: {capture}: broken at byte 59")
    assert 0 < len(traffic.read(out.read_bytes())[1]) < 88


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--to", "iscsi"], "Missing option '-o'"),
        (["-o", "out"], "Missing option '--to'"),
        (["--to", "tar", "-o", "out"], "'tar' is not one of"),
        (["--to", "iscsi", "-o", "/nowhere/out"], "cannot write /nowhere/out: No such file"),
        (["--to", "iscsi", "-o", "out", "--format", "tar"], "no format 'tar'"),
    ],
)
def test_wrong_arguments(cli, capture, tmp_path, arguments, words):
    result = convert(cli, capture, *arguments, cwd=tmp_path)
    assert result.returncode == 2
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_capture_is_not_written_over_itself(cli, capture):
    before = capture.read_bytes()
    result = convert(cli, capture, "--to", "iscsi", "-o", capture)
    assert result.returncode == 2
    assert "it is what is read" in result.stderr
    assert capture.read_bytes() == before


@pytest.mark.parametrize("which", ["busiest", "first", "named"])
def test_of_several_disks_one_becomes_a_vscsi_file(cli, capture, tmp_path, which):
    """The busiest; of a stream, which is read once, the first; or the one that is asked for."""
    source, rows = traffic.read(capture.read_bytes())
    disks = [row["disk"] for row in rows if row["opcode"] == INQUIRY]
    counts = Counter(disks)
    index = counts.most_common(1)[0][0] if which == "busiest" else disks[0]
    assert counts[disks[0]] < max(counts.values())
    name, out = source.disks[index].name, tmp_path / "out"
    options = ["--to", "vscsi-trace", "-o", out, "--opcode", "inquiry"]
    options += ["--disk", name] if which == "named" else []
    with capture.open("rb") as stream:
        result = convert(cli, "-" if which == "first" else capture, *options, stdin=stream)
    assert result.returncode == 0
    assert out.stat().st_size == counts[index] * RECORD_BYTES
    left_out = len(disks) - counts[index]
    assert result.stderr.splitlines() == (
        [f"vscsi: {counts[index]} commands written"]
        if which == "named"
        else [
            f"vscsi: {counts[index]} commands written, {left_out} left out: of another disk",
            f"vscsi: {name} was written, of {len(counts)} disks the {which} one:"
            " the format has one",
        ]
    )


def test_a_disk_that_is_not_there(cli, capture, tmp_path):
    result = convert(cli, capture, "--to", "iolog", "-o", tmp_path / "out", "--disk", "sda")
    assert result.returncode == 2
    assert "it has no such disk; it has " in result.stderr


def test_no_room(cli, capture):
    result = convert(cli, capture, "--to", "iscsi", "-o", "/dev/full", "--format", "iscsi")
    assert result.returncode == 1
    assert result.stderr == "vscsi: cannot write /dev/full: No space left on device\n"


def test_a_file_of_no_format(cli, tmp_path):
    file = tmp_path / "nothing"
    file.write_bytes(b"nothing that anybody knows")
    result = convert(cli, file, "--to", "iscsi", "-o", tmp_path / "out")
    assert result.returncode == 2
    assert "its content is of no known format" in result.stderr
