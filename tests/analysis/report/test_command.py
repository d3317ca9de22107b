# SPDX-License-Identifier: MIT
"""`vscsi analyze --html` of recorded captures, opened in a browser."""

import json
from pathlib import Path

import pytest

CAPTURES = Path(__file__).parents[3] / "captures"
PHONE = 360


@pytest.mark.parametrize("name", ["linux-srp.pcapng.gz", "iscsi-tgt-qemu.pcapng.gz"])
def test_the_report_of_a_recorded_capture_shows_its_commands(cli, opened, tmp_path, name):
    out = tmp_path / "out.html"
    done = cli("analyze", CAPTURES / name, "--html", out, "--json")
    assert done.returncode == 0, done.stderr
    page = opened(out.read_text(), PHONE, prefers_color_scheme="dark")
    assert page.value("document.documentElement.scrollWidth") <= PHONE
    rows = page.value(
        """[...document.querySelectorAll("#commands tbody tr")].map(each =>
          [each.cells[0].textContent, each.cells[2].textContent])"""
    )
    commands = json.loads(done.stdout)["commands"]
    assert dict(rows[: len(commands)]) == {each["name"]: f"{each['count']:,}" for each in commands}


def test_two_captures_have_a_report_of_what_differs(cli, opened, tmp_path):
    out = tmp_path / "out.html"
    files = [CAPTURES / f"linux-{path}.pcapng.gz" for path in ("srp", "blkif")]
    done = cli("analyze", "--diff", *files, "--html", out)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    page = opened(out.read_text(), PHONE)
    assert page.value("document.querySelectorAll('#histograms svg').length") == 6
    assert "READ(10)" in page.value("document.querySelector('#commands').textContent")


def test_a_report_that_cannot_be_written_is_one_line(cli, tmp_path):
    done = cli("analyze", CAPTURES / "linux-srp.pcapng.gz", "--html", tmp_path / "no" / "out.html")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
