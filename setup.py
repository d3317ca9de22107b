# SPDX-License-Identifier: MIT
"""The C core's build; everything else is in pyproject.toml."""

import sys
from pathlib import Path

from setuptools import Extension, setup

CORE = Path("vscsi/ring/core")

LAYOUT = CORE / "layout.h"

sys.path.insert(0, str(Path(__file__).parent))
from vscsi.wire.c_header import header  # noqa: E402 - it is not installed yet

if not LAYOUT.exists() or LAYOUT.read_text() != header():  # its time decides what is built anew
    LAYOUT.write_text(header())

setup(
    ext_modules=[
        Extension(
            "vscsi.ring._core",
            sources=sorted(str(path) for path in CORE.glob("*.c")),
            depends=sorted(str(path) for path in CORE.glob("*.h")),
            define_macros=[("Py_LIMITED_API", "0x030B0000"), ("_GNU_SOURCE", "1")],
            extra_compile_args=[
                "-std=c11",
                "-O2",
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
