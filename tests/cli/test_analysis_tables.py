# SPDX-License-Identifier: MIT
"""An analysis in a terminal: nothing in it steers that, and it fits however narrow that is."""

import io
import re

import pytest
from rich.console import Console

from tests.analysis.made import Made, row
from vscsi.analysis.diff import compare
from vscsi.analysis.run import analyze
from vscsi.capture.commands import Channel, Disk, Event, Fate
from vscsi.cli.analysis_tables import print_analysis, print_diff
from vscsi.target.base import Function
from vscsi.wire.cdb import build

EVIL = "\x1b]0;owned\x07[red]name[/red]\r\n"


def test_names_and_words_are_shown_as_text() -> None:
    source = Made(
        [row(0), row(1, fate=int(Fate.OPEN), latency_ns=None), row(2, disk=1)],
        disks=[Disk(EVIL), Disk("disk 1")],
        channels=[Channel(EVIL, "srp")],
        events=[Event(1, 0, EVIL, EVIL, Function.ABORT_TASK, 0)],
    )
    analysis = analyze([(EVIL, source)])
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=200)
    print_analysis(console, analysis)
    print_diff(console, compare(EVIL, analysis, EVIL, analysis))
    text = output.getvalue()
    assert "[red]name[/red]" in text
    assert "\x1b]" not in text
    assert "\x07" not in text
    assert "\r" not in text


LONG = "srp-1-0 lun 0 of a machine with a name that is long"


def shown(width: int) -> str:
    """Return what is shown of commands with long names and large numbers, not all went well."""
    rows = [
        row(n, time_ns=n * 10**9, latency_ns=123_456_000, disk=n % 2, lba=10**9 + n * 5_000_007)
        for n in range(40)
    ]
    rows.append(row(40, cdb=build("REPORT SUPPORTED OPERATION CODES"), opcode=0xA3, operation=0))
    rows[-1] |= {"service_action": 0x0C, "lba": None, "blocks": None, "latency_ns": 9_876_543_210}
    rows.append(row(41, fate=int(Fate.OPEN), latency_ns=None, time_ns=41 * 10**9))
    rows.append(row(42, status=2, sense_key=6, asc=0x29, ascq=0, time_ns=42 * 10**9))
    events = [Event(1, 0, "LOGICAL UNIT RESET", "FUNCTION COMPLETE", Function.ABORT_TASK, 0)]
    source = Made(rows, disks=[Disk(LONG), Disk("disk 1", block_count=10)], events=events)
    output = io.StringIO()
    print_analysis(Console(file=output, width=width), analyze([("f", source)]))
    return output.getvalue()


@pytest.mark.parametrize("width", [60, 80, 120, 160])
def test_no_number_is_cut_however_narrow_the_terminal(width: int) -> None:
    text = shown(width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    table = text[text.index("\ncommand") :].split("\n\n")[0]
    name = re.search(r"REPORT.*9\.88 s", table)
    assert name is not None
    assert "123 ms" in table
    # Bounds and counts of a histogram, and the moments of single commands.
    for words in (r"≤ 5,000 ", r"> 500,000 ", r"9\.88 s +40\.000000|9\.88 s +0\.000040"):
        assert re.search(words, text)
    heads = table.split("\n")[1].split()
    assert {"command", "count", "errors", "unanswered", "p99", "max"} <= set(heads)
    assert ("p99.9" in heads) is (width >= 120)


def test_what_is_wrong_comes_before_what_it_is_like() -> None:
    text = shown(120)
    heads = ["\ncommand", "sense", "Unanswered (1)", "Resets", "lint", "\ndisk", "I/O length"]
    heads += ["dispersion", "Slowest (10 of 42)"]
    places = [text.index(head) for head in heads]
    assert places == sorted(places)
    assert text.count("how uneven") == 1


def test_a_column_of_zeros_goes_first() -> None:
    output = io.StringIO()
    rows = [row(n, latency_ns=123_456) for n in range(3)]
    print_analysis(Console(file=output, width=90), analyze([("f", Made(rows))]))
    heads = next(line for line in output.getvalue().splitlines() if line.startswith("command"))
    assert "unanswered" not in heads
    assert "p99" in heads
