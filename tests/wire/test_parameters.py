# SPDX-License-Identifier: MIT
"""INQUIRY, VPD, mode and other parameter data, as kernels' targets answer them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vscsi.wire import inquiry, mode, parameters
from vscsi.wire.errors import WireError
from vscsi.wire.formats import build, parse, text


@pytest.fixture
def answers(kernel_targets):
    """A function that returns {device: data} of the answers to CDBs that begin like this."""

    def find(cdb):
        return {
            entry["device"]: bytes.fromhex(entry["data_in"])
            for entry in kernel_targets
            if entry["cdb"].startswith(cdb)
        }

    return find


def test_standard_inquiry_of_kernels(answers):
    found = {device: inquiry.parse_standard(data) for device, data in answers("12000000ff").items()}
    lio, debug = found["fileio"], found["scsi_debug"]
    assert text(lio.vendor) == "LIO-ORG"
    assert (lio.version, lio.response_data_format, lio.additional_length) == (6, 2, 91)
    assert (lio.tpgs, lio.third_party_copy, lio.cmdque, lio.rmb) == (3, 1, 1, 0)
    assert inquiry.VersionDescriptor.SBC_3 in lio.version_descriptors
    assert (text(debug.vendor), text(debug.product)) == ("Linux", "scsi_debug")
    for device, data in answers("12000000ff").items():
        assert build(inquiry.StandardInquiry, found[device]) == data


def test_block_limits_can_be_lowered_and_nothing_else_changes():
    page = inquiry.build_vpd(
        inquiry.VpdPage.BLOCK_LIMITS, maximum_transfer_length=0, optimal_transfer_length=512, wsnz=1
    )
    for whole in (page, page + b"\5"):
        lowered = inquiry.limit_transfers(whole, 256)
        assert lowered == whole[:8] + (256).to_bytes(4) * 2 + whole[16:]
        assert inquiry.limit_transfers(lowered, 300) == lowered
        for length in range(len(whole)):
            assert inquiry.limit_transfers(whole[:length], 256) == lowered[:length]


def test_a_short_inquiry_answer_reads_as_if_zeros_followed(answers):
    for data in answers("120000002400").values():
        assert len(data) == 36
        assert inquiry.parse_standard(data).cmdque == 1
    with pytest.raises(WireError):
        inquiry.parse_standard(b"\0\0\x06\x02")


def test_build_standard_inquiry():
    data = inquiry.build_standard(
        vendor="VSCSI",
        product="DISK",
        revision="1",
        version=inquiry.Version.SPC_4,
        cmdque=1,
        version_descriptors=[inquiry.VersionDescriptor.SAM_5, inquiry.VersionDescriptor.SBC_3],
    )
    assert data[:8].hex() == "000006025b000002"
    assert data[8:36] == b"VSCSI   DISK            1   "
    assert data[58:64].hex() == "00a004c00000"
    assert len(data) == 96
    with pytest.raises(ValueError, match="vendor"):
        inquiry.build_standard(vendor="too long a name", product="", revision="")


@pytest.mark.parametrize("page", inquiry.VPD_FORMATS)
def test_vpd_pages_of_kernels_build_back(answers, page):
    found = answers(f"1201{page:02x}0400")
    assert set(found) == {"fileio", "scsi_debug"}
    for data in found.values():
        value = inquiry.parse_vpd(data)
        fields = {name: value[name] for name in (field.name for field in inquiry_fields(page))}
        assert value.page_code == page
        assert inquiry.build_vpd(page, **fields) == data


def inquiry_fields(page):
    form = inquiry.VPD_FORMATS[page]
    return getattr(form, "subcons", None) or form.subcon.subcons


def test_what_vpd_pages_of_lio_say(answers):
    def page(code):
        return inquiry.parse_vpd(answers(f"1201{code:02x}0400")["fileio"])

    assert list(page(0x00).page_codes) == [0x00, 0x80, 0x83, 0x86, 0xB0, 0xB1, 0xB2, 0xB3]
    naa = page(0x83).designators[0]
    assert naa.designator_type == inquiry.DesignatorType.NAA
    assert naa.code_set == inquiry.CodeSet.BINARY
    assert naa.designator.hex().startswith("6001405")
    kinds = {entry.designator_type for entry in page(0x83).designators}
    assert inquiry.DesignatorType.RELATIVE_TARGET_PORT in kinds
    assert (page(0x86).headsup, page(0x86).ordsup, page(0x86).simpsup) == (1, 1, 1)
    limits = page(0xB0)
    assert (limits.wsnz, limits.maximum_compare_and_write_length) == (1, 1)
    assert limits.optimal_transfer_length_granularity == 1
    assert limits.maximum_transfer_length == 0x4000
    provisioning = page(0xB2)
    assert (provisioning.lbpu, provisioning.lbpws, provisioning.lbpws10) == (1, 1, 1)


def test_an_unknown_vpd_page_and_a_cut_one():
    page = inquiry.parse_vpd(bytes.fromhex("00c00002aabbcc"))
    assert page.data == b"\xaa\xbb"
    assert inquiry.parse_vpd(bytes.fromhex("00b0000c0005")).maximum_compare_and_write_length == 5
    with pytest.raises(WireError):
        inquiry.parse_vpd(b"\0\xb0\0")
    with pytest.raises(WireError):
        inquiry.parse_vpd(bytes.fromhex("0083000801030008aabbccdd"))


@pytest.mark.parametrize("ten", [False, True])
def test_mode_parameters_of_kernels_build_back(answers, ten):
    cdb = "5a003f0000000000ff00" if ten else "1a003f00ff00"
    for data in answers(cdb).values():
        found = mode.parse_parameters(data, ten=ten)
        assert found.build(ten=ten) == data
        assert {page.code for page in found.pages} >= set(mode.PAGE_FORMATS)
        for page in found.pages:
            if page.code in mode.PAGE_FORMATS:
                assert mode.body(page.code, **page.fields()) == page.body
        assert found.device_specific == mode.DeviceSpecific.DPOFUA
        descriptor = parse(mode.ShortBlockDescriptor, found.block_descriptors, "descriptor")
        assert descriptor.block_length == 512


def test_what_mode_pages_of_lio_say(answers):
    data = answers("1a003f00ff00")["fileio"]
    pages = {page.code: page for page in mode.parse_parameters(data, ten=False).pages}
    assert pages[mode.ModePage.CACHING].fields().wce == 1
    control = pages[mode.ModePage.CONTROL].fields()
    assert (control.queue_algorithm_modifier, control.tas, control.d_sense) == (1, 1, 0)


def test_long_block_descriptors(answers):
    data = answers("5a103f0000000000ff00")["scsi_debug"]
    found = mode.parse_parameters(data, ten=True)
    assert found.longlba
    assert parse(mode.LongBlockDescriptor, found.block_descriptors, "").block_length == 512
    assert found.build(ten=True) == data


def test_mode_select_parameters():
    wanted = mode.Parameters([mode.Page(8, mode.body(8, wce=1)), mode.Page(10, b"x", subpage=1)])
    data = wanted.build(ten=True, sense=False)
    assert data[:2] == b"\0\0"
    assert mode.parse_parameters(data, ten=True) == wanted
    for cut in (7, 9, len(data) - 1):
        with pytest.raises(WireError):
            mode.parse_parameters(data[:cut], ten=True)
    with pytest.raises(WireError, match="block descriptors"):
        mode.parse_parameters(b"\0\0\0\x08" + bytes(7), ten=False)
    with pytest.raises(WireError, match="mode page 08h"):
        mode.Page(8, bytes(17)).fields()


def test_capacities_of_kernels(answers):
    for device, blocks in (("fileio", 131072), ("scsi_debug", 131072)):
        ten = parameters.parse_capacity_10(answers("25000000000000")[device])
        assert (ten.blocks, ten.block_length) == (blocks, 512)
        data = answers("9e1000000000000000000000002")[device]
        sixteen = parameters.parse_capacity_16(data)
        assert (sixteen.blocks, sixteen.block_length) == (blocks, 512)
        assert sixteen.provisioning_management
        form = parameters.ReadCapacity16
        assert build(form, parse(form, data, "")) == data
        cut = parameters.parse_capacity_16(answers("9e1000000000000000000000000c")[device])
        assert (cut.blocks, cut.provisioning_management) == (blocks, False)


@pytest.mark.parametrize("data", [b"", bytes(7), bytes(8), bytes(11), bytes(32)])
def test_capacities_that_are_none(data):
    with pytest.raises(WireError):
        parameters.parse_capacity_16(data)
    with pytest.raises(WireError):
        parameters.parse_capacity_10(data[:8])


def test_report_luns_of_kernels(answers):
    data = answers("a00000000000000001000000")["scsi_debug"]
    luns = parameters.parse_report_luns(data)
    assert parameters.build_report_luns(luns) == data
    assert parameters.parse_report_luns(data[:-1]) == luns[:-1]
    with pytest.raises(WireError):
        parameters.parse_report_luns(data[:7])


RANGES = st.lists(st.tuples(st.integers(0, (1 << 64) - 1), st.integers(0, (1 << 32) - 1)))


@given(RANGES, st.binary(max_size=15))
def test_unmap_lists_come_back_as_they_were(ranges, rest):
    data = parameters.build_unmap(ranges)
    assert int.from_bytes(data[:2], "big") == len(data) - 2
    assert parameters.parse_unmap(data + rest) == ranges


def test_unmap_lists_that_lie():
    data = parameters.build_unmap([(1, 2), (3, 4)])
    assert parameters.parse_unmap(data[:2] + b"\0\x1f" + data[4:]) == [(1, 2)]
    for broken in (data[:7], data[:-1], data[:2] + b"\xff\xff" + data[4:]):
        with pytest.raises(WireError):
            parameters.parse_unmap(broken)


def test_supported_commands_come_back_as_they_were():
    descriptors = [
        {"opcode": 0, "cdb_length": 6},
        {"opcode": 0x9E, "service_action": 0x10, "flags": 3, "cdb_length": 16},
    ]
    data = parameters.build_all_commands(descriptors)
    assert data.hex() == (
        "0000001c" "0000000000000006" "9e00001000030010" "000a00000000000000000000"
    )  # fmt: skip
    found = parameters.parse_all_commands(data)
    assert [entry.opcode for entry in found] == [0, 0x9E]
    with pytest.raises(WireError):
        parameters.parse_all_commands(data[:-1])


def test_one_command():
    usage = bytes.fromhex("00000000000004")[:6]
    form = parameters.OneCommand
    data = build(form, {"support": parameters.SUPPORTED, "usage": usage})
    assert data.hex() == "00030006" + usage.hex()
    assert parameters.parse_one_command(data).usage == usage
    none = build(form, {"support": parameters.NOT_SUPPORTED})
    assert none.hex() == "00010000"
