# SPDX-License-Identifier: MIT
"""`vscsi serve --lio`: a unit of a real kernel's LIO over all three rings."""

import json
import os
import re
import signal
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from click.testing import CliRunner

import vscsi
from tests.conftest import COMMAND
from tgt_glue import units
from tgt_glue.backing import block_backing, file_backing, ramdisk_backing
from tgt_glue.configfs import CONFIGFS
from tgt_glue.nodes import sg_node
from tgt_glue.sg import SgDevice, SgNode
from vscsi.cli.main import vscsi as command
from vscsi.target.base import Status
from vscsi.transport.hba import ScsiError
from vscsi.transport.initiator import TransportError
from vscsi.wire.cdb import build
from vscsi.wire.errors import SetupError

# rtslib's use of pyudev.
pytestmark = pytest.mark.filterwarnings("ignore:Will be removed in 1.0:DeprecationWarning")

MIB = 1 << 20
BLOCK = 512
BOUND_S = 60
"""In which outstanding commands of a unit that has left must have ended: far beyond any timeout."""
KEYS = [number.to_bytes(8, "big") for number in (0x11, 0x22)]
WRITE_EXCLUSIVE = 1


@pytest.fixture(autouse=True)
def tidy(modprobe):
    """Leave nothing of ours in LIO; nobody loads sd_mod but the test that means it."""
    modprobe("target_core_mod", "target_core_file", "tcm_loop", "sg")
    yield
    for unit in units.units():
        units.remove(unit.name, force=True)
    assert not list(CONFIGFS.glob("loopback/naa.*"))


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(8 * MIB))
    return path


@pytest.fixture
def unit(image):
    """A unit on a file, called a."""
    (made,) = units.create("a", file_backing(image), {}).units
    return made


@pytest.fixture
def verb():
    """Give an order in this process, which is faster; return what it prints."""

    def run(*arguments):
        result = CliRunner().invoke(command, [*map(str, arguments)], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout

    return run


@pytest.fixture
def run(tmp_path):
    return tmp_path / "run"


def initiators():
    """Return who is attached to unit a."""
    return [each.initiator for each in units.find("a").attachments]


def read_by_sg(unit, lba, blocks):
    """Read through LIO's own node, past our rings."""
    node = sg_node(unit.attachment("host").hctl)
    device = SgDevice(SgNode(node), str(node))
    data = bytearray(blocks * BLOCK)
    cdb = build("READ(10)", lba=lba, blocks=blocks)
    for _ in range(3):  # unit attentions
        answer = device.execute(cdb, timeout_s=30, into=[memoryview(data)], wanted=len(data))
        if answer.status == Status.GOOD:
            break
    device.close()
    assert (answer.status, answer.arrived) == (0, len(data))
    return bytes(data)


def reserve(hba, action, key=bytes(8), new_key=bytes(8)):
    """Send a PERSISTENT RESERVE OUT; return its status."""
    parameters = key + new_key + bytes(8)
    scope = {} if action.startswith("REGISTER") else {"type": WRITE_EXCLUSIVE}
    cdb = build(f"PERSISTENT RESERVE OUT {action}", parameter_list_length=24, **scope)
    return hba.command(hba.lun(0), cdb, data_out=parameters).status


# What it says.


def test_the_unit_introduces_itself_as_lio(verb, start, unit, run):
    server = start("serve", "--lio", "a", "--dir", run)
    line = r"  LUN 0  lio:a +8 MiB  512-byte blocks  writable  fileio on /.*/disk\.img\n"
    assert any(re.fullmatch(line, each) for each in server.output)
    for kind in ("srp", "vscsiif"):
        assert "LIO-ORG" in verb("ls", f"{kind}:{run}")
        assert unit.storage.serial in verb("inq", f"{kind}:{run}")
    assert server.end(signal.SIGTERM) == (0, "")
    assert initiators() == ["host"]


def test_images_and_units_are_served_together_and_new_ones_leave_with_the_server(start, run, image):
    units.create("a", ramdisk_backing(4 * MIB), {})
    server = start(
        *("serve", "memory:2M", "--lio", "a", "--lio-new", f"file:{image}"),
        *("--lio-new", "ramdisk:1M", "--dir", run, "--json"),
        wait_on="{",
    )
    told = json.loads(server.ready)["units"]
    names = ["memory:2M", "lio:a", "lio:disk.img", "lio:ramdisk-1M"]
    assert [each["image"] for each in told] == names
    with vscsi.connect(f"srp:{run}") as hba:
        vendors = [hba.lun(number).inquiry().vendor for number in range(4)]
        sizes = [hba.lun(number).capacity().blocks * BLOCK for number in range(4)]
        hba.lun(2).write(3, b"\x33" * BLOCK)
    assert [vendor.strip() == b"LIO-ORG" for vendor in vendors] == [False, True, True, True]
    assert sizes == [2 * MIB, 4 * MIB, 8 * MIB, MIB]
    assert server.end(signal.SIGTERM) == (0, "")
    assert [each.name for each in units.units()] == ["a"]
    assert image.read_bytes()[3 * BLOCK : 4 * BLOCK] == b"\x33" * BLOCK


def test_a_new_unit_takes_no_others_name(cli, unit, run, image):
    (made,) = units.create("ramdisk-1M", ramdisk_backing(MIB), {}).units
    refused = cli("serve", "--lio-new", "ramdisk:1M", "--dir", run)
    assert refused.returncode == 2
    assert "make unit ramdisk-1M: there is one of that name" in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert units.find("ramdisk-1M") == made


def test_a_unit_that_is_not_there_is_not_served(cli, unit, run):
    units.remove("a")
    refused = cli("serve", "--lio", "a", "--dir", run)
    assert refused.returncode == 2
    assert refused.stderr == "vscsi: find unit a: there is none; `vscsi lio list`\n"


# One disk, three ways.


def test_what_srp_writes_blkif_and_lio_itself_read(start, unit, run, image):
    start("serve", "--lio", "a", "--dir", run)
    data = os.urandom(64 * BLOCK)
    with vscsi.connect(f"srp:{run}") as srp, vscsi.connect(f"blkif:{run}") as blkif:
        srp.lun(0).write(7, data)
        assert blkif.lun(0).read(7, 64) == data
        assert read_by_sg(unit, 7, 64) == data
        assert image.read_bytes()[7 * BLOCK : 71 * BLOCK] == data
        blkif.lun(0).write(1000, data)
        assert srp.lun(0).read(1000, 64) == data
        assert blkif.lun(0).capacity().blocks == srp.lun(0).capacity().blocks
    with vscsi.connect(f"vscsiif:{run}") as hba:
        assert hba.lun(0).read(7, 64) == data


def test_blkif_ends_where_lios_part_of_a_file_ends(start, image, run):
    units.create("a", file_backing(image, MIB), {})
    start("serve", "--lio", "a", "--dir", run)
    with vscsi.connect(f"blkif:{run}") as hba:
        assert hba.lun(0).capacity().blocks * BLOCK == MIB


def test_a_ramdisk_has_a_vbd_if_the_kernel_makes_it_a_disk(start, run, modprobe):
    modprobe("--remove", "sd_mod")
    units.create("a", ramdisk_backing(4 * MIB), {})
    server = start("serve", "--lio", "a", "--dir", run)
    (line,) = (line for line in server.output if "no vbd" in line)
    assert "`modprobe sd_mod`" in line
    with pytest.raises((TransportError, SetupError)):
        vscsi.connect(f"blkif:{run}").close()
    assert server.end(signal.SIGTERM) == (0, "")

    modprobe("sd_mod")
    try:
        server = start("serve", "--lio", "a", "--dir", run)
        assert not any("no vbd" in line for line in server.output)
        data = os.urandom(8 * BLOCK)
        with vscsi.connect(f"srp:{run}") as srp, vscsi.connect(f"blkif:{run}") as blkif:
            assert blkif.lun(0).read(16, 8) == bytes(8 * BLOCK)
            srp.lun(0).write(16, data)
            assert blkif.lun(0).read(16, 8) == data
        assert server.end(signal.SIGTERM) == (0, "")
    finally:
        units.remove("a", force=True)
        modprobe("--remove", "sd_mod")


# Ends.


def test_a_killed_server_leaves_what_list_shows_and_remove_takes(verb, start, unit, run):
    server = start("serve", "--lio", "a", "--dir", run)
    with vscsi.connect(f"srp:{run}") as hba:
        futures = [
            hba.start(hba.lun(0), build("READ(10)", lba=0, blocks=8), data_in=4096)
            for _ in range(32)
        ]
        server.process.send_signal(signal.SIGKILL)
        for future in futures:
            assert future.exception(BOUND_S) is None or isinstance(
                future.exception(BOUND_S), TransportError
            )
        server.process.wait(BOUND_S)
    (left,) = json.loads(verb("lio", "list", "--json"))
    assert (left["name"], left["whole"], left["left_over"]) == ("a", True, [])
    loopbacks = {path.name for path in CONFIGFS.glob("loopback/naa.*")}
    assert {each["target"] for each in left["initiators"]} == loopbacks
    assert len(loopbacks) == 2  # the host's, and that of the initiator that was connected
    again = start("serve", "--lio", "a", "--dir", run)
    with vscsi.connect(f"srp:{run}") as hba:
        assert hba.lun(0).read(0, 8) == bytes(4096)
    assert again.end(signal.SIGTERM) == (0, "")
    verb("lio", "remove", "a")
    assert json.loads(verb("lio", "list", "--json")) == []
    assert not list(CONFIGFS.glob("loopback/naa.*"))


def test_a_unit_that_leaves_ends_its_commands_in_bounded_time(start, unit, run):
    server = start("serve", "--lio", "a", "--dir", run)
    with vscsi.connect(f"srp:{run}") as srp, vscsi.connect(f"vscsiif:{run}") as vscsiif:
        assert vscsiif.lun(0).read(0, 8) == bytes(4096)
        futures = []
        for hba in (srp, vscsiif):
            futures += [
                hba.start(hba.lun(0), build("READ(10)", lba=0, blocks=8), data_in=4096)
                for _ in range(8)
            ]
        units.remove("a")
        for future in futures:
            future.exception(BOUND_S)
        for hba in (srp, vscsiif):
            with pytest.raises((TransportError, ScsiError)):
                hba.lun(0).read(0, 8)
    status, errors = server.end(signal.SIGTERM)
    assert status == 0, errors


def test_two_domains_hold_reservations_against_each_other(start, unit, run):
    start("serve", "--lio", "a", "--dir", run)
    with vscsi.connect(f"srp:{run}") as one, vscsi.connect(f"srp:{run}") as other:
        assert len(initiators()) == 3
        for hba, key in zip((one, other), KEYS, strict=True):
            assert hba.lun(0).capacity().blocks  # past unit attentions
            assert reserve(hba, "REGISTER", new_key=key) is Status.GOOD
        assert reserve(one, "RESERVE", KEYS[0]) is Status.GOOD
        assert reserve(other, "RESERVE", KEYS[1]) is Status.RESERVATION_CONFLICT
        write = build("WRITE(10)", lba=0, blocks=1)
        assert other.command(other.lun(0), write, data_out=b"\x22" * BLOCK).status is (
            Status.RESERVATION_CONFLICT
        )
        assert one.command(one.lun(0), write, data_out=b"\x11" * BLOCK).status is Status.GOOD
        assert other.lun(0).read(0, 1) == b"\x11" * BLOCK
        assert reserve(one, "RELEASE", KEYS[0]) is Status.GOOD
        assert other.command(other.lun(0), write, data_out=b"\x22" * BLOCK).status is Status.GOOD
        assert reserve(other, "RESERVE", KEYS[1]) is Status.GOOD
        assert one.command(one.lun(0), write, data_out=b"\x11" * BLOCK).status is (
            Status.RESERVATION_CONFLICT
        )


# What comes, goes and grows.


def hang_up(server, line):
    """Send SIGHUP and wait until the server says what it came to."""
    server.process.send_signal(signal.SIGHUP)
    return server.wait_for(f"vscsi serve: {line}", "stderr")


def attention(hba):
    """Return what TEST UNIT READY is told first that is no news of our own nexus."""
    for _ in range(8):
        sense = hba.command(hba.lun(0), build("TEST UNIT READY")).decoded_sense
        if sense is None:
            return ""
        if sense.asc != 0x29:
            return f"{sense.key:x}/{sense.asc:02x}/{sense.ascq:02x}"
    return "no end"


def is_there(hba, number):
    try:
        hba.lun(number).capacity()
    except (TransportError, ScsiError):
        return False
    return True


def wait_until(holds):
    end = time.monotonic() + BOUND_S
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_units_that_come_and_go_reach_every_ring(start, unit, run, image):
    server = start("serve", "--lio", "?", "--dir", run)
    with vscsi.connect(f"srp:{run}") as srp, vscsi.connect(f"vscsiif:{run}") as vscsiif:
        both = (srp, vscsiif)
        assert [attention(hba) for hba in both] == ["", ""]
        units.create("b", ramdisk_backing(2 * MIB), {})
        units.create("other", ramdisk_backing(MIB), {})
        assert hang_up(server, "LUN 1").endswith(" (lio:b): 2 MiB ramdisk\n")
        assert [attention(hba) for hba in both] == ["6/3f/0e", "6/3f/0e"]
        assert len(srp.report_luns()) == 2
        wait_until(lambda: is_there(vscsiif, 1))  # the handshake is over
        data = os.urandom(BLOCK)
        srp.lun(1).write(9, data)
        assert vscsiif.lun(1).read(9, 1) == data

        units.remove("b")
        assert hang_up(server, "LUN 1").endswith(" (lio:b) is gone\n")
        assert [attention(hba) for hba in both] == ["6/3f/0e", "6/3f/0e"]
        assert not any(is_there(hba, 1) for hba in both)

        # Under the same name it has the same number, also if nobody looked in between.
        copy = image.with_name("copy.img")
        copy.write_bytes(bytes(MIB))
        units.create("b", file_backing(copy), {})
        assert hang_up(server, "LUN 1").endswith(
            f"(lio:b): 1 MiB 512-byte blocks writable fileio on {copy}\n"
        )
        with vscsi.connect(f"blkif:{run}?disk=1") as blkif:
            blkif.lun(0).write(5, data)
            assert srp.lun(1).read(5, 1) == data
            units.remove("b")
            units.create("b", ramdisk_backing(2 * MIB), {})
            hang_up(server, "LUN 1 (lio:b) is gone")
            server.wait_for("vscsi serve: LUN 1 (lio:b): 2 MiB", "stderr")
            with pytest.raises(TransportError):
                blkif.lun(0).read(5, 1)
        assert srp.lun(1).read(5, 1) == bytes(BLOCK)
        assert srp.lun(0).read(0, 1) == bytes(BLOCK)
    status, errors = server.end(signal.SIGTERM)
    assert status == 0, errors
    assert {each.initiator for each in units.find("b").attachments} == {"host"}


def test_a_device_that_grows_reaches_every_ring(start, run, mapped, modprobe):
    modprobe("sd_mod")
    device = mapped("grows", "0 131072 zero")
    try:
        units.create("a", block_backing(device), {})
        server = start("serve", "--lio", "a", "--dir", run)
        with ExitStack() as stack:
            srp, vscsiif, blkif = (
                stack.enter_context(vscsi.connect(f"{kind}:{run}"))
                for kind in ("srp", "vscsiif", "blkif")
            )
            for hba in (srp, vscsiif, blkif):
                assert hba.lun(0).capacity().blocks == 131072
            mapped.load("grows", "0 262144 zero")
            assert hang_up(server, "LUN 0").endswith(" (lio:a): 64 MiB -> 128 MiB\n")
            wait_until(lambda: blkif.initiator.disk.size_bytes == 128 * MIB)
            for hba in (srp, vscsiif, blkif):
                assert attention(hba) == "6/2a/09"
                assert hba.lun(0).read(262143, 1) == bytes(BLOCK)
        assert server.end(signal.SIGTERM) == (0, "")
    finally:
        units.remove("a", force=True)
        modprobe("--remove", "sd_mod")


# Outstanding commands.


@pytest.fixture
def held(start, run, mapped):
    """A served unit whose device holds its commands: server, SRP initiator, and 32 of them."""
    device = mapped("holds", "0 131072 zero")
    units.create("a", block_backing(device), {})
    server = start("serve", "--lio", "a", "--dir", run)
    with vscsi.connect(f"srp:{run}") as hba:
        lun = hba.lun(0)
        assert lun.read(0, 8) == bytes(4096)
        (way,) = [each for each in units.find("a").attachments if each.initiator != "host"]
        busy = Path("/sys/class/scsi_device", str(way.hctl), "device/device_busy")
        with mapped.suspended("holds"):
            read = build("READ(10)", blocks=8)
            futures = [hba.start(lun, read, data_in=4096) for _ in range(32)]
            wait_until(lambda: int(busy.read_text()) == 32)
            yield server, hba, futures
    units.remove("a", force=True)


def test_a_killed_servers_commands_end_and_nothing_is_left(held, mapped, verb):
    server, _, futures = held
    server.process.send_signal(signal.SIGKILL)
    for future in futures:
        assert isinstance(future.exception(BOUND_S), TransportError)
    server.process.wait(BOUND_S)
    mapped.dmsetup("resume", "holds")
    (left,) = json.loads(verb("lio", "list", "--json"))
    assert (left["name"], left["whole"], left["left_over"]) == ("a", True, [])
    assert len(left["initiators"]) == 2
    verb("lio", "remove", "a")
    assert json.loads(verb("lio", "list", "--json")) == []
    assert not list(CONFIGFS.glob("loopback/naa.*"))


def test_a_unit_removed_with_commands_outstanding_ends_them_at_once(held, mapped):
    """LIO waits for its device; initiators don't."""
    server, hba, futures = held
    remove = subprocess.Popen([COMMAND, "lio", "remove", "a"], stderr=subprocess.PIPE)
    for future in futures:
        sense = future.result(BOUND_S).decoded_sense
        assert (sense.key, sense.asc) == (5, 0x25)  # LOGICAL UNIT NOT SUPPORTED
    with pytest.raises(ScsiError):
        hba.lun(0).read(0, 1)
    mapped.dmsetup("resume", "holds")
    _, errors = remove.communicate(timeout=BOUND_S)
    assert remove.returncode == 0, errors
    assert units.units() == []
    assert hang_up(server, "LUN 0").endswith(" (lio:a) is gone\n")
    assert hba.report_luns() == []


# Figures.


def test_what_the_ring_adds_is_measured_in_one_run(verb, start, run, tmp_path):
    units.create("a", ramdisk_backing(16 * MIB), {})
    start("serve", "--lio", "a", "--dir", run)
    node = sg_node(units.find("a").attachment("host").hctl)
    result = tmp_path / "figures.json"
    for depth in (32, 1):
        shown = verb(
            *("bench", "lio:a", f"srp:{run}", f"sg:{node}", "--iodepth", depth, "--bs", "4k"),
            *("--rw", "randread", "--runtime", 3, "--rounds", 3, "--json", result),
        )
        print(f"depth {depth}\n{shown}")
        paths = json.loads(result.read_text())["paths"]
        assert [path["path"] for path in paths] == ["lio:a", f"srp:{run}", f"sg:{node}"]
        assert all(path["operations"] and not path["errors"] for path in paths)


def test_lio_and_the_embedded_target_compare_on_one_file(verb, start, unit, run, image):
    start("serve", "--lio", "a", "--dir", run)
    shown = verb(
        *("bench", "lio:a", f"srp:{run}", f"blkif:{run}", f"call:{image}", "--iodepth", 8),
        *("--runtime", 1, "--rounds", 1),
    )
    print(shown)
