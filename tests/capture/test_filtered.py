# SPDX-License-Identifier: MIT
"""The filter on commands of a file keeps what the filter on messages keeps as they cross."""

import io

import pytest

import vscsi
from vscsi.capture.choice import Choice, Filter
from vscsi.capture.commands import Source
from vscsi.capture.filtered import Filtered
from vscsi.capture.sources import Opened
from vscsi.capture.writer import CaptureWriter
from vscsi.transport.hba import ScsiError
from vscsi.wire.cdb import build

FILTERS = [
    Filter(),
    Filter(luns=(0,)),
    Filter(luns=(1, 2)),
    Filter(opcodes=("read",)),
    Filter(opcodes=("WRITE", "flush")),
    Filter(opcodes=("unmap",)),
    Filter(opcodes=("0x12", "READ CAPACITY(16)")),
    Filter(lba=(20, 39)),
    Filter(lba=(1 << 30, (1 << 64) - 1)),
    Filter(statuses=("good",)),
    Filter(statuses=("error",), opcodes=("read",)),
    Filter(statuses=("check-condition",), lba=(0, 1 << 63)),
]
COLUMNS = ["tag", "cdb", "opcode", "lba", "blocks", "ring_index", "fate", "status", "latency_ns"]


def rows(source: Source):
    """Each ring's commands by channel name."""
    found = []
    for batch in source:
        names = [source.channels[at].name for at in batch.column("channel").to_pylist()]
        found += zip(names, batch.select(COLUMNS).to_pylist(), strict=True)
    return sorted(found, key=lambda each: (each[0], each[1]["ring_index"]))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """One capture of all and one for each filter, of the same traffic."""
    from tests.capture.conftest import Served

    directory = tmp_path_factory.mktemp("filtered")
    served = Served(directory / "run")
    files = [directory / f"{at}.pcapng" for at in range(len(FILTERS) + 1)]
    writers = []
    for file, chosen in zip(files, [Filter(), *FILTERS], strict=True):
        writer = CaptureWriter(
            file.open("wb", buffering=0),
            "a test",
            choice=Choice(filter=chosen),
            units=served.export.tap.units,
        )
        served.export.tap.add(writer)
        writers.append(writer)
    for kind in ("srp", "vscsiif", "blkif"):
        with vscsi.connect(f"{kind}:{served.directory}") as hba:
            unit = hba.lun(0)
            unit.inquiry()
            for lba in range(0, 80, 8):
                unit.write(lba, bytes(4096))
                unit.read(lba, 8)
            unit.flush()
            unit.unmap(16, 2)
            with pytest.raises(ScsiError):
                unit.command(build("READ(16)", lba=1 << 40, blocks=1), data_in=512)
            with pytest.raises(ScsiError):
                unit.command(build("READ(6)", lba=0x1FFFFF, blocks=1), data_in=512)
    served.stop()
    for writer in writers:
        writer.close()
        assert (writer.error, writer.dropped) == (None, 0)
    return files


@pytest.mark.parametrize("at", range(len(FILTERS)))
def test_both_filters_keep_the_same(recorded, at):
    chosen = FILTERS[at]
    with Opened(str(recorded[0])) as whole, Opened(str(recorded[at + 1])) as part:
        filtered = Filtered(whole, chosen)
        kept = rows(filtered)
        assert kept == rows(part)
        assert (len(kept) > 0) == (chosen != Filter(luns=(1, 2)))
        assert (filtered.left_out > 0) == (bool(chosen) and chosen != Filter(luns=(0,)))


def test_a_file_is_converted_in_part(recorded, cli, tmp_path):
    import pyarrow.parquet as pq

    out = tmp_path / "a.parquet"
    done = cli("capture", "convert", recorded[0], "--to", "parquet", "-o", out, "--opcode", "write")
    assert done.returncode == 0, done.stderr
    table = pq.read_table(io.BytesIO(out.read_bytes()))
    assert set(table.column("operation").to_pylist()) == {2}
    assert table.num_rows == 30
