# SPDX-License-Identifier: MIT
"""What a replay's report looks like to people."""

from collections.abc import Iterator
from typing import Any

import click

from vscsi.cli.output import print_fields, print_table, size_text


def show(result: dict[str, Any]) -> None:
    """Print what `vscsi.capture.replay.report` returns, with the names of file and path."""
    answers, lag = result["answers"], result["lag_us"]
    print_fields(f"{result['file']} over {result['path']}", list(_facts(result)))
    if lag:
        figures = ", ".join(f"{name} {_us(lag[name])}" for name in ("p50", "p99", "max"))
        print_fields("sent late by, in us", [("", figures)])
    rows = []
    for each in result["latency_us"]:
        cells = [each["name"], f"{each['count']:,}"]
        for figure in ("p50", "p99", "max"):
            for side in ("recorded", "replayed"):
                cells.append(_us(each[side][figure]) if each[side] else "-")
        rows.append(cells)
    heads = ("COMMAND", "COUNT", "P50", "NOW", "P99", "NOW", "MAX", "NOW")
    click.echo("\nlatency in us, as captured and now")
    print_table(heads, rows, right="COUNT P50 P99 MAX NOW")
    click.echo("captured: from the request to its answer on the ring; now: round trips of Python")
    if answers["first"]:
        click.echo()
        rows = [
            [str(each["serial"]), each["command"], each["kind"], each["recorded"], each["replayed"]]
            for each in answers["first"]
        ]
        print_table(("NUMBER", "COMMAND", "OTHER", "RECORDED", "NOW"), rows, right="NUMBER")
        rest = sum(answers["different"].values()) - len(rows)
        if rest:
            click.echo(f"and {rest} more")


def _facts(result: dict[str, Any]) -> Iterator[tuple[str, str]]:
    answers, data = result["answers"], result["data"]
    yield "commands", f"{result['commands']:,} in {result['elapsed_s']:.3f} s"
    yield "recorded in", f"{result['recorded_s']:.3f} s"
    if result["rate_per_s"]:
        yield "a second", f"{result['rate_per_s']:,.0f}"
    yield "most in flight", str(result["most_in_flight"])
    for why, count in result["left_out"].items():
        yield "left out", f"{count:,}: {why}"
    if result["out_of_order"]:
        yield "late", f"{result['out_of_order']:,} came too late in the capture to find their place"
    if result["sent_again"]:
        yield "sent again", f"{result['sent_again']:,} after a unit attention"
    for what, count in result["task_management"].items():
        yield what, f"{count:,}"
    if result["made_up_writes"]:
        yield "data made up", f"of {result['made_up_writes']:,} writes: a pattern by address"
    different = ", ".join(f"{count:,} {kind}" for kind, count in answers["different"].items())
    yield "answers", f"{answers['compared']:,} compared, different: {different or 'none'}"
    if data["compared_bytes"] or data["unknown_bytes"]:
        yield (
            "data read",
            f"{size_text(data['compared_bytes'])} compared, "
            f"of {size_text(data['unknown_bytes'])} nothing is known",
        )
    if result["interrupted"] or result["failure"]:
        yield "ended early", result["failure"] or "interrupted"


def _us(value: float) -> str:
    return f"{value:,.1f}"
