# SPDX-License-Identifier: MIT
"""The recorded iSCSI captures changed in every way that networks and capturers change them.

Frames are taken out of the files by python-pcapng and put into new ones by `struct`; nothing here
uses what is tested.
"""

import gzip
import io
import json
import struct
import subprocess
import warnings
from collections import defaultdict
from functools import lru_cache
from pathlib import Path

import pcapng
from pcapng.blocks import EnhancedPacket

from vscsi.capture.commands import BATCH_ROWS
from vscsi.capture.sources import iscsi
from vscsi.wire.crc32c import crc32c

CAPTURES = Path(__file__).parents[3] / "captures"
NAMES = ("scan", "qemu")
PORT = 13260
ETHERNET, RAW, NULL, SLL, SLL2 = 1, 101, 0, 113, 276
LARGEST = 60000
_HEADERS = 14
FIN, SYN, ACK = 1, 2, 16


def packed(name):
    """Return a recorded capture's file."""
    return (CAPTURES / f"iscsi-tgt-{name}.pcapng.gz").read_bytes()


def frames(name):
    """Return (time_ns, frame) of a recorded capture."""
    with (
        gzip.open(CAPTURES / f"iscsi-tgt-{name}.pcapng.gz") as stream,
        warnings.catch_warnings(action="ignore"),  # python-pcapng's own
    ):
        return [
            (block.timestamp_high << 32 | block.timestamp_low, block.packet_data)
            for block in pcapng.FileScanner(stream)
            if isinstance(block, EnhancedPacket)
        ]


def oracle(name):
    """Return tshark's decode of a recorded capture."""
    with gzip.open(CAPTURES / f"iscsi-tgt-{name}.oracle.jsonl.gz", "rt") as lines:
        return [json.loads(line) for line in lines]


def pcap(packets, *, order="<", unit_ns=1, link=ETHERNET, snap=None):
    """Return a pcap file; snap: bytes of each frame that are kept."""
    magic = {1000: 0xA1B2C3D4, 1: 0xA1B23C4D}[unit_ns]
    parts = [struct.pack(f"{order}IHHiIII", magic, 2, 4, 0, 0, 1 << 18, link)]
    for time_ns, data in packets:
        seconds, ns = divmod(time_ns, 10**9)
        kept = data[:snap]
        parts.append(
            struct.pack(f"{order}IIII", seconds, ns // unit_ns, len(kept), len(data)) + kept
        )
    return b"".join(parts)


def block(order, kind, body):
    """Return a pcapng block."""
    length = len(body) + 12
    return struct.pack(f"{order}II", kind, length) + body + struct.pack(f"{order}I", length)


def pcapng_file(packets, *, order="<", resolution=9, link=ETHERNET, options=b""):
    """Return a pcapng file with one interface; resolution: a power of 10, or of 2 from 128 on."""
    per_s = 2 ** (resolution - 128) if resolution > 127 else 10**resolution
    parts = [
        block(order, 0x0A0D0D0A, struct.pack(f"{order}IHHq", 0x1A2B3C4D, 1, 0, -1)),
        block(
            order,
            1,
            struct.pack(f"{order}HHI", link, 0, 0)
            + struct.pack(f"{order}HHB3x", 9, 1, resolution)
            + bytes(4),
        ),
    ]
    for time_ns, data in packets:
        ticks = time_ns * per_s // 10**9
        head = struct.pack(
            f"{order}IIIII", 0, ticks >> 32, ticks & 0xFFFFFFFF, len(data), len(data)
        )
        parts.append(block(order, 6, head + data + bytes(-len(data) % 4) + options))
    return b"".join(parts)


def relinked(packets, link):
    """Return frames with another link layer than Ethernet."""
    heads = {
        RAW: b"",
        NULL: struct.pack("<I", 2),
        SLL: struct.pack(">HHH8sH", 0, 772, 6, bytes(8), 0x0800),
        SLL2: struct.pack(">HHIHBB8s", 0x0800, 0, 1, 772, 0, 6, bytes(8)),
    }
    return [(time, heads[link] + data[_HEADERS:]) for time, data in packets]


def tagged(packets):
    """Return frames with two VLAN tags."""
    tags = struct.pack(">HHHH", 0x88A8, 5, 0x8100, 7)
    return [(time, data[:12] + tags + data[12:]) for time, data in packets]


def on_ipv6(packets, *, extension=False):
    """Return frames with IPv6, and a hop-by-hop header if wanted."""
    changed = []
    for time, data in packets:
        tcp = data[34 : 14 + struct.unpack_from(">H", data, 16)[0]]
        more = bytes([6, 0, 1, 4, 0, 0, 0, 0]) if extension else b""
        ends = (bytes.fromhex("fe80") + bytes(10) + data[26:30]) + (
            bytes.fromhex("fe80") + bytes(10) + data[30:34]
        )
        head = struct.pack(">IHBB", 6 << 28, len(tcp) + len(more), 0 if extension else 6, 64)
        changed.append((time, data[:12] + b"\x86\xdd" + head + ends + more + tcp))
    return changed


def with_port(packets, port):
    """Return frames with the target at another port."""
    changed = []
    for time, data in packets:
        ports = [port if each == PORT else each for each in struct.unpack_from(">HH", data, 34)]
        changed.append((time, data[:34] + struct.pack(">HH", *ports) + data[38:]))
    return changed


class Segment:
    """A TCP segment over IPv4 and Ethernet, to be changed."""

    def __init__(self, time, data):
        self.time = time
        end = 14 + struct.unpack_from(">H", data, 16)[0]
        self.ends = data[26:38]
        self.sequence, self.acknowledged, offset, self.flags = struct.unpack_from(">IIBB", data, 38)
        self.payload = data[34 + (offset >> 4) * 4 : end]

    def frame(self):
        """Return it as a frame."""
        total = 40 + len(self.payload)
        ip = struct.pack(">BBHHHBBH", 0x45, 0, total, 0, 0, 64, 6, 0) + self.ends[:8]
        tcp = self.ends[8:] + struct.pack(
            ">IIBBHHH", self.sequence, self.acknowledged, 0x50, self.flags, 512, 0, 0
        )
        return self.time, bytes(12) + b"\x08\0" + ip + tcp + self.payload


def segments(packets):
    """Return a capture's frames as segments."""
    return [Segment(time, data) for time, data in packets]


def recut(packets, random, largest=200):
    """Return the frames with their payloads cut anew, a nanosecond apart."""
    changed = []
    for segment in segments(packets):
        payload, sequence, at = segment.payload, segment.sequence, 0
        while True:
            size = random.randint(1, largest)
            part = Segment(*segment.frame())
            part.payload = payload[at : at + size]
            part.sequence = (sequence + at) & 0xFFFFFFFF
            part.time += len(changed) % 1000
            at += size
            last = at >= len(payload)
            if not last:
                part.flags &= ~FIN
            changed.append(part)
            if last:
                break
    return [part.frame() for part in changed]


@lru_cache(1 << 12)
def digest(data):
    """Return the digest of some bytes (tests/wire checks it against the published vectors)."""
    return crc32c(data)


def pdus(stream):
    """Yield the PDUs of a stream without digests."""
    at = 0
    while at < len(stream):
        ahs = stream[at + 4] * 4
        size = int.from_bytes(stream[at + 5 : at + 8], "big")
        yield stream[at : at + 48 + ahs], stream[at + 48 + ahs :][: size + -size % 4]
        at += 48 + ahs + size + -size % 4


def with_digests(packets, *, header, data):
    """Return a capture as if its connections had agreed on digests: one segment a PDU."""
    streams, shift = defaultdict(bytes), defaultdict(int)
    changed = []
    for segment in segments(packets):
        key = segment.ends
        pieces = []
        streams[key] += segment.payload
        while len(streams[key]) >= 48:
            head, body = next(pdus(streams[key]))
            if len(streams[key]) < len(head) + len(body) or len(body) < int.from_bytes(
                head[5:8], "big"
            ):
                break
            streams[key] = streams[key][len(head) + len(body) :]
            login = head[0] & 0x3F in (0x03, 0x23)
            if login:
                body = _agreed(body, header, data)
                head = head[:5] + len(body).to_bytes(3, "big") + head[8:]
                body += bytes(-len(body) % 4)
                pieces.append(head + body)
            else:
                pieces.append(
                    head
                    + (digest(head) if header else b"")
                    + body
                    + (digest(body) if data and body else b"")
                )
        payload = b"".join(pieces)
        back = key[4:8] + key[:4] + key[10:] + key[8:10]
        segment.sequence = (segment.sequence + shift[key]) & 0xFFFFFFFF
        segment.acknowledged = (segment.acknowledged + shift[back]) & 0xFFFFFFFF
        shift[key] += len(payload) - len(segment.payload)
        sequence = segment.sequence
        for at in range(0, max(1, len(payload)), LARGEST):
            segment.sequence = (sequence + at) & 0xFFFFFFFF
            segment.payload = payload[at : at + LARGEST]
            changed.append(segment.frame())
    return changed


def _agreed(body, header, data):
    text = body.rstrip(b"\0") + b"\0"
    if header:
        text = text.replace(b"HeaderDigest=None", b"HeaderDigest=CRC32C")
    if data:
        text = text.replace(b"DataDigest=None", b"DataDigest=CRC32C")
    return text


def read(content):
    """Return a source that was read to its end, and its rows."""
    source = iscsi.read(io.BytesIO(content))
    batches = list(source)
    assert all(batch.num_rows <= BATCH_ROWS for batch in batches)
    return source, [row for batch in batches for row in batch.to_pylist()]


def tshark(content, tmp_path, port, *arguments):
    """Return what tshark says about a capture."""
    file = tmp_path / "capture"
    file.write_bytes(content)
    command = ["tshark", "-r", str(file), "-d", f"tcp.port=={port},iscsi", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
