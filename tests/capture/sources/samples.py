# SPDX-License-Identifier: MIT
"""A small file of every format, for what all of them must do."""

import gzip
from pathlib import Path

from tests.capture.sources.blktrace_file import one_of_each
from tests.capture.sources.test_msr import HEADER, PUBLISHED
from tests.capture.sources.test_vscsi_trace import record

CAPTURES = Path(__file__).parents[3] / "captures"


def capture(name: str) -> bytes:
    """Return a recorded capture's content, unpacked."""
    data = (CAPTURES / name).read_bytes()
    return gzip.decompress(data) if name.endswith(".gz") else data


SAMPLES = {
    "scsi-events": [
        capture("linux-scsi-events.txt.gz")[:20_000],
        capture("linux-scsi-timeouts.txt.gz"),
        capture("linux-trace-cmd.txt.gz"),
    ],
    "blktrace": [
        one_of_each("<"),
        one_of_each(">"),
        capture("linux-blktrace.bin.gz")[:20_000],
        capture("linux-blkparse.txt.gz")[:20_000],
    ],
    "vscsi-trace": [record(version, ts=at) for version in (1, 2) for at in (1,)]
    + [b"".join(record(version, ts=at) for at in range(200)) for version in (1, 2)],
    "msr": [PUBLISHED * 20, HEADER + PUBLISHED],
    "iolog": [
        capture("fio-3.33.iolog"),
        b"fio version 2 iolog\n/x add\n/x open\n/x wait 100 0\n/x write 0 512\n/x close\n",
    ],
}
"""By name of FORMATS."""
