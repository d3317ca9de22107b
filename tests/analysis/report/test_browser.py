# SPDX-License-Identifier: MIT
"""The report in a real browser: at a desk and on a phone, light, dark and on paper."""

import pytest

from tests.analysis.report.examples import busy, hostile, nothing
from vscsi.analysis.diff import compare
from vscsi.analysis.report import render, render_diff

DESK, PHONE = 1280, 360

OUTSIDE = """[...document.querySelectorAll("svg[role=img]")].filter(each => {
  const box = each.getBoundingClientRect();
  return each.checkVisibility()
    && (box.width < 100 || box.height < 40 || box.left < 0 || box.right > innerWidth);
}).length"""
OVERLAPPING = """[...document.querySelectorAll(".x, .y")].flatMap(axis => {
  const boxes = [...axis.children].filter(each => each.checkVisibility())
    .map(each => [each.textContent, each.getBoundingClientRect()]);
  return boxes.flatMap(([one, a], at) => boxes.slice(at + 1)
    .filter(([, b]) => a.left < b.right - 1 && b.left < a.right - 1
      && a.top < b.bottom - 2 && b.top < a.bottom - 2)
    .map(([other]) => one + " and " + other));
})"""
SHOWN = 'document.querySelectorAll("{}").length'
PAPER = "getComputedStyle(document.body).backgroundColor"


@pytest.fixture(scope="module")
def documents():
    analysis = busy()
    return {
        "busy": render(analysis),
        "hostile": render(hostile(analysis)),
        "nothing": render(nothing()),
        "diff": render_diff(compare("a.pcapng", analysis, "b.pcapng", busy(50))),
    }


@pytest.mark.parametrize("name", ["busy", "hostile", "nothing", "diff"])
@pytest.mark.parametrize("width", [DESK, PHONE])
def test_the_page_fits_the_window(opened, documents, name, width):
    page = opened(documents[name], width)
    assert page.value("innerWidth") == width
    assert page.value("document.documentElement.scrollWidth") <= width
    assert page.value(OUTSIDE) == 0


@pytest.mark.parametrize("name", ["busy", "diff"])
@pytest.mark.parametrize("width", [DESK, PHONE])
def test_no_words_of_an_axis_overlap(opened, documents, name, width):
    assert opened(documents[name], width).value(OVERLAPPING) == []


VISIBLE_HEADS = """[...document.querySelectorAll("#{} th")].filter(each => {{
  const box = each.getBoundingClientRect();
  return each.checkVisibility() && box.left >= 0 && box.right <= innerWidth;
}}).map(each => each.textContent)"""


def test_on_a_phone_the_commands_have_their_figures_without_scrolling(opened, documents):
    page = opened(documents["busy"], PHONE)
    heads = page.value(VISIBLE_HEADS.format("commands"))
    assert heads[:5] == ["command", "count", "p50", "p99", "max"]
    names = page.value(
        """[...document.querySelectorAll("#commands td:first-child")].every(each =>
          each.scrollWidth <= each.clientWidth)"""
    )
    assert names


def test_the_slowest_commands_fit_a_desk(opened, documents):
    page = opened(documents["busy"].replace("blocks 512", "blocks 512 " + 3 * "words "), DESK)
    heads = ["took", "sent", "on", "command", "answer", "tag"]
    assert page.value(VISIBLE_HEADS.format("slowest")) == heads
    phone = opened(documents["busy"], PHONE)
    assert phone.value(VISIBLE_HEADS.format("slowest")) == ["took", "command", "answer"]


def test_all_plots_are_there(opened, documents):
    page = opened(documents["busy"], DESK)
    visible = '[...document.querySelectorAll("{}")].filter(each => each.checkVisibility()).length'
    assert page.value(visible.format("#time svg[role=img]")) == 5
    assert page.value(visible.format("#histograms svg[role=img]")) == 6
    assert page.value(visible.format("#latency svg[role=img]")) == 2
    assert page.value(visible.format("#addresses svg[role=img]")) == 2
    assert page.value(visible.format("#locality svg[role=img]")) == 3
    assert page.value(visible.format("#commands svg")) == 8


def test_bars_are_as_high_as_their_counts(opened, documents):
    page = opened(documents["busy"], DESK)
    heights = page.value(
        """[...document.querySelectorAll("#histograms figure:nth-child(5) .v0 g")].map(each => [
          +each.querySelector("title").textContent.match(/([\\d,]+) all/)[1].replaceAll(",", ""),
          each.querySelector(".bar.all")?.getBoundingClientRect().height ?? 0])"""
    )
    most = max(count for count, _ in heights)
    tallest = max(height for _, height in heights)
    assert tallest > 100
    for count, height in heights:
        assert height == pytest.approx(max(tallest * count / most, 1.5), abs=1.5)


def test_a_click_shows_the_histograms_of_one_class(opened, documents):
    page = opened(documents["busy"], PHONE)
    visible = '[...document.querySelectorAll(".view")].filter(each => each.checkVisibility())'
    classes = f"[...new Set({visible}.map(each => each.className))]"
    assert page.value(classes) == ["view v0"]
    page.value("document.querySelector('label[for=view3]').click()")
    assert page.value(classes) == ["view v3"]


def test_a_table_opens_and_scrolls_inside_itself(opened, documents):
    page = opened(documents["busy"], PHONE)
    page.value("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert page.value("document.documentElement.scrollWidth") <= PHONE
    assert page.value(
        """[...document.querySelectorAll(".scroll")]
          .some(each => each.scrollWidth > each.clientWidth)"""
    )


def test_light_dark_and_paper(opened, documents):
    colours = {
        scheme: opened(documents["busy"], DESK, prefers_color_scheme=scheme).value(PAPER)
        for scheme in ("light", "dark")
    }
    assert colours == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 28)"}
    page = opened(documents["busy"], DESK, prefers_color_scheme="dark")
    page.call("Emulation.setEmulatedMedia", media="print", features=[])
    assert page.value(PAPER) == "rgb(255, 255, 255)"
    assert page.value("document.querySelector('nav').checkVisibility()") is False


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_stand_out_from_the_paper(opened, documents, scheme):
    """The contrast that WCAG 2.1 asks of text: 4.5."""
    page = opened(documents["busy"], DESK, prefers_color_scheme=scheme)
    colours = page.value(
        """["body", ".about", "figcaption span", ".x", ".alarm", ".badge.warning", "th"].map(each =>
          getComputedStyle(document.querySelector(each)).color.match(/\\d+/g).map(Number))"""
    )
    paper = page.value(f"{PAPER}.match(/\\d+/g).map(Number)")
    for colour in colours:
        assert contrast(colour, paper) >= 4.5, colour


def contrast(one, other):
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour):
    parts = [each / 255 for each in colour[:3]]
    linear = [
        each / 12.92 if each <= 0.03928 else ((each + 0.055) / 1.055) ** 2.4 for each in parts
    ]
    return sum(weight * each for weight, each in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
