# SPDX-License-Identifier: MIT
"""Tasks that real LIO executes: data, order, failures and what the glue keeps from it."""

import itertools
import os
import queue
import subprocess
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

import vscsi
from tgt_glue import sg, unit_port, units
from tgt_glue.backing import block_backing, file_backing, ramdisk_backing
from tgt_glue.configfs import CONFIGFS
from tgt_glue.lio_unit import LioUnit, open_sg
from tgt_glue.nodes import hctl_of
from tgt_glue.unit_port import UnitPort, initiator_name
from vscsi.target.base import (
    Attribute,
    DeliveryFailure,
    Function,
    Management,
    Nexus,
    ServiceResponse,
    Status,
    Task,
)
from vscsi.target.router import TaskRouter
from vscsi.transport.export import Export
from vscsi.transport.hba import TransportError
from vscsi.wire.cdb import build
from vscsi.wire.lun import encode
from vscsi.wire.sense import parse_sense

# rtslib's use of pyudev.
pytestmark = pytest.mark.filterwarnings("ignore:Will be removed in 1.0:DeprecationWarning")

LUN = encode(0)
MIB = 1 << 20
HANG_S = 120
ALLOW_DIO = Path("/sys/module/sg/parameters/allow_dio")
KEY = (1).to_bytes(8, "big")


class Initiator:
    """A nexus to a target; buffers begin as 5Ah and are shown as they are afterwards."""

    def __init__(self, router, name):
        self.router = router
        self.nexus = Nexus(name, "target")
        self.tag = 0
        router.attach(self.nexus)
        self.ready()

    def ready(self):
        """Take what unit attentions are pending; return them."""
        met = []
        while (task := self("TEST UNIT READY")).status is not Status.GOOD:
            met.append(code(task))
            assert met[-1].startswith("6/"), met
        return met

    def start(self, cdb, *, out=b"", into=0, cuts=(), done=None, attribute=0, **fields):
        """Submit a command; the task has its buffer as `context`."""
        self.tag += 1
        room = memoryview(bytearray(b"\x5a" * into)) if isinstance(into, int) else into
        task = Task(
            self.nexus,
            LUN,
            self.tag,
            cdb if isinstance(cdb, bytes) else build(cdb, **fields),
            done or (lambda _: None),
            data_out=cut(memoryview(out), cuts) if out else (),
            data_in=cut(room, cuts) if len(room) else (),
            attribute=Attribute(attribute),
            context=room,
        )
        self.router.submit(task)
        return task

    def __call__(self, cdb, **more):
        """Execute a command and return its task."""
        finished = queue.SimpleQueue()
        self.start(cdb, done=finished.put, **more)
        return finished.get(timeout=HANG_S)

    def manage(self, function):
        """Perform a task management function."""
        finished = queue.SimpleQueue()
        self.router.manage(Management(self.nexus, LUN, function, finished.put))
        return finished.get(timeout=HANG_S).response


def cut(view, cuts):
    """Return a view in pieces."""
    edges = [0, *cuts, len(view)]
    return [view[start:end] for start, end in itertools.pairwise(edges)]


def code(task):
    """Key, ASC and ASCQ as the standards' tables have them, or the status' name."""
    sense = parse_sense(task.sense) if task.sense else None
    return f"{sense.key:x}/{sense.asc:02x}/{sense.ascq:02x}" if sense else task.status.name


class Target:
    """A router with one unit of LIO's."""

    def __init__(self, name, **options):
        self.name = name
        self.unit = LioUnit(UnitPort(name), **options)
        self.router = TaskRouter()
        self.router.add(0, self.unit)

    def initiator(self, name="a"):
        """Return a new initiator."""
        return Initiator(self.router, name)

    def close(self):
        """End it."""
        self.router.close()
        self.unit.close()


@pytest.fixture
def serve():
    """Make units of LIO's and serve them; all is taken down in the end."""
    with ExitStack() as stack:

        def make(backing, values=None, **options):
            name = f"execute{len(units.units())}"
            units.create(name, backing, values or {})
            stack.callback(units.remove, name, force=True)
            target = Target(name, **options)
            stack.callback(target.close)
            return target

        yield make


@pytest.fixture
def ramdisk(serve):
    """A target with a ramdisk, and an initiator."""
    target = serve(ramdisk_backing(64 * MIB))
    return target, target.initiator()


def wait_until(holds):
    """Poll for something that the kernel shows in sysfs alone."""
    end = time.monotonic() + HANG_S
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


# Data.


@pytest.mark.parametrize("blocks", [1, 8, 100, 2048, 6000])
def test_what_is_written_is_read_again(ramdisk, blocks):
    """6000 blocks are more than the kernel takes at once."""
    _, initiator = ramdisk
    data, cuts = os.urandom(blocks * 512), [7, 300]
    assert code(initiator("WRITE(16)", lba=77, blocks=blocks, out=data, cuts=cuts)) == "GOOD"
    task = initiator("READ(16)", lba=77, blocks=blocks, into=len(data), cuts=cuts)
    assert (code(task), task.moved, task.context) == ("GOOD", len(data), data)


def test_scattered_pages_are_one_transfer(ramdisk):
    _, initiator = ramdisk
    data = os.urandom(MIB)
    memory = memoryview(bytearray(2 * MIB))
    for at in range(256):
        memory[8192 * at :][:4096] = data[4096 * at :][:4096]
    pages = [memory[8192 * at :][:4096] for at in range(256)]
    task = Task(initiator.nexus, LUN, 0, build("WRITE(10)", blocks=2048), print, data_out=pages)
    finished = queue.SimpleQueue()
    task.done = finished.put
    initiator.router.submit(task)
    assert code(finished.get(timeout=HANG_S)) == "GOOD"
    assert initiator("READ(10)", blocks=2048, into=MIB).context == data


def test_a_kernel_that_allows_it_takes_the_initiators_pages(serve):
    before = ALLOW_DIO.read_text()
    ALLOW_DIO.write_text("1")
    try:
        target = serve(ramdisk_backing(16 * MIB), open_device=partial(open_sg, direct=True))
        initiator = target.initiator()
        data = os.urandom(256 << 10)
        assert code(initiator("WRITE(10)", lba=8, blocks=512, out=data)) == "GOOD"
        before_read = target.unit.staged_bytes
        task = initiator("READ(10)", lba=8, blocks=512, into=len(data))
        assert task.context == data
        assert target.unit.staged_bytes == before_read
        failed = initiator("READ(10)", lba=1 << 30, blocks=512, into=len(data))
        assert (code(failed), set(failed.context)) == ("5/21/00", {0x5A})
    finally:
        ALLOW_DIO.write_text(before)


@pytest.mark.parametrize(
    ("cdb", "buffers", "expected", "moved", "overflow"),
    [
        (build("READ(10)", blocks=2), {"into": 700}, "GOOD", 700, 324),
        (build("READ(10)", blocks=2), {"into": 2000}, "GOOD", 1024, 0),
        (build("READ(10)", blocks=2), {"out": bytes(1024)}, "GOOD", 0, 1024),
        (build("READ(10)", blocks=2), {}, "GOOD", 0, 1024),
        (build("READ(10)", lba=1 << 20, blocks=2), {"into": 1024}, "5/21/00", 0, 0),
        (build("WRITE(10)", lba=8, blocks=2), {"out": b"w" * 1023}, "5/0e/03", 0, 1),
        (build("WRITE(10)", lba=8, blocks=2), {"into": 1024}, "5/0e/03", 0, 1024),
        (build("INQUIRY", allocation_length=96), {"into": 36}, "GOOD", 36, 60),
        (build("INQUIRY", allocation_length=36), {"into": 96}, "GOOD", 36, 0),
        (build("INQUIRY", allocation_length=96), {"out": bytes(96)}, "GOOD", 0, 96),
        (build("TEST UNIT READY"), {"into": 96}, "GOOD", 0, 0),
        (b"\xc1" + bytes(15), {"into": 96}, "5/20/00", 0, 0),
        (b"\xc1" + bytes(15), {"out": bytes(96)}, "5/20/00", 0, 0),
    ],
)
def test_lio_sees_the_cdbs_own_length_and_direction(serve, cdb, buffers, expected, moved, overflow):
    """It would write for a READ with data-out, and fill buffers with what earlier commands left."""
    target = serve(file_backing("/run/execute.img", 4 * MIB))
    initiator = target.initiator()
    disk = os.urandom(8192)
    assert code(initiator("WRITE(10)", blocks=16, out=disk)) == "GOOD"
    task = initiator(cdb, **buffers)
    assert (code(task), task.moved, task.overflow) == (expected, moved, overflow)
    assert set(task.context[moved:]) <= {0x5A}
    assert initiator("READ(10)", blocks=16, into=8192).context == disk


# Order and depth.


def test_32_commands_are_outstanding_in_the_kernel(mapped, serve):
    disk = mapped("slow", "0 131072 zero")
    target = serve(block_backing(disk))
    initiator = target.initiator()
    initiator("READ(10)", blocks=1, into=512)
    node = target.unit._devices[initiator.nexus]._node.path
    busy = Path("/sys/class/scsi_device", str(hctl_of(node)), "device/device_busy")
    finished = queue.SimpleQueue()
    with mapped.suspended("slow"):
        for at in range(40):
            initiator.start("READ(10)", lba=8 * at, blocks=8, into=4096, done=finished.put)
        wait_until(lambda: int(busy.read_text()) == 32)
    tasks = [finished.get(timeout=HANG_S) for _ in range(40)]
    assert {code(task) for task in tasks} == {"GOOD"}
    assert all(task.context == bytes(4096) for task in tasks)


def test_an_ordered_task_comes_between(ramdisk):
    """Whatever the depth: writes before it are seen by reads after it, on another nexus too."""
    target, initiator = ramdisk
    other = target.initiator("b")
    for turn in range(1, 20):
        data, finished = bytes([turn]) * 512, queue.SimpleQueue()
        for at in range(16):
            initiator.start("WRITE(10)", lba=at, blocks=1, out=data, done=finished.put)
        initiator.start("SYNCHRONIZE CACHE(10)", attribute=Attribute.ORDERED, done=finished.put)
        for at in range(16):
            other.start("READ(10)", lba=at, blocks=1, into=512, done=finished.put)
        tasks = [finished.get(timeout=HANG_S) for _ in range(33)]
        reads = [task for task in tasks if task.nexus == other.nexus]
        assert all(task.context == data for task in reads)


# Two initiators.


def test_persistent_reservations_hold_between_initiators_and_outlive_a_nexus(ramdisk):
    target, one = ramdisk
    other = target.initiator("b")
    register = {"parameter_list_length": 24, "out": bytes(8) + KEY + bytes(8)}
    assert code(one("PERSISTENT RESERVE OUT REGISTER", **register)) == "GOOD"
    reserve = {"parameter_list_length": 24, "type": 1, "out": KEY + bytes(16)}
    assert code(one("PERSISTENT RESERVE OUT RESERVE", **reserve)) == "GOOD"
    write = {"lba": 0, "blocks": 1, "out": bytes(512)}
    assert other("WRITE(10)", **write).status is Status.RESERVATION_CONFLICT
    assert code(one("WRITE(10)", **write)) == "GOOD"
    target.router.detach(one.nexus)
    assert other("WRITE(10)", **write).status is Status.RESERVATION_CONFLICT
    again = target.initiator("a")
    assert code(again("WRITE(10)", **write)) == "GOOD"
    clear = {"parameter_list_length": 24, "out": KEY + bytes(16)}
    assert code(again("PERSISTENT RESERVE OUT CLEAR", **clear)) == "GOOD"
    assert code(other("WRITE(10)", **write)) == "GOOD"


def test_registrations_are_bounded_and_ports_go_with_the_last_of_them(ramdisk, monkeypatch):
    monkeypatch.setattr(unit_port, "MAX_REGISTERED", 3)
    target, one = ramdisk
    register = {"parameter_list_length": 24, "out": bytes(8) + KEY + bytes(8)}

    def ports():
        return {each.initiator for each in units.find(target.name).attachments} - {"host"}

    assert code(one("PERSISTENT RESERVE OUT REGISTER", **register)) == "GOOD"
    for name in "bc":
        other = target.initiator(name)
        assert code(other("PERSISTENT RESERVE OUT REGISTER", **register)) == "GOOD"
        target.router.detach(other.nexus)
    last = target.initiator("d")
    assert code(last("PERSISTENT RESERVE OUT REGISTER", **register)) == "5/55/04"
    target.router.detach(last.nexus)
    assert len(ports()) == 3  # those of the two that left, and ours

    # Who is registered may go on; when the others' registrations go, so do their ports.
    clear = {"parameter_list_length": 24, "out": KEY + bytes(16)}
    assert code(one("PERSISTENT RESERVE OUT REGISTER", **register)) == "RESERVATION_CONFLICT"
    assert code(one("PERSISTENT RESERVE OUT CLEAR", **clear)) == "GOOD"
    target.router.detach(target.initiator("e").nexus)
    assert ports() == {initiator_name(one.nexus)}
    target.router.detach(one.nexus)
    assert ports() == set()


def test_an_spc_2_reservation_ends_with_its_nexus(ramdisk):
    target, one = ramdisk
    other = target.initiator("b")
    assert code(one("RESERVE(6)")) == "GOOD"
    assert other("READ(10)", blocks=1, into=512).status is Status.RESERVATION_CONFLICT
    target.router.detach(one.nexus)
    assert code(other("READ(10)", blocks=1, into=512)) == "GOOD"


def test_a_reset_is_told_to_every_initiator(ramdisk):
    target, one = ramdisk
    other = target.initiator("b")
    assert one.manage(Function.LOGICAL_UNIT_RESET) is ServiceResponse.FUNCTION_COMPLETE
    assert [one.ready(), other.ready()] == [["6/29/03"], ["6/29/03"]]


# What fails.


def test_a_transport_failure_is_no_scsi_answer(ramdisk):
    target, initiator = ramdisk
    node = target.unit._devices[initiator.nexus]._node.path
    address = str(hctl_of(node)).rpartition(":")[0]
    ports = CONFIGFS.glob("loopback/naa.*/tpgt_1")
    (port,) = [each for each in ports if (each / "address").read_text().strip() == address]
    (port / "transport_status").write_text("offline\n")
    task = initiator("READ(10)", blocks=1, into=512)
    assert (task.delivery_failure, code(task)) == (DeliveryFailure.FAILED, "b/08/00")
    assert set(task.context) == {0x5A}
    (port / "transport_status").write_text("online\n")
    assert initiator.ready() == ["6/29/07"]  # LIO's word for an I_T nexus loss
    assert code(initiator("READ(10)", blocks=1, into=512)) == "GOOD"


def test_an_error_of_the_backing_device_returns_no_data(mapped, serve):
    disk = mapped("broken", "0 131072 error")
    initiator = serve(block_backing(disk)).initiator()
    task = initiator("READ(10)", blocks=8, into=4096)
    assert (code(task), task.moved, set(task.context)) == ("2/08/00", 0, {0x5A})


def test_a_command_that_hangs_in_the_kernel_is_answered_in_bounded_time(mapped, serve, monkeypatch):
    monkeypatch.setattr(sg, "GRACE_S", 0.5)
    disk = mapped("hung", "0 131072 zero")
    target = serve(block_backing(disk), timeout_s=0.5)
    initiator = target.initiator()
    initiator("READ(10)", blocks=1, into=512)
    with mapped.suspended("hung"):
        task = initiator("READ(10)", blocks=8, into=4096)
        assert task.delivery_failure is DeliveryFailure.TIMED_OUT
        assert initiator.manage(Function.LOGICAL_UNIT_RESET) is ServiceResponse.FAILED
        device = target.unit._devices[initiator.nexus]
        assert device.lost == 1
    wait_until(lambda: device.lost == 0)
    assert set(task.context) == {0x5A}  # the kernel's late data went nowhere
    target.unit.timeout_s = 30.0
    initiator.ready()
    assert initiator("READ(10)", blocks=8, into=4096).context == bytes(4096)


@pytest.mark.parametrize(("kind", "told"), [("srp", "b/08/01"), ("vscsiif", "TIME_OUT")])
def test_a_ring_is_told_of_a_command_that_hangs(mapped, serve, monkeypatch, tmp_path, kind, told):
    monkeypatch.setattr(sg, "GRACE_S", 0.5)
    unit = serve(block_backing(mapped("hung", "0 131072 zero"))).unit
    export = Export(tmp_path, {0: unit})
    export.start()
    try:
        with vscsi.connect(f"{kind}:{tmp_path}") as hba:
            lun = hba.lun(0)
            lun.read(0, 1)
            unit.timeout_s = 0.5
            with mapped.suspended("hung"):
                read = build("READ(10)", blocks=8)
                futures = [hba.start(lun, read, data_in=4096) for _ in range(4)]
                for future in futures:
                    if kind == "srp":
                        assert code(future.result(HANG_S)) == told
                    else:
                        with pytest.raises(TransportError, match=told):
                            future.result(HANG_S)
            unit.timeout_s = 30.0
            assert lun.read(0, 8) == bytes(4096)
    finally:
        export.stop()


def test_a_unit_that_is_removed_is_gone_with_commands_outstanding(mapped, serve):
    disk = mapped("leaving", "0 131072 zero")
    target = serve(block_backing(disk))
    initiator = target.initiator()
    initiator("READ(10)", blocks=1, into=512)
    finished = queue.SimpleQueue()
    with mapped.suspended("leaving"):
        for _ in range(4):
            initiator.start("READ(10)", blocks=8, into=4096, done=finished.put)
        node = target.unit._devices[initiator.nexus]._node.path
        delete = Path("/sys/class/scsi_device", str(hctl_of(node)), "device/delete")
        removal = subprocess.Popen(["sh", "-c", f"echo 1 > {delete}"])
        tasks = [finished.get(timeout=HANG_S) for _ in range(4)]
    removal.wait(HANG_S)
    assert {task.delivery_failure for task in tasks} == {DeliveryFailure.GONE}
    after = initiator("TEST UNIT READY")
    assert (after.delivery_failure, code(after)) == (DeliveryFailure.GONE, "5/25/00")


def test_a_device_that_grows_is_told_to_every_initiator(mapped, serve):
    disk = mapped("grows", "0 131072 zero")
    target = serve(block_backing(disk))
    one, other = target.initiator("a"), target.initiator("b")
    target.unit.rescan()
    assert one.ready() == []
    mapped.load("grows", "0 262144 zero")
    target.unit.rescan()
    assert [one.ready(), other.ready()] == [["6/2a/09"], ["6/2a/09"]]
    assert code(other("READ(10)", lba=262143, blocks=1, into=512)) == "GOOD"


# Over a ring.


def test_a_ring_leads_to_lio(serve, tmp_path):
    unit = serve(ramdisk_backing(16 * MIB)).unit
    export = Export(tmp_path, {0: unit})
    export.start()
    try:
        with vscsi.connect(f"srp:{tmp_path}") as hba:
            data = os.urandom(200 << 10)
            hba.lun(0).write(5, data)
            assert hba.lun(0).read(5, 400) == data
            assert hba.lun(0).inquiry().vendor == b"LIO-ORG "
    finally:
        export.stop()
