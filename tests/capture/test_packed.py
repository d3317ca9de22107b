# SPDX-License-Identifier: MIT
"""Gzipped files, whole, cut anywhere and damaged: what zlib can unpack is read."""

import gzip
import io
import random
import zlib

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.capture.sources.samples import CAPTURES
from vscsi.capture.packed import Unpacked
from vscsi.capture.sources import Opened

ISCSI = (CAPTURES / "iscsi-tgt-qemu.pcapng.gz").read_bytes()
TEXT = random.Random(1).randbytes(3000) + b"a line\n" * 20_000


def naive(packed):
    """What comes out byte by byte of one member."""
    decoder, pieces = zlib.decompressobj(31), []
    try:
        for at in range(len(packed)):
            pieces.append(decoder.decompress(packed[at : at + 1]))
    except zlib.error:
        pass
    return b"".join(pieces)


def read_all(packed, sizes=(5000,), name="read"):
    stream, found, at = Unpacked(io.BytesIO(packed)), [], 0
    try:
        while piece := getattr(stream, name)(sizes[at % len(sizes)]):
            found.append(piece)
            at += 1
    except EOFError as error:
        with pytest.raises(EOFError):
            stream.read(1)
        return b"".join(found), str(error)
    return b"".join(found), ""


SIZES = st.lists(st.integers(1, 1 << 18), min_size=1, max_size=4)
WAYS = st.sampled_from(["read", "read1"])


@given(st.lists(st.binary(max_size=400), min_size=1, max_size=4), SIZES, WAYS, st.integers(0, 9))
def test_members_and_padding_as_gzip_reads_them(parts, sizes, way, padding):
    packed = b"".join(gzip.compress(part) for part in parts) + bytes(padding)
    assert read_all(packed, sizes, way) == (gzip.decompress(packed), "")


@given(st.data(), SIZES, WAYS)
def test_a_cut_file_is_read_up_to_there(data, sizes, way):
    packed = gzip.compress(TEXT)
    cut = packed[: data.draw(st.integers(1, len(packed) - 1))]
    assert read_all(cut, sizes, way) == (naive(cut), "the gzip file ends early")


@given(st.data(), SIZES, WAYS)
def test_so_is_a_damaged_one(data, sizes, way):
    packed = bytearray(gzip.compress(TEXT))
    at = data.draw(st.integers(20, len(packed) - 1))
    packed[at] ^= data.draw(st.integers(1, 255))
    found, broken = read_all(bytes(packed), sizes, way)
    assert found == naive(packed)
    assert broken.startswith(("the gzip file is damaged", "the gzip file ends early"))


def test_what_is_looked_at_is_read_again():
    stream = Unpacked(io.BytesIO(gzip.compress(TEXT)))
    assert stream.peek(4096)[:4096] == TEXT[:4096]
    assert stream.read(10) + stream.read1(10) == TEXT[:20]
    assert stream.read() == TEXT[20:]
    with pytest.raises(EOFError, match="ends early"):
        Unpacked(io.BytesIO(gzip.compress(TEXT)[:5])).peek(1)


def table(file):
    with Opened(str(file), "iscsi") as source:
        batches = list(source)
    return (pa.Table.from_batches(batches).to_pylist() if batches else []), source


@pytest.mark.parametrize("eighths", range(1, 8))
def test_a_cut_capture_has_all_commands_of_what_is_there(tmp_path, eighths):
    """As many as the same content has that was unpacked before."""
    cut = ISCSI[: len(ISCSI) * eighths // 8]
    packed, plain = tmp_path / "cut.gz", tmp_path / "cut"
    packed.write_bytes(cut)
    plain.write_bytes(naive(cut))
    rows, source = table(packed)
    assert rows == table(plain)[0]
    assert rows
    size = plain.stat().st_size
    place = f"at byte {size} of the unpacked content"
    assert source.troubles.broken == f"{place}: the gzip file ends early"
