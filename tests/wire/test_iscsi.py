# SPDX-License-Identifier: MIT
"""iSCSI headers and digests: the standard's own examples, and real PDUs byte for byte."""

from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.capture.sources import iscsi_traffic as traffic
from vscsi.wire import iscsi
from vscsi.wire.crc32c import crc32c
from vscsi.wire.formats import build, parse
from vscsi.wire.iscsi import BHS_BYTES, PLAUSIBLE, Opcode

FORMS = {
    Opcode.SCSI_COMMAND: iscsi.ScsiCommand,
    Opcode.TASK_MANAGEMENT: iscsi.TaskManagement,
    Opcode.LOGIN_REQUEST: iscsi.LoginRequest,
    Opcode.DATA_OUT: iscsi.DataOut,
    Opcode.LOGOUT_REQUEST: iscsi.LogoutRequest,
    Opcode.SCSI_RESPONSE: iscsi.ScsiResponse,
    Opcode.TASK_MANAGEMENT_RESPONSE: iscsi.TaskManagementResponse,
    Opcode.LOGIN_RESPONSE: iscsi.LoginResponse,
    Opcode.DATA_IN: iscsi.DataIn,
    Opcode.READY_TO_TRANSFER: iscsi.ReadyToTransfer,
    Opcode.ASYNC_MESSAGE: iscsi.AsyncMessage,
    Opcode.REJECT: iscsi.Reject,
}


@pytest.fixture(scope="module")
def pdus():
    """Return the headers of the recorded captures, as they were sent."""
    headers = []
    for name in traffic.NAMES:
        streams = defaultdict(bytes)
        for segment in traffic.segments(traffic.frames(name)):
            streams[segment.ends, segment.flags & traffic.SYN] += segment.payload
        headers += [head for stream in streams.values() for head, _ in traffic.pdus(stream)]
    assert len(headers) == 1815
    return headers


@pytest.mark.parametrize("opcode", FORMS)
def test_headers_have_48_bytes_and_their_opcode(opcode):
    header = build(FORMS[opcode], {})
    assert len(header) == BHS_BYTES
    assert header[0] == opcode


def test_recorded_headers_rebuild_to_their_bytes(pdus):
    known = 0
    for header in pdus:
        form = FORMS.get(header[0] & 0x3F)
        if form is not None:
            known += 1
            assert build(form, parse(form, header, "header")) == header
    assert known > 1700


def test_every_recorded_header_is_plausible(pdus):
    assert all(PLAUSIBLE.match(header) for header in pdus)


@given(st.binary(min_size=16, max_size=16))
def test_plausible_is_what_its_parts_say(head):
    opcode = head[0] & 0x3F
    if PLAUSIBLE.match(head):
        assert opcode in list(Opcode)
        assert not head[0] & 0x80
        assert opcode == Opcode.SCSI_COMMAND or head[4] == 0
        assert opcode in (Opcode.SCSI_RESPONSE, Opcode.DATA_IN) or head[3] == 0


@pytest.mark.parametrize(
    ("data", "digest"),
    [  # RFC 7143 B.4
        (bytes(32), "aa36918a"),
        (b"\xff" * 32, "43aba862"),
        (bytes(range(32)), "4e79dd46"),
        (bytes(reversed(range(32))), "5cdb3f11"),
        (
            bytes.fromhex(
                "01c00000000000000000000000000000140000000000040000000014"
                "0000001828000000000000000200000000000000"
            ),
            "563a96d9",
        ),
    ],
)
def test_digests_of_the_standard(data, digest):
    assert crc32c(data).hex() == digest


def test_additional_header_segments():
    assert build(iscsi.ExtendedCdb, {"length": 5, "cdb": b"abcd"}).hex() == "0005010061626364"
    assert build(iscsi.ReadLength, {"read_length": 512}).hex() == "0005020000000200"
