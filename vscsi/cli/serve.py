# SPDX-License-Identifier: MIT
"""`vscsi serve`: disk images as logical units, over all three rings, in one directory."""

import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from io import FileIO
from pathlib import Path

import click

from vscsi import __version__
from vscsi.capture.live import LiveCaptures
from vscsi.capture.writer import CaptureWriter
from vscsi.cli.options import json_option
from vscsi.cli.output import print_json, size_text
from vscsi.target.disk import Disk
from vscsi.target.stores.base import Store
from vscsi.target.stores.file import FileStore
from vscsi.target.stores.open import open_store
from vscsi.transport.export import Export
from vscsi.wire.blkif import LAYOUTS, NATIVE
from vscsi.wire.errors import SetupError

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_MAX_WORKERS = 256
_APPLICATION = f"vscsi {__version__}"


@click.command(short_help="serve disk images over all rings in a directory")
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True)
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
@click.option("--direct", is_flag=True, help="Open image files with O_DIRECT.")
@click.option(
    "--workers",
    metavar="N",
    type=click.IntRange(0, _MAX_WORKERS),
    default=0,
    help="Threads that execute commands; 0 (the default): each ring's own thread does.",
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
    "--ready-fd", metavar="N", type=click.IntRange(3), help="Write a line to descriptor N if ready."
)
@json_option
def serve(
    images: Sequence[str],
    directory: Path,
    block_size: str,
    read_only: bool,
    direct: bool,
    workers: int,
    blkif_layout: str,
    capture: Path | None,
    ready_fd: int | None,
    as_json: bool,
) -> None:
    """Serve each IMAGE as a logical unit (LUN 0, 1, ...) over SRP, vscsiif and blkif.

    IMAGE is a raw image file, a block device, memory:SIZE (lost at the end) or null:SIZE (reads
    as zeros, forgets writes); SIZE takes K, M, G or T. blkif has one virtual disk an image.

    Ready when the last line, "ready: serving RUNDIR", is there (with --json: the only line), or
    the line on --ready-fd. SIGINT or SIGTERM: close all channels, flush, end with status 0.
    SIGHUP: read the images' sizes again, and tell every guest.

    \b
    vscsi serve disk.img --dir run
    vscsi serve --block-size 4096 --capture all.pcapng a.img memory:1G --dir run
    """
    # Blocked before there are threads, so that only `sigwait` below gets them.
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    with ExitStack() as files, ExitStack() as service:
        # Before anything else is opened, and could be what that number stands for.
        ready = files.enter_context(_open_ready(ready_fd)) if ready_fd is not None else None
        disks: dict[int, Disk] = {}
        for number, image in enumerate(images):
            store = open_store(image, readonly=read_only, direct=direct)
            files.callback(store.close)
            identity = os.path.realpath(image) if isinstance(store, FileStore) else None
            disks[number] = Disk(store, block_size=int(block_size), identity=identity)
        files.callback(_flush, disks, images)
        export = Export(directory, disks, workers=workers, blkif_layout=LAYOUTS[blkif_layout])
        live = LiveCaptures(export, _APPLICATION)
        service.callback(live.close)
        service.callback(export.stop)
        export.start()
        if capture is not None:  # it is overwritten, so only now that nobody else serves here
            writer = _open_capture(capture, images)
            files.callback(_close_capture, writer, capture)
            export.tap.add(writer)
        _announce(directory, images, disks, capture, as_json)
        if ready is not None:
            _tell_ready(ready, directory)
        while signal.sigwait(_SIGNALS) == signal.SIGHUP:
            _read_sizes(disks, images)


def _open_capture(path: Path, images: Sequence[str]) -> CaptureWriter:
    try:
        if any(Path(image).exists() and path.exists() and path.samefile(image) for image in images):
            raise SetupError("capture to", str(path), "it is a served image", "name another file")
        return CaptureWriter(path.open("wb", buffering=0), _APPLICATION)
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


def _flush(disks: Mapping[int, Disk], images: Sequence[str]) -> None:
    """Put everything on stable storage; what fails is said, and the others are flushed."""
    for number, disk in disks.items():
        try:
            disk.store.flush()
        except OSError as error:
            reason = error.strerror or str(error)
            click.echo(f"vscsi serve: cannot flush {images[number]}: {reason}", err=True)


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


def _read_sizes(disks: Mapping[int, Disk], images: Sequence[str]) -> None:
    """Take over the size of each image that has changed, as far as it is whole blocks."""
    for number, disk in disks.items():
        store: Store = disk.store
        if not isinstance(store, FileStore):
            continue
        before = disk.blocks
        try:
            store.refresh()
        except (OSError, SetupError) as error:
            click.echo(f"vscsi serve: {error}", err=True)
            continue
        if store.size_bytes // disk.block_size != before:
            disk.resize()
            old, new = (size_text(blocks * disk.block_size) for blocks in (before, disk.blocks))
            click.echo(f"vscsi serve: LUN {number} ({images[number]}): {old} -> {new}", err=True)


def _announce(
    directory: Path,
    images: Sequence[str],
    disks: Mapping[int, Disk],
    capture: Path | None,
    as_json: bool,
) -> None:
    """Say what is served, and how to look at it."""
    if as_json:
        print_json(
            {
                "ready": True,
                "directory": str(directory),
                "paths": [f"{kind}:{directory}" for kind in ("srp", "vscsiif", "blkif")],
                "units": [
                    {
                        "lun": number,
                        "image": images[number],
                        "size_bytes": disk.blocks * disk.block_size,
                        "block_bytes": disk.block_size,
                        "read_only": disk.write_protected,
                        "serial": disk.serial_number,
                        "blkif": f"blkif:{directory}?disk={number}",
                    }
                    for number, disk in disks.items()
                ],
                "capture": str(capture) if capture else None,
                "pid": os.getpid(),
            }
        )
        return
    width = max(map(len, images))
    lines = [f"{_APPLICATION}, process {os.getpid()}"]
    for number, disk in disks.items():
        size = size_text(disk.blocks * disk.block_size)
        mode = "read-only" if disk.write_protected else "writable"
        lines.append(
            f"  LUN {number}  {images[number]:{width}}  {size:>9}  "
            f"{disk.block_size}-byte blocks  {mode}"
        )
    lines += [
        f"  paths  srp:{directory}  vscsiif:{directory}  blkif:{directory}",
        *([f"  capture  {capture}"] if capture else []),
        "Look at it from another terminal:",
        f"  vscsi ls srp:{directory}",
        f"  vscsi nbd blkif:{directory} --socket nbd.sock",
        f"  XENSTORED_RUNDIR={directory} xenstore-ls",
        "Ctrl-C ends it; SIGHUP reads the sizes of the images again.",
        f"ready: serving {directory}",
    ]
    click.echo("\n".join(lines))
