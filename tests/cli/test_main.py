# SPDX-License-Identifier: MIT
"""The command as such: help, and every way to misuse it in one line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import COMMAND, HANG_S
from vscsi.cli.main import VERBS

COMMANDS = [
    ("--bogus", "No such option"),
    ("bogus", "No such command 'bogus'"),
    ("ls", "Missing argument 'PATH'"),
    ("ls run", "'run' is none of srp:DIR"),
    ("ls scsi:run", "'scsi:run' is none of srp:DIR"),
    ("ls srp:", "'srp:' is none of srp:DIR"),
    ("ls srp:no/where", "no store at no/where/socket"),
    ("ls srp:run?ring-order=9", "ring-order is 0 to 4"),
    ("ls srp:run?bogus=1", "No such file"),
    ("ls call:missing.img", "No such file or directory"),
    ("ls srp:a srp:b", "unexpected extra argument"),
    ("inq call:null:1M --page xyz", "'xyz' is no page code"),
    ("inq call:null:1M --page 100", "'100' is no page code"),
    ("inq call:null:1M --lun -1", "not in the range"),
    ("inq call:null:1M --raw --json", "exclude each other"),
    ("cdb call:null:1M", "Missing argument 'HEX...'"),
    ("cdb call:null:1M 12 00 00 00 60 0g", "is no hexadecimal CDB"),
    ("cdb call:null:1M 12 00 00 00 60 0", "is no hexadecimal CDB"),
    ("cdb call:null:1M 12 00 00 00 60", "6 to 260 bytes, not 5"),
    ("cdb call:null:1M 000000000000 --in x", "not a valid integer"),
    ("cdb call:null:1M 000000000000 --in -1", "not in the range"),
    ("cdb call:null:1M 000000000000 --out missing", "missing"),
    ("cdb call:null:1M 000000000000 --in 1 --out /dev/null", "exclude each other"),
    ("nbd call:null:1M", "one of --socket and --run"),
    ("nbd call:null:1M --socket no/where/s", "no such directory"),
    (f"nbd call:null:1M --socket {'x' * 120}", "over 107 bytes"),
    ("nbd call:null:1M --socket /dev/null", "is no socket"),
    ("doctor --need bogus", "'bogus' is not one of"),
]


@pytest.mark.parametrize(("line", "reason"), COMMANDS, ids=[line for line, _ in COMMANDS])
def test_a_wrong_command_line_is_one_line_and_status_2(cli, tmp_path, line, reason):
    done = cli(*line.split(), cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("vscsi")
    assert reason in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_help_names_every_verb(cli):
    done = cli("--help")
    assert done.returncode == 0
    assert all(f"\n  {verb} " in done.stdout for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(cli, verb):
    done = cli(verb, "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"Usage: vscsi {verb} ")


def test_no_verb_shows_the_help(cli):
    done = cli()
    assert done.returncode == 2
    assert "Commands:" in done.stdout


def test_a_reader_that_has_enough_is_no_error(cli):
    program = "from vscsi.cli.main import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", program, "ls", "call:null:1M"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.close()  # long before it has anything to say
    errors = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 1
    assert errors == b""


@pytest.mark.parametrize(
    "line",
    [
        "--help",
        "ls --help",
        "ls call:null:1M",
        "ls --json call:null:1M",
        "inq call:null:1M",
        "analyze captures/linux-srp.pcapng.gz",
        "analyze --json captures/linux-srp.pcapng.gz",
        "analyze --csv - captures/linux-srp.pcapng.gz",
        "capture show captures/linux-srp.pcapng.gz",
        "replay captures/linux-srp.pcapng.gz call:memory:64M --speed max --yes",
    ],
)
@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
def test_output_that_does_not_fit_is_one_line(line, unbuffered):
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [COMMAND, *line.split()],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=HANG_S,
            cwd=Path(__file__).parents[2],
            env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
        )
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last == "vscsi: cannot write standard output: No space left on device"
    assert "Traceback" not in done.stderr
