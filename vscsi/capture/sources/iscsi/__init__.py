# SPDX-License-Identifier: MIT
"""iSCSI in captures of a network: pcap or pcapng, on any port, from any moment on.

    frames       the file's frames
    packets      the TCP segments in them
    streams      one way of a connection, its segments in their order
    framing      the PDUs in it
    connections  what each means (login keys: keys)
    sessions     commands that wait for answers
    rows         those that ended, as batches

What is iSCSI is known by its content. Memory is bounded everywhere: connections (the oldest are
forgotten), segments that wait, commands that wait, and of each command's data the first bytes.
"""

from collections.abc import Iterator
from typing import IO

import pyarrow as pa

from vscsi.capture.commands import BATCH_ROWS
from vscsi.capture.sources.base import Reading
from vscsi.capture.sources.iscsi import rows
from vscsi.capture.sources.iscsi.connections import Connection
from vscsi.capture.sources.iscsi.frames import frames, recognise
from vscsi.capture.sources.iscsi.packets import Packets, address, reverse
from vscsi.capture.sources.iscsi.sessions import Ledger
from vscsi.capture.sources.iscsi.streams import Stream
from vscsi.wire.network import TcpFlags

__all__ = ["NAME", "IscsiSource", "read", "recognise"]

NAME = "iSCSI in a network capture"
MAX_CONNECTIONS = 1 << 12
"""TCP connections at a time, whatever they carry."""
_KEPT = 16
"""How many connections with iSCSI are passed over when one has to be forgotten."""
_FULL_ROWS = BATCH_ROWS // 2
_FULL_BYTES = 1 << 24
_ACK = int(TcpFlags.ACK)
_RARE = int(TcpFlags.SYN | TcpFlags.FIN | TcpFlags.RST)


def read(stream: IO[bytes]) -> "IscsiSource":
    """Return the source for a file."""
    return IscsiSource(stream)


class IscsiSource(Reading):
    """A `vscsi.capture.commands.Source`.

    Its channels are connections with iSCSI, its disks logical units as each session sees them;
    events are logins, logouts, task management, rejects and asynchronous messages.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        super().__init__(NAME, stream)
        self._ledger = Ledger(self)
        self._streams: dict[bytes, Stream] = {}
        self._connections: dict[bytes, Connection] = {}
        """By the ends of the connection's first stream."""
        self._segments = 0
        self._gaps = 0
        self._gap_bytes = 0

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        packets = Packets()
        ledger = self._ledger
        for time_ns, link, data, start, end, _ in frames(self):
            segment = packets.segment(link, data, start, end)
            if segment is None:
                continue
            ends, sequence, acknowledgment, flags, at, stop, missing = segment
            stream = self._streams.get(ends)
            if flags & _RARE:
                self._begin_or_end(ends, sequence, flags, stream, at, stop, time_ns, data, missing)
            else:
                if stream is None:
                    if at == stop:
                        continue
                    stream = self._open(ends)
                if flags & _ACK and stream.other.waiting:
                    stream.other.acknowledged(acknowledgment)
                if at < stop or missing:
                    self._segments += 1
                    stream.take(sequence, data, at, stop, missing, time_ns)
            if len(ledger.rows) >= _FULL_ROWS or ledger.rows_data >= _FULL_BYTES:
                yield from self._batches()
        for key in list(self._connections):
            self._forget(key, close=False)
        ledger.rest()
        yield from self._batches()
        self._say(packets)

    def _batches(self) -> Iterator[pa.RecordBatch]:
        ledger = self._ledger
        ended, ledger.rows, ledger.rows_data = ledger.rows, [], 0
        for at in range(0, len(ended), BATCH_ROWS):
            yield rows.batch(ended[at : at + BATCH_ROWS], self.disks)

    def _begin_or_end(
        self,
        ends: bytes,
        sequence: int,
        flags: int,
        stream: Stream | None,
        at: int,
        stop: int,
        time_ns: int,
        data: bytes,
        missing: int,
    ) -> None:
        """Take a segment with SYN, FIN or RST."""
        if flags & TcpFlags.SYN:
            if stream is None or (not flags & _ACK and not stream.begun_by(sequence)):
                if stream is not None:
                    self._forget(ends, close=True)
                stream = self._open(ends)
            stream.begin(sequence)
            return
        if stream is None:
            return
        if at < stop:
            stream.take(sequence, data, at, stop, missing, time_ns)
        stream.finished = True
        if flags & TcpFlags.RST or stream.other.finished:
            self._forget(ends, close=True)

    def _open(self, ends: bytes) -> Stream:
        """Return a new connection's stream from the first of its ends."""
        if len(self._connections) >= MAX_CONNECTIONS:
            self._make_room()
        back = reverse(ends)
        connection = Connection(self._ledger, (address(ends), address(back)))
        one, other = (Stream(framer) for framer in connection.framers)
        one.other, other.other = other, one
        self._streams[ends], self._streams[back] = one, other
        self._connections[ends] = connection
        return one

    def _make_room(self) -> None:
        """Forget a connection: the oldest without iSCSI, if it is among the oldest."""
        for _ in range(_KEPT):
            key, connection = next(iter(self._connections.items()))
            if not connection.used:
                break
            self._connections[key] = self._connections.pop(key)
        self._forget(next(iter(self._connections)), close=True)

    def _forget(self, ends: bytes, *, close: bool) -> None:
        """Let go of a connection. close: it ended, so that no answers will come."""
        back = reverse(ends)
        connection = self._connections.pop(ends, None) or self._connections.pop(back, None)
        if connection is None:
            return
        for key in (ends, back):
            stream = self._streams.pop(key, None)
            if stream is not None:
                stream.end()
        self._gaps += connection.gaps
        self._gap_bytes += connection.gap_bytes
        self.skip("bytes that are no PDU where one should begin", connection.strays)
        if close:
            connection.close()

    def _say(self, packets: Packets) -> None:
        """Say what was missing or left out."""
        ledger = self._ledger
        self.skip(
            "a command on more connections, or to more logical units, than are kept", ledger.refused
        )
        if not self.channels:
            self.broke(f"no iSCSI in {self._segments} TCP segments")
        notes = (
            (self._gaps, f"{self._gaps} gaps in TCP connections, {self._gap_bytes} bytes"),
            (packets.fragments, f"{packets.fragments} IP fragments, which are not put together"),
            (packets.cut, f"{packets.cut} packets cut off within their headers"),
            (ledger.unmatched, f"{ledger.unmatched} answers to commands that are not in the file"),
            (ledger.stepped, f"{ledger.stepped} answers before their commands: the clock stepped"),
        )
        self.troubles.notes += [words for count, words in notes if count]
