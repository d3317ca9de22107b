# SPDX-License-Identifier: MIT
"""TCP segments in captured frames."""

import socket
import struct

from vscsi.capture.sources.iscsi.fields import unpacker
from vscsi.wire.network import (
    FRAGMENTED,
    IP_TCP,
    IPV6_EXTENSIONS,
    IPV6_FRAGMENT,
    Ethernet,
    EtherType,
    Ipv4,
    Ipv6,
    LinkType,
    LinuxCooked,
    LinuxCooked2,
    Tcp,
    Vlan,
)

Segment = tuple[bytes, int, int, int, int, int, int]
"""Both ends, sequence number, acknowledgment number, flags, start and end of the captured payload
in the frame's buffer, and how many bytes of it were not captured."""

_IPV4 = Ipv4.sizeof()
_IPV6 = Ipv6.sizeof()
_TCP = Tcp.sizeof()
_PORTS = 4
_VLAN = Vlan.sizeof()
_both = unpacker(
    "version_length total_length fragment protocol sequence acknowledgment data_offset flags",
    Ipv4,
    Tcp,
)
_tcp = unpacker("sequence acknowledgment data_offset flags", Tcp)
_ipv6 = unpacker("payload_length next_header", Ipv6)
_u16 = struct.Struct(">H").unpack_from
_TYPE_AT = Ethernet.sizeof() - 2
_PLAIN = EtherType.IPV4.to_bytes(2, "big")
_VLANS = frozenset({EtherType.VLAN, EtherType.SERVICE_VLAN, EtherType.VLAN_OLD})
_MAX_VLANS = 4
_LINKS: dict[int, tuple[int, int]] = {
    # Bytes up to what says what follows, and of the whole header.
    LinkType.ETHERNET: (Ethernet.sizeof() - 2, Ethernet.sizeof()),
    LinkType.LINUX_SLL: (LinuxCooked.sizeof() - 2, LinuxCooked.sizeof()),
    LinkType.LINUX_SLL2: (0, LinuxCooked2.sizeof()),
}
_HEADLESS: dict[int, int] = {
    LinkType.RAW: 0,
    LinkType.IPV4: 0,
    LinkType.IPV6: 0,
    # An address family of 4 bytes, in an order and with values of the capturing system's.
    LinkType.NULL: 4,
    LinkType.LOOP: 4,
}


class Packets:
    """Finds the TCP segments, and counts what cannot be used."""

    def __init__(self) -> None:
        self.fragments = 0
        """IP fragments: they are not put together."""
        self.cut = 0
        """Packets that are cut off within their headers."""

    def segment(self, link: int, data: bytes, start: int, end: int) -> Segment | None:
        """Return the segment in data[start:end], or None."""
        type_at = start + _TYPE_AT
        if link == LinkType.ETHERNET and data[type_at : type_at + 2] == _PLAIN:
            ip = type_at + 2
        else:
            ip = _network(link, data, start, end)
        if ip < 0:
            return None
        if end - ip < _IPV4 + _TCP:
            self.cut += ip < end and data[ip] >> 4 in (4, 6)
            return None
        version_length, total, fragment, protocol, sequence, acknowledgment, offset, flags = _both(
            data, ip
        )
        if version_length == 0x45:
            if protocol != IP_TCP:
                return None
            if fragment & FRAGMENTED:
                self.fragments += 1
                return None
            tcp = ip + _IPV4
            ends = data[ip + 12 : tcp + _PORTS]
            payload = tcp + (offset >> 4 << 2)
            # Segments that a network card is yet to take apart have no length.
            stop = ip + total if total else end
            if stop <= end:
                if not tcp + _TCP <= payload <= stop:
                    return None
                return ends, sequence, acknowledgment, flags, payload, stop, 0
            return _cut(ends, sequence, acknowledgment, flags, payload, stop, end)
        if version_length >> 4 == 4:
            return self._ipv4_with_options(data, ip, end)
        return self._ipv6(data, ip, end) if version_length >> 4 == 6 else None

    def _ipv4_with_options(self, data: bytes, ip: int, end: int) -> Segment | None:
        version_length, total, fragment, protocol, *_ = _both(data, ip)
        header = (version_length & 0xF) << 2
        if header < _IPV4 or protocol != IP_TCP:
            return None
        if fragment & FRAGMENTED:
            self.fragments += 1
            return None
        stop = ip + total if total else end
        return self._transport(data, data[ip + 12 : ip + _IPV4], ip + header, stop, end)

    def _ipv6(self, data: bytes, ip: int, end: int) -> Segment | None:
        if end - ip < _IPV6 + _TCP:
            self.cut += 1
            return None
        length, following = _ipv6(data, ip)
        at = ip + _IPV6
        stop = at + length if length else end
        while following in IPV6_EXTENSIONS and at + 2 <= end:
            following, words = data[at], data[at + 1]
            at += 8 + 8 * words
        if following == IPV6_FRAGMENT:
            self.fragments += 1
        if following != IP_TCP:
            return None
        return self._transport(data, data[ip + 8 : ip + _IPV6], at, stop, end)

    def _transport(
        self, data: bytes, hosts: bytes, tcp: int, stop: int, end: int
    ) -> Segment | None:
        if tcp + _TCP > end:
            self.cut += 1
            return None
        sequence, acknowledgment, offset, flags = _tcp(data, tcp)
        payload = tcp + (offset >> 4 << 2)
        if payload < tcp + _TCP:
            return None
        ends = hosts + data[tcp : tcp + _PORTS]
        return _cut(ends, sequence, acknowledgment, flags, payload, stop, end)


def _cut(
    ends: bytes,
    sequence: int,
    acknowledgment: int,
    flags: int,
    payload: int,
    stop: int,
    end: int,
) -> Segment | None:
    """Return a segment of which only what is before `end` was captured."""
    if payload > stop:
        return None
    captured = max(payload, min(stop, end))
    return (
        ends,
        sequence,
        acknowledgment,
        flags,
        min(payload, end),
        min(captured, end),
        stop - captured,
    )


def _network(link: int, data: bytes, start: int, end: int) -> int:
    """Return where the IP header begins; -1 where there is none."""
    at = _LINKS.get(link)
    if at is None:
        skipped = _HEADLESS.get(link, -1)
        return start + skipped if skipped >= 0 else -1
    kind, ip = start + at[0], start + at[1]
    if ip > end:
        return -1
    (ether_type,) = _u16(data, kind)
    for _ in range(_MAX_VLANS):
        if ether_type not in _VLANS or ip + _VLAN > end:
            break
        (ether_type,) = _u16(data, ip + 2)
        ip += _VLAN
    return ip if ether_type in (EtherType.IPV4, EtherType.IPV6) else -1


def reverse(ends: bytes) -> bytes:
    """Return a segment's ends as those of the other way."""
    host = (len(ends) - _PORTS) // 2
    return ends[host : 2 * host] + ends[:host] + ends[-2:] + ends[-4:-2]


def address(ends: bytes) -> str:
    """Return the sending end for people, as in "10.0.0.1:3260" or "[fe80::1]:3260"."""
    host = (len(ends) - _PORTS) // 2
    port = int.from_bytes(ends[-4:-2], "big")
    if host == 4:
        return f"{socket.inet_ntop(socket.AF_INET, ends[:host])}:{port}"
    return f"[{socket.inet_ntop(socket.AF_INET6, ends[:host])}]:{port}"
