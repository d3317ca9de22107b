# SPDX-License-Identifier: MIT
"""Our own captures: pcapng files of ring messages (`vscsi.wire.record`).

Runs of messages with nothing unusual about them are taken apart and joined as columns. What is
unusual (task management, a login, lost messages, a malformed one, ...) goes one by one through
`decode` and `Exchanges`, with what is around it; both give the same rows.
"""

from typing import IO

from vscsi.capture.sources.ours.source import NAME, RingCapture
from vscsi.wire.errors import WireError
from vscsi.wire.pcapng import (
    HEAD_SIZE,
    LINKTYPE_USER0,
    BlockType,
    parse_head,
    parse_interface,
    section_order,
)

__all__ = ["NAME", "read", "recognise"]


def recognise(head: bytes) -> bool:
    """Tell whether it is a pcapng file whose first interface is of our link type."""
    try:
        order = section_order(head[: HEAD_SIZE + 4])
        at = 0
        while at < len(head):
            kind, length = parse_head(order, head[at : at + HEAD_SIZE])
            if kind == BlockType.INTERFACE:
                body = head[at + HEAD_SIZE : at + length - 4]
                return bool(parse_interface(order, body).link_type == LINKTYPE_USER0)
            at += length
    except WireError:
        return False
    return False


def read(stream: IO[bytes]) -> RingCapture:
    """Return the commands of a capture."""
    return RingCapture(stream)
