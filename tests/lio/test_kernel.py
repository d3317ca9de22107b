# SPDX-License-Identifier: MIT
"""The guest is what the other tests here take it for, and LIO answers in it."""

import errno
import os
import re
from pathlib import Path

import pytest
import rtslib_fb

from tests.lio.sg_io import read_by
from tests.vm.machine import RESULTS

INQUIRY = bytes.fromhex("12 00 00 00 24 00")


def test_the_kernel_is_debians_own():
    assert re.fullmatch(r"\d+\.\d+\.\d+-\d+-amd64", os.uname().release)
    assert "debian-kernel@lists.debian.org" in Path("/proc/version").read_text()


def test_configfs_is_mounted():
    assert "configfs /sys/kernel/config configfs" in Path("/proc/mounts").read_text()


@pytest.mark.parametrize(
    "module",
    [
        "target_core_mod",
        "target_core_file",
        "target_core_iblock",
        "target_core_pscsi",
        "target_core_user",
        "tcm_loop",
        "sg",
    ],
)
def test_a_module_that_the_glue_needs_loads(module, modprobe):
    modprobe(module)
    assert Path("/sys/module", module).is_dir()


def test_scsi_debug_could_be_loaded(modprobe):
    modprobe("--dry-run", "scsi_debug")


def test_lio_answers_through_an_sg_node(modprobe):
    modprobe("target_core_mod", "tcm_loop", "sg")
    disk = rtslib_fb.RDMCPStorageObject("smoke", size=1 << 20)
    target = rtslib_fb.Target(rtslib_fb.FabricModule("loopback"), "naa.5001405000000001")
    try:
        portal = rtslib_fb.TPG(target, 1)
        rtslib_fb.LUN(portal, 0, disk)
        address = Path(portal.path, "address").read_text().strip()
        nodes = Path(f"/sys/class/scsi_device/{address}:0/device/scsi_generic").iterdir()
        answer = read_by(f"/dev/{next(nodes).name}", INQUIRY, 36)
    finally:
        target.delete()
        disk.delete()
    assert (answer.status, answer.host_status, answer.residual) == (0, 0, 0)
    assert answer.data[8:16] == b"LIO-ORG "
    assert answer.data[16:32].rstrip() == b"RAMDISK-MCP"


def test_results_reach_the_host():
    assert f" {RESULTS} 9p rw," in Path("/proc/mounts").read_text()
    Path(RESULTS, "smoke").write_text("was here")


def test_the_project_cannot_be_written():
    with pytest.raises(OSError, match="Read-only") as refused:
        Path(__file__).with_name("written").touch()
    assert refused.value.errno == errno.EROFS
