# SPDX-License-Identifier: MIT
"""What a first reading says of a capture, and what is looked at of the units."""

import pytest

from vscsi.capture.commands import Disk, Fate
from vscsi.capture.replay.survey import MAX_PLACES, survey
from vscsi.capture.replay.translate import Unit
from vscsi.capture.replay.units import (
    LOOK_BYTES,
    NO_NUMBER,
    Units,
    check_size,
    first_data,
)
from vscsi.target.base import Status
from vscsi.transport.hba import Reply
from vscsi.wire import cdb as cdbs
from vscsi.wire.errors import SetupError

MIB = 1 << 20


def test_a_survey_counts_disk_by_disk(source, batch, transfer):
    rows = [
        transfer("READ", 100, 8, disk=0),
        transfer("WRITE", 5, disk=1),
        transfer("WRITE", 5000, disk=1, status=2),  # refused: it may be anywhere
        transfer("READ", 9000, disk=1, fate=int(Fate.FAILED)),
        {"cdb": cdbs.build("FORMAT UNIT"), "disk": 1},
        {"cdb": cdbs.build("INQUIRY"), "disk": 0},
    ]
    disks = [Disk("a"), Disk("b")]
    found = survey(source([batch(rows), batch(rows)], disks=disks))
    assert found.commands == 12
    first, second = found.disks[0], found.disks[1]
    assert (first.commands, first.end, first.changing) == (4, 108, 0)
    assert (second.commands, second.end, second.changing) == (8, 6, 6)
    assert second.places.tolist() == [5, 5000]
    only = survey(source([batch(rows)], disks=disks), lambda disk: disk.name == "a")
    assert list(only.disks) == [0]


def test_places_are_bounded(source, batch, transfer):
    many = [
        batch([transfer("WRITE", 1 << 22 | at * 128) for at in range(first, first + 1000)])
        for first in range(0, 2 * MAX_PLACES, 1000)
    ]
    places = survey(source(many)).disks[0].places
    assert MAX_PLACES / 2 <= len(places) <= MAX_PLACES


class Lun:
    """A unit of sparse content that counts what is read of it."""

    def __init__(self, data):
        self.data = data
        self.looks = []

    def read(self, lba, blocks):
        self.looks.append((lba, blocks))
        content = bytearray(blocks * 512)
        for at, byte in self.data.items():
            if lba * 512 <= at < (lba + blocks) * 512:
                content[at - lba * 512] = byte
        return bytes(content)


def unit(data, blocks=MIB):
    return Unit(Lun(data), blocks, 512)


@pytest.mark.parametrize("at", [0, 512 * MIB - 1, 300 * MIB + 5])
def test_data_are_found_at_both_ends_and_where_will_be_written(at):
    assert first_data(unit({at: 1}), [300 * MIB]) == at


def test_data_elsewhere_do_not_matter():
    assert first_data(unit({100 * MIB: 1}), [300 * MIB]) is None
    assert first_data(unit({}, blocks=3), [0, 1024]) is None


def test_every_place_is_looked_at_once_and_no_longer_than_it_may_take():
    empty = unit({})
    first_data(empty, [at * LOOK_BYTES + 512 for at in range(1000)])
    looks = empty.lun.looks[2:]
    assert sorted(lba for lba, _ in looks) == [at * LOOK_BYTES // 512 for at in range(1000)]
    assert all(blocks * 512 == LOOK_BYTES for _, blocks in looks)
    slow = unit({})
    now = iter(range(0, 1000, 2))
    first_data(slow, [at * MIB for at in range(500)], clock=lambda: next(now), most_s=5)
    assert len(slow.lun.looks) == 3


def test_units_by_captured_number_or_one_for_all(fake):
    hba, _ = fake(blocks=77)
    units = Units(hba)
    second = units.of(Disk("b", lun=bytes((0, 3)) + bytes(6)))
    assert (second.lun.address, second.blocks) == (bytes((0, 3)) + bytes(6), 77)
    assert units.of(Disk("c")).lun.address == bytes(8)
    assert units.of(Disk("d", lun=bytes.fromhex("c101000000000000"))) == NO_NUMBER
    assert Units(hba, 5).of(Disk("d")).lun.address == bytes((0, 5)) + bytes(6)


def test_a_unit_that_is_not_there_is_refused(fake):
    hba, _initiator = fake()
    hba.command = lambda *_arguments, **_options: Reply(Status.RESERVATION_CONFLICT, b"", 0, b"")
    with pytest.raises(SetupError, match=r"replay disk 9: unit 0: .*--lun"):
        Units(hba).of(Disk("disk 9"))


def test_a_unit_that_is_too_small_is_refused():
    small = unit({}, blocks=8)
    check_size(small, Disk("a", block_bytes=4096), 1)
    with pytest.raises(SetupError, match="reach to byte 8192, and the unit has 4096"):
        check_size(small, Disk("a", block_bytes=4096), 2)
