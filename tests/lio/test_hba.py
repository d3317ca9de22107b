# SPDX-License-Identifier: MIT
"""A stock kernel's disk whose commands cross a ring: `vscsi hba`."""

import json
import os
import signal
import subprocess
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tgt_glue import units
from tgt_glue.configfs import CONFIGFS
from tgt_glue.sg import SgDevice, SgNode
from vscsi.wire import cdb as cdbs
from vscsi.wire.inquiry import parse_standard
from vscsi.wire.parameters import parse_capacity_16
from vscsi.wire.sense import SenseKey, parse_sense

# rtslib's use of pyudev.
pytestmark = pytest.mark.filterwarnings("ignore:Will be removed in 1.0:DeprecationWarning")

MIB = 1 << 20
SIZE = 64 * MIB
HANG_S = 120


def run(*command, **options):
    """Run a program to its end, which must be a good one; return what it prints."""
    check = options.pop("check", True)
    done = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, timeout=HANG_S, check=False, **options
    )
    assert not check or done.returncode == 0, done.stderr
    return done.stdout


def places():
    """Return all objects in LIO."""
    patterns = ("core/*_*/", "core/*_*/*/", "loopback/naa.*/")
    return {str(path) for pattern in patterns for path in CONFIGFS.glob(pattern)}


@pytest.fixture(autouse=True)
def tidy():
    """Check that nothing is left in LIO."""
    yield
    left = places()
    for unit in units.units():
        units.remove(unit.name, force=True)
    assert left == set()


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "disk.img"
    with path.open("wb") as file:
        file.truncate(SIZE)
    return path


@pytest.fixture
def server(start, image, tmp_path):
    ready = start("serve", image, "--dir", tmp_path / "run")
    yield ready.process
    ready.close()


class Disk:
    """A `vscsi hba` that is ready."""

    def __init__(self, ready):
        self.ready = ready
        self.process = ready.process
        told = json.loads(ready.ready)
        self.name = told["name"]
        (self.sg,) = (node for node in told["nodes"] if "/sg" in node)
        self.block = next((node for node in told["nodes"] if "/sg" not in node), None)

    def end(self, number=signal.SIGTERM):
        return self.ready.end(number)


@pytest.fixture
def disk(start, server, tmp_path):
    """Start `vscsi hba`."""
    with ExitStack() as stack:

        def make(kind="srp", *arguments):
            ready = start("hba", f"{kind}:{tmp_path / 'run'}", "--json", *arguments, wait_on="{")
            stack.callback(ready.close)
            return Disk(ready)

        yield make


def write_on(directory):
    """Write durably until that fails."""
    while True:
        with (directory / "file").open("wb") as file:
            file.write(os.urandom(4096))
            os.fsync(file.fileno())


@contextmanager
def mounted(node, directory):
    directory.mkdir(exist_ok=True)
    run("mount", node, directory)
    try:
        yield directory
    finally:
        run("umount", directory)


def ask(node, name, length, **fields):
    """Send a CDB through an sg node; return answer and data."""
    device = SgDevice(SgNode(Path(node)), node)
    data = bytearray(length)
    cdb = cdbs.build(name, **fields)
    answer = device.execute(cdb, timeout_s=30, into=[memoryview(data)], wanted=length)
    device.close()
    return answer, bytes(data)


@pytest.mark.parametrize("kind", ["srp", "blkif"])
def test_a_file_system_crosses_the_ring(kind, disk, image, modprobe, tmp_path):
    modprobe("sd_mod")
    hba = disk(kind)
    _, data = ask(hba.sg, "INQUIRY", 96, allocation_length=96)
    assert parse_standard(data).vendor == b"VSCSI   "
    _, data = ask(hba.sg, "READ CAPACITY(16)", 32, allocation_length=32)
    assert parse_capacity_16(data).blocks == SIZE // 512

    contents = {f"file{number}": bytes([number + 1]) * 300_000 for number in range(8)}
    run("mkfs.ext4", "-q", hba.block)
    with mounted(hba.block, tmp_path / "mnt") as directory:
        for each, content in contents.items():
            directory.joinpath(each).write_bytes(content)
    run("e2fsck", "-fn", hba.block)
    assert all(content[:4096] in image.read_bytes() for content in contents.values())
    with mounted(hba.block, tmp_path / "mnt") as directory:
        for each, content in contents.items():
            assert directory.joinpath(each).read_bytes() == content
            directory.joinpath(each).unlink()
        run("sync", "-f", directory)
        run("fstrim", directory)
    assert not any(content[:4096] in image.read_bytes() for content in contents.values())

    assert hba.end() == (0, "")
    assert not Path(hba.block).exists()
    run("e2fsck", "-fn", image)


def test_without_a_disk_driver_there_is_an_sg_node_alone(disk, image, modprobe):
    """Also: status, sense and the length of data-in arrive."""
    subprocess.run(["modprobe", "--remove", "sd_mod"], check=True)
    hba = disk()
    assert hba.block is None
    answer, _ = ask(hba.sg, "READ(16)", 512, lba=SIZE // 512, blocks=1)
    sense = parse_sense(answer.sense)
    assert (answer.status, sense.key, sense.asc) == (2, SenseKey.ILLEGAL_REQUEST, 0x21)
    answer, _ = ask(hba.sg, "INQUIRY", 252, allocation_length=5)
    assert (answer.status, answer.arrived) == (0, 5)
    assert hba.end(signal.SIGINT) == (0, "")


def test_reservations_are_the_units_own(disk):
    """LIO does not answer for it: the embedded disk knows none."""
    hba = disk()
    answer, _ = ask(hba.sg, "PERSISTENT RESERVE IN READ KEYS", 8, allocation_length=8)
    sense = parse_sense(answer.sense)
    assert (sense.key, sense.asc) == (SenseKey.ILLEGAL_REQUEST, 0x20)
    assert hba.end() == (0, "")


def test_a_lost_server_is_an_error_in_bounded_time_and_the_disk_goes(
    disk, server, modprobe, tmp_path
):
    modprobe("sd_mod")
    hba = disk()
    run("mkfs.ext4", "-q", hba.block)
    descriptor = os.open(hba.block, os.O_RDONLY)
    try:
        with mounted(hba.block, tmp_path / "mnt") as directory:
            server.kill()
            with pytest.raises(OSError, match=r"Input/output|Read-only|No such device"):
                write_on(directory)
            status, errors = hba.ready.ended()
    finally:
        os.close(descriptor)
    assert (status, errors) == (1, "vscsi: the server is gone\n")
    assert not Path(hba.block).exists()


def test_it_waits_until_nobody_uses_the_disk(disk, modprobe, tmp_path):
    modprobe("sd_mod")
    hba = disk()
    run("mkfs.ext4", "-q", hba.block)
    with mounted(hba.block, tmp_path / "mnt") as directory:
        hba.process.send_signal(signal.SIGINT)
        line = hba.ready.wait_for("vscsi hba: in use", "stderr")
        assert f"{hba.block} mounted on {directory}" in line
        directory.joinpath("file").write_bytes(bytes(MIB))
    assert hba.ready.ended() == (0, "")


def test_a_second_signal_takes_the_disk_away(disk, modprobe, tmp_path):
    modprobe("sd_mod")
    hba = disk()
    run("mkfs.ext4", "-q", hba.block)
    with mounted(hba.block, tmp_path / "mnt"):
        hba.process.send_signal(signal.SIGINT)
        hba.ready.wait_for("vscsi hba: in use", "stderr")
        assert hba.end(signal.SIGINT)[0] == 0
        assert not Path(hba.block).exists()


def test_what_a_killed_one_leaves_is_taken_over_with_its_mounts(disk, cli, modprobe, tmp_path):
    modprobe("sd_mod")
    hba = disk()
    run("mkfs.ext4", "-q", hba.block)
    with mounted(hba.block, tmp_path / "mnt") as directory:
        directory.joinpath("file").write_bytes(b"here")
        os.sync()
        hba.process.kill()
        hba.process.wait()
        (unit,) = json.loads(cli("lio", "list", "--json").stdout)
        assert (unit["name"], unit["kind"], unit["size_bytes"]) == (hba.name, "user", SIZE)
        again = disk()
        assert again.block == hba.block
        run("sysctl", "-q", "vm.drop_caches=3")
        assert directory.joinpath("file").read_bytes() == b"here"
        directory.joinpath("more").write_bytes(bytes(MIB))
        os.sync()
    run("e2fsck", "-fn", again.block)
    assert again.end() == (0, "")


def test_what_a_killed_one_leaves_is_removed_by_lio_remove(disk, cli, modprobe, tmp_path):
    modprobe("sd_mod")
    hba = disk()
    done = cli("lio", "remove", hba.name)
    assert done.returncode == 2
    assert "`vscsi hba` serves it" in done.stderr
    done = cli("hba", f"srp:{tmp_path / 'run'}")
    assert done.returncode == 2
    assert "another `vscsi hba` serves it" in done.stderr
    os.kill(hba.process.pid, signal.SIGSTOP)  # so that a command waits on the ring
    reader = subprocess.Popen(["dd", f"if={hba.block}", "of=/dev/null", "iflag=direct", "count=1"])
    hba.process.kill()
    hba.process.wait()
    done = cli("lio", "remove", hba.name)
    assert (done.returncode, done.stderr) == (0, "")
    assert reader.wait(HANG_S) != 0
    assert not Path(hba.block).exists()


def test_a_leftover_that_is_in_use_stays_and_can_still_be_taken_over(disk, cli, modprobe, tmp_path):
    modprobe("sd_mod")
    hba = disk()
    run("mkfs.ext4", "-q", hba.block)
    with mounted(hba.block, tmp_path / "mnt") as directory:
        hba.process.kill()
        hba.process.wait()
        done = cli("lio", "remove", hba.name)
        assert done.returncode == 2
        assert f"device busy: {hba.block} is in use" in done.stderr
        again = disk()
        directory.joinpath("file").write_bytes(bytes(MIB))
        os.sync()
    run("e2fsck", "-fn", again.block)
    assert again.end() == (0, "")
