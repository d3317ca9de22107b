# SPDX-License-Identifier: MIT
"""Logical units that come and go while they are served: every path hears of it."""

import threading

import pytest

from vscsi.domain.keys import XenbusState
from vscsi.target.disk import Disk
from vscsi.target.stores.memory import MemoryStore
from vscsi.transport.hba import ScsiError, TransportError
from vscsi.wire.cdb import build
from vscsi.wire.lun import encode
from vscsi.wire.sense import parse_sense
from vscsi.wire.vscsiif import Host, pack_rslt

HANG_S = 30
TEST_UNIT_READY = build("TEST UNIT READY")
INQUIRY = build("INQUIRY", allocation_length=36)


def new_disk(size_bytes=2 << 20):
    return Disk(MemoryStore(size_bytes), identity="another")


def attention(hba, number=0):
    """Return what TEST UNIT READY is told, as key, ASC and ASCQ."""
    sense = parse_sense(hba.command(hba.lun(number), TEST_UNIT_READY).sense)
    return sense and (sense.key, sense.asc, sense.ascq)


@pytest.mark.parametrize("kind", ["srp", "vscsiif"])
def test_initiators_hear_of_what_comes_and_goes(server, eventually, kind):
    with server.connect(kind) as hba:
        hba.lun(0).capacity()
        server.export.add(1, new_disk())
        assert attention(hba) == (6, 0x3F, 0x0E)
        assert hba.report_luns() == [encode(0), encode(1)]
        if kind == "vscsiif":
            eventually(lambda: is_there(hba, 1), "LUN 1")
        hba.lun(1).write(7, b"new".ljust(512))
        assert hba.lun(1).capacity().blocks == 4096
        server.export.remove(1)
        with pytest.raises((ScsiError, TransportError)):
            hba.lun(1).read(7, 1)
        assert attention(hba) == (6, 0x3F, 0x0E)
        assert hba.report_luns() == [encode(0)]


def is_there(hba, number):
    try:
        hba.command(hba.lun(number), TEST_UNIT_READY)
    except TransportError:
        return False
    return True


def test_a_stock_scsifront_is_led_through_the_handshake(raw, server, eventually):
    """States 7 and 8, and those of the unit, as xen-scsiback and libxl write them."""
    host = raw("vscsiif").connect()
    there = {"cdb": INQUIRY, "direction": 3, "lun": 1}

    def unit():
        return host.published("vscsi-devs/dev-1/state")

    def reconfigure(came_to):
        host.wait(XenbusState.RECONFIGURING)
        host.publish(XenbusState.RECONFIGURING)
        host.wait(XenbusState.RECONFIGURED)
        assert unit() == str(int(came_to))
        host.publish(XenbusState.CONNECTED)

    server.export.add(1, new_disk())
    reconfigure(XenbusState.INITIALISED)
    eventually(lambda: unit() == str(int(XenbusState.CONNECTED)))
    assert host.published("vscsi-devs/dev-1/p-dev") == "1"
    assert host.published("vscsi-devs/dev-1/v-dev") == "0:0:0:1"
    assert host.request(**there).rslt == 0

    server.export.remove(1)
    host.wait(XenbusState.RECONFIGURING)
    assert unit() == str(int(XenbusState.CLOSING))
    # Another one takes the number while the guest has not let go of the first.
    server.export.add(1, new_disk())
    reconfigure(XenbusState.CLOSED)
    reconfigure(XenbusState.INITIALISED)
    eventually(lambda: unit() == str(int(XenbusState.CONNECTED)))

    server.export.remove(1)
    reconfigure(XenbusState.CLOSED)
    eventually(lambda: unit() is None)
    assert host.request(**there).rslt == pack_rslt(0, Host.NO_CONNECT)
    assert host.request(cdb=INQUIRY, direction=3).rslt == 0


def test_units_of_a_device_that_is_not_connected_just_come_and_go(raw, server, eventually):
    host = raw("vscsiif")
    host.wait(XenbusState.INIT_WAIT)
    server.export.add(1, new_disk())
    server.export.add(2, new_disk())
    server.export.remove(1)
    eventually(lambda: host.published("vscsi-devs/dev-2/state") == "1")
    assert host.published("vscsi-devs/dev-1/state") is None
    host.connect()
    eventually(lambda: host.published("vscsi-devs/dev-2/state") == "4")
    assert host.request(cdb=INQUIRY, direction=3, lun=2).rslt == 0


def test_a_list_that_somebody_else_changed_is_left_so(raw, server, eventually):
    host = raw("vscsiif").connect()
    tools = server.export.host.store
    tools.rm(f"{host.backend}/vscsi-devs/dev-0")
    tools.write(f"{host.backend}/vscsi-devs/dev-7/state", "6")
    server.export.add(1, new_disk())
    host.wait(XenbusState.RECONFIGURING)
    assert sorted(tools.directory(f"{host.backend}/vscsi-devs")) == ["dev-1", "dev-7"]


def test_a_disk_that_comes_is_a_new_vbd_and_one_that_goes_is_closed(server):
    with server.connect("blkif") as first:
        server.export.add(1, new_disk())
        with server.connect("blkif", "?disk=1") as hba:
            hba.lun(0).write(7, b"new".ljust(512))
            server.export.remove(1)
            with pytest.raises(TransportError):
                hba.lun(0).read(7, 1)
        with pytest.raises(TransportError, match="the server has no vbd"):
            server.connect("blkif", "?disk=1")
        assert first.lun(0).read(0, 1) == bytes(512)


def test_a_vbd_comes_to_the_domains_that_are_there(raw, server, eventually):
    """And goes, at once: a guest is not asked for a disk that is no more."""
    domain = raw("blkif").connect().domain
    tools = server.export.host.store
    server.export.add(1, new_disk())
    home = f"/local/domain/0/backend/vbd/{domain}"
    eventually(lambda: len(tools.directory(home)) == 2)
    server.export.remove(1)
    assert len(tools.directory(home)) == 1


def test_nobody_uses_a_unit_that_was_removed(serve, watched_store):
    store = watched_store()
    server = serve(workers=2)
    server.export.add(1, Disk(store))
    with server.connect("srp") as srp, server.connect("blkif", "?disk=1") as blkif:
        for hba in (srp, blkif):
            hba.lun(hba is srp).capacity()  # past unit attentions
        store.hold()
        read = build("READ(10)", blocks=1)
        commands = [hba.start(hba.lun(hba is srp), read, data_in=512) for hba in (srp, blkif)]
        store.wait_held(2)
        removal = threading.Thread(target=server.export.remove, args=(1,))
        removal.start()
        assert removal.is_alive()
        store.release()
        removal.join(HANG_S)
        used = len(store.log)
        for command in commands:
            command.exception(HANG_S)
        for hba in (srp, blkif):
            with pytest.raises((ScsiError, TransportError)):
                hba.lun(hba is srp).read(0, 1)
        assert len(store.log) == used


def test_a_number_has_one_unit(server):
    with pytest.raises(ValueError, match="logical unit 0 exists"):
        server.export.add(0, new_disk())
    with pytest.raises(KeyError):
        server.export.remove(5)
