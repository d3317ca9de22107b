# SPDX-License-Identifier: MIT
"""What stands above all: which capture, how much, how fast; what is worth a look, worst first."""

from collections.abc import Iterable
from pathlib import PurePath

from vscsi.analysis import units
from vscsi.analysis.report.markup import Html, join, tag
from vscsi.analysis.report.plots import cut
from vscsi.analysis.result import Analysis

_SLOW_US = 1e6
"""A command that takes longer is worth a look: initiators give up after some ten of it."""
UNIT_ATTENTION = 6
"""Of sense keys the one that is no failure: something has to be known before the command."""
_MAX_ALARMS = 20


def headline(analysis: Analysis) -> Html:
    """Return the page's beginning."""
    disks = sorted(analysis.disks, key=lambda each: -each.commands)
    sizes = [each.block_bytes * each.block_count for each in disks[:1] if each.block_count]
    words = [
        names(each.name for each in disks) or "no disk",
        units.size(sizes[0]) if sizes else None,
        units.clock(analysis.start_ns),
        f"{units.duration(analysis.duration_s * 1e6)} long" if analysis.duration_s else None,
    ]
    return join(
        (
            tag("h1", names(PurePath(each.name).name for each in analysis.files) or "no file"),
            tag("p", " · ".join(filter(None, words)), class_="about"),
            _tiles(analysis),
            _worth_a_look(analysis),
        )
    )


def _tiles(analysis: Analysis) -> Html:
    total, latency = analysis.total, analysis.total.latency_us
    seconds = analysis.duration_s
    read, written = (
        sum(getattr(each, name) for each in analysis.disks)
        for name in ("read_bytes", "write_bytes")
    )
    depth = analysis.histograms.get("outstanding")
    tiles = [
        (
            "commands",
            units.count(total.count),
            f"{units.figure(total.count / seconds)} a second" if seconds else "",
        ),
        ("read", units.size(read), units.rate(read / seconds) if seconds else ""),
        ("written", units.size(written), units.rate(written / seconds) if seconds else ""),
    ]
    if latency is not None:
        most = f"p99 {units.duration(latency.p99)}, max {units.duration(latency.max)}"
        tiles.append(("median latency", units.duration(latency.p50), most))
    if depth is not None and depth.all.mean is not None:
        tiles.append(
            (
                "queue depth at arrival",
                units.figure(depth.all.mean),
                f"at most {units.count(depth.all.max)}",
            )
        )
    return tag(
        "div",
        (
            tag("div", tag("span", name), tag("b", value), tag("small", more), class_="tile")
            for name, value, more in tiles
        ),
        class_="tiles",
    )


def _worth_a_look(analysis: Analysis) -> Html:
    order = ("error", "warning", "note")
    items = sorted(_alarms(analysis), key=lambda item: order.index(item[0]))[:_MAX_ALARMS]
    if not items:
        return tag("p", "Nothing failed, and nothing waits for its answer.", class_="fine")
    return tag(
        "ul",
        (
            tag("li", tag("a", words, href=f"#{key}") if key else words, class_=kind)
            for kind, words, key in items
        ),
        class_="alarms",
    )


def _alarms(analysis: Analysis) -> Iterable[tuple[str, str, str]]:
    """Yield severity, words and the section that tells more."""
    for file in analysis.files:
        name = cut(file.name)
        if file.broken:
            yield (
                "error",
                f"{name} could not be read to its end: {cut(file.broken)}",
                "origin",
            )
        if file.skipped:
            first = cut(file.first_skipped)
            yield (
                "error",
                f"{name}: {file.skipped:,} records not understood (the first {first})",
                "origin",
            )
    if analysis.unanswered:
        yield "error", _number(analysis.unanswered, "command", "unanswered at the end"), "stuck"
    attentions = sum(each.count for each in analysis.sense if each.key == UNIT_ATTENTION)
    if (failed := analysis.total.errors - attentions) > 0:
        where = "sense" if len(analysis.sense) else "commands"
        yield "error", _number(failed, "command", "failed"), where
    if attentions:
        yield "note", _number(attentions, "unit attention"), "sense"
    if managed := sum(each.management for each in analysis.events):
        yield "error", _number(managed, "reset or abort", plural="resets and aborts"), "resets"
    if analysis.aborted:
        yield (
            "warning",
            _number(analysis.aborted, "command", "aborted"),
            "resets" if managed else "commands",
        )
    for severity in ("error", "warning"):
        for finding in analysis.findings:
            if finding.severity == severity:
                yield (
                    severity,
                    f"{finding.count:,} {units.TIMES} {cut(finding.words)}",
                    "lint",
                )
    latency = analysis.total.latency_us
    if latency is not None and latency.max >= _SLOW_US:
        yield "warning", f"a command took {units.duration(latency.max)}", "slowest"
    if analysis.lost:
        yield "warning", _number(analysis.lost, "answer", "not captured"), "commands"
    if dropped := sum(each.dropped for each in analysis.files):
        yield "warning", _number(dropped, "message", "missing from the capture"), "origin"
    for file in analysis.files:
        for note in file.notes:
            yield "note", f"{cut(file.name)}: {cut(note)}", "origin"


def _number(count: int, noun: str, rest: str = "", plural: str = "") -> str:
    return f"{count:,} {noun if count == 1 else plural or noun + 's'} {rest}".rstrip()


def names(names: Iterable[str]) -> str:
    """Return one name, or the first of several and how many there are."""
    every = list(names)
    first = cut(every[0]) if every else ""
    return first if len(every) < 2 else f"{first} and {len(every) - 1} more"
