# SPDX-License-Identifier: MIT
"""How `vscsi top` looks: a screen that is drawn anew, or tables one after another."""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import click
from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from vscsi.analysis import units
from vscsi.analysis.window import Figures, Window
from vscsi.cli.output import print_table, printable

HEADS = ("disk", "/s", "MB/s", "p50", "p99", "max", "depth", "waiting", "errors")
NUMBERS = " ".join(HEADS[1:])
_HISTORY = 60
_BARS = " ▁▂▃▄▅▆▇█"
_OLD_S = 1.0
"""A command that has been waiting for longer is shown, and what is late by as much."""


def print_window(path: str, window: Window) -> None:
    """Print a window: a line in short, then a table."""
    click.echo(summary(path, window))
    rows = [cells for _, cells in table_rows(window)]
    if rows:
        print_table(HEADS, rows, right=NUMBERS)
    for line in remarks(window):
        click.echo(line)


@contextmanager
def screen(path: str, ends: str) -> Iterator[Callable[[Window], None]]:
    """Yield what draws a window on the whole terminal, which is as it was afterwards."""
    history: deque[float] = deque(maxlen=_HISTORY)
    with Live(console=Console(), screen=True, auto_refresh=False) as live:
        live.update(Text(f"{path}: the first window comes"), refresh=True)

        def show(window: Window) -> None:
            history.append(_rate(window))
            live.update(_drawn(path, window, history, ends), refresh=True)

        yield show


def summary(path: str, window: Window) -> str:
    """Return a window in one line."""
    now = datetime.fromtimestamp(window.time_ns // 10**9, UTC)
    moved = sum(disk.total.bytes_per_s for disk in window.disks)
    words = [
        f"{now:%H:%M:%S} UTC  {path}",
        f"{units.count(_rate(window))} commands/s",
        units.rate(moved),
    ]
    if window.behind_s > window.seconds + _OLD_S:
        words.append(f"{units.duration(window.behind_s * 1e6)} behind")
    if window.dropped:
        words.append(f"{window.dropped:,} messages dropped")
    return "  ".join(words)


def table_rows(window: Window) -> Iterator[tuple[bool, list[str]]]:
    """Yield whether a row is of a whole disk, and its cells."""
    for disk in window.disks:
        depth = [
            units.NOTHING if disk.outstanding_mean is None else units.figure(disk.outstanding_mean),
            units.count(disk.waiting.count),
        ]
        yield True, _cells(disk.disk, disk.total, depth)
        for each in disk.commands:
            yield False, _cells(f"  {each.name}", each, ["", ""])


def remarks(window: Window) -> Iterator[str]:
    """Yield a line on each disk that lets a command wait, and on each of the last failures."""
    for disk in window.disks:
        waiting = disk.waiting
        if waiting.oldest_s is not None and waiting.oldest_s >= _OLD_S:
            age = units.duration(waiting.oldest_s * 1e6)
            yield printable(f"{disk.disk}: {waiting.oldest} has been waiting for {age}")
    for failure in window.failures:
        when = datetime.fromtimestamp(failure.time_ns // 10**9, UTC)
        words = f"{failure.disk}: {failure.words} -> {failure.answer}"
        yield printable(f"{when:%H:%M:%S} {words}")


def _cells(name: str, figures: Figures, depth: list[str]) -> list[str]:
    latency = figures.latency_us
    times = (
        [units.NOTHING] * 3
        if latency is None
        else [units.duration(latency[key]) for key in ("p50", "p99", "max")]
    )
    bad = figures.errors + figures.unanswered
    rates = [units.count(figures.per_s), units.figure(figures.bytes_per_s / 1e6)]
    return [name, *rates, *times, *depth, units.count(bad) if bad else ""]


def _drawn(path: str, window: Window, history: deque[float], ends: str) -> Group:
    rows = list(table_rows(window))
    grid = Table(
        box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), expand=True
    )
    for column, head in enumerate(HEADS):
        if not column:  # it alone gives way
            grid.add_column(head, no_wrap=True, overflow="ellipsis", ratio=1)
            continue
        width = max(len(head), *(len(cells[column]) for _, cells in rows), 0)
        grid.add_column(head, justify="right", no_wrap=True, min_width=width)
    for whole, cells in rows:
        texts = [Text(printable(cell)) for cell in cells]
        if cells[-1]:
            texts[-1].stylize("bold red")
        grid.add_row(*texts, style="bold" if whole else "")
    title = Text(summary(path, window), style="bold yellow" if window.dropped else "bold")
    rates = Text(f"{_sparkline(history)}  {ends}", style="dim", no_wrap=True)
    notes = [
        Text(line, style="yellow", overflow="ellipsis", no_wrap=True) for line in remarks(window)
    ]
    return Group(title, rates, Text(), grid, Text(), *notes)


def _rate(window: Window) -> float:
    return sum(disk.total.per_s for disk in window.disks)


def _sparkline(history: deque[float]) -> str:
    most = max(history, default=0) or 1
    return "".join(_BARS[min(len(_BARS) - 1, int(-(-value * 8 // most)))] for value in history)
