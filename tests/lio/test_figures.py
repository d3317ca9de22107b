# SPDX-License-Identifier: MIT
"""The script that says what a ring adds to LIO: it runs, says it, and leaves nothing behind."""

import os
import re
import subprocess
from pathlib import Path

from tgt_glue.configfs import CONFIGFS

SCRIPT = Path(__file__).parents[2] / "scripts/lio_figures.sh"
TIMEOUT_S = 1000


def test_what_the_ring_adds_is_printed_and_nothing_is_left():
    result = subprocess.run(
        ["sh", str(SCRIPT)],
        env={**os.environ, "UNIT": "figures", "ROUNDS": "2", "RUNTIME": "1"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    print(result.stdout)
    assert result.returncode == 0, result.stderr
    assert len(re.findall(r"^vscsi lio create, the \w+: \d+ ms$", result.stdout, re.M)) == 3
    for depth in (32, 1):
        assert f"randread, blocks of 4096, depth {depth};" in result.stdout
    for row in ("ratio to the first", "added latency p50 us"):
        ratios = re.findall(rf"^{row} +(\S+) +(\S+)", result.stdout, re.M)
        assert len(ratios) == 2
        assert all("-" not in cell.removeprefix("-") for pair in ratios for cell in pair)
    assert set(re.findall(r"^errors +(\d+) +(\d+)", result.stdout, re.M)) == {("0", "0")}
    assert not list(CONFIGFS.glob("loopback/naa.*"))
    assert not list(CONFIGFS.glob("core/*_*/vscsi-figures"))
