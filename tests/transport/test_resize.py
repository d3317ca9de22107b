# SPDX-License-Identifier: MIT
"""A disk that grows while it is in use: every path hears of it, and can use what came."""

import queue

import pytest

from vscsi.domain.keys import XenbusState
from vscsi.target.stores.memory import MemoryStore
from vscsi.transport.hba import ScsiError
from vscsi.wire.cdb import build
from vscsi.wire.sense import parse_sense
from vscsi.wire.srp import IuType

HANG_S = 30


def grow(server, size_bytes=3 << 20):
    store = server.stores[0]
    old = bytes(store.content)
    store._memory = memoryview(bytearray(old.ljust(size_bytes, b"\0")))
    store.size_bytes = size_bytes
    server.disks[0].resize()


@pytest.mark.parametrize("kind", ["srp", "vscsiif", "blkif"])
def test_commands_are_told_and_the_new_blocks_are_there(server, eventually, kind):
    with server.connect(kind) as hba:
        lun = hba.lun(0)
        assert lun.capacity().blocks == 2048
        with pytest.raises(ScsiError):
            lun.write(4000, bytes(512))
        grow(server)
        if kind == "blkif":
            eventually(lambda: hba.initiator.disk.size_bytes == 3 << 20)
        reply = hba.command(lun, build("TEST UNIT READY"))
        sense = parse_sense(reply.sense)
        assert (sense.key, sense.asc, sense.ascq) == (6, 0x2A, 0x09)
        assert hba.lun(0).capacity().blocks == 6144
        lun.write(6143, b"last block".ljust(512, b"!"))
        assert lun.read(6143, 1).startswith(b"last block")


def test_srp_initiators_are_told_at_once(server):
    with server.connect("srp") as one, server.connect("srp") as other:
        events = queue.SimpleQueue()
        for hba in (one, other):
            hba.lun(0).capacity()
            hba.initiator.on_event = lambda *event: events.put(event)
        grow(server)
        for _ in range(2):
            lun, sense = events.get(timeout=HANG_S)
            assert lun == bytes(8)
            assert parse_sense(sense).asc == 0x2A


def test_a_channel_that_nobody_has_logged_in_on_is_told_nothing(raw, server):
    channel = raw("srp").connect()
    grow(server)
    assert channel.login().type is IuType.LOGIN_RSP


def test_a_new_logical_unit_is_told_at_once(server):
    with server.connect("srp") as hba:
        hba.lun(0).capacity()
        events = queue.SimpleQueue()
        hba.initiator.on_event = lambda *event: events.put(event)
        server.export.router.add(3, type(server.disks[0])(MemoryStore(1 << 20)))
        _, sense = events.get(timeout=HANG_S)
        assert (parse_sense(sense).asc, parse_sense(sense).ascq) == (0x3F, 0x0E)


def test_a_stock_blkfront_sees_its_watch_fire_and_the_new_size(raw, server, eventually):
    """Linux' frontend reads `sectors` again at any event on a backend state of 4."""
    disk = raw("blkif").connect()
    states = []
    disk.store.watch(f"{disk.backend}/state", lambda _: states.append(disk.published("sectors")))
    eventually(lambda: states == ["2048"])
    grow(server)
    eventually(lambda: len(states) > 1)
    assert states[-1] == "6144"
    assert disk.state() is XenbusState.CONNECTED


def test_a_size_is_not_published_where_nothing_is_connected(raw, server):
    disk = raw("blkif")
    disk.wait(XenbusState.INIT_WAIT)
    grow(server)
    disk.connect()
    assert disk.published("sectors") == "6144"


def test_a_stopped_export_observes_its_disks_no_more(server):
    server.export.stop()
    grow(server)
    assert server.disks[0].attentions._observers == ()
