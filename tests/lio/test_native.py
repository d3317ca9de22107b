# SPDX-License-Identifier: MIT
"""Reads and writes that LIO executes without the interpreter, and what must not be lost by it."""

import os
import queue
from contextlib import ExitStack
from pathlib import Path

import pytest

import vscsi
from tgt_glue import units
from tgt_glue.backing import block_backing, ramdisk_backing
from tgt_glue.lio_unit import LioUnit
from tgt_glue.nodes import hctl_of
from tgt_glue.unit_port import UnitPort
from vscsi.target.base import Function, ServiceResponse, Status
from vscsi.transport.export import Export
from vscsi.transport.initiator import Command
from vscsi.wire.cdb import build

# rtslib's use of pyudev.
pytestmark = pytest.mark.filterwarnings("ignore:Will be removed in 1.0:DeprecationWarning")

MIB = 1 << 20
BLOCK = 512
HANG_S = 120
KEY = (1).to_bytes(8, "big")
KINDS = ["srp", "vscsiif"]


class Served:
    """One unit of LIO's behind rings."""

    def __init__(self, stack, directory, backing):
        name = f"native{len(units.units())}"
        units.create(name, backing, {})
        stack.callback(units.remove, name, force=True)
        self.unit = LioUnit(UnitPort(name))
        stack.callback(self.unit.close)
        self.directory, self._stack = directory, stack
        export = Export(directory, {0: self.unit})
        export.start()
        stack.callback(export.stop)

    def connect(self, kind):
        """Return an initiator's HBA, whose next read or write is executed in C."""
        hba = self._stack.enter_context(vscsi.connect(f"{kind}:{self.directory}"))
        hba.lun(0).read(0, 1)
        hba.lun(0).read(0, 1)
        return hba


@pytest.fixture
def serve(tmp_path):
    """Serve a unit of LIO's; all is taken down in the end."""
    with ExitStack() as stack:
        yield lambda backing: Served(stack, tmp_path, backing)


def executed(hba):
    """How many commands Python has not seen."""
    return hba.initiator.backend_statistics()["executed_in_c"]


def told(hba, cdb, **data):
    """Execute a command; return key, ASC and ASCQ, or its status."""
    reply = hba.command(hba.lun(0), cdb, **data)
    sense = reply.decoded_sense
    return f"{sense.key:x}/{sense.asc:02x}/{sense.ascq:02x}" if sense else reply.status.name


def persistent_reserve(hba, action, parameters, **fields):
    cdb = build(f"PERSISTENT RESERVE OUT {action}", parameter_list_length=24, **fields)
    return told(hba, cdb, data_out=parameters)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("size", "blocks"), [(6, 1), (10, 8), (12, 200), (16, 16)])
def test_what_is_written_is_read_again_without_the_interpreter(serve, kind, size, blocks):
    """32 commands at a time; Python's own path reads the same."""
    hba = serve(ramdisk_backing(64 * MIB)).connect(kind)
    lun, count = hba.lun(0), 32
    data = [os.urandom(blocks * BLOCK) for _ in range(count)]
    before = executed(hba)
    writes = [
        hba.start(lun, build(f"WRITE({size})", lba=at * blocks, blocks=blocks), data_out=each)
        for at, each in enumerate(data)
    ]
    assert all(future.result(HANG_S).status is Status.GOOD for future in writes)
    reads = [
        hba.start(
            lun, build(f"READ({size})", lba=at * blocks, blocks=blocks), data_in=blocks * BLOCK
        )
        for at in range(count)
    ]
    assert [future.result(HANG_S).data for future in reads] == data
    assert executed(hba) - before == 2 * count
    longer = build("READ(10)", lba=0, blocks=blocks)
    assert hba.command(lun, longer, data_in=blocks * BLOCK + 1).data == data[0]
    assert executed(hba) - before == 2 * count


@pytest.mark.parametrize("kind", KINDS)
def test_a_unit_attention_that_a_read_in_c_meets_is_told_once(serve, kind):
    served = serve(ramdisk_backing(16 * MIB))
    hba, other = served.connect(kind), served.connect("srp")
    lun, read = hba.lun(0), build("READ(10)", blocks=8)
    for _ in range(3):
        response = other.manage(other.lun(0), Function.LOGICAL_UNIT_RESET)
        assert response is ServiceResponse.FUNCTION_COMPLETE
        futures = [hba.start(lun, read, data_in=4096) for _ in range(8)]
        replies = [future.result(HANG_S) for future in futures]
        senses = [reply.decoded_sense for reply in replies if reply.status is not Status.GOOD]
        assert [(each.key, each.asc, each.ascq) for each in senses] == [(6, 0x29, 0x03)]
        before = executed(hba)
        told(hba, read, data_in=4096)  # Python's, if it was the last one that has met it
        assert told(hba, read, data_in=4096) == "GOOD"
        assert executed(hba) > before
        told(other, build("TEST UNIT READY"))  # its own


def test_a_reservation_keeps_the_other_initiators_writes_out(serve):
    served = serve(ramdisk_backing(16 * MIB))
    one, other = served.connect("srp"), served.connect("vscsiif")
    assert persistent_reserve(one, "REGISTER", bytes(8) + KEY + bytes(8)) == "GOOD"
    assert persistent_reserve(one, "RESERVE", KEY + bytes(16), type=1) == "GOOD"
    write = build("WRITE(10)", blocks=8)
    assert told(other, write, data_out=b"x" * 4096) == "RESERVATION_CONFLICT"
    assert other.lun(0).read(0, 8) == bytes(4096)
    before = executed(one)
    assert told(one, write, data_out=b"y" * 4096) == "GOOD"
    assert executed(one) == before + 1
    before = executed(other)
    assert other.lun(0).read(0, 8) == b"y" * 4096
    assert executed(other) == before + 1
    assert persistent_reserve(one, "CLEAR", KEY + bytes(16)) == "GOOD"


@pytest.mark.parametrize("kind", KINDS)
def test_a_unit_that_has_grown_is_the_c_paths_again(mapped, serve, kind):
    served = serve(block_backing(mapped("grows", "0 131072 zero")))
    hba = served.connect(kind)
    served.unit.rescan()
    mapped.load("grows", "0 262144 zero")
    served.unit.rescan()
    last = build("READ(10)", lba=262143, blocks=1)
    assert [told(hba, last, data_in=BLOCK) for _ in range(2)] == ["6/2a/09", "GOOD"]
    before = executed(hba)
    assert told(hba, last, data_in=BLOCK) == "GOOD"
    assert executed(hba) == before + 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_failed_read_shows_the_initiator_nothing(mapped, serve, kind):
    """The kernel copies back what was asked for, whatever has come."""
    hba = serve(block_backing(mapped("fails", "0 131072 zero"))).connect(kind)
    buffer = hba.initiator.alloc(4096)
    buffer.view[:] = b"\x5a" * 4096
    mapped.load("fails", "0 131072 error")
    finished = queue.SimpleQueue()
    read = build("READ(10)", blocks=8)
    hba.initiator.submit(Command(hba.lun(0).address, read, finished.put, data_in=[buffer]))
    command = finished.get(timeout=HANG_S)
    assert (command.status, command.error) == (Status.CHECK_CONDITION, None)
    assert bytes(buffer.view) == b"\x5a" * 4096
    hba.initiator.free(buffer)


def test_32_commands_are_outstanding_in_the_kernel(mapped, serve):
    served = serve(block_backing(mapped("slow", "0 131072 zero")))
    hba = served.connect("srp")
    before = executed(hba)
    (device,) = served.unit._devices.values()
    busy = Path("/sys/class/scsi_device", str(hctl_of(device._node.path)), "device/device_busy")
    with mapped.suspended("slow"):
        read = build("READ(10)", blocks=8)
        futures = [hba.start(hba.lun(0), read, data_in=4096) for _ in range(40)]
        while int(busy.read_text()) != 32:
            assert not any(future.done() for future in futures)
    assert all(future.result(HANG_S).data == bytes(4096) for future in futures)
    assert executed(hba) == before + 40
