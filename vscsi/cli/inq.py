# SPDX-License-Identifier: MIT
"""`vscsi inq`: standard INQUIRY data and VPD pages, decoded."""

import sys
from collections.abc import Iterator
from string import hexdigits

import click

import vscsi
from vscsi.cli.inquiry_words import page_fields, page_title, plain, standard_fields
from vscsi.cli.options import json_option, lun_option, path_argument, unit_path
from vscsi.cli.output import hex_dump, print_fields, print_json
from vscsi.cli.unit import NO_UNIT
from vscsi.transport.hba import Lun, ScsiError
from vscsi.transport.initiator import TransportError
from vscsi.wire import cdb as cdbs
from vscsi.wire.errors import WireError
from vscsi.wire.inquiry import VpdPage, parse_standard, parse_vpd
from vscsi.wire.sense import SenseKey

_STANDARD_BYTES = 255


def _page_code(_context: click.Context, _param: click.Parameter, value: str | None) -> int | None:
    """Return a page code that is given in hexadecimal, with or without 0x or h."""
    if value is None:
        return None
    digits = value.lower().removeprefix("0x").removesuffix("h")
    if not 1 <= len(digits) <= 2 or not set(digits) <= set(hexdigits):
        raise click.BadParameter(f"{value!r} is no page code: 00 to ff")
    return int(digits, 16)


@click.command(short_help="show a logical unit's INQUIRY data and VPD pages")
@path_argument
@lun_option
@click.option(
    "--page", metavar="HEX", callback=_page_code, help="Only this VPD page, as in 83 or 0xb0."
)
@click.option(
    "-r", "--raw", is_flag=True, help="Write the bytes (of --page, or the standard INQUIRY data)."
)
@json_option
def inq(path: str, lun: int, page: int | None, raw: bool, as_json: bool) -> None:
    """Show what a logical unit says of itself: INQUIRY data, and each VPD page that it lists.

    \b
    vscsi inq srp:run
    vscsi inq srp:run --lun 1 --page b0
    vscsi inq srp:run --page 83 --raw | xxd
    """
    if raw and as_json:
        raise click.UsageError("--raw and --json exclude each other")
    path, lun = unit_path(path, lun)
    with vscsi.connect(path) as hba:
        unit = hba.lun(lun)
        standard = _standard(unit, path, lun)
        if page is not None:
            pages = [_page(unit, page)]
        else:
            pages = [] if raw else list(_listed_pages(unit))
    if raw:
        sys.stdout.buffer.write(pages[0] if pages else standard)
        sys.stdout.buffer.flush()
    elif as_json:
        print_json(_as_json(None if page is not None else standard, pages))
    else:
        if page is None:
            print_fields("Standard INQUIRY data", standard_fields(parse_standard(standard)))
        for data in pages:
            _print_page(data)


def _standard(unit: Lun, path: str, number: int) -> bytes:
    """Return standard INQUIRY data; TransportError if there is no such logical unit."""
    cdb = cdbs.build("INQUIRY", allocation_length=_STANDARD_BYTES)
    data = unit.command(cdb, data_in=_STANDARD_BYTES)
    if parse_standard(data).peripheral_qualifier >= NO_UNIT:
        raise TransportError(f"{path} has no LUN {number} (`vscsi ls {path}` lists them)")
    return data


def _page(unit: Lun, page: int) -> bytes:
    """Return a VPD page that is one; a refusal of its code is told as such."""
    try:
        data = unit.vpd(page)
    except ScsiError as error:
        sense = error.reply.decoded_sense
        if sense is not None and sense.key == SenseKey.ILLEGAL_REQUEST:
            raise TransportError(f"there is no VPD page {page:02X}h: {error}") from error
        raise
    code = parse_vpd(data).page_code
    if code != page:
        raise WireError(f"asked for VPD page {page:02X}h, got {code:02X}h")
    return data


def _listed_pages(unit: Lun) -> Iterator[bytes]:
    listing = _page(unit, VpdPage.SUPPORTED_PAGES)
    yield listing
    for code in parse_vpd(listing).page_codes:
        if code != VpdPage.SUPPORTED_PAGES:
            yield _page(unit, code)


def _print_page(data: bytes) -> None:
    page = parse_vpd(data)
    click.echo()
    fields = page_fields(page)
    print_fields(page_title(page.page_code), fields)
    if not fields:
        for line in hex_dump(data):
            click.echo(f"  {line}")


def _as_json(standard: bytes | None, pages: list[bytes]) -> dict[str, object]:
    document: dict[str, object] = {}
    if standard is not None:
        document["standard"] = {"fields": plain(parse_standard(standard)), "bytes": standard.hex()}
    document["pages"] = [
        {
            "page": f"{data[1]:02x}",
            "title": page_title(data[1]),
            "fields": plain(parse_vpd(data)),
            "bytes": data.hex(),
        }
        for data in pages
    ]
    return document
