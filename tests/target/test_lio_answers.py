# SPDX-License-Identifier: MIT
"""Our disk beside LIO's, command by command; every difference is meant, and says why."""

import json
from pathlib import Path

import pytest

from vscsi.target.base import Status
from vscsi.wire.sense import parse_sense

ANSWERS = json.loads((Path(__file__).parent.parent / "data" / "lio_answers.json").read_text())[
    "answers"
]

ONLY_DATA = "GOOD"

DIFFERENCES = {
    # name: (our answer, why)
    "REQUEST SENSE": (ONLY_DATA, "LIO pads to the allocation length"),
    "REQUEST SENSE DESC=1": ("GOOD", "we have descriptor format"),
    "INQUIRY std alloc 96, buffer 36 (overflow)": ("GOOD", "truncated, with a residual"),
    "INQUIRY VPD 0x00": (ONLY_DATA, "no referrals page"),
    "INQUIRY VPD 0x80": (ONLY_DATA, "another serial number"),
    "INQUIRY VPD 0x83": (ONLY_DATA, "other designators"),
    "READ CAPACITY(16)": (ONLY_DATA, "LBPRZ=1: holes read as zeros"),
    "REPORT LUNS select 0x0": (ONLY_DATA, "another inventory"),
    "REPORT LUNS select 0x1": (ONLY_DATA, "LIO ignores SELECT REPORT"),
    "REPORT LUNS select 0x2": (ONLY_DATA, "LIO ignores SELECT REPORT"),
    "REPORT LUNS select 0x10": ("5/24/00", "LIO ignores SELECT REPORT"),
    "REPORT LUNS select 0x11": ("5/24/00", "LIO ignores SELECT REPORT"),
    "REPORT LUNS alloc 8 (<16)": ("5/24/00", "SPC-5 6.33: at least 16"),
    "READ(10) 1 block, buffer 2 blocks (underflow)": ("GOOD", "an underflow is a residual"),
    "READ(10) 2 blocks, buffer 1 block (overflow)": ("GOOD", "truncated, with a residual"),
    "READ(10) 2 blocks, buffer 700 bytes": ("GOOD", "truncated, with a residual"),
    "WRITE(10) 1 block, data-out 2 blocks (underflow)": ("GOOD", "what the CDB says is written"),
    "READ(10) @30..39 after the mismatches": (ONLY_DATA, "what the CDB said was written"),
    "WRITE(10) 1 block, no data buffer (dir NONE)": ("5/0e/03", "nothing to write from"),
    "WRITE(10) CDB with data-in buffer (wrong direction)": ("5/0e/03", "LIO reads the disk"),
    "VERIFY(10) BYTCHK=1 miscompare": ("e/1d/00", "LIO does not compare"),
    "UNMAP 2 descriptors": ("GOOD", "other block limits"),
    "UNMAP too many blocks": ("GOOD", "other block limits"),
    "UNMAP descriptor length > parameter length": ("5/1a/00", "the list is cut"),
    "UNMAP CDB length 24, data-out 8": ("5/0e/03", "as a WRITE whose data-out is too short"),
    "WRITE SAME(16) NDOB=1": ("GOOD", "we have NDOB"),
    "WRITE SAME(16) UNMAP+NDOB": ("GOOD", "we have NDOB"),
    "COMPARE AND WRITE 2 blocks": ("e/1d/00", "other block limits"),
    "MODE SENSE(6) saved page 8": ("5/39/00", "nothing is saved"),
    "MODE SENSE(10) LLBAA": (ONLY_DATA, "a long block descriptor where it is allowed"),
    "MODE SELECT(6) bad page": ("5/26/00", "the page is in the parameter list, not in the CDB"),
    "START STOP UNIT start": ("GOOD", "LIO knows no START"),
    "START STOP UNIT stop": ("GOOD", "LIO knows no START"),
    "TEST UNIT READY after stop": ("2/04/02", "it has been stopped"),
    "START STOP UNIT start 2": ("GOOD", "LIO knows no START"),
    "SEND DIAGNOSTIC selftest": ("GOOD", "mandatory (SPC-5 6.42)"),
    "REPORT SUPPORTED OPCODES": ("GOOD", "LIO has it from 6.2 on"),
    "REPORT SUPPORTED OPCODES one (READ10)": ("GOOD", "LIO has it from 6.2 on"),
    "REPORT SUPPORTED TMF": ("5/24/00", "another service action of this opcode is there"),
    "FORMAT UNIT": ("GOOD", "mandatory (SBC-4 5.4)"),
    "PRE-FETCH(10)": ("GOOD", "a hint"),
    "READ(10) NACA=1 control": ("5/24/00", "NormACA=0"),
    "READ(10) reserved bits byte 1 bit 0 (RELADR)": (ONLY_DATA, "FORMAT UNIT came before"),
}


def read_sense(entry):
    return parse_sense(bytes.fromhex(entry["sense"])) if "sense" in entry else None


@pytest.fixture
def replay(make_setup, watched_store):
    """Send everything that LIO was sent, in the same order, to a disk like LIO's."""
    run = make_setup(store=watched_store(131072 * 512)).run
    pairs = {}
    for entry in ANSWERS:
        buffers = {}
        if entry["direction"] == "out":
            buffers["out"] = bytes.fromhex(entry.get("data_out", "")).ljust(entry["length"], b"\0")
        elif entry["direction"] == "in":
            buffers["into"] = entry["length"]
        pairs[entry["name"]] = entry, run(bytes.fromhex(entry["cdb"]), **buffers)
    return pairs


def test_we_answer_as_lio_does_but_for_the_differences_that_are_meant(replay):
    assert set(DIFFERENCES) <= set(replay)
    for name, (entry, ours) in replay.items():
        sense = read_sense(entry)
        theirs = Status(entry["status"]).name
        if sense is not None:
            theirs = f"{sense.key:x}/{sense.asc:02x}/{sense.ascq:02x}"
        same = (
            ours.code == theirs
            and (sense is None or sense.information == ours.sense.information)
            and entry.get("moved", ours.moved) == ours.moved
            and entry.get("data_in", ours.data.hex()) == ours.data.hex()
        )
        if name in DIFFERENCES:
            assert ours.code == DIFFERENCES[name][0], name
            assert not same, f"{name} is no difference any more"
        else:
            assert same, f"{name}: LIO {theirs}, we {ours.code}"
