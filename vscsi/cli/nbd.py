# SPDX-License-Identifier: MIT
"""`vscsi nbd`: a logical unit as a network block device, through nbdkit."""

import os
import shlex
import shutil
import signal
import socket as sockets
import stat
import subprocess
import sysconfig
import tempfile
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from urllib.parse import quote

import click

import vscsi
from vscsi.cli.options import lun_option, path_argument, unit_path
from vscsi.cli.output import size_text
from vscsi.cli.unit import Unit, longest_transfer, look
from vscsi.domain.local import connect_store
from vscsi.transport.frontend import LOST
from vscsi.transport.initiator import TransportError
from vscsi.wire.errors import SetupError

_PLUGIN = Path(__file__).with_name("nbdkit_plugin.py")
_PACKAGES = "`apt install nbdkit nbdkit-plugin-python`"
_MAX_SOCKET_PATH = 107
"""Bytes (unix(7), without the terminating zero)."""


@click.command(short_help="export a logical unit as an NBD block device")
@path_argument
@lun_option
@click.option(
    "--socket",
    metavar="SOCKET",
    type=click.Path(path_type=Path),
    help="UNIX socket to serve on; removed at the end. May be left out with --run.",
)
@click.option(
    "--run",
    "command",
    metavar="CMD",
    help='Run a shell command that finds the device in "$uri", and end with its status.',
)
@click.option("--read-only", is_flag=True, help="Let NBD clients write nothing.")
def nbd(path: str, lun: int, socket: Path | None, command: str | None, read_only: bool) -> None:
    """Export a logical unit as a block device that host programs can use (qemu, nbdcopy, fio, ...).

    Stays in the foreground until SIGINT, SIGTERM, or the server that PATH leads to goes away.
    Ready when the line "ready: ..." is there. Needs nbdkit and its plugin for Python.

    \b
    vscsi nbd srp:run --socket nbd.sock
    qemu-img convert -f raw -O qcow2 'nbd+unix:///?socket=nbd.sock' copy.qcow2
    vscsi nbd blkif:run --lun 1 --run 'nbdcopy "$uri" copy.img'
    """
    if socket is None and command is None:
        raise click.UsageError("one of --socket and --run is needed")
    environment = _probe_nbdkit()
    path, lun = unit_path(path, lun)
    with vscsi.connect(path) as hba:
        unit = look(hba, lun)
        if unit is None or unit.capacity is None:
            raise TransportError(f"{path} has no LUN {lun}, or it is not ready")
        piece = longest_transfer(hba, hba.lun(lun))
    with ExitStack() as stack:
        if socket is None:
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="vscsi-nbd-"))
            socket = Path(directory) / "socket"
        _make_way(socket)
        stack.callback(socket.unlink, missing_ok=True)
        server = _Server(path)
        status = 2
        if server.start(path, unit, socket, piece, environment, read_only=read_only):
            if command is None:
                _announce(path, unit, socket, read_only)
            status = server.wait() if command is None else server.run(command, socket)
    if server.lost:
        raise TransportError(LOST)
    click.get_current_context().exit(status)


END_S = 2.0
"""How long clients of a device that is being ended have to leave it."""


class _Server:
    """nbdkit as our child: it ends with us, and when the server behind the path does."""

    def __init__(self, path: str) -> None:
        self.lost = False
        self._children: list[subprocess.Popen[bytes]] = []
        self._ended = False
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        kind, _, rest = path.partition(":")
        if kind != "call":
            # An idle device would notice at its next request only. Never closed: that is our end.
            self._watched = connect_store(Path(rest.partition("?")[0]), on_lost=self._on_lost)

    def start(
        self,
        path: str,
        unit: Unit,
        socket: Path,
        piece: int,
        environment: Mapping[str, str],
        *,
        read_only: bool,
    ) -> bool:
        """Start nbdkit; True when it serves, False if it ended before (and has said why)."""
        ready, ready_write = os.pipe()
        block = unit.capacity.block_length if unit.capacity else piece
        nbdkit = [
            *("nbdkit", "--foreground", "--exit-with-parent", "--unix", str(socket)),
            *(["--read-only"] if read_only else []),
            *("--filter=blocksize", "python", str(_PLUGIN)),
            *(f"path={path}", f"lun={unit.number}", f"piece={piece}", f"ready-fd={ready_write}"),
            *(f"minblock={block}", f"maxdata={piece}"),
        ]
        self._spawn(nbdkit, environment, [ready_write])
        os.close(ready_write)
        with os.fdopen(ready, "rb") as pipe:
            return bool(pipe.read(1))

    def run(self, command: str, socket: Path) -> int:
        """Run a shell command beside nbdkit; return its exit status."""
        names = {"uri": _uri(socket), "nbd": _uri(socket), "unixsocket": str(socket)}
        shell = self._spawn(["sh", "-c", command], {**os.environ, **names}, [])
        status = shell.wait()
        self._end()
        self.wait()
        return status if status >= 0 else 128 - status

    def wait(self) -> int:
        """Return nbdkit's exit status once it has ended."""
        status = self._children[0].wait()
        return status if status >= 0 else 128 - status

    def _spawn(
        self, command: list[str], environment: Mapping[str, str], descriptors: list[int]
    ) -> subprocess.Popen[bytes]:
        child = subprocess.Popen(command, env=environment, pass_fds=descriptors)
        self._children.append(child)
        if self._ended:  # meanwhile
            child.terminate()
        return child

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._end()

    def _on_lost(self) -> None:
        self.lost = True
        self._end()

    def _end(self) -> None:
        """End the children; nbdkit, which waits for its clients to leave, is given a moment."""
        first, self._ended = not self._ended, True
        for child in self._children:
            child.terminate()
        if first:
            last = threading.Timer(END_S, self._kill)
            last.daemon = True
            last.start()

    def _kill(self) -> None:
        for child in self._children:
            child.kill()


def _probe_nbdkit() -> dict[str, str]:
    """Return an environment in which nbdkit's Python finds us; SetupError without nbdkit."""
    if shutil.which("nbdkit") is None:
        raise SetupError("run", "nbdkit", "it is not installed", _PACKAGES)
    # nbdkit's Python is not ours: it needs this package, and what this package needs.
    here = [str(Path(vscsi.__file__).parent.parent)]
    here += [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    given = os.environ.get("PYTHONPATH")
    path = os.pathsep.join(dict.fromkeys([*here, *([given] if given else [])]))
    probe = subprocess.run(
        ["nbdkit", "--filter=blocksize", "python", "--dump-plugin"],
        capture_output=True,
        text=True,
        check=False,
    )
    if probe.returncode:
        reason = (probe.stderr.strip().splitlines() or ["no reason given"])[0]
        raise SetupError("run", "nbdkit", reason, f"{_PACKAGES}, `vscsi doctor`")
    return {**os.environ, "PYTHONPATH": path}


def _make_way(socket: Path) -> None:
    """Remove a socket that nobody listens on any more; SetupError if the path is not free."""
    tried = ("serve on", str(socket))
    if len(os.fsencode(socket)) > _MAX_SOCKET_PATH:
        raise SetupError(*tried, f"over {_MAX_SOCKET_PATH} bytes long", "take a shorter path")
    try:
        if not stat.S_ISSOCK(socket.lstat().st_mode):
            raise SetupError(*tried, "it exists and is no socket", "take another --socket")
        with sockets.socket(sockets.AF_UNIX) as probe:
            probe.connect(str(socket))
    except ConnectionRefusedError:
        socket.unlink(missing_ok=True)
    except FileNotFoundError:
        if not socket.parent.is_dir():
            raise SetupError(*tried, "no such directory", "take another --socket") from None
    except OSError as error:
        raise SetupError(*tried, error.strerror or str(error), "take another --socket") from error
    else:
        raise SetupError(*tried, "another server uses it", "take another --socket")


def _uri(socket: Path) -> str:
    return f"nbd+unix:///?socket={quote(str(socket.absolute()))}"


def _announce(path: str, unit: Unit, socket: Path, read_only: bool) -> None:
    uri = _uri(socket)
    block = unit.capacity.block_length if unit.capacity else 0
    mode = "read-only" if read_only or unit.read_only else "writable"
    click.echo(
        f"vscsi nbd, process {os.getpid()}\n"
        f"  {path} LUN {unit.number}  {size_text(unit.size_bytes)}  {block}-byte blocks  {mode}\n"
        f"  {uri}\n"
        f"Use it from another terminal:\n"
        f"  qemu-img info {shlex.quote(uri)}\n"
        f"  nbdcopy {shlex.quote(uri)} copy.img\n"
        f"Ctrl-C ends it.\n"
        f"ready: serving {socket}"
    )
