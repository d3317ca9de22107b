# SPDX-License-Identifier: MIT
"""Writing captures: a tap whose listener never blocks, and a thread that writes pcapng."""

import os
import select
import threading
import time
from collections import deque
from typing import Protocol

from vscsi.transport.tap import RingPath
from vscsi.wire import pcapng
from vscsi.wire.formats import build
from vscsi.wire.record import Way, build_record

MAX_WAITING_BYTES = 16 << 20
"""Records that wait for the file; beyond that they are dropped and counted."""


class Sink(Protocol):
    """Where a capture goes: a file, a pipe. Blocking writes."""

    def fileno(self) -> int:
        """Return the descriptor to write to."""

    def close(self) -> None:
        """Close it."""


class CaptureWriter:
    """A `Tap` listener that writes pcapng to a file or pipe from a thread of its own.

    One interface a ring, described by its path and negotiated parameters. A record that finds the
    queue full is dropped; the counts stand in each interface's statistics block at the end. What
    has been written is readable at any time: records are written whole.
    """

    def __init__(self, sink: Sink, application: str) -> None:
        self.records = 0
        self.dropped = 0
        self.error: OSError | None = None
        self._sink = sink
        self._interfaces: dict[RingPath, int] = {}
        self._drops: dict[int, int] = {}
        self._queue: deque[bytes] = deque()
        self._waiting = 0
        self._closing = False
        self._ready = threading.Condition()
        # Times are those of the wall clock at the start, carried on by a clock that never steps.
        self._clock_offset = time.time_ns() - time.monotonic_ns()
        self._push(
            pcapng.block(
                pcapng.SECTION,
                build(
                    pcapng.SectionHead,
                    {
                        "magic": pcapng.BYTE_ORDER_MAGIC,
                        "major": 1,
                        "section_length": 0xFFFF_FFFF_FFFF_FFFF,
                    },
                )
                + pcapng.options([(pcapng.SHB_APPLICATION, application.encode())]),
            )
        )
        self._thread = threading.Thread(target=self._write, name="capture", daemon=True)
        self._thread.start()

    def __call__(
        self,
        path: RingPath,
        way: Way,
        ring_index: int,
        in_flight: int,
        message: bytes,
        descriptors: bytes,
    ) -> None:
        """Take one message (a `Tap`)."""
        now = time.monotonic_ns() + self._clock_offset
        body = build_record(
            protocol=path.protocol,
            direction=way,
            layout=path.layout,
            domain=path.domain,
            device=path.device,
            queue=path.queue,
            in_flight=min(in_flight, 0xFFFF),
            ring_index=ring_index,
            message=message,
            segments=descriptors,
        )
        with self._ready:
            interface = self._interface(path)
            if self._waiting + len(body) > MAX_WAITING_BYTES or self.error is not None:
                self.dropped += 1
                self._drops[interface] += 1
                return
            self._push(
                pcapng.block(
                    pcapng.ENHANCED_PACKET,
                    pcapng.packet_head(interface, now, len(body)) + pcapng.pad(body),
                )
            )
            self.records += 1
            self._ready.notify()

    def close(self) -> None:
        """Write what waits and the statistics, and close the sink; `error` says if that failed."""
        with self._ready:
            if self._closing:
                return
            self._closing = True
            for interface, drops in self._drops.items():
                body = build(pcapng.StatisticsHead, {"interface": interface}) + pcapng.options(
                    [(pcapng.ISB_IFDROP, drops.to_bytes(8, "little"))]
                )
                self._push(pcapng.block(pcapng.STATISTICS, body))
            self._ready.notify()
        self._thread.join()

    def _interface(self, path: RingPath) -> int:
        """Return a ring's interface number, describing it in the capture first."""
        number = self._interfaces.get(path)
        if number is None:
            number = self._interfaces[path] = len(self._interfaces)
            self._drops[number] = 0
            name = f"{path.protocol.name.lower()}-{path.domain}-{path.device}"
            description = " ".join(f"{key}={value}" for key, value in path.parameters)
            self._push(
                pcapng.block(
                    pcapng.INTERFACE,
                    build(pcapng.InterfaceHead, {"link_type": pcapng.LINKTYPE_USER0})
                    + pcapng.options(
                        [
                            (pcapng.IF_NAME, name.encode()),
                            (pcapng.IF_DESCRIPTION, description.encode()),
                            (pcapng.IF_TSRESOL, bytes([pcapng.NANOSECONDS])),
                        ]
                    ),
                )
            )
        return number

    def _push(self, data: bytes) -> None:
        self._queue.append(data)
        self._waiting += len(data)

    def _write(self) -> None:
        try:
            while True:
                with self._ready:
                    self._ready.wait_for(lambda: self._queue or self._closing)
                    if not self._queue:
                        return
                    data = b"".join(self._queue)
                    self._queue.clear()
                self._write_all(data)
                with self._ready:
                    self._waiting -= len(data)
        except OSError as error:
            with self._ready:
                self.error = error
        finally:
            self._sink.close()

    def _write_all(self, data: bytes) -> None:
        """Write all of it, also to a descriptor that does not block."""
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(self._sink.fileno(), rest) :]
            except BlockingIOError:
                select.select([], [self._sink.fileno()], [])
