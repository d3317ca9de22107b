# SPDX-License-Identifier: MIT
"""What every logical unit does: INQUIRY, sense, LUN and opcode reports, refusals with pointers."""

import pytest

from vscsi.target.base import Status
from vscsi.target.disk import Disk
from vscsi.target.stores.memory import MemoryStore
from vscsi.wire.cdb import build, named
from vscsi.wire.errors import SetupError
from vscsi.wire.inquiry import parse_standard, parse_vpd
from vscsi.wire.opcodes import COMMANDS, GROUP_NAMES, DeviceType
from vscsi.wire.sense import parse_sense


def inquiry(run, page=None, **more):
    fields = {} if page is None else {"evpd": 1, "page_code": page}
    return run("INQUIRY", **fields, allocation_length=512, into=512, **more)


def vpd(run, page, **more):
    return parse_vpd(inquiry(run, page, **more).data)


def test_standard_inquiry_claims_what_guests_understand(setup):
    data = inquiry(setup.run).data
    assert len(data) == 96 == data[4] + 5
    assert data[0] == 0
    assert data[2] == 6  # SPC-4: libiscsi's test tool takes no 7
    assert data[3] & 0x0F == 2
    assert data[7] & 0x02  # CMDQUE
    assert data[8:36] == b"VSCSI   DISK            0001"
    assert parse_standard(data).version_descriptors[:4] == [0x00A0, 0x0940, 0x0460, 0x04C0]


@pytest.mark.parametrize("length", [0, 5, 36, 95, 96, 97])
def test_inquiry_is_truncated_to_its_allocation_length(setup, length):
    got = setup.run("INQUIRY", allocation_length=length, into=200)
    assert (got.code, got.moved, got.overflow) == ("GOOD", min(length, 96), 0)


def test_a_buffer_shorter_than_the_allocation_length_is_an_overflow(setup):
    got = setup.run("INQUIRY", allocation_length=80, into=36)
    assert (got.code, got.moved, got.overflow) == ("GOOD", 36, 44)


def test_inquiry_refuses_what_it_does_not_know(setup):
    for cdb, pointer, bit in (
        ("1200800060 00", 2, None),
        ("12020000ff00", 1, 1),
        ("1201ee00ff00", 2, None),
    ):
        got = setup.run(bytes.fromhex(cdb), into=255)
        assert got.code == "5/24/00"
        assert (got.sense.field_pointer, got.sense.bit_pointer) == (pointer, bit)


def test_vital_product_data_are_all_listed_and_all_there(setup):
    pages = list(vpd(setup.run, 0).page_codes)
    assert pages == [0x00, 0x80, 0x83, 0x86, 0xB0, 0xB1, 0xB2]
    for page in pages:
        data = inquiry(setup.run, page).data
        assert data[1] == page
        assert int.from_bytes(data[2:4], "big") == len(data) - 4


def test_an_identity_gives_the_same_name_for_ever_and_another_another(make_setup):
    def names(identity):
        run = make_setup(identity=identity).run
        return vpd(run, 0x80).serial_number, vpd(run, 0x83).designators[0].designator

    first = names("/images/a.img")
    assert first == names("/images/a.img")
    assert first[0].isalnum()
    assert not set(first) & set(names("/images/b.img"))
    assert first[1][0] >> 4 == 3  # NAA 3h, locally assigned
    assert len(first[1]) == 8
    assert names(None) != names(None)


def test_block_limits_and_provisioning_agree_with_what_is_accepted(make_setup):
    setup = make_setup(block_size=4096)
    limits = vpd(setup.run, 0xB0)
    assert limits.page_length == 0x3C
    assert limits.wsnz == 1
    assert limits.maximum_transfer_length == (32 << 20) // 4096
    assert limits.maximum_unmap_lba_count == 0xFFFFFFFF
    assert 0 < limits.maximum_unmap_block_descriptor_count <= 1 << 20
    assert limits.optimal_unmap_granularity == 1
    provisioning = vpd(setup.run, 0xB2)
    assert (provisioning.lbpu, provisioning.lbpws, provisioning.lbpws10) == (1, 1, 1)
    assert (provisioning.lbprz, provisioning.provisioning_type) == (1, 2)
    assert vpd(setup.run, 0xB1).medium_rotation_rate == 1
    capacity = setup.run("READ CAPACITY(16)", allocation_length=32, into=32).data
    assert capacity.hex() == "00000000000000ff" + "00001000" + "0000" + "c000" + "00" * 16


@pytest.mark.parametrize("length", [0, 8, 12, 31, 32, 255])
def test_read_capacity_16_takes_any_allocation_length(setup, length):
    got = setup.run("READ CAPACITY(16)", allocation_length=length, into=255)
    assert (got.code, got.moved) == ("GOOD", min(length, 32))


def test_read_capacity_refuses_an_lba_without_pmi(setup):
    assert setup.run("READ CAPACITY(10)", lba=5, into=8).code == "5/24/00"
    assert setup.run("READ CAPACITY(10)", lba=5, pmi=1, into=8).code == "GOOD"
    got = setup.run("READ CAPACITY(16)", lba=5, allocation_length=32, into=32)
    assert (got.code, got.sense.field_pointer) == ("5/24/00", 2)


def test_read_capacity_10_of_a_disk_that_is_too_large_for_it(make_setup):
    class Huge(MemoryStore):
        def __init__(self):
            super().__init__(0)
            self.size_bytes = (1 << 32) * 512 + 512

    setup = make_setup(store=Huge())
    assert setup.run("READ CAPACITY(10)", into=8).data == bytes.fromhex("ffffffff00000200")
    data = setup.run("READ CAPACITY(16)", allocation_length=8, into=8).data
    assert int.from_bytes(data, "big") == 1 << 32


def test_resize_is_announced_to_every_nexus(setup, initiator):
    other = initiator(setup.router, "other")
    setup.store.size_bytes = 512 * 1000
    setup.disk.resize()
    for run in (setup.run, other):
        assert run("TEST UNIT READY").code == "6/2a/09"
        assert run("TEST UNIT READY").code == "GOOD"
    assert setup.run("READ CAPACITY(10)", into=8).data[:4] == (999).to_bytes(4, "big")
    assert setup.run("READ(10)", lba=1000, blocks=1, into=512).code == "5/21/00"


def test_request_sense_without_a_condition(setup):
    fixed = setup.run("REQUEST SENSE", allocation_length=252, into=252)
    assert fixed.data.hex() == "700000000000000a" + "00" * 10
    descriptor = setup.run("REQUEST SENSE", desc=1, allocation_length=252, into=252)
    assert descriptor.data.hex() == "72" + "00" * 7
    assert setup.run("REQUEST SENSE", allocation_length=4, into=252).moved == 4


@pytest.mark.parametrize(
    ("cdb", "code", "pointer"),
    [
        ("020000000000", "5/20/00", None),
        ("e0000000000000000000", "5/20/00", None),
        ("ff", "5/20/00", None),
        ("", "5/20/00", None),
        ("4d00400000000000ff00", "5/20/00", None),
        ("83000000000000000000000000000000", "5/20/00", None),
        ("9e1f0000000000000000000000200000", "5/24/00", 1),
        ("a31f00000000000000200000", "5/24/00", 1),
        ("28000000000000000104", "5/24/00", 9),  # NACA
        ("280000", "5/24/00", None),
        ("7f00000000000018000900000000000000000008000000000000000000000001", "5/20/00", None),
    ],
)
def test_what_is_not_a_command_of_ours(setup, cdb, code, pointer):
    got = setup.run(bytes.fromhex(cdb), into=512)
    assert (got.code, got.sense.field_pointer) == (code, pointer)
    assert len(got.raw_sense) == 18


def test_send_diagnostic_passes_the_default_self_test(setup):
    assert setup.run("SEND DIAGNOSTIC", selftest=1).code == "GOOD"
    got = setup.run("SEND DIAGNOSTIC", self_test_code=2)
    assert (got.code, got.sense.field_pointer, got.sense.bit_pointer) == ("5/24/00", 1, 7)


# REPORT SUPPORTED OPERATION CODES.


def opcodes(run, **fields):
    name = "REPORT SUPPORTED OPERATION CODES"
    return run(name, **fields, allocation_length=4096, into=4096)


def one_opcode(run, option, row):
    return opcodes(
        run,
        reporting_options=option,
        requested_operation_code=row.opcode,
        requested_service_action=row.service_action or 0,
    )


def test_supported_opcodes_are_those_that_are_not_refused(setup):
    """A command answers 5/20/00, or points at its service action, or it is listed."""
    data = opcodes(setup.run).data
    listed = {
        (entry[0], int.from_bytes(entry[2:4], "big") if entry[5] & 1 else None)
        for entry in (data[at : at + 8] for at in range(4, len(data), 8))
    }
    assert int.from_bytes(data[:4], "big") == len(data) - 4 == 8 * len(listed)
    for row in COMMANDS[DeviceType.DISK]:
        got = setup.run(build(row), out=bytes(512))
        unknown = got.code == "5/20/00" or (
            got.code == "5/24/00"
            and row.service_action is not None
            and got.sense.field_pointer == 1
            and got.sense.bit_pointer == 4
        )
        assert unknown == ((row.opcode, row.service_action) not in listed), row.name
        supported = one_opcode(setup.run, 3, row).data
        assert (supported[1] & 7) == (1 if unknown else 3)
        if not unknown:
            size = int.from_bytes(supported[2:4], "big")
            assert size == row.length == len(supported) - 4
            assert supported[4] == row.opcode


def test_opcode_reports_are_refused_where_the_option_does_not_fit_the_opcode(setup):
    read, capacity = named("READ(10)"), named("READ CAPACITY(16)")
    assert one_opcode(setup.run, 1, read).code == "GOOD"
    assert one_opcode(setup.run, 1, capacity).code == "5/24/00"
    assert one_opcode(setup.run, 2, read).code == "5/24/00"
    assert one_opcode(setup.run, 2, capacity).code == "GOOD"
    assert one_opcode(setup.run, 4, read).code == "5/24/00"


def test_opcode_usage_says_what_is_evaluated(setup):
    usage = one_opcode(setup.run, 1, named("READ(10)")).data[4:]
    assert usage.hex() == "28f8ffffffff00ffff04"
    usage = one_opcode(setup.run, 1, named("WRITE SAME(16)")).data[4:]
    assert usage.hex() == "93f9" + "ff" * 12 + "0004"


def test_opcode_reports_with_timeouts(setup):
    data = opcodes(setup.run, rctd=1).data
    plain = opcodes(setup.run).data
    assert len(data) - 4 == (len(plain) - 4) // 8 * 20
    assert data[4 + 5] & 2
    assert data[12:14] == b"\x00\x0a"
    data = opcodes(setup.run, reporting_options=1, requested_operation_code=0x28, rctd=1).data
    assert data[1] == 0x83
    assert len(data) == 4 + 10 + 12


def test_every_implemented_row_is_a_disks_row(setup):
    assert set(setup.disk.commands) <= set(COMMANDS[DeviceType.DISK])
    assert all(
        row.service_action is not None for row in setup.disk.commands if row.opcode in GROUP_NAMES
    )


# Set-up.


@pytest.mark.parametrize(
    ("size", "block_size", "alignment", "says"),
    [
        (1000, 512, 1, "not a whole number of 512-byte blocks"),
        (512, 4096, 1, "not a whole number of 4096-byte blocks"),
        (0, 512, 1, "not a whole number"),
        (4096, 520, 1, "no blocks of 520 bytes"),
        (4096, 512, 4096, "O_DIRECT wants 4096-byte blocks"),
    ],
)
def test_a_store_that_does_not_fit_is_refused_in_one_line(size, block_size, alignment, says):
    store = MemoryStore(size)
    store.alignment = alignment
    with pytest.raises(SetupError, match=says) as caught:
        Disk(store, block_size=block_size, identity="/images/a.img")
    assert "/images/a.img" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_sense_is_built_in_the_format_asked_for(setup):
    assert parse_sense(setup.run(b"\x02", into=1).raw_sense).key == 5
    assert setup.run("TEST UNIT READY").status is Status.GOOD


def test_device_identification_names_the_unit_by_naa_and_by_vendor(setup):
    data = inquiry(setup.run, 0x83).data
    naa, vendor = data[4:16], data[16:]
    assert naa[:4] == bytes([0x01, 0x03, 0, 8])  # binary, NAA, of the logical unit
    assert naa[4] >> 4 == 3  # locally assigned
    assert vendor[:4] == bytes([0x02, 0x01, 0, len(vendor) - 4])  # ASCII, T10 vendor ID
    assert vendor[4:28] == b"VSCSI   DISK            "
