# SPDX-License-Identifier: MIT
"""How the figures look: a table for the terminal, figures.json, and their part of a page."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from rich import box
from rich.table import Table
from rich.text import Text

from vscsi.bench.figures.catalogue import Figure
from vscsi.bench.figures.figure import Result
from vscsi.wire.errors import SetupError

BEGIN, END = "<!-- figures: written by make figures -->", "<!-- end of figures -->"
NOTHING = "-"


def cells(result: Result) -> tuple[str, str, str, str]:
    """Return value, spread, goal and whether it is met, as text."""
    if result.value is None:
        return NOTHING, NOTHING, result.goal, "no"
    spread = f"{result.low:.2f} to {result.high:.2f}"
    return f"{result.value:.2f}", spread, result.goal, "yes" if result.met else "no"


def table(results: Sequence[Result], title: str) -> Table:
    """Return the table for the terminal."""
    grid = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", show_edge=False)
    grid.add_column("figure", no_wrap=True)
    for name in ("value", "low to high", "goal"):
        grid.add_column(name, justify="right", no_wrap=True)
    grid.add_column("unit")
    grid.add_column("met")
    grid.add_column("note", overflow="fold")
    for result in results:
        value, spread, goal, met = cells(result)
        style = "green" if result.met else "red"
        grid.add_row(
            result.name, value, spread, goal, result.unit, Text(met, style=style), Text(result.note)
        )
    return grid


def write_json(results: Sequence[Result], path: Path) -> None:
    """Write figures.json."""
    rows = ",\n".join(f" {json.dumps(asdict(result))}" for result in results)
    save(path, f"[\n{rows}\n]\n")


def page(
    figures: Sequence[Figure],
    results: Sequence[Result],
    machine: Mapping[str, object],
    settings: str,
) -> str:
    """Return machine and figures in Markdown."""

    def lines() -> Iterator[str]:
        yield "| machine | |"
        yield "|---|---|"
        for key, value in machine.items():
            yield f"| {key} | {value} |"
        yield ""
        yield settings
        yield ""
        yield "| figure | what | value | low to high | goal | met |"
        yield "|---|---|--:|--:|--:|---|"
        for figure, result in zip(figures, results, strict=True):
            value, spread, goal, met = cells(result)
            unit = f" {result.unit}" if result.unit != "ratio" else ""
            yield (
                f"| `{figure.name}` | {figure.what} | {value}{unit} | {spread} | {goal} | {met} |"
            )
        yield ""
        for result in results:
            yield f"* `{result.name}`: {result.note}"

    return "\n".join(lines()) + "\n"


def rewrite(path: Path, part: str) -> None:
    """Replace the figures' part of a page; SetupError if it has none."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise _refused("read", path, error.strerror or str(error)) from error
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise _refused("rewrite", path, f"it lacks the lines {BEGIN} and {END}")
    save(path, f"{before}{begin}\n\n{part}\n{end}{after}")


def save(path: Path, text: str) -> None:
    """Write a file; SetupError if that cannot be."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise _refused("write", path, error.strerror or str(error)) from error


def _refused(tried: str, path: Path, reason: str) -> SetupError:
    return SetupError(tried, str(path), reason, "name another file")
