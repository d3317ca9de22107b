# SPDX-License-Identifier: MIT
"""A file written by the tap's listener: complete, readable elsewhere, and never in the way."""

import errno
import os
import select
import threading
import time

import pytest
from pcapng import FileScanner
from pcapng.blocks import EnhancedPacket, InterfaceDescription, InterfaceStatistics

import vscsi
from vscsi.capture import writer as writer_module
from vscsi.capture.choice import Choice
from vscsi.capture.writer import CaptureWriter
from vscsi.ring import Tap
from vscsi.transport.tap import RingPath
from vscsi.wire.blkif import X86_32, Operation
from vscsi.wire.record import VERSION, LayoutCode, Protocol, Way

pytestmark = pytest.mark.usefixtures("no_descriptor_left")

BLKIF = RingPath(Protocol.BLKIF, 3, 1, LayoutCode.X86_32, 2, (("ring-pages", "4"), ("a", "b")))
SRP = RingPath(Protocol.SRP, 4, 0)
MESSAGE = X86_32.build_request(Operation.READ, id=1)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "a.pcapng"


@pytest.fixture
def writer(file):
    """A writer to a file."""
    made = CaptureWriter(file.open("wb", buffering=0), "a test")
    yield made
    made.close()


def cross(writer, path, way, ring_index, in_flight, message, descriptors):
    tap = Tap(1 << 14)
    tap.put(way, time.monotonic_ns(), ring_index, in_flight, message, descriptors)
    writer(path, *tap.take(1 << 14), 0)


def show_some(writer, count=3):
    for at in range(count):
        cross(writer, BLKIF, Way.TO_TARGET, at, 5, MESSAGE, b"descriptors")
        cross(writer, SRP, Way.TO_INITIATOR, 0xFFFFFFFF, 70000, b"slot", b"")


def test_every_argument_of_the_tap_is_in_the_record(writer, file, read):
    before = time.time_ns()
    show_some(writer, 1)
    writer.close()
    after = time.time_ns()
    (first, second), reader = read(file.read_bytes())
    assert before <= first.time_ns <= second.time_ns <= after
    record = first.record
    assert (record.protocol, record.direction, record.layout) == (3, 0, 2)
    assert (record.domain, record.device, record.queue) == (3, 1, 2)
    assert (record.ring_index, record.in_flight) == (0, 5)
    assert (record.message, record.segments) == (MESSAGE, b"descriptors")
    assert second.record.ring_index == 0xFFFFFFFF
    assert second.record.in_flight == 0xFFFF
    blkif, srp = reader.interfaces
    assert (blkif.name, srp.name) == ("blkif-3-1-2", "srp-4-0")
    assert "path=blkif domain=3 device=1 queue=2 layout=x86_32 ring-pages=4 a=b " in (
        blkif.description
    )


@pytest.mark.filterwarnings("ignore:Field type should not be:DeprecationWarning")
def test_python_pcapng_reads_the_same(writer, file, read):
    show_some(writer)
    writer.close()
    with file.open("rb") as stream:
        blocks = list(FileScanner(stream))
    packets = [block for block in blocks if isinstance(block, EnhancedPacket)]
    ours, _ = read(file.read_bytes())
    assert len(packets) == len(ours) == 6
    assert [packet.timestamp_high << 32 | packet.timestamp_low for packet in packets] == [
        message.time_ns for message in ours
    ]
    assert [packet.interface_id for packet in packets] == [message.interface for message in ours]
    assert all(packet.packet_data.startswith(bytes([VERSION])) for packet in packets)
    interfaces = [block for block in blocks if isinstance(block, InterfaceDescription)]
    assert [each.options["if_name"] for each in interfaces] == ["blkif-3-1-2", "srp-4-0"]
    assert {each.link_type for each in interfaces} == {147}
    counts = [block.options for block in blocks if isinstance(block, InterfaceStatistics)]
    assert [(each["isb_ifrecv"], each["isb_ifdrop"]) for each in counts] == [(3, 0), (3, 0)]


def test_wireshark_reads_the_same(writer, file, read, wireshark):
    show_some(writer)
    writer.close()
    ours, _ = read(file.read_bytes())
    about = wireshark("capinfos", file)
    assert "File timestamp precision:  nanoseconds (9)" in about
    assert "Number of packets:   6" in about
    assert "Strict time order:   True" in about
    assert "Capture application: a test" in about
    fields = ("frame.time_epoch", "frame.len", "frame.interface_name", "data.data")
    options = [option for field in fields for option in ("-e", field)]
    lines = wireshark("tshark", "-r", file, "-T", "fields", *options).splitlines()
    for line, message in zip(lines, ours, strict=True):
        seconds, length, name, data = line.split("\t")
        record = message.record
        assert int(seconds.replace(".", "")) == message.time_ns
        assert int(length) == 28 + len(record.message) + len(record.segments)
        assert name == ("srp-4-0" if record.protocol == Protocol.SRP else "blkif-3-1-2")
        assert bytes.fromhex(data).endswith(record.message + record.segments)


def test_a_file_is_readable_at_any_moment(writer, file, read):
    """Nothing is held back until the end."""
    show_some(writer, 1)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        data = file.read_bytes()
        if data and len(read(data)[0]) == 2:
            return
        time.sleep(0.001)
    pytest.fail("the messages do not arrive in the file")


def test_only_one_protocol_if_asked(file, read):
    writer = CaptureWriter(file.open("wb", buffering=0), "a test", choice=Choice(Protocol.SRP))
    show_some(writer)
    writer.close()
    found, _ = read(file.read_bytes())
    assert {message.record.protocol for message in found} == {Protocol.SRP}
    assert writer.recorded == 3


def test_nothing_is_taken_after_the_end(writer, file, read):
    writer.close()
    show_some(writer)
    assert writer.recorded == writer.dropped == 0
    assert read(file.read_bytes())[0] == []


def what_is_there(reader):
    """Return what a pipe holds at the moment."""
    return os.read(reader, 65536) if select.select([reader], [], [], 0)[0] else b""


def test_a_stalled_reader_costs_counted_messages_and_no_time(monkeypatch, read):
    monkeypatch.setattr(writer_module, "MAX_WAITING_BYTES", 100_000)
    reader, end = os.pipe()
    writer = CaptureWriter(os.fdopen(end, "wb", buffering=0), "a test")
    sent = 0
    while writer.dropped < 100:  # returns only because no call waits for the reader
        show_some(writer, 1)
        sent += 2
    assert writer.recorded + writer.dropped == sent
    assert writer._waiting_bytes <= 100_000 + len(MESSAGE) + 64
    dropped = writer.dropped
    writer.end()
    with os.fdopen(reader, "rb") as stream:
        data = stream.read()
    writer.close()
    assert writer.error is None
    found, capture = read(data)
    assert len(found) == sent - dropped
    assert capture.dropped == dropped


def test_where_messages_are_missing_the_next_one_says_how_many(monkeypatch, read):
    monkeypatch.setattr(writer_module, "MAX_WAITING_BYTES", 10_000)
    reader, end = os.pipe()
    writer = CaptureWriter(os.fdopen(end, "wb", buffering=0), "a test")
    while not writer.dropped:
        cross(writer, SRP, Way.TO_TARGET, 0, 0, bytes(2000), b"")
    taken = writer.recorded
    pieces = []
    while writer.recorded == taken:  # until it has room again
        pieces.append(what_is_there(reader))
        cross(writer, SRP, Way.TO_TARGET, 0, 0, bytes(2000), b"")
    writer.end()
    with os.fdopen(reader, "rb") as stream:
        pieces.append(stream.read())
    writer.close()
    found, capture = read(b"".join(pieces))
    assert sum(message.lost for message in found) == writer.dropped == capture.dropped
    assert [message.lost > 0 for message in found].index(True) >= taken


def test_a_ring_whose_first_messages_were_dropped_is_not_taken_for_another(monkeypatch, read):
    monkeypatch.setattr(writer_module, "MAX_WAITING_BYTES", 10_000)
    reader, end = os.pipe()
    writer = CaptureWriter(os.fdopen(end, "wb", buffering=0), "a test")
    while not writer.dropped:
        cross(writer, SRP, Way.TO_TARGET, 0, 0, bytes(2000), b"")
    cross(writer, BLKIF, Way.TO_TARGET, 0, 0, MESSAGE, b"")
    taken = writer.recorded
    pieces = []
    vscsiif = RingPath(Protocol.VSCSIIF, 9, 0)
    while writer.recorded == taken:  # until it has room again
        pieces.append(what_is_there(reader))
        cross(writer, vscsiif, Way.TO_TARGET, 0, 0, bytes(252), b"")
    while writer.recorded < taken + 2:
        pieces.append(what_is_there(reader))
        cross(writer, BLKIF, Way.TO_TARGET, 0, 0, MESSAGE, b"")
    writer.end()
    with os.fdopen(reader, "rb") as stream:
        pieces.append(stream.read())
    writer.close()
    found, capture = read(b"".join(pieces))
    assert [interface.name for interface in capture.interfaces] == [
        "srp-4-0",
        "vscsiif-9-0",
        "blkif-3-1-2",
    ]
    for message in found:
        path = capture.interfaces[message.interface].name.split("-")[0]
        assert Protocol[path.upper()] == message.record.protocol


def test_a_reader_that_never_reads_does_not_hold_up_the_end(monkeypatch):
    monkeypatch.setattr(writer_module, "END_S", 0.0)
    reader, end = os.pipe()
    writer = CaptureWriter(os.fdopen(end, "wb", buffering=0), "a test")
    while len(writer._queue) < 1000:
        show_some(writer, 1)
    writer.close()
    os.close(reader)
    assert writer.error is not None
    assert writer.error.errno == errno.ETIMEDOUT


def test_a_reader_that_dies_ends_the_capture_without_a_message():
    ended = threading.Event()
    reader, end = os.pipe()
    writer = CaptureWriter(os.fdopen(end, "wb", buffering=0), "a test", on_end=ended.set)
    os.close(reader)
    assert ended.wait(30)
    writer.close()
    assert writer.error is not None
    assert writer.error.errno == errno.EPIPE
    show_some(writer)


def test_a_full_disk_ends_the_capture_and_says_so(caplog):
    ended = threading.Event()
    with open("/dev/full", "wb", buffering=0) as full:
        writer = CaptureWriter(full, "a test", on_end=ended.set)
        assert ended.wait(30)
        writer.close()
    assert writer.error is not None
    assert writer.error.errno == errno.ENOSPC
    assert "the capture ended early: No space left on device" in caplog.text


@pytest.mark.parametrize("threads", [1, 4])
def test_under_load_nothing_is_missing(serve, file, read, joined, threads):
    """As many messages as the ends count, each answered, whoever sends at the same time."""
    served = serve()
    writer = CaptureWriter(file.open("wb", buffering=0), "a test")
    served.export.tap.add(writer)
    commands = 100

    def work(kind, at):
        with vscsi.connect(f"{kind}:{served.directory}") as hba:
            unit = hba.lun(0)
            for turn in range(commands):
                unit.write(at, bytes([turn]) * 512)
                assert unit.read(at, 1) == bytes([turn]) * 512

    kinds = ("srp", "vscsiif", "blkif")
    workers = [
        threading.Thread(target=work, args=(kind, number * 3 + at))
        for number in range(threads)
        for at, kind in enumerate(kinds)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    served.stop()
    writer.close()
    assert (writer.error, writer.dropped) == (None, 0)
    found, reader = read(file.read_bytes())
    assert len(found) == writer.recorded
    assert len(reader.interfaces) == 3 * threads
    exchanges = joined(file.read_bytes())
    assert all(each.request for each in exchanges)
    assert not [each for each in exchanges if each.request.answered and each.answer is None]
    moved = {}
    for each in exchanges:
        if "READ" in each.request.words and each.moved == 512:
            moved[each.captured.interface] = moved.get(each.captured.interface, 0) + 1
    assert set(moved.values()) == {commands}
