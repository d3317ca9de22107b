# SPDX-License-Identifier: MIT
"""The Wireshark dissector of captures: `vscsi.lua`, whose tables are the declarations' own.

`python -m vscsi.capture.wireshark` writes the tables anew when a declaration has changed; a test
says when that was forgotten.
"""

import struct
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path

from construct import Construct

from vscsi.target.base import Function, Status
from vscsi.wire import blkif, mad, record, srp, srp_ring, vscsiif
from vscsi.wire.formats import Leaf

SCRIPT = Path(__file__).parent / "vscsi.lua"
BEGIN = "-- The declarations of vscsi.wire: written by `python -m vscsi.capture.wireshark`.\n"
END = "-- End of the declarations.\n"

FORMATS: dict[str, Construct] = {
    "record": record.Record,
    "srp_slot": srp_ring.SlotHeader,
    "srp_login_req": srp.LoginReq,
    "srp_login_rsp": srp.LoginRsp,
    "srp_login_rej": srp.LoginRej,
    "srp_i_logout": srp.ILogout,
    "srp_t_logout": srp.TLogout,
    "srp_cmd": srp.Cmd,
    "srp_rsp": srp.Rsp,
    "srp_tsk_mgmt": srp.TskMgmt,
    "srp_cred_req": srp.CredReq,
    "srp_cred_rsp": srp.CredRsp,
    "srp_aer_req": srp.AerReq,
    "srp_aer_rsp": srp.AerRsp,
    "srp_descriptor": srp.MemoryDescriptor,
    "mad": mad.MadHeader,
    "mad_buffer": mad.BufferMad,
    "mad_empty_iu": mad.EmptyIu,
    "mad_region": mad.RegionMad,
    "vscsiif_request": vscsiif.Request,
    "vscsiif_preset": vscsiif.SgPreset,
    "vscsiif_response": vscsiif.Response,
    "vscsiif_segment": vscsiif.Segment,
    **{
        f"blkif{bits}_{name}": getattr(layout.formats, name)
        for bits, layout in ((64, blkif.X86_64), (32, blkif.X86_32))
        for name in ("rw", "discard", "indirect", "other", "response")
    },
    "blkif_segment": blkif.Segment,
}
"""Formats of the dissector; its fields are vscsi.FORMAT.FIELD."""
CODES: dict[str, type[IntEnum]] = {
    "record.protocol": record.Protocol,
    "record.direction": record.Way,
    "record.layout": record.LayoutCode,
    "record.payload_kind": record.PayloadKind,
    "srp_slot.format": srp_ring.SlotFormat,
    **{f"{name}.type": srp.IuType for name in FORMATS if name.startswith("srp_")},
    "srp_rsp.status": Status,
    "srp_tsk_mgmt.function": Function,
    "srp_login_rej.reason": srp.LoginRejectReason,
    "srp_t_logout.reason": srp.TLogoutReason,
    **{f"{name}.type": mad.MadType for name in FORMATS if name.startswith("mad")},
    **{f"{name}.status": mad.MadStatus for name in FORMATS if name.startswith("mad")},
    "vscsiif_request.act": vscsiif.Act,
    "vscsiif_preset.act": vscsiif.Act,
    "vscsiif_request.direction": vscsiif.Direction,
    **{f"{name}.operation": blkif.Operation for name in FORMATS if name.startswith("blkif")},
    **{f"blkif{bits}_indirect.indirect_op": blkif.Operation for bits in (64, 32)},
    **{f"blkif{bits}_response.status": blkif.RspStatus for bits in (64, 32)},
}
"""Words for the values of fields."""
MADS = {
    code: {id(mad.BufferMad): "mad_buffer", id(mad.EmptyIu): "mad_empty_iu"}.get(
        id(form), "mad_region"
    )
    for code, form in mad.FORMATS.items()
}


def fields(form: Construct) -> Iterator[tuple[str, int, int, str, bool]]:
    """Yield name, offset, size in bytes, kind and whether it is little-endian of each field.

    Those of a format's beginning: up to the first that is no number and no fixed bytes.
    """
    at = 0
    for field in form.subcons:
        try:
            leaf = Leaf.of(field)
            size = field.sizeof()
        except Exception:  # construct raises many: it is an array, or as long as another one says
            if _is_empty(field):
                continue
            return
        kind = "signed" if leaf.code.islower() else "number"
        if leaf.code.endswith("s") or struct.calcsize("=" + leaf.code) != size:  # or an array
            kind = "bytes"
        yield leaf.name, at, size, kind, leaf.order == "<" and kind != "bytes"
        at += size


def tables() -> str:
    """Return the tables as Lua."""
    lines = [BEGIN, "local FORMATS = {\n"]
    for name, form in FORMATS.items():
        lines.append(f"  {name} = {{\n")
        for field, at, size, kind, little in fields(form):
            order = "true" if little else "false"
            lines.append(f'    {{ "{field}", {at}, {size}, "{kind}", {order} }},\n')
        lines.append("  },\n")
    lines.append("}\nlocal CODES = {\n")
    for name, codes in CODES.items():
        words = ", ".join(f'[{code.value}] = "{_word(code)}"' for code in codes)
        lines.append(f'  ["{name}"] = {{ {words} }},\n')
    lines.append("}\nlocal MADS = { ")
    lines.append(", ".join(f'[{int(code)}] = "{name}"' for code, name in MADS.items()))
    lines.append(" }\nlocal IS = {\n")
    for name, value in _constants():
        lines.append(f"  {name} = {value},\n")
    return "".join([*lines, "}\n", END])


def script() -> str:
    """Return the script with the tables as they should be."""
    before, _, rest = SCRIPT.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + tables() + after


def _constants() -> Iterator[tuple[str, int]]:
    for prefix, codes in {
        "PROTOCOL": record.Protocol,
        "WAY": record.Way,
        "LAYOUT": record.LayoutCode,
        "PAYLOAD": record.PayloadKind,
        "SLOT": srp_ring.SlotFormat,
        "IU": srp.IuType,
        "BUFFER": srp.BufferFormat,
        "FLAG": srp.RspFlags,
        "ACT": vscsiif.Act,
        "DIRECTION": vscsiif.Direction,
        "OP": blkif.Operation,
    }.items():
        for code in codes:
            yield f"{prefix}_{code.name}", code.value
    yield "VERSION", record.VERSION
    yield "VSCSIIF_SEGMENTS", vscsiif.SEGMENTS
    yield "VSCSIIF_PRESET_SEGMENTS", vscsiif.PRESET_SEGMENTS
    yield "VSCSIIF_SG_GRANT", vscsiif.SG_GRANT
    yield "BLKIF_SEGMENTS", blkif.SEGMENTS
    yield "BLKIF64_SLOT", blkif.X86_64.slot_size
    yield "BLKIF32_SLOT", blkif.X86_32.slot_size
    yield "SECTOR_BYTES", blkif.SECTOR_SIZE


def _word(code: IntEnum) -> str:
    return code.name.replace("_", " ")


def _is_empty(field: Construct) -> bool:
    """Whether a field has no bytes: it is computed from others."""
    try:
        return bool(field.sizeof() == 0)
    except Exception:  # as above
        return False
