# SPDX-License-Identifier: MIT
"""What an NBD client is told about a status that is not GOOD."""

import errno

import pytest

from vscsi.cli.nbd_errno import errno_of
from vscsi.target.base import Status
from vscsi.transport.hba import Reply
from vscsi.wire.sense import Sense


@pytest.mark.parametrize(
    ("code", "number"),
    [
        ((0x7, 0x27, 0x07), errno.ENOSPC),
        ((0x7, 0x27, 0x00), errno.EROFS),
        ((0x7, 0x27, 0x02), errno.EROFS),
        ((0x5, 0x20, 0x00), errno.EOPNOTSUPP),
        ((0x5, 0x21, 0x00), errno.EINVAL),
        ((0x3, 0x11, 0x00), errno.EIO),
        ((0x3, 0x0C, 0x00), errno.EIO),
        ((0x4, 0x44, 0x00), errno.EIO),
        ((0x2, 0x04, 0x02), errno.EIO),
    ],
)
def test_sense_becomes_an_errno(code, number):
    sense = Sense(*code)
    for descriptor in (False, True):
        data = sense.build(descriptor=descriptor)
        assert errno_of(Reply(Status.CHECK_CONDITION, data, 0, b"")) == number


@pytest.mark.parametrize("sense", [b"", b"\0" * 18, b"\x7f" * 18])
def test_no_sense_is_an_io_error(sense):
    assert errno_of(Reply(Status.BUSY, sense, 0, b"")) == errno.EIO
