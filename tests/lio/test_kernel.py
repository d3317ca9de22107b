# SPDX-License-Identifier: MIT
"""The guest is what the other tests here take it for, and LIO answers in it."""

import ctypes
import errno
import fcntl
import os
import re
from pathlib import Path

import pytest
import rtslib_fb

from tests.vm.machine import RESULTS

SG_IO = 0x2285
SG_DXFER_FROM_DEV = -3
INQUIRY = bytes.fromhex("12 00 00 00 24 00")


class SgIoHeader(ctypes.Structure):
    """struct sg_io_hdr of <scsi/sg.h>."""

    _fields_ = (
        ("interface_id", ctypes.c_int),
        ("dxfer_direction", ctypes.c_int),
        ("cmd_len", ctypes.c_ubyte),
        ("mx_sb_len", ctypes.c_ubyte),
        ("iovec_count", ctypes.c_ushort),
        ("dxfer_len", ctypes.c_uint),
        ("dxferp", ctypes.c_void_p),
        ("cmdp", ctypes.c_void_p),
        ("sbp", ctypes.c_void_p),
        ("timeout", ctypes.c_uint),
        ("flags", ctypes.c_uint),
        ("pack_id", ctypes.c_int),
        ("usr_ptr", ctypes.c_void_p),
        ("status", ctypes.c_ubyte),
        ("masked_status", ctypes.c_ubyte),
        ("msg_status", ctypes.c_ubyte),
        ("sb_len_wr", ctypes.c_ubyte),
        ("host_status", ctypes.c_ushort),
        ("driver_status", ctypes.c_ushort),
        ("resid", ctypes.c_int),
        ("duration", ctypes.c_uint),
        ("info", ctypes.c_uint),
    )


def inquiry(node):
    """Return the standard INQUIRY data of an sg node."""
    data = ctypes.create_string_buffer(36)
    cdb = ctypes.create_string_buffer(INQUIRY, len(INQUIRY))
    header = SgIoHeader(
        interface_id=ord("S"),
        dxfer_direction=SG_DXFER_FROM_DEV,
        cmd_len=len(INQUIRY),
        dxfer_len=len(data),
        dxferp=ctypes.addressof(data),
        cmdp=ctypes.addressof(cdb),
        timeout=20_000,
    )
    with open(node, "rb", buffering=0) as device:
        fcntl.ioctl(device, SG_IO, header)
    assert (header.status, header.host_status, header.resid) == (0, 0, 0)
    return data.raw


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
        data = inquiry(f"/dev/{next(nodes).name}")
    finally:
        target.delete()
        disk.delete()
    assert data[8:16] == b"LIO-ORG "
    assert data[16:32].rstrip() == b"RAMDISK-MCP"


def test_results_reach_the_host():
    assert f" {RESULTS} 9p rw," in Path("/proc/mounts").read_text()
    Path(RESULTS, "smoke").write_text("was here")


def test_the_project_cannot_be_written():
    with pytest.raises(OSError, match="Read-only") as refused:
        Path(__file__).with_name("written").touch()
    assert refused.value.errno == errno.EROFS
