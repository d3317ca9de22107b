# SPDX-License-Identifier: MIT
"""MODE SENSE and MODE SELECT (SPC-5 6.13 to 6.16, SBC-4 6.5)."""

import pytest

CACHING = "0812040000000000000000000000000000000000"
CONTROL = "0a0a001000400000ffff0000"
RECOVERY = "010a" + "00" * 10
EXCEPTIONS = "1c0a" + "00" * 10
DESCRIPTOR = "0000080000000200"  # 2048 blocks of 512 bytes


def sense(run, page, *, ten=False, length=255, **fields):
    name = "MODE SENSE(10)" if ten else "MODE SENSE(6)"
    return run(name, page_code=page, allocation_length=length, into=length, **fields)


def select(run, data, *, ten=False, pf=1, **fields):
    name = "MODE SELECT(10)" if ten else "MODE SELECT(6)"
    data = bytes.fromhex(data)
    return run(name, **{"pf": pf, "parameter_list_length": len(data), **fields}, out=data)


def test_all_pages_in_ascending_order(setup):
    for subpage in (0, 0xFF):
        data = sense(setup.run, 0x3F, subpage_code=subpage).data.hex()
        assert data == "43001008" + DESCRIPTOR + RECOVERY + CACHING + CONTROL + EXCEPTIONS
    data = sense(setup.run, 0x3F, ten=True).data.hex()
    assert data[:16] == "0046001000000008"


def test_one_page_without_block_descriptor(setup):
    assert sense(setup.run, 8, dbd=1).data.hex() == "17001000" + CACHING


def test_a_long_block_descriptor_where_it_is_allowed(setup):
    data = sense(setup.run, 8, ten=True, llbaa=1).data.hex()
    assert data[:16] == "002a001001000010"
    assert data[16:48] == "00000000000008000000000000000200"
    assert sense(setup.run, 8, ten=True, llbaa=1, dbd=1).data[4] == 0


def test_page_controls(setup):
    changeable = sense(setup.run, 0x3F, pc=1, dbd=1).data.hex()
    assert changeable == (
        "3b001000" + RECOVERY + "081204" + "00" * 17 + "0a0a04000800" + "00" * 6 + EXCEPTIONS
    )
    select(setup.run, "00000000" + CACHING.replace("081204", "081200"))
    assert sense(setup.run, 8, pc=0, dbd=1).data[6] == 0
    assert sense(setup.run, 8, pc=2, dbd=1).data[6] == 4
    got = sense(setup.run, 8, pc=3)
    assert got.code == "5/39/00"


def test_truncation_never_overflows(setup):
    got = sense(setup.run, 0x3F, length=4)
    assert (got.data.hex(), got.overflow) == ("43001008", 0)


@pytest.mark.parametrize(
    ("fields", "pointer", "bit"),
    [({"page": 0x3D}, 2, 5), ({"page": 8, "subpage_code": 1}, 3, None)],
)
def test_unknown_pages_are_refused(setup, fields, pointer, bit):
    got = sense(setup.run, **fields)
    assert got.code == "5/24/00"
    assert (got.sense.field_pointer, got.sense.bit_pointer) == (pointer, bit)


def test_write_cache_can_be_switched_off_and_is_emptied_then(setup, initiator):
    other = initiator(setup.router, "other")
    setup.store.log.clear()
    off = "00000000" + CACHING.replace("081204", "081200")
    assert select(setup.run, off).code == "GOOD"
    assert setup.store.log == [("flush",)]
    assert other("TEST UNIT READY").code == "6/2a/01"
    assert setup.run("TEST UNIT READY").code == "GOOD"
    setup.run("WRITE(10)", lba=0, blocks=1, out=bytes(512))
    assert [entry[0] for entry in setup.store.log] == ["flush", "write", "flush"]
    assert select(setup.run, off).code == "GOOD"
    assert other("TEST UNIT READY").code == "GOOD"  # nothing has changed


def test_software_write_protect(setup):
    protect = "00000000" + CONTROL.replace("0a0a0010004000", "0a0a0010084000")
    assert select(setup.run, protect).code == "GOOD"
    assert setup.run("WRITE(10)", lba=0, blocks=1, out=bytes(512)).code == "7/27/02"
    assert setup.run("READ(10)", lba=0, blocks=1, into=512).code == "GOOD"
    assert sense(setup.run, 8).data[2] == 0x90
    assert select(setup.run, "00000000" + CONTROL).code == "GOOD"
    assert setup.run("WRITE(10)", lba=0, blocks=1, out=bytes(512)).code == "GOOD"


def test_descriptor_format_sense(setup):
    wanted = "0000000000000000" + CONTROL.replace("0a0a00", "0a0a04")
    assert select(setup.run, wanted, ten=True).code == "GOOD"
    got = setup.run("READ(10)", lba=5000, blocks=1, into=512)
    assert got.raw_sense.hex() == "7205210000000008" + "02060000c0000200"
    assert got.code == "5/21/00"


def test_a_logical_unit_reset_returns_to_the_defaults(setup):
    select(setup.run, "00000000" + CACHING.replace("081204", "081200"))
    setup.disk.reset()
    assert setup.run("TEST UNIT READY").code == "6/29/03"
    assert sense(setup.run, 8, dbd=1).data[6] == 4


@pytest.mark.parametrize(
    ("data", "fields", "code", "pointer", "bit"),
    [
        ("00000000" + CACHING, {"pf": 0}, "5/24/00", 1, 4),
        ("00000000" + CACHING, {"sp": 1}, "5/24/00", 1, 0),
        ("00000000" + CACHING, {"rtd": 1}, "5/24/00", 1, 1),
        ("000000", {}, "5/1a/00", None, None),
        ("00000000" + CACHING[:-2], {}, "5/1a/00", None, None),
        ("00000008" + DESCRIPTOR[:-2], {}, "5/1a/00", None, None),
        ("00000000" + CACHING, {"parameter_list_length": 25}, "5/0e/03", None, None),
        ("00000000" + "0800", {}, "5/26/00", 5, None),
        ("00000000" + "0811" + CACHING[4:-2], {}, "5/26/00", 5, None),
        ("00000000" + "3d060000000000 00", {}, "5/26/00", 4, 5),
        ("00000000" + "4801000a" + "00" * 10, {}, "5/26/00", 4, 5),
        ("00000000" + CACHING.replace("0812040000", "0812040100"), {}, "5/26/00", 7, 0),
        ("00000000" + CACHING.replace("081204", "081205"), {}, "5/26/00", 6, 0),
        ("00000000" + CONTROL.replace("0a0a00", "0a0a20"), {}, "5/26/00", 6, 5),
        ("00010000" + CACHING, {}, "5/26/00", 1, None),
        ("00000008" + "0000080000001000" + CACHING, {}, "5/26/00", 10, None),
        ("00000008" + "0000080100000200" + CACHING, {}, "5/26/00", 7, None),
        ("00000010" + DESCRIPTOR * 2 + CACHING, {}, "5/26/00", 3, None),
    ],
)
def test_what_mode_select_refuses_changes_nothing(setup, data, fields, code, pointer, bit):
    got = select(setup.run, data, **fields)
    assert (got.code, got.sense.field_pointer, got.sense.bit_pointer) == (code, pointer, bit)
    assert sense(setup.run, 0x3F).data.hex().endswith(CACHING + CONTROL + EXCEPTIONS)


@pytest.mark.parametrize("descriptor", ["", DESCRIPTOR, "0000000000000200"])
def test_block_descriptors_that_keep_the_format_are_accepted(setup, descriptor):
    data = f"000000{len(descriptor) // 2:02x}" + descriptor + CACHING
    assert select(setup.run, data).code == "GOOD"


def test_one_bad_page_spoils_the_list(setup):
    data = "00000000" + CACHING.replace("081204", "081200") + "3d0600000000000 0".replace(" ", "")
    got = select(setup.run, data)
    assert (got.code, got.sense.field_pointer) == ("5/26/00", 4 + 20)
    assert sense(setup.run, 8, dbd=1).data[6] == 4


def test_an_empty_list_is_good(setup):
    assert select(setup.run, "", pf=0).code == "GOOD"
    assert select(setup.run, "00000000").code == "GOOD"
    got = setup.run("MODE SELECT(10)", pf=1, parameter_list_length=1025, out=bytes(1025))
    assert got.code == "5/1a/00"
