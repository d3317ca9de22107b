# SPDX-License-Identifier: MIT
"""The least HTTP server that a scrape needs: GET /metrics, for clients who may mean no good.

The client library's own starts a thread for each connection and waits for each without end. Here
one thread serves a few connections, each for a few seconds and a few kilobytes.
"""

import asyncio
import contextlib
import logging
import os
import socket
import threading
from collections.abc import Callable
from http import HTTPStatus

from vscsi.wire.errors import SetupError

MAX_CONNECTIONS = 16
MAX_HEAD_BYTES = 8192
"""Request line and header fields."""
PATIENCE_S = 5.0
"""From when a connection is accepted until its answer has been taken."""

log = logging.getLogger(__name__)

Render = Callable[[str], tuple[str, bytes]]
"""Returns content type and body for the value of a request's Accept header field."""


class MetricsServer:
    """Answers scrapes from a thread of its own, from `start` until `close`."""

    def __init__(self, host: str, port: int, render: Render) -> None:
        """Take the address; SetupError if that cannot be. port: 0 for any that is free."""
        self._render = render
        self._loop = asyncio.new_event_loop()
        self._clients: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._ended = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self._socket = socket.create_server((host, port), family=family)
        except OSError as error:
            self._loop.close()
            # Without what the standard library adds to the kernel's words.
            reason = os.strerror(error.errno) if error.errno else str(error)
            raise SetupError(
                "serve metrics at", f"{host} port {port}", reason, "name another address or port"
            ) from error
        host, port = self._socket.getsockname()[:2]
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{port}/metrics"

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def close(self) -> None:
        """Let go of the address and of every client."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._ended.set)
            self._thread.join()
        else:
            self._socket.close()
        self._loop.close()

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        server = await asyncio.start_server(
            self._connected, sock=self._socket, limit=MAX_HEAD_BYTES
        )
        await self._ended.wait()
        # Those that are just being accepted come to `_connected` first, which lets go of them:
        # asyncio would forget them, open, if the server were closed meanwhile.
        while accepting := asyncio.all_tasks() - {asyncio.current_task(), *self._clients}:
            await asyncio.wait(accepting)
        server.close()
        for writer in self._clients.values():
            writer.transport.abort()
        await asyncio.gather(*self._clients)
        await asyncio.sleep(0)  # what was aborted is closed in the loop's next turns
        await asyncio.sleep(0)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._clients) >= MAX_CONNECTIONS or self._ended.is_set():
            writer.transport.abort()
            return
        client = self._loop.create_task(self._answer(reader, writer))
        self._clients[client] = writer
        client.add_done_callback(self._clients.pop)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(PATIENCE_S):
                try:
                    head = await reader.readuntil(b"\r\n\r\n")
                except asyncio.LimitOverrunError:
                    head = b""
                writer.write(self._response(head))
                await writer.drain()
                writer.write_eof()
                # Closing while there is something unread would take the answer away from it.
                while await reader.read(MAX_HEAD_BYTES):
                    pass
        except (TimeoutError, OSError, asyncio.IncompleteReadError):
            pass  # it is the client's loss
        finally:
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def _response(self, head: bytes) -> bytes:
        status, kind, body = self._look(head)
        fields = [
            f"HTTP/1.1 {status.value} {status.phrase}",
            f"Content-Type: {kind}",
            f"Content-Length: {len(body)}",
            "Connection: close",
        ]
        if status is HTTPStatus.METHOD_NOT_ALLOWED:
            fields.append("Allow: GET")
        return "\r\n".join([*fields, "\r\n"]).encode() + body

    def _look(self, head: bytes) -> tuple[HTTPStatus, str, bytes]:
        line, *fields = head.decode("latin-1").split("\r\n")
        method, _, rest = line.partition(" ")
        target, _, version = rest.partition(" ")
        if not version.startswith("HTTP/1."):
            return _refusal(HTTPStatus.BAD_REQUEST)
        if target.partition("?")[0] != "/metrics":
            return _refusal(HTTPStatus.NOT_FOUND)
        if method != "GET":
            return _refusal(HTTPStatus.METHOD_NOT_ALLOWED)
        named = (each.partition(":") for each in fields)
        accept = ",".join(value for name, _, value in named if name.lower() == "accept")
        try:
            return HTTPStatus.OK, *self._render(accept)
        except Exception:  # a fault of ours costs this scrape alone, and is reported
            log.exception("a scrape failed")
            return _refusal(HTTPStatus.INTERNAL_SERVER_ERROR)


def _refusal(status: HTTPStatus) -> tuple[HTTPStatus, str, bytes]:
    return status, "text/plain; charset=utf-8", f"{status.phrase}\n".encode()
