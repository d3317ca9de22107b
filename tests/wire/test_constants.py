# SPDX-License-Identifier: MIT
"""Our enumerations have the numbers of the headers and standards."""

import pytest

from vscsi.wire import asc, blkif, cdb, grant, inquiry, mad, mode, sense, srp, vscsiif, xenstore
from vscsi.wire.formats import text
from vscsi.wire.opcodes import COMMANDS, GROUP_NAMES, DeviceType


@pytest.mark.parametrize(
    ("family", "prefix", "enumeration"),
    [
        ("blkif", "BLKIF_OP_", blkif.Operation),
        ("blkif", "BLKIF_RSP_", blkif.RspStatus),
        ("vscsiif", "XEN_VSCSIIF_RSLT_HOST_", vscsiif.Host),
        ("srp_t_logout_reason", "", srp.TLogoutReason),
    ],
)
def test_same_names_same_numbers(constants, family, prefix, enumeration):
    theirs = {
        name.removeprefix(prefix): value
        for name, value in constants[family].items()
        if name.startswith(prefix)
    }
    assert {member.name: member.value for member in enumeration} == theirs


def test_iu_types(constants):
    for kind in srp.IuType:
        assert constants["srp"][f"SRP_{kind.name}"] == kind
    assert set(srp.FORMATS) == set(srp.IuType)


def test_login_reject_reasons(constants):
    theirs = {v for k, v in constants["srp"].items() if k.startswith("SRP_LOGIN_REJ_")}
    assert set(srp.LoginRejectReason) == theirs


def test_srp_flags(constants):
    for name, value in constants["srp_req_flags"].items():
        ours = {
            "MULTI_CHANNEL_ACTION_MASK": "MULTI_CHANNEL_MASK",
            "IMMED_REQUESTED_SRP2": "IMMEDIATE_REQUESTED",
        }.get(name, name)
        assert srp.LoginReqFlags[ours] == value
    for name in ("RSPVALID", "SNSVALID", "DOOVER", "DOUNDER", "DIOVER", "DIUNDER"):
        assert srp.RspFlags[name] == constants["srp"][f"SRP_RSP_FLAG_{name}"]
    sol_not = constants["srp_sol_not"]
    assert sol_not["request_SCSOLNT"] == srp.SolNot.SCSOLNT
    assert sol_not["request_UCSOLNT"] == srp.SolNot.UCSOLNT
    assert sol_not["response_SOLNT"] == srp.SolNot.SOLNT
    assert set(srp.RspCode) == set(constants["srp_rsp_code"].values())
    assert constants["srp_iu_limits"]["MIN_MAX_IT_IU_LEN"] == srp.MIN_MAX_IT_IU_LENGTH
    assert constants["srp_iu_limits"]["MIN_MAX_TI_IU_LEN"] == srp.MIN_MAX_TI_IU_LENGTH


def test_vscsiif_numbers(constants):
    theirs = constants["vscsiif"]
    assert theirs["VSCSIIF_ACT_SCSI_CDB"] == vscsiif.Act.CDB
    assert theirs["VSCSIIF_ACT_SCSI_ABORT"] == vscsiif.Act.ABORT
    assert theirs["VSCSIIF_ACT_SCSI_RESET"] == vscsiif.Act.RESET
    assert theirs["VSCSIIF_ACT_SCSI_SG_PRESET"] == vscsiif.Act.SG_PRESET
    assert theirs["VSCSIIF_SG_TABLESIZE"] == vscsiif.SEGMENTS
    assert theirs["VSCSIIF_SG_LIST_SIZE"] == vscsiif.PRESET_SEGMENTS
    assert theirs["VSCSIIF_SG_GRANT"] == vscsiif.SG_GRANT
    assert theirs["XEN_VSCSIIF_RSLT_RESET_SUCCESS"] == vscsiif.RESET_SUCCESS
    assert theirs["XEN_VSCSIIF_RSLT_RESET_FAILED"] == vscsiif.RESET_FAILED
    assert {way.name: way.value for way in vscsiif.Direction} == constants["dma_direction"]


def test_blkif_numbers(constants):
    theirs = constants["blkif"]
    assert theirs["BLKIF_MAX_SEGMENTS_PER_REQUEST"] == blkif.SEGMENTS
    assert theirs["BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST"] == blkif.INDIRECT_PAGES
    extension = constants["freebsd_2010_blkif"]
    assert extension["BLKIF_MAX_SEGMENTS_PER_SEGMENT_BLOCK"] == blkif.BLOCK_SEGMENTS
    assert set(blkif.LAYOUTS) <= set(constants["protocol_strings"].values())


def test_mad_numbers(constants):
    theirs = constants["viosrp"]
    assert theirs["VIOSRP_EMPTY_IU_TYPE"] == mad.MadType.EMPTY_IU
    assert theirs["VIOSRP_ERROR_LOG_TYPE"] == mad.MadType.ERROR_LOG
    assert theirs["VIOSRP_ADAPTER_INFO_TYPE"] == mad.MadType.ADAPTER_INFO
    assert theirs["VIOSRP_HOST_CONFIG_TYPE"] == mad.MadType.HOST_CONFIG
    assert theirs["VIOSRP_CAPABILITIES_TYPE"] == mad.MadType.CAPABILITIES
    assert theirs["VIOSRP_ENABLE_FAST_FAIL"] == mad.MadType.ENABLE_FAST_FAIL
    assert theirs["VIOSRP_MAD_NOT_SUPPORTED"] == mad.MadStatus.NOT_SUPPORTED
    assert theirs["VIOSRP_MAD_FAILED"] == mad.MadStatus.FAILED
    assert theirs["VIOSRP_CRQ_CMD_RSP"] == mad.CrqValid.COMMAND_RESPONSE
    assert theirs["VIOSRP_CRQ_INIT_RSP"] == mad.CrqValid.INITIALISATION
    assert theirs["VIOSRP_OK2"] == mad.CrqStatus.OK2
    assert text(mad.SRP_VERSION) == constants["srp"]["SRP_VERSION"]


def test_grant_flags(constants):
    theirs = constants["grant"]
    for flag in grant.GrantFlags:
        assert theirs[f"GTF_{flag.name.lower()}"] == flag


def test_xenstore_numbers(constants):
    for kind in xenstore.MessageType:
        if kind is not xenstore.MessageType.DIRECTORY:  # the header's dump skips it
            assert constants["xs_wire"][f"XS_{kind.name}"] == kind
    limits = constants["xs_limits"]
    assert limits["XENSTORE_PAYLOAD_MAX"] == xenstore.PAYLOAD_MAX
    assert limits["XENSTORE_ABS_PATH_MAX"] == xenstore.ABS_PATH_MAX
    assert limits["XENSTORE_REL_PATH_MAX"] == xenstore.REL_PATH_MAX


def test_every_opcode_is_in_the_table(constants):
    known = {row.opcode for rows in COMMANDS.values() for row in rows} | set(GROUP_NAMES)
    assert set(constants["scsi"]["opcode"].values()) <= known


def test_every_service_action_is_in_the_table(constants):
    scsi = constants["scsi"]
    for group, actions in scsi["service_action"].items():
        opcode = scsi["opcode"][group]
        for action in actions.values():
            head = bytes((opcode, action))
            if opcode == 0x7F:
                head = bytes((opcode, 0, 0, 0, 0, 0, 0, 24)) + action.to_bytes(2, "big")
            assert cdb.lookup(head) is not None, (group, action)


def test_every_additional_sense_code_has_a_name_and_a_text(constants):
    for name, code in constants["scsi"]["asc_ascq"].items():
        assert getattr(asc, name) == (code >> 8, code & 0xFF)
        assert code in asc.TEXTS


def test_scsi_numbers(constants):
    scsi = constants["scsi"]
    assert set(sense.SenseKey) == set(scsi["sense_key"].values())
    assert set(sense.ResponseCode) == set(scsi["sense_response_code"].values())
    assert set(scsi["peripheral_type"].values()) == set(DeviceType)
    assert {page.value for page in mode.ModePage} <= set(scsi["mode_page"].values())
    assert {page.value for page in inquiry.VpdPage} <= set(scsi["vpd_page"].values())
    for name, value in scsi["version_descriptor"].items():
        ours = {"SRP_T10_1415_R16A": "SRP_R16A", "SRP_ANSI_365_2002": "SRP_INCITS_365"}
        spaced = name if name in ("SRP",) else f"{name[:3]}_{name[3:]}"
        assert inquiry.VersionDescriptor[ours.get(name, spaced)] == value
