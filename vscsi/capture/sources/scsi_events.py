# SPDX-License-Identifier: MIT
"""Linux' `scsi` trace events as text: tracefs' trace and trace_pipe, trace-cmd report, perf script.

    fio-812 [001] 107.411: scsi_dispatch_cmd_start: host_no=2 channel=0 id=0 lun=0 data_sgl=1
        prot_sgl=0 prot_op=SCSI_PROT_NORMAL driver_tag=5 scheduler_tag=9 cmnd=(READ_10 lba=0
        txlen=8 protect=0 raw=28 00 00 00 00 00 00 00 08 00)             [all on one line]

Kernels before 5.18 have no tags there, and those before 6.3 no sense. An end is its command's by
disk, tag and CDB. The clock is mostly that since boot. How long a block is, and what was moved, is
not in the events: blocks of 512 bytes are assumed.
"""

import re
from collections.abc import Iterator
from typing import IO

import numpy as np
import pyarrow as pa

from vscsi.capture.commands import SECTOR_BYTES, Channel, Disk, Event, Fate, Operation
from vscsi.capture.sources.base import Reading
from vscsi.capture.sources.columns import MAX_NAMES, Column, Numbering, assemble, of_cdbs
from vscsi.capture.sources.joined import Joiner, Key, Kind
from vscsi.target.base import Status
from vscsi.wire.cdb import decode, describe, named
from vscsi.wire.errors import WireError
from vscsi.wire.opcodes import Direction

NAME = "Linux scsi trace events"
_MARK = b"scsi_dispatch_cmd_"
_COMMAND = re.compile(  # begins with letters, not with the time: these are found fast
    rb"scsi_dispatch_cmd_(start|done|error|timeout): +"
    rb"(host_no=\d{1,9} channel=\d{1,9} id=\d{1,9} lun=\d{1,19}) "
    rb"data_sgl=\d{1,9} prot_sgl=\d{1,9} prot_op=\S{1,40} "
    rb"(?:driver_tag=(-?\d{1,9}) scheduler_tag=-?\d{1,9} )?"
    rb"cmnd=\([^()\n]{1,200} raw=([0-9a-f]{2}(?: [0-9a-f]{2}){0,259})\)([^\n]*)"
)
_WAKEUP = re.compile(rb"scsi_eh_wakeup: +host_no=(\d{1,9})")
_TIME = re.compile(rb"(?:^|\s)(\d{1,9})\.(\d{3,9}): +(?:scsi:)?$")
_TIME_BYTES = 32
_RESULT_BYTES = 256
_LOST = re.compile(rb"\[(?:LOST )?(\d{1,18}) EVENTS(?: DROPPED)?\]")
_RESULT = re.compile(
    rb" result=\(driver=\S+ host=(\S+) message=\S+ status=([^)\s]+)\)"
    rb"(?: sense=\(key=(0x[0-9a-f]{1,2}|0) asc=(0x[0-9a-f]{1,2}|0) ascq=(0x[0-9a-f]{1,2}|0)\))?"
)
_KINDS = {
    b"start": Kind.START,
    b"error": Kind.WITHDRAWN,
    b"done": Kind.END,
    b"timeout": Kind.END,
}
_STATUSES = {f"SAM_STAT_{status.name}".encode(): int(status) for status in Status}
_OK = (b"DID_OK", b"0x0")
"""trace-cmd has numbers for names."""
_COLUMNS = ("time_ns", "channel", "disk", "tag", "cdb")
_OTHER_WRITES = tuple(
    named(name).opcode for name in ("WRITE SAME(10)", "WRITE SAME(16)", "COMPARE AND WRITE")
)
"""Their buffers are not as long as their ranges."""
_ANSWERS = ("fate", "status", "sense_key", "asc", "ascq")
Answer = tuple[int, int | None, int | None, int | None, int | None]
"""Fate, status, sense key, ASC and ASCQ."""
_TIMED_OUT: Answer = (Fate.ABORTED, None, None, None, None)


def recognise(head: bytes) -> bool:
    """Whether there is an event of a command in the first lines."""
    found = _COMMAND.search(head)
    return found is not None and _time_ns(head, found.start()) is not None


def read(stream: IO[bytes]) -> "ScsiEvents":
    """Return the source."""
    return ScsiEvents(stream)


class ScsiEvents(Reading):
    """Commands as the SCSI midlayer gave them to a host's driver; a channel is a host."""

    def __init__(self, stream: IO[bytes]) -> None:
        super().__init__(NAME, stream)
        self._joiner = Joiner()
        self._hosts = Numbering()
        self._disks = Numbering()
        self._others = 0
        # What one event in two repeats word by word.
        self._addresses: dict[bytes, tuple[int, int]] = {}
        self._results: dict[bytes, Answer] = {}

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        for block in self.line_blocks():
            yield from self._commands(block)
        yield from self._joiner.rest()
        if self._others:
            self.troubles.notes.append(f"{self._others} lines are no scsi events")
        self.troubles.notes += self._joiner.notes("were refused by the driver and sent again")

    def _commands(self, block: bytes) -> Iterator[pa.RecordBatch]:
        """Join the events in some lines."""
        kinds: list[int] = []
        keys: list[Key] = []
        starts: list[tuple[int, int, int, int | None, bytes]] = []
        answers: list[Answer] = []
        end_ns: list[int] = []
        found = 0
        losses = [(loss.start(), int(loss[1])) for loss in _LOST.finditer(block)][::-1]
        self.troubles.dropped += sum(count for _, count in losses)
        lost_lines = len(losses)
        for match in _COMMAND.finditer(block):
            while losses and losses[-1][0] < match.start():
                losses.pop()
                kinds.append(Kind.LOSS)
                keys.append(())
            time_ns = _time_ns(block, match.start())
            if time_ns is None:
                continue
            found += 1
            name, address, tag, raw, rest = match.groups()
            channel, disk = self._addresses.get(address) or self._address(address)
            if disk < 0:
                self.skip(f"more disks than one trace has: {address.decode()}")
                continue
            cdb = bytes.fromhex(raw.decode())
            tagged = tag and tag != b"-1"
            kind = _KINDS[name]
            if kind is Kind.START:
                # A tag is not used twice at one time.
                kind = Kind.RESTART if tagged else Kind.START
                starts.append((time_ns, channel, disk, int(tag) if tagged else None, cdb))
            elif kind is Kind.END:
                end_ns.append(time_ns)
                if name == b"done":
                    answers.append(self._results.get(rest) or self._result(rest))
                else:
                    answers.append(_TIMED_OUT)
                    words = f"timed out: {describe(cdb)}"
                    self.happened(Event(time_ns, channel, words, disk=disk))
            kinds.append(kind)
            keys.append((disk, tag, cdb))
        kinds += [Kind.LOSS] * len(losses)
        keys += [()] * len(losses)
        self._count(block, found, lost_lines)
        columns: dict[str, Column] = {
            name: [row[at] for row in starts] for at, name in enumerate(_COLUMNS)
        }
        cdbs = pa.array(columns["cdb"], pa.binary())
        columns |= of_cdbs(cdbs)
        columns |= _lengths(cdbs, columns)
        ends: dict[str, Column] = {
            name: pa.array([answer[at] for answer in answers], pa.uint8())
            for at, name in enumerate(_ANSWERS)
        }
        rows = assemble(len(starts), columns)
        yield from self._joiner.add(kinds, keys, rows, ends, np.array(end_ns, np.int64))

    def _count(self, block: bytes, found: int, losses: int) -> None:
        """Look at the lines that are no events of commands."""
        damaged = block.count(_MARK) - found
        if damaged > 0:
            lines = (line for line in block.split(b"\n") if _MARK in line)
            first = next((line for line in lines if not recognise(line)), b"")
            start = first.find(_MARK)
            words = first[start : start + 100]
            self.skip(f"not an event of a command: {words!r}", damaged)
        woken = 0
        for match in _WAKEUP.finditer(block):
            woken += 1
            time_ns = _time_ns(block, match.start())
            if time_ns is not None and (channel := self._channel(int(match[1]))) >= 0:
                self.happened(Event(time_ns, channel, "error handler woken"))
        lines_in_all = block.count(b"\n") + (not block.endswith(b"\n") and block != b"")
        headers = block.count(b"\n#") + block.startswith((b"#", b"cpus="))
        self._others += max(0, lines_in_all - headers - found - losses - woken - max(0, damaged))

    def _channel(self, host: int) -> int:
        channel, new = self._hosts.number(host)
        if new:
            self.channels.append(Channel(f"host {host}", "scsi"))
        return channel

    def _address(self, words: bytes) -> tuple[int, int]:
        """Return channel and disk of "host_no=2 channel=0 id=0 lun=0"; disk -1: too many."""
        host, bus, target, lun = (int(part.partition(b"=")[2]) for part in words.split())
        channel = self._channel(host)
        disk, new = self._disks.number((host, bus, target, lun)) if channel >= 0 else (-1, False)
        if new:
            # Linux keeps a LUN with its first two bytes as the lowest.
            lun_words = (lun & 0xFFFF).to_bytes(2, "big") + (lun >> 16 & 0xFFFF).to_bytes(2, "big")
            self.disks.append(Disk(f"{host}:{bus}:{target}:{lun}", lun_words.ljust(8, b"\0")))
        if len(self._addresses) < MAX_NAMES:
            self._addresses[words] = channel, disk
        return channel, disk

    def _result(self, words: bytes) -> Answer:
        """Return what the end of a line says of the end of a command."""
        result = _RESULT.match(words)
        if result is None:
            return Fate.ANSWERED, None, None, None, None
        host, status, *sense = result.groups()
        fate = Fate.ANSWERED if host in _OK else Fate.FAILED
        code = _STATUSES.get(status)
        if code is None and re.fullmatch(rb"0x[0-9a-f]{1,2}", status):
            code = int(status, 16)
        answer: Answer = fate, code, None, None, None
        if sense[0] is not None and code == Status.CHECK_CONDITION:
            key, asc, ascq = (int(part, 16) for part in sense)
            answer = fate, code, key & 0x0F, asc, ascq
        if len(self._results) < MAX_NAMES and len(words) < _RESULT_BYTES:
            self._results[words] = answer
        return answer


def _time_ns(block: bytes, start: int) -> int | None:
    """Return the time before an event's name, or None if there is none."""
    time = _TIME.search(block, max(0, start - _TIME_BYTES), start)
    return None if time is None else int(time[1] + time[2].ljust(9, b"0"))


def _lengths(cdbs: pa.Array, columns: dict[str, Column]) -> dict[str, Column]:
    """Return data_out and data_in as the CDBs ask for them."""
    operation = np.asarray(columns["operation"])
    opcode = pa.array(columns["opcode"]).fill_null(0).to_numpy()
    blocks = pa.array(columns["blocks"]).fill_null(0).to_numpy().astype(np.int64)
    data_in = np.where(operation == Operation.READ, blocks * SECTOR_BYTES, 0)
    data_out = np.where(operation == Operation.WRITE, blocks * SECTOR_BYTES, 0)
    plain = (operation == Operation.READ) | (operation == Operation.WRITE)
    for row in np.flatnonzero(~plain | np.isin(opcode, _OTHER_WRITES)):
        try:
            command = decode(cdbs[int(row)].as_py())
        except WireError:
            continue
        if command.row.name.startswith("WRITE SAME"):
            data_out[row] = 0 if command.field("ndob") else SECTOR_BYTES
        elif command.row.name == "COMPARE AND WRITE":
            data_out[row] = 2 * command.blocks * SECTOR_BYTES
        elif command.row.direction is Direction.IN:
            data_in[row] = command.allocation_length
        elif command.row.direction is Direction.OUT:
            data_out[row] = command.parameter_list_length
    return {"data_in": data_in, "data_out": data_out}
