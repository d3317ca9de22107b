# SPDX-License-Identifier: MIT
"""A run of packets as columns: what `vscsi.capture.decode` says of each message, of many at once.

Only what commands and their answers look like when nothing is wrong with them; all else is `odd`,
for the exact path. Every offset comes from the formats' declarations.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from vscsi.capture.decode import ATTRIBUTE
from vscsi.capture.reader import MAX_TIME_NS, Run
from vscsi.capture.sources.ours.layout import Array, Bools, Bytes, Ints, after_each_other, dtype_of
from vscsi.wire import blkif, pcapng, record, srp, vscsiif
from vscsi.wire.c_header import offsets
from vscsi.wire.cdb import cdb_length
from vscsi.wire.errors import WireError
from vscsi.wire.opcodes import VARIABLE_LENGTH
from vscsi.wire.pcapng import Interface
from vscsi.wire.record import LayoutCode, PayloadKind, Protocol, Way
from vscsi.wire.srp_ring import SlotFormat, SlotHeader

NS_PER_S = 10**9
_NONE = -1
"""In columns: not there."""

_PACKET = after_each_other(
    head=dtype_of(pcapng.LITTLE.head),
    packet=dtype_of(pcapng.LITTLE.packet),
    record=dtype_of(record.Record),
)
_RECORD_AT = _PACKET.fields["record"][1]  # type: ignore[index]
_BLOCK_BYTES = _RECORD_AT + pcapng.MIN_BLOCK - pcapng.HEAD_SIZE
"""Of a packet block without options, beside the record."""

_SLOT = dtype_of(SlotHeader)
_SRP_CMD = after_each_other(slot=_SLOT, unit=dtype_of(srp.Cmd))
_SRP_RSP = after_each_other(slot=_SLOT, unit=dtype_of(srp.Rsp))
_RSP_CODE_AT = _SLOT.itemsize + offsets(srp.Rsp)["response_data"] + 3
_CDB_AT = _SLOT.itemsize + offsets(srp.Cmd)["cdb"]
_BUFFERS_AT = _SLOT.itemsize + srp.CMD_BYTES
_DESCRIPTOR_BYTES = srp.MemoryDescriptor.sizeof()
_DESCRIPTORS = {
    srp.BufferFormat.NONE: (0, 0),
    srp.BufferFormat.DIRECT: (_DESCRIPTOR_BYTES, offsets(srp.MemoryDescriptor)["length"]),
    srp.BufferFormat.INDIRECT: (
        srp.IndirectDescriptor(0).sizeof(),
        offsets(srp.IndirectDescriptor(0))["total_length"],
    ),
    srp.BufferFormat.IMMEDIATE: (
        srp.ImmediateDescriptor.sizeof(),
        offsets(srp.ImmediateDescriptor)["length"],
    ),
}
"""Bytes of a descriptor without its table's entries, and where in it the buffer's length is."""
_DESCRIPTOR_SIZE, _LENGTH_AT = (
    np.array([_DESCRIPTORS.get(srp.BufferFormat(each), (0, 0))[at] for each in range(4)])
    for at in range(2)
)
_U32B = np.dtype(">u4")

_VSCSIIF = dtype_of(vscsiif.Request)
_VSCSIIF_RSP = np.dtype(dtype_of(vscsiif.Response).descr[:-1])
"""Without the reserved bytes at the end, which need not be there."""
_VSCSIIF_SEGMENT = dtype_of(vscsiif.Segment)
_VSCSIIF_CDB_AT = offsets(vscsiif.Request)["cdb"]
_VSCSIIF_SENSE_AT = offsets(vscsiif.Response)["sense_buffer"]

_BLKIF_SEGMENT = dtype_of(blkif.Segment)
_SEGMENTS = np.dtype((_BLKIF_SEGMENT, (blkif.SEGMENTS,)))
_LAYOUTS = {LayoutCode.X86_64: blkif.X86_64, LayoutCode.X86_32: blkif.X86_32}


def _group_lengths() -> npt.NDArray[np.int64]:
    """Return each opcode's CDB length; where it has none, more than any CDB has."""
    lengths = np.full(256, 1 << 16)
    for opcode in range(256):
        if opcode != VARIABLE_LENGTH:
            try:
                lengths[opcode] = cdb_length(bytes([opcode]))
            except WireError:
                continue
    return lengths


_GROUP_LENGTHS = _group_lengths()


class Messages:
    """The messages of a run, one element each in every column.

    Columns of requests mean nothing for answers, nor the other way round, nor for odd messages.
    """

    def __init__(self, run: Run, interfaces: Sequence[Interface]) -> None:
        self.bytes = Bytes(run.data)
        starts = np.array(run.starts, np.int64)
        count = len(starts)
        every = self.bytes.gather(_PACKET, starts)
        packet, header = every["packet"], every["record"]
        self._record_at = starts + _RECORD_AT
        self._message_at = self._record_at + header.dtype.itemsize
        self._message_length = header["message_length"].astype(np.int64)
        self._segments_at = self._message_at + self._message_length
        self._segments_length = header["segments_length"].astype(np.int64)
        captured = packet["captured_length"].astype(np.int64)
        beside = header.dtype.itemsize + self._message_length + self._segments_length
        self.known = (
            (every["head"]["length"].astype(np.int64) == _BLOCK_BYTES + (captured + 3 & ~3))
            & (captured >= header.dtype.itemsize)
            & (beside <= captured)
            & (header["version"] == record.VERSION)
        )
        """Whether it is a record of ours in a packet without options."""
        self._place(packet, run.first_interface, interfaces)
        self.protocol = header["protocol"]
        self.to_target = self.known & (header["direction"] == Way.TO_TARGET)
        self.ring_index = header["ring_index"].astype(np.int64)
        self.path = (
            self.protocol.astype(np.uint64) << np.uint64(32)
            | header["domain"].astype(np.uint64) << np.uint64(16)
            | header["device"]
        )
        self._layout = header["layout"]
        self.payload_at = self._message_at + beside - header.dtype.itemsize
        kept = self.known & (header["payload_kind"] == PayloadKind.HEAD)
        self.payload_length = np.where(kept, captured - beside, _NONE)

        self.odd = np.ones(count, bool)
        self.tag = np.zeros(count, np.uint64)
        self.unit = np.zeros(count, np.uint64)
        """What the message says of the logical unit, as a number."""
        self.attribute = np.full(count, _NONE)
        self.cdb_at, self.cdb_length = np.zeros(count, np.int64), np.full(count, _NONE)
        self.block_operation = np.full(count, _NONE)
        self.lba = np.zeros(count, np.uint64)
        self.blocks = np.full(count, _NONE)
        """With -1 there is no lba either."""
        self.data_out, self.data_in = np.zeros(count, np.int64), np.zeros(count, np.int64)
        self.failed = np.zeros(count, bool)
        self.status = np.full(count, _NONE)
        self.residual = np.zeros(count, np.int64)
        self.sense_at, self.sense_length = np.zeros(count, np.int64), np.full(count, _NONE)
        self._decode(header["direction"])
        self._trim_cdbs()

    def __len__(self) -> int:
        return len(self.odd)

    def by_channel(self, at: Ints) -> Iterator[tuple[int, Ints]]:
        """Yield each channel and which messages among `at` are on it, in their order."""
        channels = self.channel[at]
        if len(at) and (channels == channels[0]).all():
            yield int(channels[0]), at
            return
        order = np.argsort(channels, kind="stable")
        begins = np.flatnonzero(np.diff(channels[order], prepend=-1))
        for rows in np.split(at[order], begins)[1:]:
            yield int(self.channel[rows[0]]), rows

    def _place(self, packet: Array, first: int, interfaces: Sequence[Interface]) -> None:
        """Set channel and time_ns; what has none of them that is usual is not known."""
        number = packet["interface"].astype(np.int64)
        usual = [
            each.ticks_per_s == NS_PER_S and abs(each.offset_s) < MAX_TIME_NS // NS_PER_S // 2
            for each in interfaces[first:]
        ]
        offset_ns = [
            each.offset_s * NS_PER_S if fine else 0
            for each, fine in zip(interfaces[first:], usual, strict=True)
        ]
        self.known &= number < len(usual)
        number[~self.known] = 0
        if usual:
            self.known &= np.array(usual)[number]
            ticks = packet["time_high"].astype(np.int64) << 32 | packet["time_low"]
            self.known &= (ticks >= 0) & (ticks < MAX_TIME_NS // 2)
            self.time_ns: Ints = ticks + np.array(offset_ns)[number]
        else:
            self.time_ns = np.zeros(len(number), np.int64)
        self.channel: Ints = number + first

    def _decode(self, direction: npt.NDArray[np.uint8]) -> None:
        for protocol, ways in _DECODERS.items():
            these = self.known & (self.protocol == protocol)
            if these.any():
                for way, decode in ways.items():
                    rows = np.flatnonzero(these & (direction == way))
                    if len(rows):
                        self.odd[rows] = ~decode(self, rows)

    def _trim_cdbs(self) -> None:
        """Leave the bytes behind a CDB out, where its opcode says how long it is (SPC-5 4.2.5.1).

        As `trim_cdb` does.
        """
        rows = np.flatnonzero(self.cdb_length > 0)
        at, length = self.cdb_at[rows], self.cdb_length[rows]
        opcode = self.bytes.byte(at)
        own = _GROUP_LENGTHS[opcode]
        additional = self.bytes.byte(at + 7).astype(np.int64)
        variable = (opcode == VARIABLE_LENGTH) & (length >= 8) & (additional % 4 == 0)
        own[variable] = 8 + additional[variable]
        self.cdb_length[rows] = np.minimum(length, own)

    # Each returns which of the rows are as usual.

    def _srp_requests(self, rows: Ints) -> Bools:
        slot, unit, fine = self._srp_units(rows, _SRP_CMD, srp.IuType.CMD)
        out_form, in_form = unit["data_formats"] >> 4, unit["data_formats"] & 0x0F
        fine &= (out_form <= srp.BufferFormat.IMMEDIATE) & (in_form <= srp.BufferFormat.INDIRECT)
        additional = (unit["additional_cdb_length"] & 0xFC).astype(np.int64)
        out_form, in_form = out_form & 3, in_form & 3
        out_at: Ints = self._message_at[rows] + _BUFFERS_AT + additional
        in_at: Ints = out_at + _descriptor_bytes(out_form, unit["data_out_count"])
        end = in_at + _descriptor_bytes(in_form, unit["data_in_count"])
        fine &= end <= self._message_at[rows] + _SLOT.itemsize + slot["length"]
        self.data_out[rows] = self._buffer_length(out_at, out_form)
        self.data_in[rows] = self._buffer_length(in_at, in_form)
        self.tag[rows] = unit["tag"]
        self.unit[rows] = np.ascontiguousarray(unit["lun"]).view(">u8")
        self.attribute[rows] = unit["attribute"] & ATTRIBUTE
        self.cdb_at[rows] = self._message_at[rows] + _CDB_AT
        self.cdb_length[rows] = 16 + additional
        return fine

    def _buffer_length(self, at: Ints, form: Array) -> Ints:
        length = self.bytes.gather(_U32B, at + _LENGTH_AT[form]).astype(np.int64)
        return np.where(form == srp.BufferFormat.NONE, 0, length)

    def _srp_answers(self, rows: Ints) -> Bools:
        slot, unit, fine = self._srp_units(rows, _SRP_RSP, srp.IuType.RSP)
        flags = unit["flags"]
        response = unit["response_data_length"].astype(np.int64)
        response[flags & srp.RspFlags.RSPVALID == 0] = 0
        sense = unit["sense_data_length"].astype(np.int64)
        sense[flags & srp.RspFlags.SNSVALID == 0] = 0
        fine &= _SRP_RSP.itemsize - _SLOT.itemsize + response + sense <= slot["length"]
        at = self._message_at[rows]
        self.tag[rows] = unit["tag"]
        self.failed[rows] = (response >= 4) & (self.bytes.byte(at + _RSP_CODE_AT) > 0)
        self.status[rows] = unit["status"]
        for under, over, side in (
            (srp.RspFlags.DOUNDER, srp.RspFlags.DOOVER, unit["data_out_residual"]),
            (srp.RspFlags.DIUNDER, srp.RspFlags.DIOVER, unit["data_in_residual"]),
        ):
            residual = side.astype(np.int64) * ((flags & under) > 0)
            self.residual[rows] += np.where(flags & over, -side.astype(np.int64), residual)
        self.sense_at[rows] = at + _SRP_RSP.itemsize + response
        self.sense_length[rows] = sense
        return fine

    def _srp_units(
        self, rows: Ints, dtype: np.dtype[np.void], kind: srp.IuType
    ) -> tuple[Array, Array, Bools]:
        """Return slot headers, units, and whether they are whole units of a type."""
        every = self.bytes.gather(dtype, self._message_at[rows])
        slot, unit = every["slot"], every["unit"]
        room = self._message_length[rows] - _SLOT.itemsize
        fine = (slot["format"] == SlotFormat.SRP) & (slot["length"] <= room)
        fine &= (slot["length"] >= dtype.itemsize - _SLOT.itemsize) & (unit["type"] == kind)
        return slot, unit, fine

    def _vscsiif_requests(self, rows: Ints) -> Bools:
        unit = self.bytes.gather(_VSCSIIF, self._message_at[rows])
        fine: Bools = self._message_length[rows] == vscsiif.SLOT_SIZE
        fine &= unit["act"] == vscsiif.Act.CDB
        used = (unit["nr_segments"] & ~np.uint8(vscsiif.SG_GRANT))[:, None]
        segments = np.ascontiguousarray(unit["segments"]).view(_VSCSIIF_SEGMENT)
        lengths = segments["length"].reshape(len(rows), -1).astype(np.int64)
        length = (lengths * (np.arange(vscsiif.SEGMENTS) < used)).sum(axis=1)
        granted = fine & (unit["nr_segments"] & vscsiif.SG_GRANT > 0)
        if granted.any():
            entries, owner = self._descriptors(rows[granted], _VSCSIIF_SEGMENT)
            length[granted] = _sums(entries["length"], owner, int(granted.sum()))
        out = unit["direction"] == vscsiif.Direction.TO_DEVICE
        self.data_out[rows] = np.where(out, length, 0)
        self.data_in[rows] = np.where(out, 0, length)
        self.tag[rows] = unit["rqid"]
        channel, target = unit["channel"].astype(np.uint64), unit["id"].astype(np.uint64)
        self.unit[rows] = channel << np.uint64(32) | target << np.uint64(16) | unit["lun"]
        self.cdb_at[rows] = self._message_at[rows] + _VSCSIIF_CDB_AT
        self.cdb_length[rows] = np.minimum(unit["cmd_len"], vscsiif.MAX_COMMAND_SIZE)
        return fine

    def _vscsiif_answers(self, rows: Ints) -> Bools:
        unit = self.bytes.gather(_VSCSIIF_RSP, self._message_at[rows])
        length = self._message_length[rows]
        rslt = unit["rslt"]
        fine: Bools = (length == vscsiif.SLOT_SIZE) | (length == _VSCSIIF_RSP.itemsize)
        # Answers to task management, and there may be a task waiting for one.
        fine &= (rslt != vscsiif.RESET_SUCCESS) & (rslt != vscsiif.RESET_FAILED)
        self.tag[rows] = unit["rqid"]
        self.failed[rows] = rslt >> 16 & 0xFF != vscsiif.Host.OK
        self.status[rows] = rslt & 0xFF
        self.residual[rows] = unit["residual"]
        self.sense_at[rows] = self._message_at[rows] + _VSCSIIF_SENSE_AT
        self.sense_length[rows] = np.minimum(unit["sense_len"], vscsiif.SENSE_BUFFER_SIZE)
        return fine

    def _blkif_requests(self, rows: Ints) -> Bools:
        fine = np.zeros(len(rows), bool)
        operation = self.bytes.byte(self._message_at[rows])
        length = self._message_length[rows]
        for code, layout in _LAYOUTS.items():
            mine = (self._layout[rows] == code) & (length >= layout.slot_size)
            alone = mine & (length == layout.slot_size)  # no segment blocks behind it
            for these, decode in (
                (alone & (operation <= blkif.Operation.FLUSH_DISKCACHE), self._blkif_rw),
                (alone & (operation == blkif.Operation.DISCARD), self._blkif_discard),
                (mine & (operation == blkif.Operation.INDIRECT), self._blkif_indirect),
            ):
                if these.any():
                    decode(rows[these], layout)
                    fine |= these
        return fine

    def _blkif_rw(self, rows: Ints, layout: blkif.Layout) -> None:
        form = after_each_other(head=dtype_of(layout.formats.rw), segments=_SEGMENTS)
        every = self.bytes.gather(form, self._message_at[rows])
        head, segments = every["head"], every["segments"]
        used = np.arange(blkif.SEGMENTS) < head["nr_segments"][:, None]
        self._blkif(rows, head, head["operation"], (_sectors(segments) * used).sum(axis=1))

    def _blkif_discard(self, rows: Ints, layout: blkif.Layout) -> None:
        head = self.bytes.gather(dtype_of(layout.formats.discard), self._message_at[rows])
        self._blkif(rows, head, head["operation"], np.zeros(len(rows), np.int64))
        self.blocks[rows] = np.minimum(head["nr_sectors"], MAX_TIME_NS).astype(np.int64)

    def _blkif_indirect(self, rows: Ints, layout: blkif.Layout) -> None:
        head = self.bytes.gather(dtype_of(layout.formats.indirect), self._message_at[rows])
        entries, owner = self._descriptors(rows, _BLKIF_SEGMENT)
        self._blkif(rows, head, head["indirect_op"], _sums(_sectors(entries), owner, len(rows)))

    def _blkif(
        self, rows: Ints, head: Array, operation: npt.NDArray[np.uint8], sectors: Ints
    ) -> None:
        read = operation == blkif.Operation.READ
        length = sectors * blkif.SECTOR_SIZE
        self.tag[rows] = head["id"]
        self.block_operation[rows] = operation
        self.lba[rows] = head["sector_number"]
        flush = operation == blkif.Operation.FLUSH_DISKCACHE  # of the whole disk
        self.blocks[rows] = np.where(flush, _NONE, sectors)
        self.data_out[rows] = np.where(read, 0, length)
        self.data_in[rows] = np.where(read, length, 0)

    def _blkif_answers(self, rows: Ints) -> Bools:
        fine = np.zeros(len(rows), bool)
        length = self._message_length[rows]
        for code, layout in _LAYOUTS.items():
            form = dtype_of(layout.formats.response)
            these = (self._layout[rows] == code) & (length <= layout.slot_size)
            these &= length >= form.itemsize
            mine = rows[these]
            unit = self.bytes.gather(form, self._message_at[mine])
            self.tag[mine] = unit["id"]
            self.failed[mine] = unit["status"] != blkif.RspStatus.OKAY
            fine |= these
        return fine

    def _descriptors(self, rows: Ints, dtype: np.dtype[np.void]) -> tuple[Array, Ints]:
        """Return the entries of the descriptors behind messages, and whose each is."""
        counts = self._segments_length[rows] // dtype.itemsize
        return self.bytes.tables(dtype, self._segments_at[rows], counts)


def _descriptor_bytes(form: Array, entries: Array) -> Ints:
    table = np.where(form == srp.BufferFormat.INDIRECT, entries, 0).astype(np.int64)
    size: Ints = _DESCRIPTOR_SIZE[form] + table * _DESCRIPTOR_BYTES
    return size


def _sectors(segments: Array) -> Ints:
    sectors: Ints = segments["last_sect"].astype(np.int64) - segments["first_sect"] + 1
    return np.maximum(sectors, 0)


def _sums(values: Array, owner: Ints, count: int) -> Ints:
    """Return the sum of each owner's values; owners are in order."""
    total = np.concatenate([[0], np.cumsum(values, dtype=np.int64)])
    ends = np.searchsorted(owner, np.arange(count), "right")
    sums: Ints = np.diff(total[ends], prepend=0)
    return sums


_DECODERS = {
    Protocol.SRP: {
        Way.TO_TARGET: Messages._srp_requests,
        Way.TO_INITIATOR: Messages._srp_answers,
    },
    Protocol.VSCSIIF: {
        Way.TO_TARGET: Messages._vscsiif_requests,
        Way.TO_INITIATOR: Messages._vscsiif_answers,
    },
    Protocol.BLKIF: {
        Way.TO_TARGET: Messages._blkif_requests,
        Way.TO_INITIATOR: Messages._blkif_answers,
    },
}
