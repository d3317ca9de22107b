# SPDX-License-Identifier: MIT
"""`vscsi cdb`: any command, as bytes, and what came of it."""

import sys
from collections.abc import Sequence
from typing import BinaryIO

import click

import vscsi
from vscsi.cli.options import lun_option, path_argument, unit_path
from vscsi.cli.output import hex_dump
from vscsi.target.base import Status
from vscsi.transport.hba import COMMAND_TIMEOUT_S, UNIT_ATTENTION_RETRIES, Hba, Reply
from vscsi.wire import cdb as cdbs
from vscsi.wire.sense import SenseKey

_MIN_BYTES, _MAX_BYTES = 6, 260
"""Of a CDB (SPC-5 4.2)."""
_MAX_DATA_BYTES = 32 << 20


@click.command(short_help="send any CDB")
@path_argument
@click.argument("words", metavar="HEX...", nargs=-1, required=True)
@lun_option
@click.option(
    "--in",
    "data_in",
    metavar="N",
    type=click.IntRange(0, _MAX_DATA_BYTES),
    default=0,
    help="Give the command a data-in buffer of N bytes.",
)
@click.option(
    "--out", "data_out", metavar="FILE", type=click.File("rb"), help="Send FILE as data-out."
)
@click.option(
    "-r",
    "--raw",
    is_flag=True,
    help="Write data-in itself to standard output; all else goes to standard error.",
)
@click.option(
    "--keep-attention",
    is_flag=True,
    help="Let the command report a pending unit attention, as the first one over a new path does.",
)
@click.option(
    "--timeout",
    "timeout_s",
    metavar="SECONDS",
    type=click.FloatRange(0.001, 86400),
    default=COMMAND_TIMEOUT_S,
    show_default=True,
    help="Abort the command after that.",
)
def cdb(
    path: str,
    words: Sequence[str],
    lun: int,
    data_in: int,
    data_out: BinaryIO | None,
    raw: bool,
    keep_attention: bool,
    timeout_s: float,
) -> None:
    """Send the CDB that HEX is and show status, sense, residual and data-in.

    HEX is 6 to 260 bytes; spaces between them and 0x in front are ignored. A FILE of "-" is
    standard input. Exit status: 0 for GOOD, 1 for any other, 2 if nothing could be sent.

    \b
    vscsi cdb srp:run 12 00 00 00 60 00 --in 96
    vscsi cdb srp:run 2800 00000000 00 0001 00 --in 512 -r >block
    vscsi cdb srp:run 0x2a000000000000000100 --out block
    """
    command = _parse(words)
    if data_in and data_out is not None:
        raise click.UsageError("--in and --out exclude each other")
    sent = _read(data_out) if data_out is not None else b""
    path, lun = unit_path(path, lun)
    with vscsi.connect(path) as hba:
        if not keep_attention:
            _clear_attentions(hba, lun)
        reply = hba.command(
            hba.lun(lun), command, data_out=sent, data_in=data_in, timeout_s=timeout_s
        )
    _show(command, reply, to_error=raw)
    if raw:
        sys.stdout.buffer.write(reply.data)
        sys.stdout.buffer.flush()
    else:
        for line in hex_dump(reply.data):
            click.echo(line)
    click.get_current_context().exit(0 if reply.status == Status.GOOD else 1)


def _parse(words: Sequence[str]) -> bytes:
    """Return the bytes of a CDB; UsageError if the words are none."""
    digits = "".join(word.lower().removeprefix("0x") for text in words for word in text.split())
    try:
        command = bytes.fromhex(digits)
    except ValueError:
        raise click.UsageError(f"{' '.join(words)!r} is no hexadecimal CDB") from None
    if not _MIN_BYTES <= len(command) <= _MAX_BYTES:
        raise click.UsageError(f"a CDB has {_MIN_BYTES} to {_MAX_BYTES} bytes, not {len(command)}")
    return command


def _read(file: BinaryIO) -> bytes:
    try:
        data = file.read(_MAX_DATA_BYTES + 1)
    except OSError as error:
        raise click.FileError(file.name, error.strerror) from error
    if len(data) > _MAX_DATA_BYTES:
        raise click.UsageError(f"{file.name} has more than {_MAX_DATA_BYTES} bytes")
    return data


def _clear_attentions(hba: Hba, number: int) -> None:
    """Consume pending unit attentions with TEST UNIT READY, as hosts do when they find a unit."""
    for _ in range(UNIT_ATTENTION_RETRIES):
        sense = hba.command(hba.lun(number), cdbs.build("TEST UNIT READY")).decoded_sense
        if sense is None or sense.key != SenseKey.UNIT_ATTENTION:
            return


def _show(command: bytes, reply: Reply, *, to_error: bool) -> None:
    click.echo(f"command   {cdbs.describe(command)}", err=to_error)
    click.echo(f"status    {reply.status.name.replace('_', ' ')}", err=to_error)
    if reply.sense:
        sense = reply.decoded_sense
        text = sense.describe() if sense else "of an unknown format"
        click.echo(f"sense     {text}", err=to_error)
        click.echo(f"          {reply.sense.hex(' ')}", err=to_error)
    if reply.residual >= 0:
        residual = f"{reply.residual} bytes of the buffer were not used"
    else:
        residual = f"{-reply.residual} bytes did not fit into the buffer"
    click.echo(f"residual  {residual if reply.residual else 'none'}", err=to_error)
