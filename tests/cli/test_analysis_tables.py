# SPDX-License-Identifier: MIT
"""What a capture says of itself does not steer the terminal that shows it."""

import io

from rich.console import Console

from tests.analysis.made import Made, row
from vscsi.analysis.diff import compare
from vscsi.analysis.run import analyze
from vscsi.capture.commands import Channel, Disk, Event, Fate
from vscsi.cli.analysis_tables import print_analysis, print_diff
from vscsi.target.base import Function

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
