# SPDX-License-Identifier: MIT
"""Where captured commands come from: one module a file format, recognised by content.

A module of `FORMATS` has

    NAME: str                                   in words, as in "pcapng of vscsi"
    def recognise(head: bytes) -> bool          from the first HEAD_BYTES of the content
    def read(stream: IO[bytes]) -> Source       the stream is read once, from its beginning

Files are hostile. What can be read is read; no length or count in a file decides an allocation.
"""

import importlib
import io
import os
import sys
from contextlib import ExitStack
from types import ModuleType, TracebackType

from vscsi.capture import packed
from vscsi.capture.commands import Source
from vscsi.wire.errors import SetupError

FORMATS = {
    "vscsi-pcapng": "ours",
    "parquet": "parquet",
    "iscsi": "iscsi",
    "scsi-events": "scsi_events",
    "blktrace": "blktrace",
    "vscsi-trace": "vscsi_trace",
    "msr": "msr",
    "iolog": "iolog",
}
"""Names for `--format`, in the order in which content is looked at, and their modules."""
HEAD_BYTES = 4096
_BUFFER_BYTES = 1 << 20


class Opened:
    """A source and the file that it reads, as a context manager."""

    def __init__(self, file: str, form: str | None = None) -> None:
        """Open a file, - for standard input; form: a key of FORMATS instead of its content.

        Raises SetupError for a file that can't be opened, or that is of no known format.
        """
        with ExitStack() as stack:
            self.source: Source
            self.source, self._raw = _open(stack, file, form)
            self._stack = stack.pop_all()

    def progress(self) -> tuple[int, int]:
        """Return how many bytes of the file have been read, and its size; 0 of 0 for a pipe."""
        try:
            return self._raw.tell(), os.fstat(self._raw.fileno()).st_size
        except (OSError, ValueError):  # nowhere to be in a pipe; closed
            return 0, 0

    def __enter__(self) -> Source:
        return self.source

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()


def _open(stack: ExitStack, file: str, form: str | None) -> tuple[Source, io.FileIO]:
    if form is not None and form not in FORMATS:
        raise SetupError("read", file, f"no format {form!r}", f"one of {', '.join(FORMATS)}")
    try:
        raw = io.FileIO(sys.stdin.fileno() if file == "-" else file, closefd=file != "-")
        stream = packed.opened(stack.enter_context(io.BufferedReader(raw, _BUFFER_BYTES)))
        head = stream.peek(HEAD_BYTES)[:HEAD_BYTES]
    except (OSError, EOFError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise SetupError("cannot open", file, reason, "name another file") from error
    for name in FORMATS if form is None else [form]:
        module = _module(name)
        if form is not None or module.recognise(head):
            return module.read(stream), raw
    reason = "the file is empty" if not head else "its content is of no known format"
    raise SetupError("cannot read", file, reason, f"name one of {', '.join(FORMATS)} by --format")


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"vscsi.capture.sources.{FORMATS[name]}")
