# SPDX-License-Identifier: MIT
"""The fuzz targets' first inputs, from the wire formats' builders and recorded slots.

`python -m tests.fuzz.seeds` writes corpus/*.seeds; a test sees that they are what this says. The
layout of an input stands at the head of its target's source.
"""

import json
import struct
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from tests.fuzz.targets import CORPUS, PROTOCOLS
from vscsi.wire import blkif, cdb, vscsiif
from vscsi.wire.lun import encode
from vscsi.wire.record import Protocol
from vscsi.wire.srp import IuType, MemoryDescriptor, build_iu, cdb_fields
from vscsi.wire.srp_ring import SlotFormat, build_slot

CAPTURES = Path(__file__).parents[2] / "captures"
PAGE = 4096
DATA_AT = 3 * PAGE
ALL = 15
"""A unit that is ready, writable, thin and has a write cache."""
RW, RO = 0, 1
READS = ("READ(6)", "READ(10)", "READ(12)", "READ(16)")
WRITES = ("WRITE(6)", "WRITE(10)", "WRITE(12)", "WRITE(16)")
FLUSHES = ("SYNCHRONIZE CACHE(10)", "SYNCHRONIZE CACHE(16)")
UNMAP_LIST = struct.pack(">HHI", 22, 16, 0) + struct.pack(">QII", 4, 2, 0)

Patches = Sequence[tuple[int, bytes]]
Slots = dict[str, tuple[bytes, Patches]]


def world(
    patches: Patches = (), regions: Sequence[tuple[int, int, Sequence[tuple[int, int]]]] = ()
) -> bytes:
    """Build the part of an input that world.h describes."""
    data = bytes([0, ALL, ALL, ALL, len(regions)])
    for handle, flags, runs in regions:
        data += bytes([handle, flags | (len(runs) - 1) << 1])
        data += b"".join(struct.pack("<HH", at, length - 1) for at, length in runs)
    data += bytes([len(patches)])
    return data + b"".join(struct.pack("<HB", at, len(b)) + b for at, b in patches)


# SRP: region 1 has two runs, region 2 is read-only; tables and lists stand in region 1.

REGIONS = [
    (1, RW, [(DATA_AT, PAGE), (DATA_AT + 2 * PAGE, PAGE)]),
    (2, RO, [(DATA_AT + 3 * PAGE, PAGE)]),
]


def srp_slots() -> Slots:
    """Return commands of each kind, other units, and recorded ones."""
    slots: Slots = {}

    def add(name: str, command: bytes, patches: Patches = (), lun: int = 0, **buffers: Any) -> None:
        unit = build_iu(IuType.CMD, lun=encode(lun), **cdb_fields(command), **buffers)
        slots[name] = build_slot(SlotFormat.SRP, unit), patches

    def direct(address: int, length: int, handle: int = 1) -> dict[str, int]:
        return {"address": address, "handle": handle, "length": length}

    for name in READS:
        add(name, cdb.build(name, lba=1, blocks=2), data_in=direct(0, 1024))
    for name in WRITES:
        add(name, cdb.build(name, lba=1, blocks=2), data_out=direct(PAGE - 512, 1024))
    for name in FLUSHES:
        add(name, cdb.build(name, lba=0, blocks=0))
    add("ready", cdb.build("TEST UNIT READY"))
    add("fua", cdb.build("WRITE(10)", lba=0, blocks=1, fua=1), data_out=direct(0, 512))
    add("null", cdb.build("READ(16)", lba=1 << 33, blocks=8), lun=1, data_in=direct(0, PAGE))
    add("file", cdb.build("READ(10)", lba=0, blocks=1), lun=2, data_in=direct(0, PAGE))
    add("file-end", cdb.build("READ(10)", lba=5, blocks=1), lun=2, data_in=direct(0, PAGE))
    add("readonly", cdb.build("READ(10)", lba=0, blocks=1), data_in=direct(0, 512, 2))
    add("beyond", cdb.build("READ(10)", lba=0, blocks=1), data_in=direct(2 * PAGE - 1, 512))
    add("end", cdb.build("READ(10)", lba=15, blocks=2), data_in=direct(0, 1024))
    listed = [(DATA_AT, UNMAP_LIST)]
    add("unmap", cdb.build("UNMAP", parameter_list_length=24), listed, data_out=direct(0, 24))
    parts = [direct(512 * at, 512, 1 + at % 2) for at in range(4)]
    inside = {"table": direct(0, 64), "total_length": 2048, "descriptors": parts}
    write = cdb.build("WRITE(10)", lba=0, blocks=4)
    add("indirect", write, data_out=inside)
    table = b"".join(MemoryDescriptor.build(part) for part in parts)
    outside = {"table": direct(PAGE, 64), "total_length": 2048, "descriptors": []}
    add("table", write, [(DATA_AT + 2 * PAGE, table)], data_out=outside)
    partly = {**outside, "descriptors": parts[:2]}
    add("partly", write, [(DATA_AT + 2 * PAGE, table)], data_out=partly)
    add("inquiry", cdb.build("INQUIRY", allocation_length=36), data_in=direct(0, 36))
    slots["login"] = build_slot(SlotFormat.SRP, build_iu(IuType.LOGIN_REQ)), ()
    slots["mad"] = build_slot(SlotFormat.MAD, bytes(24)), ()
    recorded = [
        json.loads(line) for line in (CAPTURES / "ibmvscsi-srp.jsonl").read_text().splitlines()
    ]
    for exchange in recorded[:6]:
        unit, kind = bytes.fromhex(exchange["req"]), exchange["kind"]
        form = SlotFormat.MAD if kind == "MAD" else SlotFormat.SRP
        slots[f"recorded-{exchange['slot']}"] = build_slot(form, unit), ()
    return slots


# vscsiif and blkif: references 1 to 5 grant a page each, the third one to be read only.


def grants(references: Iterable[int], readonly: Iterable[int] = ()) -> Patches:
    """Return patches of the grant table: references to one page after the other."""
    flags = {reference: 1 | 4 * (reference in readonly) for reference in references}
    return [
        (8 * reference, struct.pack("<HHI", flags[reference], 0, at % 5))
        for at, reference in enumerate(flags)
    ]


GRANTED = [*grants(range(1, 6), readonly=[3]), (8 * 6, struct.pack("<HHI", 1, 0, 5))]
"""The last one grants what is no memory."""


def recorded_requests(name: str) -> list[bytes]:
    """Return recorded request slots, one for each first bytes."""
    slots = {}
    for entry in json.loads((CAPTURES / name).read_text()):
        if entry["dir"] == "req":
            slot = bytes.fromhex(entry["slot"])
            slots.setdefault((slot[:2], slot[4] if len(slot) > 200 else 0), slot)
    return list(slots.values())[:12]


def with_grants(references: Iterable[int]) -> Patches:
    """Return the grants of a recorded slot, as far as our table goes."""
    return grants(sorted({reference for reference in references if 0 < reference < 512}))


def vscsiif_slots() -> Slots:
    """Return commands of each kind, descriptor memory, and recorded ones."""
    slots: Slots = {}
    to, back, none = (
        vscsiif.Direction.TO_DEVICE,
        vscsiif.Direction.FROM_DEVICE,
        vscsiif.Direction.NONE,
    )
    halves = [{"gref": 1, "offset": PAGE - 512, "length": 512}, {"gref": 2, "length": 512}]

    def add(
        name: str, command: bytes, direction: int, patches: Patches = (), **fields: Any
    ) -> None:
        slots[name] = (
            vscsiif.build_request(act=vscsiif.Act.CDB, cdb=command, direction=direction, **fields),
            [*GRANTED, *patches],
        )

    for name in READS:
        add(name, cdb.build(name, lba=1, blocks=2), back, segments=halves)
    for name in WRITES:
        add(name, cdb.build(name, lba=1, blocks=2), to, segments=halves)
    for name in FLUSHES:
        add(name, cdb.build(name, lba=0, blocks=0), none)
    add("ready", cdb.build("TEST UNIT READY"), none)
    add("file", cdb.build("READ(10)", lba=0, blocks=1), back, lun=2, segments=[
        {"gref": 1, "length": PAGE}])  # fmt: skip
    add("readonly", cdb.build("READ(10)", lba=0, blocks=1), back, segments=[
        {"gref": 3, "length": 512}])  # fmt: skip
    add("unmap", cdb.build("UNMAP", parameter_list_length=24), to, [(DATA_AT, UNMAP_LIST)],
        segments=[{"gref": 1, "length": 24}])  # fmt: skip
    table = vscsiif.build_segments(halves)
    add("table", cdb.build("WRITE(10)", lba=0, blocks=2), to, [(DATA_AT + 3 * PAGE, table)],
        nr_segments=vscsiif.SG_GRANT | 1,
        segments=[{"gref": 4, "length": len(table)}])  # fmt: skip
    for name, segment in {
        "end": {"gref": 1, "length": 1024},
        "page-end": {"gref": 1, "offset": PAGE - 512, "length": 1024},
        "no-memory": {"gref": 6, "length": 1024},
    }.items():
        lba = 15 if name == "end" else 0
        add(name, cdb.build("READ(10)", lba=lba, blocks=2), back, segments=[segment])
    slots["abort"] = vscsiif.build_request(act=vscsiif.Act.ABORT), GRANTED
    for at, slot in enumerate(recorded_requests("xen-scsifront.json")):
        named = [segment.gref for segment in vscsiif.parse_request(slot).segments]
        slots[f"recorded-{at}"] = slot, with_grants(named)
    return slots


def blkif_slots(layout: blkif.Layout) -> Slots:
    """Return requests of each kind, and recorded ones."""
    slots: Slots = {}
    segments = [
        {"gref": 1, "first_sect": 2, "last_sect": 7},
        {"gref": 2, "first_sect": 0, "last_sect": 0},
    ]

    def add(name: str, operation: int, patches: Patches = (), **fields: Any) -> None:
        slots[name] = layout.build_request(operation, **fields), [*GRANTED, *patches]

    operation = blkif.Operation
    for each in (operation.READ, operation.WRITE, operation.WRITE_BARRIER):
        add(each.name, each, sector_number=3, segments=segments)
    add("flush", operation.FLUSH_DISKCACHE)
    add("flush-data", operation.FLUSH_DISKCACHE, segments=segments)
    add("discard", operation.DISCARD, sector_number=2, nr_sectors=8)
    add("readonly", operation.READ, segments=[{"gref": 3}])
    table = [(DATA_AT + 3 * PAGE, blkif.build_segments(segments))]
    for each in (operation.READ, operation.WRITE):
        add(f"indirect-{each.name}", operation.INDIRECT, table, indirect_op=each, nr_segments=2,
            indirect_grefs=[4])  # fmt: skip
    add("beyond", operation.READ, sector_number=15, segments=segments)
    add("page-end", operation.READ, segments=[{"gref": 1, "first_sect": 2, "last_sect": 8}])
    add("no-memory", operation.READ, segments=[{"gref": 6}])
    if layout is blkif.X86_64:
        for at, slot in enumerate(recorded_requests("xen-blkfront.json")):
            request = layout.parse_request(slot)
            named = [segment.gref for segment in request.get("segments", ())]
            slots[f"recorded-{at}"] = slot, with_grants(named)
    return slots


SLOTS: dict[str, Callable[[], Slots]] = {
    "srp": srp_slots,
    "vscsiif": vscsiif_slots,
    "blkif64": lambda: blkif_slots(blkif.X86_64),
    "blkif32": lambda: blkif_slots(blkif.X86_32),
}

# Steps of loop.c: the code's remainder by 14, its quotient an argument.


def step(code: int, argument: int = 0, *data: int, meanwhile: bool = False) -> bytes:
    """Build one step."""
    return bytes([code + 14 * argument | meanwhile << 7, *data])


def send(which: int) -> bytes:
    """Put a request and publish it."""
    return step(1, which)


TAKE = step(3, 0, 255)
LOOK = step(6, meanwhile=True)
"""A step of no effect, so that the next one is made a little later."""
PROGRAMS = {
    "one-by-one": b"".join(send(at) + TAKE for at in range(4)),
    "batches": (step(0, 0) + step(0, 1) + step(0, 2) + step(2) + TAKE) * 4,
    "full": b"".join(step(0, at % 4) for at in range(8)) + step(2) + TAKE + send(0) + TAKE,
    "python": step(13, 0, 1, *bytes(15)) + send(0) + step(13, 0, 0, *bytes(15)) + send(1) + TAKE,
    "unanswered": step(13, 0, 3, *bytes(15)) + send(0) + send(1) + step(8),
    "polling": step(13, 0, 4, *bytes(15)) + send(0) + TAKE + send(1) + send(2) + TAKE,
    "tapped": step(13, 0, 8, *bytes(15)) + send(0) + send(1) + TAKE + step(6) + send(2) + step(6),
    "looks": b"".join(
        send(0) + LOOK * some + step(1, 1, meanwhile=True) + TAKE for some in range(24)
    ),
    "gate": step(9, 0, 0) + send(0) + TAKE + step(9, 0, 0) + send(0) + TAKE,
    "attention": step(10, 0, 0, 31) + send(0) + step(10, 0, 0, ALL) + send(1) + TAKE,
    "smaller": send(0) + step(11, 0, 1) + send(0) + step(11, 0, 16) + send(1) + TAKE,
    "stalled": step(7, 7) + send(0) + send(1) + step(6) + send(2) + TAKE,
    "producer": send(0) + step(4, 0, 0, 100) + send(1),
    "consumer": send(0) + step(4, 0, 4 * 4 + 1, 50) + send(1) + send(2),
    "no-room": b"".join(step(0, 0) for _ in range(8)) + step(2) + step(4, 0, 0, 4) + step(2),
    "meanwhile": send(0) + step(4, 0, 2 | 64, 16, 16, *range(16), meanwhile=True) + send(1) + TAKE,
    "rewritten": send(0) + step(4, 0, 2 | 64, 0, 48, *range(16), meanwhile=True) + TAKE,
    "regions": step(12, 0, 1, 0, 0, 64, 255, 15, *bytes(10)) + send(0) + step(12, 5, *bytes(16))
    + send(0),
}  # fmt: skip


def protocol_inputs(name: str) -> dict[str, dict[str, bytes]]:
    """Return the inputs of a protocol's decoder and loop."""
    slots = SLOTS[name]()
    regions = REGIONS if name == "srp" else ()
    decode = {
        at.replace(" ", "-"): world(patches, regions) + b"\xff" + slot
        for at, (slot, patches) in slots.items()
    }
    loop = {}
    chosen = list(slots.items())
    for number, (program, steps) in enumerate(PROGRAMS.items()):
        some = [chosen[(number * 2 + at) % len(chosen)][1] for at in range(4)]
        patches = {at: patch for _, patches in some for at, patch in patches}
        library = b"".join(bytes([len(slot[:255])]) + slot[:255] for slot, _ in some)
        loop[program] = world(list(patches.items()), regions) + bytes([4]) + library + steps
    return {f"decode_{name}": decode, f"loop_{name}": loop}


def cdb_inputs() -> dict[str, bytes]:
    """Return a CDB of each command that is accepted."""

    def of(command: bytes, out: int = 0, into: int = 0, data: bytes = b"") -> bytes:
        unit = struct.pack("<BBQIQQ", ALL, 0, 64, 1 << 20, out, into)
        return unit + bytes([len(command)]) + command + data

    inputs = {name: of(cdb.build(name, lba=1, blocks=2), into=1024) for name in READS}
    inputs |= {name: of(cdb.build(name, lba=1, blocks=2), out=1024) for name in WRITES}
    inputs |= {name: of(cdb.build(name, lba=1, blocks=2)) for name in FLUSHES}
    inputs["ready"] = of(cdb.build("TEST UNIT READY"))
    inputs["unmap"] = of(cdb.build("UNMAP", parameter_list_length=24), 24, 0, UNMAP_LIST)
    return {name.replace(" ", "-"): data for name, data in inputs.items()}


def other_inputs() -> dict[str, dict[str, bytes]]:
    """Return the inputs of the targets that know no protocol."""
    regions = bytes([2, 1, 2 << 1, 0, 0, 63, 0, 1, 63, 64, 0, 63, 2, 1, 0, 2, 9])
    calls = b"".join(
        struct.pack("<BBHH", kind, handle, at, length)
        for kind, handle, at, length in [
            (0, 1, 0, 192), (2, 1, 60, 10), (2, 2, 0, 4), (0, 2, 0, 9), (1, 1, 50, 100),
            (8, 1, 0, 192), (0, 1, 192, 0), (1, 9, 0, 0),
        ]
    )  # fmt: skip
    calls += struct.pack("<BBQQ", 4, 1, 2**64 - 1, 2)
    produced = (4 | 16, 16, 1 | 16, 16)  # what of scribble() is the peer's producer index
    ring = {
        f"kind-{kind}": struct.pack("<BHHIB", kind, 60, 500, 2**32 - 3, 0)
        + b"".join(
            bytes(part)
            for part in (
                [0, 9, 128, 7], [1], [3], [6, at, 1], [2, 0], [0, 60, 0, 1], [1], [3], [4],
                [6, at, 1], [2, 3], [5, 10, 0], [0, 5, 0, 2], [1], [6, at, 100], [2, 0], [4], [1],
            )
        )
        for kind, at in enumerate(produced)
    }  # fmt: skip
    granted = bytes([2, 5, 1, 130, 6, 2, 0, 1, 5, 6, 0, 128, 6, 0, 0, 5, 1, 9, 1, 2, 5, 3, 77])
    return {
        "cdb": cdb_inputs(),
        "regions": {"calls": regions + calls},
        "ring": ring,
        "grants": {"calls": granted},
        "filter": filter_inputs(),
    }


def filter_inputs() -> dict[str, bytes]:
    """Return commands with their answers, for each kind of condition, on each kind of ring."""

    def entry(to_initiator: bool, message: bytes, descriptors: bytes = b"") -> bytes:
        sizes = bytes([to_initiator, len(message)]), bytes([len(descriptors)])
        return sizes[0] + message + sizes[1] + descriptors

    def ring(protocol: int, layout: int, *entries: bytes) -> dict[str, bytes]:
        name = Protocol(protocol).name.lower() + str(layout or "")
        conditions = {"lun": 1, "opcode": 2, "lba": 4, "status": 8, "error": 24, "all": 31}
        return {
            f"{name}-{word}": struct.pack("<BBBBBHHB", protocol, layout, bits, 0, opcode, 2, 4, 2)
            + b"".join(entries)
            for word, bits in conditions.items()
        }

    read, ready = (cdb.build("READ(10)", lba=3, blocks=2), bytes(6))
    opcode = read[0]
    units = [(1, read, 0), (2, ready, 2), (3, read, 2)]
    answers = [build_iu(IuType.RSP, tag=tag, status=status) for tag, _, status in units]
    commands = [build_iu(IuType.CMD, tag=tag, **cdb_fields(command)) for tag, command, _ in units]
    inputs = ring(
        Protocol.SRP,
        0,
        *(entry(False, build_slot(SlotFormat.SRP, unit)) for unit in commands),
        *(entry(True, build_slot(SlotFormat.SRP, unit)) for unit in answers),
    )
    inputs |= ring(
        Protocol.VSCSIIF,
        0,
        *(entry(False, vscsiif.build_request(rqid=tag, cdb=data)) for tag, data, _ in units),
        *(entry(True, vscsiif.build_response(rqid=tag, rslt=code)) for tag, _, code in units),
    )
    opcode = blkif.Operation.WRITE
    for code, layout in ((1, blkif.X86_64), (2, blkif.X86_32)):
        segments = [{"gref": 1, "first_sect": 0, "last_sect": 7}]
        fields = {"id": 5, "sector_number": 3, "nr_segments": 1}
        indirect = {**fields, "indirect_op": 1, "indirect_grefs": [1] * 8}
        inputs |= ring(
            Protocol.BLKIF,
            code,
            entry(False, layout.build_request(1, **fields, segments=segments)),
            entry(True, layout.build_response(id=5, operation=1, status=-1)),
            entry(False, layout.build_request(6, **indirect), blkif.build_segments(segments)),
            entry(False, layout.build_request(5, id=6, sector_number=9, nr_sectors=1)),
            entry(True, layout.build_response(id=6, operation=5, status=0)),
        )
    return inputs


def all_inputs() -> dict[str, dict[str, bytes]]:
    """Return every target's first inputs, by name."""
    inputs = other_inputs()
    for name in PROTOCOLS:
        inputs |= protocol_inputs(name)
    return inputs


def text(inputs: dict[str, bytes]) -> str:
    """Return a corpus file's text."""
    return "".join(f"{name} {data.hex()}\n" for name, data in inputs.items())


def main() -> None:
    """Write the corpus files."""
    for target, inputs in all_inputs().items():
        (CORPUS / f"{target}.seeds").write_text(text(inputs))


if __name__ == "__main__":
    main()
