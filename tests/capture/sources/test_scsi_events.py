# SPDX-License-Identifier: MIT
"""Linux' scsi trace events: what a stock kernel wrote, and the shapes of older and newer ones."""

import gzip
import re
from collections import Counter
from pathlib import Path

import pytest

from vscsi.capture.commands import Fate, Operation
from vscsi.wire.cdb import build, decode

CAPTURES = Path(__file__).parents[3] / "captures"
READ_10 = build("READ(10)", lba=2048, blocks=8)


def line(time, event, cdb=READ_10, tags="driver_tag=5 scheduler_tag=9 ", more="", lun=0):
    """One event as tracefs has it."""
    return (
        f"       fio-812     [001] d..1.  {time}: scsi_dispatch_cmd_{event}: host_no=2 channel=0"
        f" id=1 lun={lun} data_sgl=1 prot_sgl=0 prot_op=SCSI_PROT_NORMAL {tags}"
        f"cmnd=(READ_10 lba=2048 txlen=8 protect=0 raw={cdb.hex(' ')}){more}\n"
    ).encode()


def result(status="SAM_STAT_GOOD", host="DID_OK", sense=""):
    """How an end ends."""
    return f" result=(driver=DRIVER_OK host={host} message=COMMAND_COMPLETE status={status}){sense}"


def test_what_a_stock_kernel_traced(read):
    """Against one look at each line by itself."""
    text = gzip.decompress((CAPTURES / "linux-scsi-events.txt.gz").read_bytes())
    rows, source = read("scsi-events", text)
    started, expected = {}, []
    for entry in text.decode().splitlines():
        found = re.search(
            r" (\d+)\.(\d{6}): scsi_dispatch_cmd_(start|done):.* driver_tag=(\d+) .*raw=([^)]*)\)",
            entry,
        )
        if not found:
            assert entry.startswith("#")
            continue
        time_ns = int(found[1] + found[2]) * 1000
        if found[3] == "start":
            assert found[4] not in started
            started[found[4]] = time_ns, bytes.fromhex(found[5]), len(started)
            continue
        begun, cdb, outstanding = started.pop(found[4])
        status = {"GOOD": 0, "CHECK_CONDITION": 2}[re.search(r"SAM_STAT_(\w+)", entry)[1]]
        expected.append((begun, time_ns - begun, int(found[4]), cdb, outstanding, status))
    assert not started
    names = ("time_ns", "latency_ns", "tag", "cdb", "outstanding", "status")
    assert [tuple(row[name] for name in names) for row in rows] == expected
    for row in rows:
        command = decode(row["cdb"])
        if row["operation"] in (Operation.READ, Operation.WRITE):
            assert (row["lba"], row["blocks"]) == (command.lba, command.blocks)
            buffer = 1 if row["opcode"] == 0x93 else command.blocks  # WRITE SAME
            assert row["data_in"] + row["data_out"] == 512 * buffer
    assert Counter(decode(row["cdb"]).row.name for row in rows) == {
        "READ(10)": 192,
        "WRITE(10)": 153,
        "SYNCHRONIZE CACHE(10)": 24,
        "UNMAP": 12,
        "WRITE SAME(16)": 12,
    }
    assert [(disk.name, disk.lun) for disk in source.disks] == [("0:0:0:0", bytes(8))]
    assert not source.troubles.notes


def test_commands_that_timed_out(read):
    text = gzip.decompress((CAPTURES / "linux-scsi-timeouts.txt.gz").read_bytes())
    rows, source = read("scsi-events", text)
    assert [row["fate"] for row in rows] == [Fate.ABORTED, Fate.ABORTED, Fate.ANSWERED]
    assert [row["latency_ns"] is None for row in rows] == [True, True, False]
    words = [event.words for event in source.events]
    assert words == ["timed out: READ(10) lba 0 blocks 8"] * 2 + ["error handler woken"]
    assert source.events[0].disk == 0


def test_what_trace_cmd_reports(read):
    """Its names of results are numbers."""
    text = gzip.decompress((CAPTURES / "linux-trace-cmd.txt.gz").read_bytes())
    rows, _ = read("scsi-events", text)
    assert [(row["fate"], row["status"]) for row in rows] == [(Fate.ANSWERED, 0)] * 20
    assert [row["lba"] for row in rows] == list(range(0, 160, 8))


@pytest.mark.parametrize("prefix", ["scsi:", ""])
@pytest.mark.parametrize(
    ("sense", "found"),
    [
        ("", (None, None, None)),
        (" sense=(key=0x3 asc=0x11 ascq=0)", (3, 0x11, 0)),
        (" sense=(key=0x3 asc=0x11 ascq=0x0)", (3, 0x11, 0)),
    ],
)
def test_old_kernels_without_tags_and_new_ones_with_sense(read, prefix, sense, found):
    end = result("SAM_STAT_CHECK_CONDITION", sense=sense)
    tags = "driver_tag=5 scheduler_tag=9 " if sense else ""
    text = line("7.000001", "start", tags=tags) + line("7.000011", "done", tags=tags, more=end)
    text = text.replace(b"scsi_dispatch", prefix.encode() + b"scsi_dispatch")
    ((row,), source) = read("scsi-events", text)
    assert (row["time_ns"], row["latency_ns"]) == (7_000_001_000, 10_000)
    assert row["tag"] == (5 if sense else None)
    assert (row["sense_key"], row["asc"], row["ascq"]) == found
    assert row["status"] == 2
    assert source.disks[0].name == "2:0:1:0"


def test_nanoseconds_and_perf(read):
    text = line("7.000000123", "start") + line("7.000000223", "done", more=result())
    rows, _ = read("scsi-events", text.replace(b"fio-812     [001] d..1. ", b"fio 812 [001]"))
    assert [(row["time_ns"], row["latency_ns"]) for row in rows] == [(7_000_000_123, 100)]


def test_a_host_that_failed_and_one_that_was_busy(read):
    text = line("1.000000", "start") + line("1.000001", "error", more=" rtn=4181")
    text += line("1.000002", "start") + line("1.000003", "done", more=result(host="DID_NO_CONNECT"))
    rows, source = read("scsi-events", text)
    assert [(row["time_ns"], row["fate"], row["outstanding"]) for row in rows] == [
        (1_000_002_000, Fate.FAILED, 0)
    ]
    assert "1 commands were refused by the driver and sent again" in source.troubles.notes


def test_what_waits_where_events_were_lost_is_lost(read):
    text = line("1.000000", "start") + b"CPU:1 [LOST 12 EVENTS]\n"
    text += line("1.000002", "start") + line("1.000003", "done", more=result())
    rows, source = read("scsi-events", text)
    assert [row["fate"] for row in rows] == [Fate.LOST, Fate.ANSWERED]
    assert source.troubles.dropped == 12


def test_well_known_logical_units_have_their_own_luns(read):
    rows, source = read("scsi-events", line("1.000000", "start", lun=49409))
    assert rows[0]["fate"] == Fate.OPEN
    assert source.disks[0].lun == bytes.fromhex("c101000000000000")


def test_other_events_are_left_out_and_counted_and_damaged_ones_named(read):
    text = b"# tracer: nop\n" + line("1.000000", "start")
    text += b"  fio-812 [001] d..1. 1.000001: block_rq_issue: 8,0 R 4096 () 0 + 8 [fio]\n"
    text += line("1.000002", "done")[:150] + b"\n" + line("1.000003", "done", more=result())
    rows, source = read("scsi-events", text)
    assert [row["fate"] for row in rows] == [Fate.ANSWERED]
    assert "1 lines are no scsi events" in source.troubles.notes
    assert source.troubles.skipped == 1
    assert "scsi_dispatch_cmd_done" in source.troubles.first_skipped
