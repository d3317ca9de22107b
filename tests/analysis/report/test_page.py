# SPDX-License-Identifier: MIT
"""The report as a document: complete, escaped, bounded, and nothing in it from elsewhere."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from tests.analysis.report.examples import EVIL, busy, hostile, nothing
from vscsi.analysis.diff import compare
from vscsi.analysis.report import render, render_diff
from vscsi.analysis.result import MEASURES

MAX_BYTES = 2_000_000
ALLOWED = {
    *("html", "head", "meta", "title", "style", "body", "header", "main", "nav", "section"),
    *("footer", "h1", "h2", "p", "a", "b", "i", "span", "div", "small", "code", "ul", "li"),
    *("dl", "dt", "dd", "figure", "figcaption", "svg", "g", "path", "details", "summary"),
    *("table", "thead", "tbody", "tr", "th", "td", "input", "label"),
}
LISTS = (
    *("files", "channels", "disks", "commands", "sense"),
    *("heat", "slowest", "stuck", "events", "findings"),
)
VOID = {"meta", "input"}


class Document(HTMLParser):
    """Takes a document apart, by other rules than those that it was made by."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.texts, self.open = set(), [], [], []
        self.tables = []
        self.feed(text)
        self.close()
        assert self.open == [], "elements that are not closed"

    def handle_starttag(self, name, attributes):
        self.tags.add(name)
        self.attributes += attributes
        if name == "table":
            self.tables.append([])
        elif name == "tr":
            self.tables[-1].append([])
        elif name in ("td", "th"):
            self.tables[-1][-1].append("")
        if name not in VOID:
            self.open.append(name)

    def handle_endtag(self, name):
        assert self.open.pop() == name

    def handle_data(self, text):
        self.texts.append(text)
        if "table" in self.open and self.open[-1] not in ("table", "thead", "tbody", "tr"):
            self.tables[-1][-1][-1] += text


@pytest.fixture(scope="module")
def analysis():
    return busy()


@pytest.fixture(scope="module")
def pages(analysis):
    evil = hostile(analysis)
    return {
        "busy": render(analysis),
        "nothing": render(nothing()),
        "hostile": render(evil),
        "diff": render_diff(compare("a.pcapng", analysis, "b.pcapng", busy(50))),
        "hostile diff": render_diff(compare(EVIL, evil, EVIL, hostile(nothing()))),
    }


PAGES = ("busy", "nothing", "hostile", "diff", "hostile diff")


@pytest.mark.parametrize("name", PAGES)
def test_nothing_comes_from_elsewhere_and_nothing_runs(pages, name):
    document = Document(pages[name])
    assert document.tags <= ALLOWED
    for key, value in document.attributes:
        assert not key.startswith("on"), key
        assert key not in ("src", "srcset", "action", "data", "xlink:href")
        if key == "href":
            assert re.fullmatch(r"#[a-z]+", value)
        if key == "style":
            assert re.fullmatch(r"(left|bottom|width):-?[0-9.]+%", value)
    style = pages[name].partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_to_parts_of_the_page(pages, name):
    document = Document(pages[name])
    ids = {value for key, value in document.attributes if key == "id"}
    links = {value[1:] for key, value in document.attributes if key == "href"}
    assert links <= ids


@pytest.mark.parametrize("name", ["hostile", "hostile diff"])
def test_what_came_from_a_file_is_text(pages, name):
    shown = EVIL.replace("\0", "\ufffd").replace("\x1b", "\ufffd")
    assert shown in "".join(Document(pages[name]).texts)
    assert "<script" not in pages[name]
    assert "<img" not in pages[name]
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", pages[name])


@pytest.mark.parametrize("field", ["files", "disks", "commands", "slowest", "events", "findings"])
def test_the_hostile_text_is_on_the_page_wherever_it_was_put(analysis, field):
    evil = replace(analysis, **{field: hostile(getattr(analysis, field), "<b>&amp;'\"")})
    assert "&lt;b&gt;&amp;amp;&#x27;&quot;" in render(evil)


def test_numbers_behind_the_plots_are_the_histograms(pages, analysis):
    tables = Document(pages["busy"]).tables
    heads = {"us": "time"} | {unit: unit for unit in set(MEASURES.values()) - {"us"}}
    for measure in analysis.histograms.values():
        expected = [
            [f"{each.counts[at]:,}" for each in (measure.all, measure.read, measure.write)]
            for at in range(len(measure.all.counts))
            if measure.all.counts[at]
        ]
        head = [heads[measure.unit], "all", "reads", "writes", "share"]
        found = [[row[1:4] for row in table[1:]] for table in tables if table[0] == head]
        assert expected in found


def test_the_commands_are_in_the_table(pages, analysis):
    (table,) = [
        each for each in Document(pages["busy"]).tables if each[0][:2] == ["command", "latency"]
    ]
    assert [row[0] for row in table[1:]] == [*(row.name for row in analysis.commands), "all"]
    for row, cells in zip(analysis.commands, table[1:], strict=False):
        assert cells[2] == f"{row.count:,}"
        assert cells[10:] == [str(row.errors), str(row.unanswered)]


def test_the_files_name_stands_above_its_disk(analysis):
    files = (replace(analysis.files[0], name="/var/captures/guest.pcapng"),)
    page = render(replace(analysis, files=files))
    heading, _, rest = page.partition("<header>")[2].partition("</h1>")
    assert heading == "<h1>guest.pcapng"
    assert rest.startswith(f'<p class="about">{analysis.disks[0].name} · ')
    assert render(nothing()).count("<h1>empty.pcapng</h1>") == 1


def test_slow_commands_begin_with_what_they_are_sorted_by(pages):
    (table,) = [each for each in Document(pages["busy"]).tables if each[0][0] == "took"]
    assert table[0] == ["took", "sent", "on", "command", "answer", "tag"]
    assert [row[0] for row in table[1:3]] == ["91 ms", "45.5 ms"]


def test_the_worst_comes_first(pages):
    words = "".join(Document(pages["busy"]).texts)
    order = [
        "2 commands unanswered at the end",
        "5 commands failed",
        "2 resets and aborts",
        "18 messages missing from the capture",
        "2 unit attentions",
    ]
    places = [words.index(each) for each in order]
    assert places == sorted(places)


def test_a_capture_without_trouble_says_so(analysis):
    fine = replace(
        analysis,
        total=replace(analysis.total, errors=0, unanswered=0),
        files=(replace(analysis.files[0], dropped=0),),
        sense=(),
        unanswered=0,
        aborted=0,
        stuck=(),
        events=(),
        findings=(),
    )
    page = render(fine)
    assert "Nothing failed, and nothing waits for its answer." in page
    assert 'id="stuck"' not in page


def test_every_plot_has_words_for_those_who_do_not_see_it(pages):
    for svg in re.findall(r"<svg[^>]*>", pages["busy"]):
        hidden = 'aria-hidden="true"' in svg
        assert hidden or re.search(r'role="img" aria-label="[^"]{20,}"', svg)


def test_the_size_is_bounded(analysis):
    bounds = tuple(range(0, 256 * 4096, 4096))
    wide = replace(analysis.histograms["io_length_bytes"].all, bounds=bounds, counts=(7,) * 257)
    every = replace(
        analysis.histograms["io_length_bytes"],
        all=wide,
        read=wide,
        write=wide,
        opcodes={f"opcode {number}": wide for number in range(300)},
    )
    large = replace(
        hostile(analysis, EVIL * 40),
        histograms=dict.fromkeys(MEASURES, every),
        grids=tuple(
            replace(each, x_bounds=bounds, y_bounds=bounds, counts=((9,) * 257,) * 257)
            for each in analysis.grids
        ),
        **{name: hostile(getattr(analysis, name), EVIL * 40) * 2000 for name in LISTS},
    )
    page = render(large)
    assert len(page.encode()) < MAX_BYTES
    assert "more are not shown" in page
    Document(page)


def test_many_files_are_told_by_the_first():
    page = render(replace(nothing(), files=nothing().files * 3))
    assert "<title>vscsi: empty.pcapng and 2 more</title>" in page
