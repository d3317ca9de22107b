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

from tests.capture import recorded
from vscsi.capture.exchange import Exchanges
from vscsi.capture.live import LiveCaptures
from vscsi.capture.reader import CaptureReader
from vscsi.target.disk import Disk
from vscsi.target.stores.memory import MemoryStore
from vscsi.transport.export import Export

DATA = Path(__file__).parents[1] / "data"


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


@pytest.fixture(scope="session")
def make_record():
    """Build a record: (protocol, way, ring_index, message, **fields)."""
    return recorded.make_record


@pytest.fixture(scope="session")
def stock_records():
    """A function from a recorded trace's name to [(time_ns, record), ...]."""
    return lambda name: list(recorded.records(name))


def _capture_file(packets, interfaces=1):
    return recorded.capture_file(packets, [f"ring-{n}" for n in range(interfaces)])


@pytest.fixture(scope="session")
def capture_file():
    """Return the bytes of a capture from its packets."""
    return _capture_file


@pytest.fixture(scope="session", params=recorded.NAMES)
def stock_capture(request):
    """The bytes of a capture with a stock driver's messages, ring by ring, and how many."""
    packets = list(recorded.records(request.param))
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

    def __init__(self, directory, store=MemoryStore):
        self.directory = directory
        self.store = store(4 << 20)
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

        def make(name="run", **options):
            served = Served(tmp_path / name, **options)
            stack.callback(served.stop)
            return served

        yield make
