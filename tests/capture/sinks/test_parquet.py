# SPDX-License-Identifier: MIT
"""Parquet files give back what was written, to anyone; hostile ones are refused in one line."""

import io
import json
import os
from collections import Counter

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.capture import recorded, synthetic
from vscsi.capture.commands import SCHEMA
from vscsi.capture.sinks import parquet as sink
from vscsi.capture.sources import Opened, ours, parquet


def written(source):
    output = io.BytesIO()
    result = sink.write(source, output)
    return result, output.getvalue()


def read(data):
    source = parquet.read(io.BytesIO(data))
    return pa.Table.from_batches(list(source), SCHEMA), source


@pytest.fixture(scope="module")
def small():
    return written(ours.read(io.BytesIO(recorded.capture("ibmvscsi-srp.jsonl"))))[1]


@pytest.mark.parametrize("name", recorded.NAMES)
def test_all_of_a_capture_comes_back(name):
    before = ours.read(io.BytesIO(recorded.capture(name)))
    expected = pa.Table.from_batches(list(before), SCHEMA)
    result, data = written(ours.read(io.BytesIO(recorded.capture(name))))
    table, after = read(data)
    assert (result.commands, result.left_out) == (len(expected), 0)
    assert table == expected
    for name in ("channels", "disks", "events", "events_dropped", "troubles"):
        assert getattr(after, name) == getattr(before, name), name


def test_what_could_not_be_read_of_the_original_is_still_told():
    data = recorded.capture("xen-blkfront.json")[:-5]
    _, after = read(written(ours.read(io.BytesIO(data)))[1])
    assert after.troubles.broken.startswith("broken at byte")


def test_others_read_it(tmp_path, small):
    file = tmp_path / "a.parquet"
    file.write_bytes(small)
    opcodes = duckdb.read_parquet(str(file)).aggregate("opcode, count(*)").fetchall()
    lines = (recorded.CAPTURES / "ibmvscsi-srp.jsonl").read_text().splitlines()
    units = [bytes.fromhex(json.loads(line)["req"]) for line in lines]
    assert dict(opcodes) == Counter(unit[32] for unit in units if unit[0] == 2 and len(unit) > 48)


def test_a_row_group_ends_before_it_is_large(monkeypatch, tmp_path):
    monkeypatch.setattr(sink, "GROUP_ROWS", 1000)
    monkeypatch.setattr("vscsi.capture.reader.RUN_BYTES", 1 << 17)
    stream, file = io.BytesIO(), tmp_path / "a"
    synthetic.write_srp(stream, 5000)
    stream.seek(0)
    with file.open("wb") as output:
        sink.write(ours.read(stream), output)
    groups = pq.ParquetFile(file).metadata
    assert groups.num_row_groups > 2
    with Opened(str(file)) as source:
        assert source.format == sink.NAME
        assert sum(map(len, source)) == 5000


def test_a_pipe_is_read(small):
    reader, writer = os.pipe()
    with open(writer, "wb") as output:
        output.write(small)
    with open(reader, "rb") as stream:
        assert sum(map(len, parquet.read(stream))) == 78


def refusal(data):
    source = parquet.read(io.BytesIO(data))
    for _ in source:
        pass
    assert "\n" not in source.troubles.broken
    return source.troubles.broken


def rewritten(data, change=lambda about: None, columns=None, metadata=True):
    """Return a file with other metadata or columns, and otherwise the same."""
    file = pq.ParquetFile(io.BytesIO(data))
    about = json.loads(file.metadata.metadata[sink.METADATA_KEY.encode()])
    change(about)
    table = file.read().replace_schema_metadata()
    for name, column in (columns or {}).items():
        at = table.schema.get_field_index(name)
        table = table.set_column(at, name, pa.array([column] * len(table), SCHEMA.field(name).type))
    output = io.BytesIO()
    with pq.ParquetWriter(output, table.schema) as writer:
        writer.write_table(table)
        if metadata:
            writer.add_key_value_metadata({sink.METADATA_KEY: json.dumps(about)})
    return output.getvalue()


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"channel": 1}, "channel from 1 to 1"),
        ({"disk": -1}, "disk from -1 to -1"),
        ({"fate": 5}, "fate from 5 to 5"),
        ({"operation": 5}, "operation from 5 to 5"),
        ({"time_ns": -(1 << 63)}, "time_ns from"),
        ({"latency_ns": -1}, "latency_ns from -1"),
        ({"data_in": (1 << 63) - 1}, "data_in from"),
    ],
)
def test_values_that_no_source_yields(small, columns, says):
    assert says in refusal(rewritten(small, columns=columns))


@pytest.mark.parametrize(
    "change",
    [
        lambda about: about.pop("disks"),
        lambda about: about.update(channels={}),
        lambda about: about.update(channels=[5]),
        lambda about: about["disks"][0].update(block_bytes=0),
        lambda about: about["disks"][0].update(block_bytes=1.5),
        lambda about: about["disks"][0].update(lun="abc"),
        lambda about: about["disks"][0].update(device_type=77),
        lambda about: about["events"][0].update(time_ns=1 << 70),
        lambda about: about["events"][0].update(words=None),
        lambda about: about["events"][0].update(function=3),
        lambda about: about["channels"][0].update(parameters=[["a"]]),
        lambda about: about.update(troubles=None),
    ],
)
def test_metadata_that_no_source_has(small, change):
    assert f"{sink.METADATA_KEY} in its metadata" in refusal(rewritten(small, change))


def test_texts_are_safe_to_show(small):
    data = rewritten(small, lambda about: about["disks"][0].update(name="\x1b[31m\nname"))
    assert read(data)[1].disks[0].name == "\\x1b[31m\\nname"


def test_other_parquet_is_refused(small):
    assert "no vscsi.capture in its metadata" in refusal(rewritten(small, metadata=False))
    output = io.BytesIO()
    pq.write_table(pa.table({"a": [1]}), output)
    assert "its columns are not those" in refusal(output.getvalue())
    assert refusal(b"PAR1")
    assert refusal(b"PAR1" + bytes(100) + b"\xff\xff\xff\x7fPAR1")


def test_a_row_group_that_says_it_is_large_is_not_read(small, monkeypatch):
    monkeypatch.setattr(parquet, "MAX_GROUP_ROWS", 77)
    assert refusal(small).endswith("bytes")
    assert "a row group of 78 rows" in refusal(small)


@given(st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), max_size=5))
def test_damaged_files_are_survived(small, changes):
    damaged = bytearray(small)
    for at, value in changes:
        damaged[4 + at % (len(damaged) - 4)] = value
    source = parquet.read(io.BytesIO(bytes(damaged)))
    for batch in source:
        assert batch.schema == SCHEMA
