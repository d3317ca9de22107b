# SPDX-License-Identifier: MIT
"""What a ring's commands are counted as that Python executes, hangs on, or is made to abort."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from vscsi.domain.toolstack import VBD, VSCSI, VSRP
from vscsi.target.base import Function, ServiceResponse
from vscsi.wire.cdb import build

KINDS = {"srp": VSRP, "vscsiif": VSCSI, "blkif": VBD}
INQUIRY = build("INQUIRY", allocation_length=36)
READ = build("READ(10)", lba=0, blocks=1)


def counted(end):
    """Return how many commands of each name a ring has counted, whatever the logical unit."""
    return {
        counts.names[row]: sum(latencies)
        for counts in end.counts.units.values()
        for row, latencies, *_ in counts.tally.read()
    }


@pytest.mark.parametrize("path", ["srp", "vscsiif"])
def test_what_hangs_is_in_flight_and_counted_when_it_is_answered(serve, eventually, path):
    server = serve(workers=4)
    with server.connect(path) as hba:
        end = server.end(1, KINDS[path])
        service = end.connection.service
        hba.lun(0).read(0, 1)  # after which there is no unit attention
        server.store.hold("read")
        held = [hba.start(hba.lun(0), READ, data_in=512) for _ in range(3)]
        eventually(lambda: server.store.inside == 3)
        # Known by the ring's thread, which looks when something comes.
        hba.command(hba.lun(0), INQUIRY, data_in=36)
        eventually(lambda: service.in_flight >= 3)
        assert "READ(10)" not in counted(end)
        server.store.release()
        assert all(future.result().data == bytes(512) for future in held)
        hba.command(hba.lun(0), INQUIRY, data_in=36)
        eventually(lambda: service.in_flight == 0)
        eventually(lambda: counted(end).get("READ(10)") == 3)
        assert service.most_in_flight >= 3


@pytest.mark.parametrize("path", ["srp", "vscsiif"])
def test_what_is_aborted_is_in_no_histogram(serve, eventually, path):
    server = serve(workers=4)
    with server.connect(path) as hba, ThreadPoolExecutor() as threads:
        end = server.end(1, KINDS[path])
        hba.lun(0).read(0, 1)
        eventually(lambda: "READ(16)" in counted(end))
        server.store.hold("read")
        held = [hba.start(hba.lun(0), READ, data_in=512) for _ in range(2)]
        eventually(lambda: server.store.inside == 2)
        asked = end.statistics.requests
        abort = threads.submit(hba.manage, hba.lun(0), Function.ABORT_TASK, managed=held[0].command)
        eventually(lambda: end.statistics.requests > asked)
        hba.command(hba.lun(0), INQUIRY, data_in=36)  # which comes behind it
        server.store.release()
        assert abort.result() is ServiceResponse.FUNCTION_COMPLETE
        assert held[1].result().data == bytes(512)
        eventually(lambda: counted(end).get("READ(10)") == 1)
        assert end.counts.aborted == {server.disks[0]: 1}
        assert end.counts.managed == {("ABORT_TASK", "FUNCTION_COMPLETE"): 1}


def test_a_unit_that_has_gone_is_counted_no_more(serve, eventually, watched_store):
    server = serve(watched_store(), watched_store())
    with server.connect("srp") as hba:
        end = server.end(1, VSRP)
        for number in (0, 1):
            hba.lun(number).read(0, 1)
        assert set(server.disks) <= set(end.counts.units)
        server.export.remove(1)
        eventually(lambda: hba.lun(0).read(0, 1) and server.disks[1] not in end.counts.units)
        assert server.disks[0] in end.counts.units


def test_blkif_counts_what_python_executes_by_operation(serve, eventually):
    server = serve()
    with server.connect("blkif") as hba:
        end = server.end(1, VBD)
        server.store.log.clear()
        unit = hba.lun(0)
        unit.write(0, bytes(4096))
        unit.read(0, 8)
        unit.read(0, 1024)  # more segments than a plain request has
        hba.command(unit, build("SYNCHRONIZE CACHE(10)"))
        eventually(
            lambda: counted(end) == {"WRITE": 1, "READ": 2, "FLUSH_DISKCACHE": 1}, "the counts"
        )
        assert "read" in [entry[0] for entry in server.store.log]
        (row,) = (row for row in end.counts.units[server.disks[0]].tally.read() if row[4] == 4096)
        assert end.counts.units[server.disks[0]].names[row[0]] == "WRITE"
        assert end.connection.service.executed == 0
