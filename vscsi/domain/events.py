# SPDX-License-Identifier: MIT
"""Event channels between processes: a pair of eventfds, one to be told by, one to tell."""

import contextlib
import os
import threading

STALL_S = 1.0
"""How long `close` waits for a `notify` that the peer may have stalled."""


class EventChannel:
    """One end of an event channel over two eventfds (implements domain.base.EventChannel).

    An eventfd coalesces as an event channel does: what counts is whether it is zero. Thread-safe.

    The peer holds the same two open files and can clear their O_NONBLOCK, so nothing rests on it
    in `clear`. A write has no such way out: a peer that also fills the counter can stall `notify`
    until `close`: so it is called where nobody else has to wait for it.
    """

    def __init__(self, port: int, incoming_fd: int, outgoing_fd: int) -> None:
        """Take two eventfds, which are ours from now on; port is this end's name of the channel."""
        self.port = port
        self.fds = (incoming_fd, outgoing_fd)
        """To hand over to the process whose end this is, before `close` here."""
        self._open = True
        self._lock = threading.Lock()  # no call may reach a number that close() set free
        for fd in self.fds:
            os.set_blocking(fd, False)

    @classmethod
    def pair(cls, port: int, peer_port: int) -> tuple["EventChannel", "EventChannel"]:
        """Create a channel and return its two ends, ours and the one to hand over."""
        flags = os.EFD_CLOEXEC | os.EFD_NONBLOCK
        here, there = os.eventfd(0, flags), os.eventfd(0, flags)
        return cls(port, here, there), cls(peer_port, os.dup(there), os.dup(here))

    def fileno(self) -> int:
        """Return a descriptor that polls readable while an event is pending."""
        return self.fds[0]

    def notify(self) -> None:
        """Send an event to the other end; nothing happens if this end is closed."""
        with self._lock:
            if self._open:
                with contextlib.suppress(BlockingIOError):  # full: an event is pending anyway
                    os.eventfd_write(self.fds[1], 1)

    def clear(self) -> None:
        """Consume pending events; call before looking at the ring. Never blocks."""
        with self._lock:
            if self._open:
                _drain(self.fds[0])

    def close(self) -> None:
        """Close this end; a second call does nothing."""
        while not self._lock.acquire(timeout=STALL_S):
            _drain(self.fds[1])  # `notify` goes on, unless the peer fills it faster
        try:
            if self._open:
                self._open = False
                for fd in self.fds:
                    os.close(fd)
        finally:
            self._lock.release()


def _drain(fd: int) -> None:
    with contextlib.suppress(BlockingIOError):
        os.preadv(fd, [bytearray(8)], -1, os.RWF_NOWAIT)
