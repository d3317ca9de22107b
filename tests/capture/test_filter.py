# SPDX-License-Identifier: MIT
"""Filters: a command and its answer are kept or left out together, in order, whatever comes."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vscsi.capture.choice import Choice, Filter, Payload, parse_range
from vscsi.capture.decode import Answer, Kind, decode
from vscsi.ring import Tap, tap_packets
from vscsi.transport.tap import RingPath
from vscsi.wire import blkif, cdb, pcapng, srp, vscsiif
from vscsi.wire.lun import encode, logical_unit_number
from vscsi.wire.pcapng import HEAD_SIZE, LITTLE
from vscsi.wire.record import LayoutCode, PayloadKind, Protocol, Way, parse_record
from vscsi.wire.srp_ring import SlotFormat, build_slot

HELD_BYTES = 4 << 20
LAYOUTS = {LayoutCode.X86_64: blkif.X86_64, LayoutCode.X86_32: blkif.X86_32}
TAGS = st.integers(0, 5)
LBAS = st.integers(0, 40)
BLOCKS = st.integers(0, 9)


def addressed(name, lba, blocks):
    return cdb.build(name, lba=lba, blocks=256 if "(6)" in name and not blocks else blocks)


CDBS = st.one_of(
    st.builds(
        addressed,
        st.sampled_from(
            (
                *("READ(6)", "READ(10)", "READ(12)", "READ(16)", "READ(32)", "WRITE(6)"),
                *("WRITE(10)", "WRITE(16)", "SYNCHRONIZE CACHE(10)", "VERIFY(16)"),
                "WRITE SAME(32)",
            )
        ),
        LBAS,
        BLOCKS,
    ),
    st.sampled_from([bytes(6), cdb.build("INQUIRY"), cdb.build("READ CAPACITY(16)")]),
    st.builds(lambda lba: cdb.build("GET LBA STATUS", lba=lba), LBAS),
    st.binary(min_size=1, max_size=16),
)
LUNS = st.sampled_from(
    [
        *(encode(number) for number in (0, 1, 2, 300, 70000)),
        *(word + bytes(6) for word in (b"\x40\1", b"\x80\1", b"\1\1", b"\xc1\1")),
    ]
)


def srp_command(tag, lun, data):
    more = data[16:] + bytes(-len(data[16:]) % 4)
    fields = {"additional_cdb_length": len(more), "additional_cdb": more} if more else {}
    iu = srp.build_iu(srp.IuType.CMD, tag=tag, lun=lun, cdb=data[:16].ljust(16, b"\0"), **fields)
    return Way.TO_TARGET, build_slot(SlotFormat.SRP, iu), b""


def srp_answer(tag, status, code):
    fields = {"flags": srp.RspFlags.RSPVALID, "response_data": bytes([0, 0, 0, code or 0])}
    iu = srp.build_iu(
        srp.IuType.RSP, tag=tag, status=status, **(fields if code is not None else {})
    )
    return Way.TO_INITIATOR, build_slot(SlotFormat.SRP, iu), b""


def srp_function(tag):
    iu = srp.build_iu(srp.IuType.TSK_MGMT, tag=tag, function=1)
    return Way.TO_TARGET, build_slot(SlotFormat.SRP, iu), b""


def vscsiif_request(tag, lun, data, act):
    slot = vscsiif.build_request(rqid=tag, lun=lun, cdb=data[:16], act=act)
    return Way.TO_TARGET, slot, b""


def vscsiif_answer(tag, status, host):
    return Way.TO_INITIATOR, vscsiif.build_response(rqid=tag, rslt=host << 16 | status), b""


def segments_of(count):
    return [{"gref": 1, "first_sect": at % 3, "last_sect": 4} for at in range(count)]


def blkif_request(layout, tag, operation, sector, count):
    form = LAYOUTS[layout]
    fields = {"id": tag, "sector_number": sector}
    if operation == blkif.Operation.DISCARD:
        return Way.TO_TARGET, form.build_request(operation, **fields, nr_sectors=count), b""
    if operation == blkif.Operation.INDIRECT:
        fields |= {"indirect_op": count % 2, "nr_segments": count, "indirect_grefs": [1] * 8}
        table = blkif.build_segments(segments_of(count))
        return Way.TO_TARGET, form.build_request(operation, **fields), table
    if operation == blkif.Operation.RESERVED_1:
        return Way.TO_TARGET, form.build_request(operation, id=tag), b""
    segments = segments_of(count)
    slot = form.build_request(operation, **fields, nr_segments=count, segments=segments)
    return Way.TO_TARGET, slot, b""


def blkif_answer(layout, tag, status):
    return Way.TO_INITIATOR, LAYOUTS[layout].build_response(id=tag, status=status), b""


STATUSES = st.sampled_from([0, 0, 0, 2, 8, 0x28])
NOISE = st.tuples(st.sampled_from(Way), st.binary(max_size=300), st.binary(max_size=16))
TRAFFIC = {
    (Protocol.SRP, LayoutCode.NONE): st.one_of(
        st.builds(srp_command, TAGS, LUNS, CDBS),
        st.builds(srp_answer, TAGS, STATUSES, st.sampled_from([None, None, None, 0, 2])),
        st.builds(srp_function, TAGS),
        NOISE,
    ),
    (Protocol.VSCSIIF, LayoutCode.NONE): st.one_of(
        st.builds(vscsiif_request, TAGS, st.integers(0, 2), CDBS, st.sampled_from([1, 1, 1, 2, 3])),
        st.builds(vscsiif_answer, TAGS, STATUSES, st.sampled_from([0, 0, 0, 7])),
        NOISE,
    ),
    **{
        (Protocol.BLKIF, layout): st.one_of(
            st.builds(
                blkif_request,
                st.just(layout),
                TAGS,
                st.sampled_from(blkif.Operation),
                LBAS,
                st.integers(0, 9),
            ),
            st.builds(blkif_answer, st.just(layout), TAGS, st.sampled_from([0, 0, -1, -2])),
        )
        for layout in LAYOUTS
    },
}
FILTERS = st.builds(
    Filter,
    luns=st.sampled_from([(), (0,), (1, 70000), (300,)]),
    opcodes=st.sampled_from(
        [(), ("read",), ("WRITE", "flush"), ("unmap",), ("0x28", "inquiry"), ("READ(32)",)]
    ),
    lba=st.sampled_from([None, (0, 10), (20, 20), (41, 1 << 63)]),
    statuses=st.sampled_from([(), ("good",), ("error",), ("check-condition", "0x28"), ("busy",)]),
)


def naive_lba(data):
    """First and last block of a CDB, or None."""
    row = cdb.lookup(data)
    if row is None or len(data) < row.length or "lba" not in row.fields:
        return None
    if row.name.startswith("READ CAPACITY"):
        return None
    blocks = row.fields["blocks"].get(data) if "blocks" in row.fields else 1
    if row.length == 6 and not blocks:
        blocks = 256
    lba = row.fields["lba"].get(data)
    return lba, lba + max(1, blocks) - 1


def naive_meets(chosen, record, request):
    if record.protocol == Protocol.BLKIF:
        if chosen.opcodes and request.block_operation not in chosen.operations:
            return False
        span = None
        if request.lba is not None:
            span = request.lba, request.lba + max(1, request.blocks) - 1
    else:
        if chosen.luns and logical_unit_number(request.address) not in chosen.luns:
            return False
        code = request.cdb[:1] and request.cdb[0], cdb.service_action_of(request.cdb)
        if chosen.opcodes and not ({code, (code[0], None)} & chosen.codes):
            return False
        span = naive_lba(request.cdb)
    if chosen.lba is None:
        return True
    return span is not None and span[0] <= chosen.lba[1] and span[1] >= chosen.lba[0]


def naive_keeps(chosen, records):
    """Which records are kept: request by request, and back to it from each answer."""
    kept, waiting = [True] * len(records), {}
    for at, record in enumerate(records):
        message = decode(record)
        if message.kind is Kind.MALFORMED:
            continue
        if not isinstance(message, Answer):
            if message.kind not in (Kind.COMMAND, Kind.MANAGEMENT):
                continue
            if message.kind is Kind.COMMAND and not naive_meets(chosen, record, message):
                kept[at] = False
                continue
            waiting[message.tag] = at, message.kind
            if message.kind is Kind.COMMAND and chosen.statuses:
                kept[at] = chosen.failed  # unless there is an answer
            continue
        if message.kind is not Kind.COMMAND:
            continue
        status = message.status or 0
        right = not chosen.statuses or (
            chosen.failed if message.failed else status in chosen.status_codes
        )
        if message.tag not in waiting:
            kept[at] = right and not (chosen.luns or chosen.opcodes or chosen.lba)
            continue
        asked, kind = waiting.pop(message.tag)
        if kind is Kind.COMMAND and chosen.statuses:
            kept[asked] = kept[at] = right
    return [record for record, keep in zip(records, kept, strict=True) if keep]


def records_of(entries, path):
    packets = tap_packets(
        entries,
        interface=0,
        clock_offset_ns=0,
        lost=0,
        protocol=path.protocol,
        layout=path.layout,
        domain=0,
        device=0,
        queue=0,
        payload_kind=PayloadKind.NONE,
        payload_bytes=0,
    )
    return [
        parse_record(pcapng.parse_packet(LITTLE, packets[begin + HEAD_SIZE : end - 4]).data)
        for _, begin, end in pcapng.split(packets)
    ]


@pytest.mark.parametrize(("protocol", "layout"), list(TRAFFIC))
@given(data=st.data())
def test_what_is_kept_is_what_a_naive_look_says(protocol, layout, data):
    messages = data.draw(st.lists(TRAFFIC[protocol, layout], max_size=30))
    chosen = data.draw(FILTERS)
    path = RingPath(protocol, 0, 0, layout)
    tap, ring = Tap(1 << 17), chosen.ring_filter(path)
    entries, found, kept = b"", b"", 0
    for at, (way, message, descriptors) in enumerate(messages):
        tap.put(way, at, at, 0, message, descriptors)
        if data.draw(st.booleans()):
            piece, _ = tap.take(1 << 18)
            entries += piece
            more, count = ring.take(piece)
            found, kept = found + more, kept + count
    piece, _ = tap.take(1 << 18)
    for more, count in (ring.take(piece), ring.end()):
        found, kept = found + more, kept + count
    everything = records_of(entries + piece, path)
    assert records_of(found, path) == naive_keeps(chosen, everything)
    assert kept + ring.left_out == len(messages)


def test_what_waits_for_too_long_is_unanswered():
    """The command that is stuck holds up 4 MiB of others; then they go on without it."""
    path = RingPath(Protocol.SRP, 0, 0)
    for word, expected in (("error", 1), ("good", 0)):
        ring, tap = Filter(statuses=(word,)).ring_filter(path), Tap(1 << 17)
        tap.put(*_entry(srp_command(99, bytes(8), bytes(6))))
        found, sent = 0, 0
        while not found and sent * 160 < 2 * HELD_BYTES:
            for tag in range(100):
                tap.put(*_entry(srp_command(100 + tag, bytes(8), bytes(6))))
                tap.put(*_entry(srp_answer(100 + tag, 2 if word == "error" else 0, None)))
            sent += 200
            found += ring.take(tap.take(1 << 17)[0])[1]
        assert HELD_BYTES // 160 / 2 < found <= sent + expected
        tap.put(*_entry(srp_answer(99, 0, None)))  # late
        _, late = ring.take(tap.take(1 << 17)[0])
        assert ring.end()[1] + late + found + ring.left_out == sent + 2


def _entry(message):
    way, data, descriptors = message
    return way, 0, 0, 0, data, descriptors


def test_more_open_commands_than_there_is_room_for():
    path = RingPath(Protocol.SRP, 0, 0)
    ring, tap = Filter(opcodes=("0",)).ring_filter(path), Tap(1 << 22)
    for tag in range(10_000):
        tap.put(*_entry(srp_command(tag, bytes(8), bytes(6))))
    _, kept = ring.take(tap.take(1 << 22)[0])
    assert kept == 10_000
    for tag in (0, 9_999):  # the first ones are forgotten
        tap.put(*_entry(srp_answer(tag, 0, None)))
    assert ring.take(tap.take(1 << 22)[0])[1] == 1


def test_lost_messages_stand_with_the_next_one_that_is_kept():
    path = RingPath(Protocol.SRP, 0, 0)
    ring, tap = Filter(opcodes=("0x12",)).ring_filter(path), Tap(1 << 13)
    read, inquiry = cdb.build("READ(10)"), cdb.build("INQUIRY")
    while not tap.dropped:
        tap.put(*_entry(srp_command(1, bytes(8), read)))
    ring.take(tap.take(1 << 14)[0])
    tap.put(*_entry(srp_command(1, bytes(8), read)))
    tap.put(*_entry(srp_command(1, bytes(8), inquiry)))
    entries, kept = ring.take(tap.take(1 << 14)[0])
    assert kept == 1
    assert int.from_bytes(entries[4:8], "little") == 1


@given(FILTERS, st.sampled_from([None, *Protocol]), st.sampled_from(["none", "hash", "77"]))
def test_a_choice_crosses_to_the_server_as_words(chosen, only, payload):
    choice = Choice(only, Payload.parse(payload), chosen)
    again = Choice.parse(choice.encode())
    assert (again.only, again.payload) == (choice.only, choice.payload)
    assert again.filter.codes == chosen.codes
    assert again.filter.operations == chosen.operations
    assert again.filter.status_codes == chosen.status_codes
    assert (again.filter.luns, again.filter.lba) == (chosen.luns, chosen.lba)
    assert again.filter.failed == chosen.failed


@pytest.mark.parametrize(
    "fields",
    [
        {"opcodes": ("READ(7)",)},
        {"opcodes": ("256",)},
        {"opcodes": ("",)},
        {"statuses": ("fine",)},
        {"statuses": ("0x100",)},
        {"lba": (2, 1)},
        {"lba": (0, 1 << 64)},
        {"luns": (-1,)},
        {"luns": (1 << 24,)},
        {"luns": tuple(range(65))},
    ],
)
def test_what_is_no_filter(fields):
    with pytest.raises(ValueError, match=r"no|more|beyond|before"):
        Filter(**fields)


@pytest.mark.parametrize("word", ["", "-", "1-", "-1", "a-b", "1-2-3", "1" * 21])
def test_what_is_no_range(word):
    with pytest.raises(ValueError, match="no range"):
        parse_range(word)


@pytest.mark.parametrize("word", ["test-unit-ready", "TEST UNIT READY", "0", "0x00"])
def test_ways_to_name_an_opcode(word):
    assert {opcode for opcode, _ in Filter(opcodes=(word,)).codes} == {0}


def test_choices_are_json_safe_words():
    words = Filter((1,), ("read",), (0, 9), ("error",)).words
    assert json.loads(json.dumps(words)) == [
        ["lun", "1"],
        ["opcode", "read"],
        ["lba", "0-9"],
        ["status", "error"],
    ]
