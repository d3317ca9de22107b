# SPDX-License-Identifier: MIT
"""blkif slot by slot: every operation in every layout, what is refused, what is stored when."""

import errno

import pytest

from vscsi.domain.base import PAGE_SIZE
from vscsi.domain.keys import XenbusState
from vscsi.target.stores.memory import MemoryStore
from vscsi.wire import blkif
from vscsi.wire.blkif import Operation, RspStatus
from vscsi.wire.cdb import build

LAYOUTS = [blkif.X86_64, blkif.X86_32, blkif.ARM]
PATTERN = bytes(range(256)) * 16
UNTOUCHED = 0xA5


@pytest.fixture(params=LAYOUTS, ids=lambda layout: layout.protocol)
def disk(request, raw):
    return raw("blkif", layout=request.param).connect()


@pytest.fixture
def plain(raw):
    return raw("blkif").connect()


def segment(reference, first=0, last=7):
    return {"gref": reference, "first_sect": first, "last_sect": last}


def untouched(frontend, **options):
    return frontend.page(bytes([UNTOUCHED]) * PAGE_SIZE, **options)


# Operations


def test_sectors_of_pages_are_read_and_written_in_order(disk, server):
    server.store.content[512 * 10 : 512 * 18] = PATTERN
    (first, one), (second, two) = untouched(disk), untouched(disk)
    segments = [segment(first, 5, 7), segment(second, 0, 0), segment(first, 1, 4)]
    response = disk.request(Operation.READ, id=1 << 63 | 5, sector_number=10, segments=segments)
    assert (response.id, response.operation, response.status) == (1 << 63 | 5, 0, 0)
    assert one[5 * 512 :] == PATTERN[: 3 * 512]
    assert two[:512] == PATTERN[3 * 512 : 4 * 512]
    assert one[512 : 5 * 512] == PATTERN[4 * 512 :]
    assert set(one[:512]) == set(two[512:]) == {UNTOUCHED}
    response = disk.request(Operation.WRITE, id=3, sector_number=100, segments=segments)
    assert (response.operation, response.status) == (Operation.WRITE, RspStatus.OKAY)
    assert server.store.content[100 * 512 : 108 * 512] == PATTERN
    assert server.mapped(disk.domain) == 1


@pytest.mark.parametrize("operation", [Operation.READ, Operation.WRITE])
def test_an_indirect_request_is_answered_with_what_it_does(disk, server, operation):
    """Linux' frontend disables the disk for ever if the answer says 6 instead."""
    count = 256
    data, _ = untouched(disk)
    table, view = disk.page(readonly=True)
    segments = blkif.build_segments([segment(data, n % 8, n % 8) for n in range(count)])
    view[: len(segments)] = segments
    server.store.content[: count * 512] = bytes(n % 251 for n in range(count * 512))
    before = bytes(server.store.content)
    response = disk.request(
        Operation.INDIRECT,
        id=9,
        indirect_op=operation,
        nr_segments=count,
        sector_number=0 if operation is Operation.READ else 1024,
        indirect_grefs=[table],
    )
    assert (response.id, response.operation, response.status) == (9, operation, 0)
    if operation is Operation.WRITE:
        assert set(server.store.content[1024 * 512 : 1280 * 512]) == {UNTOUCHED}
    else:
        assert server.store.content == before


def test_a_discard_reads_as_zeros(disk, server):
    server.store.content[:8192] = PATTERN * 2
    response = disk.request(Operation.DISCARD, id=4, sector_number=2, nr_sectors=3)
    assert (response.id, response.operation, response.status) == (4, Operation.DISCARD, 0)
    assert server.store.content[:8192] == (
        PATTERN[:1024] + bytes(3 * 512) + (PATTERN * 2)[5 * 512 :]
    )


@pytest.mark.parametrize("operation", [4, 7, 200, 255])
def test_unknown_operations_are_not_supported(disk, operation):
    response = disk.request(operation, id=8)
    assert (response.id, response.operation) == (8, operation)
    assert response.status == RspStatus.EOPNOTSUPP


def test_the_rest_of_a_response_s_slot_is_zero(plain):
    """XSA-216: nothing of ours, and nothing of what was in the slot."""
    plain.put(plain.layout.build_request(255, id=8)[:16].ljust(112, b"\xff"))
    (slot,) = plain.slots()
    assert slot == plain.layout.build_response(id=8, operation=255, status=-2).ljust(112, b"\0")


# What is stored when


def test_a_flush_is_answered_when_the_store_has_flushed(plain, server):
    server.store.hold("flush")
    plain.put(plain.layout.build_request(Operation.FLUSH_DISKCACHE, sector_number=(1 << 64) - 1))
    server.store.wait_held()
    assert plain.ring.take() == []
    server.store.release()
    assert plain.layout.parse_response(plain.slots()[0]).status == 0
    assert server.store.log == [("flush",)]


@pytest.mark.parametrize("operation", [Operation.WRITE_BARRIER, Operation.FLUSH_DISKCACHE])
def test_a_barrier_is_durable_and_so_is_all_before_it(plain, server, operation):
    reference, _ = plain.page()
    for sector, each in ((0, Operation.WRITE), (8, operation), (16, Operation.WRITE)):
        plain.request(each, sector_number=sector, segments=[segment(reference)])
    assert server.store.log == [
        ("write", 0, 4096),
        ("flush",),
        ("write", 4096, 4096),
        ("flush",),
        ("write", 8192, 4096),
    ]


def test_without_a_write_cache_every_write_is_durable(serve, raw):
    server = serve(write_cache=False)
    disk = raw("blkif", at=server).connect()
    reference, _ = disk.page()
    disk.request(Operation.WRITE, segments=[segment(reference)])
    disk.request(Operation.READ, segments=[segment(reference)])
    disk.request(Operation.DISCARD, nr_sectors=8)
    assert server.store.log == [
        ("write", 0, 4096),
        ("flush",),
        ("read", 0, 4096),
        ("discard", 0, 4096),
        ("flush",),
    ]


def test_the_write_cache_is_what_the_scsi_paths_made_it(plain, server):
    with server.connect("srp") as hba:
        mode_page = bytes([0, 0, 0, 0, 0x08, 0x12]) + bytes(18)
        cdb = build("MODE SELECT(6)", pf=1, parameter_list_length=len(mode_page))
        hba.lun(0).command(cdb, data_out=mode_page)
    server.store.log.clear()
    reference, _ = plain.page()
    plain.request(Operation.WRITE, segments=[segment(reference)])
    assert server.store.log == [("write", 0, 4096), ("flush",)]


@pytest.mark.parametrize(
    ("failing", "operation"),
    [
        ("read", Operation.READ),
        ("write", Operation.WRITE),
        ("flush", Operation.FLUSH_DISKCACHE),
        ("flush", Operation.WRITE_BARRIER),
        ("write", Operation.WRITE_BARRIER),
    ],
)
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_an_error_of_the_store_is_the_request_s(plain, server, failing, operation, code):
    reference, _ = plain.page()
    server.store.errors[failing] = code
    response = plain.request(operation, segments=[segment(reference)])
    assert (response.operation, response.status) == (operation, RspStatus.ERROR)
    server.store.errors.clear()
    assert plain.request(operation, segments=[segment(reference)]).status == 0


# What is refused


def test_an_error_of_any_segment_is_the_request_s(plain, server):
    """All of a request is refused before any of it is moved."""
    good, view = untouched(plain)
    locked, read_only = untouched(plain, readonly=True)
    foreign, _ = untouched(plain)
    plain.memory.end_access([foreign])
    bad = [
        segment(foreign),
        segment(0xFFFF_FFFF),
        segment(good, 3, 2),
        segment(good, 0, 8),
        segment(good, 255, 255),
        segment(locked),
    ]
    for each in bad:
        for at in (0, 5, 10):
            segments = [segment(good)] * at + [each] + [segment(good)] * (10 - at)
            response = plain.request(Operation.READ, segments=segments)
            assert response.status == RspStatus.ERROR, each
    assert set(view) == set(read_only) == {UNTOUCHED}
    assert server.store.log == []
    assert server.mapped(plain.domain) == 1
    # To write from what is granted read-only is what it was granted for.
    assert plain.request(Operation.WRITE, segments=[segment(locked)]).status == 0


@pytest.mark.parametrize(
    ("operation", "fields"),
    [
        (Operation.READ, {"segments": []}),
        (Operation.WRITE, {"segments": []}),
        (Operation.READ, {"nr_segments": 12}),
        (Operation.WRITE, {"nr_segments": 255}),
        (Operation.READ, {"sector_number": 2048}),
        (Operation.READ, {"sector_number": 2041}),
        (Operation.WRITE, {"sector_number": (1 << 64) - 1}),
        (Operation.DISCARD, {"sector_number": 2047, "nr_sectors": 2}),
        (Operation.DISCARD, {"sector_number": 1 << 63, "nr_sectors": 1 << 63}),
        (Operation.DISCARD, {"sector_number": 0, "nr_sectors": (1 << 64) - 1}),
        (Operation.INDIRECT, {"nr_segments": 0}),
        (Operation.INDIRECT, {"nr_segments": 257}),
        (Operation.INDIRECT, {"nr_segments": 0xFFFF}),
        (Operation.INDIRECT, {"nr_segments": 1, "indirect_grefs": [77]}),
        (Operation.INDIRECT, {"nr_segments": 1, "indirect_op": Operation.FLUSH_DISKCACHE}),
        (Operation.INDIRECT, {"nr_segments": 1, "indirect_op": Operation.INDIRECT}),
    ],
)
def test_counts_and_ranges_out_of_bounds(disk, server, operation, fields):
    reference, view = untouched(disk)
    if operation is Operation.INDIRECT:
        table, _ = disk.page(blkif.build_segments([segment(reference)]))
        fields = {"indirect_grefs": [table], **fields}
    elif operation is not Operation.DISCARD:
        count = min(fields.get("nr_segments", 1), 11)
        fields = {"segments": [segment(reference)] * count, **fields}
    response = disk.request(operation, id=3, **fields)
    expected = fields.get("indirect_op", 0) if operation is Operation.INDIRECT else operation
    assert (response.id, response.operation) == (3, expected)
    assert response.status == RspStatus.ERROR
    assert set(view) == {UNTOUCHED}
    assert server.store.log == []
    assert disk.request(Operation.FLUSH_DISKCACHE).status == 0


def test_a_read_only_disk_is_not_changed_by_any_operation(serve, raw, watched_store):
    """CVE-2013-2140: DISCARD needs the right to write as well."""
    store = watched_store(readonly=True)
    server = serve(store)
    disk = raw("blkif", at=server)
    disk.wait(XenbusState.INIT_WAIT)
    assert disk.published("mode") == "r"
    assert disk.published("feature-discard") == "0"
    disk.connect()
    assert disk.published("info") == "4"
    reference, _ = disk.page(PATTERN)
    table, _ = disk.page(blkif.build_segments([segment(reference)]))
    for operation, fields in (
        (Operation.WRITE, {"segments": [segment(reference)]}),
        (Operation.WRITE_BARRIER, {"segments": [segment(reference)]}),
        (Operation.FLUSH_DISKCACHE, {"segments": [segment(reference)]}),
        (Operation.DISCARD, {"nr_sectors": 8}),
        (Operation.INDIRECT, {"indirect_op": 1, "nr_segments": 1, "indirect_grefs": [table]}),
    ):
        assert disk.request(operation, **fields).status == RspStatus.ERROR
    assert not any(each[0] in ("write", "discard") for each in store.log)
    assert disk.request(Operation.READ, segments=[segment(reference)]).status == 0


def test_software_write_protection_holds_here_too(plain, server):
    with server.connect("srp") as hba:
        lun = hba.lun(0)
        sense = build("MODE SENSE(6)", dbd=1, page_code=0x0A, allocation_length=255)
        page = bytearray(lun.command(sense, data_in=255))
        page[0] = page[2] = 0
        page[4 + 4] |= 0x08  # SWP
        select = build("MODE SELECT(6)", pf=1, parameter_list_length=len(page))
        lun.command(select, data_out=bytes(page))
    reference, _ = plain.page(PATTERN)
    assert plain.request(Operation.WRITE, segments=[segment(reference)]).status < 0


def test_sectors_are_of_512_bytes_whatever_the_block_size(serve, raw):
    server = serve(block_size=4096)
    disk = raw("blkif", at=server).connect()
    assert disk.published("sector-size") == "4096"
    assert disk.published("sectors") == "2048"
    reference, _ = disk.page(PATTERN)
    assert (
        disk.request(Operation.WRITE, sector_number=16, segments=[segment(reference)]).status
        == RspStatus.OKAY
    )
    assert server.store.content[8192:12288] == PATTERN
    for sector, first, last in ((17, 0, 7), (16, 0, 0), (16, 1, 7)):
        response = disk.request(
            Operation.WRITE, sector_number=sector, segments=[segment(reference, first, last)]
        )
        assert response.status == RspStatus.ERROR
    assert disk.request(Operation.DISCARD, sector_number=8, nr_sectors=4).status < 0


# Negotiation


@pytest.mark.parametrize("order", range(5))
def test_rings_of_up_to_sixteen_pages_wrap_around(raw, server, order):
    disk = raw("blkif").connect(pages=1 << order)
    entries = disk.ring.entries
    assert entries == 32 << order
    flush = [disk.layout.build_request(Operation.FLUSH_DISKCACHE, id=n) for n in range(entries)]
    for _ in range(3):
        disk.put(*flush)
        answers = [disk.layout.parse_response(slot) for slot in disk.slots(entries)]
        assert [each.id for each in answers] == list(range(entries))


@pytest.mark.parametrize("count", [12, 25, 26, 100, 255])
def test_segment_blocks_follow_their_request(raw, server, count):
    """FreeBSD's 2010 extension: a request over several slots, whose answer takes as many."""
    disk = raw("blkif").connect(
        max_requests="32", max_request_segments="255", max_request_size=str(255 * 4096)
    )
    reference, _ = disk.page(bytes([7]) * PAGE_SIZE)
    segments = [segment(reference, 0, 0)] * count
    slots = blkif.slots_of(count)
    for round_ in range(4):  # the blocks wrap around the ring's end
        disk.put(
            disk.layout.build_request(
                Operation.WRITE,
                id=round_,
                nr_segments=count,
                segments=segments[:11],
                sector_number=256 * round_,
            ),
            *(
                blkif.build_segments(segments[at : at + 14]).ljust(112, b"\0")
                for at in range(11, count, 14)
            ),
        )
        answers = disk.slots(slots)
        response = disk.layout.parse_response(answers[0])
        assert (response.id, response.status) == (round_, 0)
        assert not any(map(any, answers[1:]))
        start = 256 * round_ * 512
        assert set(server.store.content[start : start + count * 512]) == {7}


def test_more_segments_than_were_agreed_on_are_refused(raw, server):
    disk = raw("blkif").connect(max_request_segments="20")
    reference, _ = disk.page()
    request = disk.layout.build_request(
        Operation.WRITE, id=4, nr_segments=21, segments=[segment(reference)] * 11
    )
    disk.put(request, blkif.build_segments([segment(reference)] * 10).ljust(112, b"\0"))
    assert disk.layout.parse_response(disk.slots(2)[0]).status == RspStatus.ERROR
    assert server.store.log == []


@pytest.mark.parametrize("default", [blkif.X86_64, blkif.X86_32])
def test_a_frontend_finds_out_the_layout_that_none_has_said(serve, default):
    server = serve(blkif_layout=default)
    with server.connect("blkif", "?protocol=probe") as hba:
        assert hba.parameters()["layout"] == default.protocol
        lun = hba.lun(0)
        data = PATTERN * 64
        lun.write(1, data)
        assert lun.read(1, len(data) // 512) == data
        path = f"/local/domain/{hba.initiator.guest.domain}/device/vbd/51712"
        assert "protocol" not in server.export.host.store.directory(path)


@pytest.mark.parametrize("protocol", ["x86_32-abi", "x86_64-abi", "arm-abi"])
@pytest.mark.parametrize("segments", ["indirect", "blocks"])
def test_our_frontend_speaks_every_layout(server, protocol, segments):
    with server.connect("blkif", f"?protocol={protocol}&segments={segments}") as hba:
        lun = hba.lun(0)
        data = PATTERN * 60
        lun.write(3, data)
        assert lun.read(3, len(data) // 512) == data
        limit = hba.parameters()["segments"]
    assert limit == (256 if segments == "indirect" else 11 if protocol == "x86_32-abi" else 255)


def test_each_disk_is_a_vbd_of_its_own(serve):
    server = serve(MemoryStore(1 << 20), MemoryStore(2 << 20))
    for number, blocks in ((0, 2048), (1, 4096)):
        with server.connect("blkif", f"?disk={number}") as hba:
            assert hba.lun(0).capacity().blocks == blocks
            hba.lun(0).write(0, bytes([number]) * 512)
    assert [store._memory[0] for store in server.stores] == [0, 1]


def test_a_close_in_order_and_a_new_connection(plain, server):
    plain.publish(XenbusState.CLOSING)
    plain.wait(XenbusState.CLOSING)
    assert server.mapped(plain.domain) == 0
    plain.reopen()
    plain.connect()
    assert plain.request(Operation.FLUSH_DISKCACHE).status == 0
