# SPDX-License-Identifier: MIT
"""Batches of the common table, and what CDBs say as columns, against the table of commands."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vscsi.capture.commands import BATCH_ROWS, SCHEMA, Operation
from vscsi.capture.sources.columns import MAX_NAMES, Numbering, assemble, of_cdbs, replaced
from vscsi.wire.cdb import build, decode, lookup, service_action_of
from vscsi.wire.errors import WireError
from vscsi.wire.opcodes import COMMANDS, DeviceType

FIELDS = ("opcode", "service_action", "operation", "lba", "blocks", "fua")


def listed(found):
    return {name: pa.array(values).to_pylist() for name, values in found.items()}


def expected(cdb):
    """One CDB by the decoder that takes them one at a time."""
    if not cdb:
        return (None, None, Operation.OTHER, None, None, False)
    try:
        one = decode(cdb)
    except WireError:
        row = lookup(cdb)
        if row is None or len(cdb) < row.length:
            return (cdb[0], service_action_of(cdb), Operation.OTHER, None, None, False)
        one = decode(cdb[:7] + bytes([row.length - 8]) + cdb[8:])  # a wrong length within it
    name = one.row.name
    operation = Operation.OTHER
    if name == "UNMAP" or (name.startswith("WRITE SAME") and one.field("unmap")):
        operation = Operation.UNMAP
    elif "SYNCHRONIZE CACHE" in name:
        operation = Operation.FLUSH
    elif "blocks" in one.row.fields and not name.startswith(("VERIFY", "PRE-FETCH")):
        operation = Operation.READ if name.startswith("READ") else Operation.WRITE
    lba = blocks = None
    if {"lba", "blocks"} <= set(one.row.fields):
        lba, blocks = one.lba, one.blocks
    return (cdb[0], service_action_of(cdb), operation, lba, blocks, one.fua)


OPCODES = st.sampled_from([row.opcode for row in COMMANDS[DeviceType.DISK]])
CDBS = st.one_of(
    st.none(),
    st.binary(max_size=40),
    st.builds(
        lambda opcode, rest: bytes([opcode]) + rest, OPCODES, st.binary(min_size=31, max_size=31)
    ),
    st.builds(
        lambda action, rest: b"\x7f" + bytes(6) + b"\x18" + action.to_bytes(2, "big") + rest,
        st.integers(8, 14),
        st.binary(min_size=22, max_size=22),
    ),
)


@given(st.lists(CDBS, max_size=20), st.integers(0, 3))
def test_cdbs_say_what_they_say_one_at_a_time(cdbs, cut):
    array = pa.array(cdbs, pa.binary()).slice(cut)
    found = listed(of_cdbs(array))
    rows = list(zip(*(found[name] for name in FIELDS), strict=True))
    assert rows == [expected(cdb) for cdb in cdbs[cut:]]


def test_a_few_that_are_written_down():
    found = listed(
        of_cdbs(
            pa.array(
                [
                    build("READ(6)", lba=7, blocks=256),
                    build("WRITE(16)", lba=1 << 40, blocks=8, fua=1),
                    build("WRITE SAME(10)", lba=5, blocks=9, unmap=1),
                    build("UNMAP", parameter_list_length=24),
                    build("READ CAPACITY(16)", allocation_length=32),
                ]
            )
        )
    )
    assert found["lba"] == [7, 1 << 40, 5, None, None]
    assert found["blocks"] == [256, 8, 9, None, None]
    assert found["operation"] == [1, 2, 4, 4, 0]
    assert found["fua"] == [False, True, False, False, False]
    assert found["service_action"] == [None, None, None, None, 0x10]


def test_what_is_not_given_is_null_or_zero():
    batch = assemble(2, {"time_ns": np.array([5, 6]), "status": 2, "cdb": [b"\0" * 6, None]})
    assert batch.schema == SCHEMA
    batch.validate(full=True)
    rows = batch.to_pylist()
    assert [row["time_ns"] for row in rows] == [5, 6]
    assert [row["status"] for row in rows] == [2, 2]
    assert rows[1]["cdb"] is None
    assert (rows[0]["lba"], rows[0]["disk"], rows[0]["fua"]) == (None, 0, False)
    again = replaced(batch, {"disk": np.array([3, 4])})
    assert again.column("disk").to_pylist() == [3, 4]
    assert again.column("time_ns").to_pylist() == [5, 6]


@pytest.mark.parametrize("rows", [0, 1, BATCH_ROWS, BATCH_ROWS + 1])
def test_any_number_of_rows(rows):
    assemble(rows, {}).validate(full=True)


def test_no_file_names_more_than_so_many():
    numbering = Numbering()
    assert numbering.number("a") == (0, True)
    assert numbering.number("a") == (0, False)
    for other in range(MAX_NAMES):
        last = numbering.number(other)
    assert last == (-1, False)
    assert numbering.number("a") == (0, False)
