# SPDX-License-Identifier: MIT
"""A channel's commands as iSCSI PDUs on a connection of their own, with the tags and numbers."""

import struct

from vscsi.capture.commands import Fate
from vscsi.capture.exchange import MAX_OPEN
from vscsi.capture.sinks.connection import Peer, Wire
from vscsi.capture.sinks.messages import Message
from vscsi.target.base import Attribute
from vscsi.wire import iscsi
from vscsi.wire.formats import Packed, build
from vscsi.wire.iscsi import Flags, Opcode, TaskAttribute, TaskFunction, TaskResponse

MAX_DATA = 1 << 20
"""Bytes of captured data that a PDU takes along."""
MAX_U32 = 0xFFFF_FFFF
_TARGET = bytes((10, 255, 255, 254))
_FIRST_PORT, _PORTS = 49152, 16384
_WINDOW = 64
_CDB_BYTES = 16
_ATTRIBUTES: dict[int | None, TaskAttribute] = {
    None: TaskAttribute.UNTAGGED,
    Attribute.SIMPLE: TaskAttribute.SIMPLE,
    Attribute.ORDERED: TaskAttribute.ORDERED,
    Attribute.HEAD_OF_QUEUE: TaskAttribute.HEAD_OF_QUEUE,
    Attribute.ACA: TaskAttribute.ACA,
}


def _packer(form: Packed) -> "struct.Struct":
    return struct.Struct(form.order + form.code)


_COMMAND, _RESPONSE, _DATA_IN = map(_packer, (iscsi.ScsiCommand, iscsi.ScsiResponse, iscsi.DataIn))


class IscsiChannel:
    """Gives the blocks of a pcapng file for what happens on a channel.

    number: the channel's, and its interface's. `opened` has the beginning of the connection.
    """

    def __init__(self, number: int, time_ns: int) -> None:
        host = number + 1
        address = bytes((10, host >> 16 & 0x7F, host >> 8 & 0xFF, host & 0xFF))
        initiator = Peer(1, address, _FIRST_PORT + number % _PORTS)
        self._wire = Wire(number, initiator, Peer(2, _TARGET, iscsi.PORT))
        self.opened = self._wire.opened(time_ns)
        self._command_number = 0
        self._status_number = 0
        self._tags: dict[int, int] = {}
        """Of what waits for an answer, by its number: of a command, or below 0 of an event."""
        self._used: set[int] = set()
        self._next = 0

    def command(
        self,
        time_ns: int,
        message: Message,
        lun: bytes,
        cdb: bytes,
        sent: bytes,
        lengths: tuple[int, int],
    ) -> bytes:
        """Return a command, with the first bytes of its data-out; lengths: bytes out and in."""
        data_out, data_in = lengths
        sent = sent[:MAX_DATA]
        flags = Flags.FINAL | _ATTRIBUTES.get(message.attribute, TaskAttribute.UNTAGGED)
        if data_out:
            flags |= Flags.WRITE
        if data_in:
            flags |= Flags.READ
        ahs = _additional(cdb, data_in if data_out else 0)
        tag = self._tag(message.tag)
        if message.answered:
            self._wait(message.number, tag)
        pdu = _COMMAND.pack(
            Opcode.SCSI_COMMAND, flags, bytes(2), len(ahs) // 4 << 24 | len(sent), lun, tag,
            data_out or data_in, self._command_number, self._expected, cdb[:_CDB_BYTES],
        )  # fmt: skip
        self._command_number = (self._command_number + 1) & MAX_U32
        return self._wire.sent(time_ns, pdu + ahs + _padded(sent))

    def answer(self, time_ns: int, message: Message) -> bytes:
        """Return the answer to a command, if that waits for one."""
        tag = self._answered(message.number)
        if tag is None:
            return b""
        frames = b""
        data = (message.data or b"")[message.data_out :][: min(message.data_in, MAX_DATA)]
        if data:
            pdu = _DATA_IN.pack(
                Opcode.DATA_IN, Flags.FINAL, bytes(1), 0, len(data), bytes(8), tag,
                iscsi.NO_TAG, 0, self._command_number, self._window, 0, 0, 0,
            )  # fmt: skip
            # In a frame of its own: Wireshark may stumble over it, and would miss the status.
            frames = self._wire.sent(time_ns, pdu + _padded(data), back=True)
        self._status_number = (self._status_number + 1) & MAX_U32
        residual = max(-MAX_U32, min(message.residual or 0, MAX_U32))
        flags = Flags.FINAL
        if residual:
            flags |= Flags.UNDERFLOW if residual > 0 else Flags.OVERFLOW
        sense = (message.sense or b"")[:0xFFFF]
        said = len(sense).to_bytes(2, "big") + sense if sense else b""
        failed = message.fate == Fate.FAILED
        pdu = _RESPONSE.pack(
            Opcode.SCSI_RESPONSE, flags,
            iscsi.Response.TARGET_FAILURE if failed else iscsi.Response.COMPLETED,
            0 if failed else message.status or 0, len(said), bytes(8), tag, 0,
            self._status_number, self._command_number, self._window, 0, 0, abs(residual),
        )  # fmt: skip
        return frames + self._wire.sent(time_ns, pdu + _padded(said), back=True)

    def management(
        self,
        time_ns: int,
        number: int,
        function: TaskFunction,
        lun: bytes,
        managed_tag: int | None,
    ) -> bytes:
        """Return a task management request. number: what its answer is known by."""
        tag = self._tag(None)
        self._wait(-1 - number, tag)
        fields = {
            "opcode": Opcode.TASK_MANAGEMENT | iscsi.IMMEDIATE,
            "function": Flags.FINAL | function,
            "lun": lun,
            "itt": tag,
            "referenced_tag": iscsi.NO_TAG if managed_tag is None else managed_tag & MAX_U32,
            "cmd_sn": self._command_number,
            "exp_stat_sn": self._expected,
        }
        return self._wire.sent(time_ns, build(iscsi.TaskManagement, fields))

    def managed(self, time_ns: int, number: int, response: TaskResponse) -> bytes:
        """Return the answer to a task management request, if that waits for one."""
        tag = self._answered(-1 - number)
        if tag is None:
            return b""
        self._status_number = (self._status_number + 1) & MAX_U32
        fields = {
            "flags": Flags.FINAL,
            "response": response,
            "itt": tag,
            "stat_sn": self._status_number,
            "exp_cmd_sn": self._command_number,
            "max_cmd_sn": self._window,
        }
        pdu = build(iscsi.TaskManagementResponse, fields)
        return self._wire.sent(time_ns, pdu, back=True)

    @property
    def _expected(self) -> int:
        """Return the next status number."""
        return (self._status_number + 1) & MAX_U32

    @property
    def _window(self) -> int:
        """Return the highest command number that may be sent."""
        return (self._command_number + _WINDOW) & MAX_U32

    def _tag(self, wanted: int | None) -> int:
        """Return an Initiator Task Tag that is free: the wanted one's lower half, if that is."""
        tag = iscsi.NO_TAG if wanted is None else wanted & MAX_U32
        while tag == iscsi.NO_TAG or tag in self._used:
            tag, self._next = self._next, (self._next + 1) & MAX_U32
        return tag

    def _wait(self, number: int, tag: int) -> None:
        """Have something wait for its answer, if there is room."""
        if len(self._tags) < MAX_OPEN:
            self._tags[number] = tag
            self._used.add(tag)

    def _answered(self, number: int) -> int | None:
        """Return the tag of what waited."""
        tag = self._tags.pop(number, None)
        if tag is not None:
            self._used.discard(tag)
        return tag


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _additional(cdb: bytes, read: int) -> bytes:
    """Return the additional header segments of a long CDB and of bidirectional data."""
    segments = b""
    if len(cdb) > _CDB_BYTES:
        rest = cdb[_CDB_BYTES:]
        segments = _padded(build(iscsi.ExtendedCdb, {"length": len(rest) + 1, "cdb": rest}))
    if read:
        segments += build(iscsi.ReadLength, {"read_length": read})
    return segments
