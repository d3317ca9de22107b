# SPDX-License-Identifier: MIT
"""Captures of a running server: it writes into a pipe, whoever asked reads from it.

The pipe is the server's, so that its other end, which may stall or die, is all that a reader has
of it. Messages of type CAPTURE, from domain 0 alone, start and stop:

    b"start" or b"start PROTOCOL"   the reply: a number in ASCII, and the pipe's read end
    b"stop NUMBER"                  what waits is written, the statistics, then the pipe closes
"""

import os
import threading
from collections.abc import Callable
from pathlib import Path
from select import POLLIN, poll
from typing import IO

from vscsi.capture.writer import CaptureWriter
from vscsi.domain.base import DomainError, StoreError
from vscsi.domain.local import BACKEND_DOMAIN, Answer, LocalMessage, connect_store
from vscsi.transport.export import Export
from vscsi.wire import pcapng
from vscsi.wire.errors import SetupError
from vscsi.wire.pcapng import HEAD_SIZE, LITTLE, BlockType
from vscsi.wire.record import Protocol

MAX_CAPTURES = 8
"""Captures at a time: each may let as much wait as its writer does."""
_PIPE_BYTES = 1 << 16


class LiveCaptures:
    """The server's side: starts a writer for each that asks, and stops it."""

    def __init__(self, export: Export, application: str) -> None:
        """Answer CAPTURE messages of an export that has not been started."""
        self._tap = export.tap
        self._application = application
        self._running: dict[int, tuple[CaptureWriter, Callable[[], None]]] = {}
        self._last = 0
        self._closed = False
        self._lock = threading.Lock()
        export.host.answers[LocalMessage.CAPTURE] = self._answer

    def close(self) -> None:
        """End all captures; returns when their readers have all of it, or do not read."""
        with self._lock:
            self._closed = True
            writers = [writer for writer, _ in self._running.values()]
        self._tap.flush()
        for writer in writers:
            writer.end()
        for writer in writers:
            writer.close()

    def _answer(self, domain: int, payload: bytes) -> Answer:
        if domain != BACKEND_DOMAIN:
            raise StoreError("EACCES")
        match payload.split(b" "):
            case [b"start"]:
                return self._start(None)
            case [b"start", name] if name in _PROTOCOLS:
                return self._start(_PROTOCOLS[name])
            case [b"stop", number] if number.isdigit() and len(number) < 10:
                return self._stop(int(number))
        raise StoreError("EINVAL")

    def _start(self, only: Protocol | None) -> Answer:
        with self._lock:
            if self._closed or len(self._running) >= MAX_CAPTURES:
                raise StoreError("EBUSY")
            try:
                reader, writer = os.pipe()
            except OSError as error:
                raise StoreError("ENOSPC") from error
            sink = os.fdopen(writer, "wb", buffering=0)
            self._last += 1
            number = self._last
            try:
                capture = CaptureWriter(
                    sink, self._application, only=only, on_end=lambda: self._ended(number)
                )
            except OSError as error:
                os.close(reader)
                sink.close()
                raise StoreError("ENOSPC") from error
            self._running[number] = capture, self._tap.add(capture)
        return b"%d" % number, [reader]

    def _stop(self, number: int) -> Answer:
        with self._lock:
            if number not in self._running:
                raise StoreError("ENOENT")
            capture, _ = self._running[number]
        self._tap.flush()
        capture.end()
        return b"", ()

    def _ended(self, number: int) -> None:
        with self._lock:
            _, remove = self._running.pop(number)
            remove()


class LiveCapture:
    """The client's side: a capture that a server has been asked for."""

    def __init__(self, directory: Path, only: Protocol | None = None) -> None:
        """Start it; SetupError if nobody serves the directory, or the server refuses."""
        self.recorded = 0
        self.dropped = 0
        """What the server had to leave out; known at the end."""
        self._store = connect_store(directory)
        request = b"start" if only is None else b"start " + only.name.lower().encode()
        try:
            number, fds = self._store.request(LocalMessage.CAPTURE, request)
            (self._pipe,) = fds
            self._number = number
        except (StoreError, DomainError, ValueError) as error:
            self._store.close()
            raise SetupError(
                "cannot capture at",
                str(directory),
                str(error),
                "end another capture, or see the server's log",
            ) from error
        self._stop = os.eventfd(0, os.EFD_CLOEXEC)

    def stop(self) -> None:
        """Have `copy` end; any thread, a signal's handler too. Does not wait."""
        os.eventfd_write(self._stop, 1)

    def copy(self, output: IO[bytes]) -> None:
        """Write the capture to a file as it comes, in whole blocks, until `stop` or its end.

        Raises OSError as the file does, WireError if what comes is no capture.
        """
        ready = poll()
        ready.register(self._pipe, POLLIN)
        ready.register(self._stop, POLLIN)
        waiting = b""
        while True:
            events = [fd for fd, _ in ready.poll()]
            if self._stop in events:
                ready.unregister(self._stop)
                self._ask_to_stop()
            if self._pipe not in events:
                continue
            piece = os.read(self._pipe, _PIPE_BYTES)
            if not piece:
                return
            waiting += piece
            whole = self._count_blocks(waiting)
            output.write(waiting[:whole])
            output.flush()
            waiting = waiting[whole:]

    def close(self) -> None:
        """Let go of the server, which then ends the capture."""
        os.close(self._pipe)
        os.close(self._stop)
        self._store.close()

    def _ask_to_stop(self) -> None:
        try:
            self._store.request(LocalMessage.CAPTURE, b"stop " + self._number)
        except (StoreError, DomainError):
            return  # it has ended: the pipe says so

    def _count_blocks(self, data: bytes) -> int:
        """Return how many bytes of data are whole blocks, and count what they hold."""
        at = 0
        while len(data) - at >= HEAD_SIZE:
            kind, length = pcapng.parse_head(LITTLE, data[at : at + HEAD_SIZE])
            if length > len(data) - at:
                break
            if kind == BlockType.ENHANCED_PACKET:
                self.recorded += 1
            elif kind == BlockType.STATISTICS:
                body = data[at + HEAD_SIZE : at + length - 4]
                self.dropped += pcapng.parse_statistics(LITTLE, body)[1]
            at += length
        return at


_PROTOCOLS = {protocol.name.lower().encode(): protocol for protocol in Protocol}
