# SPDX-License-Identifier: MIT
"""A command through a real kernel's sg node by SG_IO, which waits for its end however late."""

import ctypes
import fcntl
from typing import NamedTuple

from tests.tgt_glue.sg_header import FROM_DEVICE, SG_IO, Header
from vscsi.wire.sense import parse_sense

SENSE_BYTES = 96


class Answer(NamedTuple):
    """What the kernel says of a command."""

    status: int
    host_status: int
    residual: int
    code: tuple[int, int] | None
    """Sense key and additional sense code, if there is sense data."""
    data: bytes


def read_by(node, cdb, length, timeout_s=60):
    """Send a CDB with data-in."""
    data = ctypes.create_string_buffer(length)
    command = ctypes.create_string_buffer(cdb, len(cdb))
    sense = ctypes.create_string_buffer(SENSE_BYTES)
    header = Header(
        interface_id=ord("S"),
        dxfer_direction=FROM_DEVICE,
        cmd_len=len(cdb),
        mx_sb_len=len(sense),
        dxfer_len=length,
        dxferp=ctypes.addressof(data),
        cmdp=ctypes.addressof(command),
        sbp=ctypes.addressof(sense),
        timeout=timeout_s * 1000,
    )
    with open(node, "rb", buffering=0) as device:
        fcntl.ioctl(device, SG_IO, header)
    told = parse_sense(sense.raw[: header.sb_len_wr]) if header.sb_len_wr else None
    code = (told.key, told.asc) if told else None
    return Answer(header.status, header.host_status, header.resid, code, data.raw)
