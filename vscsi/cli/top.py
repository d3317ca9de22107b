# SPDX-License-Identifier: MIT
"""`vscsi top`: what crosses the rings of a served directory, live."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from select import POLLIN, poll
from types import FrameType

import click

from vscsi.analysis.live import Watch
from vscsi.analysis.window import Window
from vscsi.capture.choice import Choice
from vscsi.capture.live import LiveCapture
from vscsi.capture.sources.ours.source import RingCapture
from vscsi.capture.sources.ours.timeline import LATENESS_NS
from vscsi.cli.options import captured_path, json_option
from vscsi.cli.output import print_json
from vscsi.cli.top_view import print_window, screen
from vscsi.wire.errors import WireError

SETTLE_S = LATENESS_NS / 1e9 + 0.1
"""A window is shown so long after its end, when it is known in which order things happened."""
_END_S = 10.0
"""The server has so long to say the rest after it was asked to stop."""

Show = Callable[[Window], None]


@click.command(short_help="what crosses the rings, live")
@click.argument("path")
@click.option(
    "-i",
    "--interval",
    "interval_s",
    metavar="SECONDS",
    type=click.FloatRange(0.1, 3600),
    default=1.0,
    show_default=True,
    help="How long a window is.",
)
@click.option("-n", "--count", type=click.IntRange(1), help="End after so many windows.")
@click.option("--once", is_flag=True, help="The same as --count 1.")
@json_option
def top(path: str, interval_s: float, count: int | None, once: bool, as_json: bool) -> None:
    """Show each disk's commands as they come, until q, Ctrl-C or the server's end.

    PATH is DIR for all rings that are served there, srp:DIR, vscsiif:DIR or blkif:DIR for those
    of one protocol. Without a terminal, and with --count, windows are printed one after another,
    with --json one JSON object a line.

    Waiting commands are those without an answer now; depth is how many others of its disk a
    command found under way when it was sent.
    """
    if once:
        count = 1
    directory, only = captured_path(path)
    live = LiveCapture(directory, Choice(only))
    try:
        source = RingCapture(live.stream(LATENESS_NS / 1e9))
        with ExitStack() as stack:
            on_screen = sys.stdout.isatty() and not as_json and count is None
            with_keys = on_screen and sys.stdin.isatty()
            end = stack.enter_context(_Ends(with_keys))
            if as_json:
                show: Show = lambda window: print_json(window.to_json())  # noqa: E731
            elif on_screen:
                show = stack.enter_context(screen(path, "q ends" if with_keys else "Ctrl-C ends"))
            else:
                show = lambda window: print_window(path, window)  # noqa: E731
            _watch(live, source, end, show, interval_s, count)
    finally:
        live.close()
    if source.troubles.broken:
        raise WireError(f"{path}: {source.troubles.broken}")


def _watch(
    live: LiveCapture,
    source: RingCapture,
    end: "_Ends",
    show: Show,
    interval_s: float,
    count: int | None,
) -> None:
    begin_s = time.monotonic()
    watch = Watch(source, time.time_ns(), interval_s)

    def run() -> None:
        watch.run()
        end.tell()

    reader = threading.Thread(target=run, name="top", daemon=True)
    reader.start()
    told = shown = 0
    while shown != count:
        end.wait(begin_s + (told + 1) * interval_s + SETTLE_S)
        if end.came:
            break
        over_s = time.monotonic() - SETTLE_S - begin_s
        slices = max(1, int(over_s / interval_s) - told)  # several, if showing takes so long
        show(watch.window(slices))
        told += slices
        shown += 1
    watch.end(time.time_ns())
    live.stop()
    reader.join(_END_S)
    if end.came and shown != count:
        show(watch.rest())


class _Ends:
    """What ends the view: a signal, the key q, the capture's own end. A context manager."""

    def __init__(self, with_keys: bool) -> None:
        self.came = False
        self._event = os.eventfd(0, os.EFD_CLOEXEC)
        self._keys = sys.stdin.fileno() if with_keys else None
        self._stack = ExitStack()

    def tell(self) -> None:
        """Say that the end has come; any thread, a signal's handler too."""
        os.eventfd_write(self._event, 1)

    def wait(self, until_s: float) -> None:
        """Wait for it, or until a moment of the monotonic clock."""
        ready = poll()
        ready.register(self._event, POLLIN)
        if self._keys is not None:
            ready.register(self._keys, POLLIN)
        while not self.came and (left_s := until_s - time.monotonic()) > 0:
            found = [descriptor for descriptor, _ in ready.poll(max(1, left_s * 1000))]
            if self._event in found:
                self.came = True
            elif self._keys is not None and self._keys in found:
                keys = os.read(self._keys, 64)
                self.came = not keys or b"q" in keys.lower()

    def __enter__(self) -> "_Ends":
        self._stack.callback(os.close, self._event)
        self._stack.enter_context(_signals(self.tell))
        if self._keys is not None:
            self._stack.enter_context(_single_keys(self._keys))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


@contextmanager
def _signals(tell: Callable[[], None]) -> Iterator[None]:
    """Call something on SIGINT and SIGTERM."""

    def handle(_number: int, _frame: FrameType | None) -> None:
        tell()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _single_keys(terminal: int) -> Iterator[None]:
    """Have a terminal give out keys as they are pressed, and show none."""
    import termios
    import tty

    before = termios.tcgetattr(terminal)
    try:
        tty.setcbreak(terminal)
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)
