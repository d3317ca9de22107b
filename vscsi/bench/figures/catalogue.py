# SPDX-License-Identifier: MIT
"""Which figures there are, and what each compares. A table: one row a figure.

4 KiB reads at random on a file in a tmpfs, at depth 32, unless it says otherwise.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from vscsi.bench.figures.bed import Bed, Server, Work
from vscsi.bench.figures.figure import (
    EXTRA_CPU,
    EXTRA_TIME,
    RATES,
    TIMES,
    Case,
    Comparison,
    Goal,
    at_least,
    at_most,
)

VSCSIIF_DEPTH = 16
POLL_NS = 1_000_000
"""For figures in which nobody sleeps: longer than any answer takes."""
ONE = Work(depth=1)
DAX = Server("mmap")
NULL = Server("null")
POLLING = Server(poll_ns=POLL_NS)
ASLEEP = Server(poll_ns=0)
WRITABLE = Server(writable=True)


@dataclass(frozen=True, slots=True)
class Figure:
    """A named figure: what it says, its goal, how its cases come about."""

    name: str
    what: str
    goal: Goal
    how: Comparison
    cases: Callable[[Bed], Sequence[Case]]
    """Raises UnmeasurableError if there are none."""


def _against_blkif(bed: Bed) -> list[Case]:
    works = [
        Work(block_bytes, depth, write)
        for block_bytes in (4096, 65536)
        for write in (False, True)
        for depth in (1, 8, 32)
    ]
    return [
        Case(
            f"{'write' if work.write else 'read'} {work.block_bytes >> 10}k depth {work.depth}",
            bed.path("srp", work, WRITABLE),
            bed.path("blkif", work, WRITABLE),
        )
        for work in works
    ]


def _sequential(bed: Bed) -> list[Case]:
    work = Work(65536, 8, at_random=False)
    return [Case("", bed.path("srp", work), bed.limit("preadv-sequential", work))]


def _vscsiif(bed: Bed) -> list[Case]:
    work = Work(depth=VSCSIIF_DEPTH)
    return [Case("", bed.path("vscsiif", work), bed.path("blkif", work))]


FIGURES = (
    Figure(
        "srp_read4k_qd32_vs_preadv",
        "SRP against a bare preadv loop by one thread",
        at_least(0.90),
        RATES,
        lambda bed: [Case("", bed.path("srp"), bed.limit("preadv"))],
    ),
    Figure(
        "srp_read4k_qd32_vs_memcpy",
        "the same, mapped, against a bare memcpy loop from the mapped file",
        at_least(0.85),
        RATES,
        lambda bed: [Case("", bed.path("srp", server=DAX), bed.limit("memcpy"))],
    ),
    Figure(
        "srp_null_qd32_vs_ring",
        "SRP on a null store against a bare exchange of 64-byte slots",
        at_least(0.15),
        RATES,
        lambda bed: [
            Case("", bed.path("srp", server=NULL), bed.limit("ring"))
        ],
    ),
    Figure("srp_vs_blkif", "SRP against blkif, the worst case", at_least(0.97), RATES,
           _against_blkif),
    Figure("vscsiif_vs_blkif_16", "vscsiif against blkif at vscsiif's 16 slots", at_least(0.97),
           RATES, _vscsiif),
    Figure(
        "srp_read4k_qd1_poll_extra_us",
        "round trip beyond the preadv itself, depth 1, both polling",
        at_most(0.4),
        EXTRA_TIME,
        lambda bed: [
            Case("", bed.path("srp", ONE, POLLING, poll_ns=POLL_NS), bed.limit("preadv", ONE))
        ],
    ),
    Figure(
        "srp_read4k_qd1_sleep_vs_eventfd",
        "round trip against a bare eventfd ping-pong around preadv, depth 1, both asleep",
        at_most(1.15),
        TIMES,
        lambda bed: [Case("", bed.path("srp", ONE, ASLEEP, poll_ns=0), bed.limit("eventfd", ONE))],
    ),
    Figure(
        "srp_read64k_qd8_vs_preadv",
        "64 KiB, sequential, depth 8, against preadv",
        at_least(0.95),
        RATES,
        _sequential,
    ),
    Figure(
        "srp_read4k_qd32_vs_qsd",
        "SRP against QEMU's storage daemon over NBD",
        at_least(8),
        RATES,
        lambda bed: [Case("", bed.path("srp"), bed.storage_daemon())],
    ),
    Figure(
        "capture_histograms",
        "rate with histograms against without",
        at_least(0.98),
        RATES,
        lambda bed: [
            Case("", bed.path("srp"), bed.path("srp", server=replace(Server(), histograms=False)))
        ],
    ),
    Figure(
        "capture_full",
        "rate with full header capture against without, whatever the capture lost",
        at_least(0.90),
        RATES,
        lambda bed: [
            Case("", bed.path("srp", server=replace(Server(), capture=True)), bed.path("srp"))
        ],
    ),
    Figure(
        "backend_cpu_extra_us",
        "the backend's CPU time of a read beyond preadv",
        at_most(0.15),
        EXTRA_CPU,
        lambda bed: [Case("", bed.path("srp"), bed.limit("preadv"))],
    ),
)  # fmt: skip
