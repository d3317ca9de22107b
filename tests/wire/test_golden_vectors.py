# SPDX-License-Identifier: MIT
"""Messages that C programs wrote parse to what was put in, and build back to the same bytes."""

import pytest

from vscsi.wire import blkif, mad, srp, vscsiif, xenstore
from vscsi.wire.formats import build, parse

ID = 0x1122334455667788
TAG = ID
SECTOR = 0x0102030405060708
LAYOUTS = {"x86_64": blkif.X86_64, "x86_32": blkif.X86_32}


def value_of(vectors, name, key="wire"):
    return bytes.fromhex(vectors[name][key])


def has(parsed, **expected):
    for name, value in expected.items():
        assert parsed[name] == value, name


@pytest.fixture(params=LAYOUTS)
def abi_name(request):
    return request.param


def blkif_request(vectors, name, abi_name):
    """Parse a vector and check that it builds back; the rest of the slot is zeros."""
    layout = LAYOUTS[abi_name]
    slot = value_of(vectors, name, abi_name).ljust(layout.slot_size, b"\0")
    request = layout.parse_request(slot)
    assert layout.build_request(request.operation, **request) == slot
    return request


def test_blkif_rw(vectors, abi_name):
    request = blkif_request(vectors, "blkif_request_rw", abi_name)
    has(request, operation=1, nr_segments=11, handle=0xCA10, id=ID, sector_number=SECTOR)
    assert [(s.gref, s.first_sect, s.last_sect) for s in request.segments] == [
        (0xA0000000 + i, i % 8, 7) for i in range(11)
    ]


def test_blkif_discard(vectors, abi_name):
    request = blkif_request(vectors, "blkif_request_discard", abi_name)
    has(request, operation=5, flag=1, handle=0xCA10, id=ID, sector_number=SECTOR)
    has(request, nr_sectors=0x1112131415161718)


def test_blkif_indirect(vectors, abi_name):
    request = blkif_request(vectors, "blkif_request_indirect", abi_name)
    has(request, operation=6, indirect_op=0, nr_segments=256, id=ID, sector_number=SECTOR)
    has(request, handle=0xCA10, indirect_grefs=[0xB0000000 + i for i in range(8)])


def test_blkif_response(vectors, abi_name):
    layout, data = LAYOUTS[abi_name], value_of(vectors, "blkif_response", abi_name)
    response = layout.parse_response(data)
    has(response, id=ID, operation=1, status=blkif.RspStatus.EOPNOTSUPP, trailing=b"")
    assert layout.build_response(**response) == data


def test_vscsiif_request(vectors):
    data = value_of(vectors, "vscsiif_request", "all_le")
    request = vscsiif.parse_request(data)
    has(request, rqid=0x1234, act=1, cmd_len=10, cdb=bytes(range(0x20, 0x30)), timeout_s=30)
    has(request, channel=1, id=2, lun=3, ref_rqid=0x4321, direction=2, nr_segments=26)
    segments, indirect = vscsiif.segments_of(request)
    assert not indirect
    assert [(s.gref, s.offset, s.length) for s in segments] == [
        (0xC0000000 + i, 16 * i, 512 + i) for i in range(26)
    ]
    assert vscsiif.cdb_of(request) == bytes(range(0x20, 0x2A))
    assert vscsiif.build_request(**request) == data


def test_vscsiif_request_with_granted_descriptors(vectors):
    data = value_of(vectors, "vscsiif_request_sg_grant", "all_le")
    request = vscsiif.parse_request(data)
    segments, indirect = vscsiif.segments_of(request)
    assert indirect
    assert [(s.gref, s.offset, s.length) for s in segments] == [
        (0xD0000000, 0, 4096),
        (0xD0000001, 64, 128),
    ]
    assert vscsiif.build_request(**request) == data


def test_vscsiif_response(vectors):
    data = value_of(vectors, "vscsiif_response", "all_le")
    response = vscsiif.parse_response(data)
    has(response, rqid=0x1234, sense_len=18, residual=0x01020304)
    assert response.sense_buffer[:18] == bytes(range(0x70, 0x82))
    assert vscsiif.unpack_rslt(response.rslt) == (2, vscsiif.Host.ERROR)
    assert vscsiif.pack_rslt(2, vscsiif.Host.ERROR) == response.rslt
    assert vscsiif.build_response(**response) == data


def test_xenstore_header(vectors):
    data = value_of(vectors, "xsd_sockmsg", "all_le")
    header = xenstore.parse_header(data)
    has(header, type=xenstore.MessageType.WRITE, req_id=7, tx_id=9, length=33)
    assert build(xenstore.Header, header) == data


SENSE = bytes.fromhex("700005000000000a00000000240000000000")

SRP_VECTORS = {
    "srp_login_req": {
        "type": srp.IuType.LOGIN_REQ,
        "tag": TAG,
        "requested_max_it_iu_length": 1024,
        "required_buffer_formats": srp.BufferFormats.DIRECT | srp.BufferFormats.INDIRECT,
        "flags": 0x71,
        "initiator_port_id": bytes(range(0x10, 0x20)),
        "target_port_id": bytes(range(0x30, 0x40)),
    },
    "srp_login_rsp": {
        "type": srp.IuType.LOGIN_RSP,
        "request_limit_delta": 64,
        "max_it_iu_length": 2116,
        "max_ti_iu_length": 1024,
        "supported_buffer_formats": 6,
        "flags": 0x12,
    },
    "srp_login_rej": {
        "type": srp.IuType.LOGIN_REJ,
        "reason": srp.LoginRejectReason.REQUESTED_IT_IU_LENGTH_TOO_LARGE,
        "supported_buffer_formats": 6,
    },
    "srp_i_logout": {"type": srp.IuType.I_LOGOUT, "tag": TAG},
    "srp_t_logout": {
        "type": srp.IuType.T_LOGOUT,
        "sol_not": 1,
        "reason": srp.TLogoutReason.INVALID_IU_TYPE,
    },
    "srp_tsk_mgmt": {
        "type": srp.IuType.TSK_MGMT,
        "sol_not": 6,
        "lun": bytes.fromhex("0005000000000000"),
        "function": 1,
        "managed_tag": 0xA1A2A3A4A5A6A7A8,
    },
    "srp_cmd_read_direct": {
        "type": srp.IuType.CMD,
        "sol_not": 2,
        "data_out_format": srp.BufferFormat.NONE,
        "data_in_format": srp.BufferFormat.DIRECT,
        "lun": bytes.fromhex("4123000000000000"),
        "attribute": 2,
        "cdb": bytes(range(0x80, 0x90)),
        "data_out": None,
        "data_in": {"address": 0x0102030405060708, "handle": 0xDEADBEEF, "length": 4096},
    },
    "srp_cmd_write_indirect_addcdb16": {
        "type": srp.IuType.CMD,
        "data_out_format": srp.BufferFormat.INDIRECT,
        "data_in_format": srp.BufferFormat.NONE,
        "data_out_count": 3,
        "additional_cdb_length": 16,
        "additional_cdb": b"\xee" * 16,
        "data_out": {
            "table": {"address": 0x1000, "handle": 7, "length": 48},
            "total_length": 12288,
            "descriptors": [
                {"address": 0x10000 + i * 4096, "handle": 9, "length": 4096} for i in range(3)
            ],
        },
        "data_in": None,
    },
    "srp_rsp_check_condition": {
        "type": srp.IuType.RSP,
        "request_limit_delta": 1,
        "flags": srp.RspFlags.SNSVALID | srp.RspFlags.DIUNDER,
        "status": 2,
        "data_in_residual": 512,
        "sense_data": SENSE,
        "response_data": b"",
    },
    "srp_rsp_tsk_not_supported": {
        "type": srp.IuType.RSP,
        "request_limit_delta": -3,
        "flags": srp.RspFlags.RSPVALID,
        "response_data": bytes((0, 0, 0, srp.RspCode.TASK_MANAGEMENT_NOT_SUPPORTED)),
        "sense_data": b"",
    },
    "srp_cred_req": {"type": srp.IuType.CRED_REQ, "request_limit_delta": 8},
    "srp_cred_rsp": {"type": srp.IuType.CRED_RSP, "tag": TAG},
    "srp_aer_req": {
        "type": srp.IuType.AER_REQ,
        "lun": bytes.fromhex("0007000000000000"),
        "sense_data": bytes(range(0x72, 0x7A)),
    },
    "srp_aer_rsp": {"type": srp.IuType.AER_RSP, "tag": TAG},
}


@pytest.mark.parametrize("name", SRP_VECTORS)
def test_srp(vectors, name):
    data = value_of(vectors, name)
    iu = srp.parse_iu(data)
    has(iu, **SRP_VECTORS[name], trailing=b"")
    assert srp.build_iu(iu.type, **iu) == data


def test_every_srp_vector_is_tried(vectors):
    assert set(SRP_VECTORS) == {name for name in vectors if name.startswith("srp_")}


def test_srp_values_of_our_own_build_the_vectors(vectors):
    """Formats, counts and lengths follow from the data."""
    for name in ("srp_cmd_read_direct", "srp_cmd_write_indirect_addcdb16", "srp_aer_req"):
        fields = dict(SRP_VECTORS[name])
        kind = fields.pop("type")
        for derived in ("data_out_format", "data_in_format", "data_out_count"):
            fields.pop(derived, None)
        fields.pop("additional_cdb_length", None)
        if name.endswith("addcdb16"):
            fields["cdb"] = b"\x7f".ljust(16, b"\0")
        assert srp.build_iu(kind, tag=TAG, **fields) == value_of(vectors, name)


def test_srp_rsp_code(vectors):
    answer = srp.parse_iu(value_of(vectors, "srp_rsp_tsk_not_supported"))
    assert srp.rsp_code(answer) == srp.RspCode.TASK_MANAGEMENT_NOT_SUPPORTED
    assert srp.rsp_code(srp.parse_iu(value_of(vectors, "srp_rsp_check_condition"))) is None


def test_crq_element(vectors):
    data = value_of(vectors, "viosrp_crq")
    crq = parse(mad.Crq, data, "CRQ")
    has(crq, valid=0x80, format=1, status=mad.CrqStatus.OK2, timeout_s=30, iu_length=64)
    has(crq, iu_pointer=TAG)
    assert build(mad.Crq, crq) == data


def test_adapter_info_mad(vectors):
    data = value_of(vectors, "viosrp_adapter_info")
    message = mad.parse_mad(data)
    has(message, type=mad.MadType.ADAPTER_INFO, status=mad.MadStatus.NOT_SUPPORTED, length=148)
    has(message, tag=TAG, buffer=0x2000)
    assert mad.build_mad(message.type, **message) == data
