# SPDX-License-Identifier: MIT
"""iSCSI over TCP in pcapng: what any Wireshark shows and times without a plug-in.

Each channel becomes a connection to port 3260, with an interface of its name. Commands without a
CDB become the SCSI commands that do the same. Data that was captured is in the commands (as
immediate data) and in Data-In PDUs; what was not is nowhere, and no length claims otherwise.
"""

import heapq
from collections.abc import Iterator
from typing import IO

from vscsi.capture.commands import Event, Operation, Source
from vscsi.capture.sinks import Written
from vscsi.capture.sinks.iscsi_channel import MAX_U32, IscsiChannel
from vscsi.capture.sinks.messages import Message, messages
from vscsi.target.base import Function
from vscsi.wire import cdb as cdbs
from vscsi.wire import lun, pcapng
from vscsi.wire.iscsi import TaskFunction, TaskResponse
from vscsi.wire.network import LinkType
from vscsi.wire.parameters import build_unmap

NAME = "iSCSI over TCP in pcapng"
_LONGEST_CDB = 260
_FUNCTIONS = {
    Function.ABORT_TASK: TaskFunction.ABORT_TASK,
    Function.ABORT_TASK_SET: TaskFunction.ABORT_TASK_SET,
    Function.CLEAR_ACA: TaskFunction.CLEAR_ACA,
    Function.CLEAR_TASK_SET: TaskFunction.CLEAR_TASK_SET,
    Function.LOGICAL_UNIT_RESET: TaskFunction.LOGICAL_UNIT_RESET,
}
_RESPONSES = {response.name.replace("_", " "): response for response in TaskResponse}
_DIRECT = {Operation.READ: "READ(16)", Operation.WRITE: "WRITE(16)"}

_Managed = tuple[Event, TaskFunction, int, bool]
"""An event, what it is, its number, and whether this is the answer."""
_Asked = tuple[bytes, bytes, tuple[int, int]]
"""CDB, what there is of the data-out, bytes out and in."""


def write(source: Source, output: IO[bytes]) -> Written:
    """Write a source's commands and task management functions in the order of their times."""
    sink = _Sink(source, output)
    # The first is begun first: it reads the source to its end.
    happened: Iterator[tuple[int, Message | _Managed]] = heapq.merge(
        ((message.time_ns, message) for message in messages(source)),
        _managed(source),
        key=lambda each: each[0],
    )
    for time_ns, each in happened:
        if isinstance(each, Message):
            sink.message(max(0, time_ns), each)
        else:
            sink.management(max(0, time_ns), *each)
    sink.begin()
    note = ""
    if sink.converted:
        note = f"{sink.converted} commands without CDB are written as READ(16) and the like"
    return Written(sink.commands, sink.left_out, sink.why, note)


def _managed(source: Source) -> Iterator[tuple[int, _Managed]]:
    """Yield task management requests and answers in their order.

    Lazily: `source.events` is complete when the commands have been read.
    """
    parts: list[tuple[int, _Managed]] = []
    for number, event in enumerate(source.events):
        function = None if event.function is None else _FUNCTIONS.get(event.function)
        if function is None:
            continue
        parts.append((event.time_ns, (event, function, number, False)))
        if event.latency_ns is not None and event.outcome:
            parts.append((event.time_ns + event.latency_ns, (event, function, number, True)))
    parts.sort(key=lambda part: part[0])
    yield from parts


class _Sink:
    def __init__(self, source: Source, output: IO[bytes]) -> None:
        self.commands = 0
        self.left_out = 0
        self.why = ""
        self.converted = 0
        self._source = source
        self._output = output
        self._channels: dict[int, IscsiChannel] = {}
        self._luns: dict[int, bytes] = {}
        self._begun = False

    def begin(self) -> None:
        """Write what comes before the first frame, once: all channels are known by now."""
        if self._begun:
            return
        self._begun = True
        self._output.write(pcapng.section("vscsi capture convert"))
        for channel in self._source.channels:
            words = channel.protocol
            if words != "iscsi":
                words += ", converted to iSCSI"
            self._output.write(pcapng.interface(channel.name, words, LinkType.ETHERNET))

    def message(self, time_ns: int, message: Message) -> None:
        """Write a command, or its answer."""
        if not message.is_request:
            self._output.write(self._channel(message.channel, time_ns).answer(time_ns, message))
            return
        asked = self._asked(message)
        if isinstance(asked, str):
            self.left_out += 1
            self.why = self.why or asked
            return
        self.commands += 1
        self.converted += message.cdb is None
        channel = self._channel(message.channel, time_ns)
        self._output.write(channel.command(time_ns, message, self._lun(message.disk), *asked))

    def management(
        self, time_ns: int, event: Event, function: TaskFunction, number: int, answer: bool
    ) -> None:
        """Write a task management function, or its answer."""
        channel = self._channel(event.channel, time_ns)
        if answer:
            said = _RESPONSES.get(event.outcome, TaskResponse.FUNCTION_REJECTED)
            frames = channel.managed(time_ns, number, said)
        else:
            unit = bytes(8) if event.disk is None else self._lun(event.disk)
            frames = channel.management(time_ns, number, function, unit, event.managed_tag)
        self._output.write(frames)

    def _channel(self, number: int, time_ns: int) -> IscsiChannel:
        found = self._channels.get(number)
        if found is None:
            self.begin()
            found = self._channels[number] = IscsiChannel(number, time_ns)
            self._output.write(found.opened)
        return found

    def _lun(self, disk: int) -> bytes:
        """Return a disk's LUN; for one that has none, its number as one."""
        found = self._luns.get(disk)
        if found is None:
            found = self._luns[disk] = self._source.disks[disk].lun or lun.encode(disk)
        return found

    @staticmethod
    def _asked(message: Message) -> _Asked | str:
        """Return what a command asks for, or why that cannot be said."""
        lengths = message.data_out, message.data_in
        if max(lengths) > MAX_U32:
            return "it is about more than 4 GiB"
        sent = (message.data or b"")[: message.data_out]
        cdb, operation = message.cdb, message.operation
        if cdb is not None:
            if not 0 < len(cdb) <= _LONGEST_CDB:
                return f"a CDB of {len(cdb)} bytes"
            return cdb, sent, lengths
        if operation == Operation.FLUSH:
            return cdbs.build("SYNCHRONIZE CACHE(10)"), b"", (0, 0)
        address, blocks = message.lba, message.blocks
        if address is None or blocks is None or operation == Operation.OTHER:
            return "it has no CDB, and is no read, write, flush or unmap with an address"
        if operation == Operation.UNMAP:
            ranges = build_unmap([(address, blocks)])
            length = len(ranges)
            return cdbs.build("UNMAP", parameter_list_length=length), ranges, (length, 0)
        name = _DIRECT[Operation(operation)]
        return cdbs.build(name, lba=address, blocks=blocks, fua=message.fua), sent, lengths
