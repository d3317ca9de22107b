# SPDX-License-Identifier: MIT
"""Data in captures: its first bytes or a hash, with whichever path executes a command."""

import io
import random

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

import vscsi
from vscsi.capture.choice import Choice, Payload
from vscsi.capture.decode import Answer, decode
from vscsi.capture.reader import CaptureReader
from vscsi.capture.writer import CaptureWriter
from vscsi.ring import Tap, tap_packets
from vscsi.target.stores.memory import MemoryStore
from vscsi.wire.cdb import build
from vscsi.wire.parameters import build_unmap
from vscsi.wire.record import LayoutCode, PayloadKind, Protocol, Way, parse_record

BLOCK = 512
KINDS = ("srp", "vscsiif", "blkif")
PATTERN = random.Random(5).randbytes(64 * BLOCK)


class PythonStore(MemoryStore):
    """One that the C path does not know."""

    def __init__(self, size_bytes):
        super().__init__(size_bytes)
        self.native = None


def captured(serve, kind, store, payload):
    """Do the same on a disk; return its records and the bytes that were read and written."""
    served = serve(f"{kind}-{store.__name__}-{payload}", store=store)
    file = served.directory.parent / f"{served.directory.name}.pcapng"
    writer = CaptureWriter(
        file.open("wb", buffering=0), "a test", choice=Choice(payload=Payload.parse(payload))
    )
    moved = []
    with vscsi.connect(f"{kind}:{served.directory}") as hba:
        unit = hba.lun(0)
        unit.read(0, 1)  # asks for the capacity first
        remove = served.export.tap.add(writer, writer.choice.payload.wanted)
        for lba, blocks in ((3, 1), (8, 64), (100, 17)):
            unit.write(lba, PATTERN[: blocks * BLOCK])
            moved += [PATTERN[: blocks * BLOCK], unit.read(lba, blocks)]
        moved.append(unit.read(90, 3))
        unit.flush()
        if kind != "blkif":
            moved.append(unit.command(build("INQUIRY", allocation_length=255), data_in=255))
            ranges = build_unmap([(8, 2), (100, 1)])
            unit.command(build("UNMAP", parameter_list_length=len(ranges)), data_out=ranges)
            moved += [ranges, unit.read(8, 2)]
        remove()
        executed = hba.initiator.backend_statistics()["executed_in_c"]
    writer.close()
    assert (executed > 0) is (store is MemoryStore)
    records = [each.record for each in CaptureReader(io.BytesIO(file.read_bytes()))]
    return [record for record in records if record.payload_kind], moved


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("payload", ["none", "1", "700", "65536", "hash"])
def test_both_paths_keep_the_same_of_the_data(serve, kind, payload):
    """A parameter list belongs to its command, and is kept whole whatever is wanted of data."""
    found = {}
    ranges = build_unmap([(8, 2), (100, 1)])
    for store in (MemoryStore, PythonStore):
        records, moved = captured(serve, kind, store, payload)
        found[store] = [(r.direction, r.data_length, r.payload_kind, r.payload) for r in records]
        if payload == "none":
            moved = [data for data in moved if data == ranges]
        assert [length for _, length, _, _ in found[store]] == [len(data) for data in moved]
        for (_, _, form, kept), data in zip(found[store], moved, strict=True):
            if data == ranges:
                assert (form, kept) == (PayloadKind.HEAD, ranges)
            elif payload == "hash":
                assert form == PayloadKind.XXH64
                assert int.from_bytes(kept, "little") == xxhash.xxh64(data).intdigest()
            else:
                assert (form, kept) == (PayloadKind.HEAD, data[: int(payload)])
    assert found[MemoryStore] == found[PythonStore]
    if payload != "none":
        assert {way for way, *_ in found[MemoryStore]} == set(Way)


def test_data_out_stands_with_the_request_and_data_in_with_the_answer(serve):
    records, _ = captured(serve, "srp", MemoryStore, "16")
    for record in records:
        message = decode(record)
        assert isinstance(message, Answer) is (record.direction == Way.TO_INITIATOR)
        if not isinstance(message, Answer):
            assert message.data_out == record.data_length


def test_captures_beside_each_other_have_each_what_they_asked_for(serve, tmp_path):
    served = serve()
    choices = ["none", "4", "600", "hash"]
    writers = []
    for at, word in enumerate(choices):
        file = (tmp_path / f"{at}.pcapng").open("wb", buffering=0)
        writers.append(CaptureWriter(file, "a test", choice=Choice(payload=Payload.parse(word))))
        served.export.tap.add(writers[-1], writers[-1].choice.payload.wanted)
    with vscsi.connect(f"srp:{served.directory}") as hba:
        hba.lun(0).write(0, PATTERN[:1024])
    served.stop()
    kept = {}
    for at, (word, writer) in enumerate(zip(choices, writers, strict=True)):
        writer.close()
        data = (tmp_path / f"{at}.pcapng").read_bytes()
        records = [each.record for each in CaptureReader(io.BytesIO(data))]
        kept[word] = [r.payload for r in records if r.data_length == 1024]
    hashed = xxhash.xxh64(PATTERN[:1024]).intdigest().to_bytes(8, "little")
    assert kept == {"none": [], "4": [PATTERN[:4]], "600": [PATTERN[:600]], "hash": [hashed]}


PATH = {
    "interface": 0,
    "clock_offset_ns": 0,
    "lost": 0,
    "protocol": Protocol.SRP,
    "layout": LayoutCode.NONE,
    "domain": 0,
    "device": 0,
    "queue": 0,
}


def kept_of(segments, length, wanted, kind, limit):
    """What a record says of data in a tap."""
    tap = Tap(1 << 18)
    tap.wanted = wanted
    tap.put(0, 0, 0, 0, b"m", b"s", tap.data(segments, length))
    entries, count = tap.take(1 << 18)
    assert count == 1
    packets = tap_packets(entries, **PATH, payload_kind=kind, payload_bytes=limit)
    captured = int.from_bytes(packets[20:24], "little")
    record = parse_record(packets[28 : 28 + captured])
    assert (record.message, record.segments) == (b"m", b"s")
    return record.payload_kind, record.data_length, record.payload


@given(
    segments=st.lists(st.binary(max_size=200), max_size=9),
    head=st.integers(0, 700),
    hashed=st.booleans(),
    limit=st.integers(0, 700),
    cut=st.integers(0, 50),
)
def test_any_segments(segments, head, hashed, limit, cut):
    whole = b"".join(segments)
    data = whole[: max(0, len(whole) - cut)]
    for kind in PayloadKind:
        found = kept_of(segments, len(data), (head, hashed), kind, limit)
        expected = (PayloadKind.NONE, 0, b"")
        if data and kind == PayloadKind.XXH64 and hashed:
            digest = xxhash.xxh64(data).intdigest().to_bytes(8, "little")
            expected = (PayloadKind.XXH64, len(data), digest)
        elif data and kind == PayloadKind.HEAD and (head or hashed):
            expected = (PayloadKind.HEAD, len(data), data[: min(head, limit)])
        assert found == expected


def test_what_a_tap_refuses():
    tap = Tap(1 << 13)
    tap.wanted = (4, False)
    with pytest.raises(ValueError, match="shorter"):
        tap.data([b"abc"], 4)
    with pytest.raises(ValueError, match="more than 65536"):
        tap.wanted = (65537, False)
    with pytest.raises(ValueError, match="too long"):
        tap.put(0, 0, 0, 0, bytes(65536), b"")
    with pytest.raises(ValueError, match="no data of a tap"):
        tap.put(0, 0, 0, 0, b"", b"", b"abc")
    with pytest.raises(TypeError):
        tap.data(["text"], 1)


@pytest.mark.parametrize("word", ["0", "-1", "65537", "all", "", "٣", "1k", "00000001"])
def test_what_is_no_payload(word):
    with pytest.raises(ValueError, match="hash"):
        Payload.parse(word)
