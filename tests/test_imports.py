# SPDX-License-Identifier: MIT
"""Data flows one way: a module imports only from its own folder and those before it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ORDER = (
    "wire",
    "ring",
    "domain",
    "target",
    "transport",
    "capture",
    "analysis",
    "bench",
    "cli",
)
MODULES = sorted((ROOT / "vscsi").rglob("*.py"))
GPL = ROOT / "vscsi" / "capture" / "scapy_layers.py"


def imports(path: Path) -> Iterator[str]:
    """Yield the absolute names that a module imports, wherever in it; none may be relative."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def folder(name: str) -> str | None:
    """Return the folder of ours that an imported name is in, None for other people's."""
    parts = name.split(".")
    return parts[1] if parts[0] == "vscsi" and len(parts) > 1 and parts[1] in ORDER else None


def test_every_folder_has_its_place() -> None:
    folders = {path.name for path in (ROOT / "vscsi").iterdir() if path.is_dir()}
    assert folders - {"__pycache__"} == set(ORDER)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_only_from_folders_before_its_own(path: Path) -> None:
    parts = path.relative_to(ROOT / "vscsi").parts
    if len(parts) == 1:
        return  # vscsi/__init__.py offers `connect`, from far down
    own = ORDER.index(parts[0])
    for name in imports(path):
        theirs = folder(name)
        assert theirs is None or ORDER.index(theirs) <= own, f"imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_gpl_scapy_layers_stand_alone(path: Path) -> None:
    if path == GPL:
        for name in imports(path):
            assert folder(name) in (None, "wire")
        return
    for name in imports(path):
        assert name.split(".")[0] != "scapy"
        assert not name.startswith("vscsi.capture.scapy_layers")


@pytest.mark.parametrize(
    "path",
    [
        path
        for pattern in ("vscsi/**/*.py", "tgt_glue/**/*.py", "tests/**/*.py", "scripts/*")
        for path in sorted(ROOT.glob(pattern))
        if path.is_file()
    ],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_every_source_file_says_its_licence(path: Path) -> None:
    licence = "GPL-2.0-only" if path == GPL else "MIT"
    assert f"SPDX-License-Identifier: {licence}" in path.read_text()[:200]
