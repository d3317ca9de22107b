# SPDX-License-Identifier: MIT
"""`vscsi hba`: a real disk of this machine's kernel, whose commands go over any path."""

import hashlib
import os
import signal
from contextlib import ExitStack
from pathlib import Path

import click

import vscsi
from tgt_glue import user_unit
from tgt_glue.configfs import Attachment
from tgt_glue.nodes import all_nodes, block_node, sg_node
from tgt_glue.tcmu import TcmuDevice
from vscsi.cli.hba_bridge import Bridge
from vscsi.cli.options import json_option, lun_option, path_argument, unit_path
from vscsi.cli.output import print_json, size_text
from vscsi.cli.unit import Unit, longest_transfer, look
from vscsi.domain.local import connect_store
from vscsi.transport.frontend import LOST
from vscsi.transport.initiator import TransportError
from vscsi.wire.errors import SetupError

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_NODE_TIMEOUT_S = 30
_POLL_S = 1.0
_DISK_DRIVER = Path("/sys/module/sd_mod")


@click.command(short_help="give this machine's kernel a disk over any path")
@path_argument
@lun_option
@click.option("--name", help="What `vscsi lio list` calls it; made from PATH if not given.")
@json_option
def hba(path: str, lun: int, name: str | None, as_json: bool) -> None:
    """Be a host bus adapter for this machine's own kernel: LUN N of PATH becomes a SCSI disk.

    The kernel's SCSI target hands the kernel's commands to this process (target_core_user), which
    sends them over PATH. CDBs go to the disk through a /dev/sg node; a /dev/sd node comes with
    `modprobe sd_mod`. Needs root.

    Ready when the last line, "ready: NODE...", is there (with --json: the only line). SIGINT or
    SIGTERM: wait until nobody uses the disk, remove it, end with status 0; a second signal removes
    it at once. When the server behind PATH goes away, commands end with errors, and the disk is
    removed. What is left after `kill -9` is taken over by the same command, disk, mounts and all,
    or removed by `vscsi lio remove NAME`.

    \b
    modprobe sd_mod
    vscsi hba srp:run
    mount /dev/sda /mnt        (in another terminal)
    """
    # Blocked before there are threads, so that only `sigwait` below gets them.
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    user_unit.prepare_kernel()
    path, lun = unit_path(_absolute(path), lun)
    name = name or _name(path, lun)
    with ExitStack() as stack:
        end = _End()
        link = stack.enter_context(vscsi.connect(path))
        kind, _, rest = path.partition(":")
        if kind != "call":
            # An idle disk would notice at its next command only.
            watched = connect_store(Path(rest.partition("?")[0]), on_lost=lambda: end(LOST))
            stack.callback(watched.close)
        unit = look(link, lun)
        if unit is None or unit.capacity is None:
            raise TransportError(f"{path} has no LUN {lun}, or it is no disk, or not ready")
        block_bytes = unit.capacity.block_length
        most_bytes = longest_transfer(link, link.lun(lun))

        def start(device: TcmuDevice) -> Bridge:
            bridge = Bridge(
                device,
                link.initiator,
                link.lun(lun).address,
                end.of_ring,
                block_bytes=block_bytes,
                most_bytes=most_bytes,
            )
            bridge.start()
            return bridge

        service, attachment = user_unit.serve(
            name, f"{path} LUN {lun}", unit.size_bytes, block_bytes, start
        )
        try:
            _announce(name, path, unit, _nodes(attachment), as_json)
        except SetupError:
            end.reason = ""
            user_unit.remove(name, service, force=True)
            raise
        signal.sigwait(_SIGNALS)
        _remove(name, attachment, service, end)
    if end.reason:
        raise TransportError(end.reason)


class _End:
    """Why it ends, if nobody asked for it: wakes who waits for signals."""

    def __init__(self) -> None:
        self.reason = ""
        self.ring_ended = False

    def __call__(self, reason: str) -> None:
        """Note the first reason."""
        self.reason = self.reason or reason
        os.kill(os.getpid(), signal.SIGTERM)

    def of_ring(self, reason: str) -> None:
        """Note that nobody answers the kernel any more."""
        self.ring_ended = True
        self(reason)


def _remove(name: str, attachment: Attachment, service: user_unit.Service, end: _End) -> None:
    """Remove the disk when nobody uses it; at once after a second signal or a failure."""
    said: list[str] = []
    force = False
    while not (force or end.reason) and (users := user_unit.users(attachment)):
        if users != said:
            said = users
            click.echo(f"vscsi hba: in use: {'; '.join(users)}; waiting for its end", err=True)
        force = signal.sigtimedwait(_SIGNALS, _POLL_S) is not None
    if end.ring_ended:
        service.stop()
    user_unit.remove(name, None if end.ring_ended else service, force=force or bool(end.reason))


def _absolute(path: str) -> str:
    """Return a path's URL that means the same in every directory."""
    kind, _, rest = path.partition(":")
    place, mark, query = rest.partition("?")
    if kind == "call" and ":" in place:
        return path  # memory:64M
    return f"{kind}:{os.path.abspath(place)}{mark}{query}"


def _name(path: str, lun: int) -> str:
    """Return the name that this path's unit always gets."""
    kind = path.partition(":")[0]
    return f"{kind}-{hashlib.sha256(path.encode()).hexdigest()[:8]}-{lun}"


def _nodes(attachment: Attachment) -> list[str]:
    """Return the disk's nodes; the block device's, too, if the kernel has its driver."""
    sg_node(attachment.hctl, timeout_s=_NODE_TIMEOUT_S)
    if _DISK_DRIVER.exists():
        block_node(attachment.hctl, timeout_s=_NODE_TIMEOUT_S)
    return [str(node) for node in all_nodes(attachment.hctl)]


def _announce(name: str, path: str, unit: Unit, nodes: list[str], as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "ready": True,
                "name": name,
                "path": path,
                "lun": unit.number,
                "nodes": nodes,
                "size_bytes": unit.size_bytes,
                "pid": os.getpid(),
            }
        )
        return
    block = unit.capacity.block_length if unit.capacity else 0
    click.echo(
        f"vscsi hba, process {os.getpid()}, unit {name}\n"
        f"  {path} LUN {unit.number}  {size_text(unit.size_bytes)}  {block}-byte blocks\n"
        f"Ctrl-C removes the disk.\n"
        f"ready: {' '.join(nodes)}"
    )
