# SPDX-License-Identifier: MIT
"""Devices that LIO passes through (pscsi), served over the rings: a disk, a CD-ROM, a tape.

scsi_debug, which Debian's kernel has, is the disk and the drive. It is no tape: it reads blocks of
a disk whatever it says it is. So the tape is a program's, behind TCMU; the kernel takes it for one.
"""

import os
import select
import signal
import subprocess
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest

import vscsi
from tgt_glue import units, user_unit
from tgt_glue.backing import pscsi_backing
from tgt_glue.configfs import CONFIGFS
from tgt_glue.nodes import Hctl, block_node
from tgt_glue.tcmu import Answer
from vscsi.target.base import Status
from vscsi.target.buffers import scatter
from vscsi.wire.cdb import build, named
from vscsi.wire.opcodes import DeviceType
from vscsi.wire.sense import Sense, parse_sense

# rtslib's use of pyudev.
pytestmark = pytest.mark.filterwarnings("ignore:Will be removed in 1.0:DeprecationWarning")

HANG_S = 120
MIB = 1 << 20
VIRTUAL_GB = Path("/sys/bus/pseudo/drivers/scsi_debug/virtual_gb")


@pytest.fixture(autouse=True)
def tidy(modprobe):
    modprobe("target_core_mod", "target_core_pscsi", "target_core_user", "tcm_loop", "sg")
    yield
    for unit in units.units():
        units.remove(unit.name, force=True)
    assert not list(CONFIGFS.glob("loopback/naa.*"))


@contextmanager
def scsi_debug(*parameters):
    """Have a made-up device; yields its address."""
    subprocess.run(["modprobe", "scsi_debug", *parameters], check=True)
    try:
        devices = Path("/sys/class/scsi_device")
        (hctl,) = [
            each.name
            for each in devices.iterdir()
            if (each / "device/model").read_text().strip() == "scsi_debug"
        ]
        yield hctl
    finally:
        for unit in units.units():
            units.remove(unit.name, force=True)
        subprocess.run(["modprobe", "--remove", "scsi_debug"], check=True)


@pytest.fixture
def disk_driver(modprobe):
    """LIO claims a disk by its block device, which sd_mod makes."""
    modprobe("sd_mod")
    yield
    modprobe("--remove", "sd_mod")


def test_a_disk(disk_driver, cli, start, tmp_path):
    with scsi_debug("dev_size_mb=16") as hctl:
        node = block_node(Hctl.parse(hctl), timeout_s=HANG_S)
        made = cli("lio", "create", "passed", "--pscsi", node)
        assert made.returncode == 0, made.stderr
        server = start("serve", "--lio", "passed", "--dir", tmp_path / "run")
        data = os.urandom(3 * MIB)
        with vscsi.connect(f"srp:{tmp_path / 'run'}") as hba:
            lun = hba.lun(0)
            assert lun.inquiry().product.strip() == b"scsi_debug"
            assert lun.capacity().blocks == 32768
            lun.write(77, data)  # more than the kernel takes at once
            assert lun.read(77, len(data) // 512) == data
            beyond = hba.command(lun, build("READ(10)", lba=32768, blocks=1), data_in=512)
            assert (beyond.decoded_sense.asc, beyond.data) == (0x21, b"")
        for kind in ("vscsiif", "blkif"):
            with vscsi.connect(f"{kind}:{tmp_path / 'run'}") as hba:
                assert hba.lun(0).read(77, 2048) == data[:MIB]
        assert server.end(signal.SIGTERM) == (0, "")


def test_a_disk_that_grows_tells_one_initiator_and_we_all(disk_driver, start, tmp_path):
    with scsi_debug("dev_size_mb=16") as hctl:
        node = block_node(Hctl.parse(hctl), timeout_s=HANG_S)
        units.create("passed", pscsi_backing(str(node)), {})
        run = tmp_path / "run"
        server = start("serve", "--lio", "passed", "--dir", run)
        ready = build("TEST UNIT READY")
        with vscsi.connect(f"srp:{run}") as one, vscsi.connect(f"vscsiif:{run}") as other:
            for hba in (one, other):
                assert hba.lun(0).capacity().blocks == 32768
            VIRTUAL_GB.write_text("1\n")
            told = []
            while not told or told[-1] != "6/2a/09":
                told.append(code(one.command(one.lun(0), ready)))
                assert len(told) < 9, told
            # And without being asked, so does blkif.
            line = server.wait_for("vscsi serve: LUN 0", "stderr")
            assert line.endswith("16 MiB -> 1 GiB\n")
            assert code(other.command(other.lun(0), ready)) == "6/2a/09"
            assert other.lun(0).capacity().blocks == 1 << 21
        with vscsi.connect(f"blkif:{run}") as hba:
            assert hba.lun(0).capacity().blocks == 1 << 21
        assert server.end(signal.SIGTERM) == (0, "")


def test_a_cd_rom(start, tmp_path):
    with scsi_debug("dev_size_mb=16", "ptype=5", "sector_size=2048") as hctl:
        units.create("cd", pscsi_backing(hctl), {})
        run = tmp_path / "run"
        server = start("serve", "--lio", "cd", "--dir", run)
        assert any("no vbd" in line for line in server.output)
        for kind in ("srp", "vscsiif"):
            with vscsi.connect(f"{kind}:{run}") as hba:
                lun = hba.lun(0)
                assert lun.inquiry().peripheral_device_type == DeviceType.CDROM
                told = lun.command(build("READ CAPACITY(10)"), data_in=8)
                assert told == (8191).to_bytes(4, "big") + (2048).to_bytes(4, "big")
                data = kind[:1].encode() * 4096
                lun.command(build("WRITE(10)", lba=9, blocks=2), data_out=data)
                read = build("READ(10)", lba=8, blocks=4)
                assert lun.command(read, data_in=8192) == bytes(2048) + data + bytes(2048)
                assert hba.command(lun, read, data_in=3000).data == (bytes(2048) + data)[:3000]
        assert server.end(signal.SIGTERM) == (0, "")


MARK = None
RECORDS = (b"a" * 100, b"b" * 5000, MARK, b"c" * 10, b"d" * 512, b"e" * 512, MARK)
GOOD = Answer(Status.GOOD)


class Tape:
    """Answers a TCMU ring as a tape does whose records are RECORDS (SSC-4)."""

    def __init__(self, device):
        self.device = device
        self.at = 0
        self.wake = os.eventfd(0)
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()

    def stop(self):
        if self.thread.is_alive():
            os.eventfd_write(self.wake, 1)
            self.thread.join(HANG_S)
            self.device.close()
            os.close(self.wake)

    def serve(self):
        while self.wake not in select.select([self.device, self.wake], [], [])[0]:
            self.device.clear()
            for entry in self.device.ring.take():
                data, answer = self.execute(entry.cdb)
                scatter(data, self.device.ring.views(entry))
                self.device.ring.answer(entry.cmd_id, answer)
            self.device.kick()

    def execute(self, cdb):
        """Return data-in and answer."""
        if cdb[0] == 0x12:  # INQUIRY
            data = b"\x01\x80\x06\x02\x1f\0\0\0" + b"VSCSI   " + b"TAPE".ljust(16) + b"1   "
            return data[: cdb[4]], GOOD
        if cdb[0] == 0x01:  # REWIND
            self.at = 0
            return b"", GOOD
        if cdb[0] == 0x08:
            return self.read(cdb[1] & 1, int.from_bytes(cdb[2:5], "big"))
        return b"", GOOD

    def read(self, fixed, length):
        found = b""
        for done in range(length if fixed else 1):
            record = RECORDS[self.at]
            self.at += 1
            if record is MARK:
                return found, check(found, filemark=True, information=length - done)
            found += record[: 512 if fixed else length]
            if not fixed and len(record) != length:
                return found, check(found, ili=True, information=length - len(record) & 0xFFFFFFFF)
        return found, Answer(Status.GOOD, read_bytes=len(found))


def check(found, **marks):
    sense = Sense(0, 0, 1 if "filemark" in marks else 0, **marks)
    return Answer(Status.CHECK_CONDITION, sense.build(), read_bytes=len(found))


@pytest.fixture
def tape():
    """Have the tape attached to this machine; return its address here."""
    user_unit.prepare_kernel()
    service, attachment = user_unit.serve("drive", "a test's", 1 << 20, 512, Tape)
    yield attachment.hctl
    for unit in units.units():
        if unit.name != "drive":
            units.remove(unit.name, force=True)
    user_unit.remove("drive", service, force=True)


@pytest.mark.parametrize("passed", [False, True], ids=["user", "pscsi"])
def test_a_tape_loses_no_data_at_marks(tape, start, tmp_path, passed):
    """Twice: as LIO has it from a program, and as it passes a drive through."""
    name = "drive"
    if passed:
        name = "passed"
        units.create(name, pscsi_backing(str(tape)), {})
    start("serve", "--lio", name, "--dir", tmp_path / "run")
    for kind in ("srp", "vscsiif"):
        with vscsi.connect(f"{kind}:{tmp_path / 'run'}") as hba:
            lun = hba.lun(0)
            assert lun.inquiry().peripheral_device_type == DeviceType.TAPE

            def read(length, *, fixed=0, room=None, hba=hba, lun=lun):
                cdb = build(named("READ(6)", DeviceType.TAPE), fixed=fixed, transfer_length=length)
                reply = hba.command(lun, cdb, data_in=room or length)
                return code(reply), reply.data, reply.residual

            lun.command(build(named("REWIND", DeviceType.TAPE)))
            assert read(100) == ("GOOD", b"a" * 100, 0)
            # A block shorter than asked for is all there, with word of it; nothing else is.
            lun.command(build(named("REWIND", DeviceType.TAPE)))
            assert read(4096) == ("0/00/00 ili 3996", b"a" * 100, 3996)
            # Of a longer one, what was asked for.
            assert read(4000) == ("0/00/00 ili 4294966296", b"b" * 4000, 0)
            assert read(512) == ("0/00/01 filemark 512", b"", 512)
            assert read(512)[1] == b"c" * 10
            blocks = b"d" * 512 + b"e" * 512
            assert read(4, fixed=1, room=2048) == ("0/00/01 filemark 2", blocks, 1024)


def code(reply):
    """Key, ASC and ASCQ as the standards' tables have them, and marks; or the status' name."""
    sense = parse_sense(reply.sense) if reply.sense else None
    if sense is None:
        return reply.status.name
    words = [f"{sense.key:x}/{sense.asc:02x}/{sense.ascq:02x}"]
    words += [mark for mark in ("filemark", "eom", "ili") if getattr(sense, mark)]
    words += [str(sense.information)] if sense.information is not None else []
    return " ".join(words)
