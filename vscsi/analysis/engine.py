# SPDX-License-Identifier: MIT
"""Where expressions run: DuckDB in this process, or Spark where one machine is too small."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import ibis
import pyarrow as pa
from duckdb import Error as DuckDBError
from ibis.expr.types import Table

from vscsi.wire.errors import SetupError

_COUNT_MEMORY = "320MB"
_SORT_MEMORY = "128MB"
"""Of DuckDB; beyond that it uses the temporary directory, and sorts hardly slower."""
_CHUNK_ROWS = 1 << 17


class Engine:
    """Reads a Parquet file and runs expressions over them; a context manager."""

    def __init__(self, backend: Any, name: str, errors: tuple[type[Exception], ...]) -> None:
        """errors: how the backend fails."""
        self.name = name
        self._backend = backend
        self._errors = errors

    def table(self, file: Path, name: str) -> Table:
        """Return a Parquet file as a table."""
        table: Table = self._backend.read_parquet(str(file), table_name=name)
        return table

    def rows(self, expression: Table) -> list[dict[str, Any]]:
        """Return what an expression comes to; SetupError if memory or disk do not suffice."""
        with self._failures():
            rows: list[dict[str, Any]] = self._backend.to_pyarrow(expression).to_pylist()
        return rows

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except self._errors as error:
            raise SetupError(
                "count with", self.name, _first_line(error), "name a roomier directory by --temp"
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._backend.disconnect()


class DuckDB(Engine):
    """The engine of this process; it alone gives rows back in bulk."""

    def batches(self, expression: Table) -> Iterator[pa.RecordBatch]:
        """Yield what an expression comes to, in its order, without holding all of it."""
        # Ibis' own to_pyarrow_batches asks DuckDB 2 for a method that it has no more.
        with self._failures():
            relation = self._backend.con.sql(ibis.to_sql(expression, dialect="duckdb"))
            yield from relation.to_arrow_reader(_CHUNK_ROWS)


def sorter(directory: Path) -> DuckDB:
    """Return DuckDB for sorting, with its temporary files in a directory."""
    return _duckdb(directory, _SORT_MEMORY)


def _duckdb(directory: Path, memory: str) -> DuckDB:
    backend = ibis.duckdb.connect(
        memory_limit=memory,
        temp_directory=str(directory / "duckdb"),
        threads=len(os.sched_getaffinity(0)),
    )
    return DuckDB(backend, "duckdb", (DuckDBError,))


def spark(master: str) -> Engine:
    """Return Spark: in this machine for "spark", else the cluster of a spark:// URL.

    A cluster has to see the directory where the Parquet files are. Raises SetupError.
    """
    try:
        from py4j.protocol import Py4JError
        from pyspark.errors import PySparkException
        from pyspark.sql import SparkSession
    except ImportError as error:
        raise SetupError(
            "use engine", master, "pyspark is not installed", "pip install 'vscsi[spark]'"
        ) from error
    errors = PySparkException, Py4JError
    builder = SparkSession.builder.appName("vscsi")
    builder = builder.master("local[*]" if master == "spark" else master)
    for key, value in _SPARK.items():
        builder = builder.config(key, value)
    try:
        session = builder.getOrCreate()
    except (*errors, OSError, RuntimeError) as error:
        raise SetupError(
            "start engine", master, _first_line(error), "Spark needs Java 17 (JAVA_HOME)"
        ) from error
    return Engine(ibis.pyspark.connect(session), master, errors)


_SPARK = {
    "spark.sql.session.timeZone": "UTC",
    "spark.log.level": "ERROR",
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    # Groups are few: 200 partitions, the default, would each be a task of nothing.
    "spark.sql.shuffle.partitions": "4",
}


def connect(name: str, directory: Path) -> Engine:
    """Return the engine of a name: duckdb, spark or spark://HOST:PORT. Raises SetupError."""
    if name == "duckdb":
        return _duckdb(directory, _COUNT_MEMORY)
    if name == "spark" or name.startswith("spark://"):
        return spark(name)
    raise SetupError("use engine", name, "there is none", "duckdb, spark or spark://HOST:PORT")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
