# SPDX-License-Identifier: MIT
"""A served disk with captures, and recorded traffic of stock drivers as capture files."""

import io
import json
import os
import subprocess
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from vscsi.capture.exchange import Exchanges
from vscsi.capture.live import LiveCaptures
from vscsi.capture.reader import CaptureReader
from vscsi.target.disk import Disk
from vscsi.target.stores.memory import MemoryStore
from vscsi.transport.export import Export
from vscsi.wire import pcapng
from vscsi.wire.mad import CrqFormat
from vscsi.wire.record import LayoutCode, Protocol, Way, build_record
from vscsi.wire.srp_ring import SlotFormat, build_slot

CAPTURES = Path(__file__).parents[2] / "captures"
DATA = Path(__file__).parents[1] / "data"
START_NS = 1_700_000_000_000_000_000
STOCK = ("xen-blkfront.json", "xen-scsifront.json", "ibmvscsi-srp.jsonl")


@pytest.fixture(autouse=True)
def nothing_left():
    """No exception in a thread, and no thread of a capture left over."""
    raised = []
    hook, threading.excepthook = threading.excepthook, raised.append
    yield
    threading.excepthook = hook
    assert not raised
    assert not [thread for thread in threading.enumerate() if thread.name == "capture"]


@pytest.fixture
def no_descriptor_left():
    """For tests whose processes have ended with them."""
    before = os.listdir("/proc/self/fd")
    yield
    assert len(os.listdir("/proc/self/fd")) <= len(before)


def _stock_records(name):
    """Yield the time and the record of each message of a recorded trace."""
    text = (CAPTURES / name).read_text()
    if name.endswith(".jsonl"):
        for at, pair in enumerate(json.loads(line) for line in text.splitlines()):
            form = SlotFormat.MAD if pair["crq"][2:4] == f"{CrqFormat.MAD:02x}" else SlotFormat.SRP
            for way, side in ((Way.TO_TARGET, "req"), (Way.TO_INITIATOR, "rsp")):
                slot = build_slot(form, bytes.fromhex(pair[side]))
                # The trace has one time for both.
                time_ns = round(pair["t"] * 1e9) + 1000 * way
                yield time_ns, _record(Protocol.SRP, way, at, slot)
        return
    protocol = Protocol.BLKIF if "blkfront" in name else Protocol.VSCSIIF
    for entry in json.loads(text):
        way = Way.TO_TARGET if entry["dir"] == "req" else Way.TO_INITIATOR
        message = bytes.fromhex(entry["slot"])
        queue = entry.get("q", 0)
        yield (
            round(entry["t"] * 1e9),
            _record(protocol, way, entry["idx"], message, queue=queue),
        )


def _record(protocol, way, ring_index, message, **fields):
    layout = LayoutCode.X86_64 if protocol is Protocol.BLKIF else LayoutCode.NONE
    return build_record(
        **{
            "protocol": protocol,
            "direction": way,
            "layout": layout,
            "domain": 7,
            "device": 3,
            "ring_index": ring_index & 0xFFFFFFFF,
            "message": message,
            **fields,
        }
    )


@pytest.fixture(scope="session")
def make_record():
    """Build a record: (protocol, way, ring_index, message, **fields)."""
    return _record


@pytest.fixture(scope="session")
def stock_records():
    """A function from a recorded trace's name to [(time_ns, record), ...]."""
    return lambda name: list(_stock_records(name))


def _capture_file(packets, interfaces=1):
    """Return a capture of (time_ns, record) or (time_ns, record, interface, lost)."""
    blocks = [pcapng.section("a test")]
    blocks += [pcapng.interface(f"ring-{n}", "") for n in range(interfaces)]
    for time_ns, record, *more in packets:
        number, lost = more or (0, 0)
        blocks.append(pcapng.packet(number, START_NS + time_ns, record, lost))
    return b"".join(blocks)


@pytest.fixture(scope="session")
def capture_file():
    """Return the bytes of a capture from its packets."""
    return _capture_file


@pytest.fixture(scope="session", params=STOCK)
def stock_capture(request):
    """The bytes of a capture with a stock driver's messages, ring by ring, and how many."""
    packets = list(_stock_records(request.param))
    return _capture_file(packets), len(packets)


@pytest.fixture(scope="session")
def read():
    """Return all that can be read of a capture's bytes, and the reader."""

    def read_all(data):
        reader = CaptureReader(io.BytesIO(data))
        return list(reader), reader

    return read_all


@pytest.fixture(scope="session")
def joined():
    """Return the exchanges of a capture's bytes."""

    def join(data):
        exchanges = Exchanges()
        found = []
        for captured in CaptureReader(io.BytesIO(data)):
            found += exchanges.add(captured)
        return found + list(exchanges.rest())

    return join


@pytest.fixture(scope="session")
def vectors():
    return json.loads((DATA / "golden_vectors.json").read_text())


@pytest.fixture(scope="session")
def wireshark():
    """Run one of Wireshark's tools; returns its output."""

    def run(*command):
        done = subprocess.run(
            [str(part) for part in command], capture_output=True, text=True, timeout=60, check=True
        )
        return done.stdout

    return run


class Served:
    """An export of one memory disk in this process."""

    def __init__(self, directory):
        self.directory = directory
        self.store = MemoryStore(4 << 20)
        self.export = Export(directory, {0: Disk(self.store, identity="a test's disk")})
        self.live = LiveCaptures(self.export, "a test")
        self.export.start()

    def stop(self):
        self.export.stop()
        self.live.close()
        self.store.close()


@pytest.fixture
def serve(tmp_path):
    """Serve a disk: returns a Served."""
    with ExitStack() as stack:

        def make(name="run"):
            served = Served(tmp_path / name)
            stack.callback(served.stop)
            return served

        yield make
