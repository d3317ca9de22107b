# SPDX-License-Identifier: MIT
"""What is written as fio's I/O log: read back, and replayed by fio itself."""

import io
import json
import subprocess

from hypothesis import given
from hypothesis import strategies as st

from tests.capture.sinks.test_vscsi_trace import Commands
from vscsi.capture.commands import Operation
from vscsi.capture.sinks import iolog as sink
from vscsi.capture.sources import iolog as source
from vscsi.wire.parameters import build_unmap

READ, WRITE, FLUSH, UNMAP = Operation.READ, Operation.WRITE, Operation.FLUSH, Operation.UNMAP
OTHER = Operation.OTHER


def write(commands):
    output = io.BytesIO()
    written = sink.write(commands, output)
    return written, output.getvalue().decode()


def row(time_us, operation, lba=None, blocks=None, disk=0, **more):
    named = {"time_ns": 10**18 + time_us * 1000, "operation": operation, "disk": disk}
    return {**named, "lba": lba, "blocks": blocks, **more}


def test_lines_are_as_the_manual_has_them():
    rows = [
        row(0, READ, 8, 8),
        row(25, WRITE, 16, 1, disk=1),
        row(30, FLUSH),
        row(31, OTHER),
        row(40, UNMAP, 2048, 8),
        row(50, UNMAP, data=build_unmap([(0, 8), (64, 16)])),
        row(60, UNMAP, data=build_unmap([(0, 8)])[:20]),
        row(70, UNMAP),
    ]
    written, text = write(Commands(rows, disks=("srp-1-0 lun 0", "/dev/sdb")))
    assert text.splitlines() == [
        "fio version 3 iolog",
        "0 /srp-1-0-lun-0 add",
        "0 /srp-1-0-lun-0 open",
        "0 /srp-1-0-lun-0 read 4096 4096",
        "25 /dev/sdb add",
        "25 /dev/sdb open",
        "25 /dev/sdb write 8192 512",
        "30 /srp-1-0-lun-0 sync 0 0",
        "40 /srp-1-0-lun-0 trim 1048576 4096",
        "50 /srp-1-0-lun-0 trim 0 4096",
        "50 /srp-1-0-lun-0 trim 32768 8192",
        "70 /srp-1-0-lun-0 close",
        "70 /dev/sdb close",
    ]
    assert (written.commands, written.left_out) == (5, 3)
    assert written.why == "a log has no word for it"


def test_names_that_would_be_the_same_are_not():
    rows = [row(at, READ, 0, 1, disk=at) for at in range(3)]
    _, text = write(Commands(rows, disks=("a b", "a-b", "/a-b")))
    opened = [line.split()[1] for line in text.splitlines() if line.endswith(" open")]
    assert len(set(opened)) == 3


COMMANDS = st.lists(
    st.tuples(
        st.integers(0, 10**6),
        st.sampled_from([READ, WRITE, UNMAP, FLUSH]),
        st.integers(0, 1 << 40),
        st.integers(0, 1 << 12),
        st.integers(0, 1),
    ),
    min_size=1,
    max_size=30,
)


@given(COMMANDS)
def test_commands_come_back(rows):
    rows = sorted(rows, key=lambda each: each[0])
    ranged = [
        (time, kind, *((None, None) if kind == FLUSH else (lba, blocks)))
        for time, kind, lba, blocks, _ in rows
    ]
    disks = [each[4] for each in rows]
    commands = [row(*each, disk=disk) for each, disk in zip(ranged, disks, strict=True)]
    written, text = write(Commands(commands, disks=("/a", "/b")))
    assert (written.commands, written.left_out) == (len(rows), 0)
    reading = source.read(io.BytesIO(text.encode()))
    found = [each for batch in reading for each in batch.to_pylist()]
    start = ranged[0][0]
    assert [
        (each["time_ns"] // 1000 + start, each["operation"], each["lba"], each["blocks"])
        for each in found
    ] == [tuple(each) for each in ranged]
    names = [reading.disks[each["disk"]].name for each in found]
    assert names == [("/a", "/b")[disk] for disk in disks]


def test_fio_replays_it(tmp_path):
    rows = [row(0, READ, 0, 8), row(100, WRITE, 16, 8), row(150, WRITE, 8, 1), row(200, FLUSH)]
    written, text = write(Commands(rows, disks=("sda",)))
    (tmp_path / "log").write_text(text)
    command = ["fio", "--name=x", f"--read_iolog={tmp_path}/log", "--ioengine=null"]
    command += ["--replay_no_stall=1", "--output-format=json", f"--output={tmp_path}/out"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    (job,) = json.loads((tmp_path / "out").read_text())["jobs"]
    assert job["error"] == 0
    counted = {name: (job[name]["total_ios"], job[name]["io_bytes"]) for name in ("read", "write")}
    assert counted == {"read": (1, 4096), "write": (2, 4608)}
    assert job["sync"]["total_ios"] == 1
    assert written.commands == 4
