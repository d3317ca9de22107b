# SPDX-License-Identifier: MIT
"""Data that several tests of the wire formats compare with."""

import json
from pathlib import Path
from typing import Any

import pytest

DATA = Path(__file__).parents[1] / "data"
CAPTURES = Path(__file__).parents[2] / "captures"


def load(path: Path) -> Any:
    text = path.read_text()
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in text.splitlines()]
    return json.loads(text)


@pytest.fixture(scope="session")
def abi() -> Any:
    """Offsets and sizes from compiled headers."""
    return load(DATA / "abi.json")


@pytest.fixture(scope="session")
def constants() -> Any:
    """Numbers from headers and standards."""
    return load(DATA / "constants.json")


@pytest.fixture(scope="session")
def vectors() -> Any:
    """Messages written by C programs."""
    return load(DATA / "golden_vectors.json")


@pytest.fixture(scope="session")
def tshark() -> Any:
    """CDBs and sense data with an independent decode."""
    return load(DATA / "tshark.json")


@pytest.fixture(scope="session")
def kernel_targets() -> Any:
    """Parameter data as LIO and scsi_debug answered them."""
    return load(DATA / "kernel_targets.json")


@pytest.fixture(scope="session")
def cdb_names() -> Any:
    """CDBs and what they were meant to be."""
    return load(DATA / "cdb_names.json")


@pytest.fixture(scope="session")
def capture() -> Any:
    """A function that loads a capture by its file name."""
    return lambda name: load(CAPTURES / name)
