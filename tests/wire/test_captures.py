# SPDX-License-Identifier: MIT
"""Every recorded message of stock drivers parses, and builds back to the same bytes."""

from vscsi.wire import blkif, cdb, mad, srp, vscsiif
from vscsi.wire.formats import build, parse


def test_every_slot_of_xen_blkfront(capture):
    operations = set()
    for entry in capture("xen-blkfront.json"):
        slot = bytes.fromhex(entry["slot"])
        if entry["dir"] == "req":
            request = blkif.X86_64.parse_request(slot)
            assert blkif.X86_64.build_request(request.operation, **request) == slot
            assert request.nr_segments == len(request.segments)
            operations.add(request.operation)
        else:
            response = blkif.X86_64.parse_response(slot)
            assert blkif.X86_64.build_response(**response) == slot
            assert response.status == blkif.RspStatus.OKAY
    assert operations == {
        blkif.Operation.READ,
        blkif.Operation.WRITE,
        blkif.Operation.FLUSH_DISKCACHE,
    }


def test_a_response_in_a_slot_of_stale_bytes(capture):
    slots = [bytes.fromhex(entry["slot"]) for entry in capture("xen-blkfront.json")]
    request, response = slots[0], slots[1]
    slot = response + request[len(response) :]
    parsed = blkif.X86_64.parse_response(slot)
    assert blkif.X86_64.build_response(**parsed) == slot


def test_every_slot_of_xen_scsifront(capture):
    names = set()
    for entry in capture("xen-scsifront.json"):
        slot = bytes.fromhex(entry["slot"])
        if entry["dir"] == "req":
            request = vscsiif.parse_request(slot)
            assert vscsiif.build_request(**request) == slot
            assert request.act == vscsiif.Act.CDB
            command = cdb.decode(vscsiif.cdb_of(request))
            assert command.row.length == request.cmd_len
            names.add(command.row.name)
        else:
            response = vscsiif.parse_response(slot)
            assert vscsiif.build_response(**response) == slot
    assert {"INQUIRY", "READ CAPACITY(16)", "SYNCHRONIZE CACHE(10)", "WRITE(10)"} <= names


def test_every_unit_of_ibmvscsi(capture):
    pairs = capture("ibmvscsi-srp.jsonl")
    assert [pair["kind"] for pair in pairs[:3]] == ["MAD", "LOGIN", "CMD"]
    for pair in pairs:
        element = bytes.fromhex(pair["crq"])
        crq = parse(mad.Crq, element, "CRQ")
        assert build(mad.Crq, crq) == element
        for name in ("req", "rsp"):
            unit = bytes.fromhex(pair[name])
            if crq.format == mad.CrqFormat.MAD:
                message = mad.parse_mad(unit)
                assert message.type == mad.MadType.ADAPTER_INFO
                assert mad.build_mad(message.type, **message) == unit
            else:
                iu = srp.parse_iu(unit)
                assert iu.trailing == b""
                assert srp.build_iu(iu.type, **iu) == unit


def test_ibmvscsi_addresses_its_targets_with_the_logical_unit_method(capture):
    luns = {
        bytes.fromhex(pair["req"])[20:28]
        for pair in capture("ibmvscsi-srp.jsonl")
        if pair["kind"] == "CMD"
    }
    assert bytes.fromhex("8000000000000000") in luns
    assert {lun[0] >> 6 for lun in luns} == {2}
