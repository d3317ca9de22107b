# SPDX-License-Identifier: MIT
"""An export of logical units that are no disks, with and without a vbd beside them."""

import pytest

import vscsi
from vscsi.cli.unit import look_at_all
from vscsi.target.disk import Disk
from vscsi.target.stores.memory import MemoryStore
from vscsi.target.wellknown import ReportLunsUnit
from vscsi.transport.export import Export
from vscsi.transport.hba import ScsiError
from vscsi.transport.initiator import TransportError

SIZE = 1 << 20


@pytest.fixture
def run(tmp_path):
    """A unit that knows no blocks, one with a disk beside it, and a disk."""
    beside, disk = Disk(MemoryStore(SIZE)), Disk(MemoryStore(2 * SIZE))
    export = Export(
        tmp_path / "run",
        {0: ReportLunsUnit(), 1: ReportLunsUnit(), 2: disk},
        vbds={1: beside},
    )
    export.start()
    yield tmp_path / "run"
    beside.resize()
    export.stop()


@pytest.mark.parametrize("kind", ["srp", "vscsiif"])
def test_scsi_paths_have_every_unit(run, kind):
    with vscsi.connect(f"{kind}:{run}") as hba:
        assert len(hba.report_luns()) == 3
        assert hba.lun(2).capacity().blocks * 512 == 2 * SIZE
        for number in (0, 1):
            with pytest.raises(ScsiError, match="INVALID COMMAND OPERATION CODE"):
                hba.lun(number).capacity()


def test_a_disk_has_its_units_number_over_blkif(run):
    for number, size in ((1, SIZE), (2, 2 * SIZE)):
        with vscsi.connect(f"blkif:{run}?disk={number}") as hba:
            assert hba.lun(0).capacity().blocks * 512 == size
    with pytest.raises(TransportError):
        vscsi.connect(f"blkif:{run}")
    assert [unit.size_bytes for unit in look_at_all(f"blkif:{run}?disk=2")] == [2 * SIZE]
