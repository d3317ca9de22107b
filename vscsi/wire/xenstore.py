# SPDX-License-Identifier: MIT
"""xenstore's wire protocol (io/xs_wire.h): the message header, its codes and its limits.

Little-endian on every machine that we meet (the protocol is native-endian).
"""

from enum import IntEnum

from construct import Container

from vscsi.wire.errors import WireError
from vscsi.wire.formats import U32L, Packed, parse

PAYLOAD_MAX = 4096
"""Bytes after a header (XENSTORE_PAYLOAD_MAX)."""
ABS_PATH_MAX = 3072
"""Bytes of an absolute path (XENSTORE_ABS_PATH_MAX)."""
REL_PATH_MAX = 2048
"""Bytes of a path relative to the domain's own (XENSTORE_REL_PATH_MAX)."""


class MessageType(IntEnum):
    """XS_*: a reply has the type of its request, or ERROR."""

    CONTROL = 0
    DIRECTORY = 1
    READ = 2
    GET_PERMS = 3
    WATCH = 4
    UNWATCH = 5
    TRANSACTION_START = 6
    TRANSACTION_END = 7
    INTRODUCE = 8
    RELEASE = 9
    GET_DOMAIN_PATH = 10
    WRITE = 11
    MKDIR = 12
    RM = 13
    SET_PERMS = 14
    WATCH_EVENT = 15
    ERROR = 16
    IS_DOMAIN_INTRODUCED = 17
    RESUME = 18
    SET_TARGET = 19
    RESET_WATCHES = 21
    DIRECTORY_PART = 22
    GET_FEATURE = 23
    SET_FEATURE = 24
    GET_QUOTA = 25
    SET_QUOTA = 26
    INVALID = 0xFFFF


ERRORS = (
    "EINVAL",
    "EACCES",
    "EEXIST",
    "EISDIR",
    "ENOENT",
    "ENOMEM",
    "ENOSPC",
    "EIO",
    "ENOTEMPTY",
    "ENOSYS",
    "EROFS",
    "EBUSY",
    "EAGAIN",
    "EISCONN",
    "E2BIG",
    "EPERM",
)
"""Error names that the payload of an ERROR message may be (xsd_errors)."""

Header = Packed("type" / U32L, "req_id" / U32L, "tx_id" / U32L, "length" / U32L)
HEADER_SIZE: int = Header.sizeof()


def parse_header(data: bytes) -> Container:
    """Parse a message header (16 bytes); raise WireError if its payload would be over the limit."""
    header = parse(Header, data, "xenstore header")
    if header.length > PAYLOAD_MAX:
        raise WireError(f"xenstore header: payload of {header.length} bytes")
    return header
