# SPDX-License-Identifier: MIT
"""vscsiif slot by slot: acts, segments, SG_GRANT, directions, host codes, hot plug of units."""

import pytest

from vscsi.domain.base import PAGE_SIZE
from vscsi.domain.keys import XenbusState
from vscsi.target.base import Attribute
from vscsi.target.disk import Disk
from vscsi.target.stores.memory import MemoryStore
from vscsi.wire import vscsiif
from vscsi.wire.cdb import build
from vscsi.wire.sense import parse_sense
from vscsi.wire.vscsiif import RESET_FAILED, RESET_SUCCESS, Act, Direction, Host, pack_rslt

READ = build("READ(10)", lba=0, blocks=1)
WRITE = build("WRITE(10)", lba=0, blocks=1)
INQUIRY = build("INQUIRY", allocation_length=36)
CHECK = 2
HOST_ERROR = pack_rslt(0, Host.ERROR)


@pytest.fixture
def host(raw):
    """A connected virtual host whose unit attentions are seen."""
    return raw("vscsiif").connect().ready()


def segment(reference, offset=0, length=512):
    return {"gref": reference, "offset": offset, "length": length}


# Commands


def test_data_is_the_concatenation_of_the_segments(host, server):
    pages = [host.page(bytes([n]) * PAGE_SIZE) for n in range(3)]
    segments = [
        segment(pages[0][0], 4095, 1),
        segment(pages[1][0], 7, 500),
        segment(pages[2][0], 0, 0),
        segment(pages[0][0], 100, 11),
    ]
    response = host.request(rqid=7, cdb=WRITE, direction=Direction.TO_DEVICE, segments=segments)
    assert (response.rqid, response.rslt, response.residual) == (7, 0, 0)
    assert server.store.content[:512] == b"\0" + b"\1" * 500 + b"\0" * 11
    server.store.content[:512] = bytes(range(256)) * 2
    response = host.request(rqid=8, cdb=READ, direction=Direction.FROM_DEVICE, segments=segments)
    assert response.rslt == 0
    assert pages[0][1][4095] == 0
    assert pages[1][1][7:507] == (bytes(range(256)) * 2)[1:501]
    assert set(pages[1][1][:7]) == set(pages[1][1][507:]) == {1}


@pytest.mark.parametrize("areas", [1, 3, 26])
def test_sg_grant_names_segments_in_granted_memory(host, server, areas):
    count = 78
    pages = [host.page(bytes([n]) * PAGE_SIZE, readonly=True) for n in range(count)]
    table = vscsiif.build_segments(
        [segment(reference, n, 512) for n, (reference, _) in enumerate(pages)]
    )
    share = len(table) // areas
    listed = []
    for n in range(areas):
        reference, view = host.page(readonly=True)
        offset = 8 * n + 4
        view[offset : offset + share] = table[n * share : (n + 1) * share]
        listed.append(segment(reference, offset, share))
    response = host.request(
        cdb=build("WRITE(10)", lba=0, blocks=count),
        direction=Direction.TO_DEVICE,
        segments=listed,
        nr_segments=vscsiif.SG_GRANT | areas,
    )
    assert response.rslt == 0
    expected = b"".join(bytes([n]) * 512 for n in range(count))
    assert server.store.content[: len(expected)] == expected
    assert server.mapped(host.domain) == 1


def test_no_direction_ignores_segments(host):
    """xen-scsifront's error handler sends TEST UNIT READY with direction 3 and a page."""
    response = host.request(cdb=bytes(6), direction=Direction.NONE, segments=[segment(4711)])
    assert response.rslt == 0


@pytest.mark.parametrize(("cdb", "expected"), [(READ, b"disk"), (WRITE, b"page")])
def test_bidirectional_is_what_the_cdb_is(host, server, cdb, expected):
    server.store.content[:4] = b"disk"
    reference, view = host.page(b"page")
    response = host.request(cdb=cdb, direction=0, segments=[segment(reference)])
    assert response.rslt == 0
    assert view[:4] == server.store.content[:4] == expected


def test_check_condition_comes_with_sense_and_residual(host):
    reference, _ = host.page()
    response = host.request(
        cdb=build("READ(10)", lba=1 << 30, blocks=1),
        direction=Direction.FROM_DEVICE,
        segments=[segment(reference)],
    )
    assert (response.rslt, response.residual) == (CHECK, 512)
    sense = parse_sense(response.sense_buffer[: response.sense_len])
    assert (sense.key, sense.asc) == (5, 0x21)


@pytest.mark.parametrize(("length", "residual"), [(100, 64), (36, 0), (20, 0)])
def test_the_residual_says_what_was_not_moved(host, length, residual):
    reference, view = host.page(b"\xa5" * 200)
    response = host.request(
        cdb=INQUIRY, direction=Direction.FROM_DEVICE, segments=[segment(reference, 0, length)]
    )
    assert (response.rslt, response.residual) == (0, residual)
    assert set(view[min(length, 36) : 200]) == {0xA5}


def test_a_response_has_nothing_of_what_was_in_the_slot(host):
    """XSA-216: every byte of a response is one that was meant."""
    host.put(vscsiif.build_request(rqid=1, cdb=bytes(6), direction=3).ljust(252, b"\xff"))
    (slot,) = host.slots()
    assert slot == vscsiif.build_response(rqid=1)


# Refusals


@pytest.mark.parametrize(
    "fields",
    [
        {"act": 0},
        {"act": 5},
        {"act": 255},
        {"act": Act.SG_PRESET},
        {"cmd_len": 17},
        {"cmd_len": 255},
        {"nr_segments": 27},
        {"nr_segments": 0x7F},
        {"nr_segments": 0x80 | 27},
        {"direction": 4},
        {"direction": 255},
        {"segments": [segment(0)], "direction": 2},
        {"segments": [segment(0xFFFF_FFFF)], "direction": 2},
        {"segments": [segment(32768)], "direction": 1},
        {"segments": "offset", "direction": 2},
        {"segments": "length", "direction": 2},
        {"segments": "readonly", "direction": 2},
        {"segments": "second", "direction": 2},
        {"segments": "area", "nr_segments": 0x81, "direction": 2},
        {"segments": "areas", "nr_segments": 0x80 | 26, "direction": 2},
        {"segments": [segment(9, 0, 8)], "nr_segments": 0x81, "direction": 2},
    ],
)
def test_malformed_requests_get_a_host_error_and_touch_nothing(host, server, fields):
    reference, view = host.page(b"\xa5" * PAGE_SIZE)
    locked, read_only = host.page(b"\xa5" * PAGE_SIZE, readonly=True)
    segments = {
        "offset": [segment(reference, 4096, 1)],
        "length": [segment(reference, 1, 4096)],
        "readonly": [segment(locked)],
        "second": [segment(reference), segment(77)],
        "area": [segment(reference, 0, 12)],
        "areas": [segment(reference, 0, 4096)] * 26,
    }
    if isinstance(fields.get("segments"), str):
        fields = {**fields, "segments": segments[fields["segments"]]}
    before = bytes(server.store.content)
    cdb = {} if fields.get("act") == Act.SG_PRESET else {"cdb": READ}
    response = host.request(**{"rqid": 9, **cdb, **fields})
    assert (response.rqid, response.rslt, response.sense_len) == (9, HOST_ERROR, 0)
    assert set(view) == set(read_only) == {0xA5}
    assert bytes(server.store.content) == before
    assert server.mapped(host.domain) == 1
    assert host.request(cdb=bytes(6), direction=3).rslt == 0


@pytest.mark.parametrize("where", [{"lun": 1}, {"id": 1}, {"channel": 1}, {"lun": 0xFFFF}])
def test_what_is_not_there_cannot_be_connected_to(host, where):
    response = host.request(rqid=3, cdb=bytes(6), direction=3, **where)
    assert (response.rqid, response.rslt) == (3, pack_rslt(0, Host.NO_CONNECT))
    response = host.request(rqid=3, act=Act.RESET, direction=3, **where)
    assert response.rslt == RESET_FAILED


# Aborts and resets


def test_what_is_aborted_is_answered_before_the_abort(host, server):
    """A stock frontend frees the victim's id only then."""
    server.store.hold()
    reference, _ = host.page()
    read = {"cdb": READ, "direction": 2, "segments": [segment(reference)]}
    host.put(vscsiif.build_request(rqid=1, **read))
    server.store.wait_held()
    host.put(vscsiif.build_request(rqid=2, act=Act.ABORT, ref_rqid=1, cdb=READ, direction=3))
    host.put(vscsiif.build_request(rqid=3, act=99))  # answered in its turn: the abort was taken
    assert vscsiif.parse_response(host.slots()[0]).rqid == 3
    server.store.release()
    first, second = map(vscsiif.parse_response, host.slots(2))
    assert (first.rqid, first.rslt) == (1, pack_rslt(0, Host.RESET))
    assert (second.rqid, second.rslt) == (2, RESET_SUCCESS)


def test_a_reset_ends_all_commands_of_the_unit_first(host, server):
    server.store.hold()
    reference, _ = host.page()
    read = {"cdb": READ, "direction": 2, "segments": [segment(reference)]}
    for rqid in range(4):
        host.put(vscsiif.build_request(rqid=rqid, **read))
    server.store.wait_held(4)
    host.put(vscsiif.build_request(rqid=8, act=Act.RESET, direction=3))
    host.put(vscsiif.build_request(rqid=9, act=99))
    assert vscsiif.parse_response(host.slots()[0]).rqid == 9
    server.store.release()
    responses = [vscsiif.parse_response(slot) for slot in host.slots(5)]
    assert {(each.rqid, each.rslt) for each in responses[:4]} == {
        (rqid, pack_rslt(0, Host.RESET)) for rqid in range(4)
    }
    assert (responses[4].rqid, responses[4].rslt) == (8, RESET_SUCCESS)
    assert server.mapped(host.domain) == 1
    assert host.request(cdb=bytes(6), direction=3).rslt == CHECK  # the reset's unit attention


def test_an_abort_of_nothing_succeeds(host):
    assert host.request(rqid=5, act=Act.ABORT, ref_rqid=77).rslt == RESET_SUCCESS


# Hot plug


def unit_keys(frontend, name):
    return {
        key: frontend.published(f"vscsi-devs/{name}/{key}") for key in ("p-dev", "v-dev", "state")
    }


def test_units_are_offered_then_in_use(raw, eventually):
    host = raw("vscsiif")
    host.wait(XenbusState.INIT_WAIT)
    assert host.published("feature-sg-grant") == "256"
    assert unit_keys(host, "dev-0")["state"] == "1"
    host.publish(XenbusState.INITIALISED, host.keys())
    host.wait(XenbusState.CONNECTED)
    assert unit_keys(host, "dev-0") == {"p-dev": "0", "v-dev": "0:0:0:0", "state": "3"}
    # A stock frontend probes before it says that it has the unit: the ring is served already.
    assert host.request(cdb=bytes(6), direction=3).rslt == CHECK
    host.publish(XenbusState.CONNECTED)
    eventually(lambda: unit_keys(host, "dev-0")["state"] == "4")


def test_units_come_and_go_while_connected(host, server):
    """States 7 and 8, as the toolstack, a stock frontend and the backend pass them along."""
    tools = server.export.host.store
    unit = f"{host.backend}/vscsi-devs/dev-1"
    server.export.router.add(5, Disk(MemoryStore(1 << 20)))

    def reconfigure(state):
        tools.write(f"{unit}/state", str(int(state)))
        tools.write(f"{host.backend}/state", str(int(XenbusState.RECONFIGURING)))
        host.wait(XenbusState.RECONFIGURING)
        host.publish(XenbusState.RECONFIGURING)
        host.wait(XenbusState.RECONFIGURED)

    def settle():
        host.publish(XenbusState.CONNECTED)
        host.wait(XenbusState.CONNECTED)

    tools.write(f"{unit}/p-dev", "5")
    tools.write(f"{unit}/v-dev", "2:0:3:1")
    reconfigure(XenbusState.INITIALISING)
    assert unit_keys(host, "dev-1")["state"] == "3"
    settle()
    assert unit_keys(host, "dev-1")["state"] == "4"
    there = {"cdb": INQUIRY, "direction": 3, "id": 3, "lun": 1}
    assert host.request(**there).rslt == 0

    reconfigure(XenbusState.CLOSING)
    assert unit_keys(host, "dev-1")["state"] == "6"
    settle()
    assert host.request(**there).rslt == pack_rslt(0, Host.NO_CONNECT)
    # One that the target does not have is refused, and the others stay.
    tools.write(f"{unit}/p-dev", "6")
    reconfigure(XenbusState.INITIALISING)
    assert unit_keys(host, "dev-1")["state"] == "6"
    settle()
    assert host.request(cdb=INQUIRY, direction=3).rslt == 0


def test_units_are_offered_anew_after_a_reconnection(host):
    host.publish(XenbusState.CLOSING)
    host.wait(XenbusState.CLOSING)
    host.reopen()
    host.connect()
    assert unit_keys(host, "dev-0")["state"] in ("3", "4")
    assert host.ready()


def test_our_frontend_acknowledges_units(server):
    with server.connect("vscsiif") as hba:
        path = f"/local/domain/{hba.initiator.guest.domain}/device/vscsi/0/vscsi-devs/dev-0/state"
        assert server.export.host.store.read(path) == "4"


def test_ordered_commands_are_all_simple(host, server):
    """The protocol has no task attributes."""
    tasks = []
    submit = server.export.router.submit
    server.end(host.domain, "vscsi").target = type(
        "T",
        (),
        {
            "units": dict,  # none that the C path knows
            "submit": lambda task: (tasks.append(task.attribute), submit(task)),
            "detach": server.export.router.detach,
        },
    )
    host.request(cdb=INQUIRY, direction=3)
    assert tasks == [Attribute.SIMPLE]
