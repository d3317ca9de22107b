# SPDX-License-Identifier: MIT
"""What the lint finds, and what it leaves alone."""

from typing import Any

import numpy as np
import pytest

from tests.analysis.made import Made, row
from vscsi.analysis.lint import Lint
from vscsi.analysis.result import Finding
from vscsi.analysis.run import analyze
from vscsi.capture.commands import Disk, Event, Fate, Operation
from vscsi.wire.cdb import build
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
