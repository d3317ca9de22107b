# SPDX-License-Identifier: MIT
"""Which errno an NBD client gets for a status and its sense."""

import errno

from vscsi.transport.hba import Reply
from vscsi.wire.sense import SenseKey

_BY_CODE: dict[tuple[int, int, int], int] = {
    (SenseKey.DATA_PROTECT, 0x27, 0x07): errno.ENOSPC,  # SPACE ALLOCATION FAILED
    (SenseKey.ILLEGAL_REQUEST, 0x20, 0x00): errno.EOPNOTSUPP,  # INVALID COMMAND OPERATION CODE
}
_BY_KEY: dict[int, int] = {
    SenseKey.DATA_PROTECT: errno.EROFS,
    SenseKey.ILLEGAL_REQUEST: errno.EINVAL,
}


def errno_of(reply: Reply) -> int:
    """Return the errno for a reply that is not GOOD; EIO unless the sense says more."""
    sense = reply.decoded_sense
    if sense is None:
        return errno.EIO
    code = _BY_CODE.get((sense.key, sense.asc, sense.ascq))
    return code if code is not None else _BY_KEY.get(sense.key, errno.EIO)
