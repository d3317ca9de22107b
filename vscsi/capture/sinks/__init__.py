# SPDX-License-Identifier: MIT
"""Where captured commands go: one module a file format.

A module of `FORMATS` has

    NAME: str                                              in words
    def write(source: Source, output: IO[bytes]) -> Written     reads the source to its end

Memory is bounded; what a format cannot say is left out and counted in `Written`.
"""

from dataclasses import dataclass

FORMATS = {
    "iscsi": "iscsi",
    "vscsi-trace": "vscsi_trace",
    "iolog": "iolog",
    "parquet": "parquet",
    "fio-job": "fio_job",
}
"""Names for `vscsi capture convert --to`, and their modules; beside them vscsi.analysis has one."""


@dataclass(frozen=True, slots=True)
class Written:
    """What became of a source's commands."""

    commands: int
    left_out: int
    """Commands that the format has no words for, and"""
    why: str = ""
    """what the first of them lacked."""
    note: str = ""
    """One line about what was written in other words than the source's."""
