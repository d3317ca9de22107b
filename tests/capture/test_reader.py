# SPDX-License-Identifier: MIT
"""Captures are read as far as they can be, whoever wrote them and whatever is in them."""

import io
import struct
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pcapng import FileWriter
from pcapng.blocks import EnhancedPacket, InterfaceDescription, SectionHeader

from vscsi.capture.reader import CaptureReader
from vscsi.wire import pcapng
from vscsi.wire.errors import WireError
from vscsi.wire.record import VERSION, Protocol, Way

# python-pcapng's own, when it writes if_tsresol.
pytestmark = pytest.mark.filterwarnings("ignore:Field type should not be:DeprecationWarning")


def read_until_broken(data):
    """Return what was read and why no more; a WireError is all that may be raised."""
    reader = CaptureReader(io.BytesIO(data))
    found = []
    try:
        for captured in reader:
            found.append(captured)
    except WireError as error:
        return found, str(error)
    return found, ""


@pytest.fixture(scope="module")
def small(capture_file, make_record):
    """A capture of three messages."""
    return capture_file(
        (at, make_record(Protocol.BLKIF, Way.TO_TARGET, at, bytes(112))) for at in range(3)
    )


def written_by_python_pcapng(packets, endianness, resolution=9):
    """Write records with another implementation."""
    stream = io.BytesIO()
    section = SectionHeader(endianness=endianness)
    interface = section.new_member(
        InterfaceDescription,
        link_type=147,
        options={"if_name": "ring", "if_tsresol": bytes([resolution])},
    )
    writer = FileWriter(stream, section)
    for ticks, record in packets:
        block = section.new_member(EnhancedPacket)
        block.interface_id = interface.interface_id
        block.timestamp_high, block.timestamp_low = divmod(ticks, 1 << 32)
        block.packet_data = record
        writer.write_block(block)
    return stream.getvalue()


@pytest.mark.parametrize("endianness", ["<", ">"])
def test_both_byte_orders_of_another_writer(read, make_record, endianness):
    record = make_record(Protocol.BLKIF, Way.TO_TARGET, 9, bytes(112))
    data = written_by_python_pcapng([(1_700_000_000_123_456_789, record)], endianness)
    (message,), reader = read(data)
    assert message.time_ns == 1_700_000_000_123_456_789
    assert message.record.ring_index == 9
    assert reader.interfaces[0].name == "ring"


@pytest.mark.parametrize(
    ("resolution", "ticks", "expected_ns"),
    [(6, 1_700_000_000_000_001, 1_700_000_000_000_001_000), (0x80 | 10, 1536, 1_500_000_000)],
)
def test_other_clock_resolutions(read, make_record, resolution, ticks, expected_ns):
    record = make_record(Protocol.BLKIF, Way.TO_TARGET, 0, bytes(112))
    (message,), _ = read(written_by_python_pcapng([(ticks, record)], "<", resolution))
    assert message.time_ns == expected_ns


def test_a_clock_offset_counts(read, make_record):
    record = make_record(Protocol.BLKIF, Way.TO_TARGET, 0, bytes(112))
    options = struct.pack("<HHqHHB3xI", 14, 8, -5, 9, 1, 9, 0)
    interface = struct.pack("<IIHHI", 1, 20 + len(options), 147, 0, 0) + options
    interface += interface[4:8]
    data = pcapng.section("") + interface + pcapng.packet(0, 7 * 10**9, record)
    assert [each.time_ns for each in read(data)[0]] == [2 * 10**9]


def test_what_editcap_makes_of_a_capture_reads_the_same(stock_capture, read, wireshark, tmp_path):
    data, count = stock_capture
    ours, theirs = tmp_path / "ours.pcapng", tmp_path / "theirs.pcapng"
    ours.write_bytes(data)
    wireshark("editcap", ours, theirs)
    before, _ = read(data)
    after, _ = read(theirs.read_bytes())
    assert len(after) == count
    assert [(m.time_ns, m.record) for m in after] == [(m.time_ns, m.record) for m in before]


def test_sections_follow_each_other(read, make_record):
    record = make_record(Protocol.BLKIF, Way.TO_TARGET, 0, bytes(112))
    little = pcapng.section("") + pcapng.interface("a", "") + pcapng.packet(0, 1, record)
    found, reader = read(little + written_by_python_pcapng([(2, record)], ">") + little)
    assert [(each.time_ns, each.interface) for each in found] == [(1, 0), (2, 1), (1, 2)]
    assert [interface.name for interface in reader.interfaces] == ["a", "ring", "a"]


def test_unknown_blocks_are_skipped_whatever_their_length(read, small):
    custom = struct.pack("<II", 0x0BAD, 12 + (3 << 20)) + bytes(3 << 20)
    custom += struct.pack("<I", 12 + (3 << 20))
    found, _ = read(small + custom + small)
    assert len(found) == 6


def test_drops_are_counted(read, capture_file, make_record):
    record = make_record(Protocol.BLKIF, Way.TO_TARGET, 0, bytes(112))
    data = capture_file([(0, record, 0, 0), (1, record, 0, 5)])
    found, reader = read(data)
    assert [each.lost for each in found] == [0, 5]
    assert reader.dropped == 5
    _, reader = read(data + pcapng.statistics(0, 2, 9, 7))
    assert reader.dropped == 7
    _, broken = read_until_broken(data + pcapng.statistics(1, 2, 9, 7))
    assert "interface 1 is not described" in broken


def test_every_truncation_gives_what_is_before_it_and_says_where(small, read):
    whole, _ = read(small)
    ends = {len(pcapng.section("a test"))}
    ends |= {max(ends) + len(pcapng.interface("ring-0", ""))}
    packet = (len(small) - max(ends)) // 3
    ends |= {len(small) - n * packet for n in range(3)}
    for length in range(1, len(small)):
        found, broken = read_until_broken(small[:length])
        assert found == whole[: len(found)]
        assert len(found) == max(0, (length - (len(small) - 3 * packet)) // packet)
        assert bool(broken) == (length not in ends), length


def test_a_packet_that_is_no_record_is_skipped_and_named(read, capture_file, make_record):
    good = make_record(Protocol.BLKIF, Way.TO_TARGET, 0, bytes(112))
    newer = bytes([VERSION + 1]) + good[1:]
    cut = good[:50]
    found, reader = read(capture_file([(0, newer), (1, good), (2, cut), (3, good, 4, 0)]))
    assert len(found) == 1
    assert reader.skipped == 3
    start = len(pcapng.section("a test") + pcapng.interface("ring-0", ""))
    assert reader.first_skipped.startswith(f"at byte {start}: capture record")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"\xd4\xc3\xb2\xa1" + bytes(20), "no pcapng"),
        (b"PK\x03\x04" * 20, "no pcapng"),
        (b"\n\r\r\n" + bytes(40), "byte order"),
        (b"\n", "middle of a block"),
        (pcapng.section("x").replace(b"\x01\x00\x00\x00", b"\x02\x00\x00\x00", 1), "version 2.0"),
    ],
)
def test_what_is_no_capture_is_refused_with_a_reason(data, reason):
    found, broken = read_until_broken(data)
    assert not found
    assert reason in broken


def test_another_link_type_is_refused_by_its_number():
    interface = struct.pack("<IIHHII", 1, 20, 1, 0, 0, 20)
    _, broken = read_until_broken(pcapng.section("") + interface)
    assert broken.endswith("link type 1: not a capture of vscsi")


@pytest.mark.parametrize("kind", [1, 5, 6, 0x0A0D0D0A, 77])
@pytest.mark.parametrize("length", [0, 8, 13, 1 << 21, 0xFFFFFFFC])
def test_no_length_decides_an_allocation(small, kind, length):
    magic = struct.pack("<I", 0x1A2B3C4D) if kind == 0x0A0D0D0A else b""
    bad = struct.pack("<II", kind, length) + magic + bytes(64)
    tracemalloc.start()
    found, broken = read_until_broken(small + bad)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found) == 3
    assert broken.startswith(f"broken at byte {len(small)}: ")
    assert peak < 1 << 20


def test_the_two_lengths_of_a_block_must_agree(small):
    _, broken = read_until_broken(small[:-4] + bytes(4))
    assert "two lengths differ" in broken


@given(data=st.data())
def test_any_change_to_a_capture_is_survived(small, data):
    changed = bytearray(small)
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(changed) - 1))
        changed[at] = data.draw(st.integers(0, 255))
    found, _ = read_until_broken(bytes(changed))
    assert len(found) <= 3


@given(st.binary(max_size=200))
def test_any_bytes_behind_a_section_are_survived(rest):
    read_until_broken(pcapng.section("") + pcapng.interface("", "") + rest)
