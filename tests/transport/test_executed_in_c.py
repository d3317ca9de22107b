# SPDX-License-Identifier: MIT
"""What the C path knows is executed there, in every form that a protocol has for it.

The counters say so; a test fails where the fast path is lost. What must be on stable storage when
it is answered is shown by a file that nothing can be flushed to: the C path hands such a command
up, and the store's log tells in which order Python does what it asks for.
"""

import os

import pytest

from vscsi.domain.keys import XenbusState
from vscsi.ring import Store as NativeStore
from vscsi.target.stores.memory import MemoryStore
from vscsi.wire import blkif, srp, vscsiif
from vscsi.wire.cdb import build
from vscsi.wire.parameters import build_unmap

SIZE = 1 << 20
BYTES = 4096
LIST = build_unmap([(8, 8)])
OUT, IN, NONE = "out", "in", "none"
COMMANDS = {
    "TEST UNIT READY": ({}, NONE, 0),
    "READ(6)": ({"lba": 3, "blocks": 8}, IN, BYTES),
    "READ(10)": ({"lba": 3, "blocks": 8}, IN, BYTES),
    "READ(12)": ({"lba": 3, "blocks": 8}, IN, BYTES),
    "READ(16)": ({"lba": 3, "blocks": 8, "fua": 1}, IN, BYTES),
    "WRITE(6)": ({"lba": 3, "blocks": 8}, OUT, BYTES),
    "WRITE(10)": ({"lba": 3, "blocks": 8, "fua": 1}, OUT, BYTES),
    "WRITE(12)": ({"lba": 3, "blocks": 8}, OUT, BYTES),
    "WRITE(16)": ({"lba": 3, "blocks": 8}, OUT, BYTES),
    "SYNCHRONIZE CACHE(10)": ({"lba": 3, "blocks": 8}, NONE, 0),
    "SYNCHRONIZE CACHE(16)": ({}, NONE, 0),
    "UNMAP": ({"parameter_list_length": len(LIST)}, OUT, len(LIST)),
}


class Srp:
    """Sends a command with its buffer in one descriptor, in the unit's table, or in memory's."""

    forms = ("direct", "in the unit", "in memory")

    def __init__(self, channel):
        self.channel = channel.connect()
        channel.login()
        frames = channel.region(1, 4)
        channel.ready()
        self.memory = channel.memory.view(frames[0], 4)
        self.memory[: len(LIST)] = LIST

    def send(self, cdb, way, length, form):
        """Return whether it ended with GOOD."""
        half = length // 2
        table = [
            {"address": 0, "handle": 1, "length": half},
            {"address": half, "handle": 1, "length": length - half},
        ]
        self.memory[8192 : 8192 + 32] = b"".join(map(srp.MemoryDescriptor.build, table))
        area = {
            "table": {"address": 8192, "handle": 1, "length": 32},
            "total_length": length,
            "descriptors": table if form == "in the unit" else [],
        }
        if form == "direct":
            area = {**table[0], "length": length}
        areas = {OUT: {"data_out": area}, IN: {"data_in": area}, NONE: {}}[way]
        return self.channel.execute(cdb, **areas).status == 0


class Vscsiif:
    """Sends a command with its segments in the slot, or in granted memory."""

    forms = ("in the slot", "SG_GRANT")

    def __init__(self, channel):
        self.channel = channel.connect().ready()
        self.data, self.memory = channel.page(LIST)
        self.table, self.table_view = channel.page()

    def send(self, cdb, way, length, form):
        half = length // 2
        segments = [
            {"gref": self.data, "offset": 0, "length": half},
            {"gref": self.data, "offset": half, "length": length - half},
        ][: 2 if length else 0]
        count = len(segments)
        if form == "SG_GRANT" and segments:
            table = vscsiif.build_segments(segments)
            self.table_view[: len(table)] = table
            segments = [{"gref": self.table, "offset": 0, "length": len(table)}]
            count = 1 | vscsiif.SG_GRANT
        direction = {OUT: 1, IN: 2, NONE: 3}[way]
        response = self.channel.request(
            cdb=cdb, direction=direction, segments=segments, nr_segments=count
        )
        return response.rslt == response.residual == 0


SCSI = {"srp": Srp, "vscsiif": Vscsiif}


def executed(server, channel):
    return server.end(channel.domain, channel.kind).report()["executed_in_c"]


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize(
    ("protocol", "form"),
    [(protocol, form) for protocol, end in SCSI.items() for form in end.forms],
)
def test_scsi_commands(serve, raw, protocol, form, name):
    server = serve(MemoryStore(SIZE))
    channel = raw(protocol, at=server)
    end = SCSI[protocol](channel)
    fields, way, length = COMMANDS[name]
    before = executed(server, channel)
    for _ in range(3):
        assert end.send(build(name, **fields), way, length, form)
    assert executed(server, channel) == before + 3


BLKIF = {
    "READ": (blkif.Operation.READ, {"segments": 2}),
    "WRITE": (blkif.Operation.WRITE, {"segments": 2}),
    "WRITE_BARRIER": (blkif.Operation.WRITE_BARRIER, {"segments": 1}),
    "an empty WRITE_BARRIER": (blkif.Operation.WRITE_BARRIER, {}),
    "FLUSH_DISKCACHE": (blkif.Operation.FLUSH_DISKCACHE, {}),
    "FLUSH_DISKCACHE with data": (blkif.Operation.FLUSH_DISKCACHE, {"segments": 1}),
    "DISCARD": (blkif.Operation.DISCARD, {"nr_sectors": 8}),
    "INDIRECT READ": (blkif.Operation.INDIRECT, {"indirect_op": 0, "segments": 256}),
    "INDIRECT WRITE": (blkif.Operation.INDIRECT, {"indirect_op": 1, "segments": 20}),
}


class Blkif:
    """Sends requests of BLKIF, whose segments are all the same page."""

    def __init__(self, channel):
        self.channel = channel.connect()
        self.data, self.memory = channel.page()
        self.table, self.table_view = channel.page()

    def send(self, name):
        operation, fields = BLKIF[name]
        segments = [{"gref": self.data, "first_sect": 0, "last_sect": 7}] * fields.get(
            "segments", 0
        )
        fields = {**fields, "segments": segments}
        if operation is blkif.Operation.DISCARD:
            del fields["segments"]
        if operation is blkif.Operation.INDIRECT:
            table = blkif.build_segments(fields.pop("segments"))
            self.table_view[: len(table)] = table
            fields |= {"nr_segments": len(segments), "indirect_grefs": [self.table]}
        response = self.channel.request(operation, id=0x1234_5678_9ABC_DEF0, **fields)
        assert response.id == 0x1234_5678_9ABC_DEF0
        assert response.operation == fields.get("indirect_op", operation)
        return response.status == blkif.RspStatus.OKAY


@pytest.mark.parametrize("name", BLKIF)
@pytest.mark.parametrize("layout", [blkif.X86_64, blkif.X86_32], ids=lambda each: each.protocol)
def test_blkif_requests(serve, raw, layout, name):
    server = serve(MemoryStore(2 * SIZE))
    channel = raw("blkif", at=server, layout=layout)
    end = Blkif(channel)
    before = executed(server, channel)
    for _ in range(3):
        assert end.send(name)
    assert executed(server, channel) == before + 3


def test_a_stopped_unit_is_as_good_as_any_to_blkif(serve, raw):
    """What START STOP UNIT says concerns SCSI."""
    server = serve(MemoryStore(2 * SIZE))
    scsi, channel = raw("vscsiif", at=server), raw("blkif", at=server)
    assert Vscsiif(scsi).send(build("START STOP UNIT"), NONE, 0, "in the slot")
    end = Blkif(channel)
    assert end.send("READ")
    assert end.send("WRITE")
    assert executed(server, channel) == 2


def test_segment_blocks_are_pythons_and_what_follows_them_is_not(serve, raw):
    server = serve(MemoryStore(SIZE))
    disk = raw("blkif", at=server)
    disk.connect(max_request_segments="20")
    end = server.end(disk.domain, disk.kind)
    reference, _ = disk.page(b"\x17" * BYTES)
    segment = {"gref": reference, "first_sect": 0, "last_sect": 7}
    block = blkif.build_segments([segment] * 3).ljust(disk.slot_size, b"\0")
    request = disk.layout.build_request(1, nr_segments=14, segments=[segment] * 11)
    for _ in range(2):
        disk.put(request, block, disk.layout.build_request(1, segments=[segment]))
        assert [disk.layout.parse_response(each).status for each in disk.slots(3)][::2] == [0, 0]
    assert end.report()["executed_in_c"] == 2
    assert server.store._memory[: 14 * BYTES] == b"\x17" * (14 * BYTES)


def test_units_of_vscsiif_come_and_go(serve, raw):
    """The toolstack plugs the disk in at a second address, and out again."""
    server = serve(MemoryStore(SIZE))
    host = raw("vscsiif", at=server)
    Vscsiif(host)
    tools = server.export.host.store
    reference, _ = host.page()
    request = {"cdb": build("READ(10)", blocks=8), "direction": 2}
    request["segments"] = [{"gref": reference, "offset": 0, "length": BYTES}]

    def plug(state):
        unit = f"{host.backend}/vscsi-devs/dev-7"
        for key, value in {"p-dev": "0", "v-dev": "0:0:3:1", "state": str(int(state))}.items():
            tools.write(f"{unit}/{key}", value)
        tools.write(f"{host.backend}/state", str(int(XenbusState.RECONFIGURING)))
        host.wait(XenbusState.RECONFIGURING)
        host.publish(XenbusState.RECONFIGURING)
        host.wait(XenbusState.RECONFIGURED)
        host.publish(XenbusState.CONNECTED)
        host.wait(XenbusState.CONNECTED)

    def run(**address):
        before = executed(server, host)
        return host.request(**request, **address).rslt, executed(server, host) - before

    there, gone = (0, 1), (vscsiif.pack_rslt(0, vscsiif.Host.NO_CONNECT), 0)
    assert (run(), run(id=3, lun=1)) == (there, gone)
    plug(XenbusState.INITIALISING)
    assert (run(), run(id=3, lun=1)) == (there, there)
    plug(XenbusState.CLOSING)
    assert (run(), run(id=3, lun=1)) == (there, gone)


# What must be on stable storage


@pytest.fixture
def cannot_flush(watched_store):
    """A store on a device that takes writes and refuses to flush, for the C path alone."""
    device = os.open("/dev/zero", os.O_RDWR)
    store = watched_store(SIZE)
    store.native = NativeStore.file(device)
    yield store
    os.close(device)


class Watch:
    """Says who executed what a test sends, and what Python did of it."""

    def __init__(self, server, channel):
        self.server, self.channel = server, channel

    def __call__(self, send):
        log = self.server.store.log
        before, log[:] = executed(self.server, self.channel), []
        assert send()
        in_c = executed(self.server, self.channel) > before
        assert in_c != bool(log)
        return "in C" if in_c else [operation for operation, *_ in log]


@pytest.mark.parametrize("write_cache", [True, False])
@pytest.mark.parametrize("protocol", SCSI)
def test_scsi_commands_flush_what_they_promise(serve, raw, cannot_flush, protocol, write_cache):
    server = serve(cannot_flush, write_cache=write_cache)
    channel = raw(protocol, at=server)
    end = SCSI[protocol](channel)
    watch = Watch(server, channel)

    def run(name, way, **fields):
        cdb = build(name, **fields)
        return watch(lambda: end.send(cdb, way, 0 if way == NONE else BYTES, end.forms[0]))

    assert run("READ(10)", IN, blocks=8) == "in C"
    assert run("WRITE(10)", OUT, blocks=8) == ("in C" if write_cache else ["write", "flush"])
    assert run("READ(10)", IN, blocks=8, fua=1) == ["flush", "read"]
    assert run("WRITE(10)", OUT, blocks=8, fua=1) == ["write", "flush"]
    assert run("SYNCHRONIZE CACHE(10)", NONE) == ["flush"]


@pytest.mark.parametrize("write_cache", [True, False])
def test_blkif_requests_flush_what_they_promise(serve, raw, cannot_flush, write_cache):
    server = serve(cannot_flush, write_cache=write_cache)
    channel = raw("blkif", at=server)
    end, watch = Blkif(channel), Watch(server, channel)

    def run(name):
        return watch(lambda: end.send(name))

    written = "in C" if write_cache else ["write", "flush"]
    assert run("READ") == "in C"
    assert run("WRITE") == written
    assert run("INDIRECT WRITE") == written
    assert run("WRITE_BARRIER") == ["flush", "write", "flush"]
    assert run("FLUSH_DISKCACHE with data") == ["flush", "write", "flush"]
    assert run("an empty WRITE_BARRIER") == ["flush"]
    assert run("FLUSH_DISKCACHE") == ["flush"]


@pytest.mark.parametrize("protocol", SCSI)
def test_the_histograms_have_every_command_once(serve, raw, protocol):
    """By operation, with its size; latencies are counted with the answers that they belong to."""
    server = serve(MemoryStore(SIZE))
    channel = raw(protocol, at=server)
    end = SCSI[protocol](channel)
    sizes = [512, 512, 4096, 1024]
    for name, way in (("READ(10)", IN), ("WRITE(16)", OUT)):
        for size in sizes:
            assert end.send(build(name, blocks=size // 512), way, size, end.forms[0])
    assert end.send(build("SYNCHRONIZE CACHE(10)"), NONE, 0, end.forms[0])
    # Counted once its answer is shown: what came before the last command has been by now.
    assert end.send(build("TEST UNIT READY"), NONE, 0, end.forms[0])
    told = server.end(channel.domain, channel.kind).report()["operations_in_c"]
    for operation in ("read", "write"):
        counts = told[operation]["bytes"]
        assert (counts["count"], counts["min"], counts["max"]) == (4, 512, 4096)
        assert 512 <= counts["p50"] <= 512 * 33 / 32
        assert counts["p99"] == 4096
        latency = told[operation]["latency_ns"]
        assert latency["count"] == 4
        assert 0 < latency["min"] <= latency["p50"] <= latency["p99"] <= latency["max"]
    assert told["flush"]["latency_ns"]["count"] == told["flush"]["bytes"]["count"] == 1
