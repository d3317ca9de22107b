# SPDX-License-Identifier: MIT
"""What stock Linux drivers were recorded to send, sent again to our backends, byte for byte.

Grant references and memory handles are those of the recording: pages are granted, and a region is
registered, under the same numbers.
"""

import pytest

from vscsi.domain.local import BACKEND_DOMAIN
from vscsi.ring._core import grant_set
from vscsi.target.stores.memory import MemoryStore
from vscsi.wire import blkif, mad, srp, vscsiif
from vscsi.wire import cdb as cdbs
from vscsi.wire.blkif import Operation
from vscsi.wire.mad import parse_mad
from vscsi.wire.sense import parse_sense
from vscsi.wire.srp import IuType
from vscsi.wire.srp_ring import SlotFormat, build_slot

DISK_BYTES = 64 << 20


@pytest.fixture
def stock_server(serve):
    server = serve(MemoryStore(DISK_BYTES))
    content = server.store._memory
    for sector in range(1 << 15):
        content[sector * 512 : sector * 512 + 4] = sector.to_bytes(4, "big")
    return server


class Pages:
    """Pages of a frontend, granted under the references that a recording names."""

    def __init__(self, frontend):
        self.frontend = frontend
        self._views = {}

    def __getitem__(self, reference):
        if reference not in self._views:
            memory = self.frontend.memory
            (frame,) = memory.alloc(1)
            grant_set(memory._table, reference, BACKEND_DOMAIN, frame, readonly=False)
            self._views[reference] = memory.view(frame)
        return self._views[reference]


def replay(frontend, entries, begin, end):
    """Send requests and take answers in the recorded order: as deep as the driver was."""
    for entry in entries:
        if entry["dir"] == "req":
            slot = bytes.fromhex(entry["slot"])
            begin(slot)
            frontend.put(slot)
        else:
            (slot,) = frontend.slots()
            end(slot, bytes.fromhex(entry["slot"]))


def test_xen_blkfront_from_probing_to_a_flush(stock_server, raw, capture):
    disk = raw("blkif", at=stock_server).connect()
    pages = Pages(disk)
    pending = {}
    done = dict.fromkeys((Operation.READ, Operation.WRITE, 3), 0)
    content = stock_server.store._memory

    def begin(slot):
        request = blkif.X86_64.parse_request(slot)
        pending[request.id] = request
        for segment in request.segments:
            pages[segment.gref][0] = 0x77

    def end(slot, recorded):
        response = blkif.X86_64.parse_response(slot)
        request = pending.pop(response.id)
        assert (response.operation, response.status) == (request.operation, 0)
        assert blkif.X86_64.parse_response(recorded).status == 0
        done[response.operation] += 1
        sector = request.sector_number
        for segment in request.segments:
            first, last = segment.first_sect * 512, (segment.last_sect + 1) * 512
            moved = pages[segment.gref][first:last]
            stored = content[sector * 512 : sector * 512 + len(moved)]
            assert moved == stored
            sector += len(moved) // 512

    replay(disk, capture("xen-blkfront.json"), begin, end)
    assert not pending
    assert done == {Operation.READ: 320, Operation.WRITE: 1, Operation.FLUSH_DISKCACHE: 1}
    assert stock_server.mapped(disk.domain) == 1


def test_xen_scsifront_from_inquiry_to_a_cache_flush(stock_server, raw, capture):
    host = raw("vscsiif", at=stock_server).connect()
    pages = Pages(host)
    pending, attentions = {}, []
    content = stock_server.store._memory

    def begin(slot):
        request = vscsiif.parse_request(slot)
        pending[request.rqid] = request
        for segment in request.segments[: request.nr_segments]:
            assert pages[segment.gref]

    def end(slot, recorded):
        response = vscsiif.parse_response(slot)
        request = pending.pop(response.rqid)
        cdb = cdbs.decode(vscsiif.cdb_of(request))
        if response.rslt:
            attentions.append(parse_sense(response.sense_buffer[: response.sense_len]))
            return
        if cdb.row.name in ("READ(10)", "WRITE(10)"):
            at = cdb.lba * 512
            for segment in request.segments[: request.nr_segments]:
                start = segment.offset
                moved = pages[segment.gref][start : start + segment.length]
                assert moved == content[at : at + segment.length]
                at += segment.length
            assert response.residual == 0
        if cdb.row.name == "INQUIRY" and not cdb.field("evpd"):
            segment = request.segments[0]
            data = pages[segment.gref][segment.offset : segment.offset + segment.length]
            assert bytes(data[8:13]) == b"VSCSI"

    replay(host, capture("xen-scsifront.json"), begin, end)
    assert not pending
    assert [(sense.asc, sense.ascq) for sense in attentions] == [(0x29, 0x01)]
    assert stock_server.mapped(host.domain) == 1


def test_ibmvscsi_from_its_adapter_info_to_the_scan(stock_server, raw, capture):
    channel = raw("srp", at=stock_server)
    channel.slot_size = 320  # its units have up to 256 bytes
    channel.connect(pages=4, slot_size="320")
    frames = channel.region(0, 2048)  # the driver's addresses are below 8 MiB
    memory = channel.memory.view(frames[0], 2048)
    missing = 0
    for pair in capture("ibmvscsi-srp.jsonl"):
        unit, recorded = bytes.fromhex(pair["req"]), bytes.fromhex(pair["rsp"])
        form = SlotFormat.MAD if pair["kind"] == "MAD" else SlotFormat.SRP
        channel.put(build_slot(form, unit))
        reply = channel.receive()
        if pair["kind"] == "MAD":
            assert mad.build_mad(reply.type, **reply) == recorded  # also QEMU's answer
            assert parse_mad(recorded).status == mad.MadStatus.SUCCESS
            continue
        theirs = srp.parse_iu(recorded)
        assert (reply.type, reply.tag) == (theirs.type, theirs.tag)
        if reply.type is IuType.LOGIN_RSP:
            assert reply.request_limit_delta > 2
            assert reply.max_it_iu_length >= 256
            continue
        request = srp.parse_iu(unit)
        assert (reply.status, srp.rsp_code(reply)) == (0, None)  # INQUIRY and REPORT LUNS alone
        if cdbs.decode(srp.cdb_of(request)).row.name == "INQUIRY":
            there = request.lun[:2] == b"\x80\0"
            # Ours is LUN 0 of target 0 on bus 0; of all others "no device can be here".
            assert memory[request.data_in.address] == (0 if there else 0x7F)
            missing += not there
    assert missing > 20
