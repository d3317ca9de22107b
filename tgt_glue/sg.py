# SPDX-License-Identifier: MIT
"""Commands to a logical unit of the kernel's, through its SCSI generic node (sg v3).

A command is written to an open file and its outcome read from it; unlike SG_IO, that lets go of a
command that the kernel does not end. Each outstanding command has a file of its own, so the 16 a
file may have outstanding are no limit, and answers need no matching.

What sg does with buffers decides how data go. It copies as many bytes back as were asked for,
however few have come and whatever the status: the rest is what earlier commands left in its
buffer, or in the kernel's memory. So data-in lands in the file's own reserve buffer, mapped here,
and only what arrived with a good status is copied on. Data-out is copied by the kernel from
where it is, once, as the command starts. By direct I/O, if that is asked for and the parameter
`allow_dio` of the kernel's module has it, nothing is copied where all of a buffer is one aligned
run and a good status means all of it. Such a command cannot be let go of: the kernel works on the
initiator's memory until it ends, however long that takes.
"""

import errno
import fcntl
import mmap
import os
import struct
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tgt_glue.sg_file import (
    DIRECT_IO,
    FROM_DEVICE,
    MAX_IOVEC,
    MMAP_IO,
    NO_DATA,
    TO_DEVICE,
    Answer,
    SgFile,
    runs,
)
from vscsi.ring import Store, Unit
from vscsi.target.buffers import Views, address, gather, length, scatter
from vscsi.wire.errors import SetupError

GRACE_S = 5.0
"""How long the kernel may take to abort a command whose time is over, before we let go of it."""
MAX_LOST = 64
"""Commands let go of that the kernel has not ended yet, before it gets no more."""

# <scsi/sg.h>
_SG_SET_RESERVED_SIZE, _SG_GET_RESERVED_SIZE = 0x2275, 0x2272
_SG_GET_SCSI_ID, _SG_GET_SG_TABLESIZE, _SG_SCSI_RESET = 0x2276, 0x227F, 0x2284
_BLKSECTGET = 0x1267  # in bytes, of an sg node
_RESET_DEVICE_NO_ESCALATE = 0x101
_SCSI_ID = struct.Struct("@iiiiihhii")
_ALIGNMENT = 4  # of direct I/O: what the SCSI layer asks for where a host asks for nothing
_PAGE = mmap.PAGESIZE
_SMALL_RESERVE = 64 << 10


@dataclass(frozen=True, slots=True)
class Traits:
    """What the kernel knows of a logical unit."""

    device_type: int
    max_bytes: int
    """Of one command's data."""
    max_pages: int
    """That one command's data may touch."""


class Node(Protocol):
    """The kernel's part, as far as `SgDevice` knows it; tests have a kernel of their own."""

    direct_io: bool

    def open(self) -> int:
        """Return a non-blocking descriptor that answers can be read from."""

    def submit(self, descriptor: int, header: bytearray) -> None:
        """Start a command; on return its CDB and its data-out (unless direct) are the kernel's."""

    def traits(self, descriptor: int) -> Traits:
        """Return what the kernel knows of the unit."""

    def reserve(self, descriptor: int, size: int) -> mmap.mmap:
        """Give a descriptor a reserve buffer of `size` bytes and map it; ENOMEM if it has less."""

    def reset(self, descriptor: int) -> None:
        """Reset the logical unit, and nothing beyond it."""

    def native(self) -> Store | None:
        """Return the node for the C path, if that may have commands."""


class SgNode:
    """An sg node of the running kernel."""

    def __init__(self, path: Path, *, direct: bool = False) -> None:
        """direct: do direct I/O, if the kernel allows it."""
        self.path = path
        try:
            allowed = Path("/sys/module/sg/parameters/allow_dio").read_text().strip()
        except OSError:  # sg built into the kernel without the parameter's entry
            allowed = "0"
        self.direct_io = direct and allowed not in ("0", "N")

    def open(self) -> int:
        """Open the node; OSError if that cannot be."""
        return os.open(self.path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)

    def submit(self, descriptor: int, header: bytearray) -> None:
        """Write the header to the node; OSError if the kernel refuses the command."""
        os.write(descriptor, header)

    def traits(self, descriptor: int) -> Traits:
        """Ask the node."""
        identity = bytearray(_SCSI_ID.size)
        fcntl.ioctl(descriptor, _SG_GET_SCSI_ID, identity)
        pages = _get_int(descriptor, _SG_GET_SG_TABLESIZE)
        size = _get_int(descriptor, _BLKSECTGET)
        return Traits(
            device_type=_SCSI_ID.unpack(identity)[4],
            max_bytes=min(size, pages * _PAGE),
            max_pages=pages,
        )

    def reserve(self, descriptor: int, size: int) -> mmap.mmap:
        """Set the reserve buffer's size and map it; OSError."""
        fcntl.ioctl(descriptor, _SG_SET_RESERVED_SIZE, size.to_bytes(4, "little"))
        if _get_int(descriptor, _SG_GET_RESERVED_SIZE) < size:
            raise OSError(errno.ENOMEM, f"{self.path}: no reserve buffer of {size} bytes")
        return mmap.mmap(descriptor, size)

    def reset(self, descriptor: int) -> None:
        """Have the kernel reset the unit; it waits for what is outstanding there."""
        fcntl.ioctl(descriptor, _SG_SCSI_RESET, _RESET_DEVICE_NO_ESCALATE.to_bytes(4, "little"))

    def native(self) -> Store | None:
        """Open the node for the C path, which does no direct I/O."""
        if self.direct_io:
            return None
        try:
            return Store.generic(self.path)
        except OSError:  # it leaves, or there are no more files: who executes commands will say so
            return None


class SgDevice:
    """A logical unit that CDBs can be sent to. Thread-safe.

    What is handed to it must fit the CDB: the kernel's target takes direction and length of the
    data from here, whatever the CDB says (see `checks`). Raises SetupError if the node is not
    there or no sg node.
    """

    def __init__(self, node: Node, name: str) -> None:
        self._staged_bytes = 0
        self._native: tuple[Store, Unit] | None = None
        self._let_go: list[bytes] = []
        """CDBs that C has left the kernel with, and that are to be answered."""
        self._node = node
        self._idle: deque[SgFile] = deque()
        self._lost: list[SgFile] = []
        self._lock = threading.Lock()
        try:
            file = SgFile(node.open())
            self._idle.append(file)
            self.traits = node.traits(file.descriptor)
        except OSError as error:
            self.close()
            raise SetupError(
                "open", name, error.strerror or str(error), "`modprobe sg`, and run it as root"
            ) from error

    def execute(
        self,
        cdb: bytes,
        *,
        timeout_s: float,
        out: Views = (),
        into: Views = (),
        wanted: int = 0,
        all_or_nothing: bool = False,
        residue_bytes: int = 0,
    ) -> Answer:
        """Execute one command and wait for its end. The buffers are not touched after that.

        cdb: 6 to 32 bytes. Either all of `out` is sent, or `wanted` bytes are asked for, which go
        to `into` as far as it reaches; at most `traits.max_bytes`. all_or_nothing: with a status of
        GOOD, all that is wanted has come. residue_bytes: see `SgFile.answer`.

        Raises OSError where the kernel refuses the command (ENODEV, ENXIO: the unit is gone), and
        TimeoutError where it has not ended it GRACE_S after its time: the kernel still has it
        then. Direct I/O is waited for even so.
        """
        self._reap()
        if len(self._lost) >= MAX_LOST:
            raise TimeoutError(errno.ETIMEDOUT, "the kernel ends no command")
        file = self._take(wanted)
        try:
            direct = self._fill(file, cdb, timeout_s, out, into, wanted, all_or_nothing)
            self._node.submit(file.descriptor, file.header)
        except BaseException:
            file.close()
            raise
        limit_s = None if direct else timeout_s + GRACE_S
        try:
            file.wait(limit_s)
        except OSError:
            with self._lock:
                self._lost.append(file)
            raise
        answer = file.answer(wanted, residue_bytes)
        if not direct and answer.arrived and into:
            moved = scatter(file.reserved(answer.arrived), into)
            self._staged_bytes += moved
        self._idle.append(file)
        return answer

    @property
    def lost(self) -> int:
        """How many commands the kernel still has that nobody waits for."""
        self._reap()
        return len(self._lost)

    @property
    def staged_bytes(self) -> int:
        """Bytes that were copied here: all data-in but what came by direct I/O."""
        return self._staged_bytes + (self._native[0].staged_bytes if self._native else 0)

    def native_unit(self, gate: Unit) -> Unit | None:
        """Return the unit for the C path, which has the same node; not ready at first.

        gate: the unit whose gate it has. None if there is none. Always the same; one thread at a
        time.
        """
        if self._native is None:
            store = self._node.native()
            if store is not None:
                self._native = store, Unit(store, 512, self.traits.max_bytes, gate=gate)
        return self._native[1] if self._native else None

    def set_native(self, blocks: int, block_size: int, timeout_s: float) -> None:
        """Let the C path have reads and writes of a unit of this size; 0 blocks: none."""
        if self._native is None:
            return
        store, unit = self._native
        store.set_limits(timeout_ms=int(timeout_s * 1000), grace_ms=int(GRACE_S * 1000))
        if blocks:
            unit.set_block_size(block_size)
        # What may not be written, and what is to be on the medium, the kernel knows.
        unit.set(blocks, ready=blocks > 0, writable=True, write_cache=True, thin=False)

    def take_told(self, cdb: bytes) -> tuple[list[bytes], bool]:
        """Return the sense data of commands that failed in C, which nobody has been told.

        Also whether a command of this CDB was let go of there. The kernel still has it: executed
        again, it might end after what comes later.
        """
        if self._native is None:
            return [], False
        with self._lock:
            told = self._native[0].take_told()
            self._let_go += [each for each, sense in told if not sense]
            match = next((each for each in self._let_go if cdb.startswith(each)), None)
            if match is not None:
                self._let_go.remove(match)
        return [sense for _, sense in told if sense], match is not None

    def reset(self) -> None:
        """Reset the logical unit; OSError if the kernel cannot (EBUSY: it has lost commands)."""
        if self.lost:
            raise OSError(errno.EBUSY, "the kernel has not ended earlier commands")
        file = self._take(0)
        try:
            self._node.reset(file.descriptor)
        finally:
            self._idle.append(file)

    def close(self) -> None:
        """Let go of the node; no command may be running."""
        with self._lock:
            files = [*self._idle, *self._lost]
            self._idle.clear()
            self._lost.clear()
        for file in files:
            file.close()
        if self._native:
            self._native[0].close()

    def _take(self, wanted: int) -> SgFile:
        """Return a file without a command, whose reserve buffer holds what is wanted."""
        try:
            file = self._idle.pop()
        except IndexError:
            file = SgFile(self._node.open())
        if wanted <= file.room:
            return file
        if file.room:  # a reserve buffer that is mapped stays as it is
            file.close()
            file = SgFile(self._node.open())
        size = _SMALL_RESERVE if wanted <= _SMALL_RESERVE else self.traits.max_bytes
        size = min(size, self.traits.max_bytes)
        try:
            file.reserve, file.mapped = self._node.reserve(file.descriptor, size), True
        except OSError as error:
            if error.errno != errno.ENOMEM:
                file.close()
                raise
            # sd_mod may have lowered the limit since (to a disk's optimal transfer length), or so
            # much memory is not to be had at a time: the kernel copies into memory of ours.
            file.reserve = mmap.mmap(-1, size)
        return file

    def _fill(
        self,
        file: SgFile,
        cdb: bytes,
        timeout_s: float,
        out: Views,
        into: Views,
        wanted: int,
        all_or_nothing: bool,
    ) -> bool:
        """Prepare a file's header; return whether the kernel will work on the buffer itself."""
        if wanted:
            pieces = runs(into) if self._node.direct_io and all_or_nothing else []
            direct = self._is_direct(pieces) and pieces[0][1] == wanted
            if direct:
                file.fill(cdb, FROM_DEVICE, wanted, pieces[0][0], 0, DIRECT_IO, timeout_s)
            elif file.mapped:
                file.fill(cdb, FROM_DEVICE, wanted, 0, 0, MMAP_IO, timeout_s)
            else:
                pointer = address(file.reserved(wanted))
                file.fill(cdb, FROM_DEVICE, wanted, pointer, 0, 0, timeout_s)
            return direct
        count = length(out)
        if not count:
            file.fill(cdb, NO_DATA, 0, 0, 0, 0, timeout_s)
            return False
        pieces = runs(out)
        if len(pieces) > MAX_IOVEC:
            file.copy = gather(out, count)
            self._staged_bytes += count
            pieces = runs([memoryview(file.copy)])
        if len(pieces) == 1:
            direct = self._node.direct_io and self._is_direct(pieces)
            flags = DIRECT_IO if direct else 0
            file.fill(cdb, TO_DEVICE, count, pieces[0][0], 0, flags, timeout_s)
            return direct
        pointer = file.put_iovec(pieces)
        file.fill(cdb, TO_DEVICE, count, pointer, len(pieces), 0, timeout_s)
        return False

    def _is_direct(self, pieces: Sequence[tuple[int, int]]) -> bool:
        if len(pieces) != 1:
            return False
        start, size = pieces[0]
        pages = (start + size - 1) // _PAGE - start // _PAGE + 1
        return (start | size) % _ALIGNMENT == 0 and pages <= self.traits.max_pages

    def _reap(self) -> None:
        """Take files back whose lost command the kernel has ended after all."""
        if not self._lost:
            return
        with self._lock:
            for file in list(self._lost):
                with suppress(OSError):
                    file.wait(0)
                    self._lost.remove(file)
                    self._idle.append(file)


def _get_int(descriptor: int, request: int) -> int:
    value = bytearray(4)
    fcntl.ioctl(descriptor, request, value)
    return int.from_bytes(value, "little")
