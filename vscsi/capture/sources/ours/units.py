# SPDX-License-Identifier: MIT
"""The disks of a capture: a logical unit as one initiator sees it, through all of its queues."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from vscsi.capture.commands import SECTOR_BYTES, Disk, Fate, Operation
from vscsi.capture.decode import unit_name
from vscsi.capture.sources.columns import Numbering
from vscsi.capture.sources.ours.layout import Ints
from vscsi.capture.sources.ours.messages import Messages
from vscsi.target.base import Status
from vscsi.wire.cdb import named
from vscsi.wire.errors import WireError
from vscsi.wire.lun import decode, encode, logical_unit_number
from vscsi.wire.opcodes import DeviceType
from vscsi.wire.parameters import parse_capacity_10, parse_capacity_16
from vscsi.wire.record import Protocol

_TYPE, _BLOCK_BYTES, _BLOCKS = "type", "block-bytes", "blocks"
"""Words of `vscsi.capture.metadata` about each unit."""
_BLOCK_SIZES = frozenset(1 << shift for shift in range(9, 17))
_CAPACITIES = {
    (named("READ CAPACITY(10)").opcode, None): parse_capacity_10,
    (named("READ CAPACITY(16)").opcode, named("READ CAPACITY(16)").service_action): (
        parse_capacity_16
    ),
}
ASK_16 = 1 << 32
"""Blocks in READ CAPACITY(10) data that stand for more than fit there."""
_CAPACITY_OPCODES = [opcode for opcode, _ in _CAPACITIES]


class Units:
    """Numbers disks as they come up, and learns their geometry.

    From the capture's metadata; else from READ CAPACITY's answers, where their data was captured;
    else from how many bytes the first reads and writes of so many blocks have.
    """

    def __init__(self, disks: list[Disk]) -> None:
        """disks: where to add them."""
        self.lost = 0
        """Commands of disks beyond what is numbered; they count as the last one's."""
        self._disks = disks
        self._numbering = Numbering()
        self._names: list[str] = []
        self._learning: set[int] = set()
        """Disks of which the metadata said nothing, and"""
        self._unsure: set[int] = set()
        """those of them whose blocks may have any size."""

    def name(self, disk: int) -> str:
        """Return what a disk's requests have as `lun`."""
        return self._names[disk]

    def number(
        self,
        path: int,
        lun: str,
        address: bytes,
        parameters: Mapping[str, str],
    ) -> int:
        """Return a disk's number; path: `Messages.path`; parameters: of one of its channels."""
        disk, new = self._numbering.number((path, lun))
        if disk < 0:
            self.lost += 1
            return len(self._disks) - 1
        if new:
            self._names.append(lun)
            self._disks.append(self._disk(disk, path, lun, address, parameters))
        return disk

    def numbers(
        self, messages: Messages, at: Ints, parameters: Mapping[int, Mapping[str, str]]
    ) -> Ints:
        """Return the disks of the requests among messages `at`; parameters by channel."""
        paths, units = messages.path[at], messages.unit[at]
        if not len(at):
            return np.zeros(0, np.int64)
        if (paths == paths[0]).all() and (units == units[0]).all():
            pairs, which = [0], np.zeros(len(at), np.int64)
        else:
            which, pairs = _distinct(paths, units)
        found = []
        for each in pairs:
            path = int(paths[each])
            lun, address = _unit(path >> 32, int(units[each]))
            known = parameters.get(int(messages.channel[at[each]]), {})
            found.append(self.number(path, lun, address, known))
        return np.array(found, np.int64)[which]

    def learn(self, batch: pa.RecordBatch) -> None:
        """Learn from rows of SCHEMA what the metadata did not say."""
        if not self._learning:
            return
        opcodes = batch.column("opcode").fill_null(0).to_numpy()
        disks = batch.column("disk").to_numpy()
        for row in np.flatnonzero(np.isin(opcodes, _CAPACITY_OPCODES)):
            if int(disks[row]) in self._learning:
                self._learn_capacity(int(disks[row]), batch.slice(int(row), 1))
        if self._unsure:
            self._learn_sizes(batch)

    def _learn_capacity(self, disk: int, row: pa.RecordBatch) -> None:
        (values,) = row.select(["opcode", "service_action", "data"]).to_pylist()
        parse = _CAPACITIES.get((values["opcode"], values["service_action"]))
        if parse is None or not values["data"]:
            return
        try:
            capacity = parse(values["data"])
        except WireError:
            return
        if capacity.block_length in _BLOCK_SIZES:
            self._disks[disk].block_bytes = capacity.block_length
            if capacity.blocks != ASK_16:
                self._disks[disk].block_count = capacity.blocks
            self._unsure.discard(disk)

    def _learn_sizes(self, batch: pa.RecordBatch) -> None:
        """Take what reads and writes moved by how many blocks they are of."""
        disks, operation = (batch.column(name).to_numpy() for name in ("disk", "operation"))
        blocks = batch.column("blocks").fill_null(0).to_numpy().astype(np.int64)
        length = batch.column("data_in").to_numpy() + batch.column("data_out").to_numpy()
        whole = np.isin(operation, [Operation.READ, Operation.WRITE]) & (blocks > 0)
        whole &= batch.column("fate").to_numpy() == Fate.ANSWERED
        whole &= batch.column("status").fill_null(0xFF).to_numpy() == Status.GOOD
        whole &= batch.column("residual").fill_null(1).to_numpy() == 0
        for disk in list(self._unsure):
            rows = np.flatnonzero(whole & (disks == disk))
            if len(rows) and (size := length[rows[0]] / blocks[rows[0]]) in _BLOCK_SIZES:
                self._disks[disk].block_bytes = int(size)
                self._unsure.discard(disk)

    def _disk(
        self, number: int, path: int, lun: str, address: bytes, parameters: Mapping[str, str]
    ) -> Disk:
        protocol, domain, device = path >> 32, path >> 16 & 0xFFFF, path & 0xFFFF
        name = f"{Protocol(protocol).name.lower()}-{domain}-{device}"
        if protocol == Protocol.BLKIF:  # one unit, and sectors of 512 bytes whatever its blocks are
            disk = Disk(name)
            described = [key for key in parameters if key.endswith(f".{_BLOCK_BYTES}")]
            unit = described[0].partition(".")[0] if len(described) == 1 else ""
            block_bytes = _number(parameters.get(f"{unit}.{_BLOCK_BYTES}"))
            blocks = _number(parameters.get(f"{unit}.{_BLOCKS}")) * block_bytes // SECTOR_BYTES
            disk.block_count = blocks or None
            return disk
        disk = Disk(f"{name} lun {lun}", address)
        if decode(address).wlun is not None:
            disk.device_type = DeviceType.WELL_KNOWN
        unit = f"lun{logical_unit_number(address)}"
        kind = parameters.get(f"{unit}.{_TYPE}", "").upper()
        if kind in DeviceType.__members__:
            disk.device_type = DeviceType[kind]
        block_bytes = _number(parameters.get(f"{unit}.{_BLOCK_BYTES}"))
        if block_bytes in _BLOCK_SIZES:
            disk.block_bytes = block_bytes
            disk.block_count = _number(parameters.get(f"{unit}.{_BLOCKS}")) or None
        else:
            self._learning.add(number)
            self._unsure.add(number)
        return disk


def _number(word: str | None) -> int:
    """Return a number of the metadata; 0 where it is none."""
    return int(word) if word and word.isascii() and word.isdigit() and len(word) < 20 else 0


def _distinct(
    paths: npt.NDArray[np.uint64], units: npt.NDArray[np.uint64]
) -> tuple[Ints, list[int]]:
    """Return which distinct pair each is, and where each of those is first."""
    first = pa.array(paths).dictionary_encode().indices.to_numpy().astype(np.int64)
    encoded = pa.array(units).dictionary_encode()
    second = encoded.indices.to_numpy()
    both = pa.array(first * len(encoded.dictionary) + second).dictionary_encode()
    which = both.indices.to_numpy().astype(np.int64)
    begins = np.full(len(both.dictionary), len(which))
    np.minimum.at(begins, which, np.arange(len(which)))
    return which, begins.tolist()


def _unit(protocol: int, unit: int) -> tuple[str, bytes]:
    """Return what `decode` says of a unit, from its number in `Messages.unit`."""
    if protocol == Protocol.SRP:
        address = unit.to_bytes(8, "big")
        return unit_name(address), address
    if protocol == Protocol.VSCSIIF:
        return f"{unit >> 32}:{unit >> 16 & 0xFFFF}:{unit & 0xFFFF}", encode(unit & 0xFFFF)
    return "", b""
