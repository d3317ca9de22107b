# SPDX-License-Identifier: MIT
"""The page: what stands where, what is worth a look first, and the style around it."""

from importlib import resources

from vscsi import __version__
from vscsi.analysis.report import histograms, locality, maps, over_time, tables
from vscsi.analysis.report.headline import UNIT_ATTENTION, headline, names
from vscsi.analysis.report.markup import Child, Html, join, tag
from vscsi.analysis.result import Analysis

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""Whatever a page would want from elsewhere, or run: it may not."""


def render(analysis: Analysis) -> str:
    """Return the report: one HTML document that needs nothing else, not even a network.

    Texts from files are escaped; its size is bounded whatever the analysis has.
    """
    count = analysis.total.count
    managed = [each for each in analysis.events if each.management]
    others = [each for each in analysis.events if not each.management]
    sense = "sense", "Check conditions", _if(analysis.sense, tables.sense(analysis))
    lint = "lint", "Lint of the initiator", _if(analysis.findings, tables.findings(analysis))
    bad = any(row.key != UNIT_ATTENTION for row in analysis.sense)
    wrong = any(each.severity != "note" for each in analysis.findings)
    slowest = _if(analysis.slowest, tables.moments(analysis.slowest, "took"))
    parts = [
        # What is wrong stands above what is so.
        ("stuck", "Unanswered", _if(analysis.stuck, _stuck(analysis))),
        *([sense] if bad else []),
        ("resets", "Resets and aborts", _if(managed, tables.events(managed))),
        *([lint] if wrong else []),
        ("commands", "Commands", _if(analysis.commands, tables.commands(analysis))),
        ("time", "Over time", _if(count, over_time.section(analysis))),
        ("histograms", "Histograms", _if(count, histograms.section(analysis))),
        ("latency", "What latency goes with", _panels(maps.grids(analysis))),
        ("addresses", "Where on the disk", _panels(maps.addresses(analysis))),
        ("locality", "Locality and bursts", _if(count, locality.section(analysis))),
        ("slowest", "Slowest commands", slowest),
        *([] if bad else [sense]),
        *([] if wrong else [lint]),
        ("events", "Other events", _if(others, tables.events(others, analysis.events_dropped))),
        ("origin", "Where this is from", tables.origin(analysis)),
    ]
    present = [(key, title, content) for key, title, content in parts if content]
    return document(
        f"vscsi: {names(each.name for each in analysis.files)}",
        tag("header", headline(analysis)),
        tag(
            "nav",
            (tag("a", title, href=f"#{key}") for key, title, _ in present),
            aria_label="Contents",
        ),
        tag("main", (section(key, title, content) for key, title, content in present)),
        _footer(analysis),
    )


def document(title: str, *content: Child) -> str:
    """Return a whole document."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", Html(_style())),
    )
    return f"<!doctype html>\n{tag('html', head, tag('body', content), lang='en')}\n"


def section(key: str, title: str, content: Child) -> Html:
    """Return a part of the page, with the name that links to it have."""
    return tag("section", tag("h2", title), content, id=key)


def _style() -> str:
    return resources.files("vscsi.analysis.report").joinpath("style.css").read_text()


def _stuck(analysis: Analysis) -> Child:
    rest = analysis.unanswered - len(analysis.stuck)
    more = tag("p", f"{rest:,} more were sent later.", class_="about") if rest > 0 else None
    return join((tables.moments(analysis.stuck, "waiting for"), more))


def _panels(plots: list[Html]) -> Html | None:
    return tag("div", plots, class_="panels pairs") if plots else None


def _if(rows: object, content: Child) -> Child:
    return content if rows else None


def _footer(analysis: Analysis) -> Html:
    words = f"vscsi {__version__}; {analysis.buckets} buckets; {analysis.engine}"
    return tag("footer", tag("p", words, class_="about"))
