# SPDX-License-Identifier: MIT
"""The load on a device with several queues: what it asks for, on which ring, and what it tells."""

import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from vscsi.bench.compare import load_on
from vscsi.bench.queues_loop import QueuesLoop, shares
from vscsi.bench.workload import MODES, Workload
from vscsi.target.disk import Disk
from vscsi.transport.connect import connect
from vscsi.transport.export import Export

SIZE_BYTES, BLOCK = 1 << 20, 4096
RUN_NS = 50_000_000
two_rings = pytest.mark.parametrize("ring", ["srp", "blkif"])


@pytest.fixture
def served(tmp_path: Path, store) -> Iterator[Path]:
    """Serve the store with four queues."""
    export = Export(tmp_path / "run", {0: Disk(store)}, queues=4)
    export.start()
    yield tmp_path / "run"
    export.stop()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("depth", [1, 3, 4, 9])
def test_the_shares_are_the_whole(mode: str, depth: int) -> None:
    whole = Workload(mode, BLOCK, depth, 8192, 10 * BLOCK, rate_per_s=900.0)
    parts = list(shares(whole, 4))
    assert len(parts) == min(4, depth)
    assert sum(part.depth for part in parts) == depth
    assert sum(part.rate_per_s for part in parts) == pytest.approx(900.0)
    assert len({part.seed for part in parts}) == len(parts)
    ranges = [range(part.offset_bytes, part.offset_bytes + part.size_bytes) for part in parts]
    if whole.at_random:
        assert set(ranges) == {range(8192, 8192 + 10 * BLOCK)}
    else:
        assert ranges[0].start == 8192
        assert all(a.stop == b.start for a, b in itertools.pairwise(ranges))
        assert ranges[-1].stop == 8192 + 10 * BLOCK


@two_rings
@pytest.mark.parametrize("mode", ["randread", "rw"])
def test_every_queue_works_and_all_of_it_is_counted(
    served: Path, store, ring: str, mode: str
) -> None:
    with connect(f"{ring}:{served}?queues=4") as hba:
        workload = Workload(mode, BLOCK, 8, 0, SIZE_BYTES, seed=3)
        load = load_on("x", hba.lun(0), workload)
        assert isinstance(load, QueuesLoop)
        assert load.parameters()["queues"] == 4
        before, asked = load.counters(), len(store.asked)
        run = load.run(RUN_NS)
        after = load.counters()
        load.close()
        reports = hba.initiator.backend_statistics()["queues"]
    assert run.failure is None
    assert run.operations > 0
    assert run.outstanding == 8
    assert after.backend_requests - before.backend_requests == run.operations
    assert len(store.asked) - asked == run.operations
    kinds = Counter(what for what, _, _ in store.asked[asked:])
    assert kinds["read"] == run.read_latencies.total()
    assert kinds["write"] == run.write_latencies.total()
    assert all(report["requests"] for report in reports)


@two_rings
def test_errors_and_the_end_of_the_path_are_told(served: Path, store, ring: str) -> None:
    store.bad_offsets = set(range(0, SIZE_BYTES, BLOCK))
    with connect(f"{ring}:{served}?queues=2") as hba:
        load = load_on("x", hba.lun(0), Workload("randread", BLOCK, 4, 0, SIZE_BYTES))
        run = load.run(RUN_NS)
        assert run.operations == 0
        assert sum(run.errors.values()) > 0
        hba.initiator.queues[1]._break("the test ends it")
        assert load.run(RUN_NS).failure
        load.close()
