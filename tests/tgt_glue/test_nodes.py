# SPDX-License-Identifier: MIT
"""Device nodes are found by sysfs, and only where their numbers agree."""

import threading

import pytest

from tgt_glue import nodes
from tgt_glue.nodes import Hctl, all_nodes, block_node, device_type, hctl_of, sg_node
from vscsi.wire.errors import SetupError

UNIT = Hctl(3, 0, 1, 0)


@pytest.fixture
def sysfs(tmp_path, monkeypatch):
    """A fake sysfs with one unit; its nodes are /dev/null (1:3) and /dev/zero (1:5)."""
    root = tmp_path / "sys"
    device = root / "class/scsi_device/3:0:1:0/device"
    device.mkdir(parents=True)
    (device / "type").write_text("0\n")
    monkeypatch.setattr(nodes, "SYSFS", root)
    return root


def add(sysfs, kind, name, number):
    entry = sysfs / "class/scsi_device/3:0:1:0/device" / kind / name
    entry.mkdir(parents=True)
    (entry / "dev").write_text(f"{number}\n")


def test_nodes_are_those_that_sysfs_names(sysfs):
    add(sysfs, "scsi_generic", "null", "1:3")
    add(sysfs, "block", "zero", "1:5")
    assert str(sg_node(UNIT)) == "/dev/null"
    assert str(block_node(UNIT)) == "/dev/zero"
    assert [str(node) for node in all_nodes(UNIT)] == ["/dev/null", "/dev/zero"]
    assert device_type(UNIT) == 0


def test_a_node_with_another_number_is_not_taken(sysfs):
    add(sysfs, "scsi_generic", "null", "21:3")
    with pytest.raises(SetupError, match="scsi_generic node of unit 3:0:1:0: it has none"):
        sg_node(UNIT)


def test_a_node_that_comes_late_is_waited_for(sysfs):
    later = threading.Timer(0.05, add, (sysfs, "block", "zero", "1:5"))
    later.start()
    assert str(block_node(UNIT, timeout_s=60)) == "/dev/zero"
    later.join()


def test_without_a_disk_driver_there_is_no_block_node(sysfs):
    with pytest.raises(SetupError, match="`modprobe sd_mod`"):
        block_node(UNIT)


def test_a_unit_that_left_has_nothing(sysfs):
    gone = Hctl(4, 0, 1, 0)
    with pytest.raises(SetupError, match="find unit 4:0:1:0: it is not there"):
        sg_node(gone)
    assert all_nodes(gone) == []
    assert device_type(gone) is None


def test_the_unit_behind_a_node_is_found(sysfs):
    (sysfs / "dev/char/1:3").mkdir(parents=True)
    (sysfs / "devices/3:0:1:0").mkdir(parents=True)
    (sysfs / "dev/char/1:3/device").symlink_to(sysfs / "devices/3:0:1:0")
    assert hctl_of("/dev/null") == UNIT
    assert hctl_of("/dev/zero") is None


@pytest.mark.parametrize("text", ["", "1:2:3", "1:2:3:4:5", "a:0:0:0", "-1:0:0:0", "1:0:0:²"])
def test_what_is_no_address_is_none(text):
    assert Hctl.parse(text) is None
    assert str(Hctl.parse("1:2:3:4")) == "1:2:3:4"
