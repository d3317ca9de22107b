# SPDX-License-Identifier: MIT
"""All figures in one run: rounds in which each case has its turn."""

from collections.abc import Callable, Sequence

from vscsi.bench.figures.bed import Bed
from vscsi.bench.figures.catalogue import Figure
from vscsi.bench.figures.figure import Case, Result, UnmeasurableError, result, unmeasured

Progress = Callable[[str], None]
"""Called before a figure's turn with its name."""


def measure(
    bed: Bed, figures: Sequence[Figure], rounds: int, runtime_s: float, progress: Progress
) -> list[Result]:
    """Measure figures; one that fails has its reason for a note, and the others go on."""
    cases: dict[str, Sequence[Case]] = {}
    reasons: dict[str, str] = {}
    for figure in figures:
        progress(figure.name)
        try:
            cases[figure.name] = figure.cases(bed)
        except UnmeasurableError as error:
            reasons[figure.name] = str(error)
    for _ in range(rounds):
        for figure in figures:
            if figure.name in reasons:
                continue
            progress(figure.name)
            try:
                for case in cases[figure.name]:
                    case.measure(runtime_s)
            except UnmeasurableError as error:
                reasons[figure.name] = str(error)
    return [
        unmeasured(figure.name, figure.how, figure.goal, reasons[figure.name])
        if figure.name in reasons
        else result(figure.name, figure.how, figure.goal, cases[figure.name])
        for figure in figures
    ]
