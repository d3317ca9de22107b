# SPDX-License-Identifier: MIT
"""Record captures/linux-*.pcapng.gz anew: what a stock kernel sends over SRP and over blkif.

    .venv/bin/python -m scripts.record_captures [DIRECTORY]

It takes some minutes, in a guest that has this machine's programs. What captures must say
(captures/*.expected.json) has to be made anew then: see tests/analysis/expected.py.
"""

import gzip
import os
import shlex
import sys
import tempfile
from pathlib import Path

from tests.vm.kernel import PROJECT
from tests.vm.machine import RESULTS, Guest

KINDS = ("srp", "blkif")
TIMEOUT_S = 1200


def main() -> int:
    """Boot a guest, record in it, keep what it recorded; return its exit status."""
    target = Path(sys.argv[1]) if sys.argv[1:] else PROJECT / "captures"
    vscsi = Path(sys.executable).with_name("vscsi")
    script = ["/bin/sh", str(PROJECT / "scripts" / "record_captures.sh"), str(vscsi)]
    orders = [shlex.join([*script, kind, RESULTS, f"linux-{kind}"]) for kind in KINDS]
    with (
        tempfile.TemporaryDirectory(prefix="vscsi-captures-") as directory,
        Guest(["/bin/sh", "-c", " && ".join(orders)], Path(directory)) as guest,
    ):
        for port, data in guest.output(TIMEOUT_S):
            if port != "status":
                os.write({"out": 1, "err": 2}[port], data)
        for path in sorted(guest.results.glob("*.pcapng")):
            packed = gzip.compress(path.read_bytes(), mtime=0)
            (target / f"{path.name}.gz").write_bytes(packed)
        print(f"Linux {guest.kernel.release}")
        return guest.exit_status or 0


if __name__ == "__main__":
    sys.exit(main())
