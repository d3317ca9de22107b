# SPDX-License-Identifier: MIT
"""Both clients by the words of domain.base.StoreClient, and what becomes of a lost connection."""

import queue
import socket
import threading

import pytest

from vscsi.domain.base import DomainError, StoreClient, StoreError
from vscsi.domain.store.client import SocketClient
from vscsi.domain.store.operations import Operations
from vscsi.wire.errors import WireError
from vscsi.wire.xenstore import MessageType

HANG_S = 30.0


@pytest.fixture(params=["local", "socket"])
def client(request, served) -> StoreClient:
    return served.local() if request.param == "local" else served.connect()


@pytest.fixture(params=["local", "socket"])
def guest(request, served) -> StoreClient:
    """Domain 5, with the home that a toolstack gives it."""
    toolstack = served.local()
    toolstack.mkdir("/local/domain/5")
    toolstack.set_perms("/local/domain/5", ["n5"])
    return served.local(5) if request.param == "local" else served.connect(5)


def test_the_store_client_interface(client):
    client.write("/a/b", "größe")
    client.mkdir("/a/c")
    assert client.read("/a/b") == "größe"
    assert client.read("/a/c") == ""
    assert client.directory("/a") == ["b", "c"]
    assert client.directory("/a/b") == []
    client.set_perms("/a/b", ["n0", "r1"])
    assert client.get_perms("/a/b") == ["n0", "r1"]
    client.rm("/a")
    with pytest.raises(StoreError, match=r"^ENOENT: /a/b$"):
        client.read("/a/b")


@pytest.mark.parametrize("path", ["", "/a\0/b", "/ü", "/a b", "/a//b"])
def test_a_path_that_cannot_be_is_a_store_error(client, path):
    with pytest.raises(StoreError, match=r"^EINVAL"):
        client.read(path)


def test_values_that_are_no_text_or_too_long(client, served, wire):
    with pytest.raises(StoreError, match=r"^EINVAL"):
        client.write("/a", "\ud800")
    with pytest.raises(StoreError, match=r"^E2BIG"):
        client.write("/a", "x" * 4094)
    raw = served.raw()
    raw.sendall(wire.encode(MessageType.WRITE, b"/a\0\xff\xfe"))
    assert wire.receive(raw) == (MessageType.WRITE, 0, b"OK\0")
    with pytest.raises(WireError, match="not UTF-8"):
        client.read("/a")


def abort_after_writing(client: StoreClient, path: str) -> None:
    with client.transaction() as inside:
        inside.write(path, "never")
        raise KeyError


def test_transactions_commit_abort_and_conflict(client, served):
    other = served.local()
    with client.transaction() as inside:
        inside.write("/n", "1")
        assert inside.read("/n") == "1"
        with pytest.raises(StoreError, match=r"^ENOENT"):
            other.read("/n")
    assert other.read("/n") == "1"
    with pytest.raises(KeyError):
        abort_after_writing(client, "/n")
    assert other.read("/n") == "1"

    def conflict() -> None:
        with client.transaction() as inside:
            inside.write("/n", inside.read("/n") + "+")
            other.write("/n", "3")

    with pytest.raises(StoreError, match=r"^EAGAIN"):
        conflict()
    assert other.read("/n") == "3"


def test_relative_paths_and_permissions_of_a_guest(guest, served):
    guest.write("device/vbd/1/state", "1")
    assert served.local().read("/local/domain/5/device/vbd/1/state") == "1"
    assert guest.get_perms("device") == ["n5"]
    for path in ("/", "/local", "/local/domain/6", "/tool"):
        with pytest.raises(StoreError, match=r"^EACCES"):
            guest.directory(path)
        with pytest.raises(StoreError, match=r"^EACCES"):
            guest.write(f"{path.rstrip('/')}/x", "1")


def test_a_guests_transactions_and_watches_are_bounded(guest, events):
    opened = [guest.transaction() for _ in range(11)]
    for transaction in opened[:10]:
        transaction.__enter__()
    with pytest.raises(StoreError, match=r"^ENOSPC"):
        opened[10].__enter__()
    for transaction in opened[:10]:
        transaction.__exit__(None, None, None)
    for number in range(128):
        guest.watch(f"w{number}", lambda _: None)
    with pytest.raises(StoreError, match=r"^E2BIG"):
        guest.watch("one-more", events.put)


def test_a_watch_fires_at_once_and_for_each_change(client, served, events):
    other = served.local()
    end = client.watch("/w", events.put)
    assert events.get(timeout=HANG_S) == "/w"
    other.write("/w/a/b", "1")
    assert events.get(timeout=HANG_S) == "/w/a/b"
    other.set_perms("/w/a", ["n0", "r1"])
    assert events.get(timeout=HANG_S) == "/w/a"
    with other.transaction() as inside:
        inside.write("/w/t", "1")
        inside.write("/w/t", "2")
    assert events.get(timeout=HANG_S) == "/w/t"
    other.write("/wx", "1")
    with pytest.raises(KeyError):
        abort_after_writing(other, "/w/t")
    end()
    end()
    other.write("/w/a", "not seen")


def test_removal_from_above_reports_the_watched_path(client, served, events):
    other = served.local()
    other.write("/dev/1/state", "4")
    client.watch("/dev/1/state", events.put)
    assert events.get(timeout=HANG_S) == "/dev/1/state"
    other.rm("/dev")
    assert events.get(timeout=HANG_S) == "/dev/1/state"


def test_watches_of_a_guest_are_relative_and_only_for_what_it_may_read(guest, served, events):
    other = served.local()
    guest.watch("device", events.put)
    assert events.get(timeout=HANG_S) == "device"
    other.write("/local/domain/5/device/a", "1")
    assert events.get(timeout=HANG_S) == "device/a"
    guest.watch("/backend", events.put)
    assert events.get(timeout=HANG_S) == "/backend"
    other.write("/backend/secret", "1")
    other.write("/backend/public", "1")
    other.set_perms("/backend/public", ["n0", "r5"])
    assert events.get(timeout=HANG_S) == "/backend/public"
    other.rm("/backend/secret")
    other.rm("/backend/public")  # could be read until now
    assert events.get(timeout=HANG_S) == "/backend/public"
    with pytest.raises(StoreError, match=r"^EACCES"):
        guest.watch("@releaseDomain", events.put)


def test_domains_that_come_and_go_are_announced(client, served, events):
    client.watch("@introduceDomain", events.put)
    client.watch("@releaseDomain", events.put)
    assert {events.get(timeout=HANG_S) for _ in range(2)} == {"@introduceDomain", "@releaseDomain"}
    served.store.introduce(5)
    assert events.get(timeout=HANG_S) == "@introduceDomain"
    served.store.release(5)
    assert events.get(timeout=HANG_S) == "@releaseDomain"


def test_a_callback_may_make_requests_and_end_its_watch(client, events):
    ends = []

    def callback(path: str) -> None:
        client.write("/log", path)
        ends[0]()
        events.put(client.read("/log"))

    ready = threading.Event()
    ends.append(client.watch("/w", lambda path: ready.wait(HANG_S) and callback(path)))
    ready.set()
    assert events.get(timeout=HANG_S) == "/w"
    client.write("/w", "not seen")


def test_a_callback_that_fails_does_not_end_the_others(client, events, caplog):
    def failing(_: str) -> None:
        raise RuntimeError("the watcher's mistake")

    client.watch("/w", failing)
    client.watch("/w", events.put)
    assert events.get(timeout=HANG_S) == "/w"
    assert "the watcher's mistake" in caplog.text


def test_events_that_wait_are_merged(client, served, events):
    """While the dispatcher is busy, a hundred writes to two paths become two events."""
    other = served.local()
    entered, leave = threading.Event(), threading.Event()

    def busy(_: str) -> None:
        entered.set()
        leave.wait(HANG_S)

    ended = client.watch("/busy", busy)
    assert entered.wait(HANG_S)
    client.watch("/w", events.put)
    for number in range(100):
        other.write("/w/a", str(number))
        other.write("/w/b", str(number))
    for _ in range(2):  # events may follow the first reply, not the second
        client.read("/")
    leave.set()
    ended()
    assert [events.get(timeout=HANG_S) for _ in range(3)] == ["/w", "/w/a", "/w/b"]


def test_requests_of_many_threads_find_their_replies(client):
    def work(number: int) -> None:
        for step in range(50):
            client.write(f"/{number}", str(step))
            if client.read(f"/{number}") != str(step):
                failures.append(number)

    failures: list[int] = []
    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANG_S)
    assert not failures


def test_a_stopped_server_is_noticed_once(served, events):
    lost: queue.Queue[str] = queue.Queue()
    client = served.connect(on_lost=lambda: lost.put("lost"))
    end = client.watch("/w", events.put)
    assert events.get(timeout=HANG_S) == "/w"
    served.daemon.stop()
    assert lost.get(timeout=HANG_S) == "lost"
    with pytest.raises(DomainError):
        client.read("/w")
    end()
    client.close()
    assert lost.empty()
    with pytest.raises(DomainError, match="no store at"):
        SocketClient(served.path)


def test_closing_a_client_oneself_is_no_loss(served):
    lost: queue.Queue[str] = queue.Queue()
    client = served.connect(on_lost=lambda: lost.put("lost"))
    client.close()
    client.close()
    assert lost.empty()
    with pytest.raises(DomainError, match="closed"):
        client.read("/")


@pytest.fixture
def impostor(tmp_path):
    """A server of the test's own: the socket that it accepted, and a client connected to it."""
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with SocketClient(path) as client:
            accepted, _ = listener.accept()
            with accepted:
                yield accepted, client


def answered_with(impostor, reply: bytes) -> BaseException:
    """Make a request, answer it with raw bytes and hang up; return what the request raised."""
    accepted, client = impostor
    raised: queue.Queue[BaseException] = queue.Queue()

    def ask() -> None:
        try:
            client.read("/a")
        except (DomainError, StoreError, WireError) as error:
            raised.put(error)

    thread = threading.Thread(target=ask)
    thread.start()
    accepted.recv(100)
    accepted.sendall(reply)
    accepted.shutdown(socket.SHUT_RDWR)
    thread.join(HANG_S)
    return raised.get(timeout=HANG_S)


def test_a_request_that_waits_fails_when_the_server_goes(impostor):
    assert isinstance(answered_with(impostor, b""), DomainError)


def test_replies_that_break_the_format(impostor, wire):
    reply = wire.encode(MessageType.READ, b"\xff", request_id=1)
    assert isinstance(answered_with(impostor, reply), WireError)


@pytest.mark.parametrize(
    ("message_type", "payload", "expected"),
    [
        (MessageType.WRITE, b"OK\0", WireError),
        (MessageType.ERROR, b"ENOTHING\0", WireError),
        (MessageType.ERROR, b"EBUSY\0", StoreError),
        (MessageType.WATCH_EVENT, b"no token", DomainError),
        (MessageType.READ, bytes(4097), DomainError),
    ],
)
def test_strange_replies(impostor, wire, message_type, payload, expected):
    reply = wire.encode(message_type, payload, request_id=1)
    assert type(answered_with(impostor, reply)) is expected


def parts(*replies: bytes):
    """Operations on a server whose directory is too long and comes in the given parts."""
    waiting = list(replies)

    def request(message_type: MessageType, _: int, payload: bytes) -> bytes:
        if message_type == MessageType.DIRECTORY:
            raise StoreError("E2BIG")
        assert message_type == MessageType.DIRECTORY_PART
        return waiting.pop(0)

    return Operations(request)


def test_a_directory_that_changes_between_its_parts_is_read_again():
    operations = parts(b"1\0a\0b\0", b"2\0c\0\0", b"2\0a\0", b"2\0x\0\0")
    assert operations.directory("/") == ["a", "x"]
    assert parts(b"1\0\0").directory("/") == []


@pytest.mark.parametrize("reply", [b"", b"1", b"1\0"])
def test_a_part_without_names_is_an_error(reply):
    with pytest.raises(WireError):
        parts(reply).directory("/")
