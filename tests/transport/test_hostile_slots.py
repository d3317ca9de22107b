# SPDX-License-Identifier: MIT
"""Whatever a frontend puts on a ring: an answer or a closed channel, and nothing beyond its grants.

Guard pages stand around: pages that are not granted hold a secret that must not get into a store,
pages granted read-only must not change, and another domain is at work on another logical unit.
"""

import random
import struct
import sys
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vscsi.domain.base import PAGE_SIZE
from vscsi.domain.keys import XenbusState
from vscsi.domain.local import BACKEND_DOMAIN
from vscsi.ring._core import grant_set
from vscsi.wire import blkif, mad, srp, vscsiif
from vscsi.wire.cdb import build
from vscsi.wire.srp_ring import SlotFormat, build_slot

SECRET = b"not granted to anybody"
EXAMPLES = 120
EDGES_8 = [0, 1, 7, 8, 11, 12, 26, 27, 0x7F, 0x80, 0xFF]
EDGES_16 = [0, 1, 8, 512, 4095, 4096, 4097, 0xFFFF]
EDGES_32 = [0, 1, 16, 4096, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF]
EDGES_64 = [0, 1, 512, 4095, 4096, 1 << 31, 1 << 63, (1 << 64) - 1]


class Scene:
    """A hostile frontend with its pages, and a well-behaved one beside it."""

    def __init__(self, server, frontend, hba):
        self.server = server
        self.frontend = frontend
        self.lun = hba.lun(1)
        memory = frontend.memory
        self.guards = [memory.view(frame) for frame in memory.alloc(8)]
        for guard in self.guards:
            guard[:] = (SECRET * 200)[:PAGE_SIZE]
        self.granted = [frontend.page(b"\x11" * PAGE_SIZE) for _ in range(3)]
        self.read_only = [frontend.page(b"\x22" * PAGE_SIZE, readonly=True) for _ in range(2)]
        (revoked, _), (foreign, _) = frontend.page(), frontend.page()
        memory.end_access([revoked])
        (frame,) = memory.alloc(1)
        (foreign,) = memory.grant([frame], 5, readonly=False)
        (nowhere,) = memory.grant([frame], BACKEND_DOMAIN, readonly=False)
        grant_set(memory._table, nowhere, BACKEND_DOMAIN, 1 << 20, readonly=False)
        good = [reference for reference, _ in [*self.granted, *self.read_only]]
        bad = [revoked, foreign, nowhere, 0, 7, 32767, 32768, 0xFFFF_FFFF]
        self.references = st.sampled_from(good * 3 + bad)

    def check(self):
        for guard in self.guards:
            assert guard == (SECRET * 200)[:PAGE_SIZE]
        for _, view in self.read_only:
            assert set(view) == {0x22}
        for store in self.server.stores:
            assert SECRET[:12] not in bytes(store.content)
        self.lun.write(0, b"other domain".ljust(512, b"."))
        assert self.lun.read(0, 1).startswith(b"other domain")


@pytest.fixture
def scene(serve, watched_store, raw):
    server = serve(watched_store(1 << 16), watched_store(1 << 16))
    with server.connect("srp") as hba:
        hba.lun(1).capacity()

        def make(protocol, **options):
            return Scene(server, raw(protocol, at=server, **options), hba)

        yield make


def values(edges, bits):
    return st.sampled_from(edges) | st.integers(0, (1 << bits) - 1)


# blkif


@st.composite
def blkif_slots(draw, references, layout):
    if draw(st.integers(0, 5)) == 0:
        return draw(st.binary(min_size=layout.slot_size, max_size=layout.slot_size))
    operation = draw(st.integers(0, 7))
    fields = {
        "id": draw(values(EDGES_64, 64)),
        "sector_number": draw(st.integers(0, 130) | values(EDGES_64, 64)),
    }
    if operation <= 3:
        sector = st.integers(0, 9) | st.just(255)
        fields["segments"] = [
            {"gref": draw(references), "first_sect": draw(sector), "last_sect": draw(sector)}
            for _ in range(draw(st.integers(0, 11)))
        ]
        fields["segments"] += [{}] * (11 - len(fields["segments"]))
        fields["nr_segments"] = draw(values(EDGES_8, 8))
        fields["segments"] = fields["segments"][: fields["nr_segments"]]
    elif operation == blkif.Operation.DISCARD:
        fields["nr_sectors"] = draw(st.integers(0, 130) | values(EDGES_64, 64))
        fields["flag"] = draw(st.integers(0, 255))
    elif operation == blkif.Operation.INDIRECT:
        fields["indirect_op"] = draw(st.integers(0, 7))
        fields["nr_segments"] = draw(values([0, 1, 256, 257, 512, 513, 0xFFFF], 16))
        fields["indirect_grefs"] = [draw(references) for _ in range(8)]
    else:
        fields = {"id": fields["id"]}
    return layout.build_request(operation, **fields)


@pytest.mark.parametrize("layout", [blkif.X86_64, blkif.X86_32], ids=lambda each: each.protocol)
def test_any_blkif_slot_is_answered(scene, layout):
    scene = scene("blkif", layout=layout)
    disk = scene.frontend.connect()

    @settings(max_examples=EXAMPLES)
    @given(st.lists(blkif_slots(scene.references, layout), min_size=1, max_size=8))
    def check(slots):
        disk.put(*slots)
        for sent, answer in zip(slots, disk.slots(len(slots)), strict=True):
            response = layout.parse_response(answer)
            assert response.id == layout.parse_request(sent).id
            assert response.status in (0, -1, -2)
        assert scene.server.mapped(disk.domain) == 1

    check()
    scene.check()


# vscsiif


CDBS = [
    build("READ(10)", lba=0, blocks=1),
    build("READ(16)", lba=2, blocks=16),
    build("WRITE(10)", lba=0, blocks=1),
    build("WRITE(12)", lba=1, blocks=24),
    build("INQUIRY", allocation_length=255),
    build("UNMAP", parameter_list_length=24),
    build("MODE SENSE(10)", page_code=0x3F, allocation_length=255),
    build("REPORT LUNS", allocation_length=64),
    build("COMPARE AND WRITE", lba=0, blocks=1),
    build("WRITE SAME(16)", lba=0, blocks=8),
    build("VERIFY(10)", lba=0, blocks=8, bytchk=1),
]


@st.composite
def vscsiif_slots(draw, references):
    if draw(st.integers(0, 5)) == 0:
        return draw(st.binary(min_size=252, max_size=252))
    cdb = draw(st.sampled_from(CDBS) | st.binary(max_size=16))
    act = draw(st.sampled_from([1] * 8 + [2, 3, 0, 5, 255]))
    segments = [
        {
            "gref": draw(references),
            "offset": draw(values(EDGES_16, 13)),
            "length": draw(values(EDGES_16, 13)),
        }
        for _ in range(draw(st.integers(0, 6)))
    ]
    return vscsiif.build_request(
        rqid=draw(st.integers(0, 3) | st.integers(0, 0xFFFF)),
        act=act,
        cdb=cdb,
        cmd_len=draw(st.just(len(cdb)) | values(EDGES_8, 8)),
        lun=draw(st.sampled_from([0, 0, 0, 2, 0xFFFF])),
        ref_rqid=draw(st.integers(0, 3)),
        direction=draw(st.integers(0, 4)),
        segments=segments,
        nr_segments=draw(
            st.just(len(segments)) | st.just(len(segments) | vscsiif.SG_GRANT) | values(EDGES_8, 8)
        ),
    )


def test_any_vscsiif_slot_is_answered(scene):
    scene = scene("vscsiif")
    host = scene.frontend.connect()
    table = vscsiif.build_segments(
        [{"gref": scene.granted[1][0], "offset": n, "length": 512} for n in range(8)]
    )
    scene.granted[0][1][: len(table)] = table  # which reads may overwrite, with anything

    @settings(max_examples=EXAMPLES)
    @given(st.lists(vscsiif_slots(scene.references), min_size=1, max_size=8))
    def check(slots):
        host.put(*slots)
        answers = [vscsiif.parse_response(slot) for slot in host.slots(len(slots))]
        assert sorted(each.rqid for each in answers) == sorted(
            int.from_bytes(slot[:2], "little") for slot in slots
        )
        assert scene.server.mapped(host.domain) == 1

    check()
    scene.check()


# SRP


HANDLES = st.sampled_from([1, 1, 1, 2, 2, 0, 3, 0xFFFF_FFFF])


@st.composite
def descriptors(draw):
    return {
        "address": draw(values(EDGES_64, 15)),
        "handle": draw(HANDLES),
        "length": draw(values(EDGES_32, 13)),
    }


@st.composite
def areas(draw):
    kind = draw(st.integers(0, 2))
    if kind == 0:
        return None
    if kind == 1:
        return draw(descriptors())
    local = draw(st.lists(descriptors(), max_size=1))
    return {
        "table": {**draw(descriptors()), "length": draw(st.integers(0, 4) | values(EDGES_8, 9))},
        "total_length": draw(values(EDGES_32, 14)),
        "descriptors": local,
    }


@st.composite
def srp_units(draw):
    kind = draw(st.sampled_from(["cmd"] * 5 + ["any", "mad", "task", "bytes", "cut"]))
    if kind == "bytes":
        return draw(st.binary(max_size=128))
    if kind == "any":
        unit = draw(st.binary(min_size=48, max_size=124))
        return build_slot(SlotFormat.SRP, bytes([draw(st.integers(0, 4))]) + unit[1:])
    if kind == "mad":
        return build_slot(SlotFormat.MAD, draw(mads()))
    if kind == "task":
        unit = srp.build_iu(
            srp.IuType.TSK_MGMT,
            tag=draw(st.integers(0, 3)),
            lun=bytes(8),
            function=draw(st.sampled_from([1, 2, 4, 8, 0x20, 0x40, 0, 255])),
            managed_tag=draw(st.integers(0, 3)),
        )
        return build_slot(SlotFormat.SRP, unit)
    unit = srp.build_iu(
        srp.IuType.CMD,
        tag=draw(st.integers(0, 3)),
        lun=draw(st.sampled_from([bytes(8)] * 4 + [bytes([0, 9]) + bytes(6), b"\xff" * 8])),
        attribute=draw(st.integers(0, 255)),
        cdb=draw(st.sampled_from(CDBS) | st.binary(max_size=16)).ljust(16, b"\0"),
        data_out=draw(areas()),
        data_in=draw(areas()),
    )[:124]
    if kind == "cut":
        at = draw(st.integers(0, len(unit) - 1))
        unit = unit[:at] + bytes([draw(st.integers(0, 255))]) + unit[at + 1 :]
    return build_slot(SlotFormat.SRP, unit)


@st.composite
def mads(draw):
    kind = draw(st.sampled_from([*mad.MadType, 0, 0xFFFF_FFFF]))
    fields = {"tag": 1, "length": draw(values(EDGES_16, 16))}
    if kind in (mad.MadType.REGISTER_REGION, mad.MadType.UNREGISTER_REGION):
        fields |= {
            "handle": draw(st.integers(3, 6)),
            "flags": draw(st.integers(0, 3)),
            "pages": draw(values([0, 1, 2, 1024, 1025, 24576, 0xFFFF_FFFF], 32)),
            "directory": draw(st.lists(st.integers(0, 40) | values(EDGES_32, 32), max_size=4)),
        }
    elif kind in mad.FORMATS:
        fields["buffer"] = draw(st.integers(0, 3)) << 32 | draw(values(EDGES_32, 32))
    return mad.build_mad(int(kind), **fields)


def test_any_unit_is_answered_or_ends_the_channel(scene):
    scene = scene("srp")
    channel = scene.frontend
    listing = []

    def begin():
        channel.connect()
        channel.login()
        frames = channel.region(1, 2)
        channel.region(2, 2, readonly=True)
        listing.append(channel.memory.view(frames[0], 2))
        return scene.server.mapped(channel.domain)

    mapped = begin()

    @settings(max_examples=2 * EXAMPLES)
    @given(st.lists(srp_units(), min_size=1, max_size=6))
    def check(slots):
        nonlocal mapped
        for slot in slots:
            channel.put(slot)
            if sound(channel):
                continue
            assert channel.closed()
            assert scene.server.mapped(channel.domain) == 0
            channel.reopen()
            mapped = begin()
            return
        end = scene.server.end(channel.domain, "vsrp")
        for handle in set(end._regions._regions) - {1, 2}:  # what a lucky MAD has registered
            reply = channel.mad(mad.MadType.UNREGISTER_REGION, handle=handle)
            assert reply.status == mad.MadStatus.SUCCESS
        assert scene.server.mapped(channel.domain) == mapped
        assert end._credits.free == end._credits.limit

    check()
    scene.check()


def sound(channel):
    """Tell whether a channel goes on: every unit sent before is answered then."""
    if channel.state() is not XenbusState.CONNECTED:
        return False
    try:
        channel.put(build_slot(SlotFormat.MAD, mad.build_mad(mad.MadType.ENABLE_FAST_FAIL, tag=99)))
    except AssertionError:  # nobody takes from the ring any more
        return False
    while (unit := channel.receive()) is not None:
        if unit.type == mad.MadType.ENABLE_FAST_FAIL and unit.tag == 99:
            return True
        if unit.type is srp.IuType.LOGIN_REJ or unit.type is srp.IuType.T_LOGOUT:
            continue
    return False


# Ring indices


@pytest.mark.parametrize("offset", [33, 1 << 31, (1 << 32) - 1])
@pytest.mark.parametrize("protocol", ["blkif", "vscsiif"])
def test_a_request_index_that_overruns_closes_the_channel(scene, protocol, offset):
    scene = scene(protocol)
    frontend = scene.frontend.connect()
    struct.pack_into("<I", frontend.ring_memory[0], 0, offset)
    frontend.events.notify()
    assert frontend.closed()
    assert scene.server.mapped(frontend.domain) == 0
    scene.check()


@pytest.mark.parametrize("ring", [0, 1])
@pytest.mark.parametrize("value", [17, 1 << 31])
def test_srp_indices_that_overrun_close_the_channel(scene, ring, value):
    scene = scene("srp")
    channel = scene.frontend.connect()
    # Ours are the producer of requests, and the consumer of responses.
    struct.pack_into("<I", channel.ring_memory[ring], 64 * ring, value)
    if ring == 1:
        channel.put(build_slot(SlotFormat.MAD, mad.build_mad(mad.MadType.ENABLE_FAST_FAIL)))
    channel.events.notify()
    assert channel.closed()
    assert scene.server.mapped(channel.domain) == 0
    scene.check()


def test_answers_that_nobody_takes_close_the_channel(scene):
    scene = scene("srp")
    channel = scene.frontend.connect()
    for _ in range(17):
        unit = mad.build_mad(mad.MadType.ENABLE_FAST_FAIL)
        while not channel.ring.put(build_slot(SlotFormat.MAD, unit)):
            pass
        channel.ring.publish()
        channel.events.notify()
    assert "no room for answers" in channel.closed()
    scene.check()


# What changes while it is looked at


@pytest.fixture
def quick_switches():
    """Let threads alternate more often, so that they meet in more places."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(5e-5)
    yield
    sys.setswitchinterval(usual)


@pytest.mark.parametrize("protocol", ["blkif", "vscsiif", "srp"])
def test_slots_and_tables_that_are_rewritten_meanwhile(scene, protocol, quick_switches):
    """XSA-155: what was checked is what is used, whatever the frontend writes in between."""
    scene = scene(protocol)
    frontend = scene.frontend.connect()
    data, table = scene.granted[0], scene.granted[1]
    if protocol == "blkif":
        good = blkif.build_segments([{"gref": data[0], "first_sect": 0, "last_sect": 0}] * 64)
        bad = blkif.build_segments([{"gref": 77, "first_sect": 9, "last_sect": 250}] * 64)
        request = frontend.layout.build_request(
            blkif.Operation.INDIRECT,
            indirect_op=1,
            nr_segments=64,
            indirect_grefs=[table[0]],
        )
        junk = request[:2] + b"\xff" * 110
    elif protocol == "vscsiif":
        good = vscsiif.build_segments([{"gref": data[0], "offset": 0, "length": 512}] * 16)
        bad = vscsiif.build_segments([{"gref": 77, "offset": 9999, "length": 65535}] * 16)
        request = vscsiif.build_request(
            cdb=build("WRITE(10)", blocks=16),
            direction=1,
            segments=[{"gref": table[0], "offset": 0, "length": 128}],
            nr_segments=0x81,
        )
        junk = vscsiif.build_request(act=1, cmd_len=255, nr_segments=0xFF, direction=9)
    else:
        frontend.login()
        frames = frontend.region(1, 4)
        view = frontend.memory.view(frames[0], 4)
        table = (None, view[8192:12288])
        good = struct.pack(">QII", 0, 1, 64) * 16
        bad = struct.pack(">QII", 1 << 62, 9, 0xFFFF_FFFF) * 16
        where = {"address": 8192, "handle": 1, "length": 256}
        request = build_slot(
            SlotFormat.SRP,
            srp.build_iu(
                srp.IuType.CMD,
                **srp.cdb_fields(build("WRITE(10)", blocks=2)),
                lun=bytes(8),
                data_out={"table": where, "total_length": 1024, "descriptors": []},
            ),
        )
        junk = build_slot(SlotFormat.SRP, b"\x02" + b"\xff" * 100)
    stop = threading.Event()
    ring = frontend.ring_memory[0]
    size = frontend.slot_size
    start = 128 if protocol == "srp" else 64

    def rewrite():
        chance = random.Random(155)
        while not stop.is_set():
            table[1][: len(good)] = bad
            at = start + size * chance.randrange(8)
            ring[at : at + len(junk)] = junk
            table[1][: len(good)] = good

    thread = threading.Thread(target=rewrite)
    thread.start()
    try:
        for _ in range(150):
            frontend.put(request)
            if not frontend.slots():
                frontend.closed()
                frontend.reopen()
                frontend.connect()
                if protocol == "srp":
                    frontend.login()
                    frontend.region(1, frames=frames)
                ring = frontend.ring_memory[0]
    finally:
        stop.set()
        thread.join()
    scene.check()


# Grants


def test_a_page_in_use_cannot_be_taken_back(scene):
    scene = scene("blkif")
    disk = scene.frontend.connect()
    reference, _ = scene.granted[0]
    store = scene.server.store
    store.hold("read")
    segment = {"gref": reference, "first_sect": 0, "last_sect": 7}
    disk.put(disk.layout.build_request(0, segments=[segment]))
    store.wait_held()
    assert disk.memory.end_access([reference]) == [reference]
    store.release()
    disk.slots()
    assert disk.memory.end_access([reference]) == []
    assert disk.request(0, segments=[segment]).status == -1
    scene.check()


def test_an_entry_rewritten_while_it_is_mapped_changes_nothing(scene):
    """The guest's own table is the guest's to destroy; what is mapped stays what it was."""
    scene = scene("blkif")
    disk = scene.frontend.connect()
    reference, view = scene.granted[0]
    store = scene.server.store
    store.hold("read")
    segment = {"gref": reference, "first_sect": 0, "last_sect": 7}
    disk.put(disk.layout.build_request(0, segments=[segment]))
    store.wait_held()
    frame = len(disk.memory._used) - 1
    secret = disk.memory.view(frame)
    secret[:] = b"s" * PAGE_SIZE
    grant_set(disk.memory._table, reference, BACKEND_DOMAIN, frame, readonly=True)
    store.release()
    assert disk.layout.parse_response(disk.slots()[0]).status == 0
    assert not any(view)  # what the store has
    assert set(secret) == {ord("s")}
    assert scene.server.mapped(disk.domain) == 1
    scene.check()


def test_a_grant_of_the_grant_table_itself(scene):
    """Data that overwrites the marks of its own mapping."""
    scene = scene("blkif")
    disk = scene.frontend.connect()
    scene.server.store.content[:4096] = b"\xff" * 4096
    reference = 4090
    grant_set(disk.memory._table, reference, BACKEND_DOMAIN, reference // 512, readonly=False)
    segment = {"gref": reference, "first_sect": 0, "last_sect": 7}
    for _ in range(3):
        assert disk.request(0, segments=[segment]).status in (0, -1)
    assert scene.server.mapped(disk.domain) == 1
    scene.check()


def test_regions_of_scattered_and_repeated_frames(scene):
    scene = scene("srp")
    channel = scene.frontend.connect()
    channel.login()
    frames = channel.memory.alloc(6, contiguous=True)
    order = [frames[n] for n in (5, 1, 2, 2, 0)]
    channel.region(1, frames=order)
    channel.ready()
    views = [channel.memory.view(frame) for frame in frames]
    scene.server.store.content[:20480] = bytes(n // 4096 + 1 for n in range(20480))
    rsp = channel.execute(
        build("READ(10)", blocks=40), data_in={"address": 0, "handle": 1, "length": 20480}
    )
    assert rsp.status == 0
    assert [set(view) for view in views] == [{5}, {2}, {4}, {0}, {0}, {1}]
    scene.check()


def test_a_ring_in_pages_that_are_granted_as_data_too(scene):
    """A frontend that has its own ring overwritten harms its own channel at most."""
    scene = scene("blkif")
    disk = scene.frontend.connect()
    own_ring = int(disk.store.read(f"{disk.path}/ring-ref"))
    scene.server.store.content[:4096] = b"\xee" * 4096
    disk.put(
        disk.layout.build_request(0, segments=[{"gref": own_ring, "first_sect": 0, "last_sect": 7}])
    )
    disk.closed()
    assert scene.server.mapped(disk.domain) == 0
    scene.check()
