# SPDX-License-Identifier: MIT
"""What the README and docs/ tell a reader to do works, in the order in which they tell it.

Blocks marked "sh lio" need a kernel with LIO: tests/lio/test_readme.py runs them in one.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
WAIT_FOR_SERVER = "until [ -S run/socket ]; do kill -0 $!; done"
"""A reader's pause between starting a server in the background and typing the next line."""


def script(page: Path) -> str:
    """Return a page's blocks as one script; it leaves no background job behind."""
    lines = ["set -e", "trap 'kill $(jobs -p) 2>/dev/null; wait' EXIT"]
    for language, body in BLOCK.findall(page.read_text()):
        if language == "python":
            lines.append(f"{shlex.quote(sys.executable)} - <<'PYTHON'\n{body}PYTHON")
            continue
        for line in body.splitlines():
            lines.append(line)
            if line.endswith("&"):
                lines.append(WAIT_FOR_SERVER)
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if BLOCK.search(page.read_text())],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_every_command_on_the_page_works(page: Path, tmp_path: Path) -> None:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/sbin"
    result = subprocess.run(
        ["bash", "-c", script(page)],
        cwd=tmp_path,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_local_link_leads_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
        assert (page.parent / link).exists(), f"{page.name}: {link}"
