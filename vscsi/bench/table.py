# SPDX-License-Identifier: MIT
"""A comparison as a table: a column a path, a row a figure."""

from collections.abc import Callable

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from vscsi.bench.result import Comparison, PathResult, Spread

NOTHING = "-"
HIDDEN_PARAMETERS = {"domain", "partner"}
"""They say who, not how."""


def table(comparison: Comparison) -> Group:
    """Return the table between two lines, which are not wrapped where it ends.

    Below a median are the least and the most of the rounds.
    """
    return Group(title(comparison), _grid(comparison), caption(comparison))


def title(comparison: Comparison) -> Text:
    """Return what was done in one line."""
    rounds = comparison.rounds
    turns = f"{rounds} round{'s' * (rounds != 1)} of {comparison.runtime_s / rounds:g} s a path"
    return Text(f"{comparison.workload.words}; {turns}", style="italic")


def _grid(comparison: Comparison) -> Table:
    work = comparison.workload
    grid = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    grid.add_column("", no_wrap=True)
    for path in comparison.paths:
        grid.add_column(Text(path.name), justify="right", overflow="fold")
    first = comparison.paths[0]
    rows: list[tuple[str, Callable[[PathResult], str]]] = [
        ("operations/s", lambda path: median(path.operations_per_s(), ",.0f")),
        ("  least", lambda path: least(path.operations_per_s(), ",.0f")),
        ("  most", lambda path: most(path.operations_per_s(), ",.0f")),
        ("MB/s", megabytes),
        ("ratio to the first", lambda path: median(path.ratio_to(first), ".2f")),
        ("  least", lambda path: least(path.ratio_to(first), ".2f")),
        ("  most", lambda path: most(path.ratio_to(first), ".2f")),
        *((f"latency {name} us", latency(name)) for name in ("p50", "p90", "p99", "p99.9", "max")),
        ("added latency p50 us", lambda path: of_number(added_us(path, first), "+,.1f")),
        ("frontend CPU us/cmd", lambda path: of_number(path.frontend_cpu_us, ".2f")),
        ("backend CPU us/cmd", lambda path: of_number(path.backend_cpu_us, ".2f")),
        ("events/cmd to backend", events("frontend_notifications")),
        ("events/cmd to frontend", events("backend_notifications")),
        ("staged bytes", staged),
        ("effective depth", lambda path: str(path.effective_depth)),
        ("operations", lambda path: f"{path.operations:,}"),
        ("errors", errors),
    ]
    if work.rate_per_s is not None:
        rows += [
            ("late", lambda path: of_number(path.late, ",")),
            ("unsent", lambda path: of_number(path.unsent, ",")),
        ]
    for label, cell in rows:
        grid.add_row(label, *(Text(cell(path)) for path in comparison.paths))
    names = dict.fromkeys(
        name
        for path in comparison.paths
        for name in path.parameters
        if name not in HIDDEN_PARAMETERS
    )
    if names:
        grid.add_section()
    for name in names:
        values = (path.parameters.get(name, NOTHING) for path in comparison.paths)
        grid.add_row(name.replace("_", " "), *(Text(str(value)) for value in values))
    return grid


def caption(comparison: Comparison) -> Text:
    """Return the machine in one line."""
    on = comparison.machine
    return Text(
        f"{on['cpu']}, {on['cores_usable']} of {on['cores']} cores, {on['kernel']}, "
        f"{on['python']}, load {on['load_average']}",
        style="dim italic",
    )


def of_number(value: float | None, form: str) -> str:
    """Return a figure, or that there is none."""
    return NOTHING if value is None else format(value, form)


def median(value: Spread | None, form: str) -> str:
    """Return the median of the rounds."""
    return of_number(value and value.median, form)


def least(value: Spread | None, form: str) -> str:
    """Return the least of the rounds."""
    return of_number(value and value.low, form)


def most(value: Spread | None, form: str) -> str:
    """Return the most of the rounds."""
    return of_number(value and value.high, form)


def megabytes(path: PathResult) -> str:
    """Return the median of the data rate, in 10**6 bytes a second."""
    rate = path.operations_per_s()
    return of_number(rate and rate.median * path.workload.mean_bytes / 1e6, ".1f")


def latency(name: str) -> Callable[[PathResult], str]:
    """Return what makes a cell of a percentile."""

    def cell(path: PathResult) -> str:
        figures = path.all.figures_us()
        return of_number(None if figures is None else figures[name], ",.1f")

    return cell


def added_us(path: PathResult, first: PathResult) -> float | None:
    """Return by how much a path's median latency is over the first path's, in us."""
    mine, theirs = path.all.figures_us(), first.all.figures_us()
    return None if mine is None or theirs is None else mine["p50"] - theirs["p50"]


def events(counter: str) -> Callable[[PathResult], str]:
    """Return what makes a cell of notifications a command."""
    return lambda path: of_number(path.per_command(path.total(counter)), ".3f")


def staged(path: PathResult) -> str:
    """Return the bytes that both ends copied because buffers could not be used as they were."""
    told = [path.total(f"{end}_staged_bytes") for end in ("frontend", "backend")]
    known = [each for each in told if each is not None]
    return f"{sum(known):,}" if known else NOTHING


def errors(path: PathResult) -> str:
    """Return how many commands failed, and whether the path did."""
    return f"{path.errors.total():,}" + (", then failed" if path.failure else "")
