# SPDX-License-Identifier: MIT
"""Tests that need a kernel with LIO. They run as root in a guest (tests/vm/remote.py), wherever
pytest was started, so they may load modules and write anywhere but below the project.
"""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.vm.remote import IN_VM, Remote, Reporter


def pytest_configure(config: pytest.Config) -> None:
    """Send these tests to the guest, or their reports to the host."""
    folder = Path(__file__).parent
    config.pluginmanager.register(Reporter(config) if IN_VM else Remote(config, folder))


@pytest.fixture(scope="session")
def modprobe() -> Callable[..., None]:
    """Load kernel modules; there is no udev in the guest that would. sd_mod only where it is
    meant: with it, the kernel sends commands of its own to every logical unit.
    """

    def load(*names: str) -> None:
        subprocess.run(["modprobe", "-a", *names], check=True)

    return load
