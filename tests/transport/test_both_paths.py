# SPDX-License-Identifier: MIT
"""The C path answers as Python does: the same bytes are put through two servers, byte for byte.

They differ in one thing: the stores of one have nothing for the C path. Their frontends have the
same memory, the same grants under the same references, and send the same slots, right ones and
wrong ones. Every answer, the memory and the store must then be the same.
"""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vscsi.domain.base import PAGE_SIZE
from vscsi.domain.keys import XenbusState
from vscsi.domain.local import BACKEND_DOMAIN
from vscsi.target.stores.memory import MemoryStore
from vscsi.wire import blkif, mad, srp, vscsiif
from vscsi.wire.cdb import build
from vscsi.wire.lun import encode
from vscsi.wire.parameters import build_unmap
from vscsi.wire.srp_ring import SlotFormat, build_slot, parse_slot

SIZE = 1 << 16
SECTOR = 512
EXAMPLES = 40
OUT, IN, NONE = "out", "in", "none"
LAYOUTS = {"blkif64": blkif.X86_64, "blkif32": blkif.X86_32}
DISKS = {
    "cached": {"block_size": 512},
    "written through": {"block_size": 4096, "write_cache": False},
    "read only": {"block_size": 512},
}
START = build("START STOP UNIT", start=1)
CONTROLS = [
    (build("INQUIRY", allocation_length=96), IN, 96),
    (build("REQUEST SENSE", allocation_length=252), IN, 252),
    (build("READ CAPACITY(16)", allocation_length=32), IN, 32),
    (build("MODE SENSE(10)", page_code=0x3F, allocation_length=255), IN, 255),
    (build("START STOP UNIT"), NONE, 0),
    (START, NONE, 0),
    (build("COMPARE AND WRITE", blocks=1), OUT, 1024),
    (build("WRITE SAME(16)", lba=3, blocks=5), OUT, 512),
    (build("VERIFY(10)", blocks=8), NONE, 0),
    (build("REPORT LUNS", allocation_length=64), IN, 64),
]


class PythonStore(MemoryStore):
    """One that the C path does not know."""

    def __init__(self, size_bytes, **options):
        super().__init__(size_bytes, **options)
        self.native = None


# What is sent


def mostly(usual, other, odds=15):
    """Values of which all are usual but one in `odds` + 1."""
    return st.sampled_from([True] * odds + [False]).flatmap(
        lambda regular: usual if regular else other
    )


@st.composite
def commands(draw, block_size):
    """Return a CDB, the way its data goes, and how many bytes that is."""
    blocks_of_disk = SIZE // block_size
    edges = [0, 1, blocks_of_disk - 1, blocks_of_disk, blocks_of_disk + 1]
    lba = draw(mostly(st.integers(0, blocks_of_disk - 8), st.sampled_from(edges)))
    kind = draw(st.sampled_from(["READ", "WRITE"] * 4 + ["flush", "unmap", "ready", "control"]))
    if kind == "ready":
        return build("TEST UNIT READY"), NONE, 0
    if kind == "control":
        return draw(st.sampled_from(CONTROLS))
    if kind == "flush":
        name = draw(st.sampled_from(["SYNCHRONIZE CACHE(10)", "SYNCHRONIZE CACHE(16)"]))
        fields = {"lba": lba, "blocks": draw(st.sampled_from([0, 1, 8, 9])), "immed": lba & 1}
        return build(name, **fields), NONE, 0
    if kind == "unmap":
        length = draw(mostly(st.just(40), st.sampled_from([0, 7, 8, 23, 24, 41, 512])))
        return build("UNMAP", parameter_list_length=length), OUT, length
    size = draw(st.sampled_from([6, 10, 12, 16]))
    blocks = draw(mostly(st.integers(1, 8), st.sampled_from([0, 16, 200])))
    fields = {"lba": lba, "blocks": blocks if size > 6 else max(1, blocks)}
    if size > 6:
        flag = draw(mostly(st.just(""), st.sampled_from(["fua", "dpo", "protect", "group"]), 5))
        control = draw(mostly(st.just(0), st.sampled_from([1, 4]), 4))
        fields |= {flag: 1} if flag else {}
        cdb = build(f"{kind}({size})", control=control, **fields)
    else:
        cdb = build(f"{kind}(6)", **fields)
    return cdb, IN if kind == "READ" else OUT, fields["blocks"] * block_size


@st.composite
def buffers(draw, length, places, room, unit=1):
    """Return (place, offset, bytes) that make up a length, or nearly: `unit` bytes at a time."""
    length += draw(mostly(st.just(0), st.sampled_from([-512, -1, 1, 512, 4096]))) // unit * unit
    found = []
    while length > 0 and len(found) < 200:
        offset = draw(st.sampled_from([0, 0, 0, 512, 1024, 3584, 17])) // unit * unit
        part = min(length, room - offset, draw(st.sampled_from([room, room, 512, 1024])))
        found.append((draw(places), offset, part))
        length -= part
    wrong = draw(mostly(st.none(), st.sampled_from([room, room + 1, 0xFFFF]), 7))
    if wrong is not None and found:
        place, offset, part = found.pop()
        found.append((place, wrong // unit * unit, part))
    return found


@st.composite
def flips(draw, slot, length):
    """A slot with some bits of its first bytes flipped, now and then."""
    slot = bytearray(slot)
    for _ in range(draw(mostly(st.just(0), st.integers(1, 3)))):
        slot[draw(st.integers(0, min(length, len(slot)) - 1))] ^= 1 << draw(st.integers(0, 7))
    return bytes(slot)


class Side:
    """One of the two servers, and a frontend on it; `channel` is the raw frontend."""

    first: tuple[bytes, ...] = ()
    """What goes ahead of each example."""

    def __init__(self, server, channel):
        self.server = server
        self.channel = channel
        self.executed_in_c = self._counted = 0
        self.begin()
        # So many that no reference below is a few bits from those of the rings.
        (frame,) = channel.memory.alloc(1)
        channel.memory.grant([frame] * 0xF0, BACKEND_DOMAIN, readonly=False)
        self.decoy = channel.memory.view(frame)
        self.pages = [channel.page(bytes([17 * n]) * PAGE_SIZE) for n in range(1, 5)]
        self.pages += [channel.page(b"\x22" * PAGE_SIZE, readonly=True)]
        self.table, self.table_view = channel.page()
        self.list, self.list_view = channel.page(build_unmap([(1, 2), (5, 1)]))
        (self.revoked, _) = channel.page()
        channel.memory.end_access([self.revoked])
        self.references = [*(each for each, _ in self.pages), self.list, self.revoked, 40000]

    def begin(self):
        self.channel.connect()

    def exchange(self, slots, table):
        """Send slots, `table` being in the page of descriptors; return what is answered."""
        self.table_view[: len(table)] = table
        slots = [*self.first, *slots]
        self.channel.put(*slots)
        answers = self.channel.slots(len(slots))
        for sent, answer in zip(slots, answers, strict=True):
            rest = answer[self.answer_bytes :]
            assert rest in (bytes(len(rest)), sent[self.answer_bytes :])  # nothing of ours
        return [answer[: self.answer_bytes] for answer in answers]

    def count(self):
        """Add up what the C path has executed, over all connections."""
        end = self.server.end(self.channel.domain, self.channel.kind)
        now = end.report().get("executed_in_c", 0)
        self.executed_in_c += max(0, now - self._counted)
        self._counted = now

    def state(self):
        """What must be the same: memory, store, and what is mapped."""
        pages = [bytes(view) for _, view in self.pages]
        store = bytes(self.server.store._memory)
        pages += [bytes(self.list_view), bytes(self.decoy)]
        return pages, store, self.server.mapped(self.channel.domain)


# vscsiif


class VscsiifSide(Side):
    answer_bytes = 108
    """Up to `reserved` (io/vscsiif.h)."""
    first = (vscsiif.build_request(cdb=START, direction=3),)


@st.composite
def vscsiif_examples(draw, references, table, block_size):
    places = mostly(st.sampled_from(references[:4]), st.sampled_from(references))
    granted, slots = b"", []
    for _ in range(draw(st.integers(5, 9))):
        cdb, way, length = draw(commands(block_size))
        listed = draw(buffers(length, places, PAGE_SIZE))
        if cdb[0] == 0x42 and listed:  # UNMAP: its list is in a page of its own
            listed = [(draw(mostly(st.just(references[5]), places)), 0, length)]
        segments = [{"gref": at, "offset": start, "length": count} for at, start, count in listed]
        count = len(segments)
        if len(segments) > 26 or draw(st.integers(0, 3)) == 0:
            offset = len(granted)
            listing = vscsiif.build_segments(segments)[: PAGE_SIZE - offset]
            granted += listing
            cut = draw(mostly(st.just(0), st.sampled_from([-8, -1, 1, 8])))
            segments = [{"gref": table, "offset": offset, "length": max(0, len(listing) + cut)}]
            count = 1 | vscsiif.SG_GRANT
        right = {OUT: 1, IN: 2, NONE: 3}[way]
        slot = vscsiif.build_request(
            rqid=draw(st.integers(0, 0xFFFF)),
            act=draw(mostly(st.just(1), st.sampled_from([0, 3, 5, 255]))),
            cdb=cdb,
            cmd_len=draw(mostly(st.just(len(cdb)), st.integers(0, 17))),
            lun=draw(mostly(st.just(0), st.sampled_from([1, 2, 0x100]))),
            direction=draw(mostly(st.just(right), st.integers(0, 4))),
            segments=segments,
            nr_segments=draw(mostly(st.just(count), st.sampled_from([0, 1, 26, 27, 0x80, 0xFF]))),
        )
        slots.append(draw(flips(slot, 48)))
    return slots, granted


# blkif


class BlkifSide(Side):
    @property
    def answer_bytes(self):
        return 16 if self.channel.layout is blkif.X86_64 else 12


@st.composite
def blkif_examples(draw, references, table, layout):
    places = mostly(st.sampled_from(references[:4]), st.sampled_from(references))
    granted, slots = b"", []
    for _ in range(draw(st.integers(5, 9))):
        operation = draw(st.sampled_from([0, 0, 0, 1, 1, 1, 2, 3, 3, 5, 6, 6, 6, 7]))
        fields = {
            "id": draw(st.integers(0, 2**64 - 1)),
            "sector_number": draw(
                mostly(
                    st.integers(0, 12).map(lambda n: 8 * n),
                    st.sampled_from([1, 7, 127, 128, 129, 2**55, 2**64 - 1]),
                )
            ),
        }
        sectors = draw(mostly(st.sampled_from([8, 8, 16, 24]), st.sampled_from([0, 1, 3, 31])))
        listed = draw(buffers(sectors * SECTOR, places, PAGE_SIZE, SECTOR))
        segments = [
            {"gref": at, "first_sect": start // SECTOR & 255, "last_sect": last & 255}
            for at, start, count in listed
            for last in [start // SECTOR + count // SECTOR - 1]
        ]
        count = draw(mostly(st.just(len(segments)), st.sampled_from([0, 1, 11, 12, 255])))
        if operation <= 3:
            segments = (segments + [{}] * 11)[: min(count, 11)]
            fields |= {"nr_segments": count, "segments": segments}
        elif operation == blkif.Operation.DISCARD:
            fields |= {"nr_sectors": draw(mostly(st.just(sectors), st.just(2**64 - 8)))}
        elif operation == blkif.Operation.INDIRECT:
            segments *= draw(mostly(st.just(1), st.sampled_from([2, 11])))
            granted = max(granted, blkif.build_segments(segments)[:PAGE_SIZE], key=len)
            fields |= {
                "indirect_op": draw(mostly(st.integers(0, 1), st.integers(2, 7))),
                "nr_segments": draw(mostly(st.just(len(segments)), st.sampled_from([0, 256, 257]))),
                "indirect_grefs": [draw(mostly(st.just(table), st.sampled_from(references)))],
            }
        else:
            fields = {"id": fields["id"]}
        slots.append(draw(flips(layout.build_request(operation, **fields), 40)))
    return slots, granted


# SRP


class SrpSide(Side):
    PAGES = 8
    first = (
        build_slot(
            SlotFormat.SRP, srp.build_iu(srp.IuType.CMD, lun=bytes(8), **srp.cdb_fields(START))
        ),
    )

    def __init__(self, server, channel):
        self.frames = None
        super().__init__(server, channel)

    def begin(self):
        """Connect and log in; handle 1 may be written, 2 not."""
        self.channel.connect()
        self.channel.login()
        self.frames = self.channel.region(1, self.PAGES, frames=self.frames)
        self.channel.region(2, readonly=True, frames=self.frames[:2])
        self.memory = self.channel.memory.view(self.frames[0], self.PAGES)
        self.memory[7 * PAGE_SIZE :][:40] = build_unmap([(1, 2), (5, 1)])

    def exchange(self, slots, table):
        """Send slots; return the units that come until all is taken, and how the channel is."""
        self.memory[6 * PAGE_SIZE :][: len(table)] = table
        found = []
        self.channel.put(*self.first, *slots)
        marker = build_slot(SlotFormat.MAD, mad.build_mad(mad.MadType.ENABLE_FAST_FAIL, tag=99))
        self.channel.put(marker)
        while taken := self.channel.slots():
            form, unit = parse_slot(taken[0])
            if form is SlotFormat.MAD and mad.parse_mad(unit).tag == 99:
                return found
            found.append((form, unit))
        self.channel.wait(XenbusState.CLOSING, XenbusState.CLOSED)
        self.channel.reopen()
        self.begin()
        return [*found, "closed"]

    def state(self):
        return bytes(self.memory), *super().state()


@st.composite
def srp_examples(draw, _references, _table, block_size):
    handles = mostly(st.just(1), st.sampled_from([0, 2, 3]))
    granted, slots = b"", []
    for tag in range(draw(st.integers(5, 9))):
        cdb, way, length = draw(commands(block_size))
        listed = draw(buffers(length, handles, 6 * PAGE_SIZE))
        if cdb[0] == 0x42 and listed:
            listed = [(1, 7 * PAGE_SIZE, length)]
        table = [{"address": start, "handle": at, "length": count} for at, start, count in listed]
        form = draw(st.sampled_from(["local", "mixed", "granted"]))
        area = None
        if len(table) == 1 and form != "granted":
            area = table[0]
        elif table:
            local = {"local": min(len(table), 2), "mixed": 1, "granted": 0}[form]
            offset = len(granted)
            copy = b"".join(map(srp.MemoryDescriptor.build, table))[: PAGE_SIZE - offset]
            granted += copy
            total = sum(each["length"] for each in table)
            area = {
                "table": {
                    "address": 6 * PAGE_SIZE + offset,
                    "handle": draw(mostly(st.just(1), st.just(2))),
                    "length": draw(mostly(st.just(len(copy)), st.sampled_from([0, 8, 16]))),
                },
                "total_length": draw(
                    mostly(st.just(total), st.sampled_from([0, 512, total + 1]), 5)
                ),
                "descriptors": table[:local],
            }
        way = draw(mostly(st.just(way), st.sampled_from([IN, OUT, NONE])))
        unit = srp.build_iu(
            srp.IuType.CMD,
            tag=draw(st.just(tag) | st.integers(0, 2**64 - 1)),
            lun=draw(
                mostly(st.just(bytes(8)), st.sampled_from([encode(1), encode(9), b"\xff" * 8]))
            ),
            attribute=draw(mostly(st.just(0), st.integers(0, 7))),
            data_out=area if way == OUT else None,
            data_in=area if way == IN else None,
            **srp.cdb_fields(cdb),
        )
        unit = unit[: draw(mostly(st.just(124), st.integers(40, 123)))]
        slots.append(draw(flips(build_slot(SlotFormat.SRP, unit), 4 + 84)))
    return slots, granted


SIDES = {"srp": SrpSide, "vscsiif": VscsiifSide, "blkif64": BlkifSide, "blkif32": BlkifSide}
KINDS = {"srp": "srp", "vscsiif": "vscsiif", "blkif64": "blkif", "blkif32": "blkif"}


@pytest.mark.parametrize("disk", DISKS)
@pytest.mark.parametrize("protocol", SIDES)
def test_answers_memory_and_store_are_the_same(serve, raw, protocol, disk):
    layout = LAYOUTS.get(protocol)
    options = {"layout": layout} if layout else {}
    readonly = disk == "read only"
    sides = []
    for store in (MemoryStore, PythonStore):
        stores = store(SIZE, readonly=readonly), store(SIZE)
        for each in stores:
            each._memory[:] = bytes(n % 251 for n in range(SIZE))
        server = serve(*stores, **DISKS[disk])
        sides.append(SIDES[protocol](server, raw(KINDS[protocol], at=server, **options)))
    first, second = sides
    assert first.references == second.references
    block_size = DISKS[disk]["block_size"]
    examples = {
        "srp": lambda: srp_examples(first.references, first.table, block_size),
        "vscsiif": lambda: vscsiif_examples(first.references, first.table, block_size),
    }.get(protocol, lambda: blkif_examples(first.references, first.table, layout))

    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
    @given(examples())
    def check(example):
        slots, table = example
        assert first.exchange(slots, table) == second.exchange(slots, table)
        assert first.state() == second.state()
        for side in sides:
            side.count()

    check()
    assert second.executed_in_c == 0
    assert first.executed_in_c > EXAMPLES  # or this compares nothing
