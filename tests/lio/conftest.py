# SPDX-License-Identifier: MIT
"""Tests that need a kernel with LIO. They run as root in a guest (tests/vm/remote.py), wherever
pytest was started, so they may load modules and write anywhere but below the project.
"""

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
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


class DeviceMapper:
    """Makes devices whose table can be changed, and which can be suspended: their I/O then waits.

    There is no udev here that would make their nodes.
    """

    def __init__(self) -> None:
        self.stack = ExitStack()

    def __call__(self, name: str, table: str) -> Path:
        """Make a device; return its node."""
        self.dmsetup("create", name, "--table", table)
        self.stack.callback(self.dmsetup, "remove", "--retry", name)
        return Path("/dev/mapper", name)

    def dmsetup(self, *arguments: str) -> None:
        """Give an order to device mapper."""
        environment = {**os.environ, "DM_DISABLE_UDEV": "1"}
        subprocess.run(["dmsetup", *arguments], check=True, env=environment)

    def load(self, name: str, table: str) -> None:
        """Change a device's table."""
        self.dmsetup("reload", name, "--table", table)
        self.dmsetup("resume", name)

    @contextmanager
    def suspended(self, name: str) -> Iterator[None]:
        """Have a device hold all commands."""
        self.dmsetup("suspend", "--nolockfs", "--noflush", name)
        try:
            yield
        finally:
            self.dmsetup("resume", name)


@pytest.fixture
def mapped(modprobe: Callable[..., None]) -> Iterator[DeviceMapper]:
    """Make device mapper's devices; they are removed at the end."""
    modprobe("dm_mod", "dm_zero")
    mapper = DeviceMapper()
    with mapper.stack:
        yield mapper
