# SPDX-License-Identifier: MIT
"""The recorded traces of stock drivers in captures/, as capture files of ours.

    from tests.capture.recorded import NAMES, capture
    stream = io.BytesIO(capture("xen-blkfront.json"))

Each is one channel, domain 7, device 3; times are the trace's own after START_NS. That of
ibmvscsi has one time for a request and its answer.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from vscsi.wire import pcapng
from vscsi.wire.mad import CrqFormat
from vscsi.wire.record import LayoutCode, Protocol, Way, build_record
from vscsi.wire.srp_ring import SlotFormat, build_slot

CAPTURES = Path(__file__).parents[2] / "captures"
_PROTOCOLS = {
    "xen-blkfront.json": Protocol.BLKIF,
    "xen-scsifront.json": Protocol.VSCSIIF,
    "ibmvscsi-srp.jsonl": Protocol.SRP,
}
NAMES = tuple(_PROTOCOLS)
START_NS = 1_700_000_000_000_000_000


def capture(name: str) -> bytes:
    """Return a trace as a capture file."""
    return capture_file(records(name), [f"{_PROTOCOLS[name].name.lower()}-7-3"])


def capture_file(packets: Iterable[tuple[Any, ...]], rings: Iterable[str]) -> bytes:
    """Return a capture of (time_ns, record) or (time_ns, record, interface, lost)."""
    blocks = [pcapng.section("a test")]
    blocks += [pcapng.interface(ring, "") for ring in rings]
    for time_ns, record, *more in packets:
        number, lost = more or (0, 0)
        blocks.append(pcapng.packet(number, START_NS + time_ns, record, lost))
    return b"".join(blocks)


def records(name: str) -> Iterator[tuple[int, bytes]]:
    """Yield the time and the record of each message of a trace."""
    text = (CAPTURES / name).read_text()
    protocol = _PROTOCOLS[name]
    if protocol is Protocol.SRP:
        for at, pair in enumerate(json.loads(line) for line in text.splitlines()):
            form = SlotFormat.MAD if pair["crq"][2:4] == f"{CrqFormat.MAD:02x}" else SlotFormat.SRP
            for way, side in ((Way.TO_TARGET, "req"), (Way.TO_INITIATOR, "rsp")):
                slot = build_slot(form, bytes.fromhex(pair[side]))
                yield round(pair["t"] * 1e9), make_record(Protocol.SRP, way, at, slot)
        return
    for entry in json.loads(text):
        way = Way.TO_TARGET if entry["dir"] == "req" else Way.TO_INITIATOR
        message = bytes.fromhex(entry["slot"])
        queue = entry.get("q", 0)
        time_ns = round(entry["t"] * 1e9)
        yield time_ns, make_record(protocol, way, entry["idx"], message, queue=queue)


def make_record(protocol: int, way: int, ring_index: int, message: bytes, **fields: Any) -> bytes:
    """Return a record of domain 7, device 3; fields: any of `Record`."""
    layout = LayoutCode.X86_64 if protocol is Protocol.BLKIF else LayoutCode.NONE
    return build_record(
        **{
            "protocol": protocol,
            "direction": way,
            "layout": layout,
            "domain": 7,
            "device": 3,
            "ring_index": ring_index & 0xFFFFFFFF,
            "message": message,
            **fields,
        }
    )
