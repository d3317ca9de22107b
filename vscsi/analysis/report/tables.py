# SPDX-License-Identifier: MIT
"""Tables: commands, what failed, what is stuck, what was slow, what was read."""

from collections.abc import Iterable, Sequence
from typing import TypeVar

from vscsi.analysis import units
from vscsi.analysis.report.axis import Axis, logarithmic
from vscsi.analysis.report.markup import Child, Html, join, tag
from vscsi.analysis.report.plots import WIDTH, cut, table
from vscsi.analysis.result import Analysis, CommandRow, Happening, Moment

MAX_ROWS = 50
"""Of any table."""
_MAX_EXAMPLES = 5
"""Within a row."""
_Row = TypeVar("_Row")


def commands(analysis: Analysis) -> Html:
    """Return one row a kind of command, and one for all."""
    times = [
        each
        for row in analysis.commands
        if row.latency_us is not None
        for each in (row.latency_us.min, row.latency_us.max)
    ]
    axis = logarithmic(times, units.duration, ticks=99)
    heads = (
        *("command", "latency", "count", "share", "moved"),
        *("p50", "p90", "p99", "p99.9", "max", "errors", "unanswered"),
    )

    def cells(row: CommandRow) -> tuple[Child, ...]:
        figures = row.latency_us
        times = (
            [units.NOTHING] * 5
            if figures is None
            else [
                units.duration(each)
                for each in (figures.p50, figures.p90, figures.p99, figures.p999, figures.max)
            ]
        )
        return (
            cut(row.name),
            _spread(row, axis),
            units.count(row.count),
            units.share(row.count, analysis.total.count),
            units.size(row.bytes) if row.bytes else "",
            *times,
            alarming(row.errors),
            alarming(row.unanswered),
        )

    rows = [cells(row) for row in analysis.commands[:MAX_ROWS]]
    if len(analysis.commands) > 1:
        rows.append(tuple(tag("b", cell) for cell in cells(analysis.total)))
    key = tag(
        "p",
        "The line goes from the least latency to the most, logarithmically from "
        f"{axis.ticks[0][1]} to {axis.ticks[-1][1]}; its thick part from the median to the 99th "
        "percentile.",
        class_="about spare",
    )
    every = table(heads, rows, left=2, spare=("latency", "share", "moved", "p90", "p99.9"))
    return join((every, key if times else None, more(len(analysis.commands))))


def sense(analysis: Analysis) -> Html:
    """Return CHECK CONDITIONs with the commands that they answered."""
    rows = [
        (
            cut(row.words),
            tag("code", f"{row.key:X}h {row.asc:02X}h {row.ascq:02X}h"),
            [
                tag(
                    "div",
                    f"{cause.count:,} {units.TIMES} ",
                    tag("code", cut(cause.example or cause.name)),
                )
                for cause in row.causes[:_MAX_EXAMPLES]
            ],
            units.count(row.count),
        )
        for row in analysis.sense[:MAX_ROWS]
    ]
    heads = ("sense…", "key, ASC, ASCQ", "caused by (the first of each)", "count")
    return join((table(heads, rows, left=3), more(len(analysis.sense))))


def moments(rows: Sequence[Moment], took: str) -> Html:
    """Return decoded commands; took: what their times are."""
    heads = (took, "sent", "on", "command…", "answer…", "tag")
    return join(
        (
            table(
                heads,
                (
                    (
                        units.duration(row.latency_us),
                        units.duration(row.time_s * 1e6),
                        cut(row.disk),
                        tag("code", cut(row.words), title=cut(row.cdb) or None),
                        cut(row.answer),
                        units.NOTHING if row.tag is None else tag("code", f"{row.tag:#x}"),
                    )
                    for row in rows[:MAX_ROWS]
                ),
                left=len(heads),
                spare=("sent", "on", "tag"),
            ),
            more(len(rows)),
        )
    )


def events(rows: Sequence[Happening], dropped: int = 0) -> Html:
    """Return what happened beside commands."""
    heads = ("time", "on", "what", "outcome…", "took")
    return join(
        (
            table(
                heads,
                (
                    (
                        units.duration(row.time_s * 1e6),
                        cut(row.disk or row.channel),
                        tag("code", cut(row.words)),
                        cut(row.outcome or "no answer"),
                        units.duration(row.latency_us),
                    )
                    for row in rows[:MAX_ROWS]
                ),
                left=4,
            ),
            more(len(rows) + dropped),
        )
    )


def findings(analysis: Analysis) -> Html:
    """Return what the lint found."""
    order = {"error": 0, "warning": 1}
    rows = sorted(analysis.findings, key=lambda each: order.get(each.severity, 2))
    heads = ("", "what…", "where", "count")
    return join(
        (
            table(
                heads,
                (
                    (
                        tag("span", cut(row.severity), class_=f"badge {_severity(row.severity)}"),
                        [cut(row.words), tag("div", cut(row.rule), class_="about")],
                        [
                            tag("div", tag("code", cut(each)))
                            for each in row.examples[:_MAX_EXAMPLES]
                        ],
                        units.count(row.count),
                    )
                    for row in rows[:MAX_ROWS]
                ),
                left=3,
            ),
            more(len(rows)),
        )
    )


def origin(analysis: Analysis) -> Html:
    """Return the files, disks and channels that all of it is from."""
    files = [
        (cut(row.name), cut(row.format), units.count(row.commands), alarming(row.dropped))
        for row in analysis.files[:MAX_ROWS]
    ]
    disks = [
        (
            cut(row.name),
            units.size(row.block_bytes),
            units.NOTHING
            if row.block_count is None
            else units.size(row.block_count * row.block_bytes),
            *map(units.count, (row.commands, row.reads, row.writes)),
            units.size(row.read_bytes),
            units.size(row.write_bytes),
        )
        for row in analysis.disks[:MAX_ROWS]
    ]
    channels = [
        (
            cut(row.name),
            cut(row.protocol),
            cut(", ".join(f"{key} {value}" for key, value in row.parameters.items())),
        )
        for row in analysis.channels[:MAX_ROWS]
    ]
    return join(
        (
            table(("file…", "format", "commands", "dropped"), files, left=2),
            more(len(analysis.files)),
            table(
                ("disk", "block", "size", "commands", "reads", "writes", "read", "written"), disks
            )
            if disks
            else None,
            more(len(analysis.disks)),
            table(("channel", "protocol", "parameters…"), channels, left=3) if channels else None,
            more(len(analysis.channels)),
        )
    )


def more(rows: int) -> Html | None:
    """Return what to say where a table does not have all rows."""
    if rows <= MAX_ROWS:
        return None
    return tag("p", f"{rows - MAX_ROWS:,} more are not shown.", class_="about")


def alarming(count: int) -> Child:
    """Return a count that should be 0."""
    return tag("b" if count else "span", units.count(count), class_="alarm" if count else "calm")


def listed(rows: Iterable[tuple[str, Child]]) -> Html:
    """Return names and values beside each other."""
    return tag("dl", (tag("div", tag("dt", name), tag("dd", value)) for name, value in rows))


def _severity(word: str) -> str:
    return word if word in ("error", "warning") else "note"


def _spread(row: CommandRow, axis: Axis) -> Html | None:
    figures = row.latency_us
    if figures is None:
        return None
    low, mid, high, end = (
        WIDTH * min(1.0, max(0.0, axis.place(each)))
        for each in (figures.min, figures.p50, figures.p99, figures.max)
    )
    return Html(
        f'<svg class="spread" aria-hidden="true" viewBox="0 0 {WIDTH} 10" '
        f'preserveAspectRatio="none"><path class="thin" d="M{low:.0f} 5H{end:.0f}"/>'
        f'<path class="thick" d="M{mid:.0f} 5H{max(high, mid + 12):.0f}"/></svg>'
    )
