# SPDX-License-Identifier: MIT
"""Numbers in words and places on axes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vscsi.analysis import units
from vscsi.analysis.report.axis import buckets, from_zero, linear, logarithmic
from vscsi.analysis.report.histograms import bucket_names
from vscsi.analysis.report.markup import Html, tag

FINITE = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e18, max_value=1e18)
ABOVE = st.floats(min_value=1e-3, max_value=1e18)


@pytest.mark.parametrize(
    ("us", "words"),
    [
        (None, units.NOTHING),
        (0, "0 s"),
        (0.25, "250 ns"),
        (0.9999, "1 µs"),
        (1, "1 µs"),
        (12.345, "12.3 µs"),
        (999.4, "999 µs"),
        (999.6, "1 ms"),
        (1500, "1.5 ms"),
        (2_000_000, "2 s"),
        (119_000_000, "119 s"),
        (120_000_000, "2 min"),
        (3_725_000_000, "62 min 5 s"),
        (86_400_000_000, "24 h"),
        (3 * 86_400_000_000, "3 d"),
        (-1500, "-1.5 ms"),
    ],
)
def test_durations(us, words):
    assert units.duration(us) == words


@pytest.mark.parametrize(
    ("size", "words", "short"),
    [
        (0, "0 B", "0"),
        (512, "512 B", "512"),
        (4095, "4 KiB", "<4K"),
        (4096, "4 KiB", "4K"),
        (81920, "80 KiB", "80K"),
        (1 << 20, "1 MiB", "1M"),
        (1_500_000, "1.43 MiB", "1.43M"),
        (1 << 62, "4 EiB", "4E"),
    ],
)
def test_sizes(size, words, short):
    assert units.size(size) == words
    assert units.short_size(size) == short


@pytest.mark.parametrize(
    ("part", "whole", "words"),
    [
        (0, 0, units.NOTHING),
        (0, 5, "0.0 %"),
        (1, 100_000, "<0.1 %"),
        (99_999, 100_000, ">99.9 %"),
        (5, 5, "100 %"),
        (1, 3, "33.3 %"),
    ],
)
def test_what_is_not_all_is_not_said_to_be(part, whole, words):
    assert units.share(part, whole) == words


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0, "0.00"),
        (1, "1.00"),
        (99.994, "99.99"),
        (123_456, "123k"),
        (0.1, "0.10"),
        (0.0996, "0.100"),
        (0.00123, "0.0012"),
        (0.000002, "0.0000020"),
        (1e-9, "<0.000001"),
    ],
)
def test_ratios_that_are_something_are_not_0(value, words):
    assert units.ratio(value) == words


def test_times_without_a_wall_clock_are_no_dates():
    assert units.clock(0) is None
    assert units.clock(-1) is None
    assert units.clock(1_700_000_000_123_456_789) == "2023-11-14 22:13:20.123 UTC"


@given(FINITE)
def test_numbers_keep_three_digits(value):
    told = float(units.figure(value).replace(",", ""))
    assert told == pytest.approx(value, rel=0.006, abs=0.001)


@given(FINITE)
def test_no_number_is_too_much(value):
    for words in (units.duration, units.size, units.short, units.short_size, units.rate):
        assert 0 < len(words(value)) < 40


@given(FINITE, FINITE)
def test_linear_ticks_are_on_the_axis_and_ascend(low, high):
    for axis in (linear(low, high, str), linear(low, high, str, whole=True)):
        places = [place for place, _ in axis.ticks]
        assert places == sorted(places)
        assert all(-1e-6 <= place <= 1 + 1e-6 for place in places)
        assert len(places) <= 12


@given(st.lists(st.one_of(st.none(), ABOVE)))
def test_values_are_on_their_axes(values):
    for axis in (
        logarithmic(values, str),
        logarithmic(values, str, base=2),
        from_zero(values, str),
    ):
        for value in values:
            assert value is None or -1e-6 <= axis.place(value) <= 1 + 1e-6
        assert all(-1e-6 <= place <= 1 + 1e-6 for place, _ in axis.ticks)
        assert len(axis.ticks) <= 12


@given(st.lists(st.integers(-(10**12), 10**12), unique=True, max_size=256).map(sorted))
def test_buckets_have_names(bounds):
    axis = buckets(bounds, str)
    assert len(axis.ticks) <= 20
    assert len(bucket_names("blocks", bounds)) == len(bounds) + 1
    if 0 in bounds:
        assert "0" in [words for _, words in axis.ticks]


def test_names_of_buckets_are_their_values():
    assert bucket_names("bytes", (512, 1024, 1025)) == [
        *("up to 512", "513 to 1,024", "1,025", "from 1,026")
    ]
    assert bucket_names("us", (10, 100)) == ["up to 10 µs", "> 10 µs to 100 µs", "> 100 µs"]


def test_text_is_escaped_and_html_is_not():
    assert tag("p", "<b>", Html("<i>")) == "<p>&lt;b&gt;<i></p>"
    assert tag("p", ["a", None, ("b",)], title='"') == '<p title="&quot;">ab</p>'
    assert tag("p", "\x00\x7f\ud800\u202e") == "<p>" + "\ufffd" * 4 + "</p>"
