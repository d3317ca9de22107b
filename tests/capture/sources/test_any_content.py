# SPDX-License-Identifier: MIT
"""What all importers must do: know their own files and no others, and survive any content."""

import gzip
import importlib
import io
import json
import random
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.capture.sources.samples import CAPTURES, SAMPLES
from vscsi.capture.packed import Unpacked
from vscsi.capture.sources import FORMATS, HEAD_BYTES

ALL = [(form, sample) for form, samples in SAMPLES.items() for sample in samples]
MEMORY_BYTES = 64 << 20
"""For content of tens of kilobytes."""


def recognised_by(head):
    modules = {
        form: importlib.import_module(f"vscsi.capture.sources.{name}")
        for form, name in FORMATS.items()
    }
    return [form for form, module in modules.items() if module.recognise(head[:HEAD_BYTES])]


@pytest.mark.parametrize(("form", "sample"), ALL)
def test_a_file_is_its_own_formats_alone(form, sample):
    assert recognised_by(sample) == [form]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"time,disk,lba\n1,2,3\n",
        b"1,2,3,4,5,6,7\n" * 10,
        b"Timestamp,Hostname,DiskNumber,Type,Offset,Size,ResponseTime\n",
        b"fio version 1 iolog\n",
        b"Nov 20 16:00:00 host kernel: [  107.411] sd 0:0:0:0: [sda] Write Protect is off\n" * 20,
        json.dumps({"a": [1, 2, 3]}).encode(),
        b"fio-812 [001] 107.411: sched_switch: prev_comm=fio prev_pid=812\n" * 20,
        (Path(__file__).parents[3] / "README.md").read_bytes(),
        Path(json.__file__).read_bytes(),
        bytes(4096),
        b"\xff" * 4096,
        b"\x7fELF\x02\x01\x01" + bytes(100),
    ],
)
def test_what_is_something_else_is_nobodys(content):
    assert recognised_by(content) == []


def test_random_bytes_are_nobodys():
    chance = random.Random(5)
    for _ in range(2000):
        assert recognised_by(chance.randbytes(chance.randrange(1, 400))) == []


@pytest.mark.parametrize(
    "name", [path.name for path in sorted(CAPTURES.iterdir()) if ".pcap" in path.name]
)
def test_other_captures_are_none_of_these(name):
    data = (CAPTURES / name).read_bytes()
    head = gzip.decompress(data) if name.endswith(".gz") else data
    assert not set(recognised_by(head)) & set(SAMPLES)


def mutated(sample, edits):
    """A sample with some bytes exchanged, taken away, put in or repeated."""
    data = bytearray(sample)
    for kind, at, what in edits:
        place = at % (len(data) + 1)
        if kind == "exchange":
            data[place : place + len(what)] = what
        elif kind == "insert":
            data[place:place] = what
        elif kind == "cut":
            del data[place : place + len(what) ** 2]
        elif kind == "repeat":
            data[place:place] = data[place : place + 300]
        else:
            del data[place:]
    return bytes(data)


EDITS = st.lists(
    st.tuples(
        st.sampled_from(["exchange", "insert", "cut", "repeat", "end"]),
        st.integers(0, 1 << 20),
        st.one_of(
            st.binary(min_size=1, max_size=12),
            st.text("0123456789,- \n()[]ABCDRWx", min_size=1, max_size=12).map(str.encode),
            st.sampled_from([b"\xff" * 8, b"9" * 20, b"\0" * 8, b"\n", b"\r\n", b"\xff\x7f"]),
        ),
    ),
    max_size=8,
)


@settings(max_examples=100)
@pytest.mark.parametrize("form", SAMPLES)
@given(data=st.data())
def test_nothing_is_raised_whatever_is_in_a_file(read, form, data):
    sample = data.draw(st.sampled_from(SAMPLES[form]))
    rows, source = read(form, mutated(sample, data.draw(EDITS)))
    serials = [row["serial"] for row in rows]
    assert len(set(serials)) == len(serials)
    assert source.troubles.skipped == 0 or source.troubles.first_skipped
    for line in (source.troubles.broken, source.troubles.first_skipped, *source.troubles.notes):
        assert "\n" not in line
        assert len(line) < 400


@settings(max_examples=30)
@pytest.mark.parametrize("form", SAMPLES)
@given(content=st.binary(max_size=2000))
def test_nor_of_bytes_without_a_meaning(read, form, content):
    read(form, content)


@pytest.mark.parametrize("form", SAMPLES)
def test_memory_does_not_follow_what_a_file_claims(form):
    module = importlib.import_module(f"vscsi.capture.sources.{FORMATS[form]}")
    chance = random.Random(7)
    kinds = ["exchange", "insert", "cut", "repeat"]
    for _ in range(20):
        sample = chance.choice(SAMPLES[form])
        edits = [
            (chance.choice(kinds), chance.randrange(1 << 20), b"\xff" * chance.randrange(1, 9))
            for _ in range(4)
        ]
        content = mutated(sample, edits)
        before = pa.total_allocated_bytes()
        tracemalloc.start()
        for _batch in module.read(io.BytesIO(content)):
            assert pa.total_allocated_bytes() - before < MEMORY_BYTES
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < MEMORY_BYTES


@pytest.mark.parametrize("form", SAMPLES)
def test_a_packed_file_that_ends_early_is_read_up_to_there(form):
    module = importlib.import_module(f"vscsi.capture.sources.{FORMATS[form]}")
    packed = gzip.compress(SAMPLES[form][-1])
    stream = Unpacked(io.BytesIO(packed[:-9]))
    source = module.read(stream)
    list(source)
    assert source.troubles.broken
