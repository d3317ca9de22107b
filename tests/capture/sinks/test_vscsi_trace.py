# SPDX-License-Identifier: MIT
"""What is written as .vscsi version 2: by libCacheSim's structure, and read back."""

import io
import struct

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vscsi.capture.commands import Channel, Disk, Fate, Operation, Troubles
from vscsi.capture.sinks import vscsi_trace as sink
from vscsi.capture.sources import vscsi_trace as source
from vscsi.capture.sources.columns import assemble

V2 = struct.Struct("<HHIIIQQQ")


class Commands:
    """A source of rows, in the order of their ends."""

    format = "a test's"

    def __init__(self, rows, disks=("a",), protocol="srp", block_bytes=512):
        self.channels = [Channel("a", protocol)]
        self.disks = [Disk(name, block_bytes=block_bytes) for name in disks]
        self.events, self.events_dropped, self.troubles = [], 0, Troubles()
        self._rows = rows

    def __iter__(self):
        names = {name for row in self._rows for name in row}
        columns = {name: [row.get(name) for row in self._rows] for name in names}
        for name in {"disk", "data_in", "data_out", "fate", "operation"} & names:
            columns[name] = [value or 0 for value in columns[name]]
        yield assemble(len(self._rows), columns)


def write(commands):
    output = io.BytesIO()
    written = sink.write(commands, output)
    return written, output.getvalue()


def read_back(data):
    batches = list(source.read(io.BytesIO(data)))
    return pa.Table.from_batches(batches).to_pylist() if batches else []


READ = {"opcode": 0x28, "operation": Operation.READ, "lba": 9, "blocks": 8, "data_in": 4096}


def test_records_are_as_libcachesim_declares_them():
    row = {**READ, "time_ns": 5_000_001_999, "latency_ns": 250_700}
    written, data = write(Commands([row]))
    assert V2.unpack(data) == (0x28, 2 << 8, 0, 4096, 0, 9, 5_000_001, 250)
    assert (written.commands, written.left_out) == (1, 0)


def test_the_order_is_that_of_sending():
    rows = [{**READ, "time_ns": at, "latency_ns": 1000} for at in (3000, 1000, 2000)]
    _, data = write(Commands(rows))
    assert [entry[6] for entry in V2.iter_unpack(data)] == [1, 2, 3]
    assert [entry[2] for entry in V2.iter_unpack(data)] == [0, 1, 2]


def test_what_it_cannot_say_is_left_out_and_counted():
    rows = [
        {**READ, "time_ns": 0},
        {**READ, "time_ns": 1, "disk": 1},
        {**READ, "time_ns": 2, "fate": Fate.OPEN},
        {**READ, "time_ns": 3, "blocks": 1 << 24},
        {"time_ns": 4, "operation": Operation.OTHER},
        {**READ, "time_ns": 5, "lba": (1 << 64) - 1},
        {"time_ns": 6, "opcode": 0x12, "data_in": 36},
    ]
    written, data = write(Commands(rows, disks=("a", "b")))
    assert (written.commands, written.left_out) == (2, 5)
    assert written.why
    assert [entry[0] for entry in V2.iter_unpack(data)] == [0x28, 0x12]


@pytest.mark.parametrize("protocol", ["blkif", "block"])
def test_a_block_layers_commands_get_a_disks_opcodes(protocol):
    rows = [
        {"operation": operation, "lba": lba, "blocks": blocks, "time_ns": at, "opcode": 3}
        for at, (operation, lba, blocks) in enumerate(
            [
                (Operation.READ, 1, 1),
                (Operation.WRITE, 1 << 32, 2),
                (Operation.FLUSH, None, None),
                (Operation.UNMAP, 8, 16),
            ]
        )
    ]
    _, data = write(Commands(rows, protocol=protocol))
    found = [(entry[0], entry[5], entry[3]) for entry in V2.iter_unpack(data)]
    assert found == [(0x28, 1, 512), (0x8A, 1 << 32, 1024), (0x35, 0, 0), (0x42, 8, 8192)]


def test_blocks_of_4096_bytes_become_sectors():
    _, data = write(Commands([{**READ, "time_ns": 0}], block_bytes=4096))
    ((_, _, _, length, _, lbn, _, _),) = V2.iter_unpack(data)
    assert (lbn, length) == (72, 8 * 4096)


@given(
    st.lists(
        st.tuples(
            st.sampled_from([0x28, 0x2A, 0x88, 0x8A]),
            st.integers(0, 1 << 40),
            st.integers(0, 1 << 16),
            st.integers(0, 10**9),
            st.integers(0, 10**6),
        ),
        max_size=30,
    )
)
def test_reads_and_writes_come_back(rows):
    rows = sorted(rows, key=lambda row: row[3])
    commands = [
        {
            "opcode": opcode,
            "operation": Operation.READ if opcode in (0x28, 0x88) else Operation.WRITE,
            "lba": lba,
            "blocks": blocks,
            "data_in": 512 * blocks * (opcode in (0x28, 0x88)),
            "data_out": 512 * blocks * (opcode in (0x2A, 0x8A)),
            "time_ns": time * 1000,
            "latency_ns": latency * 1000,
        }
        for opcode, lba, blocks, time, latency in rows
    ]
    written, data = write(Commands(commands))
    assert written.commands == len(rows)
    found = [{name: row[name] for name in commands[0]} for row in read_back(data)]
    assert found == commands
