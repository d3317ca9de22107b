# SPDX-License-Identifier: MIT
"""Network headers against scapy's, which other people wrote."""

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import CookedLinux, Dot1Q, Ether

from vscsi.wire import network
from vscsi.wire.formats import build, parse

LAYERS = [
    (
        network.Ethernet,
        Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02", type=0x800),
        {"source": b"\2\0\0\0\0\1", "destination": b"\2\0\0\0\0\2", "ether_type": 0x800},
    ),
    (network.Vlan, Dot1Q(vlan=5, type=0x86DD), {"tag": 5, "ether_type": 0x86DD}),
    (
        network.LinuxCooked,
        CookedLinux(pkttype=4, lladdrtype=1, lladdrlen=6, src=b"12345678", proto=0x800),
        {
            "packet_type": 4,
            "hardware_type": 1,
            "address_length": 6,
            "address": b"12345678",
            "ether_type": 0x800,
        },
    ),
    (
        network.Ipv4,
        IP(src="10.0.0.1", dst="10.0.0.2", len=41, ttl=64, proto=6, chksum=0x1234, id=0),
        {
            "total_length": 41,
            "checksum": 0x1234,
            "source": bytes((10, 0, 0, 1)),
            "destination": bytes((10, 0, 0, 2)),
        },
    ),
    (
        network.Ipv6,
        IPv6(src="fe80::1", dst="fe80::2", plen=20, nh=6, hlim=9),
        {
            "version_flow": 6 << 28,
            "payload_length": 20,
            "next_header": 6,
            "hops": 9,
            "source": b"\xfe\x80" + bytes(13) + b"\1",
            "destination": b"\xfe\x80" + bytes(13) + b"\2",
        },
    ),
    (
        network.Tcp,
        TCP(sport=3260, dport=9, seq=1, ack=2, flags="PA", window=0xFFFF, chksum=3, dataofs=5),
        {
            "source_port": 3260,
            "destination_port": 9,
            "sequence": 1,
            "acknowledgment": 2,
            "flags": network.TcpFlags.PSH | network.TcpFlags.ACK,
            "checksum": 3,
        },
    ),
]


@pytest.mark.parametrize(("form", "layer", "fields"), LAYERS)
def test_headers_are_scapys(form, layer, fields):
    data = bytes(layer)
    assert build(form, fields) == data
    parsed = parse(form, data, "header")
    assert {name: parsed[name] for name in fields} == fields


@pytest.mark.parametrize("order", ["little", "big"])
def test_a_pcap_header_says_its_order(order):
    header = build(network.PCAP_HEADS[order], {"magic": 0xA1B2C3D4, "link_type": 1})
    assert len(header) == 24
    assert header[:4] == 0xA1B2C3D4.to_bytes(4, order)
    assert len(build(network.PCAP_RECORDS[order], {})) == 16
