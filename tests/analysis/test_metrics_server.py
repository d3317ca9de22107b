# SPDX-License-Identifier: MIT
"""The HTTP server of the metrics: what it answers, and that no client can occupy it."""

import socket
import threading
from contextlib import ExitStack, closing

import pytest

from vscsi.analysis import metrics_server
from vscsi.analysis.metrics_server import MAX_CONNECTIONS, MAX_HEAD_BYTES, MetricsServer
from vscsi.wire.errors import SetupError

HANG_S = 30
BODY = b"the body\n"


@pytest.fixture
def serve():
    """Start servers, which are closed at the end, and leave no thread behind."""
    before = set(threading.enumerate())
    with ExitStack() as stack:

        def make(render=lambda accept: ("text/plain", BODY + accept.encode()), host="127.0.0.1"):
            server = MetricsServer(host, 0, render)
            stack.callback(server.close)
            server.start()
            return int(server.url.split(":")[-1].split("/")[0])

        yield make
    assert set(threading.enumerate()) == before


def connect(port):
    return socket.create_connection(("127.0.0.1", port), timeout=HANG_S)


def ask(port, request):
    """Send a request; return all that comes back."""
    with connect(port) as client:
        client.sendall(request)
        return received(client)


def received(client):
    answer = b""
    try:
        while part := client.recv(4096):
            answer += part
    except ConnectionResetError:
        pass
    return answer


GOOD = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (GOOD, 200),
        (b"GET /metrics?a=b HTTP/1.0\r\n\r\n", 200),
        (b"GET / HTTP/1.1\r\n\r\n", 404),
        (b"GET /metrics/ HTTP/1.1\r\n\r\n", 404),
        (b"GET /../metrics HTTP/1.1\r\n\r\n", 404),
        (b"POST /metrics HTTP/1.1\r\nContent-Length: 0\r\n\r\n", 405),
        (b"HEAD /metrics HTTP/1.1\r\n\r\n", 405),
        (b"GET /metrics\r\n\r\n", 400),
        (b"GET /metrics HTTP/2\r\n\r\n", 400),
        (b"\x16\x03\x01\x00\xff\r\n\r\n", 400),
        (b"\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\n" + b"A: " + b"a" * 2 * MAX_HEAD_BYTES + b"\r\n\r\n", 400),
        (b"a" * 64 * MAX_HEAD_BYTES, 400),
    ],
)
def test_only_one_thing_is_answered(serve, request_, status):
    answer = ask(serve(), request_)
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"Connection: close" in head
    assert b"Content-Length: %d" % len(body) in head
    assert (body == BODY) == (status == 200)


def test_what_is_accepted_is_passed_on_from_every_field(serve):
    request = b"GET /metrics HTTP/1.1\r\naccept: one\r\nX: y\r\nAccept: two\r\n\r\n"
    assert ask(serve(), request).endswith(BODY + b" one, two")


def test_a_fault_costs_one_scrape(serve, caplog):
    faults = [True]

    def render(_accept):
        if faults:
            faults.clear()
            raise ZeroDivisionError
        return "text/plain", BODY

    port = serve(render)
    assert ask(port, GOOD).startswith(b"HTTP/1.1 500 ")
    assert "a scrape failed" in caplog.text
    assert ask(port, GOOD).endswith(BODY)


def test_who_is_slow_is_let_go_of(serve, monkeypatch):
    """One byte and no more; a request without an end; one who does not read the answer."""
    monkeypatch.setattr(metrics_server, "PATIENCE_S", 0.05)
    port = serve(lambda _accept: ("text/plain", bytes(64 << 20)))
    with connect(port) as one, connect(port) as two, connect(port) as three:
        one.sendall(b"G")
        two.sendall(GOOD[:-2])
        three.sendall(GOOD)
        assert received(one) == received(two) == b""
        assert len(received(three)) < 64 << 20


def test_those_beyond_the_limit_are_closed_at_once_and_there_is_room_again(serve):
    port = serve()
    with ExitStack() as stack:
        clients = [stack.enter_context(closing(connect(port))) for _ in range(MAX_CONNECTIONS)]
        for client in clients:
            client.sendall(GOOD[:-2])
        assert ask(port, GOOD) == b""
        for client in clients:
            client.sendall(b"\r\n")
            assert received(client).endswith(BODY)
    while not (answer := ask(port, GOOD)):  # it has not seen yet that they have gone
        pass
    assert answer.endswith(BODY)


def test_it_ends_while_clients_are_there(serve):
    server = MetricsServer("127.0.0.1", 0, lambda _accept: ("text/plain", BODY))
    server.start()
    with connect(int(server.url.split(":")[-1].split("/")[0])) as client:
        client.sendall(b"GET")
        server.close()
        assert received(client) == b""


def test_a_server_that_was_not_started_lets_go_of_its_port(serve):
    server = MetricsServer("127.0.0.1", 0, lambda _accept: ("text/plain", BODY))
    port = int(server.url.split(":")[-1].split("/")[0])
    with pytest.raises(SetupError, match="Address already in use"):
        MetricsServer("127.0.0.1", port, lambda _accept: ("text/plain", BODY))
    server.close()
    MetricsServer("127.0.0.1", port, lambda _accept: ("text/plain", BODY)).close()
