# SPDX-License-Identifier: MIT
"""The server and clients that are broken, slow or hostile."""

import array
import os
import resource
import socket
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vscsi.domain.base import DomainError, StoreError
from vscsi.domain.store import daemon as daemon_module
from vscsi.domain.store.connection import OUTPUT_LIMIT, Connection
from vscsi.domain.store.daemon import Daemon
from vscsi.domain.store.session import Store
from vscsi.wire.errors import WireError
from vscsi.wire.xenstore import MessageType

PIECES = st.sampled_from(
    b"/a /a/b a / @x /local/domain/5 T F 0 999999999999 r5 n5 check // /a/ -1".split()
)
JUNK = st.sampled_from([b"\0", b"\0\0", b"\xff", b"", b"x" * 3000])
MESSAGES = st.builds(
    lambda kind, request, transaction, pieces: (
        struct.pack("<4I", kind, request, transaction, len(payload := b"\0".join(pieces)[:4096]))
        + payload
    ),
    st.one_of(st.sampled_from(MessageType), st.integers(0, 300), st.just(0xFFFFFFFF)),
    st.integers(0, 0xFFFFFFFF),
    st.integers(0, 3),
    st.lists(st.one_of(PIECES, JUNK), max_size=5),
)


def drain(connection: Connection) -> bytes:
    sent = b""
    while (piece := connection.outgoing()) is not None:
        sent += piece[0]
        connection.sent(len(piece[0]))
    return sent


def messages(data: bytes) -> list[tuple[int, int, bytes]]:
    found = []
    while data:
        kind, request, _, length = struct.unpack_from("<4I", data)
        found.append((kind, request, data[16 : 16 + length]))
        data = data[16 + length :]
    return found


@settings(deadline=None, max_examples=300)
@given(st.lists(st.one_of(MESSAGES, st.binary(max_size=40)), max_size=20), st.sampled_from([0, 5]))
def test_any_bytes_are_answered_or_end_the_connection(pieces, domain):
    """Every whole request has one reply with its id; nothing but WireError comes out."""
    store = Store()
    connection = Connection(store, lambda: None)
    if domain:
        connection.domain = domain
    received = b""
    try:
        for piece in pieces:
            connection.feed(piece)
            received += drain(connection)
    except WireError:
        pass
    replies = [message for message in messages(received) if message[0] != MessageType.WATCH_EVENT]
    asked = []
    data = b"".join(pieces)
    while len(data) >= 16:
        _, request, _, length = struct.unpack_from("<4I", data)
        if len(data) < 16 + length:
            break
        asked.append(request)
        data = data[16 + length :]
    assert [request for _, request, _ in replies] == asked[: len(replies)]
    assert store.tree.is_consistent()
    connection.close()
    assert not list(store.watches.concerned("/a/b", exact=False))


@pytest.mark.parametrize("cut", [1, 15, 16, 17])
def test_messages_arrive_in_any_pieces(wire, cut):
    connection = Connection(Store(), lambda: None)
    stream = wire.encode(MessageType.WRITE, b"/a\0v", 1) + wire.encode(MessageType.READ, b"/a\0", 2)
    received = b""
    for start in range(0, len(stream), cut):
        connection.feed(stream[start : start + cut])
        received += drain(connection)
    assert messages(received) == [(MessageType.WRITE, 1, b"OK\0"), (MessageType.READ, 2, b"v")]


@pytest.mark.parametrize(
    ("message_type", "payload", "transaction", "code"),
    [
        (MessageType.READ, b"/a", 0, "EINVAL"),
        (MessageType.READ, b"/a\0/b\0", 0, "EINVAL"),
        (MessageType.READ, b"/\0", 7, "ENOENT"),
        (MessageType.WRITE, b"/a", 0, "EINVAL"),
        (MessageType.WATCH, b"/a\0", 0, "EINVAL"),
        (MessageType.WATCH, b"/a\0" + b"t" * 1023 + b"\0", 0, "EINVAL"),
        (MessageType.UNWATCH, b"/a\0t\0", 0, "ENOENT"),
        (MessageType.SET_PERMS, b"/\0", 0, "EINVAL"),
        (MessageType.SET_PERMS, b"/\0\xff\0", 0, "EINVAL"),
        (MessageType.DIRECTORY_PART, b"/\0" + b"9" * 4000 + b"\0", 0, "EINVAL"),
        (MessageType.DIRECTORY_PART, b"/\x001\0", 0, "EINVAL"),
        (MessageType.TRANSACTION_START, b"\0", 1, "EBUSY"),
        (MessageType.TRANSACTION_END, b"T\0", 0, "ENOENT"),
        (MessageType.TRANSACTION_END, b"X\0", 0, "EINVAL"),
        (MessageType.GET_DOMAIN_PATH, b"65536\0", 0, "EINVAL"),
        (MessageType.CONTROL, b"reboot\0", 0, "EINVAL"),
        (MessageType.INTRODUCE, b"1\x002\x003\0", 0, "ENOSYS"),
        (99, b"", 0, "ENOSYS"),
        (0x100, b"", 0, "ENOSYS"),
    ],
)
def test_requests_that_are_wrong_get_an_error(wire, message_type, payload, transaction, code):
    connection = Connection(Store(), lambda: None)
    connection.feed(wire.encode(message_type, payload, 3, transaction))
    assert messages(drain(connection)) == [(MessageType.ERROR, 3, code.encode() + b"\0")]


def test_control_and_the_rest_of_the_small_requests(wire):
    connection = Connection(Store(), lambda: None)
    for message_type, payload, reply in (
        (MessageType.CONTROL, b"help\0", b"check\nhelp\0"),
        (MessageType.CONTROL, b"check\0", b"OK\0"),
        (MessageType.DIRECTORY_PART, b"/\x000\0", b"0\0\0"),
        (MessageType.WATCH, b"/a\0t\0", b"OK\0"),
        (MessageType.TRANSACTION_START, b"\0", b"1\0"),
        (MessageType.RESET_WATCHES, b"\0", b"OK\0"),
    ):
        connection.feed(wire.encode(message_type, payload))
        assert messages(drain(connection))[0] == (message_type, 0, reply)
    connection.feed(wire.encode(MessageType.UNWATCH, b"/a\0t\0"))
    connection.feed(wire.encode(MessageType.TRANSACTION_END, b"T\0", transaction_id=1))
    assert [reply for _, _, reply in messages(drain(connection))] == [b"ENOENT\0"] * 2


def test_replies_that_are_not_read_hold_back_further_requests(wire):
    store = Store()
    connection = Connection(store, lambda: None)
    connection.feed(wire.encode(MessageType.WRITE, b"/a\0" + bytes(4000)))
    drain(connection)
    for request in range(1000):
        connection.feed(wire.encode(MessageType.READ, b"/a\0", request))
    assert not connection.wants_input
    assert connection._waiting_bytes < OUTPUT_LIMIT + 4112
    assert [request for _, request, _ in messages(drain(connection))] == list(range(1000))
    assert connection.wants_input


def test_a_client_that_reads_no_events_is_let_go_and_nobody_waits_for_it(served, wire, events):
    slow = served.raw()
    slow.sendall(wire.encode(MessageType.WATCH, b"/w\0t\0"))
    assert wire.receive(slow) == (MessageType.WATCH, 0, b"OK\0")
    other = served.local()
    for number in range(100_000):
        other.write(f"/w/{number}-{'x' * 1000}", "1")
        other.rm(f"/w/{number}-{'x' * 1000}")
        if not served.closed.empty():
            break
    assert served.closed.get(timeout=wire.HANG_S).domain == 0
    end = served.connect().watch("/w", events.put)
    assert events.get(timeout=wire.HANG_S) == "/w"
    end()


def test_events_of_one_path_are_merged_for_a_client_that_does_not_read(wire):
    store = Store()
    wakes: list[int] = []
    connection = Connection(store, lambda: wakes.append(1))
    writer = Connection(store, lambda: None)
    connection.feed(wire.encode(MessageType.WATCH, b"/w\0t\0"))
    drain(connection)
    wakes.clear()
    for number in range(5000):
        writer.feed(wire.encode(MessageType.WRITE, b"/w/state\0%d" % number))
        drain(writer)
    assert len(wakes) == 1
    assert messages(drain(connection)) == [(MessageType.WATCH_EVENT, 0, b"/w/state\0t\0")]


def test_garbage_ends_its_sender_alone(served, wire, events):
    good = served.connect()
    good.watch("/w", events.put)
    assert events.get(timeout=wire.HANG_S) == "/w"
    for garbage in (b"\xff" * 64, struct.pack("<4I", 2, 0, 0, 4097), os.urandom(5000)):
        raw = served.raw()
        raw.sendall(garbage)
        raw.shutdown(socket.SHUT_WR)
        served.closed.get(timeout=wire.HANG_S)
        good.write("/w", "1")
        assert events.get(timeout=wire.HANG_S) == "/w"


def test_what_a_client_had_goes_with_it(served, wire):
    raw = served.raw()
    raw.sendall(
        wire.encode(MessageType.WATCH, b"/w\0t\0")
        + wire.encode(MessageType.TRANSACTION_START, b"\0")
    )
    assert wire.receive(raw)[0] == MessageType.WATCH
    assert len(list(served.store.watches.concerned("/w", exact=True))) == 1
    raw.close()
    served.closed.get(timeout=wire.HANG_S)
    assert not list(served.store.watches.concerned("/w", exact=True))


def test_an_owners_mistake_ends_one_connection(served, wire, caplog):
    client, other = served.connect(), served.connect()
    with pytest.raises(DomainError):
        client.request(wire.CRASH, b"")
    other.write("/a", "1")
    assert "the owner's mistake" in caplog.text


def test_a_connection_becomes_a_guest_for_good(served, wire):
    served.local().write("/a", "1")
    client = served.connect()
    transaction = client.transaction()
    privileged = transaction.__enter__()
    client.request(wire.BECOME, b"5")
    with pytest.raises(StoreError, match=r"^EACCES"):
        client.read("/a")
    with pytest.raises(StoreError, match=r"^ENOENT"):  # its transaction is gone
        privileged.read("/a")
    with pytest.raises(DomainError):
        client.request(wire.BECOME, b"6")


def count_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_descriptors_go_to_the_extension_and_back(served, wire):
    client = served.connect()
    served.in_loop(lambda: None)
    before = count_fds()
    with open("/proc/self/exe", "rb") as mine:
        payload, fds = client.request(wire.ECHO, b"x" * 4096, [mine.fileno(), mine.fileno()])
        assert payload == b"x" * 4096
        assert [os.path.samestat(os.fstat(fd), os.fstat(mine.fileno())) for fd in fds] == [True] * 2
        assert not any(map(os.get_inheritable, fds))
        for fd in fds:
            os.close(fd)
        assert client.request(wire.DROP, b"", [mine.fileno()]) == (b"", [])
        with pytest.raises(StoreError, match="EBUSY"):
            client.request(wire.FAIL, b"", [mine.fileno()])
        with pytest.raises(StoreError, match="E2BIG"):
            client.request(wire.LONG, b"", [mine.fileno()])
        with pytest.raises(StoreError, match="ENOENT"):
            client.read("/nothing")
        client.request(wire.KEEP, b"", [mine.fileno()])
        assert len(served.kept) == 1
        os.close(served.kept.pop())
    served.in_loop(lambda: None)
    assert count_fds() == before
    with pytest.raises(ValueError, match="not an extension"):
        client.request(MessageType.READ, b"/\0")


@pytest.mark.parametrize("case", ["ordinary", "torn", "too many", "far too many", "piecemeal"])
def test_descriptors_that_nobody_claims_are_closed(served, wire, case):
    before = count_fds()
    raw = served.raw()
    message = {
        "ordinary": wire.encode(MessageType.READ, b"/\0"),
        "torn": wire.encode(wire.ECHO, b"xx")[:10],
        "too many": wire.encode(wire.DROP, b""),
        "far too many": wire.encode(wire.DROP, b""),
        "piecemeal": wire.encode(wire.DROP, b"")[:15],
    }[case]
    number = {"too many": 9, "far too many": 100}.get(case, 1)
    rights = array.array("i", [raw.fileno()] * number)
    pieces = [message[i : i + 1] for i in range(15)] if case == "piecemeal" else [message]
    try:
        for piece in pieces:
            raw.sendmsg([piece], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
    except BrokenPipeError:
        assert case == "piecemeal"
    if case == "ordinary":
        assert wire.receive(raw)[0] == MessageType.READ
    raw.shutdown(socket.SHUT_RDWR)
    raw.close()
    served.closed.get(timeout=wire.HANG_S)
    served.in_loop(lambda: None)
    assert count_fds() == before


def test_replies_with_descriptors_that_nobody_reads_are_closed(served, wire):
    before = count_fds()
    raw = served.raw()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    rights = array.array("i", [0])
    raw.setblocking(False)
    try:
        while True:
            raw.sendmsg(
                [wire.encode(wire.ECHO, bytes(4096))],
                [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)],
            )
    except BlockingIOError:
        pass
    served.in_loop(lambda: None)
    raw.close()
    served.closed.get(timeout=wire.HANG_S)
    served.in_loop(lambda: None)
    assert count_fds() == before


def test_the_socket_is_for_its_user_alone(served, wire, monkeypatch):
    assert served.path.stat().st_mode & 0o777 == 0o600
    monkeypatch.setattr(daemon_module, "_peer_uid", lambda _: 12345)
    assert served.raw().recv(1) == b""


def test_the_number_of_clients_is_bounded(served, monkeypatch):
    monkeypatch.setattr(daemon_module, "_MAX_CLIENTS", 1)
    first = served.connect()
    assert served.raw().recv(1) == b""
    first.write("/a", "1")


def test_a_client_waits_while_no_descriptor_is_free(served, wire, caplog):
    served.in_loop(lambda: None)
    raw = socket.socket(socket.AF_UNIX)
    raw.settimeout(wire.HANG_S)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    os.close(lowest_free := os.dup(0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        raw.connect(str(served.path))
        raw.sendall(wire.encode(MessageType.READ, b"/\0"))
        served.in_loop(lambda: None)
        served.in_loop(lambda: None)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert wire.receive(raw) == (MessageType.READ, 0, b"")
    assert "cannot accept" in caplog.text
    raw.close()


def test_a_stale_socket_is_replaced_and_a_live_one_is_not(served, tmp_path):
    second = Daemon(served.path)
    with pytest.raises(OSError, match="in use"):
        second.start()
    second.stop()
    assert served.path.is_socket()
    stale = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(stale))
    third = Daemon(stale)
    third.start()
    third.stop()
    third.stop()
    assert not stale.exists()


def test_stopping_closes_every_connection_and_leaks_nothing(tmp_path):
    before = count_fds()
    closed: list[Connection] = []
    daemon = Daemon(tmp_path / "s", on_close=closed.append)
    daemon.start()
    with socket.socket(socket.AF_UNIX) as raw:
        raw.connect(str(daemon.path))
        raw.sendall(struct.pack("<4I", MessageType.READ, 0, 0, 2) + b"/\0")
        assert len(raw.recv(16, socket.MSG_WAITALL)) == 16
        daemon.call_soon(daemon.stop)  # from inside, too
        assert raw.recv(1) == b""
    daemon.stop()
    daemon.call_soon(lambda: closed.clear())
    assert len(closed) == 1
    assert count_fds() == before


def test_a_callback_that_fails_does_not_end_the_loop(served, caplog):
    def failing() -> None:
        raise RuntimeError("the owner's mistake")

    served.daemon.call_soon(failing)
    served.in_loop(lambda: None)
    assert "the owner's mistake" in caplog.text
