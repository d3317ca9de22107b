# SPDX-License-Identifier: MIT
"""A capture over several files: each is whole, and none of it is missing."""

import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pcapng import FileScanner
from pcapng.blocks import EnhancedPacket

from vscsi.capture.reader import CaptureReader
from vscsi.capture.rotate import Limits, Rotation
from vscsi.wire import pcapng
from vscsi.wire.errors import WireError
from vscsi.wire.record import Protocol, build_record

START_NS = 1_700_000_000_000_000_000
S = 10**9


class Kept(io.BytesIO):
    """A file that can be read when it has been closed."""

    data: bytes

    def close(self):
        if not self.closed:
            self.data = self.getvalue()
        super().close()


def split(blocks, limits):
    """Return what the files of a stream of blocks hold."""
    files = []

    def opened(_path):
        files.append(Kept())
        return files[-1]

    rotation = Rotation(Path("/nowhere/a.pcapng"), limits, opened)
    for block in blocks:
        rotation.write(block)
        rotation.flush()
    rotation.close()
    assert rotation.files == len(files)
    return [file.data for file in files]


def read(data):
    reader = CaptureReader(io.BytesIO(data))
    found = [
        (reader.interfaces[each.interface].name, each.time_ns, each.record, each.lost)
        for each in reader
    ]
    assert reader.skipped == 0
    return found, reader


MESSAGES = st.lists(
    st.tuples(
        st.integers(0, 2),  # interface
        st.integers(0, 3 * S),  # since the one before
        st.binary(max_size=120),
        st.sampled_from([0, 0, 0, 1, 7]),  # lost
    ),
    max_size=40,
)


@given(
    messages=MESSAGES,
    size=st.sampled_from([None, 1, 400, 900, 5000]),
    period=st.sampled_from([None, 1, 2 * S, 10 * S]),
    late=st.integers(0, 3),
)
def test_each_file_is_whole_and_nothing_is_missing(messages, size, period, late):
    """Interfaces are described when they have a message; late: what is dropped after the last."""
    blocks, described, now, lost_of = [pcapng.section("a test")], [], START_NS, {}
    for name, gap, payload, lost in messages:
        if name not in described:
            described.append(name)
            blocks.append(pcapng.interface(f"ring-{name}", f"words={name}"))
        now += gap
        record = build_record(protocol=Protocol.SRP, message=payload)
        number = described.index(name)
        lost_of[number] = lost_of.get(number, 0) + lost
        blocks.append(pcapng.packet(number, now, record, lost))
    for number in range(len(described)):
        dropped = lost_of[number] + late
        blocks.append(pcapng.statistics(number, now, len(messages) + dropped, dropped))
    files = split(blocks, Limits(size, period))
    whole, reader = read(b"".join(blocks))
    pieces = [read(data) for data in files]
    assert [each for found, _ in pieces for each in found] == whole
    assert sum(reader.dropped for _, reader in pieces) == reader.dropped
    for data, (found, one) in zip(files, pieces, strict=True):
        assert [each.description for each in one.interfaces] == [
            each.description for each in reader.interfaces[: len(one.interfaces)]
        ]
        times = [time_ns for _, time_ns, _, _ in found]
        if period is not None and times:
            assert times[-1] - times[0] < period
        if size is not None and len(found) > 1:
            statistics = sum(end - begin for kind, begin, end in pcapng.split(data) if kind == 5)
            assert len(data) - statistics <= size


@pytest.mark.filterwarnings("ignore:Field type should not be:DeprecationWarning")
def test_another_reader_takes_a_later_file_alone():
    blocks = [pcapng.section("a test"), pcapng.interface("a", ""), pcapng.interface("b", "")]
    record = build_record(protocol=Protocol.SRP, message=b"message")
    blocks += [pcapng.packet(at % 2, START_NS + at, record) for at in range(9)]
    last = split(blocks, Limits(max_bytes=300))[-1]
    packets = [each for each in FileScanner(io.BytesIO(last)) if isinstance(each, EnhancedPacket)]
    assert packets[-1].interface.options["if_name"] == "a"
    assert packets[-1].packet_data == record


def test_only_the_last_files_stay(tmp_path):
    rotation = Rotation(tmp_path / "a.pcapng", Limits(max_bytes=1, keep=3))
    rotation.write(pcapng.section("a test") + pcapng.interface("a", ""))
    record = build_record(protocol=Protocol.SRP)
    for at in range(10):
        rotation.write(pcapng.packet(0, START_NS + at, record))
        assert len(list(tmp_path.iterdir())) == min(at + 1, 3)
    rotation.close()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["a-00008.pcapng", "a-00009.pcapng", "a-00010.pcapng"]


def test_a_capture_of_nothing_is_a_file(tmp_path):
    rotation = Rotation(tmp_path / "a.pcapng", Limits(max_bytes=100))
    rotation.write(pcapng.section("a test"))
    rotation.close()
    assert read((tmp_path / "a-00001.pcapng").read_bytes())[0] == []


@pytest.mark.parametrize(
    "data", [bytes(12), pcapng.packet(0, 0, b"")[:4] + b"\x10\0\0\0" + bytes(8)]
)
def test_what_is_no_capture(tmp_path, data):
    rotation = Rotation(tmp_path / "a.pcapng", Limits(max_bytes=100))
    with pytest.raises(WireError, match="block of"):
        rotation.write(data)
