# SPDX-License-Identifier: MIT
"""TCMU: the ring on which the kernel hands a user-backed unit's commands to a process.

<linux/target_core_user.h>, mailbox version 2. A UIO device's memory holds a mailbox, the ring of
entries, and the data area that the entries' iovecs point into:

    0        mailbox; its cmd_tail is ours, all else the kernel's
    cmdr_off ring of cmdr_size bytes: entries from cmd_tail to cmd_head are ours
    behind   data area: data-out on the way in, data-in on the way back

An answer is written over the oldest entry that is still ours, whichever command that was
(TCMU_MAILBOX_FLAG_CAP_OOOC); the kernel goes by its cmd_id. Writing to the device has it look.
"""

import errno
import mmap
import os
import platform
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from pathlib import Path

from vscsi.wire.errors import RingError, SetupError
from vscsi.wire.formats import U8, U16L, U32L, U64L, Packed, build, parse, raw

SYSFS_UIO = Path("/sys/class/uio")
DEV = Path("/dev")
VERSION = 2
CMD_TAIL = 64
ALIGNMENT = 8
SENSE_BYTES = 96
ENTRY_BYTES = 112
"""The least that an entry of a command takes: its answer needs that much."""
MAX_CDB_BYTES = 260
_OPERATION = 0x7
_ORDERED_MACHINES = frozenset({"x86_64", "i686", "AMD64"})

Mailbox = Packed(
    "version" / U16L, "flags" / U16L, "cmdr_off" / U32L, "cmdr_size" / U32L, "cmd_head" / U32L
)
EntryHeader = Packed("len_op" / U32L, "cmd_id" / U16L, "kflags" / U8, "uflags" / U8)
Request = Packed(
    "iov_cnt" / U32L,
    "iov_bidi_cnt" / U32L,
    "iov_dif_cnt" / U32L,
    "padding" / raw(4),
    "cdb_off" / U64L,
    "reserved" / raw(16),
)
Iovec = Packed("base" / U64L, "length" / U64L)
TaskManagement = Packed(
    "tmr_type" / U8, "reserved1" / raw(3), "cmd_cnt" / U32L, "reserved2" / raw(16)
)
"""struct tcmu_tmr_entry behind its header; the cmd_ids follow, two bytes each."""
Response = Packed(
    "scsi_status" / U8, "reserved" / raw(3), "read_len" / U32L, "sense" / raw(SENSE_BYTES)
)
_HEADER, _REQUEST, _IOVEC = EntryHeader.sizeof(), Request.sizeof(), Iovec.sizeof()
_CMD_IDS_AT = _HEADER + TaskManagement.sizeof()
_CMD_ID_BYTES = 2


class MailboxFlags(IntFlag):
    """What the kernel can do (TCMU_MAILBOX_FLAG_CAP_*)."""

    OUT_OF_ORDER = 1 << 0
    READ_LENGTH = 1 << 1


class Operation(IntEnum):
    """What an entry is (TCMU_OP_*)."""

    PAD = 0
    CMD = 1
    TMR = 2


class UserFlags(IntFlag):
    """What we tell of an entry (TCMU_UFLAG_*)."""

    UNKNOWN_OP = 0x1
    READ_LEN = 0x2


@dataclass(frozen=True, slots=True)
class Entry:
    """A command off the ring, to be answered once by its cmd_id."""

    cmd_id: int
    cdb: bytes
    """The CDB, and what follows it in its entry: up to 260 bytes."""
    areas: tuple[tuple[int, int], ...] = ()
    """Offset and length of each piece of its buffer; which direction it has, only the CDB tells."""
    fault: str = ""
    """Why it cannot be executed, if it cannot."""

    @property
    def length(self) -> int:
        """Bytes in the buffer."""
        return sum(length for _, length in self.areas)


@dataclass(frozen=True, slots=True)
class Answer:
    """How a command ended."""

    status: int
    sense: bytes = b""
    """Of more than 96 bytes the kernel gets the first 96."""
    read_bytes: int = 0
    """Data-in: how much arrived, where the kernel shall know; 0: all of the buffer counts."""


class TcmuRing:
    """Takes entries off a ring and puts answers on it. For one thread.

    Each entry is copied once and checked. RingError: the ring makes no sense and is of no use any
    more; a command that makes none has a `fault` and wants an answer.
    """

    def __init__(self, memory: memoryview) -> None:
        """Begin where the last process ended.

        memory: the whole map, writable. Raises RingError for one that is not TCMU's version 2.
        """
        if len(memory) < CMD_TAIL + 4:
            raise RingError(f"TCMU: a map of {len(memory)} bytes")
        mailbox = parse(Mailbox, bytes(memory[: Mailbox.sizeof()]), "TCMU mailbox")
        if mailbox.version != VERSION or not mailbox.flags & MailboxFlags.OUT_OF_ORDER:
            raise RingError(f"TCMU: mailbox version {mailbox.version}, flags {mailbox.flags:#x}")
        self._base, self._size = mailbox.cmdr_off, mailbox.cmdr_size
        self._data = self._base + self._size
        if self._base < CMD_TAIL + 4 or self._data > len(memory):
            raise RingError(f"TCMU: a ring at {self._base}, {self._size} bytes")
        if self._base % ALIGNMENT or self._size % ALIGNMENT or not self._size:
            raise RingError(f"TCMU: a ring at {self._base}, {self._size} bytes")
        self._memory = memory
        # Native: whole words are read and written at once, which struct's "<I" does not promise.
        self._head = memory[12:16].cast("I")
        self._tail = memory[CMD_TAIL : CMD_TAIL + 4].cast("I")
        self._read_length = bool(mailbox.flags & MailboxFlags.READ_LENGTH)
        self._at = self._checked("cmd_tail", self._tail[0])
        self._slots: deque[tuple[int, int, bool]] = deque()
        """Offset, length and whether it is a command's, of each entry that is ours, as taken."""
        self._outstanding: set[int] = set()
        self._given_up: list[int] = []

    @property
    def outstanding(self) -> int:
        """Commands taken and not answered."""
        return len(self._outstanding)

    def release(self) -> None:
        """Let go of the memory."""
        for view in (self._head, self._tail):
            view.release()

    def take(self) -> list[Entry]:
        """Take all commands that are there; raises RingError."""
        head = self._checked("cmd_head", self._head[0])
        found = []
        while self._at != head:
            most = (head if head > self._at else self._size) - self._at
            start = self._base + self._at
            header = parse(EntryHeader, bytes(self._memory[start : start + _HEADER]), "TCMU entry")
            length, operation = header.len_op & ~_OPERATION, header.len_op & _OPERATION
            if not _HEADER <= length <= most:
                raise RingError(f"TCMU: an entry of {length} bytes at {self._at}")
            is_command = operation == Operation.CMD
            if is_command:
                found.append(self._entry(start, length, header.cmd_id))
            elif operation == Operation.TMR:
                self._given_up += self._managed(start, length)
            elif operation != Operation.PAD:
                self._memory[start + _HEADER - 1] = header.uflags | UserFlags.UNKNOWN_OP
            self._slots.append((self._at, length, is_command))
            self._at = (self._at + length) % self._size
        self._give_back()
        return found

    def given_up(self) -> list[int]:
        """Return the cmd_ids of which `take` has since learnt that the kernel aborts them.

        Those that are outstanding still want an answer, for which the kernel waits.
        """
        given_up, self._given_up = self._given_up, []
        return [cmd_id for cmd_id in given_up if cmd_id in self._outstanding]

    def answer(self, cmd_id: int, answer: Answer) -> None:
        """Answer a command; ValueError for one that is not outstanding."""
        if cmd_id not in self._outstanding:
            raise ValueError(f"no command {cmd_id} is outstanding")
        self._outstanding.discard(cmd_id)
        at, length, _ = self._slots.popleft()  # a command's: `_give_back` has passed all others
        by_length = self._read_length and answer.read_bytes > 0
        header = {
            "len_op": length | Operation.CMD,
            "cmd_id": cmd_id,
            "uflags": UserFlags.READ_LEN if by_length else 0,
        }
        response = {
            "scsi_status": answer.status,
            "read_len": answer.read_bytes if by_length else 0,
            "sense": answer.sense[:SENSE_BYTES].ljust(SENSE_BYTES, b"\0"),
        }
        start = self._base + at
        self._memory[start : start + ENTRY_BYTES] = build(EntryHeader, header) + build(
            Response, response
        )
        self._tail[0] = (at + length) % self._size
        self._give_back()

    def views(self, entry: Entry) -> list[memoryview]:
        """Return an entry's buffer; it is the kernel's again once the command is answered."""
        return [self._memory[offset : offset + length] for offset, length in entry.areas]

    def _entry(self, start: int, length: int, cmd_id: int) -> Entry:
        if length < ENTRY_BYTES:
            raise RingError(f"TCMU: a command's entry of {length} bytes")
        if cmd_id in self._outstanding:
            raise RingError(f"TCMU: command {cmd_id} twice")
        self._outstanding.add(cmd_id)
        entry = bytes(self._memory[start : start + length])
        request = parse(Request, entry[_HEADER : _HEADER + _REQUEST], "TCMU request")
        offset = request.cdb_off - start
        if not _HEADER + _REQUEST <= offset < length:
            return Entry(cmd_id, b"", fault=f"CDB at {request.cdb_off}")
        cdb = entry[offset : offset + MAX_CDB_BYTES]
        if request.iov_bidi_cnt or request.iov_dif_cnt:
            return Entry(cmd_id, cdb, fault="two buffers, or protection information")
        first = _HEADER + _REQUEST
        end = first + request.iov_cnt * _IOVEC
        if end > offset:
            return Entry(cmd_id, cdb, fault=f"{request.iov_cnt} iovecs")
        areas = []
        for at in range(first, end, _IOVEC):
            area = parse(Iovec, entry[at : at + _IOVEC], "TCMU iovec")
            if area.base < self._data or area.base + area.length > len(self._memory):
                return Entry(cmd_id, cdb, fault=f"{area.length} bytes at {area.base}")
            areas.append((area.base, area.length))
        found = Entry(cmd_id, cdb, tuple(areas))
        if found.length > len(self._memory) - self._data:
            return Entry(cmd_id, cdb, fault=f"{found.length} bytes, more than the data area has")
        return found

    def _managed(self, start: int, length: int) -> list[int]:
        """Return the commands that a task management function is about."""
        entry = bytes(self._memory[start : start + length])
        if length < _CMD_IDS_AT:
            raise RingError(f"TCMU: a TMR's entry of {length} bytes")
        told = parse(TaskManagement, entry[_HEADER:_CMD_IDS_AT], "TCMU TMR")
        end = _CMD_IDS_AT + told.cmd_cnt * _CMD_ID_BYTES
        if end > length:
            raise RingError(f"TCMU: {told.cmd_cnt} commands in a TMR's entry of {length} bytes")
        places = range(_CMD_IDS_AT, end, _CMD_ID_BYTES)
        return [int.from_bytes(entry[at : at + _CMD_ID_BYTES], "little") for at in places]

    def _give_back(self) -> None:
        """Let the kernel have what needs no answer and lies before all that does."""
        while self._slots and not self._slots[0][2]:
            at, length, _ = self._slots.popleft()
            self._tail[0] = (at + length) % self._size

    def _checked(self, name: str, index: int) -> int:
        if index >= self._size or index % ALIGNMENT:
            raise RingError(f"TCMU: {name} {index} in a ring of {self._size} bytes")
        return index


class TcmuDevice:
    """A UIO device with a ring, open: only one process can have that."""

    def __init__(self, name: str) -> None:
        """Open and map a device (`uio0`).

        Raises SetupError if another process has it, RingError if it holds no ring.
        """
        path = DEV / name
        if platform.machine() not in _ORDERED_MACHINES:
            # x86 keeps loads, and stores, in order (SDM 3 8.2.2); Python has no fences for others.
            raise SetupError(
                "serve", str(path), f"no support for {platform.machine()}", "use an x86-64 machine"
            )
        try:
            size = int((SYSFS_UIO / name / "maps/map0/size").read_text(), 16)
            self._file = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise SetupError(
                    "serve", str(path), "another process does", f"end that: `fuser -v {path}`"
                ) from error
            reason = error.strerror or str(error)
            raise SetupError("serve", str(path), reason, "see `dmesg`") from error
        try:
            self._map = mmap.mmap(self._file, size)
            self._memory = memoryview(self._map)
            self.ring = TcmuRing(self._memory)
        except OSError as error:
            os.close(self._file)
            reason = error.strerror or str(error)
            raise SetupError("map", str(path), reason, "see `dmesg`") from error
        except RingError:
            os.close(self._file)
            raise

    def fileno(self) -> int:
        """Return a descriptor that is readable when there is something new on the ring."""
        return self._file

    def clear(self) -> None:
        """Take notice; OSError if the kernel has removed the device."""
        with suppress(BlockingIOError):
            os.read(self._file, 4)

    def kick(self) -> None:
        """Have the kernel look at the answers; OSError if it has removed the device."""
        os.write(self._file, bytes(4))

    def close(self) -> None:
        """Let go of the device; views of it must be gone."""
        self.ring.release()
        self._memory.release()
        self._map.close()
        os.close(self._file)


def uio_of(storage: Path) -> str | None:
    """Return the UIO device of a storage object in configfs, None if it has none."""
    index = storage.parent.name.rpartition("_")[2]
    start = f"tcm-user/{index}/{storage.name}/"
    for entry in sorted(SYSFS_UIO.glob("*/name")):
        with suppress(OSError):
            if entry.read_text().startswith(start):
                return entry.parent.name
    return None


def is_served(storage: Path) -> bool:
    """Return whether a process has a storage object's ring."""
    name = uio_of(storage)
    if name is None:
        return False
    try:
        os.close(os.open(DEV / name, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return error.errno == errno.EBUSY
    return False


def reset_ring(storage: Path) -> None:
    """End all that waits on a storage object's ring with an error; nobody may have it open.

    Raises OSError.
    """
    action = storage / "action"
    (action / "block_dev").write_text("1")
    try:
        (action / "reset_ring").write_text("1")
    finally:
        (action / "block_dev").write_text("0")
