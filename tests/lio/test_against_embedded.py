# SPDX-License-Identifier: MIT
"""The embedded disk beside real LIO: the same CDBs to both, and only known differences.

docs/differences-from-lio.md is the table of those, and is read here.
"""

import fnmatch
import itertools
import queue
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tgt_glue import units
from tgt_glue.backing import file_backing
from tgt_glue.checks import length_of
from tgt_glue.lio_unit import LioUnit
from tgt_glue.unit_port import UnitPort
from vscsi.target.base import Function, Management, Nexus, Status, Task
from vscsi.target.disk import Disk
from vscsi.target.router import TaskRouter
from vscsi.target.stores.memory import MemoryStore
from vscsi.wire.cdb import build, decode, describe, lookup
from vscsi.wire.lun import encode
from vscsi.wire.opcodes import COMMANDS, DeviceType, Direction
from vscsi.wire.parameters import build_unmap
from vscsi.wire.sense import parse_sense

# rtslib's use of pyudev.
pytestmark = pytest.mark.filterwarnings("ignore:Will be removed in 1.0:DeprecationWarning")

BLOCKS, BLOCK = 128, 512
SIZE = BLOCKS * BLOCK
HANG_S = 60
TABLE = Path(__file__).parents[2] / "docs" / "differences-from-lio.md"
NEXUS = Nexus("initiator", "target")
KEY = (1).to_bytes(8, "big")


@dataclass(frozen=True)
class Difference:
    """A row of the table."""

    commands: tuple[str, ...]
    embedded: tuple[str, ...]
    lio: tuple[str, ...]

    def covers(self, name, embedded, lio):
        """Whether it allows these answers to a command."""
        return (
            any(fnmatch.fnmatchcase(name, each) for each in self.commands)
            and any(fnmatch.fnmatchcase(embedded, each) for each in self.embedded)
            and any(fnmatch.fnmatchcase(lio, each) for each in self.lio)
        )


def read_table():
    """Return the rows of the document's table."""
    rows = []
    for line in TABLE.read_text().splitlines():
        if cells := re.fullmatch(r"\| (.+?) +\| (.+?) +\| (.+?) +\| .+ \|", line):
            commands, embedded, lio = cells.groups()
            if commands != "command":
                row = Difference(
                    tuple(commands.split("; ")),
                    tuple(embedded.split(", ")),
                    tuple(lio.split(", ")),
                )
                rows.append(row)
    return rows


DIFFERENCES = read_table()


@dataclass(frozen=True)
class Answer:
    """What a command came to."""

    code: str
    moved: int
    overflow: int
    room: bytes
    information: int | None


class Disks:
    """The two, each behind a router."""

    def __init__(self, embedded, lio):
        self.embedded, self.lio = embedded, lio
        self.tags = itertools.count()
        for router in (embedded, lio):
            router.attach(NEXUS)
        self.level()

    def run(self, router, cdb, out=b"", into=0):
        """Execute a command on one of them."""
        finished = queue.SimpleQueue()
        room = bytearray(b"\xa5" * into)
        task = Task(
            NEXUS,
            encode(0),
            next(self.tags),
            cdb,
            finished.put,
            data_out=[memoryview(out)] if out else (),
            data_in=[memoryview(room)] if into else (),
        )
        router.submit(task)
        finished.get(timeout=HANG_S)
        assert task.delivery_failure is None, f"{describe(cdb)}: {task.delivery_failure}"
        sense = parse_sense(task.sense) if task.sense else None
        assert (sense is not None) == (task.status is Status.CHECK_CONDITION)
        code = f"{sense.key:x}/{sense.asc:02x}/{sense.ascq:02x}" if sense else task.status.name
        if code == "GOOD":
            return Answer(code, task.moved, task.overflow, bytes(room), None)
        assert room == b"\xa5" * into, f"{describe(cdb)} returned data with {code}"
        return Answer(code, 0, 0, b"", sense.information if sense else None)

    def level(self):
        """Have the same state in both: ready, nothing reserved, only zeros."""
        finished = queue.SimpleQueue()
        reset = Management(NEXUS, encode(0), Function.LOGICAL_UNIT_RESET, finished.put)
        self.embedded.manage(reset)  # mode pages, started
        finished.get(timeout=HANG_S)
        self.run(self.lio, build("RELEASE(6)"))
        register = "PERSISTENT RESERVE OUT REGISTER AND IGNORE EXISTING KEY"
        self.run(self.lio, build(register, parameter_list_length=24), bytes(24))
        for router in (self.embedded, self.lio):
            while self.run(router, build("TEST UNIT READY")).code != "GOOD":
                pass
            zeros = self.run(router, build("WRITE(16)", blocks=BLOCKS), bytes(SIZE))
            assert zeros.code == "GOOD"

    def compare(self, cdb, out=b"", into=0):
        """Send a command to both; return the row that allows what differs, None if nothing does."""
        ours = self.run(self.embedded, cdb, out, into)
        theirs = self.run(self.lio, cdb, out, into)
        if ours == theirs:
            return None
        name = lookup(cdb).name
        for row in DIFFERENCES:
            if row.covers(name, ours.code, theirs.code):
                self.level()
                return row
        raise AssertionError(
            f"{describe(cdb)} [{cdb.hex()}], {len(out)} bytes out ({out[:40].hex()}), {into} in:\n"
            f"embedded {ours}\nLIO      {theirs}"
        )


@pytest.fixture(scope="module")
def disks(modprobe, tmp_path_factory):
    """Both disks, of the same size, LIO's with all that it can do about provisioning."""
    image = tmp_path_factory.mktemp("lio") / "image"
    values = {"emulate_tpu": "1", "emulate_tpws": "1", "emulate_write_cache": "1"}
    units.create("compared", file_backing(image, SIZE), values)
    unit = LioUnit(UnitPort("compared"))
    embedded, lio = TaskRouter(), TaskRouter()
    embedded.add(0, Disk(MemoryStore(SIZE)))
    lio.add(0, unit)
    try:
        yield Disks(embedded, lio)
    finally:
        lio.close()
        unit.close()
        units.remove("compared")


# Random commands.

BOTH = (
    "TEST UNIT READY",
    "REQUEST SENSE",
    "INQUIRY",
    "MODE SENSE(6)",
    "MODE SENSE(10)",
    "READ CAPACITY(10)",
    "READ CAPACITY(16)",
    "REPORT LUNS",
    "READ(6)",
    "READ(10)",
    "READ(12)",
    "READ(16)",
    "WRITE(6)",
    "WRITE(10)",
    "WRITE(12)",
    "WRITE(16)",
    "WRITE AND VERIFY(10)",
    "WRITE AND VERIFY(16)",
    "VERIFY(10)",
    "VERIFY(16)",
    "SYNCHRONIZE CACHE(10)",
    "SYNCHRONIZE CACHE(16)",
    "WRITE SAME(10)",
    "WRITE SAME(16)",
    "UNMAP",
    "COMPARE AND WRITE",
)
"""What both have, and where equal answers matter."""

ROWS = COMMANDS[DeviceType.DISK]
SHARED = [row for row in ROWS if row.name in BOTH]
VALUES = {
    "lba": [0, 0, 1, 2, 63, 100, 126, 127, 128, 129, 2**21 - 1, 2**32 - 1, 2**64 - 1],
    "blocks": [1, 1, 1, 2, 3, 9, 127, 128, 129, 255, 0],
    "allocation_length": [255, 255, 512, 96, 36, 24, 16, 8, 4, 1, 0, 4096],
    "parameter_list_length": [24, 24, 8, 12, 16, 40, 4, 0, 1, 512],
    "page_code": [0, 0, 0x3F, 0x08, 0x0A, 0x1C, 0x01, 0x00, 0x80, 0x83, 0xB0, 0xB1, 0xB2, 0x86],
    "evpd": [0, 1],
}


@st.composite
def commands(draw):
    """A command of the table: CDB, data-out, length of data-in; mostly well formed."""
    row = draw(st.sampled_from(SHARED) | st.sampled_from(SHARED) | st.sampled_from(ROWS))
    fields = {}
    for name, field in row.fields.items():
        top = field.mask >> field.shift
        if name in VALUES:
            fields[name] = draw(st.sampled_from([v for v in VALUES[name] if v <= top]))
        elif draw(st.integers(0, 11)) == 0:
            fields[name] = draw(st.integers(0, top))
    if row.length == 6 and "blocks" in fields:
        fields["blocks"] = fields["blocks"] or 256
    cdb = build(row, **fields, control=draw(st.sampled_from([0] * 19 + [4])))
    length = length_of(decode(cdb), BLOCK)
    if length is None:
        length = draw(st.sampled_from([0, 4, 16]))
    shorter, longer = max(0, length - 1), length + BLOCK
    size = draw(st.sampled_from([length] * 12 + [0, shorter, length // 2, longer]))
    if row.direction is Direction.IN:
        return cdb, b"", size
    if row.direction is Direction.NONE:
        return cdb, b"", draw(st.sampled_from([0] * 9 + [BLOCK]))
    if row.name == "UNMAP":
        places, counts = st.sampled_from(VALUES["lba"][:10]), st.sampled_from([0, 1, 8, 128])
        data = build_unmap(draw(st.lists(st.tuples(places, counts), max_size=2)))
        if draw(st.integers(0, 5)):
            cdb, size = build(row, parameter_list_length=len(data)), len(data)
    elif row.name.startswith("PERSISTENT"):
        keys = st.sampled_from([bytes(8), KEY])
        data = draw(keys) + draw(keys) + bytes(8)
    else:
        data = bytes([draw(st.sampled_from([0, 0, 1, 0xA5]))]) * size
    return cdb, data[:size].ljust(size, b"\0"), 0


@settings(
    max_examples=120,
    derandomize=True,
    phases=(Phase.generate, Phase.shrink),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(sequence=st.lists(commands(), min_size=1, max_size=8))
def test_any_commands_get_the_same_answers_but_for_known_differences(disks, sequence):
    for command in sequence:
        disks.compare(*command)
    same = disks.compare(build("READ(16)", blocks=BLOCKS), into=SIZE)
    assert same is None


# Each known difference.


def unmap(*ranges):
    """Return an UNMAP command and its data."""
    data = build_unmap(ranges)
    return build("UNMAP", parameter_list_length=len(data)), data


def with_list(name, data, **fields):
    """Return a command with a parameter list."""
    return build(name, parameter_list_length=len(data), **fields), data


def answering(name, size, **fields):
    """Return a command with data-in."""
    return build(name, allocation_length=size, **fields), b"", size


PATTERN = b"\1" * BLOCK
BAD_MODE_PAGE = bytes(4) + bytes([0x3D, 6]) + bytes(6)

EXAMPLES = [
    answering("PERSISTENT RESERVE IN READ KEYS", 64),
    (build("RESERVE(6)"),),
    (build("EXTENDED COPY(LID1)"),),
    answering("REPORT TARGET PORT GROUPS", 64),
    (build("WRITE SAME(32)", lba=1, blocks=2), PATTERN),
    (build("SEEK(10)"),),
    (build("FORMAT UNIT"),),
    (build("SEND DIAGNOSTIC", selftest=1),),
    (build("PRE-FETCH(10)", blocks=1),),
    answering("REPORT SUPPORTED OPERATION CODES", 64),
    answering("REPORT TIMESTAMP", 12),
    (build("START STOP UNIT", start=0),),
    answering("INQUIRY", 96),
    answering("INQUIRY", 64, evpd=1, page_code=0x80),
    answering("MODE SENSE(6)", 64, page_code=0x3F),
    answering("MODE SENSE(6)", 64, page_code=8, pc=3),
    answering("MODE SENSE(6)", 64, page_code=8, subpage_code=1),
    with_list("MODE SELECT(6)", BAD_MODE_PAGE, pf=1),
    answering("READ CAPACITY(16)", 32),
    answering("READ CAPACITY(16)", 32, lba=5),
    answering("REQUEST SENSE", 64),
    answering("REQUEST SENSE", 64, desc=1),
    answering("REQUEST SENSE", 0),
    (build("VERIFY(10)", blocks=1, bytchk=1), PATTERN),
    (build("VERIFY(10)", blocks=1, bytchk=2),),
    (build("COMPARE AND WRITE", blocks=2), bytes(4 * BLOCK)),
    (build("COMPARE AND WRITE", lba=BLOCKS, blocks=2), bytes(4 * BLOCK)),
    (build("COMPARE AND WRITE", blocks=1, protect=1), bytes(2 * BLOCK)),
    (build("WRITE SAME(16)", blocks=2, ndob=1),),
    (build("WRITE SAME(16)", lba=BLOCKS + 1, blocks=0), PATTERN),
    unmap((0, 1), (8, 1)),
    unmap((BLOCKS, 1), (8, 1)),
    (build("UNMAP", parameter_list_length=16), build_unmap([(0, 8)])[:16]),
    (build("WRITE SAME(10)", lba=1, blocks=2), 2 * PATTERN),
    (build("WRITE SAME(10)", lba=BLOCKS, blocks=1, protect=1), PATTERN),
    (build("WRITE BUFFER", parameter_list_length=8), bytes(4)),
    (build("WRITE ATOMIC(16)", lba=BLOCKS, blocks=1), bytes(4)),
    (build("LOG SENSE", control=4),),
]
"""At least one for each row of the table."""


def test_every_known_difference_is_still_one(disks):
    met = {disks.compare(*example) for example in EXAMPLES}
    assert set(DIFFERENCES) - met == set()
