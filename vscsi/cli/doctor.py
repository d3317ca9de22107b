# SPDX-License-Identifier: MIT
"""`vscsi doctor`: what this machine offers, and the command that gets what it lacks."""

from collections.abc import Sequence

import click

from vscsi.cli.doctor_checks import CHECKS, Finding, examine
from vscsi.cli.options import json_option
from vscsi.cli.output import print_fields, print_json, print_table


@click.command(short_help="what this machine offers, and how to get the rest")
@click.option(
    "--need",
    "needed",
    metavar="NAME",
    multiple=True,
    type=click.Choice([check.name for check in CHECKS]),
    help="End with status 1 if this is missing; may be given several times.",
)
@json_option
def doctor(needed: Sequence[str], as_json: bool) -> None:
    """Look at what this machine offers, and show the command that would fix what is missing.

    Nothing is loaded, installed or changed. What is for the core is enough for serving and using
    disks between processes; the other groups are for what their heading says. Exit status 0,
    unless something that --need names is missing.

    \b
    vscsi doctor
    vscsi doctor --need nbdkit --need nbdkit-python && vscsi nbd srp:run --socket nbd.sock
    """
    findings = examine(CHECKS)
    if as_json:
        print_json([finding.as_json() for finding in findings])
    else:
        print_table(("for", "what", "state", "found"), [_row(finding) for finding in findings])
        fixes = [(finding.check.name, finding.fix) for finding in findings if not finding.ok]
        if fixes:
            click.echo()
            print_fields("To get what is missing", fixes)
    missing = [each.check.name for each in findings if not each.ok and each.check.name in needed]
    if missing:
        click.echo(f"vscsi doctor: missing: {', '.join(missing)}", err=True)
        click.get_current_context().exit(1)


def _row(finding: Finding) -> list[str]:
    check = finding.check
    return [check.group, check.name, finding.state, finding.detail]
