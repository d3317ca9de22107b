# SPDX-License-Identifier: MIT
"""The same expressions say the same on DuckDB and on Spark."""

import warnings
from typing import Any

import pytest

from tests.analysis import expected
from vscsi.analysis.engine import connect
from vscsi.analysis.result import Analysis
from vscsi.analysis.run import Options, analyze
from vscsi.capture.sources import Opened
from vscsi.wire.errors import SetupError


def same(one: Any, other: Any, at: str = "") -> None:
    """Compare plain values; sums of floats may differ in their last digits."""
    assert type(one) is type(other), at
    if isinstance(one, dict):
        assert one.keys() == other.keys(), at
        for name in one:
            same(one[name], other[name], f"{at}.{name}")
    elif isinstance(one, list):
        assert len(one) == len(other), at
        for number, pair in enumerate(zip(one, other, strict=True)):
            same(*pair, f"{at}[{number}]")
    elif isinstance(one, float):
        assert one == pytest.approx(other, rel=1e-12), at
    else:
        assert one == other, at


def analysis(name: str, tmp_path: Any, engine: str) -> Analysis:
    path = str(expected.as_file(name, tmp_path))
    with Opened(path) as source:
        return analyze([("capture", source)], Options(engine=engine))


@pytest.fixture
def quiet() -> Any:
    """pyspark and what it uses warn of their own deprecated parts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.usefixtures("quiet")
def test_spark_says_what_duckdb_says(tmp_path: Any) -> None:
    name = "linux-srp.pcapng.gz"
    here = analysis(name, tmp_path, "duckdb")
    there = analysis(name, tmp_path, "spark")
    assert (here.engine, there.engine) == ("duckdb", "spark")
    assert here.total.count > 100
    same(here.to_json() | {"engine": ""}, there.to_json() | {"engine": ""})


def test_an_engine_that_there_is_not_is_refused(tmp_path: Any) -> None:
    with pytest.raises(SetupError, match="duckdb, spark or spark://"):
        connect("hadoop", tmp_path)
