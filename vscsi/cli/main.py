# SPDX-License-Identifier: MIT
"""The `vscsi` command: finds the verb's file, and turns errors into one line and a status.

Exit status: 0 done; 1 the work failed (a target's refusal, a lost server); 2 it could not begin
(a bad command line, file or environment).
"""

import importlib
import logging
import os
import signal
import sys
from typing import NoReturn

import click

from vscsi import __version__
from vscsi.cli.output import OutputError, name_standard_output
from vscsi.wire.errors import SetupError, WireError

VERBS = {
    "serve": "serve disk images over all rings in a directory",
    "ls": "list a path's logical units",
    "inq": "show a logical unit's INQUIRY data and VPD pages",
    "cdb": "send any CDB",
    "nbd": "export a logical unit as an NBD block device",
    "hba": "give this machine's kernel a disk over any path",
    "lio": "make units of the kernel's own SCSI target",
    "bench": "one workload over several paths",
    "capture": "record what crosses the rings, show it, convert it",
    "analyze": "what a capture says: tables, histograms, a report",
    "top": "what crosses the rings, live",
    "replay": "send a capture's commands again",
    "doctor": "what this machine offers, and how to get the rest",
}
"""Verb and help line; each lives in a module of its name, as a click command of that name."""


class Verbs(click.Group):
    """Loads a verb's module when it is used, so that each starts fast."""

    def list_commands(self, _context: click.Context) -> list[str]:
        """Return the verbs."""
        return list(VERBS)

    def get_command(self, _context: click.Context, name: str) -> click.Command | None:
        """Return a verb's command."""
        if name not in VERBS:
            return None
        command = getattr(importlib.import_module(f"vscsi.cli.{name}"), name)
        if not isinstance(command, click.Command):
            raise TypeError(f"vscsi.cli.{name}.{name} is no command")
        return command

    def format_commands(self, _context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the verbs and their help lines, without loading them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))


@click.group(
    cls=Verbs,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__)
@click.option("-v", "--verbose", count=True, help="Say more on standard error (-vv: everything).")
@click.pass_context
def vscsi(context: click.Context, verbose: int) -> None:
    """SCSI over a shared-memory ring, beside blkif, on one disk.

    \b
    vscsi serve disk.img --dir run      serve an image; then, in another terminal:
    vscsi ls srp:run                    what is there
    vscsi nbd blkif:run --socket s      a block device of it for host programs

    A PATH is srp:DIR, vscsiif:DIR or blkif:DIR, where `vscsi serve` serves DIR, or call:IMAGE,
    which needs no server and no ring. `vscsi VERB --help` tells the rest.
    """
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    logging.basicConfig(level=level, format="vscsi: %(message)s", stream=sys.stderr)
    if context.invoked_subcommand is None:
        click.echo(context.get_help())
        context.exit(2)


def main() -> NoReturn:
    """Run the command line."""
    # An interrupt ends a verb at once, as SIGTERM does: an exception out of nowhere could leave a
    # lock held that closing needs. A verb that has something to finish takes the signal itself.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    name_standard_output()
    try:
        # Without click's own error output: that takes four lines. What comes back is a status
        # if something called `Context.exit`, else what the verb returned: None.
        status = vscsi.main(standalone_mode=False)
        sys.stdout.flush()
    except click.UsageError as error:
        name = error.ctx.command_path if error.ctx else "vscsi"
        fail(2, f"{error.format_message().rstrip('.')} (see `{name} --help`)", name)
    except click.ClickException as error:
        fail(2, error.format_message())
    except SetupError as error:
        fail(2, str(error))
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except BrokenPipeError:
        _forget_output()  # whoever read it has enough
        sys.exit(1)
    except OutputError as error:
        _forget_output()
        fail(1, f"cannot write {error.filename}: {error.strerror}")
    except Exception as error:
        if not isinstance(error, failures()):
            raise
        fail(1, str(error))
    sys.exit(status)


def _forget_output() -> None:
    """Have nothing more be written to standard output at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def failures() -> tuple[type[Exception], ...]:
    """Return how work fails. Their modules are loaded here: a verb may do without them."""
    from vscsi.domain.base import DomainError, StoreError
    from vscsi.transport.hba import ScsiError
    from vscsi.transport.initiator import TransportError

    return TransportError, ScsiError, WireError, DomainError, StoreError


def fail(status: int, message: str, name: str = "vscsi") -> NoReturn:
    """Say what is wrong in one line, and leave."""
    click.echo(f"{name}: {' '.join(message.split())}", err=True)
    sys.exit(status)
