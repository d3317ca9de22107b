# SPDX-License-Identifier: MIT
"""A kernel's side of a TCMU ring in memory, laid out independently of the code under test."""

import struct

RING_AT, DATA_BYTES = 4096, 1 << 16
PAD, CMD, TMR = 0, 1, 2
ABORT_TASK = 1
READ_10 = bytes.fromhex("28 00 00 00 00 08 00 00 08 00")


class Kernel:
    """The kernel's side: puts entries, takes answers; odd ones, if it is told to."""

    def __init__(self, size=1024, flags=3, version=2):
        self.size = size
        self.data_at = RING_AT + size
        self.memory = bytearray(self.data_at + DATA_BYTES)
        struct.pack_into("<HHIII", self.memory, 0, version, flags, RING_AT, size, 0)
        self.cleaned = 0

    @property
    def head(self):
        return struct.unpack_from("<I", self.memory, 12)[0]

    @head.setter
    def head(self, value):
        struct.pack_into("<I", self.memory, 12, value)

    @property
    def tail(self):
        return struct.unpack_from("<I", self.memory, 64)[0]

    @tail.setter
    def tail(self, value):
        struct.pack_into("<I", self.memory, 64, value)

    def free(self):
        return (self.cleaned - self.head - 8) % self.size

    def put_raw(self, entry):
        """Put bytes at the head and move it."""
        at = self.head
        self.memory[RING_AT + at : RING_AT + at + len(entry)] = entry
        self.head = (at + len(entry)) % self.size

    def put(self, cmd_id, cdb=READ_10, areas=(), *, bidi=0, dif=0, cdb_at=None, count=None):
        """Put a command as the kernel does, after a pad where it would wrap; False if no room."""
        base = max(48 + 16 * len(areas), 112)
        length = base + -(-len(cdb) // 8) * 8
        rest = self.size - self.head
        pad = rest if rest < length else 0
        if self.free() < length + pad:
            return False
        if pad:
            self.put_raw(struct.pack("<IHBB", pad | PAD, 0, 0, 0).ljust(pad, b"\xee"))
        at = RING_AT + self.head
        entry = struct.pack("<IHBB", length | CMD, cmd_id, 0, 0)
        count = len(areas) if count is None else count
        where = at + base if cdb_at is None else cdb_at
        entry += struct.pack("<IIIIQQQ", count, bidi, dif, 0, where, 0, 0)
        entry += b"".join(struct.pack("<QQ", *area) for area in areas)
        self.put_raw(entry.ljust(base, b"\xee") + cdb.ljust(length - base, b"\0"))
        return True

    def put_tmr(self, *cmd_ids, count=None):
        """Put a notice that commands are to be aborted."""
        count = len(cmd_ids) if count is None else count
        entry = struct.pack("<BxxxI16x", ABORT_TASK, count) + struct.pack(
            f"<{len(cmd_ids)}H", *cmd_ids
        )
        length = 8 + -(-len(entry) // 8) * 8
        self.put_raw((struct.pack("<IHBB", length | TMR, 0, 0, 0) + entry).ljust(length, b"\0"))

    def take(self):
        """Return the answers up to cmd_tail: (cmd_id, uflags, status, read_len, sense)."""
        found = []
        while self.cleaned != self.tail:
            at = RING_AT + self.cleaned
            len_op, cmd_id, _, uflags = struct.unpack_from("<IHBB", self.memory, at)
            assert len_op & ~7 > 0
            if len_op & 7 == CMD:
                status, length = struct.unpack_from("<BxxxI", self.memory, at + 8)
                found.append((cmd_id, uflags, status, length, bytes(self.memory[at + 16 :][:96])))
            elif len_op & 7 not in (PAD, TMR):
                found.append((cmd_id, uflags, None, 0, b""))
            self.cleaned = (self.cleaned + (len_op & ~7)) % self.size
        return found
