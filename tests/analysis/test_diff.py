# SPDX-License-Identifier: MIT
"""Two analyses side by side."""

from tests.analysis.made import Made, row
from vscsi.analysis.diff import compare, distance
from vscsi.analysis.only import OfProtocols
from vscsi.analysis.result import Analysis, Histogram
from vscsi.analysis.run import analyze
from vscsi.capture.commands import Event, Operation


def of(*rows: dict[str, object]) -> Analysis:
    return analyze([("made", Made(rows))])


def test_figures_stand_beside_each_other() -> None:
    a = of(row(0, latency_ns=1000), row(1, latency_ns=1000))
    b = of(row(0, latency_ns=4000), row(1, operation=Operation.FLUSH))
    found = {(each.what, each.figure): each for each in compare("a", a, "b", b).differences}
    reads = found["READ(10)", "count"]
    assert (reads.a, reads.b, reads.ratio) == (2, 1, 0.5)
    assert found["READ(10)", "latency mean us"].ratio == 4
    flushes = found["SYNCHRONIZE CACHE(10)", "count"]
    assert (flushes.a, flushes.b, flushes.ratio) == (None, 1, None)


def test_the_shape_of_histograms_is_compared() -> None:
    slow = [row(n, latency_ns=9_000_000) for n in range(4)]
    fast = [row(n, latency_ns=900) for n in range(2)]
    shifts = {
        (each.measure, each.klass): each for each in compare("", of(*slow), "", of(*fast)).shifts
    }
    assert shifts["latency_us", "all"].distance == 1
    assert shifts["io_length_bytes", "read"].distance == 0
    assert shifts["latency_us", "write"].distance is None


def test_distance_is_of_cumulative_shares() -> None:
    bounds = (1.0, 2.0, 3.0)
    half = Histogram(bounds, (1, 1, 0, 0))
    other = Histogram(bounds, (0, 10, 10, 0))
    assert distance(half, other) == 0.5
    assert distance(half, half) == 0
    assert distance(half, Histogram((1.0,), (1, 0))) is None


def test_json_has_both_and_what_differs() -> None:
    told = compare("a", of(row(0)), "b", of()).to_json()
    assert told["a"]["total"]["count"] == 1
    assert told["b"]["commands"] == []
    assert {"what": "all", "figure": "count", "a": 1, "b": 0, "ratio": 0.0} in told["differences"]


def test_a_path_is_what_crossed_by_its_protocol() -> None:
    rows = [row(0), row(1, channel=1), row(2)]
    events = [Event(1, 0, "here"), Event(2, 1, "there")]
    source = OfProtocols(Made(rows, events=events), ["blkif"])
    analysis = analyze([("made", source)])
    assert analysis.total.count == 1
    assert [each.words for each in analysis.events] == ["there"]
