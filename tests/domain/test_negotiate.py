# SPDX-License-Identifier: MIT
"""Negotiation: the keys that stock halves write, the documented defaults, hostile values."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vscsi.domain import negotiate
from vscsi.domain.base import StoreError
from vscsi.domain.keys import Reader, XenbusState, parse_state, read_state
from vscsi.domain.negotiate import Limits, RingChoice
from vscsi.wire.errors import WireError


class Directory:
    """Just enough of a store: the keys below /peer. Counts the reads of each."""

    def __init__(self, keys):
        self.keys = {key: value for key, value in keys.items() if value is not None}
        self.reads = []

    def read(self, path):
        key = path.removeprefix("/peer/")
        self.reads.append(key)
        if key not in self.keys:
            raise StoreError("ENOENT", path)
        if self.keys[key] is PermissionError:
            raise StoreError("EACCES", path)
        return self.keys[key]

    def directory(self, path):
        below = path.removeprefix("/peer/") + "/"
        names = {k.removeprefix(below).split("/")[0] for k in self.keys if k.startswith(below)}
        if not names:
            raise StoreError("ENOENT", path)
        return list(names)


def peer(**keys):
    return Reader(Directory({key.replace("_", "-"): value for key, value in keys.items()}), "/peer")


# Ring pages, as the known frontends write them


STOCK = {
    "xen-blkfront 6.1, one page": ({"ring-ref": "8"}, (8,)),
    "xen-blkfront 6.1, max_ring_page_order=2": (
        {
            "ring-page-order": "2",
            "ring-ref0": "8",
            "ring-ref1": "9",
            "ring-ref2": "770",
            "ring-ref3": "771",
        },
        (8, 9, 770, 771),
    ),
    "order 0 as Linux backends >= 5.12 and QEMU read it": (
        {"ring-page-order": "0", "ring-ref0": "8"},
        (8,),
    ),
    "order 0 as FreeBSD's backend reads it": ({"ring-page-order": "0", "ring-ref": "8"}, (8,)),
    "FreeBSD 8.2 and 9.0": (
        {
            "ring-pages": "4",
            "ring-ref": "8",
            "ring-ref1": "9",
            "ring-ref2": "10",
            "ring-ref3": "11",
        },
        (8, 9, 10, 11),
    ),
    "FreeBSD 8.2, one page": ({"ring-pages": "1", "ring-ref": "8"}, (8,)),
    "FreeBSD 9.3": (
        {"num-ring-pages": "2", "ring-page-order": "1", "ring-ref0": "8", "ring-ref1": "9"},
        (8, 9),
    ),
    "a count without an order": (
        {"num-ring-pages": "3", "ring-ref0": "8", "ring-ref1": "9", "ring-ref2": "10"},
        (8, 9, 10),
    ),
    "order before both counts": (
        {
            "ring-page-order": "1",
            "num-ring-pages": "4",
            "ring-pages": "1",
            "ring-ref0": "8",
            "ring-ref1": "9",
        },
        (8, 9),
    ),
    "num-ring-pages before ring-pages": (
        {"num-ring-pages": "2", "ring-pages": "1", "ring-ref0": "8", "ring-ref1": "9"},
        (8, 9),
    ),
    "one page beside an earlier connection's references": (
        {"ring-ref": "8", "ring-ref0": "70", "ring-ref1": "71"},
        (8,),
    ),
}


@pytest.mark.parametrize(("keys", "references"), STOCK.values(), ids=STOCK)
def test_rings_of_known_frontends_are_read(keys, references):
    assert negotiate.accept_rings(Reader(Directory(keys), "/peer"), 4) == (references,)


@pytest.mark.parametrize(
    ("keys", "culprit"),
    [
        ({}, "ring-ref"),
        ({"ring-page-order": "5", "ring-ref0": "8"}, "ring-page-order"),
        ({"ring-page-order": "4294967295", "ring-ref0": "8"}, "ring-page-order"),
        ({"ring-page-order": "-1", "ring-ref0": "8"}, "ring-page-order"),
        ({"num-ring-pages": "17", "ring-ref0": "8"}, "num-ring-pages"),
        ({"num-ring-pages": "0", "ring-ref": "8"}, "num-ring-pages"),
        ({"ring-pages": "99999999999999999999", "ring-ref": "8"}, "ring-pages"),
        ({"ring-page-order": "1", "ring-ref0": "8"}, "ring-ref1"),
        ({"ring-ref": "4294967296"}, "ring-ref"),
        ({"ring-ref": "8 "}, "ring-ref"),
        ({"ring-ref": PermissionError}, "ring-ref"),
    ],
)
def test_wrong_ring_keys_are_refused_by_name(keys, culprit):
    with pytest.raises(WireError, match=f"/peer/{culprit} "):
        negotiate.accept_rings(Reader(Directory(keys), "/peer"), 4)


def test_a_pair_of_rings_has_its_own_references_and_one_page_count():
    names = (negotiate.RING_REF, negotiate.RESPONSE_RING_REF)
    keys = RingChoice(2).keys({names[0]: [8, 9], names[1]: [20, 21]})
    assert {key: value for key, value in keys.items() if value is not None} == {
        "ring-page-order": "1",
        "num-ring-pages": "2",
        "ring-ref0": "8",
        "ring-ref1": "9",
        "response-ring-ref0": "20",
        "response-ring-ref1": "21",
    }
    assert negotiate.accept_rings(Reader(Directory(keys), "/peer"), 4, names) == ((8, 9), (20, 21))
    one = RingChoice(1).keys({names[0]: [8], names[1]: [20]})
    assert {key: value for key, value in one.items() if value is not None} == {
        "ring-ref": "8",
        "response-ring-ref": "20",
    }


@pytest.mark.parametrize(
    ("backend", "wish", "choice"),
    [
        ({}, 4, RingChoice(1)),
        ({"max-ring-page-order": "4"}, 2, RingChoice(4)),
        ({"max-ring-page-order": "1"}, 4, RingChoice(2)),
        ({"max-ring-page-order": "0", "max-ring-pages": "16"}, 4, RingChoice(1)),
        ({"max-ring-page-order": "4294967295"}, 4, RingChoice(16)),
        ({"max-ring-pages": "4"}, 4, RingChoice(4, counted=True)),
        ({"max-ring-pages": "7"}, 4, RingChoice(4, counted=True)),
        ({"max-ring-pages": "1"}, 4, RingChoice(1)),
        ({"max-ring-page-order": "4"}, 0, RingChoice(1)),
    ],
)
def test_a_frontend_takes_what_both_can(backend, wish, choice):
    assert negotiate.choose_rings(Reader(Directory(backend), "/peer"), wish) == choice


@given(
    first=st.builds(RingChoice, st.sampled_from([1, 2, 4, 8, 16]), st.booleans()),
    second=st.builds(RingChoice, st.sampled_from([1, 2, 4, 8, 16]), st.booleans()),
)
@settings(deadline=None)
def test_a_second_choice_in_the_same_directory_is_read_as_itself(first, second):
    directory = {}
    for choice, base in ((first, 100), (second, 500)):
        references = tuple(range(base, base + choice.pages))
        responses = tuple(range(base + 50, base + 50 + choice.pages))
        rings = {negotiate.RING_REF: references, negotiate.RESPONSE_RING_REF: responses}
        directory |= choice.keys(rings)
        read = negotiate.accept_rings(Reader(Directory(directory), "/peer"), 4, list(rings))
        assert read == (references, responses)


def test_references_that_do_not_fit_the_choice_are_the_callers_mistake():
    with pytest.raises(ValueError, match="ring-ref has 1 pages, not 2"):
        RingChoice(2).keys({"ring-ref": [8]})


def test_what_a_backend_offers_is_what_it_accepts():
    keys = negotiate.ring_keys(4)
    assert keys == {"max-ring-page-order": "4", "max-ring-pages": "16"}
    assert negotiate.choose_rings(Reader(Directory(keys), "/peer"), 4) == RingChoice(16)


# Requests


OFFERED = Limits(requests=256, segments=129, size_bytes=128 * 4096)


def test_limits_default_to_one_page_ring_eleven_segments_and_44_kib():
    assert Limits.accept(peer(), OFFERED, 32) == Limits(32, 11, 45056)
    assert Limits.accept(peer(), Limits(8, 4, 4096), 32) == Limits(32, 11, 45056)


def test_the_limits_that_freebsd_9_3_chose_are_taken():
    chosen = peer(max_requests="256", max_request_segments="129", max_request_size="524288")
    assert Limits.accept(chosen, OFFERED, 128) == Limits(256, 129, 524288)


@pytest.mark.parametrize("key", ["max-requests", "max-request-segments", "max-request-size"])
@pytest.mark.parametrize("value", ["0", "524289", "-1", "", "1e3", "0x10", "9" * 21, "9" * 4000])
def test_limits_outside_of_the_offer_are_refused_by_name(key, value):
    with pytest.raises(WireError, match=f"/peer/{key} "):
        Limits.accept(Reader(Directory({key: value}), "/peer"), OFFERED, 32)


def test_segments_never_exceed_the_u8_that_carries_them():
    with pytest.raises(WireError, match="max-request-segments is 256"):
        Limits.accept(peer(max_request_segments="256"), Limits(32, 1000, 1 << 30), 32)
    assert Limits.choose(peer(max_request_segments="1000"), Limits(9, 900, 1 << 30), 32) == Limits(
        9, 255, 254 * 4096
    )


@pytest.mark.parametrize(
    ("backend", "chosen"),
    [
        # A backend without the keys: the frontend of 2010 keeps a segment for odd buffers.
        ({}, Limits(32, 11, 10 * 4096)),
        (OFFERED.keys(), Limits(64, 32, 32 * 4096)),
        ({"max-requests": "4", "max-request-segments": "1"}, Limits(4, 1, 4096)),
        ({"max-request-segments": "20", "max-request-size": "4294967295"}, Limits(32, 20, 81920)),
    ],
)
def test_a_frontend_lowers_its_wish(backend, chosen):
    wish = Limits(requests=64, segments=32, size_bytes=1 << 20)
    assert Limits.choose(Reader(Directory(backend), "/peer"), wish, 32) == chosen


@given(
    *[st.builds(Limits, st.integers(1, 512), st.integers(1, 255), st.integers(1, 1 << 21))] * 2,
)
@settings(deadline=None)
def test_what_a_frontend_chooses_the_backend_accepts(offered, wish):
    chosen = Limits.choose(Reader(Directory(offered.keys()), "/peer"), wish, 32)
    assert Limits.accept(Reader(Directory(chosen.keys()), "/peer"), offered, 32) == chosen
    assert chosen.size_bytes <= chosen.segments * 4096


@pytest.mark.parametrize("key", ["max-requests", "max-request-segments", "max-request-size"])
def test_a_backend_that_takes_nothing_is_refused(key):
    with pytest.raises(WireError, match=f"/peer/{key} is 0"):
        Limits.choose(Reader(Directory({key: "0"}), "/peer"), OFFERED, 32)


# The rest


@pytest.mark.parametrize(("value", "there"), [(None, False), ("0", False), ("1", True)])
def test_features_are_absent_zero_or_one(value, there):
    assert negotiate.feature(peer(feature_flush_cache=value), "feature-flush-cache") is there


@pytest.mark.parametrize("value", ["yes", "", " 1", "+1", "1\n", "\u0661", "1\0"])
def test_features_that_are_no_number_are_refused(value):
    with pytest.raises(WireError, match="feature-discard is no decimal number"):
        negotiate.feature(peer(feature_discard=value), "feature-discard")


def test_one_queue_is_the_default_and_no_more_than_offered_are_taken():
    assert negotiate.accept_queues(peer(), 4) == 1
    assert negotiate.accept_queues(peer(multi_queue_num_queues="4"), 4) == 4
    for value in ("0", "5", "x"):
        with pytest.raises(WireError, match="multi-queue-num-queues"):
            negotiate.accept_queues(peer(multi_queue_num_queues=value), 4)


def test_a_frontend_takes_as_many_queues_as_there_are():
    assert negotiate.choose_queues(peer(), 4) == 1
    assert negotiate.choose_queues(peer(multi_queue_max_queues="2"), 4) == 2
    assert negotiate.choose_queues(peer(multi_queue_max_queues="8"), 4) == 4


def test_each_queue_has_its_rings_and_its_event_channel_and_shares_the_rest():
    """Read back by a Reader of each, and what has changed since is noticed (io/blkif.h)."""
    keys = [{"ring-ref0": f"{n}0", "event-channel": f"{n}1", "protocol": "p"} for n in (4, 5)]
    said = negotiate.chosen_queues_keys(keys)
    assert said["queue-1/ring-ref0"] == "50"
    directory = Directory(said)
    device = Reader(directory, "/peer")
    for number, own in enumerate(keys):
        queue = device.queue(number)
        assert {key: queue.text(key) for key in own} == own
    assert not device.changed(directory)
    assert device.changed(Directory({**said, "queue-1/event-channel": "9"}))
    assert negotiate.chosen_queues_keys(keys[:1]) == {**keys[0], "multi-queue-num-queues": None}


def test_protocol_defaults_to_what_the_backend_documents():
    assert negotiate.accept_protocol(peer(), negotiate.X86_32) == "x86_32-abi"
    assert negotiate.accept_protocol(peer(protocol="x86_64-abi"), negotiate.X86_32) == "x86_64-abi"
    for unknown in ("arm-abi", "x86_64", "", "\x1b[2J" * 20):
        with pytest.raises(WireError, match=r"protocol is .* not served") as refused:
            negotiate.accept_protocol(peer(protocol=unknown), negotiate.X86_64)
        assert str(refused.value).isprintable()


def test_slots_are_128_bytes_unless_both_want_more():
    offer = Reader(Directory(negotiate.slot_size_keys(1024)), "/peer")
    assert negotiate.choose_slot_size(offer, 512) == 512
    assert negotiate.choose_slot_size(peer(), 512) == 128
    assert negotiate.choose_slot_size(peer(max_slot_size="4294967295"), 1024) == 1024
    assert negotiate.choose_slot_size(peer(max_slot_size="255"), 512) == 192
    assert negotiate.accept_slot_size(peer(), 1024) == 128
    assert negotiate.accept_slot_size(peer(slot_size="1024"), 1024) == 1024
    for wrong in ("64", "127", "129", "1088", "0", "-128", "huge"):
        with pytest.raises(WireError, match="slot-size"):
            negotiate.accept_slot_size(peer(slot_size=wrong), 1024)
    with pytest.raises(WireError, match="max-slot-size is 64"):
        negotiate.choose_slot_size(peer(max_slot_size="64"), 512)


# Reader


def test_a_key_is_read_once_and_stays_what_it_was_when_checked():
    directory = Directory({"ring-page-order": "1"})
    reader = Reader(directory, "/peer")
    assert reader.number("ring-page-order", high=4) == 1
    directory.keys["ring-page-order"] = "60"
    directory.keys["late"] = "1"
    assert reader.number("ring-page-order", high=4) == 1
    assert directory.reads == ["ring-page-order"]
    assert reader.changed(directory)
    directory.keys["ring-page-order"] = "1"
    assert not reader.changed(directory)


def test_an_absent_key_that_appears_is_a_change():
    directory = Directory({})
    reader = Reader(directory, "/peer")
    assert reader.number("ring-pages", 1) == 1
    directory.keys["ring-pages"] = "1"
    assert reader.changed(directory)
    assert reader.number("ring-pages", 1) == 1


def test_names_are_sorted_and_bounded():
    directory = Directory({"devs/dev-1/state": "1", "devs/dev-0/state": "1"})
    assert Reader(directory, "/peer").names("devs") == ["dev-0", "dev-1"]
    assert Reader(directory, "/peer").names("other") == []
    directory.keys = {f"devs/dev-{n}": "" for n in range(257)}
    with pytest.raises(WireError, match="/peer/devs has 257 entries"):
        Reader(directory, "/peer").names("devs")


@given(st.text(max_size=300) | st.integers().map(str), st.booleans())
@settings(deadline=None)
def test_any_text_is_a_number_in_range_or_a_wire_error(text, optional):
    reader = Reader(Directory({"key": text}), "/peer")
    try:
        value = reader.number("key", 1 if optional else None, 2, 1000)
    except WireError as error:
        value, reason = None, str(error)
    if value is None:
        assert "/peer/key" in reason
        assert len(reason) < 500
    else:
        assert 2 <= value <= 1000
        assert text.isascii()
        assert int(text) == value


@pytest.mark.parametrize("other", ["EIO", "EINVAL"])
def test_a_store_that_fails_is_not_the_peers_fault(other):
    class Broken(Directory):
        def read(self, path):
            raise StoreError(other, path)

        directory = read

    for ask in (Reader.has, Reader.names):
        with pytest.raises(StoreError, match=other):
            ask(Reader(Broken({}), "/peer"), "key")
    with pytest.raises(StoreError, match=other):
        read_state(Broken({}), "/peer")


@pytest.mark.parametrize("junk", ["", "9", "-1", "04", "4 ", "4\0", "four", "\u0664", "4" * 4096])
def test_a_state_that_is_none_is_unknown(junk):
    assert parse_state(junk) is XenbusState.UNKNOWN
    assert read_state(Directory({"state": junk}), "/peer") is XenbusState.UNKNOWN


def test_states_are_read_by_number_and_hidden_ones_are_unknown():
    assert [parse_state(str(n)) for n in range(9)] == list(XenbusState)
    assert read_state(Directory({}), "/peer") is XenbusState.UNKNOWN
    assert read_state(Directory({"state": PermissionError}), "/peer") is XenbusState.UNKNOWN
