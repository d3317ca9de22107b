# SPDX-License-Identifier: MIT
"""doctor: each finding is true of this machine, and what is missing comes with a fix."""

import json
import os
import shutil
from functools import partial
from pathlib import Path

import pytest

from vscsi.cli.doctor_checks import CHECKS, Check, Missing, examine


@pytest.fixture(scope="module")
def findings(cli):
    done = cli("doctor", "--json")
    assert done.returncode == 0
    return {finding["name"]: finding for finding in json.loads(done.stdout)}


def test_every_check_is_told_with_a_state(findings):
    assert list(findings) == [check.name for check in CHECKS]
    assert {finding["state"] for finding in findings.values()} <= {"ok", "missing"}
    for finding in findings.values():
        assert finding["detail"]
        assert bool(finding["fix"]) == (finding["state"] == "missing")


def test_what_tests_run_on_is_there(findings):
    for name in ("python", "c-core", "memfd", "eventfd"):
        assert findings[name]["state"] == "ok"


@pytest.mark.parametrize("tool", ["nbdkit", "nbdcopy", "qemu-img", "xenstore-ls", "fio"])
def test_tools_are_found_where_they_are(findings, tool):
    assert (findings[tool]["detail"] if findings[tool]["state"] == "ok" else None) == shutil.which(
        tool
    )


def test_devices_and_mounts_are_what_the_kernel_shows(findings):
    for name, path in (("gntdev", "/dev/xen/gntdev"), ("evtchn", "/dev/xen/evtchn")):
        assert (findings[name]["state"] == "ok") == os.path.exists(path)
    mounts = Path("/proc/self/mounts").read_text()
    assert (findings["configfs"]["state"] == "ok") == (" /sys/kernel/config configfs " in mounts)


def test_without_tools_it_says_which_package_has_them(cli, tmp_path):
    done = cli("doctor", "--json", env={"PATH": str(tmp_path)})
    found = {finding["name"]: finding for finding in json.loads(done.stdout)}
    assert found["nbdkit"]["fix"] == "apt install nbdkit"
    assert found["nbdkit-python"]["fix"] == "apt install nbdkit-plugin-python"
    assert found["qemu-img"]["fix"] == "apt install qemu-utils"


def test_need_makes_what_is_missing_a_failure(cli, tmp_path):
    done = cli("doctor", "--need", "python", "--need", "fio", env={"PATH": str(tmp_path)})
    assert done.returncode == 1
    assert done.stderr == "vscsi doctor: missing: fio\n"
    assert cli("doctor", "--need", "python", "--need", "memfd").returncode == 0


def test_people_get_a_table_and_the_commands(cli, tmp_path):
    done = cli("doctor", env={"PATH": str(tmp_path)})
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["for", "what", "state", "found"]
    assert any(line.split()[1:4] == ["fio", "missing", "not"] for line in lines if "fio" in line)
    fixes = lines[lines.index("To get what is missing") + 1 :]
    assert any(line.split() == ["fio", "apt", "install", "fio"] for line in fixes)


def test_a_probe_that_finds_nothing_is_a_finding():
    def absent():
        raise Missing("not here")

    there, not_there = examine(
        [Check("g", "a", partial(str, "x"), "fix a"), Check("g", "b", absent, "fix b")]
    )
    assert (there.state, there.detail, there.fix) == ("ok", "x", "")
    assert (not_there.state, not_there.detail, not_there.fix) == ("missing", "not here", "fix b")
