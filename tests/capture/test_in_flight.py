# SPDX-License-Identifier: MIT
"""What a record says of a ring: where its message was, how many others were under way, and when."""

import io

import pytest

import vscsi
from vscsi.capture.decode import Answer, Kind, decode
from vscsi.capture.reader import CaptureReader
from vscsi.capture.writer import CaptureWriter
from vscsi.target.stores.file import FileStore
from vscsi.target.stores.memory import MemoryStore
from vscsi.wire.cdb import build
from vscsi.wire.record import Way

KINDS = ("srp", "vscsiif", "blkif")
COMMANDS = 400


class PythonStore(MemoryStore):
    """One that the C path does not know."""

    def __init__(self, size_bytes):
        super().__init__(size_bytes)
        self.native = None


def captured(serve, tmp_path, kind, store):
    """Capture a ring on which many commands are under way at once."""
    served = serve(store=store)
    writer = CaptureWriter((tmp_path / "a.pcapng").open("wb", buffering=0), "a test")
    with vscsi.connect(f"{kind}:{served.directory}") as hba:
        unit = hba.lun(0)
        unit.read(0, 1)
        remove = served.export.tap.add(writer)
        cdbs = [build("READ(16)", lba=at, blocks=1) for at in range(COMMANDS)]
        for reply in [hba.start(unit, cdb, data_in=512) for cdb in cdbs]:
            assert reply.result(60).status == 0
        remove()
    writer.close()
    assert writer.dropped == 0
    return list(CaptureReader(io.BytesIO((tmp_path / "a.pcapng").read_bytes())))


def a_file(tmp_path):
    """A store that has a device below it: the C path executes commands there later."""
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(4 << 20))
    return lambda _size: FileStore(path)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("store", ["memory", "python", "file"])
def test_ring_positions_and_commands_under_way(serve, tmp_path, kind, store):
    stores = {"memory": MemoryStore, "python": PythonStore, "file": a_file(tmp_path)}
    messages = captured(serve, tmp_path, kind, stores[store])
    records = [message.record for message in messages]
    asked = [(at, decode(record)) for at, record in enumerate(records)]
    requests = [at for at, message in asked if not isinstance(message, Answer)]
    answers = [at for at, message in asked if isinstance(message, Answer)]
    assert len(requests) == len(answers) == COMMANDS
    for side in (requests, answers):  # each ring is used slot after slot
        first = records[side[0]].ring_index
        assert [records[at].ring_index for at in side] == [
            (first + n) & 0xFFFF_FFFF for n in range(COMMANDS)
        ]
    times = [message.time_ns for message in messages]
    open_, ends = [], {}
    for at, message in asked:
        if isinstance(message, Answer):
            begun = open_.pop(next(n for n, (_, tag) in enumerate(open_) if tag == message.tag))
            ends[begun[0]] = at
        else:
            open_.append((at, message.tag))
    assert not open_
    most = 0
    for at in requests:
        # Those that came before and are answered after; what one look found came at once.
        under_way = sum(1 for other in requests if other < at < ends[other])
        at_once = sum(
            1 for other in requests if other < at and ends[other] < at and times[other] == times[at]
        )
        assert records[at].in_flight == under_way + at_once
        most = max(most, records[at].in_flight)
    assert most > 0
    for request, answer in ends.items():
        assert times[request] <= times[answer]
        assert records[request].direction == Way.TO_TARGET
    assert {message.kind for _, message in asked} == {Kind.COMMAND}
