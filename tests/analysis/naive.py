# SPDX-License-Identifier: MIT
"""The same figures by loops over rows, written from their definitions: for comparison alone."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from vscsi.capture.commands import Fate, Operation

Row = dict[str, Any]
FOREVER = float("inf")


def moves(row: Row) -> bool:
    return row["operation"] in (Operation.READ, Operation.WRITE)


def stream_of(name: str) -> Callable[[Row], object]:
    """Return what rows of one stream have in common."""
    return {
        "all": lambda row: row["disk"],
        "operation": lambda row: (row["disk"], row["operation"]),
        "kind": lambda row: (row["disk"], row["opcode"]),
    }[name]


def end(row: Row) -> float:
    if row["fate"] == Fate.OPEN:
        return FOREVER
    return row["time_ns"] + max(row["latency_ns"] or 0, 1)


def features(rows: Sequence[Row], stream: str) -> list[dict[str, int | None]]:
    """Return what each row's stream says, in the order of sending."""
    same = stream_of(stream)
    found = []
    for index, row in enumerate(rows):
        before = [each for each in rows[:index] if same(each) == same(row)]
        told: dict[str, int | None] = {
            "gap": row["time_ns"] - before[-1]["time_ns"] if before else None,
            "outstanding": sum(end(each) > row["time_ns"] for each in before),
            "seek": None,
            "closest": None,
            "run": None,
        }
        if moves(row):
            ends = [each["lba"] + each["blocks"] - 1 for each in before if moves(each)]
            steps = [row["lba"] - each for each in reversed(ends[-16:])]
            if steps:
                told["seek"], told["closest"] = steps[0], min(steps, key=abs)
            run, at = 1, row
            for each in reversed([each for each in before if moves(each)]):
                if at["lba"] != each["lba"] + each["blocks"]:
                    break
                run, at = run + 1, each
            told["run"] = run
        found.append(told)
    return found


def counts(values: Iterable[float], bounds: Sequence[float]) -> tuple[int, ...]:
    """Return how many values each bucket has."""
    found = [0] * (len(bounds) + 1)
    for value in values:
        found[next((n for n, bound in enumerate(bounds) if value <= bound), len(bounds))] += 1
    return tuple(found)


def measure(rows: Sequence[Row], name: str, stream: str) -> list[tuple[Row, float]]:
    """Return the values of one of MEASURES with the rows that have them."""
    told = features(rows, stream)
    found: list[tuple[Row, float | None]] = []
    for row, each in zip(rows, told, strict=True):
        value: float | None
        if name == "io_length_bytes":
            value = row["data_out"] + row["data_in"] if moves(row) else None
        elif name == "seek_distance_blocks":
            value = each["seek"]
        elif name == "closest_of_16_distance_blocks":
            value = each["closest"]
        elif name == "outstanding":
            value = row["outstanding"] if stream == "all" else each["outstanding"]
        elif name == "latency_us":
            value = None if row["latency_ns"] is None else row["latency_ns"] / 1000
        else:
            value = None if each["gap"] is None else each["gap"] / 1000
        found.append((row, value))
    return [(row, value) for row, value in found if value is not None]


def runs(rows: Sequence[Row], stream: str) -> list[tuple[Row, int]]:
    """Return the lengths of runs with their last rows."""
    same = stream_of(stream)
    streams = defaultdict(list)
    for row, told in zip(rows, features(rows, stream), strict=True):
        if moves(row):
            streams[same(row)].append((row, told["run"]))
    found = []
    for members in streams.values():
        for index, (row, place) in enumerate(members):
            if index + 1 == len(members) or members[index + 1][1] == 1:
                found.append((row, place))
    return found


def moved(row: Row) -> int:
    if row["fate"] != Fate.ANSWERED:
        return 0
    return max(0, row["data_out"] + row["data_in"] - max(0, row["residual"]))


def percentile(values: Sequence[float], share: float) -> float:
    return float(np.percentile(np.array(values), share * 100))


def reuse(rows: Sequence[Row], block_bytes: int, page_bytes: int) -> list[tuple[bool, int]]:
    """Return (write, distance in pages or -1) of each page access."""
    accesses: list[tuple[bool, tuple[int, int]]] = []
    for row in rows:
        if moves(row) and row["blocks"]:
            first = row["lba"] * block_bytes // page_bytes
            last = ((row["lba"] + row["blocks"]) * block_bytes - 1) // page_bytes
            write = row["operation"] == Operation.WRITE
            accesses += [(write, (row["disk"], page)) for page in range(first, last + 1)]
    found = []
    for index, (write, page) in enumerate(accesses):
        before = [at for at in range(index) if accesses[at][1] == page]
        between = {each for _, each in accesses[before[-1] + 1 : index]} if before else set()
        found.append((write, len(between) if before else -1))
    return found
