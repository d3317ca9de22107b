# SPDX-License-Identifier: MIT
"""Whatever a peer's bytes are, a parser gives a value or WireError; the value keeps every byte."""

import contextlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vscsi.wire import (
    blkif,
    inquiry,
    mad,
    mode,
    parameters,
    record,
    ring,
    srp,
    srp_ring,
    vscsiif,
    xenstore,
)
from vscsi.wire.errors import WireError
from vscsi.wire.formats import build, parse

# {name: (parse, build back or None)}
PARSERS = {
    "srp": (srp.parse_iu, lambda v: srp.build_iu(v.type, **v)),
    "mad": (mad.parse_mad, lambda v: mad.build_mad(v.type, **v)),
    "crq": (lambda d: parse(mad.Crq, d, "CRQ"), lambda v: build(mad.Crq, v)),
    "adapter info": (
        lambda d: parse(mad.AdapterInfoData, d, "adapter info"),
        lambda v: build(mad.AdapterInfoData, v),
    ),
    "capabilities": (
        lambda d: parse(mad.CapabilitiesData, d, "capabilities"),
        lambda v: build(mad.CapabilitiesData, v),
    ),
    "directory": (mad.parse_directory, lambda v: mad.build_directory(v)[0]),
    "slot": (srp_ring.parse_slot, None),
    "vscsiif request": (vscsiif.parse_request, lambda v: vscsiif.build_request(**v)),
    "vscsiif response": (vscsiif.parse_response, lambda v: vscsiif.build_response(**v)),
    "vscsiif segments": (vscsiif.parse_segments, vscsiif.build_segments),
    "blkif segments": (blkif.parse_segments, blkif.build_segments),
    "sring": (lambda d: parse(ring.SharedRing, d, "ring"), lambda v: build(ring.SharedRing, v)),
    "xenstore": (xenstore.parse_header, lambda v: build(xenstore.Header, v)),
    "record": (record.parse_record, lambda v: record.build_record(**v)),
    "inquiry": (inquiry.parse_standard, None),
    "vpd": (inquiry.parse_vpd, None),
    "mode 6": (lambda d: mode.parse_parameters(d, ten=False), None),
    "mode 10": (lambda d: mode.parse_parameters(d, ten=True), None),
    "capacity 10": (parameters.parse_capacity_10, None),
    "capacity 16": (parameters.parse_capacity_16, None),
    "luns": (parameters.parse_report_luns, None),
    "unmap": (parameters.parse_unmap, None),
    "one command": (parameters.parse_one_command, lambda v: build(parameters.OneCommand, v)),
    "all commands": (parameters.parse_all_commands, None),
}
for _name, _layout in blkif.LAYOUTS.items():
    PARSERS[f"{_name} request"] = (
        _layout.parse_request,
        lambda v, layout=_layout: layout.build_request(v.operation, **v),
    )
    PARSERS[f"{_name} response"] = (
        _layout.parse_response,
        lambda v, layout=_layout: layout.build_response(**v),
    )
    PARSERS[f"{_name} segment block"] = (_layout.parse_segment_block, blkif.build_segments)

VECTORS = [
    bytes.fromhex(data)
    for vector in json.loads(
        (Path(__file__).parents[1] / "data" / "golden_vectors.json").read_text()
    ).values()
    for name, data in vector.items()
    if name != "values"
]


@st.composite
def messages(draw):
    """Noise, or a real message that somebody changed, cut or lengthened, or a slot of noise."""
    if draw(st.booleans()):
        size = draw(st.sampled_from([8, 16, 20, 32, 64, 92, 108, 112, 128, 148, 252, 4096]))
        head = draw(st.binary(max_size=size))
        return (head + bytes(size))[:size]
    message = bytearray(draw(st.sampled_from([*VECTORS, b""])))
    for _ in range(draw(st.integers(0, 4)) if message else 0):
        message[draw(st.integers(0, len(message) - 1))] = draw(st.integers(0, 255))
    if draw(st.booleans()):
        del message[draw(st.integers(0, len(message))) :]
    return bytes(message) + draw(st.binary(max_size=40))


@pytest.mark.parametrize("name", PARSERS)
@given(data=messages())
def test_a_value_or_wire_error(name, data):
    parser, builder = PARSERS[name]
    try:
        value = parser(data)
    except WireError:
        return
    if builder is not None:
        built = builder(value)
        assert built[: len(data)] == data
        assert not any(built[len(data) :])  # what may be left out (vscsiif's response)


@pytest.mark.parametrize("name", PARSERS)
def test_empty_input(name):
    parser, _ = PARSERS[name]
    with contextlib.suppress(WireError):
        assert parser(b"") == []
