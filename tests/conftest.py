# SPDX-License-Identifier: MIT
"""What every test has: hypothesis without deadlines, no misspelt field in any format, and the
command line in processes of its own.
"""

import os
import select
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import construct
import pytest
from hypothesis import HealthCheck, settings

from vscsi.wire.formats import Packed
from vscsi.wire.shaped import Shaped

COMMAND = str(Path(sys.executable).with_name("vscsi"))
HANG_S = 300
"""After which something hangs: only a test that fails waits that long."""

settings.register_profile(
    "vscsi", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("vscsi")


def strict(build):
    """Wrap a format's build so that values which the format has no field for are an error.

    construct ignores them: a misspelt field would silently take its default.
    """

    def checked(self, obj, *arguments):
        if isinstance(obj, Mapping):
            unknown = {name for name in obj if not name.startswith("_")} - {
                field.name for field in self.subcons
            }
            assert not unknown, f"no fields {sorted(unknown)}"
        return build(self, obj, *arguments)

    return checked


construct.Struct._build = strict(construct.Struct._build)
Packed.values = strict(Packed.values)
Shaped.quick_build = strict(Shaped.quick_build)


@pytest.fixture(scope="session")
def cli():
    """Run a verb to its end; returns what subprocess.run does, with texts unless told."""

    def run(*arguments, **options):
        options.setdefault("text", True)
        return subprocess.run(
            [COMMAND, *map(str, arguments)],
            capture_output=True,
            timeout=HANG_S,
            check=False,
            **options,
        )

    return run


class Ready:
    """A verb in a process of its own that has said that it is ready."""

    def __init__(self, command, wait_on, **options):
        self.process = subprocess.Popen(
            [*map(str, command)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            **options,
        )
        self.output = []
        self.ready = self.wait_for(wait_on)

    def wait_for(self, start, stream="stdout"):
        """Read lines until one starts so; return it."""
        source = getattr(self.process, stream).fileno()
        while not (line := read_line(source)).startswith(start):
            self.output.append(line)
            if not line:
                errors = self.process.stderr.read().decode()
                raise AssertionError(f"it ended: {''.join(self.output)}{errors}")
        return line

    def end(self, number):
        """Send a signal; return status and what is left of standard error."""
        self.process.send_signal(number)
        return self.ended()

    def ended(self):
        """Wait for the end; return status and what is left of standard error."""
        _, errors = self.process.communicate(timeout=HANG_S)
        return self.process.returncode, errors.decode()

    def close(self):
        """Leave nothing behind."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.stdout.close()
        self.process.stderr.close()
        self.process.wait(HANG_S)


def read_line(descriptor):
    """Return a line, read byte by byte: what select shows is not in a buffer then."""
    line = b""
    while not line.endswith(b"\n"):
        if not select.select([descriptor], [], [], HANG_S)[0]:
            raise AssertionError(f"no line within {HANG_S} s, only {line!r}")
        byte = os.read(descriptor, 1)
        if not byte:
            break
        line += byte
    return line.decode()


@pytest.fixture(scope="module")
def start():
    """Start a verb and wait for its line "ready: ..." (or what `wait_on` says); see Ready."""
    with ExitStack() as stack:

        def starter(*arguments, wait_on="ready: ", prefix=(), **options):
            ready = Ready([*prefix, COMMAND, *arguments], wait_on, **options)
            stack.callback(ready.close)
            return ready

        yield starter
