# SPDX-License-Identifier: MIT
"""Programs of Debian packages that are unpacked below .vm/, never installed.

Installing prometheus would start a server on all of the machine's addresses.
"""

import os
import tempfile
from pathlib import Path

from tests.vm.kernel import CACHE, MachineError, locked, run


def unpacked(package: str) -> Path:
    """Return where a package's files are; it is downloaded if it is not in the cache."""
    CACHE.mkdir(exist_ok=True)
    with locked(CACHE / "lock"):
        cached = sorted(CACHE.glob(f"{package}_*"), key=lambda path: path.stat().st_mtime)
        return cached[-1] if cached else _fetch(package)


def _fetch(package: str) -> Path:
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        try:
            found = _download(package, Path(scratch))
        except MachineError:  # no package lists, or older than the archive
            as_root = [] if os.geteuid() == 0 else ["sudo", "-n"]
            run([*as_root, "apt-get", "update", "-q"])
            found = _download(package, Path(scratch))
        root = Path(scratch, "root")
        run(["dpkg-deb", "-x", str(found), str(root)])
        root.chmod(0o755)
        return root.rename(CACHE / found.stem.rpartition("_")[0].replace("%3a", "-"))


def _download(package: str, directory: Path) -> Path:
    run(["apt-get", "download", "-q", "-o", "APT::Sandbox::User=root", package], cwd=directory)
    return next(directory.glob(f"{package}_*.deb"))
