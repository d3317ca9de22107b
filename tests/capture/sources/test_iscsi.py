# SPDX-License-Identifier: MIT
"""iSCSI in captures: every command that tshark finds, with its values, however it was recorded."""

import gzip
import random
import re
import struct
from collections import defaultdict

import pytest

from tests.capture.sources import iscsi_traffic as traffic
from vscsi.capture.commands import Disk, Fate
from vscsi.capture.sources import Opened, iscsi
from vscsi.target.base import Status
from vscsi.wire.lun import encode
from vscsi.wire.opcodes import DeviceType

_COLUMNS = ("tag", "cdb", "status", "sense", "residual", "data_out", "data_in", "fate", "data")


def _ns(text):
    seconds, fraction = text.split(".")
    return int(seconds) * 10**9 + int(fraction.ljust(9, "0"))


def expected(name):
    """Return the commands of a capture as tshark saw them."""
    commands = {}
    for line in traffic.oracle(name):
        pdu = line["iscsi"]
        opcode = int(pdu["iscsi.opcode"], 16)
        tag = int(pdu["iscsi.initiatortasktag"], 16)
        if opcode == 0x01:
            commands[line["s"], tag] = {
                "time_ns": _ns(line["t"]),
                "tag": tag,
                "cdb": bytes.fromhex(line["cdb"]),
                "lun": int(line["scsi"][0]["scsi.lun"], 16),
                "length": int(pdu["iscsi.scsicommand.expecteddatatransferlength"]),
                "sense": None,
            }
            continue
        command = commands[line["d"] if opcode & 0x20 else line["s"], tag]
        if opcode == 0x25 and "din" in line and int(pdu["iscsi.bufferOffset"]) == 0:
            command["data"] = bytes.fromhex(line["din"])[:512]
        if opcode == 0x21:
            command["status"] = int(pdu["iscsi.scsiresponse.status"], 16)
            if command["status"] == 2:
                command["sense"] = bytes.fromhex(line["rsp"][0])
        if opcode == 0x21 or (opcode == 0x25 and int(pdu["iscsi.flags"], 16) & 1):
            command.setdefault("status", 0)
            command["latency_ns"] = _ns(line["t"]) - command["time_ns"]
            assert command["latency_ns"] == _ns(pdu["iscsi.time"])
    return sorted(commands.values(), key=lambda command: command["time_ns"])


@pytest.mark.parametrize("name", traffic.NAMES)
def test_every_command_is_found_as_tshark_found_it(name):
    with Opened(str(traffic.CAPTURES / f"iscsi-tgt-{name}.pcapng.gz")) as source:
        rows = [row for batch in source for row in batch.to_pylist()]
    assert isinstance(source, iscsi.IscsiSource)
    wanted = expected(name)
    assert len(rows) == len(wanted)
    assert source.troubles.broken == ""
    assert source.troubles.skipped == source.troubles.dropped == 0
    assert source.troubles.notes == []
    for row, command in zip(sorted(rows, key=lambda row: row["time_ns"]), wanted, strict=True):
        for column in ("time_ns", "tag", "status", "latency_ns", "sense"):
            assert row[column] == command[column], column
        assert row["cdb"].ljust(16, b"\0") == command["cdb"]
        assert row["opcode"] == command["cdb"][0]
        assert source.disks[row["disk"]].lun == encode(command["lun"])
        assert max(row["data_in"], row["data_out"]) == command["length"]
        assert row["fate"] == Fate.ANSWERED
        if "data" in command:
            assert row["data"] == command["data"]


def service_times(rows):
    """Return count, shortest, longest and mean time in microseconds by opcode, as text."""
    times = defaultdict(list)
    for row in rows:
        if row["latency_ns"] is not None and row["status"] != Status.CHECK_CONDITION:
            times[row["opcode"]].append(row["latency_ns"])
    return {
        opcode: (len(each), *(f"{value / 1e9:.6f}" for value in (min(each), max(each))))
        for opcode, each in times.items()
    }, {opcode: sum(each) / len(each) / 1e9 for opcode, each in times.items()}


def parse_service_times(text):
    """Return the same from tshark's tables, whichever command set each opcode was counted in."""
    rows = re.findall(r"^ *(\d+)  .*?  +(\d+) +([\d.]+) +([\d.]+) +([\d.]+) ", text, re.M)
    assert len({row[0] for row in rows}) == len(rows)
    table = {int(opcode): (int(count), low, high) for opcode, count, low, high, _ in rows}
    return table, {int(row[0]): float(row[4]) for row in rows}


@pytest.mark.parametrize("name", traffic.NAMES)
def test_service_response_times_are_tsharks(name):
    _, rows = traffic.read(gzip.decompress(traffic.packed(name)))
    table, means = parse_service_times((traffic.CAPTURES / f"iscsi-tgt-{name}.srt.txt").read_text())
    ours, our_means = service_times(rows)
    # tshark stumbles over INQUIRY data that an allocation length cut, and does not count those.
    for part in (table, means, ours, our_means):
        part.pop(0x12)
    assert ours == table
    assert our_means == pytest.approx(means, abs=6e-7)


def comparable(rows):
    """Return what is the same however the frames were cut."""
    return sorted([row[name] for name in _COLUMNS] for row in rows)


def seen(name):
    """Return the rows of a capture as recorded."""
    return traffic.read(gzip.decompress(traffic.packed(name)))[1]


@pytest.fixture(scope="module")
def recorded():
    """Return frames and rows of the captures by name."""
    return {name: (traffic.frames(name), seen(name)) for name in traffic.NAMES}


@pytest.mark.parametrize("name", traffic.NAMES)
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("form", [("pcap", 1), ("pcap", 1000), ("pcapng", 9), ("pcapng", 6)])
def test_files_of_either_order_and_resolution(recorded, name, order, form):
    packets, rows = recorded[name]
    kind, unit = form
    if kind == "pcap":
        content, step = traffic.pcap(packets, order=order, unit_ns=unit), unit
    else:
        content = traffic.pcapng_file(packets, order=order, resolution=unit)
        step = 10 ** (9 - unit)
    assert iscsi.recognise(content[:4096])
    source, found = traffic.read(content)
    assert not source.troubles.broken
    assert [row["time_ns"] for row in found] == [row["time_ns"] // step * step for row in rows]
    assert comparable(found) == comparable(rows)


def test_times_in_fractions_of_powers_of_two(recorded):
    packets, rows = recorded["scan"]
    _, found = traffic.read(traffic.pcapng_file(packets, resolution=128 + 30))
    for row, found_row in zip(rows, found, strict=True):
        assert abs(row["time_ns"] - found_row["time_ns"]) <= 1


@pytest.mark.parametrize("link", [traffic.RAW, traffic.NULL, traffic.SLL, traffic.SLL2])
def test_other_link_layers(recorded, link):
    packets, rows = recorded["qemu"]
    source, found = traffic.read(traffic.pcap(traffic.relinked(packets, link), link=link))
    assert found == rows
    assert not source.troubles.broken


@pytest.mark.parametrize("change", [traffic.tagged, traffic.on_ipv6])
def test_vlans_and_ipv6(recorded, change):
    packets, rows = recorded["qemu"]
    _, found = traffic.read(traffic.pcap(change(packets)))
    assert found == rows


def test_ipv6_with_an_extension_header(recorded):
    packets, rows = recorded["scan"]
    source, found = traffic.read(traffic.pcap(traffic.on_ipv6(packets, extension=True)))
    assert found == rows
    assert source.channels[0].name.startswith("[fe80::7f00:1]:58590 to [fe80::7f00:1]:13260")


def test_a_gzipped_pcap_on_another_port(recorded, tmp_path):
    packets, rows = recorded["scan"]
    file = tmp_path / "capture.pcap.gz"
    file.write_bytes(gzip.compress(traffic.pcap(traffic.with_port(packets, 80))))
    with Opened(str(file)) as source:
        found = [row for batch in source for row in batch.to_pylist()]
    assert found == rows
    assert source.disks[0].name.startswith("127.0.0.1:80/iqn.2007-10")


def test_what_logins_and_answers_say(recorded):
    source, _ = traffic.read(traffic.pcap(recorded["scan"][0]))
    kinds = {disk.device_type for disk in source.disks}
    assert kinds == {DeviceType.DISK, DeviceType.CDROM, DeviceType.TAPE}
    initiator = "iqn.2007-10.com.github:sahlberg:libiscsi:iscsi-ls"
    assert source.disks[1] == Disk(
        f"127.0.0.1:13260/{initiator},i,0x80df69d70000 lun 1", encode(1), 512, 204800
    )
    login = source.events[1]
    assert login.words == f"LOGIN {initiator} to iqn.2026-11.lab:t1, ISID 80df69d70000"
    assert (login.outcome, login.latency_ns) == ("ACCEPTED", 333294)
    assert ("HeaderDigest", "None") in source.channels[1].parameters


# TCP


def test_any_segmentation(recorded):
    packets, rows = recorded["qemu"]
    for seed in range(3):
        cut = traffic.recut(packets, random.Random(seed), largest=4000)
        source, found = traffic.read(traffic.pcap(cut))
        assert comparable(found) == comparable(rows)
        assert source.troubles.notes == []


def test_tiny_segments(recorded):
    packets, rows = recorded["scan"]
    _, found = traffic.read(traffic.pcap(traffic.recut(packets, random.Random(1), largest=7)))
    assert comparable(found) == comparable(rows)


def test_a_pdus_time_is_that_of_its_last_byte_as_tsharks(recorded, tmp_path):
    packets, _ = recorded["qemu"]
    content = traffic.pcap(traffic.recut(packets, random.Random(5), largest=6000))
    _, found = traffic.read(content)
    port = str(traffic.PORT)
    said = traffic.tshark(content, tmp_path, port, "-q", "-z", "scsi,srt,0")
    table, means = parse_service_times(said)
    ours, our_means = service_times(found)
    for part in (table, means, ours, our_means):
        part.pop(0x12)
    assert ours == table
    assert our_means == pytest.approx(means, abs=6e-7)


def test_duplicates_and_overlaps(recorded):
    packets, rows = recorded["qemu"]
    chance = random.Random(2)
    changed, before = [], None
    for segment in traffic.segments(packets):
        again = before is not None and chance.random() < 0.3 and before.ends == segment.ends
        if (
            again and before.payload and 0 < len(segment.payload) < traffic.LARGEST
        ):  # a retransmission of both at once
            changed.append(before.frame())
            joined = traffic.Segment(*segment.frame())
            joined.payload = before.payload[-20:] + segment.payload
            joined.sequence = (segment.sequence - len(before.payload[-20:])) & 0xFFFFFFFF
            segment = joined
        changed.append(segment.frame())
        before = segment
    _, found = traffic.read(traffic.pcap(changed))
    assert comparable(found) == comparable(rows)


def test_segments_out_of_order(recorded):
    packets, rows = recorded["qemu"]
    cut = traffic.segments(traffic.recut(packets, random.Random(3), largest=1000))
    chance = random.Random(4)
    run, changed = [], []
    for segment in [*cut, None]:
        # Within one way: between the ways it is the time that changes.
        if segment is None or (run and segment.ends != run[0].ends) or len(run) == 12:
            times = [each.time for each in run]
            chance.shuffle(run)
            for time, each in zip(times, run, strict=True):
                each.time = time
            ends = [each for each in run if each.flags & 3]  # FIN and SYN are where they were
            changed += [each for each in run if not each.flags & 3] + ends
            run = []
        if segment is not None:
            run.append(segment)
    source, found = traffic.read(traffic.pcap(each.frame() for each in changed))
    assert comparable(found) == comparable(rows)
    assert source.troubles.notes == []


@pytest.mark.parametrize("seed", range(4))
def test_lost_segments_cost_only_what_was_in_them(recorded, seed):
    packets, rows = recorded["qemu"]
    chance = random.Random(seed)
    cut = traffic.recut(packets, chance, largest=1400)
    lost = {number for number in range(30, len(cut)) if chance.random() < 0.01}
    source, found = traffic.read(
        traffic.pcap(each for number, each in enumerate(cut) if number not in lost)
    )
    assert "gaps in TCP connections" in " ".join(source.troubles.notes)
    known = {(row["tag"], row["cdb"], row["data_in"], row["data_out"]) for row in rows}
    assert {(row["tag"], row["cdb"], row["data_in"], row["data_out"]) for row in found} <= known
    # A lost segment takes its own PDU, and where it was within data, at most one more a way.
    assert len(rows) - len(found) <= 2 * len(lost)
    unanswered = [row for row in found if row["fate"] != Fate.ANSWERED]
    assert len(unanswered) <= 2 * len(lost)
    assert {row["fate"] for row in unanswered} <= {Fate.LOST}


def test_a_capture_that_starts_in_the_middle(recorded):
    packets, rows = recorded["qemu"]
    for start in (5, 8, 100, 777, 1500, 2000):
        source, found = traffic.read(traffic.pcap(packets[start:]))
        begin = packets[start][0]
        wanted = [row for row in rows if row["time_ns"] >= begin]
        assert len(wanted) - len(found) <= 1, start
        for row in found:
            assert row["fate"] == Fate.ANSWERED
        assert comparable(found)[-1] in comparable(wanted)
        assert not source.troubles.broken


@pytest.mark.parametrize("header", [False, True])
@pytest.mark.parametrize("data", [False, True])
@pytest.mark.parametrize("name", traffic.NAMES)
def test_digests_that_a_login_agreed_on(recorded, name, header, data):
    packets, rows = recorded[name]
    changed = traffic.with_digests(packets, header=header, data=data)
    source, found = traffic.read(traffic.pcap(changed))
    assert comparable(found) == comparable(rows)
    said = dict(source.channels[1].parameters)
    assert said["HeaderDigest"] == ("CRC32C" if header else "None")
    again = traffic.recut(changed, random.Random(6), largest=900)
    assert comparable(traffic.read(traffic.pcap(again))[1]) == comparable(rows)


def test_these_digests_are_right_to_tshark(recorded, tmp_path):
    changed = traffic.with_digests(recorded["scan"][0], header=True, data=True)
    said = traffic.tshark(traffic.pcap(changed), tmp_path, traffic.PORT, "-V")
    assert said.count("DataDigest: 0x") > 30
    assert said.count("(Good CRC32)") > 200
    assert "Bad CRC" not in said


@pytest.mark.parametrize("header", [False, True])
@pytest.mark.parametrize("data", [False, True])
def test_digests_of_connections_without_a_login(recorded, header, data):
    packets, rows = recorded["qemu"]
    changed = traffic.with_digests(packets, header=header, data=data)
    for start in (100, 900, 1700):
        begin = packets[start][0]
        _, found = traffic.read(traffic.pcap(changed[start:]))
        wanted = [row for row in rows if row["time_ns"] >= begin]
        assert len(wanted) - len(found) <= 2
        missing = [row for row in comparable(found) if row not in comparable(rows)]
        assert len(missing) <= 1


def test_digests_whose_agreement_was_lost(recorded):
    packets, rows = recorded["qemu"]
    changed = traffic.with_digests(packets, header=True, data=True)
    kept = [each for each in changed if traffic.Segment(*each).payload[:1] != b"\x23"]
    assert len(kept) == len(changed) - 9
    _, found = traffic.read(traffic.pcap(kept))
    assert len(rows) - len(found) <= 9
    assert sum(row["fate"] != Fate.ANSWERED for row in found) <= 9


def test_frames_of_which_only_the_beginning_was_captured(recorded):
    packets, rows = recorded["qemu"]
    source, found = traffic.read(traffic.pcap(packets, snap=14 + 20 + 32 + 48 + 60))
    assert not source.troubles.broken
    assert len(found) >= len(rows) * 0.95
    by_tag = {(row["tag"], row["cdb"]): row for row in rows}
    for row in found:
        whole = by_tag[row["tag"], row["cdb"]]
        assert (row["time_ns"], row["data_in"]) == (whole["time_ns"], whole["data_in"])
        assert (row["data"] or b"") == (whole["data"] or b"")[: len(row["data"] or b"")]


# Files


def test_a_file_cut_anywhere_is_read_up_to_there(recorded):
    packets, rows = recorded["scan"]
    pcap, ng = traffic.pcap(packets), traffic.pcapng_file(packets)
    for content in (pcap, ng):
        chance = random.Random(7)
        for end in [*range(150), *(chance.randrange(len(content)) for _ in range(60))]:
            source, found = traffic.read(content[:end])
            assert len(found) <= len(rows)
            assert source.troubles.broken, end
            answered = [row for row in found if row["fate"] == Fate.ANSWERED]
            assert {row["tag"] for row in answered} <= {row["tag"] for row in rows}


def test_a_broken_gzip_file(recorded, tmp_path):
    file = tmp_path / "cut.gz"
    file.write_bytes(traffic.packed("qemu")[:60000])
    with Opened(str(file)) as source:
        found = [row for batch in source for row in batch.to_pylist()]
    assert 100 < len(found) < 732
    assert source.troubles.broken


def test_a_broken_frame_says_where(recorded):
    content = bytearray(traffic.pcap(recorded["scan"][0]))
    content[24 + 8 : 24 + 12] = b"\xff\xff\xff\x7f"
    source, found = traffic.read(bytes(content))
    assert found == []
    assert source.troubles.broken == "broken at byte 24: a frame of 2147483647 bytes"


def test_a_capture_without_iscsi_says_so():
    packets = [(0, traffic.Segment(0, _hello()).frame()[1])]
    source, found = traffic.read(traffic.pcap(packets))
    assert found == []
    assert source.troubles.broken == "no iSCSI in 1 TCP segments"


def _hello():
    segment = traffic.segments(traffic.frames("scan"))[3]
    segment.payload = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 10
    return segment.frame()[1]


@pytest.mark.parametrize("head", [b"", b"\n\r\r\n", b"\xd4\xc3\xb2\xa1", b"PAR1", bytes(4096)])
def test_what_is_no_capture_is_not_recognised(head):
    assert not iscsi.recognise(head)


def test_what_the_capture_itself_dropped_is_counted(recorded):
    drops = struct.pack("<HHQ", 4, 8, 3) + bytes(4)
    packets, rows = recorded["scan"]
    source, found = traffic.read(traffic.pcapng_file(packets, options=drops))
    assert found == rows
    assert source.troubles.dropped == 3 * len(packets)
