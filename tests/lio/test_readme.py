# SPDX-License-Identifier: MIT
"""The README's way from `vscsi lio create` to a mounted file system works, step by step."""

import os
import re
import subprocess
import sys
from pathlib import Path

from tgt_glue.configfs import CONFIGFS

README = Path(__file__).parents[2] / "README.md"
BLOCK = re.compile(r"^```sh lio\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TIMEOUT_S = 1000
PAUSES = {
    "vscsi serve ": "until [ -S run/socket ]; do kill -0 $!; sleep 0.1; done",
    "vscsi hba ": "until grep -q ^ready: hba.log; do kill -0 $!; sleep 0.1; done",
}
"""A reader's, between starting something in the background and typing the next line."""


def script():
    """Return the blocks as one script, which shows each line before it is run."""
    lines = ["set -ex", "trap 'kill $(jobs -p) 2>/dev/null || :; wait' EXIT"]
    for block in BLOCK.findall(README.read_text()):
        for line in block.splitlines():
            lines.append(line)
            if line.endswith("&"):
                (pause,) = (pause for start, pause in PAUSES.items() if line.startswith(start))
                lines.append(pause)
    return "\n".join(lines) + "\n"


def test_every_step_from_create_to_a_mounted_file_system_works(tmp_path):
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    text = script()
    for step in ("lio create", "serve --lio", "mount ", "vscsi bench", "lio remove"):
        assert step in text
    result = subprocess.run(
        ["bash", "-c", text],
        cwd=tmp_path,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    print(result.stdout)
    if result.returncode:
        subprocess.run(["dmesg", "--level", "emerg,alert,crit,err,warn"], check=False)
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
    assert not list(CONFIGFS.glob("loopback/naa.*"))
    assert not list(CONFIGFS.glob("core/*_*/*/"))
    subprocess.run(["modprobe", "--remove", "sd_mod"], check=True)
