# SPDX-License-Identifier: MIT
"""Sources in memory, and initiators that answer as they are told."""

import threading
from collections import deque

import pyarrow as pa
import pytest

from vscsi.capture.commands import Channel, Disk, Event, Fate, Troubles
from vscsi.capture.replay.order import InOrder
from vscsi.capture.replay.run import How, Replay
from vscsi.capture.replay.step import Steps
from vscsi.capture.replay.units import Units
from vscsi.capture.sources.columns import assemble, of_cdbs
from vscsi.target.base import Status
from vscsi.transport.hba import Hba
from vscsi.transport.initiator import Buffer, InitiatorStatistics
from vscsi.wire import cdb as cdbs


class MemorySource:
    """A source of batches that are there; `disks` may be given."""

    format = "a test's"

    def __init__(self, batches, disks=None, events=()):
        self.channels = [Channel("a", "srp")]
        self.disks = disks or [Disk("a lun 0", lun=bytes(8))]
        self.events: list[Event] = list(events)
        self.events_dropped = 0
        self.troubles = Troubles()
        self._batches = batches

    def __iter__(self):
        yield from self._batches


@pytest.fixture(scope="session")
def source():
    """Make a source of batches."""
    return MemorySource


@pytest.fixture(scope="session")
def batch():
    """Make a batch from dictionaries; what a CDB says fills in what they lack."""

    def make(rows):
        count = len(rows)
        columns = of_cdbs(pa.array([row.get("cdb") for row in rows], pa.binary()))
        filled = {
            "serial": list(range(count)),
            "time_ns": [1000 * at for at in range(count)],
            "outstanding": 0,
            "fate": int(Fate.ANSWERED),
            **columns,
        }
        for name in {name for row in rows for name in row}:
            base = filled.get(name, [None] * count)
            if isinstance(base, int):
                base = [base] * count
            base = base.to_pylist() if isinstance(base, pa.Array) else list(base)
            filled[name] = [row.get(name, value) for row, value in zip(rows, base, strict=True)]
            if name in ("data_in", "data_out"):
                filled[name] = [value or 0 for value in filled[name]]
        return assemble(count, filled)

    return make


@pytest.fixture(scope="session")
def transfer():
    """Make a row of READ(10) or WRITE(10), of blocks of 512 bytes, answered GOOD."""

    def make(name, lba, blocks=1, **fields):
        length = blocks * 512
        way = "data_out" if name == "WRITE" else "data_in"
        cdb = cdbs.build(f"{name}(10)", lba=lba, blocks=blocks)
        return {"cdb": cdb, way: length, "status": 0, "latency_ns": 500, "residual": 0, **fields}

    return make


@pytest.fixture(scope="session")
def run_replay():
    """Run a replay of a source over an HBA to its end; returns it."""

    def run(hba, source, *, lun=None, **how):
        how.setdefault("speed", None)
        replay = Replay(
            hba, Units(hba, lun), Steps(InOrder(source), source.events), source.disks, How(**how)
        )
        replay.run()
        return replay

    return run


class FakeInitiator:
    """Holds commands until it is told to answer, or answers all at once as GOOD."""

    def __init__(self, *, at_once=True, blocks=1 << 20, reply=None):
        self.statistics = InitiatorStatistics()
        self.commands = []
        self.managed = []
        self.held = deque()
        self.at_once = at_once
        self.arrived = threading.Semaphore(0)
        self.in_use = 0
        self._reply = reply
        self._capacity = (blocks - 1).to_bytes(8, "big") + (512).to_bytes(4, "big")

    def alloc(self, length):
        self.in_use += length
        return Buffer(memoryview(bytearray(length)), 0)

    def free(self, buffer):
        self.in_use -= len(buffer)

    def submit(self, command):
        name = cdbs.lookup(command.cdb).name
        if name == "READ CAPACITY(16)":
            command.data_in[0].view[:12] = self._capacity
            command.done(command)
            return
        if name == "TEST UNIT READY":
            command.done(command)
            return
        self.commands.append(command)
        if self.at_once:
            self.answer(command)
        else:
            self.held.append(command)
            self.arrived.release()

    def answer(self, command, status=Status.GOOD, sense=b""):
        command.status, command.sense = status, sense
        if self._reply is not None:
            self._reply(command)
        command.done(command)

    def manage(self, request):
        self.managed.append(request)
        request.done(request)

    def parameters(self):
        return {}

    def backend_statistics(self):
        return {}

    def close(self):
        pass


@pytest.fixture
def fake():
    """Make an HBA on a FakeInitiator: returns both."""

    def make(**options):
        initiator = FakeInitiator(**options)
        return Hba(initiator), initiator

    return make
