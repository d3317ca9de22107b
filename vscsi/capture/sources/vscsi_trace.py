# SPDX-License-Identifier: MIT
"""CloudPhysics' .vscsi traces, versions 1 and 2: what a VMware host's vSCSI layer saw of a disk.

No header, little-endian records of one size, as libCacheSim's reader documents them: 32 bytes in
version 1, 40 with the response time in version 2. Times are in microseconds, lengths in bytes,
addresses in sectors of 512 bytes; `cmd` is the opcode, the upper byte of `ver` the version.
"""

from collections.abc import Iterator
from functools import cache
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from vscsi.capture.commands import BATCH_ROWS, SECTOR_BYTES, Channel, Disk, Fate
from vscsi.capture.sources import HEAD_BYTES
from vscsi.capture.sources.base import Reading
from vscsi.capture.sources.columns import assemble, of_cdbs
from vscsi.capture.sources.complete import MAX_TIME_NS, InOrder
from vscsi.wire.cdb import lookup
from vscsi.wire.opcodes import Direction

NAME = "CloudPhysics .vscsi trace"
RECORDS = {
    2: np.dtype(
        [
            ("cmd", "<u2"),
            ("ver", "<u2"),
            ("sn", "<u4"),
            ("len", "<u4"),
            ("nsg", "<u4"),
            ("lbn", "<u8"),
            ("ts", "<u8"),
            ("rt", "<u8"),
        ]
    ),
    1: np.dtype(
        [
            ("sn", "<u4"),
            ("len", "<u4"),
            ("nsg", "<u4"),
            ("cmd", "<u2"),
            ("ver", "<u2"),
            ("lbn", "<u8"),
            ("ts", "<u8"),
        ]
    ),
}
"""By version."""
_US_NS = 1000
MAX_LBN = 1 << 55
"""In sectors: 16 EiB."""


def recognise(head: bytes) -> bool:
    """Whether records of one version begin here."""
    return _version(head) is not None


def _version(head: bytes) -> int | None:
    """Return the version that all whole records of the head have, or None."""
    for version, record in RECORDS.items():
        records = _records(head, version)
        # One record alone says little: then it must be all that there is.
        enough = len(records) > 1 or len(head) == record.itemsize
        if enough and np.all(_good(records, version)):
            return version
    return None


def _likely(head: bytes) -> int:
    """Return the version that most records of a damaged head may have."""
    return max(
        RECORDS, key=lambda version: np.count_nonzero(_good(_records(head, version), version))
    )


def _records(data: bytes, version: int) -> npt.NDArray[Any]:
    record = RECORDS[version]
    return np.frombuffer(data, record, len(data) // record.itemsize)


def _good(records: npt.NDArray[Any], version: int) -> npt.NDArray[np.bool_]:
    good: npt.NDArray[np.bool_] = (
        (records["ver"] >> 8 == version)
        & (records["cmd"] < 0x100)
        & (records["lbn"] < MAX_LBN)
        & (records["ts"] < MAX_TIME_NS // _US_NS)
    )
    if version == 2:
        good &= records["rt"] < MAX_TIME_NS // _US_NS
    return good


def read(stream: IO[bytes]) -> "VscsiTrace":
    """Return the source."""
    return VscsiTrace(stream)


class VscsiTrace(Reading):
    """A trace of one disk; its times are the host's, mostly since it was started."""

    def __init__(self, stream: IO[bytes]) -> None:
        super().__init__(NAME, stream)
        self.channels = [Channel("vscsi", "scsi")]
        self.disks = [Disk("vscsi")]

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        order = InOrder()
        version, rest, before = 0, b"", 0
        # A multiple of both sizes, so that reads seldom cut a record.
        for chunk in self.chunks(160 * BATCH_ROWS // 4):
            rest += chunk
            if not version:
                version = _likely(rest[:HEAD_BYTES])
                self.format = f"{NAME}, version {version}"
            records = _records(rest, version)
            rest = rest[records.nbytes :]
            good = _good(records, version)
            if not len(good):
                continue
            self.skip(
                f"record {before + int(np.argmin(good))} is none of version {version}",
                len(good) - int(np.count_nonzero(good)),
            )
            before += len(good)
            if good.any():
                yield from order.add(_commands(records[good], version))
        yield from order.rest()
        order.note(self.troubles)
        if rest:
            self.broke(f"the last record has only {len(rest)} bytes")


def _commands(records: npt.NDArray[Any], version: int) -> pa.RecordBatch:
    operations, addressed, way_in, way_out = _opcodes()
    opcode = records["cmd"].astype(np.uint8)
    length = records["len"].astype(np.int64)
    nowhere = ~addressed[opcode]
    latency = records["rt"].astype(np.int64) * _US_NS if version == 2 else None
    return assemble(
        len(records),
        {
            "time_ns": records["ts"].astype(np.int64) * _US_NS,
            "opcode": opcode,
            "operation": operations[opcode],
            "lba": pa.array(records["lbn"], mask=nowhere),
            "blocks": pa.array((-(-length // SECTOR_BYTES)).astype(np.uint32), mask=nowhere),
            "data_in": np.where(way_in[opcode], length, 0),
            "data_out": np.where(way_out[opcode], length, 0),
            "fate": int(Fate.ANSWERED),
            **({} if latency is None else {"latency_ns": latency}),
        },
    )


@cache
def _opcodes() -> tuple[npt.NDArray[Any], ...]:
    """Return by opcode: its operation, whether it has an address, and the ways of its data."""
    cdbs = [bytes([opcode]).ljust(32, b"\0") for opcode in range(256)]
    found = of_cdbs(pa.array(cdbs))
    ways = [row.direction if (row := lookup(cdb)) else Direction.NONE for cdb in cdbs]
    addressed = pa.array(found["lba"]).is_valid().to_numpy(zero_copy_only=False)
    return (
        np.asarray(found["operation"]),
        addressed,
        np.array([way is Direction.IN for way in ways]),
        np.array([way is Direction.OUT for way in ways]),
    )
