# SPDX-License-Identifier: MIT
"""Captures that somebody made to break what reads them: nothing is raised, memory and work are
bounded. Work is counted in calls, which no other process's load changes.
"""

import io
import random
import struct
import sys
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.capture.sources import iscsi_traffic as traffic
from tests.capture.sources.test_iscsi_pdus import READ, Talk
from vscsi.capture.commands import SCHEMA, Fate
from vscsi.capture.sources import iscsi
from vscsi.wire.iscsi import TaskFunction, TaskManagementResponse
from vscsi.wire.lun import encode


@pytest.fixture(scope="module")
def seeds():
    """Return captures to begin with, short ones."""
    scan = traffic.frames("scan")[:160]
    qemu = [each for each in traffic.frames("qemu")[:250] if len(each[1]) < 3000]
    packets = traffic.with_digests(scan, header=True, data=True)
    return [
        traffic.pcap(scan),
        traffic.pcapng_file(qemu, order=">"),
        traffic.pcap(packets),
        traffic.pcapng_file(traffic.on_ipv6(traffic.tagged(scan[:0]) + scan, extension=True)),
        traffic.pcap(traffic.relinked(scan, traffic.SLL2), link=traffic.SLL2, order=">"),
    ]


def mutated(content, chance):
    """Return a capture with a few bytes changed, taken out, repeated or made large."""
    data = bytearray(content)
    for _ in range(chance.choice((1, 3, 30))):
        at = chance.randrange(len(data))
        kind = chance.randrange(5)
        if kind == 0:
            data[at] = chance.randrange(256)
        elif kind == 1:
            del data[at : at + chance.choice((1, 4, 100))]
        elif kind == 2:
            data[at:at] = data[at : at + chance.choice((4, 48, 200))]
        elif kind == 3:
            data[at : at + 4] = chance.choice((b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff"))
        else:
            data[at : at + 1] = bytes([data[at] ^ 1 << chance.randrange(8)])
    return bytes(data)


def check(content):
    """Read a capture; whatever is in it, what comes out keeps the table's promises."""
    source, rows = traffic.read(content)
    serials = [row["serial"] for row in rows]
    assert len(set(serials)) == len(serials)
    for row in rows:
        assert 0 <= row["channel"] < len(source.channels)
        assert 0 <= row["disk"] < len(source.disks)
        assert row["fate"] in set(Fate)
        assert all(row[each.name] is not None for each in SCHEMA if not each.nullable)
        assert row["latency_ns"] is None or row["latency_ns"] >= 0
        assert len(row["data"] or b"") <= 1024
    for event in source.events:
        assert event.channel < len(source.channels)
    assert len(source.troubles.notes) < 8


@pytest.mark.parametrize("number", range(40))
def test_mutated_captures(seeds, number):
    chance = random.Random(number)
    for content in seeds:
        check(mutated(content, chance))


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.booleans(), st.integers(-3000, 3000), st.binary(max_size=400))),
    st.binary(max_size=60),
)
def test_any_segments(parts, head):
    talk = Talk()
    talk.command(1)
    for way, shift, payload in parts:
        talk.sequence[way] = (talk.sequence[way] + shift) & 0xFFFFFFFF
        talk._segment(way, (head if shift > 0 else b"") + payload, 16)
    check(traffic.pcap(talk.packets))


@settings(max_examples=100)
@given(st.binary(max_size=300), st.sampled_from(["pcap", "pcapng"]))
def test_any_bytes(content, kind):
    begin = traffic.pcap([]) if kind == "pcap" else traffic.pcapng_file([])
    check(begin + content)
    check(content)


def bare(stream, size=1000):
    """Return a capture of one stream without a beginning, in segments of a size."""
    talk = Talk()
    for at in range(0, len(stream), size):
        talk._segment(0, stream[at : at + size], 16)
    return traffic.pcap(talk.packets)


def calls(content):
    """Return how many calls reading a capture takes."""
    count = 0

    def called(*_):
        nonlocal count
        count += 1

    source = iscsi.read(io.BytesIO(content))
    sys.setprofile(called)
    try:
        for _ in source:
            pass
    finally:
        sys.setprofile(None)
    return count


_COMMAND = bytes.fromhex("01c10000000000000003000000000000") + bytes(32)
_LONG = bytes.fromhex("01a1000000ffffff") + bytes(8)


def headers_that_are_none(count):
    return bare((_COMMAND[:16] + b"\xff" * 3) * count)


def long_pdus_that_never_end(count):
    return bare((_LONG + b"\xff" * 32) * count)


def single_bytes(count):
    return bare(_COMMAND * (count // 40), 1)


def gaps_everywhere(count):
    talk = Talk()
    for tag in range(count):
        talk.command(tag)
        talk.sequence[0] += 10
    return traffic.pcap(talk.packets)


def segments_backwards(count):
    talk = Talk()
    talk.command(1)
    for number in range(count):
        talk.sequence[0] = 100_000 + (count - number) * 60
        talk._segment(0, _COMMAND, 16)
    return traffic.pcap(talk.packets)


def resets_while_all_are_open(count):
    talk = Talk()
    for tag in range(count):
        talk.command(tag, lun=encode(tag % 2))
    for tag in range(count):
        talk.manage(tag, TaskFunction.LOGICAL_UNIT_RESET, lun=encode(5))
        talk.say(TaskManagementResponse, flags=0x80, itt=tag)
    return traffic.pcap(talk.packets)


def sections_and_interfaces(count):
    part = traffic.pcapng_file([(1, b"")])
    return part * (count // 4)


@pytest.mark.parametrize(
    "make",
    [
        headers_that_are_none,
        long_pdus_that_never_end,
        single_bytes,
        gaps_everywhere,
        segments_backwards,
        resets_while_all_are_open,
        sections_and_interfaces,
    ],
)
def test_work_is_linear(make):
    once, often = calls(make(400)), calls(make(3200))
    assert often < 8 * once * 1.5


def test_memory_is_bounded_however_many_connections_commands_and_units():
    talk = Talk()
    talk.open()
    packets = []
    for number in range(6_000):
        talk.ends = talk.ends[:8] + struct.pack(">H", number) + talk.ends[10:]
        talk.back = talk.back[:8] + talk.ends[10:] + talk.ends[8:10]
        talk._segment(0, b"", traffic.SYN)
        talk._segment(0, _COMMAND[:40] + b"\xff" * 600, 16)
    for number in range(6_000):
        talk.command(number, READ, lun=struct.pack(">Q", number))
    packets = traffic.pcap(talk.packets)
    del talk
    tracemalloc.start()
    try:
        source, rows = traffic.read(packets)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(source.disks) == 4096
    assert source.troubles.skipped >= 6_000 - 4096
    assert len(rows) <= 4096
    assert peak < 64 << 20


def test_connections_beyond_those_that_are_kept_are_counted():
    talk = Talk()
    for number in range(4100):
        talk.ends = talk.ends[:8] + struct.pack(">H", number) + talk.ends[10:]
        talk.back = talk.back[:8] + talk.ends[10:] + talk.ends[8:10]
        talk.command(1)
        talk.manage(2, TaskFunction.LOGICAL_UNIT_RESET)
    source, rows = traffic.read(traffic.pcap(talk.packets))
    assert len(source.channels) == len(rows) == 4096
    assert source.troubles.skipped == 4
    assert {event.channel for event in source.events} <= set(range(4096))
