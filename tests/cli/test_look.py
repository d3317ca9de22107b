# SPDX-License-Identifier: MIT
"""ls, inq and cdb over every path of one server: two images and one that is read-only memory."""

import hashlib
import json

import pytest

from vscsi.cli.output import hex_dump, printable, size_text

PATHS = ("srp", "vscsiif", "blkif")


@pytest.fixture(scope="module")
def directory(tmp_path_factory, start):
    home = tmp_path_factory.mktemp("look")
    (home / "a.img").write_bytes(hashlib.shake_128(b"a").digest(1 << 20))
    (home / "b.img").write_bytes(hashlib.shake_128(b"b").digest(2 << 20))
    start("serve", home / "a.img", home / "b.img", "--dir", home / "run")
    return home / "run"


@pytest.mark.parametrize("kind", PATHS)
def test_ls_shows_every_unit_of_a_path(cli, directory, kind):
    done = cli("ls", f"{kind}:{directory}")
    assert done.returncode == 0, done.stderr
    head, *rows = done.stdout.splitlines()
    assert head.split() == ["LUN", "type", "device", "serial", "size", "block", "flags"]
    assert [row.split()[:2] for row in rows] == [["0", "disk"], ["1", "disk"]]
    assert [row.split()[6:9] for row in rows] == [["1", "MiB", "512"], ["2", "MiB", "512"]]


@pytest.mark.parametrize("kind", PATHS)
def test_ls_has_the_same_for_programs(cli, directory, kind):
    units = json.loads(cli("ls", "--json", f"{kind}:{directory}").stdout)
    assert [unit["lun"] for unit in units] == [0, 1]
    assert [unit["size_bytes"] for unit in units] == [1 << 20, 2 << 20]
    assert {unit["block_bytes"] for unit in units} == {512}
    assert {unit["vendor"] for unit in units} == {"VSCSI"}
    assert all({"thin", "fua", "wce"} == set(unit["flags"]) for unit in units)


def test_ls_of_one_blkif_disk_shows_that(cli, directory):
    (unit,) = json.loads(cli("ls", "--json", f"blkif:{directory}?disk=1").stdout)
    assert unit["size_bytes"] == 2 << 20


@pytest.mark.parametrize("kind", PATHS)
def test_inq_decodes_every_listed_page(cli, directory, kind):
    done = cli("inq", f"{kind}:{directory}", "--lun", "1")
    assert done.returncode == 0, done.stderr
    titles = [line for line in done.stdout.splitlines() if line and not line.startswith(" ")]
    assert titles[0] == "Standard INQUIRY data"
    assert "  pages  00h 80h 83h 86h B0h B1h B2h" in done.stdout.splitlines()
    assert [title.split()[2] for title in titles[1:]] == [
        *("00h:", "80h:", "83h:", "86h:", "B0h:", "B1h:", "B2h:")
    ]


def test_inq_json_agrees_with_the_raw_bytes(cli, directory):
    """The raw bytes are taken apart by hand here, at the standards' offsets."""
    path = f"srp:{directory}"
    document = json.loads(cli("inq", path, "--json").stdout)
    standard = cli("inq", path, "--raw", text=False).stdout
    assert bytes.fromhex(document["standard"]["bytes"]) == standard
    assert document["standard"]["fields"]["vendor"] == standard[8:16].decode().rstrip()
    assert document["standard"]["fields"]["product"] == standard[16:32].decode().rstrip()
    assert document["standard"]["fields"]["cmdque"] == standard[7] >> 1 & 1
    for page in document["pages"]:
        raw = cli("inq", path, "--raw", "--page", page["page"], text=False).stdout
        assert raw.hex() == page["bytes"]
        assert raw[1] == int(page["page"], 16)
        assert len(raw) == 4 + int.from_bytes(raw[2:4], "big")
    limits = next(page for page in document["pages"] if page["page"] == "b0")
    raw = bytes.fromhex(limits["bytes"])
    fields = limits["fields"]
    assert fields["maximum_transfer_length"] == int.from_bytes(raw[8:12], "big")
    assert fields["maximum_unmap_lba_count"] == int.from_bytes(raw[20:24], "big")
    assert fields["maximum_write_same_length"] == int.from_bytes(raw[36:44], "big")


@pytest.mark.parametrize("page", ["80", "0x80", "80h"])
def test_inq_shows_one_page(cli, directory, page):
    serials = [
        unit["serial"] for unit in json.loads(cli("ls", "--json", f"srp:{directory}").stdout)
    ]
    done = cli("inq", f"srp:{directory}", "--page", page)
    assert done.stdout.split("\n")[1:] == [
        "VPD page 80h: unit serial number",
        f"  serial number  {serials[0]}",
        "",
    ]


def test_inq_refusals_are_one_line(cli, directory):
    for arguments, reason in (
        (("--page", "c0"), "there is no VPD page C0h"),
        (("--lun", "7"), "has no LUN 7"),
    ):
        done = cli("inq", f"srp:{directory}", *arguments)
        assert done.returncode == 1
        assert done.stdout == ""
        assert done.stderr.count("\n") == 1
        assert reason in done.stderr


READ = "28 00 00 00 00 03 00 00 01 00"


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("srp", (READ,)),
        ("vscsiif", READ.split()),
        ("blkif", ("0x" + READ.replace(" ", ""),)),
        ("srp", ("2800", "00000003", "00000100")),
    ],
)
def test_cdb_takes_hex_in_every_form(cli, directory, kind, words):
    done = cli("cdb", f"{kind}:{directory}", *words, "--in", 512, "-r", text=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (directory.parent / "a.img").read_bytes()[3 * 512 : 4 * 512]
    assert b"READ(10) lba 3 blocks 1" in done.stderr


def test_cdb_shows_what_came(cli, directory):
    done = cli("cdb", f"srp:{directory}", "12 00 00 00 60 00", "--in", 100)
    assert done.returncode == 0
    assert done.stdout.splitlines()[:4] == [
        "command   INQUIRY alloc 96",
        "status    GOOD",
        "residual  4 bytes of the buffer were not used",
        "0000  00 00 06 12 5b 00 00 02  56 53 43 53 49 20 20 20  |....[...VSCSI   |",
    ]


@pytest.mark.parametrize("kind", PATHS)
def test_cdb_explains_a_refusal_and_ends_with_1(cli, directory, kind):
    done = cli("cdb", f"{kind}:{directory}", "2800ffffffff00000100", "--in", 512)
    assert done.returncode == 1
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[1] == "status    CHECK CONDITION"
    assert lines[2].startswith(
        "sense     ILLEGAL REQUEST, LOGICAL BLOCK ADDRESS OUT OF RANGE (5/21/00), CDB byte 2"
    )
    assert lines[3].split()[0] == "70"
    assert lines[4] == "residual  512 bytes of the buffer were not used"


@pytest.mark.parametrize("kind", PATHS)
def test_cdb_writes_a_file_to_another_unit(cli, directory, tmp_path, kind):
    block = hashlib.shake_128(kind.encode()).digest(1024)
    (tmp_path / "blocks").write_bytes(block)
    path = f"{kind}:{directory}"
    write = ("2a000000000500000200", "--lun", 1, "--out")
    assert cli("cdb", path, *write, tmp_path / "blocks").returncode == 0
    read = cli("cdb", path, "28000000000500000200", "--lun", 1, "--in", 1024, "-r", text=False)
    assert read.stdout == block
    assert (directory.parent / "b.img").read_bytes()[5 * 512 : 7 * 512] == block
    assert cli("cdb", path, *write, "-", input=bytes(1024), text=False).returncode == 0
    assert (directory.parent / "b.img").read_bytes()[5 * 512 : 7 * 512] == bytes(1024)


def test_cdb_consumes_the_unit_attention_of_its_new_nexus_unless_told(cli, directory):
    ready = ("cdb", f"srp:{directory}", "000000000000")
    assert cli(*ready).returncode == 0
    kept = cli(*ready, "--keep-attention")
    assert kept.returncode == 1
    assert "UNIT ATTENTION, POWER ON OCCURRED (6/29/01)" in kept.stdout


def test_cdb_that_the_path_cannot_carry_is_one_line(cli, directory):
    """vscsiif's slot has room for 16 bytes of CDB."""
    done = cli("cdb", f"vscsiif:{directory}", "7f" + "00" * 31)
    assert done.returncode == 1
    assert done.stderr == "vscsi: vscsiif carries CDBs of up to 16 bytes\n"


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (512, "512 B"), (1024, "1 KiB"), (1536, "1.5 KiB"), (3 << 40, "3 TiB")],
)
def test_sizes_are_short(size, text):
    assert size_text(size) == text


def test_what_a_unit_says_cannot_steer_the_terminal():
    assert printable("disk\x1b[2J\n") == "disk\ufffd[2J\ufffd"


def test_hex_dump_lines_up():
    lines = list(hex_dump(bytes(range(0x41, 0x52))))
    assert lines == [
        "0000  41 42 43 44 45 46 47 48  49 4a 4b 4c 4d 4e 4f 50  |ABCDEFGHIJKLMNOP|",
        "0010  51                                                |Q|",
    ]
