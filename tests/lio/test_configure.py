# SPDX-License-Identifier: MIT
"""Units are configured in a real kernel's LIO, as a whole or not at all, and others' are left."""

import json
import os
import re
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import rtslib_fb
from click.testing import CliRunner

from tests.lio.killed import fork, statuses
from tgt_glue import names, units
from tgt_glue.backing import block_backing, file_backing, pscsi_backing, ramdisk_backing
from tgt_glue.configfs import CONFIGFS, attributes
from tgt_glue.nodes import all_nodes, block_node, sg_node
from tgt_glue.sg import SgDevice, SgNode
from vscsi.cli.lio import lio as lio_command
from vscsi.wire.errors import SetupError

# rtslib's use of pyudev.
pytestmark = pytest.mark.filterwarnings("ignore:Will be removed in 1.0:DeprecationWarning")

MIB = 1 << 20
VOLATILE = {"statistics", "alua", "pr"}
TARGETCTL = Path(sys.executable).with_name("targetctl")
MODULES = ("tcm_loop", "target_core_file", "target_core_iblock", "target_core_pscsi")
RESERVATION_CONFLICT = 0x18
HANG_S = 600


def places():
    """Return all objects in LIO, ours and others'."""
    patterns = ("core/*_*/", "core/*_*/*/", "loopback/naa.*/")
    found = [path for pattern in patterns for path in CONFIGFS.glob(pattern)]
    return {str(path.relative_to(CONFIGFS)) for path in found}


def contents(root=CONFIGFS):
    """Return what every entry of configfs reads as, but for counters and the like."""
    found = {}
    for directory, folders, entries in os.walk(root):
        folders[:] = sorted(set(folders) - VOLATILE)
        for name in entries:
            path = Path(directory, name)
            try:
                found[str(path)] = path.read_text()
            except OSError as error:
                found[str(path)] = error.errno
    return found


@pytest.fixture(autouse=True)
def tidy():
    """Leave LIO as it was found."""
    before = places() if CONFIGFS.is_dir() else set()
    yield
    for unit in units.units():
        units.remove(unit.name, force=True)
    assert places() == before


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(MIB))
    return path


@pytest.fixture
def strangers(tmp_path, modprobe):
    """Others' objects, some of them named to be taken for ours."""
    modprobe("target_core_mod", "tcm_loop", "sg")
    path = tmp_path / "other.img"
    path.write_bytes(bytes(MIB))
    disks = [
        rtslib_fb.FileIOStorageObject("disk", str(path), MIB),
        rtslib_fb.RDMCPStorageObject("vscsi-stranger", MIB),
    ]
    target = rtslib_fb.Target(rtslib_fb.FabricModule("loopback"), "naa.5001405000000002")
    rtslib_fb.LUN(rtslib_fb.TPG(target, 1), 0, disks[0])
    before = contents()
    yield disks
    now = contents()
    assert {path: now.get(path) for path in before} == before
    target.delete()
    for disk in disks:
        disk.delete()


@contextmanager
def loop_device(path):
    subprocess.run(["modprobe", "loop"], check=True)
    found = subprocess.run(
        ["losetup", "--find", "--show", path], check=True, capture_output=True, text=True
    )
    device = found.stdout.strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


@pytest.fixture
def lio():
    """Give a `vscsi lio` order in this process, which is faster; return what it prints."""

    def run(*arguments):
        result = CliRunner().invoke(lio_command, [*map(str, arguments)], catch_exceptions=False)
        assert result.exit_code == 0
        return result.stdout

    return run


def sysfs(hctl, name):
    """Return what the kernel itself asked a unit for."""
    return Path(f"/sys/class/scsi_device/{hctl}/device", name).read_bytes()


def ramdisk(name="a", size=MIB, values=None):
    (unit,) = units.create(name, ramdisk_backing(size), values or {}).units
    return unit


def test_it_loads_and_mounts_what_it_needs_but_no_disk_driver(cli):
    fabric = CONFIGFS / "loopback"
    if fabric.is_dir():  # of whoever used LIO before: it holds tcm_loop
        fabric.rmdir()
    subprocess.run(["modprobe", "--remove", *MODULES, "target_core_user", "sg"], check=True)
    subprocess.run(["umount", "/sys/kernel/config"], check=True)
    with_disks = Path("/sys/module/sd_mod").exists()
    assert cli("lio", "list").stdout == "name  kind  size  state  initiators  on\n"
    done = cli("lio", "create", "a", "--ramdisk", "1M")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("make storage object vscsi-a: ramdisk of 1048576 bytes\n")
    assert re.search(r"\na: host \[\d+:0:1:0\] /dev/sg\d+\n$", done.stdout)
    assert Path("/sys/module/sd_mod").exists() == with_disks


def test_a_new_file_becomes_a_unit_and_a_second_run_changes_nothing(lio, tmp_path):
    path = tmp_path / "new.img"
    order = ("create", "a", "--file", path, "--size", "8M", "--attr", "emulate_tpu=1")
    plan = json.loads(lio(*order, "--dry-run", "--json"))
    assert not path.exists()
    done = json.loads(lio(*order, "--json"))
    assert done["changed"]
    assert plan["steps"] == done["steps"]
    before = contents()
    again = json.loads(lio(*order, "--json"))
    assert (again["changed"], again["steps"]) == (False, [])
    assert contents() == before

    (unit,) = again["units"]
    (host,) = unit["initiators"]
    assert sysfs(host["hctl"], "vendor").strip() == b"LIO-ORG"
    serial = sysfs(host["hctl"], "vpd_pg80")[4:].rstrip(b"\0").decode()
    assert serial == unit["serial"] == names.serial("a")
    (node,) = (node for node in host["nodes"] if node.startswith("/dev/sg"))
    device = SgDevice(SgNode(Path(node)), node)
    capacity = bytearray(8)
    device.execute(b"\x25" + bytes(9), timeout_s=30, into=[memoryview(capacity)], wanted=8)
    device.close()
    assert capacity == (8 * MIB // 512 - 1).to_bytes(4) + (512).to_bytes(4)

    lio("remove", "a")
    assert lio("remove", "a") == "nothing to do\n"
    assert path.stat().st_size == 8 * MIB


def test_attributes_change_and_others_edits_stay(image):
    units.create("a", file_backing(image), {"emulate_tpu": "1"})
    disk = rtslib_fb.FileIOStorageObject("vscsi-a")
    disk.set_attribute("emulate_caw", 0)
    outcome = units.create("a", file_backing(image), {"emulate_tpu": "0"})
    assert outcome.steps == ("set emulate_tpu=0 of a",)
    values = attributes(outcome.units[0].storage)
    assert (values["emulate_tpu"], values["emulate_caw"]) == ("0", "0")


def test_a_write_cache_opens_the_file_for_it(image):
    (unit,) = units.create("a", file_backing(image), {"emulate_write_cache": "1"}).units
    assert unit.storage.buffered
    assert b"Mode: Buffered-WCE" in (unit.storage.path / "info").read_bytes()


def test_a_refusal_tells_the_kernels_reason_and_undoes_all(tmp_path, strangers):
    before = places()
    with pytest.raises(SetupError) as refused:
        ramdisk(values={"emulate_tpu": "1"})
    assert re.search(
        r"^configfs refused to set emulate_tpu=1 of a: .*Function not implemented; "
        r"kernel: Generic Block Discard not supported; see `dmesg`$",
        str(refused.value),
    )
    path = tmp_path / "new.img"
    with pytest.raises(SetupError, match="set attribute nonsense: there is none of that name"):
        units.create("a", file_backing(path, MIB), {"nonsense": "1"})
    assert not path.exists()
    assert places() == before


def test_others_objects_are_never_taken(strangers, image):
    with pytest.raises(SetupError, match="in use: ramdisk/vscsi-stranger was not made by vscsi"):
        ramdisk("stranger")
    with pytest.raises(SetupError, match="busy: LIO's fileio/disk uses it"):
        units.create("a", file_backing(strangers[0].udev_path), {})
    assert units.remove("stranger").steps == ()
    units.create("a", file_backing(image), {})
    assert [unit.name for unit in units.units()] == ["a"]


def test_what_others_made_of_a_unit_keeps_it(modprobe):
    unit = ramdisk()
    target = rtslib_fb.Target(rtslib_fb.FabricModule("loopback"), "naa.5001405000000003")
    rtslib_fb.LUN(rtslib_fb.TPG(target, 1), 0, rtslib_fb.RDMCPStorageObject("vscsi-a"))
    before = contents()
    with pytest.raises(SetupError, match=r"remove a: in use: .*/naa.5001405000000003/tpgt_1/lun/"):
        units.remove("a", force=True)
    assert contents() == before
    target.delete()
    assert units.find("a") == unit


def test_a_full_disk_leaves_no_file(tmp_path):
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4M", "full", tmp_path], check=True)
    try:
        path = tmp_path / "new.img"
        with pytest.raises(SetupError, match=r"reserve 8388608 bytes .*: No space left on device"):
            units.create("a", file_backing(path, 8 * MIB), {})
        assert not path.exists()
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_a_block_device_is_used_unless_it_is_busy(image):
    with loop_device(image) as device:
        with pytest.raises(SetupError, match=f"busy: {device} stands on it"):
            units.create("a", file_backing(image), {})
        descriptor = os.open(device, os.O_RDONLY | os.O_EXCL)
        with pytest.raises(SetupError, match="busy: something has it open for itself alone"):
            units.create("a", block_backing(device), {})
        os.close(descriptor)
        (unit,) = units.create("a", block_backing(device), {}).units
        assert (unit.whole, unit.storage.plugin) == (True, "block")
        assert units.create("a", block_backing(device), {}).steps == ()
        with pytest.raises(SetupError, match="busy: LIO's block/vscsi-a uses it"):
            units.create("b", block_backing(device), {})
        units.remove("a")


def test_a_mounted_device_is_busy(tmp_path):
    path = tmp_path / "ext4.img"
    path.write_bytes(bytes(8 * MIB))
    subprocess.run(["mke2fs", "-q", "-F", path], check=True)
    mount = tmp_path / "mount"
    mount.mkdir()
    with loop_device(path) as device:
        subprocess.run(["mount", device, mount], check=True)
        with pytest.raises(SetupError, match=f"busy: mounted on {mount}; free it first"):
            units.create("a", block_backing(device), {})
        subprocess.run(["umount", mount], check=True)


def test_a_tape_drive_is_passed_through(modprobe):
    modprobe("sg")
    subprocess.run(["modprobe", "scsi_debug", "ptype=1"], check=True)
    try:
        (hctl,) = [
            path.name
            for path in Path("/sys/class/scsi_device").iterdir()
            if sysfs(path.name, "model").strip() == b"scsi_debug"
        ]
        backing = pscsi_backing(hctl)
        (unit,) = units.create("tape", backing, {}).units
        seen = str(unit.attachment("host").hctl)
        assert seen != hctl
        assert (sysfs(seen, "type"), sysfs(seen, "model")) == (b"1\n", sysfs(hctl, "model"))
        assert units.create("tape", backing, {}).steps == ()
        units.remove("tape")
    finally:
        subprocess.run(["modprobe", "--remove", "scsi_debug"], check=True)


def test_a_reservation_of_one_initiator_keeps_another_out():
    ramdisk()
    (unit,) = units.attach("a", "vm1").units
    assert units.attach("a", "vm1").steps == ()
    devices = {}
    for way in unit.attachments:
        node = sg_node(way.hctl)
        devices[way.initiator] = device = SgDevice(SgNode(node), str(node))
        for _ in range(3):  # the unit attentions of a new nexus
            device.execute(bytes(6), timeout_s=30)
    key = (7).to_bytes(8)

    def reserve_out(action, old, new):
        cdb = bytes([0x5F, action, 0x05, 0, 0, 0, 0, 0, 24, 0])  # write exclusive, registrants only
        data = old + new + bytes(8)
        return devices["vm1"].execute(cdb, timeout_s=30, out=[memoryview(data)]).status

    write = b"\x2a" + bytes(7) + b"\x01\x00"
    block = [memoryview(bytes(512))]
    assert devices["host"].execute(write, timeout_s=30, out=block).status == 0
    assert reserve_out(0x00, bytes(8), key) == 0  # REGISTER
    assert reserve_out(0x01, key, bytes(8)) == 0  # RESERVE
    answer = devices["host"].execute(write, timeout_s=30, out=block)
    assert answer.status == RESERVATION_CONFLICT
    assert devices["vm1"].execute(write, timeout_s=30, out=block).status == 0
    registered = (unit.storage.path / "pr/res_pr_registered_i_pts").read_text()
    assert unit.attachment("vm1").nexus in registered
    for device in devices.values():
        device.close()
    outcome = units.detach("a", "vm1")
    assert outcome.steps == ("detach vm1 from a",)
    assert [way.initiator for way in outcome.units[0].attachments] == ["host"]
    assert units.detach("a", "vm1").steps == ()


def test_a_disk_in_use_is_not_taken_away_unless_forced(modprobe):
    (way,) = ramdisk().attachments
    with_disks = Path("/sys/module/sd_mod").exists()
    modprobe("sd_mod")
    node = block_node(way.hctl, timeout_s=60)
    descriptor = os.open(node, os.O_RDONLY | os.O_EXCL)
    for change in (units.detach, lambda *_: units.remove("a")):
        with pytest.raises(SetupError, match=f"device busy: {node} is in use; unmount it"):
            change("a", "host")
    assert node in all_nodes(way.hctl)
    units.detach("a", "host", force=True)
    os.close(descriptor)
    units.remove("a")
    if not with_disks:
        subprocess.run(["modprobe", "--remove", "sd_mod"], check=True)


def test_it_survives_targetctl(image, tmp_path):
    units.create("a", file_backing(image), {"emulate_tpu": "1"})
    units.attach("a", "vm1")
    ramdisk("r")
    before = {unit.name: unit for unit in units.units()}
    saved = tmp_path / "targetctl.json"
    for order in ("save", "clear", "restore"):
        subprocess.run([TARGETCTL, order, saved], check=True, capture_output=True)
    restored = {unit.name: unit for unit in units.units()}
    assert all(unit.whole for unit in restored.values())
    ways = [way for unit in restored.values() for way in unit.attachments]
    assert [way.initiator for way in ways] == ["host", "vm1", "host"]
    assert not any(way.exact_nexus for way in ways)  # rtslib does not save it
    assert units.create("a", file_backing(image), {"emulate_tpu": "1"}).steps == ()

    outcome = units.restore(saved)
    assert set(outcome.steps) == {
        f"{do} {initiator} {where}"
        for do, where in (("detach", "from a"), ("attach", "to a"))
        for initiator in ("host", "vm1")
    } | {"detach host from r", "attach host to r"}
    assert units.restore(saved).steps == ()
    after = {unit.name: unit for unit in units.units()}
    for name, unit in before.items():
        assert after[name].storage.serial == unit.storage.serial
        assert [(way.target, way.nexus) for way in after[name].attachments] == [
            (way.target, way.nexus) for way in unit.attachments
        ]
    assert attributes(after["a"].storage)["emulate_tpu"] == "1"


def test_what_is_saved_comes_back_beside_what_others_have(lio, strangers, image, tmp_path):
    units.create("a", file_backing(image), {"emulate_tpu": "1"})
    units.attach("a", "vm1")
    ramdisk("r")
    before = contents()
    saved = tmp_path / "ours.json"
    assert lio("save", saved) == f"saved to {saved}: a r\n"
    assert saved.stat().st_mode & 0o777 == 0o600
    assert "disk" not in {each["name"] for each in json.loads(saved.read_text())["storage_objects"]}
    for name in ("a", "r"):
        units.remove(name)
    plan = lio("restore", saved, "--dry-run")
    assert "would attach vm1 to a" in plan
    lio("restore", saved)
    now = contents()
    moved = {path for path in before if before[path] != now.get(path)}
    # Host numbers are new; ramdisk and file are the same.
    assert {Path(path).name for path in moved} <= {"address", "hba_info"}
    assert units.restore(saved).steps == ()


def test_a_restore_that_fails_brings_nothing_back(image, tmp_path):
    ramdisk("r")
    units.create("a", file_backing(image), {})
    saved = tmp_path / "ours.json"
    units.save(saved)
    document = json.loads(saved.read_text())
    document["storage_objects"].reverse()
    for each in document["storage_objects"]:
        if each["plugin"] == "ramdisk":
            each["attributes"]["emulate_tpu"] = 1
    saved.write_text(json.dumps(document))
    for name in ("a", "r"):
        units.remove(name)
    before = places()
    with pytest.raises(SetupError, match="Generic Block Discard not supported"):
        units.restore(saved)
    assert places() == before


def test_stock_targetcli_shows_and_edits_a_unit(image):
    units.create("a", file_backing(image), {})
    if not Path("/run/dbus/system_bus_socket").exists():
        Path("/run/dbus").mkdir(exist_ok=True)
        subprocess.run(["dbus-daemon", "--system", "--fork"], check=True)

    def targetcli(*orders):
        """Give orders to one shell: it takes seconds to start."""
        return subprocess.run(
            "targetcli",
            input="\n".join([*orders, "exit\n"]),
            check=True,
            capture_output=True,
            text=True,
            timeout=HANG_S,
        ).stdout

    shown = targetcli("ls", "/backstores/fileio/vscsi-a set attribute emulate_tpu=1")
    assert f"vscsi-a .... [{image} (1.0MiB) write-thru activated]" in re.sub(
        r"\.{4,}", "....", shown
    )
    assert names.target_wwn("a", "host") in shown
    assert names.nexus_wwn(names.target_wwn("a", "host")) in shown
    unit = units.find("a")
    assert unit.whole
    assert attributes(unit.storage)["emulate_tpu"] == "1"
    targetcli(f"/loopback/{names.target_wwn('a', 'host')}/luns delete 0")
    assert units.find("a").shells == (f"loopback/{names.target_wwn('a', 'host')}",)
    assert units.create("a", file_backing(image), {}).units[0].whole


@pytest.mark.parametrize("by_name", [False, True])
def test_what_is_left_when_others_delete_a_storage_object_can_be_removed(lio, image, by_name):
    units.create("a", file_backing(image), {})
    rtslib_fb.FileIOStorageObject("vscsi-a").delete()
    place = f"loopback/{names.target_wwn('a', 'host')}"
    (left,) = json.loads(lio("list", "--json"))
    assert (left["name"], left["whole"], left["left_over"]) == (place, False, [place])
    assert lio("remove", "a" if by_name else place) == f"remove half-made {place}\n"
    assert units.units() == []


def test_not_root_is_told():
    os.seteuid(65534)
    try:
        with pytest.raises(SetupError, match=r"configure LIO in .*: not root; run it with sudo"):
            units.create("a", ramdisk_backing(MIB), {})
    finally:
        os.seteuid(0)


def test_a_missing_module_is_named(image):
    subprocess.run(["modprobe", "--remove", "target_core_iblock"], check=True)
    command = Path(sys.executable).with_name("vscsi")
    with loop_device(image) as device:
        done = subprocess.run(
            [
                *("unshare", "--mount", "sh", "-c"),
                'mount -t tmpfs none /lib/modules && exec "$@"',
                *("sh", command, "lio", "create", "a", "--block", device),
            ],
            capture_output=True,
            text=True,
            check=False,
            timeout=HANG_S,
        )
    assert done.returncode == 2
    release = os.uname().release
    assert re.fullmatch(
        rf"vscsi: modprobe target_core_iblock: .*; install the modules of kernel {release} .*\n",
        done.stderr,
    )


def test_commands_at_the_same_time_wait_for_each_other():
    children = [fork(lambda name=name: ramdisk(name)) for name in "abcd"]
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0, 0]
    assert [(unit.name, unit.whole) for unit in units.units()] == [(name, True) for name in "abcd"]


def test_a_command_killed_while_it_makes_leaves_what_can_be_listed_and_removed(image):
    backing = file_backing(image)
    nothing = places()

    def make():
        units.create("a", backing, {"emulate_tpu": "1"})

    for _ in statuses(make, prepare=lambda: None):
        left = places() - nothing
        listed = units.units()
        assert bool(listed) == bool(left)
        for unit in listed:
            units.remove(unit.name)
        assert places() == nothing
    units.remove("a")


def test_a_command_killed_while_it_makes_can_be_given_again(image):
    def make():
        units.create("a", file_backing(image), {"emulate_tpu": "1"})

    for _ in statuses(make, prepare=lambda: units.remove("a")):
        make()
        (unit,) = units.units()
        assert unit.whole
        assert [way.initiator for way in unit.attachments] == ["host"]


def test_a_command_killed_while_it_removes_can_be_given_again(image):
    nothing = places()

    def make():
        units.create("a", file_backing(image), {})
        units.attach("a", "vm1")

    for _ in statuses(lambda: units.remove("a"), prepare=make):
        units.remove("a")
        assert places() == nothing
