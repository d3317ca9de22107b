# SPDX-License-Identifier: MIT
"""Every declared format has the offsets and sizes that C compilers give the public headers."""

import pytest
from construct import SizeofError

from vscsi.wire import blkif, grant, lun, mad, ring, srp, vscsiif, xenstore

EVERY_ABI = ("x86_64", "x86_32", "arm", "arm64")
WIDE = ("x86_64", "arm", "arm64")

SRP_HEAD = {"opcode": "type", "tag": "tag"}
DESCRIPTOR = {"va": "address", "key": "handle", "len": "length"}
MAD_HEAD = {
    "common.type": "type",
    "common.status": "status",
    "common.length": "length",
    "common.tag": "tag",
}
CAPABILITY = {
    "common.cap_type": "type",
    "common.length": "length",
    "common.server_support": "server_support",
}
SRING = {"pvt": "private", "pvt.pvt_pad": "private", "__pad": "padding"}

# (structure, its ABIs, our format, its fields that we call otherwise; None: not ours to declare)
CASES = [
    ("blkif_request_segment", EVERY_ABI, blkif.Segment, {}),
    ("vscsiif_sring", EVERY_ABI, ring.SharedRing, SRING),
    ("blkif_sring", EVERY_ABI, ring.SharedRing, SRING),
    ("scsiif_request_segment", EVERY_ABI, vscsiif.Segment, {}),
    (
        "vscsiif_request",
        EVERY_ABI,
        vscsiif.Request,
        {
            "cmnd": "cdb",
            "timeout_per_command": "timeout_s",
            "sc_data_direction": "direction",
            "seg": "segments",
        },
    ),
    ("vscsiif_sg_list", EVERY_ABI, vscsiif.SgPreset, {"seg": "segments"}),
    ("vscsiif_response", EVERY_ABI, vscsiif.Response, {"residual_len": "residual"}),
    ("xsd_sockmsg", EVERY_ABI, xenstore.Header, {"len": "length"}),
    ("grant_entry_v1", EVERY_ABI, grant.GrantEntry, {}),
    ("srp_direct_buf", ("wire",), srp.MemoryDescriptor, DESCRIPTOR),
    ("srp_imm_buf", ("wire",), srp.ImmediateDescriptor, {"len": "length"}),
    (
        "srp_indirect_buf",
        ("wire",),
        srp.IndirectDescriptor(0),
        {"table_desc": "table", "len": "total_length", "desc_list": "descriptors"},
    ),
    (
        "srp_login_req",
        ("wire",),
        srp.LoginReq,
        {
            **SRP_HEAD,
            "req_it_iu_len": "requested_max_it_iu_length",
            "req_buf_fmt": "required_buffer_formats",
            "req_flags": "flags",
            "imm_data_offset": "immediate_data_offset",
        },
    ),
    (
        "srp_login_rsp",
        ("wire",),
        srp.LoginRsp,
        {
            **SRP_HEAD,
            "req_lim_delta": "request_limit_delta",
            "max_it_iu_len": "max_it_iu_length",
            "max_ti_iu_len": "max_ti_iu_length",
            "buf_fmt": "supported_buffer_formats",
            "rsp_flags": "flags",
        },
    ),
    (
        "srp_login_rej",
        ("wire",),
        srp.LoginRej,
        {**SRP_HEAD, "buf_fmt": "supported_buffer_formats"},
    ),
    ("srp_i_logout", ("wire",), srp.ILogout, {**SRP_HEAD, "reserved": "reserved1"}),
    ("srp_t_logout", ("wire",), srp.TLogout, {**SRP_HEAD, "reserved": "reserved1"}),
    (
        "srp_tsk_mgmt",
        ("wire",),
        srp.TskMgmt,
        {**SRP_HEAD, "tsk_mgmt_func": "function", "task_tag": "managed_tag"},
    ),
    (
        "srp_cmd",
        ("wire",),
        srp.Cmd,
        {
            **SRP_HEAD,
            "buf_fmt": "data_formats",
            "data_out_desc_cnt": "data_out_count",
            "data_in_desc_cnt": "data_in_count",
            "task_attr": "attribute",
            "add_cdb_len": "additional_cdb_length",
            "add_data": "additional_cdb",
        },
    ),
    (
        "srp_rsp",
        ("wire",),
        srp.Rsp,
        {
            **SRP_HEAD,
            "req_lim_delta": "request_limit_delta",
            "data_out_res_cnt": "data_out_residual",
            "data_in_res_cnt": "data_in_residual",
            "sense_data_len": "sense_data_length",
            "resp_data_len": "response_data_length",
            "data": "response_data",
        },
    ),
    (
        "srp_cred_req",
        ("wire",),
        srp.CredReq,
        {**SRP_HEAD, "req_lim_delta": "request_limit_delta", "reserved": "reserved1"},
    ),
    ("srp_cred_rsp", ("wire",), srp.CredRsp, {**SRP_HEAD, "reserved": "reserved1"}),
    (
        "srp_aer_req",
        ("wire",),
        srp.AerReq,
        {
            **SRP_HEAD,
            "req_lim_delta": "request_limit_delta",
            "reserved": "reserved1",
            "sense_data_len": "sense_data_length",
        },
    ),
    ("srp_aer_rsp", ("wire",), srp.AerRsp, {**SRP_HEAD, "reserved": "reserved1"}),
    (
        "viosrp_crq",
        ("wire",),
        mad.Crq,
        {
            "high": None,
            "timeout": "timeout_s",
            "IU_length": "iu_length",
            "IU_data_ptr": "iu_pointer",
        },
    ),
    ("mad_common", ("wire",), mad.MadHeader, {}),
    ("viosrp_empty_iu", ("x86_32",), mad.EmptyIu, {**MAD_HEAD, "common": None}),
    ("viosrp_error_log", ("wire",), mad.BufferMad, {**MAD_HEAD, "common": None}),
    ("viosrp_adapter_info", ("wire",), mad.BufferMad, {**MAD_HEAD, "common": None}),
    ("viosrp_capabilities", ("wire",), mad.BufferMad, {**MAD_HEAD, "common": None}),
    ("viosrp_host_config", ("wire",), mad.BufferMad, {**MAD_HEAD, "common": None}),
    ("viosrp_fast_fail", ("wire",), mad.MadHeader, {**MAD_HEAD, "common": None}),
    (
        "mad_reserve_cap",
        ("wire",),
        mad.ReserveCapability,
        {**CAPABILITY, "common": None, "type": "reserve_type"},
    ),
    ("mad_migration_cap", ("wire",), mad.MigrationCapability, {**CAPABILITY, "common": None}),
    (
        "mad_adapter_info_data",
        ("wire",),
        mad.AdapterInfoData,
        {"port_max_txu": "port_max_transfer"},
    ),
    *(
        (f"blkif_request_{kind}", abis, getattr(layout.formats, kind), {"seg": "segments"})
        for kind in ("rw", "discard", "indirect", "other")
        for abis, layout in ((WIDE, blkif.X86_64), (("x86_32",), blkif.X86_32))
    ),
    ("blkif_response", WIDE, blkif.X86_64.formats.response, {}),
    ("blkif_response", ("x86_32",), blkif.X86_32.formats.response, {}),
]


def offsets(form):
    """Return {field: (offset, size)} and the fixed size, up to the first field of variable size.

    That field's size is None.
    """
    found, at = {}, 0
    for field in form.subcons:
        try:
            size = field.sizeof()
        except SizeofError:
            found[field.name] = (at, None)
            break
        found[field.name] = (at, size)
        at += size
    return found, at


@pytest.mark.parametrize(("structure", "abis", "form", "names"), CASES)
def test_offsets_and_sizes_are_the_headers(abi, structure, abis, form, names):
    ours, fixed_size = offsets(form)
    for each in abis:
        theirs = abi[structure][each]
        for name, (offset, size) in theirs["fields"].items():
            if "." in name and name not in names:
                continue  # a member of a nested structure: compared as that structure
            our_name = names.get(name, name)
            if our_name is None or name == "ring":
                continue
            if our_name not in ours and name == "pad":
                continue  # trailing
            assert ours[our_name][0] == offset, name
            assert ours[our_name][1] in (size, None), name
        variable = [name for name, (_, size) in ours.items() if size is None]
        if variable and variable != ["trailing"]:
            continue  # what follows is compared below
        tail = theirs["fields"].get("pad", [0, 0])[1]
        if structure == "blkif_request_indirect" and each in WIDE:
            tail = 4  # the compiler rounds up to the alignment of a u64
        assert fixed_size + tail == theirs["size"]


def test_what_follows_variable_fields_is_at_the_headers_end(abi):
    assert offsets(srp.Cmd)[1] == abi["srp_cmd"]["wire"]["size"]
    assert offsets(srp.Rsp)[1] == abi["srp_rsp"]["wire"]["size"]
    assert offsets(srp.AerReq)[1] == abi["srp_aer_req"]["wire"]["size"]
    for layout, key in ((blkif.X86_64, "x86_64"), (blkif.X86_32, "x86_32")):
        theirs = abi["blkif_request_rw"][key]
        assert blkif.SEGMENTS * blkif.Segment.sizeof() == theirs["fields"]["seg"][1]
        assert offsets(layout.formats.rw)[1] + theirs["fields"]["seg"][1] == theirs["size"]
        assert layout.slot_size == abi["blkif_sring_entry"][key]["size"]
    assert vscsiif.Request.sizeof() == vscsiif.SLOT_SIZE


def test_capabilities_with_both_capabilities(abi):
    theirs = abi["capabilities"]["wire"]
    ours, end = offsets(mad.CapabilitiesData)
    for name in ("flags", "name"):
        assert list(ours[name]) == theirs["fields"][name]
    assert list(ours["location"]) == theirs["fields"]["loc"]
    assert list(ours["migration"]) == theirs["fields"]["migration"]
    assert [end, mad.ReserveCapability.sizeof()] == theirs["fields"]["reserve"]
    assert end + mad.ReserveCapability.sizeof() == theirs["size"]


def test_other_sizes(abi):
    assert blkif.SegmentBlock.sizeof() == abi["freebsd93:blkif_segment_block"]["x86_64"]["size"]
    assert len(lun.encode(0)) == abi["scsi_lun"]["wire"]["size"]


@pytest.mark.parametrize("protocol", ["blkif", "vscsiif"])
def test_ring_entries(constants, protocol):
    facts = constants["ring_entries"][protocol]
    for each, slot_size in facts["entry_bytes"].items():
        for pages, count in facts["entries"][each].items():
            assert ring.entries(int(pages), slot_size, facts["header_bytes"]) == count


def test_no_slot_fits():
    with pytest.raises(ValueError, match="no slot"):
        ring.entries(0, 112)
