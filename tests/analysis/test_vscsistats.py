# SPDX-License-Identifier: MIT
"""Histograms as vscsiStats' CSV, read back by what it says of itself."""

import csv
import io

from tests.analysis.made import Made, row
from vscsi.analysis import vscsistats
from vscsi.analysis.run import analyze
from vscsi.capture.commands import Operation


def sections(text: str) -> dict[str, tuple[dict[str, int], list[tuple[int, str]]]]:
    """Return by title the figures and the (count, limit) of each bucket."""
    found: dict[str, tuple[dict[str, int], list[tuple[int, str]]]] = {}
    figures: dict[str, int] = {}
    buckets: list[tuple[int, str]] = []
    for line in csv.reader(io.StringIO(text)):
        if not line:
            continue
        if line[0].startswith("Histogram: "):
            figures, buckets = {}, []
            found[line[0].removeprefix("Histogram: ")] = figures, buckets
            assert line[1] == "virtual disk"
            assert len(line) == 3
        elif line[0] in ("min", "max", "mean", "count"):
            figures[line[0]] = int(line[1])
        elif line[0] != "Frequency":
            buckets.append((int(line[0]), line[1]))
    return found


ROWS = [
    row(0, lba=0, latency_ns=99_600),
    row(1, lba=8, latency_ns=600_000),
    row(2, lba=16, operation=Operation.WRITE, blocks=1, latency_ns=1_000),
]


def test_it_has_all_histograms_in_order_and_their_numbers() -> None:
    output = io.BytesIO()
    written = vscsistats.write(Made(ROWS), output)
    assert (written.commands, written.left_out) == (3, 0)
    found = sections(output.getvalue().decode())
    assert len(found) == 18
    assert [*found][:4] == [
        "IO lengths of commands",
        "IO lengths of Read commands",
        "IO lengths of Write commands",
        "distance (in LBNs) between successive commands",
    ]
    figures, buckets = found["IO lengths of commands"]
    assert figures == {"min": 512, "max": 4096, "mean": 2901, "count": 3}
    assert (1, "512") in buckets
    assert (2, "4096") in buckets
    assert buckets[-1] == (0, "> 524288")
    figures, buckets = found["latency of Read IOs in Microseconds (us)"]
    assert figures["count"] == 2
    assert [each for each in buckets if each[0]] == [(1, "100"), (1, "1000")]
    assert found["distance (in LBNs) between successive commands"][0]["max"] == 1


def test_the_names_of_disks_make_no_columns() -> None:
    source = Made(ROWS)
    source.disks[0].name = 'a,b\n"c"'
    assert len(sections(vscsistats.histograms(analyze([("", source)])))) == 18
