# SPDX-License-Identifier: MIT
"""What a domain does wrong outside its rings: keys, states, events, death; and its neighbours."""

import contextlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vscsi.domain.base import DomainError, StoreError
from vscsi.domain.keys import XenbusState
from vscsi.domain.local import MAX_PORTS, LocalGuest, LocalMessage
from vscsi.wire.cdb import build
from vscsi.wire.errors import WireError

PROTOCOLS = ["srp", "vscsiif", "blkif"]
PROCESS = Path(__file__).with_name("process.py")
HANG_S = 30
SPURIOUS_EVENTS = 64
"""As in service.c."""
SYS_WRITE = 1


@pytest.fixture
def start_process():
    """Start `process.py`, and return it when it is ready."""
    started = []

    def start(*arguments):
        process = subprocess.Popen(
            [sys.executable, PROCESS, *map(str, arguments)], stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


# Keys


NUMBERS = ["-1", "", " 8", "8 ", "0x8", "8\n", "1" * 21, "4294967296", "a" * 2000, "٣", "1e3"]
BAD_KEYS = [
    *(("srp", "ring-ref", value) for value in [*NUMBERS, "0", "32768", "4294967295"]),
    *(("srp", "response-ring-ref", value) for value in ["", "77", "4294967295"]),
    *(("srp", "slot-size", value) for value in ["127", "129", "64", "0", "2048", "4294967295"]),
    *(("srp", "ring-page-order", value) for value in ["5", "32", "4294967295", "-1"]),
    *(("srp", "max-requests", value) for value in ["0", "513", "x"]),
    *(("vscsiif", "ring-ref", value) for value in [*NUMBERS, "0", "32768", "4294967295"]),
    *(("blkif", "ring-ref", value) for value in [*NUMBERS, "0", "32768", "4294967295"]),
    *(("blkif", "protocol", value) for value in ["", "x86_64", "ia64-abi", "x" * 300]),
    *(("blkif", "multi-queue-num-queues", value) for value in ["0", "2", "x"]),
    *(("blkif", "ring-page-order", value) for value in ["5", "64", "-1"]),
    *(("blkif", "num-ring-pages", value) for value in ["0", "17", "x"]),
    *(("blkif", "max-request-segments", value) for value in ["0", "256", "-1"]),
    *(("blkif", "max-request-size", value) for value in ["0", "99999999999"]),
    *((protocol, "event-channel", value) for protocol in PROTOCOLS for value in [*NUMBERS, "0"]),
    *((protocol, key, None) for protocol in PROTOCOLS for key in ("ring-ref", "event-channel")),
]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_bad_key_ends_the_connection_with_its_name(raw, server, checker, protocol):
    frontend = raw(protocol)
    for _, key, value in (each for each in BAD_KEYS if each[0] == protocol):
        frontend.wait(XenbusState.INIT_WAIT)
        keys = {**frontend.keys(), key: value}
        if value is not None and not value.isascii():
            continue  # not even the store takes that
        frontend.publish(XenbusState.INITIALISED, keys)
        reason = frontend.closed()
        assert key in reason or "grant reference" in reason or "event channel" in reason, keys
        assert server.mapped(frontend.domain) == 0
        frontend.publish(XenbusState.CLOSED, {key: None})
        frontend.wait(XenbusState.CLOSED)
        frontend.publish(XenbusState.INITIALISING)
    frontend.connect()
    assert frontend.state() is XenbusState.CONNECTED
    checker()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_any_text_in_any_key(raw, server, protocol):
    """The backend connects or says why not, and can be left either way."""
    frontend = raw(protocol)
    names = [
        "ring-ref",
        "ring-ref0",
        "ring-ref1",
        "event-channel",
        "ring-page-order",
        "protocol",
        "num-ring-pages",
        "ring-pages",
        "slot-size",
        "max-requests",
        "response-ring-ref",
    ]
    texts = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=12)
    numbers = st.integers(-1, 40).map(str)

    @settings(max_examples=40)
    @given(st.dictionaries(st.sampled_from(names), texts | numbers, max_size=4))
    def check(keys):
        frontend.wait(XenbusState.INIT_WAIT)
        frontend.publish(XenbusState.INITIALISED, {**frontend.keys(), **keys})
        state = frontend.wait(XenbusState.CONNECTED, XenbusState.CLOSING)
        assert bool(frontend.error()) == (state is XenbusState.CLOSING)
        frontend.publish(XenbusState.CLOSED, dict.fromkeys(names))
        frontend.wait(XenbusState.CLOSED)
        assert server.mapped(frontend.domain) == 0
        frontend.publish(XenbusState.INITIALISING)

    check()


def test_a_ring_and_a_channel_that_another_device_has(raw, server):
    """One page as the ring of two devices: each breaks the other's, and nobody else's."""
    disk = raw("blkif").connect()
    host = raw("vscsiif", guest=disk.guest)
    host.wait(XenbusState.INIT_WAIT)
    ring = disk.store.read(f"{disk.path}/ring-ref")
    taken = disk.store.read(f"{disk.path}/event-channel")
    host.publish(XenbusState.INITIALISED, {"ring-ref": ring, "event-channel": taken})
    assert "event channel" in host.closed()
    host.reopen()
    host.publish(XenbusState.INITIALISED, {**host.keys(), "ring-ref": ring})
    host.wait(XenbusState.CONNECTED)
    disk.put(disk.layout.build_request(255, id=1))
    host.events.notify()
    host.publish(XenbusState.CLOSING)
    host.wait(XenbusState.CLOSING)
    disk.publish(XenbusState.CLOSING)
    disk.wait(XenbusState.CLOSING)
    assert server.mapped(disk.domain) == 0


# States


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_states_that_toggle_fast_leave_a_device_that_works(raw, server, checker, protocol):
    """XSA-350: connections begin and end as fast as the store can be written."""
    frontend = raw(protocol)
    frontend.wait(XenbusState.INIT_WAIT)
    keys = frontend.keys()
    for n in range(400):
        state = XenbusState((3, 4, 5, 6, 1, 3, 1, 4, 6, 2, 7, 8, 0)[n * 7 % 13])
        frontend.publish(state, keys)
        if n % 40 == 0:
            checker()
    frontend.publish(XenbusState.CLOSED)
    frontend.wait(XenbusState.CLOSED)
    assert server.mapped(frontend.domain) == 0
    frontend.publish(XenbusState.INITIALISING)
    frontend.connect()
    assert frontend.state() is XenbusState.CONNECTED


def test_events_of_the_store_do_not_pile_up(raw, server):
    """XSA-349: while a domain's thread is busy, its guest can make it note a path only once."""
    disk = raw("blkif").connect()
    reference, _ = disk.page()
    server.store.hold("read")
    disk.put(
        disk.layout.build_request(
            0, segments=[{"gref": reference, "first_sect": 0, "last_sect": 7}]
        )
    )
    server.store.wait_held()
    disk.publish(XenbusState.CLOSING)  # the domain's thread waits for the read
    for n in range(500):
        disk.publish(XenbusState(5 + n % 2))
    assert server.guest(disk.domain)._turns._queue.qsize() < 20
    server.store.release()
    disk.wait(XenbusState.CLOSING, XenbusState.CLOSED)


def test_a_domain_cannot_fill_the_log(raw, server, caplog):
    disk = raw("blkif")
    for _ in range(30):
        disk.wait(XenbusState.INIT_WAIT)
        disk.publish(XenbusState.INITIALISED)
        disk.closed()
        disk.reopen()
    warnings = [record for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 16


def test_removing_the_device_s_directory_ends_the_connection(raw, server, eventually):
    disk = raw("blkif").connect()
    disk.store.rm(f"{disk.path}/state")
    eventually(lambda: server.mapped(disk.domain) == 0)
    disk.wait(XenbusState.CLOSED)


# Events


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_storm_of_events_is_looked_at_less_and_less(raw, server, checker, protocol):
    """XSA-332: a frontend that rings without work does not get a thread to itself."""
    frontend = raw(protocol).connect()
    stop = threading.Event()

    def ring():
        while not stop.is_set():
            frontend.events.notify()

    thread = threading.Thread(target=ring)
    thread.start()
    try:
        end = server.end(frontend.domain, frontend.kind)
        while end.connection.service.notifications_received <= SPURIOUS_EVENTS:
            checker()
        for _ in range(10):
            checker()
    finally:
        stop.set()
        thread.join()
    if protocol == "blkif":
        assert frontend.request(3).status == 0


def test_a_peer_that_stalls_notifications_does_not_stall_the_end(raw, server, checker):
    """It holds the same open file: it can make the write block, and fill the counter."""
    disk = raw("blkif").connect()
    outgoing = disk.events.fds[0]  # the backend's writes end up here
    os.set_blocking(outgoing, True)
    os.eventfd_write(outgoing, 0xFFFF_FFFF_FFFF_FFFE)
    disk.put(disk.layout.build_request(255))
    thread = server.end(disk.domain, "vbd")._thread.native_id
    while not Path(f"/proc/self/task/{thread}/syscall").read_text().startswith(f"{SYS_WRITE} "):
        checker()
    for _ in range(3):  # and nobody else waits for it
        checker()
    disk.publish(XenbusState.CLOSING)
    disk.wait(XenbusState.CLOSING)
    assert server.mapped(disk.domain) == 0


# Messages to the host


def test_event_channels_are_counted(server):
    guest = LocalGuest(server.directory)
    channels = [guest.event_channel() for _ in range(MAX_PORTS)]
    with pytest.raises(StoreError):
        guest.event_channel()
    guest.ask(LocalMessage.CLOSE_EVENT_CHANNEL, str(channels[0].port).encode())
    channels.append(guest.event_channel())
    for channel in channels:
        channel.close()
    guest.close()


@pytest.mark.parametrize(
    ("message", "payload"),
    [
        (LocalMessage.ATTACH, b""),
        (LocalMessage.CLOSE_EVENT_CHANNEL, b"\xff"),
        (LocalMessage.CLOSE_EVENT_CHANNEL, b""),
        (LocalMessage.STATISTICS, b"\xff\xfe"),
        (LocalMessage.STATISTICS, b"vsrp"),
        (LocalMessage.STATISTICS, b"x" * 4096),
        (0x1FF, b""),
    ],
)
def test_messages_that_make_no_sense_are_refused(server, checker, message, payload):
    guest = LocalGuest(server.directory)
    with pytest.raises((StoreError, WireError, DomainError)):
        guest.ask(message, payload)
    guest.close()
    checker()


def test_counters_are_asked_for_while_connections_come_and_go(raw, server):
    """Of a thread that has ended no clock may be asked."""
    disk = raw("blkif")
    stop = threading.Event()
    answers = []

    def ask():
        while not stop.is_set():
            with contextlib.suppress(StoreError):  # ENOENT while nothing is connected
                answers.append(disk.guest.ask(LocalMessage.STATISTICS, b"vbd 51712"))

    thread = threading.Thread(target=ask)
    thread.start()
    for _ in range(30):
        disk.connect()
        disk.publish(XenbusState.CLOSING)
        disk.wait(XenbusState.CLOSING)
        disk.reopen()
    stop.set()
    thread.join()
    assert answers


# Death


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_frontend_that_is_killed_leaves_nothing(
    server, start_process, eventually, checker, protocol
):
    server.store.hold("read")
    process = start_process("connect", f"{protocol}:{server.directory}")
    server.store.wait_held(1 if protocol == "blkif" else 4)
    (domain,) = (each for each in server.export._guests if each != 1)
    guest = server.guest(domain)
    process.kill()
    eventually(lambda: domain not in server.export._guests)
    server.store.release()
    guest.join()
    assert guest.peer.grants.mapped == 0
    assert not any(end.in_flight for served in guest.devices for end in served.queues.ends)
    store = server.export.host.store
    assert str(domain) not in store.directory("/local/domain")
    for kind in ("vsrp", "vscsi", "vbd"):
        assert str(domain) not in store.directory(f"/local/domain/0/backend/{kind}")
    checker()


# Domains beside each other


@pytest.mark.parametrize("busy", PROTOCOLS)
def test_a_slow_store_stalls_only_who_uses_it(serve, watched_store, raw, busy):
    server = serve(watched_store(), watched_store())
    with server.connect(busy) as slow:
        slow.lun(0).capacity()
        server.store.hold("read")
        reads = [
            slow.start(slow.lun(0), build("READ(10)", blocks=1), data_in=512) for _ in range(3)
        ]
        server.store.wait_held()
        for kind, options in (("srp", ""), ("vscsiif", ""), ("blkif", "?disk=1")):
            with server.connect(kind, options) as hba:
                lun = hba.lun(0 if kind == "blkif" else 1)
                lun.write(5, b"x" * 512)
                assert lun.read(5, 1) == b"x" * 512
        # Nor does one that leaves in the middle of it.
        guest = LocalGuest(server.directory)
        guest.close()
        server.store.release()
        assert [read.result(HANG_S).status for read in reads] == [0] * 3


def test_domains_have_no_part_in_each_other(raw, server):
    """A reference or port is a domain's own; the same numbers name other things next door."""
    one, other = raw("blkif").connect(), raw("blkif").connect()
    reference, _ = one.page(b"mine")
    (frame,) = other.memory.alloc(1)
    other.memory.view(frame)[:4] = b"your"
    segment = {"gref": reference, "first_sect": 0, "last_sect": 7}
    assert other.request(1, segments=[segment]).status == -1
    assert one.request(1, segments=[segment]).status == 0
    assert server.store.content[:4] == b"mine"
    with pytest.raises(StoreError):
        other.store.write(f"{one.path}/state", "5")
    with pytest.raises(StoreError):
        other.store.write(f"{one.backend}/state", "5")
