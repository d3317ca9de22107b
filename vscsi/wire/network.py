# SPDX-License-Identifier: MIT
"""Headers below iSCSI: Ethernet (IEEE 802.3, 802.1Q), Linux cooked, IPv4, IPv6, TCP; pcap files.

As far as captures need them: what is only carried along is kept as bytes.
"""

from enum import IntEnum, IntFlag

from construct import Construct, Default, Int8ub, Int16ub

from vscsi.wire.formats import U8, U16B, U16L, U32B, U32L, Packed, raw


class LinkType(IntEnum):
    """What packets of a capture begin with (LINKTYPE_ values of the tcpdump group)."""

    NULL = 0
    ETHERNET = 1
    RAW = 101
    LOOP = 108
    LINUX_SLL = 113
    IPV4 = 228
    IPV6 = 229
    LINUX_SLL2 = 276


class EtherType(IntEnum):
    """What follows an Ethernet or cooked header."""

    IPV4 = 0x0800
    VLAN = 0x8100
    IPV6 = 0x86DD
    SERVICE_VLAN = 0x88A8
    VLAN_OLD = 0x9100


class TcpFlags(IntFlag):
    """Control bits (RFC 9293 3.1)."""

    FIN = 0x01
    SYN = 0x02
    RST = 0x04
    PSH = 0x08
    ACK = 0x10


IP_TCP = 6
"""Protocol, or next header."""
IPV6_EXTENSIONS = frozenset({0, 43, 60})
"""Next headers with a length of their own: hop-by-hop options, routing, destination options."""
IPV6_FRAGMENT = 44

Ethernet = Packed("destination" / raw(6), "source" / raw(6), "ether_type" / U16B)
Vlan = Packed("tag" / U16B, "ether_type" / U16B)
LinuxCooked = Packed(
    "packet_type" / U16B,
    "hardware_type" / U16B,
    "address_length" / U16B,
    "address" / raw(8),
    "ether_type" / U16B,
)
LinuxCooked2 = Packed(
    "ether_type" / U16B,
    "reserved" / raw(2),
    "interface" / U32B,
    "hardware_type" / U16B,
    "packet_type" / U8,
    "address_length" / U8,
    "address" / raw(8),
)

Ipv4 = Packed(
    "version_length" / Default(Int8ub, 0x45),
    "service" / U8,
    "total_length" / U16B,
    "identification" / U16B,
    "fragment" / U16B,  # flags, and offset in 8 bytes: MORE_FRAGMENTS
    "hops" / Default(Int8ub, 64),
    "protocol" / Default(Int8ub, IP_TCP),
    "checksum" / U16B,
    "source" / raw(4),
    "destination" / raw(4),
)
FRAGMENTED = 0x3FFF
"""Bits of Ipv4.fragment: more follow, or it is not the first."""
Ipv6 = Packed(
    "version_flow" / U32B,
    "payload_length" / U16B,
    "next_header" / U8,
    "hops" / U8,
    "source" / raw(16),
    "destination" / raw(16),
)
Tcp = Packed(
    "source_port" / U16B,
    "destination_port" / U16B,
    "sequence" / U32B,
    "acknowledgment" / U32B,
    "data_offset" / Default(Int8ub, 5 << 4),
    "flags" / U8,
    "window" / Default(Int16ub, 0xFFFF),
    "checksum" / U16B,
    "urgent" / U16B,
)


def _pcap_head(u16: Construct, u32: Construct) -> Packed:
    return Packed(
        "magic" / u32,
        "major" / u16,
        "minor" / u16,
        "zone" / u32,
        "accuracy" / u32,
        "snap_length" / u32,
        "link_type" / u32,
    )


PCAP_HEADS = {"little": _pcap_head(U16L, U32L), "big": _pcap_head(U16B, U32B)}
"""The header of a pcap file (draft-ietf-opsawg-pcap), in its writer's byte order."""
PCAP_RECORDS = {
    order: Packed(
        "seconds" / u32, "fraction" / u32, "captured_length" / u32, "original_length" / u32
    )
    for order, u32 in (("little", U32L), ("big", U32B))
}
PCAP_MAGICS = {0xA1B2C3D4: 1000, 0xA1B23C4D: 1}
"""A pcap file's magic numbers: nanoseconds of one unit of `fraction`."""
