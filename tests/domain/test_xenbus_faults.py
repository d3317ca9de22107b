# SPDX-License-Identifier: MIT
"""Every fault at every store operation of a connection, and any story of faults: no hang, no leak.

`asides` happen in the middle of a half's turn (before one of its store operations), so that turns
of both halves interleave, and a process may die between any two operations.
"""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vscsi.domain import toolstack
from vscsi.domain.base import StoreError
from vscsi.domain.toolstack import Device
from vscsi.domain.xenbus import XenbusState
from vscsi.wire.errors import WireError

DEVICE = Device("vbd", 1, 51712)
BACK, FRONT = DEVICE.backend_path, DEVICE.frontend_path
CONNECTED, CLOSED = XenbusState.CONNECTED, XenbusState.CLOSED


ACTIONS = {
    "back event": lambda w: w.back and w.back.client.deliver(),
    "front event": lambda w: w.front and w.front.client.deliver(),
    "last back event": lambda w: w.back and w.back.client.deliver(-1),
    "last front event": lambda w: w.front and w.front.client.deliver(-1),
    "all events": lambda w: w.store.hook is None and w.store.settle(),
    "back closes": lambda w: w.back and w.back.half.close(),
    "front closes": lambda w: w.front and w.front.half.close(),
    "front reopens": lambda w: w.front and w.front.half.reopen(),
    "back fails": lambda w: w.back and w.back.half.fail("fault"),
    "front fails": lambda w: w.front and w.front.half.fail("fault"),
    "back dies": lambda w: kill(w, "back"),
    "front dies": lambda w: kill(w, "front"),
    "back starts": lambda w: w.back or w.start_back(),
    "front starts": lambda w: w.front or w.start_front(),
    "front cycles": lambda w: cycle(w, "front"),
    "back cycles": lambda w: cycle(w, "back"),
    "back restarts": lambda w: restart(w, "back"),
    "front restarts": lambda w: restart(w, "front"),
    "back stops": lambda w: stop(w, "back"),
    "front stops": lambda w: stop(w, "front"),
    "back connect raises": lambda w: provoke(w.back, "connect"),
    "front prepare raises": lambda w: provoke(w.front, "prepare"),
    "front connect raises": lambda w: provoke(w.front, "connect"),
    "hot plug": lambda w: exists(w) and w.dom0.write(f"{BACK}/state", "7"),
    "unplug": lambda w: exists(w) and toolstack.unplug(w.dom0, DEVICE),
    "remove": lambda w: toolstack.remove(w.dom0, DEVICE),
    "create": lambda w: exists(w) or toolstack.create(w.dom0, DEVICE),
    "front node goes": lambda w: f"{FRONT}/state" in w.store.nodes and w.dom0.rm(f"{FRONT}/state"),
}


def exists(world):
    return f"{BACK}/state" in world.store.nodes


def kill(world, side):
    if (process := getattr(world, side)) is not None:
        process.client.kill()
        setattr(world, side, None)


def restart(world, side):
    kill(world, side)
    if exists(world):
        world.start_back() if side == "back" else world.start_front()


def cycle(world, side):
    """Have a half close, the frontend reopen, and that half alone do all that it can meanwhile."""
    for do in (f"{side} closes", "front reopens"):
        ACTIONS[do](world)
        process = getattr(world, side)
        while process is not None and process.client.deliver():
            pass


def stop(world, side):
    # From the hook this may be the very half that is in a turn: then it stops after it.
    if (process := getattr(world, side)) is not None and world.store.hook is None:
        process.half.stop()
        assert process.driver.begun == process.driver.ended
        setattr(world, side, None)


def provoke(process, call):
    if process is not None:
        process.driver.raises[call] = WireError("provoked")


@pytest.fixture(scope="session")
def act(killed):
    """Do something at a place where it may hit any process in the middle of anything."""

    def act(world, name):
        try:
            ACTIONS[name](world)
        except killed:
            pass  # the process that this was running in is dead now
        except StoreError as error:
            if not (error.code == "ENOENT" and name.endswith("starts")):
                raise
            setattr(world, name.split()[0], None)  # a start without a device

    return act


def check_rest(world):
    """Deliver everything; what then is must make sense."""
    world.store.hook = None
    world.store.settle()
    processes = [process for process in (world.back, world.front) if process is not None]
    for process in processes:
        assert process.driver.begun - process.driver.ended in (0, 1)
    if exists(world):
        assert f"{BACK}/frontend" in world.store.nodes, "a removed device was brought back"
    if len(processes) == 2 and exists(world) and f"{FRONT}/state" in world.store.nodes:
        if world.states() == (CONNECTED, CONNECTED):
            world.check_connected()
        else:
            assert world.states()[0] is CLOSED
            assert world.states()[1] is CLOSED or world.dom0.read(f"{BACK}/online") == "0"
            world.check_released()


def heal(world):
    """Bring everything back to life and willing, as an operator would."""
    for process in (world.back, world.front):
        if process is not None:
            process.driver.raises.clear()
    if f"{FRONT}/state" not in world.store.nodes or (
        exists(world) and world.dom0.read(f"{BACK}/online") == "0"
    ):
        toolstack.remove(world.dom0, DEVICE)
        world.store.settle()
    if not exists(world):
        toolstack.create(world.dom0, DEVICE)
    if world.back is None:
        world.start_back()
    if world.front is None:
        world.start_front()
    world.store.settle()
    world.front.half.reopen()
    world.store.settle()
    world.check_connected()


def check_end(world):
    """From wherever the story left us: all becomes well, and ends with nothing held."""
    check_rest(world)
    heal(world)
    world.front.half.close()
    world.store.settle()
    assert world.states() == (CLOSED, CLOSED)
    world.check_released()


def play(world, act, story, asides):
    """Act the story between turns; an aside (n, name) n store operations after the one before."""
    waiting = list(asides)
    counted = depth = 0

    def hook(client):
        nonlocal counted, depth
        if client is world.dom0 or depth > 3:
            return
        counted += 1
        if not waiting:
            return
        left, name = waiting[0]
        if left:
            waiting[0] = (left - 1, name)
            return
        waiting.pop(0)
        depth += 1
        act(world, name)
        depth -= 1

    world.store.hook = hook
    for name in story:
        act(world, name)
    check_end(world)
    return counted


# The way to a connection, with events in order; "all events" needs no further ones.
CONNECTING = ["back starts", "front starts", *["back event", "front event"] * 12]
SINGLE = [name for name in ACTIONS if "event" not in name and not name.endswith("starts")]


@pytest.mark.parametrize("reconnect", [False, True])
@pytest.mark.parametrize("name", SINGLE)
def test_one_fault_at_every_store_operation_of_a_connection_heals(new_world, act, name, reconnect):
    at, counted = 0, 1
    while at < counted:
        counted = play(new_world(reconnect=reconnect), act, CONNECTING, [(at, name)])
        at += 1
    assert at > 40


PAIRED = ["back restarts", "front restarts", "back cycles", "front cycles", "back fails"]


@settings(deadline=None, max_examples=1000)
@given(
    asides=st.lists(st.tuples(st.integers(0, 60), st.sampled_from(PAIRED)), min_size=2, max_size=3),
    reconnect=st.booleans(),
)
def test_several_restarts_and_closes_in_one_connection_heal(new_world, act, asides, reconnect):
    play(new_world(reconnect=reconnect), act, CONNECTING, asides)


@settings(deadline=None, max_examples=1000, suppress_health_check=[HealthCheck.too_slow])
@given(
    story=st.lists(st.sampled_from([*ACTIONS, *["back event", "front event"] * 6]), max_size=40),
    asides=st.lists(st.tuples(st.integers(0, 25), st.sampled_from(list(ACTIONS))), max_size=12),
    reconnect=st.booleans(),
)
def test_no_story_ends_in_a_hang_or_a_leak(new_world, act, story, asides, reconnect):
    play(new_world(reconnect=reconnect), act, ["back starts", "front starts", *story], asides)
