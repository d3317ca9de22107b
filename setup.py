# SPDX-License-Identifier: MIT
"""The C core's build; everything else is in pyproject.toml."""

from pathlib import Path

from setuptools import Extension, setup

CORE = Path("vscsi/ring/core")

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
