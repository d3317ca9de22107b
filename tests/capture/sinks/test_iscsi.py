# SPDX-License-Identifier: MIT
"""Captures written as iSCSI: a stock tshark shows and times them, and they read back the same."""

import gzip
import io
import re
import struct
import subprocess
import warnings
from collections import defaultdict

import pcapng
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.capture.sources import iscsi_traffic as traffic
from tests.capture.synthetic import write_srp
from vscsi.capture.commands import SCHEMA, Channel, Disk, Event, Fate, Operation, Troubles
from vscsi.capture.sinks import iscsi as sink
from vscsi.capture.sources import Opened, iscsi
from vscsi.capture.sources.columns import assemble, of_cdbs
from vscsi.target.base import Function, Status
from vscsi.wire.cdb import build as cdb
from vscsi.wire.lun import encode
from vscsi.wire.sense import Sense, parse_sense

START_NS = 1_700_000_000_000_000_000
CHECK = Sense(3, 0x11, 0, information=77).build()


class Recorded:
    """A source with rows that are given, as dicts of SCHEMA's columns."""

    format = "made up"

    def __init__(self, rows, channels=("ring",), disks=(0,), protocol="srp", events=()):
        """disks: the LUN of each; None for a disk without."""
        self.channels = [Channel(name, protocol) for name in channels]
        self.disks = [Disk(f"disk {lun}", None if lun is None else encode(lun)) for lun in disks]
        self.events = list(events)
        self.events_dropped = 0
        self.troubles = Troubles()
        self._rows = rows

    def __iter__(self):
        columns = {}
        for field in SCHEMA:
            blank = None if field.nullable else field.type.to_pandas_dtype()(0)
            values = [row.get(field.name, blank) for row in self._rows]
            columns[field.name] = pa.array(values, field.type)
        if any(row.get("cdb") for row in self._rows):
            columns |= of_cdbs(pa.array([row.get("cdb") for row in self._rows], pa.binary()))
        yield assemble(len(self._rows), columns)


def command(number, opcode_cdb, latency_ns=1000, **columns):
    """Return a row of an answered command."""
    row = {
        "serial": number,
        "time_ns": START_NS + number * 10_000,
        "channel": 0,
        "disk": 0,
        "tag": number,
        "cdb": opcode_cdb,
        "fate": Fate.ANSWERED,
        "latency_ns": latency_ns,
        "status": 0,
        "residual": 0,
    }
    return row | columns


def written(source):
    """Return what the sink made of a source, and what it says about it."""
    output = io.BytesIO()
    report = sink.write(source, output)
    return report, output.getvalue()


def shown(content, tmp_path, *arguments):
    """Return what a stock tshark says: no port, no plug-in, no preference of ours."""
    file = tmp_path / "converted.pcapng"
    file.write_bytes(content)
    return subprocess.run(
        ["tshark", "-n", "-r", str(file), *arguments], capture_output=True, text=True, check=True
    ).stdout


def srt(content, tmp_path):
    """Return tshark's service response times: opcode -> (count, min, max), and the means."""
    said = shown(content, tmp_path, "-q", "-z", "scsi,srt,0")
    found = re.findall(r"^ *(\d+)  .*?  +(\d+) +([\d.]+) +([\d.]+) +([\d.]+) ", said, re.M)
    return (
        {int(code): (int(count), low, high) for code, count, low, high, _ in found},
        {int(each[0]): float(each[4]) for each in found},
    )


def computed(rows):
    """Return the same from rows; tshark counts all that were answered but CHECK CONDITION."""
    times = defaultdict(list)
    for row in rows:
        if row["latency_ns"] is not None and row["status"] != Status.CHECK_CONDITION:
            times[row["cdb"][0]].append(row["latency_ns"])
    return (
        {
            code: (len(each), f"{min(each) / 1e9:.6f}", f"{max(each) / 1e9:.6f}")
            for code, each in times.items()
        },
        {code: sum(each) / len(each) / 1e9 for code, each in times.items()},
    )


@pytest.mark.parametrize("name", traffic.NAMES)
def test_tsharks_service_response_times_are_ours(name, tmp_path):
    content = gzip.decompress(traffic.packed(name))
    _, rows = traffic.read(content)
    report, converted = written(iscsi.read(io.BytesIO(content)))
    assert (report.commands, report.left_out) == (len(rows), 0)
    table, means = computed(rows)
    theirs, their_means = srt(converted, tmp_path)
    if name == "scan":  # its CD-ROM's and its tape's INQUIRYs are in other tables
        for part in (table, means, theirs, their_means):
            part.pop(0x12)
    assert theirs == table
    assert their_means == pytest.approx(means, abs=6e-7)


@pytest.mark.parametrize("name", traffic.NAMES)
def test_converted_captures_read_back_as_they_were(name):
    content = gzip.decompress(traffic.packed(name))
    source, rows = traffic.read(content)
    _, converted = written(iscsi.read(io.BytesIO(content)))
    again, found = traffic.read(converted)
    # Channels without commands (discovery sessions) are not written.
    assert [normal(again, row) for row in found] == [normal(source, row) for row in rows]
    assert again.troubles == Troubles()


def normal(source, row):
    """Return a row without what only this file's numbering gives it."""
    return {**row, "channel": None, "disk": source.disks[row["disk"]].lun}


def test_tshark_times_a_capture_of_a_ring_as_it_was_made(tmp_path):
    file = tmp_path / "srp.pcapng"
    with file.open("wb") as stream:
        load = write_srp(stream, 4000)
    with Opened(str(file)) as source:
        report, content = written(source)
    assert (report.commands, report.left_out) == (4000, 0)
    table, means = srt(content, tmp_path)
    for opcode, chosen in ((0x28, ~load["write"]), (0x2A, load["write"])):
        times = load["latency_ns"][chosen & ~load["failed"]]
        assert table[opcode] == (
            len(times),
            f"{times.min() / 1e9:.6f}",
            f"{times.max() / 1e9:.6f}",
        )
        assert means[opcode] == pytest.approx(times.mean() / 1e9, abs=6e-7)
    _, found = traffic.read(content)
    again = sorted(found, key=lambda row: row["serial"])
    for column in ("time_ns", "latency_ns", "lba", "blocks"):
        assert [row[column] for row in again] == load[column].tolist(), column


def test_what_tshark_shows_of_each_command(tmp_path):
    rows = [
        command(1, cdb("READ(10)", lba=2048, blocks=8), data_in=4096, data=b"\xaa" * 4096),
        command(2, cdb("WRITE(16)", lba=1 << 33, blocks=1), data_out=512, tag=0xFEDC_0000_1234),
        command(3, cdb("READ(10)", lba=9, blocks=1), data_in=512, status=2, sense=CHECK),
        command(4, cdb("TEST UNIT READY"), disk=1, status=8),
        command(5, cdb("INQUIRY", allocation_length=96), data_in=96, residual=60),
    ]
    _, content = written(Recorded(rows, disks=(1, 300)))
    fields = [
        "frame.time_epoch",
        "iscsi.opcode",
        "iscsi.initiatortasktag",
        "scsi.lun",
        "iscsi.scsicommand.expecteddatatransferlength",
        "iscsi.datasegmentlength",
        "iscsi.scsiresponse.status",
        "iscsi.scsiresponse.residualcount",
        "scsi.sns.key",
        "iscsi.time",
    ]
    said = shown(
        content,
        tmp_path,
        "-Y",
        "iscsi",
        "-T",
        "fields",
        "-Eoccurrence=f",
        *(f"-e{name}" for name in fields),
    )
    base, us = "1700000000.0000", 1000
    assert [line.split("\t")[:9] for line in said.splitlines()] == [
        [f"{base}10000", "0x01", "0x00000001", "0x0001", "4096", "0", "", "", ""],
        [f"{base}11000", "0x25", "0x00000001", "0x0001", "", "4096", "", "", ""],
        [f"{base}11000", "0x21", "0x00000001", "0x0001", "", "0", "0x00", "0", ""],
        [f"{base}20000", "0x01", "0x00001234", "0x0001", "512", "0", "", "", ""],
        [f"{base}21000", "0x21", "0x00001234", "0x0001", "", "0", "0x00", "0", ""],
        [f"{base}30000", "0x01", "0x00000003", "0x0001", "512", "0", "", "", ""],
        [f"{base}31000", "0x21", "0x00000003", "0x0001", "", "20", "0x02", "0", "0x03"],
        [f"{base}40000", "0x01", "0x00000004", "0x012c", "0", "0", "", "", ""],
        [f"{base}41000", "0x21", "0x00000004", "0x012c", "", "0", "0x08", "0", ""],
        [f"{base}50000", "0x01", "0x00000005", "0x0001", "96", "0", "", "", ""],
        [f"{base}51000", "0x21", "0x00000005", "0x0001", "", "0", "0x00", "60", ""],
    ]
    answered = [line.split("\t")[9] for line in said.splitlines() if "\t0x21\t" in line]
    assert answered == [f"{us / 1e9:.9f}"] * 5


def test_frames_are_as_they_should_be(tmp_path):
    content = gzip.decompress(traffic.packed("qemu"))
    _, converted = written(iscsi.read(io.BytesIO(content)))
    checks = ["-o", "ip.check_checksum:TRUE", "-o", "tcp.check_checksum:TRUE"]
    wrong = "tcp.checksum.status == 0 || ip.checksum.status == 0 || tcp.analysis.flags"
    assert shown(converted, tmp_path, *checks, "-Y", wrong) == ""
    # This target's INQUIRY data is cut, which tshark takes amiss in the original, too.
    assert shown(converted, tmp_path, "-Y", "_ws.malformed && !(scsi_sbc.opcode == 0x12)") == ""
    times = shown(converted, tmp_path, "-T", "fields", "-eframe.time_epoch").split()
    assert times == sorted(times)


def test_interfaces_have_the_channels_names():
    rows = [command(1, cdb("TEST UNIT READY")), command(2, cdb("TEST UNIT READY"), channel=1)]
    _, content = written(Recorded(rows, ("srp-1-0", "srp-2-0")))
    with warnings.catch_warnings(action="ignore"):  # python-pcapng's own
        blocks = list(pcapng.FileScanner(io.BytesIO(content)))
        names = [
            (block.options["if_name"], block.options["if_description"])
            for block in blocks
            if isinstance(block, pcapng.blocks.InterfaceDescription)
        ]
    assert names == [
        ("srp-1-0", "srp, converted to iSCSI"),
        ("srp-2-0", "srp, converted to iSCSI"),
    ]
    packets = [block for block in blocks if isinstance(block, pcapng.blocks.EnhancedPacket)]
    assert {block.interface_id for block in packets} == {0, 1}


def test_blkif_operations_become_scsi_commands(tmp_path):
    nothing = {"cdb": None, "status": None, "residual": None}
    rows = [
        command(1, None, operation=Operation.READ, lba=1 << 40, blocks=8, data_in=4096, **nothing),
        command(2, None, operation=Operation.WRITE, lba=5, blocks=1, data_out=512, fua=True),
        command(3, None, operation=Operation.FLUSH, **nothing),
        command(4, None, operation=Operation.UNMAP, lba=64, blocks=128, **nothing),
        command(5, None, operation=Operation.OTHER, **nothing),
    ]
    report, content = written(Recorded(rows, protocol="blkif", disks=(None,)))
    assert (report.commands, report.left_out) == (4, 1)
    assert report.why == "it has no CDB, and is no read, write, flush or unmap with an address"
    assert report.note == "4 commands without CDB are written as READ(16) and the like"
    source, found = traffic.read(content)
    assert [row["cdb"] for row in found] == [
        cdb("READ(16)", lba=1 << 40, blocks=8),
        cdb("WRITE(16)", lba=5, blocks=1, fua=1),
        cdb("SYNCHRONIZE CACHE(10)"),
        cdb("UNMAP", parameter_list_length=24),
    ]
    assert found[3]["data"] == struct.pack(">HHIQII", 22, 16, 0, 64, 128, 0)
    assert source.disks[0].lun == encode(0)
    said = shown(content, tmp_path, "-Y", "iscsi.opcode == 1")
    for name in ("Read(16)", "Write(16)", "Synchronize Cache(10)", "Unmap"):
        assert f"SCSI: {name} LUN: 0x00" in said


def test_task_management(tmp_path):
    rows = [
        command(1, cdb("READ(10)"), fate=Fate.ABORTED, latency_ns=None, status=None),
        command(9, cdb("TEST UNIT READY")),
    ]
    events = [
        Event(
            START_NS + 20_000,
            0,
            "ABORT TASK tag 0x1",
            "FUNCTION COMPLETE",
            Function.ABORT_TASK,
            0,
            1,
            5000,
        ),
        Event(START_NS + 30_000, 0, "LOGICAL UNIT RESET", "", Function.LOGICAL_UNIT_RESET, 0),
        Event(START_NS + 40_000, 0, "LOGIN"),
    ]
    _, content = written(Recorded(rows, events=events))
    source, found = traffic.read(content)
    assert [(row["tag"], row["fate"]) for row in found] == [(1, Fate.ABORTED), (9, Fate.ANSWERED)]
    assert source.events == events[:2]
    said = shown(
        content, tmp_path, "-Y", "iscsi.opcode == 2", "-Tfields", "-eiscsi.taskmanfun.function"
    )
    assert said.split() == ["0x01", "0x05"]


def test_tags_of_64_bits_that_end_alike_stay_apart():
    same = 0x1234_5678
    rows = [
        command(number, cdb("READ(10)", lba=number), 1_000_000, tag=number << 32 | same)
        for number in range(1, 5)
    ]
    _, content = written(Recorded(rows))
    _, found = traffic.read(content)
    assert [row["cdb"] for row in found] == [row["cdb"] for row in rows]
    assert {row["latency_ns"] for row in found} == {1_000_000}
    assert len({row["tag"] for row in found}) == 4


def test_data_of_more_than_a_frame(tmp_path):
    rows = [command(1, cdb("WRITE(10)", blocks=400), data_out=204_800, data=b"x" * 204_800)]
    _, content = written(Recorded(rows))
    _, (row,) = traffic.read(content)
    assert (row["latency_ns"], row["data_out"], row["data"]) == (1000, 204_800, b"x" * 512)
    assert srt(content, tmp_path)[0] == {0x2A: (1, "0.000001", "0.000001")}


def test_commands_without_answers_have_none(tmp_path):
    rows = [
        command(1, cdb("READ(10)"), fate=Fate.OPEN, latency_ns=None, status=None),
        command(2, cdb("READ(10)"), fate=Fate.ANSWERED, latency_ns=None, status=None),
    ]
    _, content = written(Recorded(rows))
    assert shown(content, tmp_path, "-Y", "iscsi.opcode == 0x21") == ""
    assert len(shown(content, tmp_path, "-Y", "iscsi.opcode == 1").splitlines()) == 2


def test_nothing_to_write_is_a_file_without_frames(tmp_path):
    report, content = written(Recorded([]))
    assert report.commands == 0
    assert shown(content, tmp_path) == ""


# Any commands


_CDBS = st.sampled_from(
    [
        cdb("TEST UNIT READY"),
        cdb("READ(6)", lba=5, blocks=256),
        cdb("READ(10)", lba=77, blocks=3, fua=1),
        cdb("WRITE(12)", lba=1 << 31, blocks=1),
        cdb("READ(16)", lba=1 << 60, blocks=1),
        cdb("READ(32)", lba=12, blocks=2),
        cdb("SYNCHRONIZE CACHE(10)"),
        bytes.fromhex("c1020304050607080910111213141516"),
    ]
)
_COMMANDS = st.fixed_dictionaries(
    {
        "cdb": _CDBS,
        "channel": st.integers(0, 1),
        "disk": st.integers(0, 1),
        "attribute": st.sampled_from([None, 0, 1, 2, 4]),
        "data_out": st.sampled_from([0, 1, 511, 4096]),
        "data_in": st.sampled_from([0, 4, 1 << 31]),
        "status": st.sampled_from([0, 2, 8, 0x18, 0x40]),
        "sense": st.sampled_from([None, CHECK, b"\x72\x05\x24\x00\0\0\0\0"]),
        "residual": st.sampled_from([0, 5, -7, 0xFFFFFFFF]),
        "captured": st.integers(0, 512),
        "fate": st.sampled_from([Fate.ANSWERED, Fate.ANSWERED, Fate.FAILED, Fate.OPEN]),
        "wait": st.integers(0, 5),
    }
)


def simulated(drawn):
    """Return rows as a source has them, for commands that are sent one after another.

    Each ends behind the `wait` commands after it. Disk n of channel m has LUN n.
    """
    time, rows, ended = START_NS, [], []
    open_rows, ends = [], defaultdict(list)
    for serial, each in enumerate(drawn):
        time += 1 + serial % 3
        row = {**each, "serial": serial, "time_ns": time, "tag": serial}
        row["disk"] += 2 * row["channel"]
        row["outstanding"] = sum(other["disk"] == row["disk"] for other in open_rows)
        out = bytes([serial % 256]) * min(row["data_out"], row.pop("captured"))
        data_in = b"in" if row["data_in"] and len(out) == row["data_out"] else b""
        row["data"] = out + data_in or None
        if row["fate"] == Fate.OPEN:
            row |= {"status": None, "sense": None, "residual": None, "latency_ns": None}
            row["data"] = out or None
        elif row["fate"] == Fate.FAILED:
            row["status"] = None
        open_rows.append(row)
        rows.append(row)
        ends[serial + row.pop("wait")].append(row)
        for ending in ends.pop(serial, ()):
            time = _end(ending, time, open_rows, ended)
    for ending in [each for last in sorted(ends) for each in ends[last]]:
        time = _end(ending, time, open_rows, ended)
    return ended + sorted(open_rows, key=lambda row: (row["channel"], row["serial"]))


def _end(row, time, open_rows, ended):
    if row["fate"] == Fate.OPEN:
        return time
    open_rows.remove(row)
    row["latency_ns"] = time + 1 - row["time_ns"]
    ended.append(row)
    return time + 1


@settings(max_examples=30)
@given(st.lists(_COMMANDS, max_size=30))
def test_any_commands_read_back_as_they_were(drawn):
    rows = simulated(drawn)
    source = Recorded(rows, ("one", "two"), (0, 1, 0, 1))
    _, content = written(source)
    again, found = traffic.read(content)
    assert again.troubles.broken in ("", "no iSCSI in 0 TCP segments")
    (batch,) = Recorded(rows)
    wanted = batch.to_pylist()
    for row in wanted:
        sense = parse_sense(row["sense"] or b"")
        said = (None, None, None) if sense is None else (sense.key, sense.asc, sense.ascq)
        row["sense_key"], row["asc"], row["ascq"] = said
    names = {channel.name: number for number, channel in enumerate(again.channels)}
    assert len(names) == len(again.channels)
    for row in found:
        number = int(again.channels[row["channel"]].name.split(":")[0].removeprefix("10.0.0.")) - 1
        row["channel"] = number
        row["disk"] = 2 * number + again.disks[row["disk"]].lun[1]
    key = [row for row in wanted if row["fate"] != Fate.OPEN]
    assert [row for row in found if row["fate"] != Fate.OPEN] == key
    left = [row for row in wanted if row["fate"] == Fate.OPEN]
    assert sorted((row for row in found if row["fate"] == Fate.OPEN), key=_serial) == sorted(
        left, key=_serial
    )


def _serial(row):
    return row["serial"]


@settings(max_examples=5)
@given(st.lists(_COMMANDS, min_size=5, max_size=60))
def test_tshark_times_any_commands_as_we_do(tmp_path_factory, drawn):
    rows = simulated([{**each, "sense": None} for each in drawn])
    for row in rows:
        if row["latency_ns"] is not None:
            row["latency_ns"] *= 1000
        row["time_ns"] = START_NS + (row["time_ns"] - START_NS) * 1000
    _, content = written(Recorded(rows, ("one", "two"), (0, 1, 0, 1)))
    table, means = computed(rows)
    theirs, their_means = srt(content, tmp_path_factory.mktemp("srt"))
    for part in (table, means):
        part.pop(0xC1, None)  # which tshark has no name for
        part.pop(0x7F, None)
    for part in (theirs, their_means):
        part.pop(0xC1, None)
        part.pop(0x7F, None)
    assert theirs == table
    assert their_means == pytest.approx(means, abs=6e-7)
