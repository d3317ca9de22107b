# SPDX-License-Identifier: MIT
"""The C core's build; everything else is in pyproject.toml."""

import os
import sys
import tempfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, LinkError

CORE = Path("vscsi/ring/core")

LAYOUT = CORE / "layout.h"

sys.path.insert(0, str(Path(__file__).parent))
from vscsi.wire.c_header import header  # noqa: E402 - it is not installed yet

if not LAYOUT.exists() or LAYOUT.read_text() != header():  # its time decides what is built anew
    LAYOUT.write_text(header())


class BuildCore(build_ext):
    """Use liburing if it is there; without it threads do what it would.

    VSCSI_LIBURING=0 leaves it out.
    """

    def build_extensions(self) -> None:
        """Find out, then build."""
        if os.environ.get("VSCSI_LIBURING") != "0" and self._has_liburing():
            self.extensions[0].define_macros.append(("HAVE_LIBURING", "1"))
            self.extensions[0].libraries.append("uring")
        super().build_extensions()

    def _has_liburing(self) -> bool:
        program = "#include <liburing.h>\nint main(void) { return io_uring_queue_init(1, 0, 0); }\n"
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "probe.c")
            source.write_text(program)
            try:
                objects = self.compiler.compile([str(source)], output_dir=folder)
                self.compiler.link_executable(
                    objects, "probe", output_dir=folder, libraries=["uring"]
                )
            except (CompileError, LinkError):
                return False
        return True


setup(
    cmdclass={"build_ext": BuildCore},
    ext_modules=[
        Extension(
            "vscsi.ring._core",
            sources=sorted(str(path) for path in CORE.glob("*.c")),
            depends=sorted(str(path) for path in CORE.glob("*.h")),
            define_macros=[("Py_LIMITED_API", "0x030B0000"), ("_GNU_SOURCE", "1")],
            extra_compile_args=[
                "-std=c11",
                "-O2",
                "-fvisibility=hidden",
                "-Wall",
                "-Wextra",
                "-Wconversion",
                "-Werror",
            ],
            py_limited_api=True,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
