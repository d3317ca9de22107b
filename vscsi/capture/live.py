# SPDX-License-Identifier: MIT
"""Captures of a running server: it writes into a pipe, whoever asked reads from it.

The pipe is the server's, so that its other end, which may stall or die, is all that a reader has
of it. Messages of type CAPTURE, from domain 0 alone, start and stop:

    b"start WORDS"   words: a `Choice`. The reply: a number in ASCII, and the pipe's read end
    b"stop NUMBER"   what waits is written, the statistics, then the pipe closes
"""

import io
import os
import threading
from collections.abc import Callable
from pathlib import Path
from select import POLLIN, poll
from typing import IO, Any, Protocol

from vscsi.capture.choice import Choice
from vscsi.capture.writer import CaptureWriter
from vscsi.domain.base import DomainError, StoreError
from vscsi.domain.local import (
    BACKEND_DOMAIN,
    SOCKET_NAME,
    Answer,
    LocalMessage,
    connect_store,
)
from vscsi.transport.export import Export
from vscsi.wire import pcapng
from vscsi.wire.errors import SetupError
from vscsi.wire.pcapng import HEAD_SIZE, LITTLE, BlockType

MAX_CAPTURES = 8
"""Captures at a time: each may let as much wait as its writer does."""
_PIPE_BYTES = 1 << 16


class Output(Protocol):
    """Where a capture is written: a file, a `Rotation`."""

    def write(self, data: bytes, /) -> object:
        """Write whole blocks."""

    def flush(self) -> None:
        """Have them be there."""


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
        verb, _, words = payload.partition(b" ")
        if verb == b"stop" and words.isdigit() and len(words) < 10:
            return self._stop(int(words))
        if verb == b"start":
            try:
                return self._start(Choice.parse(words))
            except ValueError as error:
                raise StoreError("EINVAL") from error
        raise StoreError("EINVAL")

    def _start(self, choice: Choice) -> Answer:
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
                    sink,
                    self._application,
                    choice=choice,
                    units=self._tap.units,
                    on_end=lambda: self._ended(number),
                )
            except OSError as error:
                os.close(reader)
                sink.close()
                raise StoreError("ENOSPC") from error
            self._running[number] = capture, self._tap.add(capture, choice.payload.wanted)
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

    def __init__(self, directory: Path, choice: Choice | None = None) -> None:
        """Start it; SetupError if nobody serves the directory, or the server refuses."""
        self.recorded = 0
        self.dropped = 0
        """What the server had to leave out; known at the end, as what the filter did not keep."""
        self.left_out = 0
        try:
            self._store = connect_store(directory)
        except SetupError as error:
            there = (directory / SOCKET_NAME).exists()
            reason = error.reason if there else "it has no socket"
            raise SetupError("nobody serves", str(directory), reason, error.next_step) from error
        request = b"start " + (choice or Choice()).encode()
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
        """Have `copy` or `stream` end; any thread, a signal's handler too. Does not wait."""
        os.eventfd_write(self._stop, 1)

    def stream(self, patience_s: float | None = None) -> "IO[bytes]":
        """Return the capture as a stream to read instead of `copy`, without buffers of its own.

        It is as long as this object is open. It ends with the server, or after `stop`, when what
        waits at the server has been read. A read returns what is there, and waits for a byte;
        patience_s: no longer than that, and then returns None.
        """
        stream: Any = _Stream(self._pipe, self._stop, self._ask_to_stop, patience_s)
        return stream  # type: ignore[no-any-return]

    def copy(self, output: Output) -> None:
        """Write the capture to a file as it comes, in whole blocks, until `stop` or its end.

        Raises OSError as the file does, WireError if what comes is no capture.
        """
        stream = self.stream()
        waiting = b""
        while piece := stream.read(_PIPE_BYTES):
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
        for kind, begin, at in pcapng.split(data):
            if kind == BlockType.ENHANCED_PACKET:
                self.recorded += 1
            elif kind == BlockType.STATISTICS:
                told = pcapng.parse_statistics(LITTLE, data[begin + HEAD_SIZE : at - 4])
                self.dropped += told.dropped
                self.left_out += told.left_out
        return at


class _Stream(io.RawIOBase):
    """What comes through a pipe, until that ends; asks for its end once when it is told to."""

    def __init__(
        self,
        pipe: int,
        stop: int,
        ask_to_stop: Callable[[], None],
        patience_s: float | None,
    ) -> None:
        self._pipe = pipe
        self._patience_ms = None if patience_s is None else patience_s * 1000
        self._stop = stop
        self._ask_to_stop = ask_to_stop
        self._ready = poll()
        self._ready.register(pipe, POLLIN)
        self._ready.register(stop, POLLIN)

    def readable(self) -> bool:
        """It is."""
        return True

    def fileno(self) -> int:
        """Return the pipe's descriptor, which stays somebody else's."""
        return self._pipe

    def readinto(self, buffer: Any) -> int | None:
        """Wait for bytes and take what is there; 0 at the end, None where patience is."""
        while True:
            events = [fd for fd, _ in self._ready.poll(self._patience_ms)]
            if not events:
                return None
            if self._stop in events:
                self._ready.unregister(self._stop)
                self._ask_to_stop()
            if self._pipe in events:
                return os.readv(self._pipe, [buffer])
