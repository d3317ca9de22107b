# SPDX-License-Identifier: MIT
"""A TCP connection in a pcapng file: bytes one end sends as Ethernet frames with IPv4 and TCP."""

import struct
from collections.abc import Iterator

from vscsi.wire.network import IP_TCP, Ethernet, EtherType, Ipv4, Tcp, TcpFlags
from vscsi.wire.pcapng import LITTLE, BlockType

MAX_SEGMENT = 65_000
"""Bytes: below what fits one IP packet."""
_MASK = 0xFFFF_FFFF
_MAC = b"\x02\0\0\0\0"  # locally administered
_BLOCK = struct.Struct(LITTLE.head.order + LITTLE.head.code + LITTLE.packet.code)
_LENGTH = struct.Struct("<I")
_PSEUDO = struct.Struct(">4s4sHH")
_HEADERS = Ethernet.sizeof() + Ipv4.sizeof() + Tcp.sizeof()
_ETHERNET, _IP, _TCP = (struct.Struct(form.order + form.code) for form in (Ethernet, Ipv4, Tcp))
_IP_CHECKSUM, _TCP_CHECKSUM = 10, 16
"""Where the checksums are in their headers."""


class Peer:
    """One end of a connection."""

    def __init__(self, number: int, address: bytes, port: int) -> None:
        """number: tells the ends' hardware addresses apart, one byte; address: 4 bytes."""
        self.hardware = _MAC + bytes([number])
        self.address = address
        self.port = port
        self.sequence = 0


class Wire:
    """The connection: gives the blocks of a pcapng file for what its ends send."""

    def __init__(self, interface: int, one: Peer, other: Peer) -> None:
        """interface: the number of the pcapng interface."""
        self._interface = interface
        self._one = one
        self._other = other

    def opened(self, time_ns: int) -> bytes:
        """Return the frames of the connection's beginning."""
        one, other = self._one, self._other
        syn = self._frame(time_ns, one, other, b"", TcpFlags.SYN)
        one.sequence += 1
        accepted = self._frame(time_ns, other, one, b"", TcpFlags.SYN | TcpFlags.ACK)
        other.sequence += 1
        return syn + accepted + self._frame(time_ns, one, other, b"", TcpFlags.ACK)

    def sent(self, time_ns: int, data: bytes, *, back: bool = False) -> bytes:
        """Return the frames of bytes from the first end; back: from the other one."""
        sender, receiver = (self._other, self._one) if back else (self._one, self._other)
        return b"".join(self._segments(time_ns, sender, receiver, data))

    def _segments(self, time_ns: int, sender: Peer, receiver: Peer, data: bytes) -> Iterator[bytes]:
        for at in range(0, len(data), MAX_SEGMENT):
            part = data[at : at + MAX_SEGMENT]
            yield self._frame(time_ns, sender, receiver, part, TcpFlags.PSH | TcpFlags.ACK)
            sender.sequence = (sender.sequence + len(part)) & _MASK

    def _frame(self, time_ns: int, sender: Peer, receiver: Peer, data: bytes, flags: int) -> bytes:
        size = _TCP.size + len(data)
        ip = bytearray(
            _IP.pack(
                0x45, 0, _IP.size + size, 0, 0, 64, IP_TCP, 0, sender.address, receiver.address
            )
        )
        ip[_IP_CHECKSUM : _IP_CHECKSUM + 2] = _checksum(ip)
        acknowledged = receiver.sequence if flags & TcpFlags.ACK else 0
        tcp = bytearray(
            _TCP.pack(
                sender.port, receiver.port, sender.sequence, acknowledged, 5 << 4, flags, 0xFFFF,
                0, 0,
            )
        )  # fmt: skip
        pseudo = _PSEUDO.pack(sender.address, receiver.address, IP_TCP, size)
        tcp[_TCP_CHECKSUM : _TCP_CHECKSUM + 2] = _checksum(pseudo + tcp + data)
        ethernet = _ETHERNET.pack(receiver.hardware, sender.hardware, EtherType.IPV4)
        length = _HEADERS + len(data)
        padding = -length % 4
        whole = _BLOCK.size + length + padding + 4
        head = _BLOCK.pack(
            BlockType.ENHANCED_PACKET, whole, self._interface, time_ns >> 32, time_ns & _MASK,
            length, length,
        )  # fmt: skip
        return b"".join((head, ethernet, ip, tcp, data, bytes(padding), _LENGTH.pack(whole)))


def _checksum(data: bytes | bytearray) -> bytes:
    """Return the Internet checksum (RFC 1071)."""
    padded = bytes(data) + bytes(len(data) % 2)
    total = sum(struct.unpack(f">{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return int(~total & 0xFFFF).to_bytes(2, "big")
