# SPDX-License-Identifier: MIT
"""Our frontends against a backend that lies, or dies: every command ends, and so does `close`."""

import contextlib
import os
import struct
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vscsi
from vscsi.transport.blkif.backend import BlkifBackend
from vscsi.transport.initiator import TransportError
from vscsi.transport.srp.backend import SrpBackend
from vscsi.transport.vscsiif.backend import VscsiifBackend
from vscsi.wire import blkif, mad, srp, vscsiif
from vscsi.wire.cdb import build
from vscsi.wire.srp_ring import SlotFormat, build_slot

PROTOCOLS = ["srp", "vscsiif", "blkif"]
KINDS = {"srp": "vsrp", "vscsiif": "vscsi", "blkif": "vbd"}
BACKENDS = {"srp": SrpBackend, "vscsiif": VscsiifBackend, "blkif": BlkifBackend}
PROCESS = Path(__file__).with_name("process.py")
READ = build("READ(10)", lba=0, blocks=8)
HANG_S = 30


class Liar:
    """Replaces what a backend end answers."""

    def __init__(self, end):
        self.answer = end.answer
        self.lie = None
        end.answer = self

    def __call__(self, message, **options):
        for each in self.lie(message) if self.lie is not None else [message]:
            self.answer(each, **options)


@pytest.fixture
def lying(server):
    """Connect over a path whose backend end will lie: (hba, liar)."""
    with contextlib.ExitStack() as stack:

        def make(protocol):
            hba = stack.enter_context(server.connect(protocol))
            hba.lun(0).capacity()
            return hba, Liar(server.end(hba.initiator.guest.domain, KINDS[protocol]))

        yield make


def expect_failure(hba, reason=None, count=3):
    """Commands in flight, and all later ones, end with TransportError."""
    futures = []
    with contextlib.suppress(TransportError):  # the first may be answered, with a lie, at once
        futures.extend(hba.start(hba.lun(0), READ, data_in=4096) for _ in range(count))
    for future in futures:
        with pytest.raises(TransportError, match=reason):
            future.result(HANG_S)
    with pytest.raises(TransportError):
        hba.lun(0).read(0, 1)
    threading.Thread(target=hba.close).start()  # two at once
    hba.close()


def changed(form, **fields):
    """Return a lie that changes fields of a response."""

    def lie(message):
        value = form["parse"](message)
        return [form["build"](**{**value, **fields})]

    return lie


VSCSIIF = {
    "parse": lambda message: vscsiif.parse_response(message.ljust(252, b"\0")),
    "build": vscsiif.build_response,
}
BLKIF = {"parse": blkif.X86_64.parse_response, "build": blkif.X86_64.build_response}


def parse_srp(message):
    return srp.parse_iu(message[4 : 4 + int.from_bytes(message[2:4], "little")])


def build_srp(**fields):
    return build_slot(SlotFormat.SRP, srp.build_iu(fields.pop("type"), **fields))


SRP = {"parse": parse_srp, "build": build_srp}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"rqid": 0}, "not in flight"),
        ({"rqid": 0xFFFF}, "not in flight"),
        ({"sense_len": 97}, "sense of 97"),
        ({"sense_len": 255}, "sense of 255"),
        ({"residual": 4097}, "residual of 4097"),
        ({"residual": 0xFFFF_FFFF}, "residual"),
        ({"rslt": 0x11}, "status 0x11"),
        ({"rslt": 0xFF}, "status 0xff"),
    ],
)
def test_vscsiif_responses_that_cannot_be(lying, fields, reason):
    hba, liar = lying("vscsiif")
    liar.lie = changed(VSCSIIF, **fields)
    expect_failure(hba, reason)


@pytest.mark.parametrize("host", [1, 7, 16, 255])
def test_a_host_error_is_the_command_s_alone(lying, host):
    hba, liar = lying("vscsiif")
    liar.lie = changed(VSCSIIF, rslt=host << 16)
    with pytest.raises(TransportError, match="host status"):
        hba.command(hba.lun(0), READ, data_in=4096)
    liar.lie = None
    assert hba.lun(0).read(0, 1)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"id": 999}, "not in flight"),
        ({"id": (1 << 64) - 1}, "not in flight"),
        ({"operation": 6}, "operation 6"),
        ({"operation": 1}, "operation 1"),
        ({"status": 1}, "status 1"),
        ({"status": -3}, "status -3"),
    ],
)
def test_blkif_responses_that_cannot_be(lying, fields, reason):
    """Linux' frontends disable the disk for good at these."""
    hba, liar = lying("blkif")
    liar.lie = changed(BLKIF, **fields)
    expect_failure(hba, reason)


@pytest.mark.parametrize(
    ("lie", "reason"),
    [
        (changed(SRP, tag=1 << 40), "not in flight"),
        (changed(SRP, status=0x55), "status 0x55"),
        (changed(SRP, flags=0x20, data_in_residual=4097), "residual of 4097"),
        (changed(SRP, flags=0x20, data_in_residual=0xFFFF_FFFF), "residual"),
        (lambda message: [message[:22] + b"\x03" + message[23:32] + b"\xff" * 8], None),
        (lambda message: [message[:2] + b"\xff\xff" + message[4:]], "slot header"),
        (lambda message: [b"\x09" + message[1:]], "slot header"),
        (lambda message: [b"\x01\0\0\0"], "empty"),
        (lambda message: [build_slot(SlotFormat.SRP, b"\x77" * 16)], "unknown type"),
        (lambda message: [build_srp(type=srp.IuType.CMD)], "CMD from a target"),
        (lambda message: [build_srp(type=srp.IuType.LOGIN_RSP)], "answer to no question"),
        (lambda message: [build_srp(type=srp.IuType.LOGIN_REJ)], "answer to no question"),
        (lambda message: [build_slot(SlotFormat.MAD, mad.build_mad(3))], "answer to no question"),
        (lambda message: [build_slot(SlotFormat.MAD, b"\0")], "MAD"),
        (lambda message: [build_srp(type=srp.IuType.T_LOGOUT, reason=77)], "logged out"),
        (lambda message: [message, message], "not in flight"),
    ],
)
def test_srp_units_that_cannot_be(lying, lie, reason):
    hba, liar = lying("srp")
    liar.lie = lie
    if reason == "not in flight":
        future = hba.start(hba.lun(0), READ, data_in=4096)
        with contextlib.suppress(TransportError):  # answered twice: the first one counts
            future.result(HANG_S)
        expect_failure(hba, count=0)
    else:
        expect_failure(hba, reason)


def test_credit_below_zero_makes_commands_wait(lying, server, eventually):
    """A target may retract what it granted; what is given again lets them go on."""
    hba, liar = lying("srp")
    path = hba.initiator
    server.end(path.guest.domain, "vsrp")._credits.request_answered = lambda _tag: True
    liar.answer(build_srp(type=srp.IuType.CRED_REQ, tag=1, request_limit_delta=-100))
    eventually(lambda: path._limit < 0)
    futures = [hba.start(hba.lun(0), READ, data_in=4096) for _ in range(9)]
    assert not path.in_flight
    liar.answer(build_srp(type=srp.IuType.CRED_REQ, tag=1, request_limit_delta=100))
    assert {future.result(HANG_S).status for future in futures} == {0}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_any_bytes_for_an_answer(server, protocol):
    @settings(max_examples=25)
    @given(st.binary(min_size=12, max_size=108))
    def check(junk):
        with server.connect(protocol) as hba:
            domain = hba.initiator.guest.domain
            liar = Liar(server.end(domain, KINDS[protocol]))
            liar.lie = lambda _: [junk]
            future = hba.start(hba.lun(0), READ, data_in=4096)
            with contextlib.suppress(TransportError):
                # What happens to be an answer leaves the command in flight to the end.
                if not future.done() and protocol != "srp":
                    future.result(HANG_S)

    check()


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("value", [1 << 31, 10_000])
def test_an_index_that_overruns(lying, server, protocol, value):
    hba, _ = lying(protocol)
    path = hba.initiator
    server.store.hold("read")
    future = hba.start(hba.lun(0), READ, data_in=4096)
    server.store.wait_held()
    frames, _ = path._pages[1 if protocol == "srp" else 0]
    at = 0 if protocol == "srp" else 8  # the producer of responses
    struct.pack_into("<I", path.guest.memory.view(frames[0]), at, value)
    os.eventfd_write(path._events.fds[0], 1)
    with pytest.raises(TransportError, match="broke the protocol"):
        future.result(HANG_S)
    server.store.release()
    hba.close()


@pytest.mark.parametrize("protocol", ["vscsiif", "blkif"])
def test_pages_that_are_mapped_after_the_answer_are_lost_to_the_channel(lying, server, protocol):
    hba, _ = lying(protocol)
    path = hba.initiator
    server.store.hold("read")
    future = hba.start(hba.lun(0), READ, data_in=4096)
    server.store.wait_held()
    grants = server.guest(path.guest.domain).peer.grants
    ring = [reference for _, references in path._pages for reference in references]
    mapping = grants.map(
        [each for each in path.guest.memory._granted if each not in ring], readonly=True
    )
    server.store.release()
    with pytest.raises(TransportError, match="still mapped"):
        future.result(HANG_S)
    mapping.unmap()
    hba.close()


# While connecting


def lie_in(monkeypatch, backend, lie):
    answer = backend.answer

    def lying_answer(self, message, **options):
        for each in lie(message):
            answer(self, each, **options)

    monkeypatch.setattr(backend, "answer", lying_answer)


def only(kind, *instead):
    """A lie for MADs of a kind (or SRP units), and the truth for the others."""

    def lie(message):
        is_mad = message[0] == SlotFormat.MAD
        found = int.from_bytes(message[4:8], "big") if is_mad else message[4]
        return list(instead) if found == kind else [message]

    return lie


FAILED_MAD = build_slot(SlotFormat.MAD, mad.build_mad(mad.MadType.REGISTER_REGION, status=0xF7))


@pytest.mark.parametrize(
    ("lie", "reason"),
    [
        (only(mad.MadType.REGISTER_REGION, FAILED_MAD), "status 247"),
        (
            only(mad.MadType.REGISTER_REGION, build_srp(type=srp.IuType.LOGIN_RSP)),
            "answer to no question",
        ),
        (only(mad.MadType.ADAPTER_INFO, b"\x02\0\x04\0\0\0\0\x03"), "MAD"),
        (only(0xC0, FAILED_MAD), "answer to no question"),
        (only(0xC0, build_srp(type=srp.IuType.LOGIN_REJ, reason=0x10006)), "channel limit"),
        (only(0xC0, build_srp(type=srp.IuType.LOGIN_REJ, reason=77)), "reason 0x0000004d"),
        (only(0xC0, build_srp(type=srp.IuType.T_LOGOUT)), "logged out"),
        (only(0xC0, b"junk" * 20), "slot header"),
    ],
)
def test_an_srp_target_that_lies_at_the_login(server, monkeypatch, lie, reason):
    lie_in(monkeypatch, SrpBackend, lie)
    with pytest.raises(TransportError, match=reason):
        server.connect("srp")
    monkeypatch.undo()
    with server.connect("srp") as hba:
        assert hba.lun(0).capacity()


def test_a_directory_that_stays_mapped_fails_the_connection(server, monkeypatch):
    """Its pages are the backend's to unmap before it answers."""
    held = []

    def map_more(self, handle, directory, pages, *, readonly):
        held.append(self._grants.map(directory, readonly=True))
        register(self, handle, directory, pages, readonly=readonly)

    regions = "vscsi.transport.srp.backend.Regions"
    register = vscsi.transport.srp.regions.Regions.register
    monkeypatch.setattr(f"{regions}.register", map_more)
    with pytest.raises(TransportError, match="still mapped"):
        server.connect("srp")


@pytest.mark.parametrize(
    ("protocol", "keys"),
    [
        ("srp", {"max-ring-page-order": "x"}),
        ("srp", {"max-slot-size": "1"}),
        ("srp", {"target-port-id": "xyz"}),
        ("srp", {"target-port-id": "00"}),
        ("vscsiif", {"feature-sg-grant": "-1"}),
        ("blkif", {"max-ring-page-order": "-4"}),
        ("blkif", {"feature-max-indirect-segments": "1e9"}),
        ("blkif", {"feature-flush-cache": "yes"}),
    ],
)
def test_keys_of_a_backend_that_make_no_sense(server, monkeypatch, protocol, keys):
    features = BACKENDS[protocol].features
    monkeypatch.setattr(BACKENDS[protocol], "features", lambda self: {**features(self), **keys})
    with pytest.raises(TransportError, match=next(iter(keys))):
        server.connect(protocol)


@pytest.mark.parametrize(
    "keys",
    [
        {"sectors": "-1"},
        {"sectors": "99999999999999999999"},
        {"sector-size": "513"},
        {"sector-size": "8192"},
        {"info": "?"},
    ],
)
def test_a_geometry_that_makes_no_sense(server, monkeypatch, keys):
    geometry = BlkifBackend.geometry
    monkeypatch.setattr(BlkifBackend, "geometry", lambda self: {**geometry(self), **keys})
    with pytest.raises(TransportError, match=next(iter(keys))):
        server.connect("blkif")


def test_a_probe_that_is_answered_with_nonsense(server, monkeypatch):
    lie_in(monkeypatch, BlkifBackend, lambda message: [b"\x99" * 16])
    with pytest.raises(TransportError, match="layout probe"):
        server.connect("blkif", "?protocol=probe")


# Death


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_server_that_is_killed_ends_every_command(tmp_path, protocol):
    process = subprocess.Popen(
        [sys.executable, PROCESS, "serve", tmp_path], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "ready\n"
        with vscsi.connect(f"{protocol}:{tmp_path}") as hba:
            lun = hba.lun(0)
            assert lun.read(0, 1)
            stuck = build("READ(10)", lba=1, blocks=1)
            futures = [hba.start(lun, stuck, data_in=512) for _ in range(100)]
            process.kill()
            for future in futures:
                with pytest.raises(TransportError, match="the server is gone"):
                    future.result(HANG_S)
            with pytest.raises(TransportError, match="the server is gone"):
                lun.read(0, 1)
            with pytest.raises(TransportError):
                hba.initiator.backend_statistics()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_server_that_stops_ends_every_command(server, protocol):
    with server.connect(protocol) as hba:
        lun = hba.lun(0)
        lun.capacity()
        server.store.hold("read")
        future = hba.start(lun, READ, data_in=4096)
        server.store.wait_held()
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        with contextlib.suppress(TransportError):  # it may just have been answered
            future.result(HANG_S)
        stopping.join()
        with pytest.raises(TransportError):
            lun.read(0, 1)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_closing_ends_what_is_in_flight(server, protocol):
    hba = server.connect(protocol)
    lun = hba.lun(0)
    lun.capacity()
    server.store.hold("read")
    futures = [hba.start(lun, READ, data_in=4096) for _ in range(100)]
    server.store.wait_held()
    closing = threading.Thread(target=hba.close)
    closing.start()
    server.store.release()
    closing.join(HANG_S)
    assert not closing.is_alive()
    for future in futures:
        with contextlib.suppress(TransportError):
            assert future.result(0).status == 0
