# SPDX-License-Identifier: MIT
"""What the lint finds, and what it leaves alone."""

from typing import Any

import numpy as np
import pytest

from tests.analysis.made import Made, row
from vscsi.analysis.lint import Lint, medium
from vscsi.analysis.result import Finding
from vscsi.analysis.run import analyze
from vscsi.capture.commands import Disk, Event, Fate, Operation
from vscsi.wire.cdb import build
from vscsi.wire.lun import encode
from vscsi.wire.opcodes import COMMANDS, DeviceType

WRITE = Operation.WRITE


def findings(rows: list[dict[str, Any]], **made: Any) -> dict[str, Finding]:
    return {each.rule: each for each in analyze([("made", Made(rows, **made))]).findings}


def of_cdb(cdb: bytes) -> tuple[Finding, ...]:
    """Return what is found in one CDB alone."""
    lint = Lint()
    (batch,) = Made([row(0, cdb=cdb)])
    lint.cdbs(batch, np.array([True]))
    return lint.finish(0, 0)


def clean(serial: int, **values: Any) -> dict[str, Any]:
    """Return a write with FUA, about which there is nothing to say."""
    return row(serial, operation=WRITE, fua=True, **values)


def test_nothing_is_said_of_a_clean_initiator() -> None:
    assert findings([clean(n, lba=n * 8) for n in range(20)]) == {}


@pytest.mark.parametrize(
    ("cdb", "rule"),
    [
        ("28000000000040000800", "reserved-bits"),  # byte 6, above GROUP NUMBER
        ("28000000000000000808", "reserved-bits"),  # CONTROL, bit 3
        ("280400000000000008c4", None),  # RARC; NACA and the vendor's bits of CONTROL
        ("2800000000000000", "short-cdb"),
        ("8801" + "00" * 14, None),  # DLD2
        ("ff" * 10, None),  # nobody knows
        ("00", "short-cdb"),
        ("7f", None),  # its length is unknown
        ("000000000100", "reserved-bits"),
    ],
)
def test_cdbs_are_checked_against_the_table(cdb: str, rule: str | None) -> None:
    found = of_cdb(bytes.fromhex(cdb))
    assert [each.rule for each in found] == ([rule] if rule else [])
    if rule:
        assert cdb in found[0].examples[0]


@pytest.mark.parametrize("command", COMMANDS[DeviceType.DISK], ids=lambda command: command.name)
def test_what_the_table_builds_is_clean(command: Any) -> None:
    fields = {
        name: 1 if name == "blocks" and command.length == 6 else field.mask >> field.shift
        for name, field in command.fields.items()
    }
    assert of_cdb(build(command, control=4, **fields)) == ()


def test_cdbs_of_a_tape_are_left_alone() -> None:
    tape = Disk("tape", device_type=DeviceType.TAPE)
    assert findings([clean(0, cdb=bytes.fromhex("080700000a00"))], disks=[tape]) == {}


def test_a_tag_that_is_in_use_is_not_used_again() -> None:
    rows = [
        clean(0, tag=5, time_ns=0, latency_ns=10_000),
        clean(1, tag=5, time_ns=9_999, latency_ns=10),
        clean(2, tag=5, time_ns=10_009, latency_ns=10),  # the last answer has come
        clean(3, tag=5, time_ns=10_012, channel=1),  # another ring has tags of its own
    ]
    found = findings(rows)["reused-tag"]
    assert (found.count, found.severity) == (1, "error")
    assert "tag 0x5" in found.examples[0]


def test_a_tag_of_a_command_without_end_stays_in_use_however_long() -> None:
    rows = [clean(0, tag=7, fate=int(Fate.OPEN), latency_ns=None)]
    rows += [clean(n, tag=100 + n, lba=n) for n in range(1, 50)]
    rows += [clean(50, tag=7, time_ns=10**12)]
    rows += [clean(51, tag=101, time_ns=10**12)]
    assert findings(rows)["reused-tag"].count == 1


def test_an_aborted_command_gives_its_tag_back() -> None:
    aborted = clean(0, tag=7, fate=int(Fate.ABORTED), latency_ns=None)
    assert findings([aborted, clean(1, tag=7)]) == {}


def test_the_end_of_the_medium_is_known() -> None:
    disk = Disk("small", block_count=100)
    rows = [
        clean(0, lba=92, blocks=8),
        clean(1, lba=93, blocks=8),
        clean(2, lba=2**64 - 1, blocks=1),
    ]
    found = findings(rows, disks=[disk])["lba-out-of-range"]
    assert found.count == 2
    assert "lba 93 blocks 8 of 100" in found.examples[0]
    assert findings(rows, disks=[Disk("of any size")]) == {}


def test_writes_are_flushed_before_a_logout() -> None:
    writes = [row(n, operation=WRITE, lba=n) for n in range(3)]
    flush = row(3, operation=Operation.FLUSH)
    logout = Event(10_000, 0, "I_LOGOUT")
    found = findings(writes, events=[logout])["missing-flush"]
    assert (found.count, found.examples) == (3, ("disk 0: 3 writes before I_LOGOUT",))
    assert findings([*writes, flush], events=[logout]) == {}
    early = Event(1_500, 0, "I_LOGOUT")
    assert findings([*writes, flush], events=[early])["missing-flush"].count == 2


def test_unflushed_writes_at_the_end_are_a_note() -> None:
    rows = [row(0, operation=WRITE), row(1, operation=Operation.FLUSH), row(2, operation=WRITE)]
    found = findings(rows)["unflushed-writes"]
    assert (found.count, found.severity) == (1, "note")


def test_pages_that_were_never_written_are_counted_when_read() -> None:
    rows = [
        row(0, lba=0, blocks=16),
        clean(1, lba=0, blocks=8),
        row(2, lba=0, blocks=16),
    ]
    found = findings(rows)["unwritten-read"]
    assert (found.count, found.severity) == (3, "note")


def unit(name: str, lun: int | None, *, blocks: int | None = 100, size: int = 512) -> Disk:
    return Disk(name, None if lun is None else encode(lun), size, blocks)


SRP = unit("srp-1-0 lun 1", 1)


@pytest.mark.parametrize(
    ("other", "flushed"),
    [
        (unit("srp-2-0 lun 1", 1), True),
        (unit("vscsiif-2-0 lun 0:0:1", 1), True),
        (unit("blkif-3-1", None), True),
        (unit("blkif-3-1", None, blocks=101), False),
        (unit("blkif-3-0", None), False),
        (unit("srp-2-0 lun 2", 2), False),
        (unit("srp-2-1 lun 1", 1), False),
        (unit("srp-2-0 lun 1", 1, blocks=None), False),
        (unit("vscsiif-2-0 lun 0:1:1", 1), False),
        (unit("10.0.0.2:3260/srp-2-0 lun 1", 1), False),
    ],
    ids=lambda value: value.name if isinstance(value, Disk) else None,
)
def test_a_flush_is_of_the_medium_whoever_sends_it(other: Disk, flushed: bool) -> None:
    rows = [
        row(0, operation=WRITE, lba=0),
        row(1, operation=WRITE, lba=8, disk=1),
        row(2, operation=Operation.FLUSH, disk=1),
    ]
    found = findings(rows, disks=[SRP, other])
    assert ("unflushed-writes" in found) is not flushed
    logout = Event(10_000, 0, "I_LOGOUT")
    assert ("missing-flush" in findings(rows, disks=[SRP, other], events=[logout])) is not flushed


def test_the_same_bytes_in_other_blocks_are_one_medium() -> None:
    large = unit("srp-1-0 lun 0", 0, blocks=100, size=4096)
    assert medium(large) == medium(unit("blkif-2-0", None, blocks=800))


def test_what_may_be_flushed_elsewhere_is_said_to_be_of_this_path() -> None:
    logout = [Event(10_000, 0, "I_LOGOUT")]
    for disk, said in ((SRP, False), (Disk("portal/iqn lun 1", encode(1), 512, 100), True)):
        rows = [row(0, operation=WRITE)]
        assert ("on this path" in findings(rows, disks=[disk])["unflushed-writes"].words) is said
        closed = findings(rows, disks=[disk], events=logout)["missing-flush"]
        assert ("on this path" in closed.words) is said


def test_writes_after_the_flush_count_for_whoever_sent_them() -> None:
    disks = [SRP, unit("srp-2-0 lun 1", 1)]
    rows = [
        row(0, operation=WRITE, lba=0),
        row(1, operation=Operation.FLUSH, disk=1),
        row(2, operation=WRITE, lba=8),
        row(3, operation=WRITE, lba=8, disk=1),
        row(4, operation=WRITE, lba=8, fua=True),
    ]
    assert findings(rows, disks=disks)["unflushed-writes"].count == 2
    for batch_rows in (1, 2, 100):
        analysis = analyze([("made", Made(rows, disks=disks, batch_rows=batch_rows))])
        assert analysis.flushes.unflushed_writes == 2
