# SPDX-License-Identifier: MIT
"""Sources read from bytes."""

import importlib
import io

import pytest

from vscsi.capture.commands import SCHEMA
from vscsi.capture.sources import FORMATS


def _read(form, data):
    """Return the rows of some content as dictionaries, and the source."""
    module = importlib.import_module(f"vscsi.capture.sources.{FORMATS[form]}")
    source = module.read(io.BytesIO(data))
    rows = []
    for batch in source:
        assert batch.schema == SCHEMA
        batch.validate(full=True)
        rows += batch.to_pylist()
    for row in rows:
        assert 0 <= row["disk"] < len(source.disks)
        assert 0 <= row["channel"] < len(source.channels)
    return rows, source


@pytest.fixture(scope="session")
def read():
    """Read some content as a format: (name of FORMATS, bytes)."""
    return _read
