# SPDX-License-Identifier: MIT
"""Both halves of the xenbus state machine: stock drivers' sequences, closes, errors, restarts."""

import threading
from types import SimpleNamespace

import pytest

from vscsi.domain import toolstack
from vscsi.domain.base import DomainError, StoreError
from vscsi.domain.half import error_path
from vscsi.domain.store.daemon import Daemon
from vscsi.domain.store.local import LocalClient
from vscsi.domain.toolstack import Device
from vscsi.domain.xenbus import RECONNECT_LIMIT, Backend, Frontend, XenbusState
from vscsi.wire.errors import WireError

DEVICE = Device("vbd", 1, 51712)
BACK, FRONT = DEVICE.backend_path, DEVICE.frontend_path
UNKNOWN, INITIALISING, INIT_WAIT, INITIALISED, CONNECTED = tuple(XenbusState)[:5]
CLOSING, CLOSED, RECONFIGURING, RECONFIGURED = tuple(XenbusState)[5:]


@pytest.fixture
def backend(world):
    """A world with a backend of ours; the frontend is played by the test (`foreign`)."""
    world.start_back()
    world.store.settle()
    return world


@pytest.fixture
def frontend(world):
    """A world with a frontend of ours; the backend is played by the test."""
    world.start_front()
    world.store.settle()
    return world


def foreign(world, path, state=None, **keys):
    """Write as a driver that is not ours does: keys, then the state, and let events flow."""
    client = world.dom0
    for key, value in keys.items():
        client.write(f"{path}/{key.replace('_', '-')}", value)
    if state is not None:
        client.write(f"{path}/state", str(int(state)))
    world.store.settle()


def ring_of(world):
    world.grant_ring()
    return {"ring_ref": "8", "event_channel": "1"}


# The usual way


def test_both_halves_connect_over_one_ring(world):
    world.connect()
    assert world.back.driver.calls == ["features", "connect", "connected"]
    assert world.front.driver.calls == ["prepare", "connect"]
    assert [state for state, _ in world.back.changes] == [INIT_WAIT, CONNECTED]
    assert [state for state, _ in world.front.changes] == [INITIALISING, INITIALISED, CONNECTED]
    assert world.dom0.read(f"{BACK}/sectors") == "2048"


def test_the_frontend_may_be_first(world):
    world.start_front()
    world.store.settle()
    world.start_back()
    world.store.settle()
    world.check_connected()


def test_keys_and_state_become_visible_together(world):
    seen = []
    watcher = world.store.client(0)

    def look(_):
        nodes = world.store.nodes
        seen.append((f"{BACK}/sectors" in nodes, nodes[f"{BACK}/state"].value == "4"))
        seen.append((f"{FRONT}/ring-ref" in nodes, nodes[f"{FRONT}/state"].value in "34"))

    for path in (BACK, FRONT):
        watcher.watch(path, look)
    world.connect()
    assert (True, True) in seen
    assert all(keys == state for keys, state in seen)


def test_spurious_and_repeated_events_do_nothing(world):
    world.connect()
    before = list(world.back.driver.calls), list(world.front.driver.calls)
    for path in (BACK, FRONT) * 3:
        foreign(world, path, CONNECTED)
    assert (world.back.driver.calls, world.front.driver.calls) == before
    world.check_connected()


# Sequences of stock drivers


def test_xen_blkfront_of_linux_6_1(backend):
    # It waits for InitWait, writes its keys in one transaction, then the state in another.
    assert backend.states() == (INIT_WAIT, INITIALISING)
    foreign(backend, FRONT, **ring_of(backend), protocol="x86_64-abi", feature_persistent="1")
    assert backend.states() == (INIT_WAIT, INITIALISING)
    foreign(backend, FRONT, INITIALISED)
    assert backend.states() == (CONNECTED, INITIALISED)
    foreign(backend, FRONT, CONNECTED)
    # xl block-detach: the frontend goes to Closed without Closing.
    toolstack.unplug(backend.dom0, DEVICE)
    backend.store.settle()
    assert backend.states() == (CLOSING, CONNECTED)
    assert backend.back.driver.ring is not None  # what is in flight may still be finished
    foreign(backend, FRONT, CLOSED)
    assert backend.states() == (CLOSED, CLOSED)
    backend.check_released(backend.back)
    foreign(backend, FRONT, INITIALISING)
    assert backend.states() == (CLOSED, INITIALISING)  # not online any more


def test_xen_scsifront_of_linux_6_1_does_not_wait_for_init_wait(world):
    foreign(world, FRONT, INITIALISED, **ring_of(world))
    world.start_back()
    world.store.settle()
    assert world.states() == (CONNECTED, INITIALISED)
    foreign(world, FRONT, CONNECTED)
    assert world.back.driver.calls == ["features", "connect", "connected"]


def test_lun_hot_plug_as_scsifront_does_it(backend):
    foreign(backend, FRONT, INITIALISED, **ring_of(backend))
    foreign(backend, FRONT, CONNECTED)
    foreign(backend, BACK, RECONFIGURING)
    assert backend.states() == (RECONFIGURING, CONNECTED)
    foreign(backend, FRONT, RECONFIGURING)
    assert backend.states() == (RECONFIGURED, RECONFIGURING)
    assert backend.dom0.read(f"{BACK}/vscsi-devs/dev-1/state") == "3"
    foreign(backend, FRONT, CONNECTED)
    assert backend.states() == (CONNECTED, CONNECTED)
    assert backend.back.driver.calls[3:] == ["reconfigure", "connected"]


def test_lun_hot_plug_between_our_own_halves(world):
    world.connect()
    for _ in range(2):
        foreign(world, BACK, RECONFIGURING)
        world.check_connected()
    assert (
        world.front.driver.calls[2:]
        == [
            "reconfigure RECONFIGURING",
            "reconfigure RECONFIGURED",
        ]
        * 2
    )
    assert world.back.driver.calls[3:] == ["reconfigure", "connected"] * 2


def test_a_frontend_that_goes_straight_to_connected(backend):
    foreign(backend, FRONT, CONNECTED, **ring_of(backend))  # as Mini-OS does
    assert backend.states() == (CONNECTED, CONNECTED)
    assert backend.back.driver.calls == ["features", "connect", "connected"]


def test_a_clean_shutdown_of_a_linux_guest(backend):
    foreign(backend, FRONT, INITIALISED, **ring_of(backend))
    foreign(backend, FRONT, CONNECTED)
    foreign(backend, FRONT, CLOSING)
    assert backend.states() == (CLOSING, CLOSING)
    backend.check_released(backend.back)
    foreign(backend, FRONT, CLOSED)
    assert backend.states() == (CLOSED, CLOSED)
    backend.dom0.rm(FRONT)
    backend.store.settle()
    assert backend.back.half.state is CLOSED


def test_a_stock_backend_sees_what_it_expects_of_our_frontend(frontend):
    # blkback: features, 2; on 3 it publishes its properties with 4; on 5 it answers 5 and still
    # holds the ring; on 6 it lets go.
    foreign(frontend, BACK, INIT_WAIT, max_ring_page_order="4")
    assert frontend.states() == (INIT_WAIT, INITIALISED)
    assert frontend.dom0.read(f"{FRONT}/ring-ref") == "8"
    foreign(frontend, BACK, CONNECTED, sectors="2048")
    assert frontend.states() == (CONNECTED, CONNECTED)
    frontend.front.half.close()
    frontend.store.settle()
    assert frontend.states() == (CONNECTED, CLOSING)
    assert frontend.front.driver.ring is not None  # the backend may still write into it
    foreign(frontend, BACK, CLOSING)
    assert frontend.states() == (CLOSING, CLOSED)
    foreign(frontend, BACK, CLOSED)
    assert frontend.states() == (CLOSED, CLOSED)
    frontend.check_released(frontend.front)


def test_a_backend_that_rewrites_connected_to_announce_a_new_size_changes_nothing_else(frontend):
    foreign(frontend, BACK, INIT_WAIT)
    foreign(frontend, BACK, CONNECTED, sectors="2048")
    foreign(frontend, BACK, CONNECTED, sectors="4096")
    assert frontend.front.driver.calls == ["prepare", "connect"]


@pytest.mark.parametrize("seen", [UNKNOWN, INITIALISING, INITIALISED, CONNECTED, RECONFIGURED])
def test_a_frontend_waits_for_init_wait_and_nothing_else(frontend, seen):
    foreign(frontend, BACK, seen)
    assert frontend.front.half.state is INITIALISING
    foreign(frontend, BACK, INIT_WAIT)
    assert frontend.front.half.state is INITIALISED


# Closing


def test_the_frontend_closes_and_reopens(world):
    world.connect()
    for _ in range(3):
        world.front.half.close()
        world.store.settle()
        assert world.states() == (CLOSED, CLOSED)
        world.check_released()
        world.front.half.reopen()
        world.store.settle()
        world.check_connected()


def test_the_backend_closes_and_the_frontend_reopens(world):
    world.connect()
    world.back.half.close()
    world.store.settle()
    assert world.states() == (CLOSED, CLOSED)
    world.check_released()
    assert world.front.changes[-1] == (CLOSED, "the backend closed")
    world.front.half.reopen()
    world.store.settle()
    world.check_connected()


def test_both_close_at_once(world):
    world.connect()
    world.back.half.close()
    world.front.half.close()
    assert world.states() == (CLOSING, CLOSED)
    world.store.settle()
    assert world.states() == (CLOSED, CLOSED)
    world.check_released()


def test_close_in_any_state_is_idempotent(world):
    world.connect()
    for half in (world.front.half, world.back.half) * 2:
        half.close()
        half.close()
        world.store.settle()
    assert world.states() == (CLOSED, CLOSED)
    world.check_released()
    assert world.back.driver.begun == world.front.driver.begun == 1


def test_a_frontend_that_never_got_to_a_backend_closes_at_once(frontend):
    frontend.front.half.close()
    assert frontend.states() == (INITIALISING, CLOSED)
    frontend.check_released(frontend.front)


def test_stop_leaves_closed_and_hears_nothing_more(world):
    world.connect()
    world.back.half.stop()
    assert world.states() == (CLOSED, CONNECTED)
    world.check_released(world.back)
    world.store.settle()
    assert world.states() == (CLOSED, CLOSED)
    calls, changes = list(world.back.driver.calls), list(world.back.changes)
    world.front.half.reopen()
    world.back.half._event(f"{FRONT}/state")  # was on its way to us when we stopped
    world.back.half.close()
    world.back.half.fail("too late")
    world.back.half.stop()
    world.store.settle()
    assert (world.back.driver.calls, world.back.changes) == (calls, changes)
    assert world.states() == (CLOSED, INITIALISING)
    assert world.back.client.watches == {}


def test_stop_before_start_writes_nothing(world):
    process = world.make_back()
    process.half.stop()
    assert world.states() == (INITIALISING, INITIALISING)
    assert process.half.state is CLOSED


def test_a_device_that_is_not_there_is_told_at_start(world):
    toolstack.remove(world.dom0, DEVICE)
    for start in (world.start_back, world.start_front):
        with pytest.raises(StoreError, match="ENOENT"):
            start()


# Errors


@pytest.mark.parametrize(
    "error",
    [
        WireError("ring-ref is no decimal number"),
        DomainError("gone"),
        StoreError("ENOSPC"),
        OSError(12, "out of memory"),
        KeyError("a bug"),
    ],
)
def test_a_driver_that_cannot_connect_publishes_why(world, error):
    world.start_back()
    world.back.driver.raises["connect"] = error
    world.start_front()
    world.store.settle()
    assert world.states() == (CLOSED, CLOSED)
    world.check_released()
    reason = f"internal error: {error!r}" if isinstance(error, KeyError) else str(error)
    assert world.dom0.read(f"{BACK}/error") == reason
    assert world.dom0.read("/local/domain/0/error/backend/vbd/1/51712/error") == reason
    assert world.front.changes[-1] == (CLOSED, reason)
    world.front.half.reopen()
    world.store.settle()
    world.check_connected()
    assert f"{BACK}/error" not in world.store.nodes


@pytest.mark.parametrize("call", ["prepare", "connect"])
def test_a_frontend_driver_that_fails_publishes_why(world, call):
    world.start_front()
    world.front.driver.raises[call] = WireError("sectors is missing")
    world.start_back()
    world.store.settle()
    assert world.states() == (CLOSED, CLOSED)
    world.check_released()
    for path in (f"{FRONT}/error", "/local/domain/1/error/device/vbd/51712/error"):
        assert world.dom0.read(path) == "sectors is missing"
    world.front.half.reopen()
    world.store.settle()
    world.check_connected()
    assert f"{FRONT}/error" not in world.store.nodes


def test_a_backend_that_cannot_say_its_features_does_not_start(world):
    process = world.make_back()
    process.driver.raises["features"] = WireError("no image")
    with pytest.raises(WireError, match="no image"):
        process.half.start()
    assert process.changes == []
    assert process.client.watches == {}
    assert world.states() == (INITIALISING, INITIALISING)


@pytest.mark.parametrize("call", ["connected", "reconfigure"])
def test_a_backend_driver_that_fails_later_closes_with_the_reason(world, call):
    world.start_back()
    world.back.driver.raises[call] = WireError("no")
    world.start_front()
    world.store.settle()
    if call == "reconfigure":
        foreign(world, BACK, RECONFIGURING)
    assert world.states() == (CLOSED, CLOSED)
    assert world.dom0.read(f"{BACK}/error") == "no"
    world.check_released()


@pytest.mark.parametrize("value", ["", "-8", "8x", "4294967296", "9" * 3000, "\x00", "0x8", "\xff"])
def test_hostile_keys_close_with_the_name_of_the_key(backend, value):
    foreign(backend, FRONT, INITIALISED, ring_ref=value)
    assert backend.back.half.state is CLOSING
    reason = backend.dom0.read(f"{BACK}/error")
    assert f"{FRONT}/ring-ref" in reason
    assert reason.isprintable()
    assert len(reason) <= 200
    foreign(backend, FRONT, CLOSED)
    foreign(backend, FRONT, INITIALISING)
    foreign(backend, FRONT, INITIALISED, **ring_of(backend))
    assert backend.states() == (CONNECTED, INITIALISED)


@pytest.mark.parametrize("junk", ["", "9", "-4", "4" * 4000, "Connected", "\xff"])
def test_a_junk_state_counts_as_gone(world, junk):
    world.connect()
    world.front.client.kill()
    foreign(world, FRONT, state=None)
    world.dom0.write(f"{FRONT}/state", junk)
    world.store.settle()
    assert world.back.half.state is CLOSED
    assert world.back.changes[-1] == (CLOSED, "the frontend is gone")
    world.check_released(world.back)


def test_fail_ends_the_connection_at_once_with_a_reason(world):
    world.connect()
    world.back.half.fail("req_prod is 4096 ahead\x1b[2J of a ring of 32")
    assert world.states() == (CLOSING, CONNECTED)
    world.check_released(world.back)
    assert world.dom0.read(f"{BACK}/error") == "req_prod is 4096 ahead?[2J of a ring of 32"
    world.store.settle()
    assert world.states() == (CLOSED, CLOSED)
    world.back.half.fail("nothing left to fail")
    world.front.half.reopen()
    world.store.settle()
    world.check_connected()


def test_a_fault_of_a_connection_that_has_ended_does_not_touch_the_next(world):
    world.connect()
    release = world.back.driver.disconnect

    def disconnect():
        world.back.half.fail("the worker's last words")
        release()

    world.back.half._release_driver = disconnect
    world.front.half.close()
    world.store.settle()
    world.front.half.reopen()
    world.store.settle()
    world.check_connected()
    assert "the worker's last words" not in [reason for _, reason in world.back.changes]


def test_a_disconnect_that_raises_does_not_stop_the_half(world):
    world.connect()
    world.back.driver.raises["disconnect"] = RuntimeError("a bug")
    world.front.half.close()
    world.store.settle()
    assert world.states() == (CLOSED, CLOSED)
    world.check_released()


def test_an_owner_whose_callback_raises_does_not_stop_the_half(world):
    def on_change(state, reason):
        raise RuntimeError("a bug")

    world.make_back(on_change).half.start()
    world.start_front()
    world.store.settle()
    assert world.states() == (CONNECTED, CONNECTED)


def test_conflicting_transactions_are_tried_again_but_not_for_ever(world):
    world.start_back()
    world.start_front()
    rival = world.store.client(0)
    left = 5

    def hook(client):
        nonlocal left
        if client is world.back.client and left and world.back.driver.begun:
            left -= 1
            rival.write(f"{FRONT}/ring-ref", "8")

    world.store.hook = hook
    world.store.settle()
    world.check_connected()
    assert world.back.client.conflicts
    # A frontend that never leaves its keys alone gets no connection, and costs no endless loop.
    world.front.half.close()
    world.store.settle()
    world.back.driver.begun, world.back.driver.ended, left = 0, 0, 10**6
    world.front.half.reopen()
    world.store.settle()
    assert world.back.half.state in (CLOSING, CLOSED)
    world.check_released(world.back)


def test_a_frontend_whose_directory_is_full_closes(world):
    world.store.full.add(f"{FRONT}/ring-ref")
    world.start_back()
    world.start_front()
    world.store.settle()
    assert world.states() == (CLOSED, CLOSED)
    world.check_released()
    assert world.dom0.read(f"{FRONT}/error") == f"ENOSPC: {FRONT}/ring-ref"


def test_an_error_that_the_store_has_no_room_for_still_releases_everything(world):
    world.connect()
    world.store.full |= {f"{BACK}/error", "/local/domain/0/error/backend/vbd/1/51712/error"}
    world.back.half.fail("broken")
    world.check_released(world.back)
    assert world.back.half.state is UNKNOWN
    assert world.back.changes[-1][1].startswith("broken (and the store refused that: ENOSPC")


@pytest.mark.parametrize(
    ("path", "record"),
    [
        (BACK, "/local/domain/0/error/backend/vbd/1/51712/error"),
        (FRONT, "/local/domain/1/error/device/vbd/51712/error"),
        ("/tool/x", None),
        ("/local/domain/1", None),
    ],
)
def test_errors_go_where_linux_puts_them(path, record):
    assert error_path(path) == record


def test_a_frontend_that_starts_over_while_the_backend_looks_is_not_answered(backend):
    rival, looks = backend.store.client(0), 0

    def hook(client):
        nonlocal looks
        if client is backend.back.client:
            looks += 1
            if looks == 3:  # after the turn's look at both states, before the keys are read
                rival.write(f"{FRONT}/state", "1")

    for key, value in ring_of(backend).items():
        backend.dom0.write(f"{FRONT}/{key.replace('_', '-')}", value)
    backend.dom0.write(f"{FRONT}/state", "3")
    backend.store.hook = hook
    backend.store.settle()
    assert backend.states() == (INIT_WAIT, INITIALISING)
    assert backend.back.driver.begun == 0


@pytest.mark.parametrize("again", [INITIALISED, CONNECTED])
def test_a_backend_ignores_reconfiguring_before_it_is_connected(backend, again):
    foreign(backend, BACK, RECONFIGURING)
    assert backend.states() == (INIT_WAIT, INITIALISING)
    foreign(backend, FRONT, again, **ring_of(backend))
    assert backend.states() == (CONNECTED, again)


# Death and restart


def test_a_frontend_that_vanishes_is_let_go_of_and_may_come_back(world):
    world.connect()
    world.front.client.kill()
    world.dom0.rm(FRONT)
    world.store.settle()
    assert world.back.half.state is CLOSED
    assert world.back.changes[-1] == (CLOSED, "the frontend is gone")
    world.check_released(world.back)
    toolstack.remove(world.dom0, DEVICE)
    world.store.settle()
    assert world.back.half.state is UNKNOWN
    toolstack.create(world.dom0, DEVICE)
    world.start_front()
    world.store.settle()
    world.check_connected()


@pytest.mark.parametrize("stale", list(XenbusState)[1:])
def test_a_frontend_restarts_over_any_state_that_it_left(backend, stale):
    if stale not in (INITIALISING, CLOSING, CLOSED):
        foreign(backend, FRONT, INITIALISED, **ring_of(backend))
    foreign(backend, FRONT, stale)
    backend.start_front()
    backend.store.settle()
    backend.check_connected()


@pytest.mark.parametrize("state", list(XenbusState))
def test_a_frontend_of_others_starts_over_in_any_state_of_ours(backend, state):
    if state is not INITIALISING:
        foreign(backend, FRONT, INITIALISED, **ring_of(backend))
        foreign(backend, FRONT, state)
    foreign(backend, FRONT, INITIALISING)
    assert backend.states() == (INIT_WAIT, INITIALISING)
    backend.check_released(backend.back)
    foreign(backend, FRONT, INITIALISED, **ring_of(backend))
    assert backend.states() == (CONNECTED, INITIALISED)


def test_new_keys_of_a_frontend_whose_restart_was_merged_away_are_noticed(backend):
    foreign(backend, FRONT, INITIALISED, **ring_of(backend))
    foreign(backend, FRONT, CONNECTED)
    old = backend.back.driver.ring
    new = backend.grant_ring(9)
    foreign(backend, FRONT, INITIALISED, ring_ref="9")
    assert backend.states() == (CONNECTED, INITIALISED)
    assert backend.back.driver.ring is new is not old
    assert backend.back.driver.begun == backend.back.driver.ended + 1 == 2


def test_a_frontend_that_connects_while_the_backend_looks_has_not_restarted(backend):
    rival, looks = backend.store.client(0), 0

    def hook(client):
        nonlocal looks
        if client is backend.back.client:
            looks += 1
            if looks == 3:  # after the turn's look at both states, before the keys are compared
                rival.write(f"{FRONT}/state", "4")

    foreign(backend, FRONT, INITIALISED, **ring_of(backend))
    assert backend.states() == (CONNECTED, INITIALISED)
    backend.store.hook = hook
    foreign(backend, FRONT, INITIALISED)
    assert looks >= 3
    assert backend.states() == (CONNECTED, CONNECTED)
    assert (backend.back.driver.begun, backend.back.driver.ended) == (1, 0)


def test_keys_that_change_while_the_backend_maps_are_not_answered(backend):
    new = backend.grant_ring(9)
    rival = backend.store.client(0)
    connect = backend.back.driver.connect

    def race(frontend):
        keys = connect(frontend)
        if rival.read(f"{FRONT}/ring-ref") != "9":
            rival.write(f"{FRONT}/ring-ref", "9")
        return keys

    backend.back.driver.connect = race
    foreign(backend, FRONT, INITIALISED, **ring_of(backend))
    assert backend.back.driver.ring is new
    assert backend.back.driver.begun == backend.back.driver.ended + 1 == 2


def test_a_frontend_that_restarts_while_the_backend_maps_gets_its_own_ring(world):
    world.start_back()
    connect = world.back.driver.connect

    def race(frontend):
        keys = connect(frontend)
        if world.back.driver.begun == 1:
            world.front.client.kill()
            world.start_front()
            while world.front.client.deliver():
                pass
            assert world.states() == (INIT_WAIT, CLOSED)  # that InitWait is not for us
        return keys

    world.back.driver.connect = race
    world.start_front()
    world.store.settle()
    world.check_connected()
    assert world.back.driver.begun == world.back.driver.ended + 1 == 2


@pytest.mark.parametrize("reconnect", [False, True])
@pytest.mark.parametrize("when", ["connected", "initialised"])
def test_a_backend_that_dies_and_restarts(new_world, reconnect, when):
    world = new_world(reconnect=reconnect)
    if when == "connected":
        world.connect()
    else:
        world.start_back()
        world.start_front()
        while world.states() != (INIT_WAIT, INITIALISED):
            world.front.client.deliver()
    world.back.client.kill()
    world.store.settle()
    world.start_back()
    world.store.settle()
    if when == "connected" and not reconnect:
        assert world.states() == (CLOSED, CLOSED)
        assert world.front.changes[-1] == (CLOSED, "the backend was restarted")
        world.check_released()
        world.front.half.reopen()
        world.store.settle()
    world.check_connected()


@pytest.mark.parametrize("stale", [CONNECTED, CLOSING, CLOSED, RECONFIGURING, RECONFIGURED])
def test_a_backend_does_not_adopt_the_ring_of_one_that_died(world, stale):
    world.connect()
    world.back.client.kill()
    world.dom0.write(f"{BACK}/state", str(int(stale)))
    world.front.client.pending.clear()
    world.start_back()
    while world.back.client.deliver():
        pass
    assert world.states() == (CLOSING, CONNECTED)
    assert world.back.driver.begun == 0
    assert world.dom0.read(f"{BACK}/error") == "the backend was restarted"


@pytest.mark.parametrize("reset", [INITIALISING, INIT_WAIT])
def test_a_backend_of_others_that_starts_over_under_a_connected_frontend(frontend, reset):
    foreign(frontend, BACK, INIT_WAIT)
    foreign(frontend, BACK, CONNECTED, sectors="1")
    foreign(frontend, BACK, reset)
    assert frontend.states() == (reset, CLOSED)
    assert frontend.front.changes[-1] == (CLOSED, "the backend was restarted")
    frontend.check_released(frontend.front)


def test_a_backend_directory_that_goes_away(frontend):
    foreign(frontend, BACK, INIT_WAIT)
    foreign(frontend, BACK, CONNECTED, sectors="1")
    frontend.dom0.rm(BACK)
    frontend.store.settle()
    assert frontend.front.changes[-1] == (CLOSED, "the backend is gone")
    frontend.check_released(frontend.front)


def test_a_backend_directory_that_goes_away_before_it_connects(frontend):
    foreign(frontend, BACK, INIT_WAIT)
    frontend.dom0.rm(BACK)
    frontend.store.settle()
    assert frontend.front.changes[-1] == (CLOSED, "the backend is gone")
    frontend.check_released(frontend.front)


def test_an_unplugged_backend_that_never_connected_gets_its_answer(frontend):
    # blkback in Closing waits for Closed; a frontend in Initialising must give it.
    foreign(frontend, BACK, CLOSING)
    assert frontend.states() == (CLOSING, CLOSED)
    foreign(frontend, BACK, CLOSED)
    assert frontend.states() == (CLOSED, INITIALISING)


def test_a_removed_device_is_not_brought_back_by_its_halves(world):
    world.connect()
    toolstack.remove(world.dom0, DEVICE)
    world.store.settle()
    assert toolstack.devices(world.dom0) == []
    assert world.back.half.state is world.front.half.state is UNKNOWN
    world.check_released()
    world.back.half.close()
    world.front.half.stop()
    assert toolstack.devices(world.dom0) == []


def test_a_lost_store_lets_go_of_everything(world):
    world.connect()

    def gone(client):
        raise DomainError("store connection lost")

    world.store.hook = gone
    for process in (world.back, world.front):
        process.half.fail("on_lost")
        assert process.changes[-1] == (UNKNOWN, "the store is lost: store connection lost")
        process.half.stop()
        assert process.half.state is CLOSED
    world.check_released()


def test_a_frontend_that_reconnects_gives_up_on_a_backend_that_never_connects(new_world):
    world = new_world(reconnect=True)
    world.start_back()

    class Never(dict):
        def __contains__(self, call):
            return call == "connect"

        def pop(self, call):
            return WireError("never")

    world.back.driver.raises = Never()
    world.start_front()
    world.store.settle()
    assert world.states() == (CLOSED, CLOSED)
    assert world.back.driver.begun == world.front.driver.begun == RECONNECT_LIMIT
    world.check_released()


# Threads


def test_a_worker_that_disconnect_joins_may_fail_the_half(world):
    world.connect()
    half, release = world.back.half, world.back.driver.disconnect
    begun, may_fail = threading.Event(), threading.Event()

    def work():
        may_fail.wait(60)
        half.fail("the ring broke")

    worker = threading.Thread(target=work)
    worker.start()

    def disconnect():
        begun.set()
        may_fail.set()
        worker.join(60)
        assert not worker.is_alive()
        release()

    half._release_driver = disconnect
    half.close()
    world.store.settle()
    assert begun.is_set()
    assert world.states() == (CLOSED, CLOSED)
    world.check_released()


def test_stop_waits_for_a_turn_on_another_thread(world):
    world.connect()
    half, release = world.back.half, world.back.driver.disconnect
    inside, leave = threading.Event(), threading.Event()

    def disconnect():
        inside.set()
        leave.wait(60)
        release()

    half._release_driver = disconnect
    turn = threading.Thread(target=half.fail, args=("slow",))
    turn.start()
    assert inside.wait(60)
    stopper = threading.Thread(target=half.stop)
    stopper.start()
    leave.set()
    stopper.join(60)
    turn.join(60)
    assert not stopper.is_alive()
    assert half.state is CLOSED
    world.check_released(world.back)


def test_stop_from_inside_a_turn_takes_effect_after_it(world):
    seen = []

    def on_change(state, reason):
        seen.append(state)
        if state is CONNECTED:
            world.back.half.stop()

    world.make_back(on_change).half.start()
    world.start_front()
    world.store.settle()
    assert seen == [INIT_WAIT, CONNECTED, CLOSED]
    assert world.states() == (CLOSED, CLOSED)
    assert world.back.driver.begun == world.back.driver.ended == 1


def test_both_halves_connect_and_close_over_the_real_store(world, tmp_path):
    daemon = Daemon(tmp_path / "xenstored")
    daemon.start()
    dom0, guest = LocalClient(daemon), LocalClient(daemon, 1)
    toolstack.create(dom0, DEVICE)
    shared = SimpleNamespace(granted={})
    done = threading.Semaphore(0)

    def on_change(state, reason):
        if state in (CONNECTED, CLOSED):
            done.release()

    drivers = [driver(shared, SimpleNamespace(dead=False)) for driver in world.drivers]
    back = Backend(dom0, BACK, drivers[0], on_change)
    front = Frontend(guest, FRONT, drivers[1], on_change)
    back.start()
    front.start()
    assert done.acquire(timeout=60)
    assert done.acquire(timeout=60)
    assert back.state is front.state is CONNECTED
    assert drivers[0].ring is drivers[1].ring is not None
    front.close()
    assert done.acquire(timeout=60)
    assert done.acquire(timeout=60)
    assert back.state is front.state is CLOSED
    for half in (front, back):
        half.stop()
    assert [driver.begun - driver.ended for driver in drivers] == [0, 0]
    toolstack.remove(dom0, DEVICE)
    daemon.stop()
