# SPDX-License-Identifier: MIT
"""A stock kernel's disk whose commands cross a ring: `vscsi hba`."""

import json
import os
import queue
import signal
import subprocess
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.lio.killed import statuses
from tests.lio.sg_io import read_by
from tgt_glue import units, user_unit
from tgt_glue.backing import file_backing
from tgt_glue.configfs import CONFIGFS, attributes
from tgt_glue.kernel import KernelLog
from tgt_glue.nodes import sg_node
from vscsi.cli.hba_bridge import Bridge
from vscsi.cli.lio import lio as lio_command
from vscsi.target.base import Function, Nexus
from vscsi.target.disk import Disk as EmbeddedDisk
from vscsi.target.router import TaskRouter
from vscsi.target.stores.memory import MemoryStore
from vscsi.transport.call import CallInitiator
from vscsi.transport.initiator import TransportError
from vscsi.wire.cdb import build
from vscsi.wire.errors import SetupError
from vscsi.wire.inquiry import parse_standard
from vscsi.wire.lun import encode
from vscsi.wire.parameters import parse_capacity_16
from vscsi.wire.sense import SenseKey

# rtslib's use of pyudev.
pytestmark = pytest.mark.filterwarnings("ignore:Will be removed in 1.0:DeprecationWarning")

MIB = 1 << 20
SIZE = 64 * MIB
BLOCK = 512
HANG_S = 600
DID_TIME_OUT = 3
ROUNDS = 10


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


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """What most tests' disk is on; what it held before is nobody's business."""
    return make_image(tmp_path_factory.mktemp("hba"))


@pytest.fixture(scope="module")
def server(start, image):
    """A server of it that stays."""
    return start("serve", image, "--dir", image.parent / "run").process


def make_image(directory):
    path = directory / "disk.img"
    with path.open("wb") as file:
        file.truncate(SIZE)
    return path


class Disk:
    """A `vscsi hba` that is ready."""

    def __init__(self, ready):
        self.ready = ready
        self.process = ready.process
        told = json.loads(ready.ready)
        self.name, self.size = told["name"], told["size_bytes"]
        (self.sg,) = (node for node in told["nodes"] if "/sg" in node)
        self.block = next((node for node in told["nodes"] if "/sg" not in node), None)

    def end(self, number=signal.SIGTERM):
        return self.ready.end(number)


@pytest.fixture
def attach(start):
    """Start `vscsi hba` over a path."""
    with ExitStack() as stack:

        def make(path, *arguments):
            ready = start("hba", path, "--json", *arguments, wait_on="{")
            stack.callback(ready.close)
            return Disk(ready)

        yield make


@pytest.fixture
def disk(attach, server, image):
    """Start `vscsi hba` over a ring of the server that stays."""
    return lambda kind="srp": attach(f"{kind}:{image.parent / 'run'}")


@pytest.fixture
def lio():
    """Give a `vscsi lio` order in this process, which is faster; return click's result."""

    def order(*arguments):
        return CliRunner().invoke(lio_command, [*map(str, arguments)], catch_exceptions=False)

    return order


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


def sysfs(node):
    """Return what the kernel knows of a disk."""
    return Path("/sys/class/block", Path(node).name)


def inquire(node):
    """Return the standard INQUIRY data that come through an sg node."""
    return parse_standard(read_by(node, build("INQUIRY", allocation_length=96), 96).data)


@pytest.mark.parametrize("kind", ["srp", "vscsiif", "blkif"])
def test_a_file_system_crosses_the_ring(kind, disk, image, modprobe, tmp_path):
    modprobe("sd_mod")
    hba = disk(kind)
    assert inquire(hba.sg).vendor == b"VSCSI   "
    capacity = read_by(hba.sg, build("READ CAPACITY(16)", allocation_length=32), 32)
    assert parse_capacity_16(capacity.data).blocks == SIZE // BLOCK
    # What one command may move over any of the rings; the unit itself takes more.
    assert sysfs(hba.block).joinpath("queue/max_sectors_kb").read_text() == "1024\n"

    contents = {f"file{number}": os.urandom(4096) * 75 for number in range(8)}
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
    answer = read_by(hba.sg, build("READ(16)", lba=SIZE // BLOCK, blocks=1), BLOCK)
    assert (answer.status, answer.code) == (2, (SenseKey.ILLEGAL_REQUEST, 0x21))
    answer = read_by(hba.sg, build("INQUIRY", allocation_length=5), 252)
    assert (answer.status, answer.residual) == (0, 247)
    assert hba.end(signal.SIGINT) == (0, "")


def test_reservations_are_the_units_own(disk):
    """LIO does not answer for it: the embedded disk knows none."""
    hba = disk()
    answer = read_by(hba.sg, build("PERSISTENT RESERVE IN READ KEYS", allocation_length=8), 8)
    assert answer.code == (SenseKey.ILLEGAL_REQUEST, 0x20)
    assert hba.end() == (0, "")


def test_a_lost_server_is_an_error_in_bounded_time_and_the_disk_goes(
    start, attach, modprobe, tmp_path
):
    modprobe("sd_mod")
    server = start("serve", f"memory:{SIZE}", "--dir", tmp_path / "run").process
    hba = attach(f"srp:{tmp_path / 'run'}")
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
    status, errors = hba.ready.ended()
    assert status == 0
    # umount holds the disk for a moment when it is mounted no more, which it may see and say.
    assert all(line.startswith("vscsi hba: in use: ") for line in errors.splitlines())


def test_a_second_signal_takes_the_disk_away(disk, modprobe, tmp_path):
    modprobe("sd_mod")
    hba = disk()
    run("mkfs.ext4", "-q", hba.block)
    with mounted(hba.block, tmp_path / "mnt"):
        hba.process.send_signal(signal.SIGINT)
        hba.ready.wait_for("vscsi hba: in use", "stderr")
        assert hba.end(signal.SIGINT)[0] == 0
        assert not Path(hba.block).exists()


def test_what_a_killed_one_leaves_is_taken_over_with_its_mounts(disk, lio, modprobe, tmp_path):
    modprobe("sd_mod")
    hba = disk()
    run("mkfs.ext4", "-q", hba.block)
    with mounted(hba.block, tmp_path / "mnt") as directory:
        directory.joinpath("file").write_bytes(b"here")
        os.sync()
        hba.process.kill()
        hba.process.wait()
        (unit,) = json.loads(lio("list", "--json").stdout)
        assert (unit["name"], unit["kind"], unit["size_bytes"]) == (hba.name, "user", SIZE)
        again = disk()
        assert again.block == hba.block
        run("sysctl", "-q", "vm.drop_caches=3")
        assert directory.joinpath("file").read_bytes() == b"here"
        directory.joinpath("more").write_bytes(bytes(MIB))
        os.sync()
    run("e2fsck", "-fn", again.block)
    assert again.end() == (0, "")


def test_what_a_killed_one_leaves_is_removed_by_lio_remove(disk, cli, lio, modprobe, image):
    modprobe("sd_mod")
    hba = disk()
    with pytest.raises(SetupError, match="`vscsi hba` serves it"):
        lio("remove", hba.name)
    done = cli("hba", f"srp:{image.parent / 'run'}")
    assert done.returncode == 2
    assert "another `vscsi hba` serves it" in done.stderr
    os.kill(hba.process.pid, signal.SIGSTOP)  # so that a command waits on the ring
    reader = subprocess.Popen(["dd", f"if={hba.block}", "of=/dev/null", "iflag=direct", "count=1"])
    hba.process.kill()
    hba.process.wait()
    assert lio("remove", hba.name).stdout.startswith(f"fail the commands of {hba.name}")
    assert reader.wait(HANG_S) != 0
    assert not Path(hba.block).exists()


def test_a_leftover_that_is_in_use_stays_and_can_still_be_taken_over(disk, lio, modprobe, tmp_path):
    modprobe("sd_mod")
    hba = disk()
    run("mkfs.ext4", "-q", hba.block)
    with mounted(hba.block, tmp_path / "mnt") as directory:
        hba.process.kill()
        hba.process.wait()
        with pytest.raises(SetupError, match=f"device busy: {hba.block} is in use"):
            lio("remove", hba.name)
        again = disk()
        directory.joinpath("file").write_bytes(bytes(MIB))
        os.sync()
    run("e2fsck", "-fn", again.block)
    assert again.end() == (0, "")


def test_a_process_killed_while_it_makes_a_disk_leaves_what_is_listed_and_removed(lio):
    """Also one that is killed when it is there."""
    served = Held()

    def make():
        served.make("killed")

    for _ in statuses(make, prepare=lambda: None):
        listed = json.loads(lio("list", "--json").stdout)
        assert len(listed) == bool(places())
        for unit in listed:
            lio("remove", unit["name"])
        assert places() == set()
    (unit,) = json.loads(lio("list", "--json").stdout)
    assert (unit["name"], unit["whole"]) == ("killed", True)
    lio("remove", "killed")


# What a path can and cannot do.


def test_a_file_system_can_be_made_over_lio_again_and_again(start, attach, modprobe, tmp_path):
    """LIO does not tell the kernel how long WRITE SAME may be, and refuses what mke2fs then asks
    for: the kernel goes on with writes.
    """
    modprobe("sd_mod")
    image = tmp_path / "disk.img"
    units.create("a", file_backing(image, SIZE // 4), {})
    try:
        server = start("serve", "--lio", "a", "--dir", tmp_path / "run")
        hba = attach(f"srp:{tmp_path / 'run'}")
        assert inquire(hba.sg).vendor == b"LIO-ORG "
        for number in range(ROUNDS):
            run("mkfs.ext4", "-q", "-F", hba.block)
            with mounted(hba.block, tmp_path / "mnt") as directory:
                directory.joinpath("file").write_bytes(bytes([number]) * 300_000)
            run("e2fsck", "-fn", hba.block)
        assert hba.end() == (0, "")
        assert server.end(signal.SIGTERM) == (0, "")
    finally:
        units.remove("a", force=True)
    run("e2fsck", "-fn", image)


def test_blocks_of_4096_bytes_are_the_kernels_too_and_the_disk_can_grow(
    start, attach, modprobe, tmp_path
):
    modprobe("sd_mod")
    image = make_image(tmp_path)
    server = start("serve", image, "--block-size", "4096", "--dir", tmp_path / "run")
    hba = attach(f"srp:{tmp_path / 'run'}")
    disk = sysfs(hba.block)
    assert disk.joinpath("queue/logical_block_size").read_text() == "4096\n"
    run("mkfs.ext4", "-q", hba.block)
    with mounted(hba.block, tmp_path / "mnt") as directory:
        directory.joinpath("file").write_bytes(b"here" * 5000)
        os.truncate(image, 2 * SIZE)
        server.process.send_signal(signal.SIGHUP)
        while int(disk.joinpath("size").read_text()) == SIZE // BLOCK:  # the server looks for it
            disk.joinpath("device/rescan").write_text("1")
        assert int(disk.joinpath("size").read_text()) == 2 * SIZE // BLOCK
        run("resize2fs", hba.block)
        hba.process.kill()
        hba.process.wait()
        again = attach(f"srp:{tmp_path / 'run'}")
        assert (again.block, again.size) == (hba.block, 2 * SIZE)
        assert os.statvfs(directory).f_blocks * 4096 > SIZE
        assert directory.joinpath("file").read_bytes() == b"here" * 5000
    run("e2fsck", "-fn", again.block)
    assert again.end() == (0, "")


# Time.


class Held(CallInitiator):
    """An initiator of a disk in memory that holds back what reads block 7, until it is aborted."""

    def __init__(self):
        router = TaskRouter()
        router.add(0, EmbeddedDisk(MemoryStore(MIB)))
        super().__init__(router, Nexus("kernel", "target"))
        self.held, self.managed = queue.SimpleQueue(), queue.SimpleQueue()
        self.obeys = True

    def make(self, name):
        """Have a disk of it; return its service and its sg node."""

        def begin(device):
            bridge = Bridge(*(device, self, encode(0), print), block_bytes=BLOCK, most_bytes=MIB)
            bridge.start()
            return bridge

        user_unit.prepare_kernel()
        service, attachment = user_unit.serve(name, "held", MIB, BLOCK, begin)
        return service, sg_node(attachment.hctl, timeout_s=HANG_S)

    def submit(self, command):
        if command.cdb == SEVENTH:
            self.held.put(command)
        else:
            super().submit(command)

    def manage(self, request):
        self.managed.put(request)
        if self.obeys:
            self.end(request.managed)
            request.done(request)

    def end(self, command):
        """End a command without a status."""
        command.error = TransportError("aborted by task management")
        command.done(command)


SIXTH, SEVENTH = (build("READ(10)", lba=lba, blocks=1) for lba in (6, 7))


@pytest.fixture
def held():
    """Have a disk of a `Held`, as its `sg`."""
    initiator = Held()
    service, initiator.sg = initiator.make("held")
    while read_by(initiator.sg, SIXTH, BLOCK).status:  # unit attentions
        pass
    yield initiator
    user_unit.remove("held", service, force=True)


@pytest.fixture
def impatient(monkeypatch):
    """Have the kernel end by itself, after seconds, what nobody ends."""
    monkeypatch.setitem(user_unit.ATTRIBUTES, "cmd_time_out", "3")


def test_a_command_whose_time_is_over_is_aborted_over_the_path(held):
    wanted = user_unit.ATTRIBUTES
    assert wanted.items() <= attributes(units.find("held").storage).items()
    for _ in range(2):
        answer = read_by(held.sg, SEVENTH, BLOCK, timeout_s=1)
        assert answer.host_status == DID_TIME_OUT
        request = held.managed.get(timeout=HANG_S)
        assert request.function is Function.ABORT_TASK
        assert request.managed is held.held.get(timeout=HANG_S)
    assert read_by(held.sg, SIXTH, BLOCK).status == 0


def test_a_command_that_the_path_never_ends_ends_in_the_kernel(impatient, held):
    held.obeys = False
    answer = read_by(held.sg, SEVENTH, BLOCK, timeout_s=1)
    assert answer.host_status == DID_TIME_OUT
    assert read_by(held.sg, SIXTH, BLOCK).status == 0
    held.end(held.held.get(timeout=HANG_S))  # late, when nobody waits for it
    for _ in range(3):
        assert read_by(held.sg, SIXTH, BLOCK).status == 0


def test_a_server_that_stands_still_for_a_while_costs_no_error(disk, server, modprobe):
    modprobe("sd_mod")
    hba = disk()
    sysfs(hba.block).joinpath("device/timeout").write_text("1")
    with KernelLog() as log:
        server.send_signal(signal.SIGSTOP)
        try:
            reader = subprocess.Popen(
                ["dd", f"if={hba.block}", "of=/dev/null", "iflag=direct", "count=1"]
            )
            while not any("ABORT_TASK" in line for line in log.complaints()):
                assert reader.poll() is None
        finally:
            server.send_signal(signal.SIGCONT)
    assert reader.wait(HANG_S) == 0
    assert hba.end() == (0, "")
