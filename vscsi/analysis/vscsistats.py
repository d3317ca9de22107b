# SPDX-License-Identifier: MIT
"""Histograms as `vscsiStats -p all -c` prints them: its titles, its order, its CSV.

Of each histogram a title with whose it is, min, max, mean and count in whole numbers, then a line
a bucket, the last for what is above the last bound. Where vscsiStats has a disk's ids, here are
the names of the disks. Interfaces as of a module of `vscsi.capture.sinks`.
"""

from collections.abc import Iterator
from typing import IO

from vscsi.analysis.result import Analysis, Histogram
from vscsi.analysis.run import analyze
from vscsi.capture.commands import Source
from vscsi.capture.sinks import Written

NAME = "vscsiStats CSV"

_TITLES = {
    "io_length_bytes": (
        "IO lengths of commands",
        "IO lengths of Read commands",
        "IO lengths of Write commands",
    ),
    "seek_distance_blocks": (
        "distance (in LBNs) between successive commands",
        "distance (in LBNs) between successive Read commands",
        "distance (in LBNs) between successive Write commands",
    ),
    "closest_of_16_distance_blocks": (
        "distance (in LBNs) between each command from the closest of previous 16",
        "distance (in LBNs) between each Read command from the closest of previous 16",
        "distance (in LBNs) between each Write command from the closest of previous 16",
    ),
    "outstanding": (
        "number of outstanding IOs when a new IO is issued",
        "number of outstanding Read IOs when a new Read IO is issued",
        "number of outstanding Write IOs when a new Write IO is issued",
    ),
    "latency_us": (
        "latency of IOs in Microseconds (us)",
        "latency of Read IOs in Microseconds (us)",
        "latency of Write IOs in Microseconds (us)",
    ),
    "interarrival_us": (
        "latency of IO interarrival time in Microseconds (us)",
        "latency of Read IO interarrival time in Microseconds (us)",
        "latency of Write IO interarrival time in Microseconds (us)",
    ),
}


def histograms(analysis: Analysis) -> str:
    """Return the CSV."""
    names = " ".join(disk.name for disk in analysis.disks)
    # A comma would be a column more.
    whose = f"virtual disk,{' '.join(names.replace(',', ' ').split())}"
    lines: list[str] = []
    for measure, found in analysis.histograms.items():
        classes = found.all, found.read, found.write
        for title, histogram in zip(_TITLES[measure], classes, strict=True):
            lines.append(f"Histogram: {title},{whose}")
            lines += _lines(histogram)
            lines.append("")
    return "\n".join(lines) + "\n" if lines else ""


def _lines(histogram: Histogram) -> Iterator[str]:
    for name in ("min", "max", "mean"):
        yield f"{name},{round(getattr(histogram, name) or 0)}"
    yield f"count,{histogram.count}"
    yield "Frequency,Histogram Bucket Limit"
    for count, bound in zip(histogram.counts, histogram.bounds, strict=False):
        yield f"{count},{bound}"
    yield f"{histogram.counts[-1]},> {histogram.bounds[-1]}"


def write(source: Source, output: IO[bytes]) -> Written:
    """Write a source's histograms, read to its end."""
    analysis = analyze([("", source)])
    output.write(histograms(analysis).encode())
    return Written(analysis.total.count, 0)
