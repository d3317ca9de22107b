# SPDX-License-Identifier: MIT
"""`vscsi serve`: images and units of LIO, over all three rings, in one directory."""

import signal
from collections.abc import Sequence
from contextlib import ExitStack
from io import FileIO
from pathlib import Path

import click

from tgt_glue.backing import Backing
from vscsi.capture.live import LiveCaptures
from vscsi.capture.writer import CaptureWriter
from vscsi.cli.lio_luns import LioLuns
from vscsi.cli.lio_units import NewUnit, make
from vscsi.cli.metrics_option import Address, Endpoint, metrics_served
from vscsi.cli.options import Cpus, json_option
from vscsi.cli.served import APPLICATION, Served, announce, close, open_image, read_sizes
from vscsi.transport.backend import POLL_NS
from vscsi.transport.export import Export
from vscsi.transport.queues import MAX_QUEUES
from vscsi.wire.blkif import LAYOUTS, NATIVE
from vscsi.wire.errors import SetupError

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_MAX_WORKERS = 256
_MAX_POLL_US = 1_000_000


@click.command(short_help="serve disk images over all rings in a directory")
@click.argument("images", metavar="IMAGE...", nargs=-1)
@click.option(
    "--lio",
    "names",
    metavar="NAME",
    multiple=True,
    help="Serve a unit that `vscsi lio create` made, or all that fit a pattern ('vm1-*');"
    " may be given several times.",
)
@click.option(
    "--lio-new",
    "new_units",
    type=NewUnit(),
    multiple=True,
    help="Make a unit of LIO, serve it, and remove it at the end; may be given several times.",
)
@click.option(
    "--dir",
    "directory",
    metavar="RUNDIR",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Directory to serve in; made if it isn't there. Its socket is removed at the end.",
)
@click.option(
    "--block-size",
    type=click.Choice(["512", "4096"]),
    default="512",
    show_default=True,
    help="Bytes of a logical block, for all images.",
)
@click.option("--read-only", is_flag=True, help="Let nothing be written to any image.")
@click.option(
    "--direct",
    is_flag=True,
    help="Open image files with O_DIRECT. Units of LIO: direct I/O, if sg's allow_dio has it.",
)
@click.option(
    "--workers",
    metavar="N",
    type=click.IntRange(0, _MAX_WORKERS),
    default=0,
    help="Threads that execute commands; 0 (the default): each ring's own thread does.",
)
@click.option(
    "--poll-us",
    metavar="US",
    type=click.IntRange(0, _MAX_POLL_US),
    default=POLL_NS // 1000,
    show_default=True,
    help="How long a ring that was busy is watched before its thread sleeps; 0: not at all.",
)
@click.option(
    "--queues",
    metavar="N",
    type=click.IntRange(1, MAX_QUEUES),
    default=1,
    show_default=True,
    help="Rings that a frontend of SRP or blkif may use for one device, each with a thread.",
)
@click.option(
    "--cpus",
    metavar="LIST",
    type=Cpus(),
    default=(),
    help="CPUs that those threads run on, as in 0,2-3: a device's first queue on the first.",
)
@click.option(
    "--histograms/--no-histograms",
    default=True,
    show_default=True,
    help="Count latencies and sizes of what is executed in C.",
)
@click.option(
    "--blkif-layout",
    metavar="LAYOUT",
    type=click.Choice(list(LAYOUTS)),
    default=NATIVE.protocol,
    show_default=True,
    help=f"What to take a blkif frontend for that publishes no protocol: {', '.join(LAYOUTS)}.",
)
@click.option(
    "--capture",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Record every message of every ring in a pcapng file, which is overwritten.",
)
@click.option(
    "--metrics",
    type=Endpoint(),
    help="Answer scrapes of http://ADDRESS:PORT/metrics (OpenMetrics); without ADDRESS, on"
    " 127.0.0.1; PORT 0: any that is free. Whoever reaches it may read it.",
)
@click.option(
    "--ready-fd", metavar="N", type=click.IntRange(3), help="Write a line to descriptor N if ready."
)
@json_option
def serve(
    images: Sequence[str],
    names: Sequence[str],
    new_units: Sequence[tuple[str, Backing]],
    directory: Path,
    block_size: str,
    read_only: bool,
    direct: bool,
    workers: int,
    poll_us: int,
    queues: int,
    cpus: Sequence[int],
    histograms: bool,
    blkif_layout: str,
    capture: Path | None,
    metrics: Address | None,
    ready_fd: int | None,
    as_json: bool,
) -> None:
    """Serve each IMAGE as a logical unit (LUN 0, 1, ...) over SRP, vscsiif and blkif.

    Units of LIO, the kernel's own target, come after the images: those of --lio, then of --lio-new,
    which are called after their file, or ramdisk-SIZE. blkif goes to the same unit's file, or to
    its block device (`modprobe sd_mod`); without one there is no vbd.

    IMAGE is a raw image file, a block device, mmap:PATH (a file on tmpfs or DAX, mapped),
    memory:SIZE (lost at the end) or null:SIZE (reads as zeros, forgets writes); SIZE takes K, M, G
    or T. blkif has one virtual disk an image.

    Ready when the last line, "ready: serving RUNDIR", is there (with --json: the only line), or
    the line on --ready-fd. SIGINT or SIGTERM: close all channels, flush, end with status 0.
    SIGHUP: read the images' sizes again; serve what units of LIO have come that --lio names, and
    no more those that have gone; and tell every guest. A unit keeps its LUN, also if it comes back.

    \b
    vscsi serve disk.img --dir run
    vscsi serve --block-size 4096 --capture all.pcapng a.img memory:1G --dir run
    vscsi serve --lio disk0 --lio-new ramdisk:64M --dir run
    """
    _check_asked(images, names, new_units, read_only=read_only)
    if metrics is not None and not histograms:
        raise click.UsageError("--metrics shows what --no-histograms does not count")
    # Blocked before there are threads, so that only `sigwait` below gets them.
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    with ExitStack() as files, ExitStack() as service:
        # Before anything else is opened, and could be what that number stands for.
        ready = files.enter_context(_open_ready(ready_fd)) if ready_fd is not None else None
        for name, backing in new_units:
            make(files, name, backing)
        units: dict[int, Served] = {}
        files.callback(close, units)
        for number, image in enumerate(images):
            units[number] = open_image(
                image, block_size=int(block_size), readonly=read_only, direct=direct
            )
        luns = LioLuns([*names, *(name for name, _ in new_units)], len(images), direct=direct)
        luns.open(units)
        export = Export(
            directory,
            {number: each.unit for number, each in units.items()},
            vbds={number: each.disk for number, each in units.items() if each.disk is not None},
            workers=workers,
            blkif_layout=LAYOUTS[blkif_layout],
            poll_ns=poll_us * 1000,
            histograms=histograms,
            queues=queues,
            cpus=cpus,
        )
        live = LiveCaptures(export, APPLICATION)
        service.callback(live.close)
        service.callback(export.stop)
        url = service.enter_context(metrics_served(metrics, export, units))
        export.start()
        if capture is not None:  # it is overwritten, so only now that nobody else serves here
            writer = _open_capture(capture, images, export)
            files.callback(_close_capture, writer, capture)
            files.callback(export.tap.add(writer))
        announce(directory, units, capture, url, as_json=as_json)
        if ready is not None:
            _tell_ready(ready, directory)
        while signal.sigwait(_SIGNALS) == signal.SIGHUP:
            luns.follow(export, units)
            read_sizes(units)


def _check_asked(
    images: Sequence[str],
    names: Sequence[str],
    new_units: Sequence[tuple[str, Backing]],
    *,
    read_only: bool,
) -> None:
    """Refuse command lines that name nothing, something twice, or what cannot be."""
    lio_names = [*names, *(name for name, _ in new_units)]
    if not images and not lio_names:
        raise click.UsageError("Missing argument 'IMAGE...', or --lio NAME")
    twice = next((name for name in lio_names if lio_names.count(name) > 1), None)
    if twice is not None:
        raise click.UsageError(f"unit {twice} is named twice")
    if read_only and lio_names:
        raise click.UsageError("--read-only goes with IMAGEs alone, not with units of LIO")


def _open_capture(path: Path, images: Sequence[str], export: Export) -> CaptureWriter:
    try:
        if any(Path(image).exists() and path.exists() and path.samefile(image) for image in images):
            raise SetupError("capture to", str(path), "it is a served image", "name another file")
        units = export.tap.units
        return CaptureWriter(path.open("wb", buffering=0), APPLICATION, units=units)
    except OSError as error:
        raise SetupError(
            "capture to", str(path), error.strerror or str(error), "name another file"
        ) from error


def _close_capture(writer: CaptureWriter, path: Path) -> None:
    writer.close()
    if writer.error is not None:
        click.echo(f"vscsi serve: {path} is not complete: {writer.error.strerror}", err=True)
    elif writer.dropped:
        click.echo(f"vscsi serve: {path} lacks {writer.dropped} messages", err=True)


def _open_ready(descriptor: int) -> FileIO:
    try:
        return FileIO(descriptor, "w")
    except OSError as error:
        raise _bad_ready(error) from error


def _tell_ready(ready: FileIO, directory: Path) -> None:
    try:
        ready.write(f"ready: serving {directory}\n".encode())
        ready.close()
    except OSError as error:
        raise _bad_ready(error) from error


def _bad_ready(error: OSError) -> SetupError:
    reason = error.strerror or str(error)
    return SetupError("write to", "--ready-fd", reason, "pass an open descriptor: 3>ready")
