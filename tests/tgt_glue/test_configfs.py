# SPDX-License-Identifier: MIT
"""Whose is what in a configfs tree, and what is half made."""

import os

import pytest

from tgt_glue import names
from tgt_glue.configfs import attributes, read_state, registered
from tgt_glue.nodes import Hctl
from vscsi.wire.errors import SetupError

FILEIO_INFO = """Status: {status}  Max Queue Depth: 0  SectorSize: 512  HwMaxSectors: 16384
        TCM FILEIO ID: 0        File: {device}  Size: {size}  Mode: {mode} Async: 0
"""
RAMDISK_INFO = """Status: {status}  Max Queue Depth: 0  SectorSize: 512  HwMaxSectors: 4294967288
        TCM RamDisk ID: 0  RamDisk Makeup: rd_mcp
        PAGES/PAGE_SIZE: {pages}*4096  SG_table_count: 1  nullio: 0 dummy: 0
"""


class Tree:
    """Makes objects as the kernel would show them."""

    def __init__(self, root):
        self.root = root
        (root / "core").mkdir(parents=True)

    def storage(
        self,
        name,
        *,
        hba="fileio_524289",
        device="/srv/disk.img",
        size=1 << 20,
        serial=None,
        enabled=True,
        mode="O_DSYNC",
        **attributes,
    ):
        """Make a storage object; `serial`: that of the unit, unless given."""
        path = self.root / "core" / hba / name
        (path / "attrib").mkdir(parents=True)
        (path / "wwn").mkdir()
        (path.parent / "hba_info").write_text("HBA Index: 1 plugin: x version: v5.0\n")
        if serial is None:
            serial = names.serial(names.unit_name(name) or name)
        status = "ACTIVATED" if enabled else "DEACTIVATED"
        form = RAMDISK_INFO if hba.startswith("rd_mcp") else FILEIO_INFO
        path.joinpath("info").write_text(
            form.format(status=status, device=device, size=size, mode=mode, pages=size // 4096)
        )
        path.joinpath("udev_path").write_text(f"{device}\n" if device else "")
        path.joinpath("enable").write_text(f"{int(enabled)}\n")
        path.joinpath("wwn/vpd_unit_serial").write_text(f"T10 VPD Unit Serial Number: {serial}\n")
        for key, value in attributes.items():
            path.joinpath("attrib", key).write_text(f"{value}\n")
        return path

    def target(self, wwn, *, fabric="loopback", nexus=None, address="3:0:1", tag=1):
        """Make a target with a target port group; `nexus`: the one that we give, unless given."""
        group = self.root / fabric / wwn / f"tpgt_{tag}"
        (group / "lun").mkdir(parents=True)
        nexus = names.nexus_wwn(wwn) if nexus is None else nexus
        group.joinpath("nexus").write_text(f"{nexus}\n")
        group.joinpath("address").write_text(f"{address}\n")
        return group

    def lun(self, group, storage, alias, number=0):
        """Make a LUN of a storage object."""
        directory = group / "lun" / f"lun_{number}"
        directory.mkdir()
        (directory / alias).symlink_to(storage)
        return directory

    def attach(self, name, storage, initiator, **options):
        """Make what attaches an initiator."""
        group = self.target(names.target_wwn(name, initiator), **options)
        self.lun(group, storage, initiator)
        return group


@pytest.fixture
def tree(tmp_path):
    """An empty tree."""
    return Tree(tmp_path / "target")


def test_without_lio_there_is_nothing(tmp_path):
    state = read_state(tmp_path / "none")
    assert (state.units, state.others) == ({}, ())


def test_a_whole_unit_is_read(tree):
    storage = tree.storage("vscsi-a", device="/srv/a b.img", size=8 << 20, emulate_tpu=1)
    tree.attach("a", storage, "host", address="5:0:1")
    tree.attach("a", storage, "vm1", address="6:0:1")
    unit = read_state(tree.root).units["a"]
    assert unit.whole
    assert unit.storage.title == "fileio/vscsi-a"
    assert (unit.storage.device, unit.storage.size_bytes) == ("/srv/a b.img", 8 << 20)
    assert [each.initiator for each in unit.attachments] == ["host", "vm1"]
    assert [each.hctl for each in unit.attachments] == [Hctl(5, 0, 1, 0), Hctl(6, 0, 1, 0)]
    assert all(each.exact_nexus for each in unit.attachments)
    assert (unit.shells, unit.users) == ((), ())
    assert attributes(unit.storage) == {"emulate_tpu": "1"}


def test_a_ramdisk_tells_its_size_in_pages(tree):
    tree.storage("vscsi-r", hba="rd_mcp_524290", device="", size=64 << 10)
    storage = read_state(tree.root).units["r"].storage
    assert (storage.plugin, storage.size_bytes, storage.device) == ("ramdisk", 64 << 10, "")


def test_a_file_with_a_write_cache_is_seen(tree):
    tree.storage("vscsi-a", mode="Buffered-WCE")
    assert read_state(tree.root).units["a"].storage.buffered


@pytest.mark.parametrize(
    ("name", "serial"),
    [
        ("disk", "6f1d8a52-5f0e-5c55-9d5c-7673637369ff"),
        ("vscsi-a", "6f1d8a52-5f0e-5c55-9d5c-7673637369ff"),  # our name, another's serial number
        ("vscsi-a b", ""),
    ],
)
def test_what_others_made_is_not_ours(tree, name, serial):
    storage = tree.storage(name, serial=serial)
    tree.attach("a", storage, "host")
    state = read_state(tree.root)
    assert not state.units
    assert [each.path for each in state.others] == [storage]


def test_a_passed_through_device_has_its_own_serial_number(tree):
    tree.storage("vscsi-t", hba="pscsi_524290", device="/dev/st0", serial="XYZ 1")
    assert read_state(tree.root).units["t"].whole


@pytest.mark.parametrize("options", [{"enabled": False, "serial": ""}, {"serial": ""}])
def test_a_storage_object_that_was_not_finished_is_half_made(tree, options):
    tree.storage("vscsi-a", **options)
    unit = read_state(tree.root).units["a"]
    assert not unit.whole
    assert not unit.storage.complete


def test_a_target_without_lun_is_a_leftover_of_the_unit_that_its_name_tells(tree):
    tree.storage("vscsi-a")
    wwn = names.target_wwn("a", "vm1")
    (tree.root / "loopback" / wwn).mkdir(parents=True)
    unit = read_state(tree.root).units["a"]
    assert unit.shells == (f"loopback/{wwn}",)
    assert not unit.whole


def test_leftovers_without_their_storage_object_are_found_by_the_name_asked_for(tree):
    wwn = names.target_wwn("a", "vm1")
    tree.target(wwn, nexus="naa.5001405999999999")  # made up by `targetctl restore`
    assert read_state(tree.root).units == {}
    unit = read_state(tree.root, asked=["a", "b"]).units["a"]
    assert unit.shells == (f"loopback/{wwn}",)


def test_a_target_whose_nexus_is_ours_is_listed_even_if_nothing_else_is_left(tree):
    wwn = names.target_wwn("a", "vm1")
    tree.target(wwn)
    state = read_state(tree.root)
    assert state.units[f"loopback/{wwn}"].shells == (f"loopback/{wwn}",)
    assert set(read_state(tree.root, asked=["a"]).units) == {"a"}


def test_an_empty_backstore_with_our_number_is_a_leftover(tree):
    own = tree.root / "core" / f"fileio_{names.hba_index('a')}"
    other = tree.root / "core" / f"rd_mcp_{names.HBA_BASE}"
    for path in (own, other, tree.root / "core" / "fileio_0"):
        path.mkdir()
        (path / "hba_info").write_text("")
    state = read_state(tree.root, asked=["a"])
    assert state.units["a"].shells == (f"core/{own.name}",)
    assert state.units[f"core/{other.name}"].shells == (f"core/{other.name}",)
    assert len(state.units) == 2


def test_luns_that_others_made_of_our_objects_are_seen(tree):
    storage = tree.storage("vscsi-a")
    other = tree.storage("disk", hba="fileio_0", serial="x")
    ours = tree.attach("a", storage, "host")
    iscsi = tree.target("iqn.2003-01.org.x:sn.1", fabric="iscsi", nexus="")
    users = {tree.lun(iscsi, storage, "0123456789"), tree.lun(ours, other, "abc", number=1)}
    assert set(read_state(tree.root).units["a"].users) == users


def test_a_target_of_our_name_with_anothers_lun_is_left_alone(tree):
    tree.storage("vscsi-a")
    other = tree.storage("disk", hba="fileio_0", serial="x")
    tree.lun(tree.target(names.target_wwn("a", "host")), other, "host")
    unit = read_state(tree.root).units["a"]
    assert (unit.attachments, unit.shells, unit.users) == ((), (), ())


def test_a_nexus_that_was_made_up_is_told(tree):
    storage = tree.storage("vscsi-a")
    tree.attach("a", storage, "host", nexus="naa.5001405999999999")
    (attachment,) = read_state(tree.root).units["a"].attachments
    assert not attachment.exact_nexus


def test_what_may_not_be_read_says_so(tree, monkeypatch):
    path = tree.storage("vscsi-a")
    real = type(path).read_text

    def refuse(self, *arguments, **options):
        if self.name == "info":
            raise PermissionError(13, os.strerror(13), str(self))
        return real(self, *arguments, **options)

    monkeypatch.setattr(type(path), "read_text", refuse)
    with pytest.raises(SetupError, match="Permission denied; run it as root"):
        read_state(tree.root)


def test_who_is_registered_is_known_unless_it_takes_more_than_a_page(tree):
    tree.storage("vscsi-a")
    storage = read_state(tree.root).units["a"].storage
    assert registered(storage) is None  # it is just leaving
    entry = storage.path / "pr/res_pr_registered_i_pts"
    entry.parent.mkdir()
    entry.write_text("SPC-3 PR Registrations:\nNone\n")
    assert registered(storage) == frozenset()
    line = "{} Node: {}{} Key: 0x0000000000000001 PRgen: 0x00000001\n"
    lines = [
        line.format("loopback", "naa.5001405123456789", ""),
        line.format("iSCSI", "iqn.2026-01.org.example:a", ",i,0x00023d000001"),
    ]
    entry.write_text("SPC-3 PR Registrations:\n" + "".join(lines))
    assert registered(storage) == {"naa.5001405123456789", "iqn.2026-01.org.example:a"}
    entry.write_text("SPC-3 PR Registrations:\n" + lines[0] * 46)
    assert registered(storage) is None
