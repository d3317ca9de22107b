# SPDX-License-Identifier: MIT
"""A kernel for the glue's tests: what an sg node does with what is written to it, in this process.

A socket pair stands for an open file, so writing, polling and reading are real.
"""

import contextlib
import ctypes
import mmap
import queue
import socket
import threading
from dataclasses import dataclass, field

import pytest

from tests.tgt_glue.sg_header import (
    DIRECT_IO,
    FROM_DEVICE,
    MMAP_IO,
    NO_DATA,
    TO_DEVICE,
    Header,
    Iovec,
)
from tgt_glue.lio_unit import LioUnit
from tgt_glue.sg import SgDevice, Traits
from vscsi.target.base import Nexus, Task
from vscsi.target.disk import Disk
from vscsi.target.router import TaskRouter
from vscsi.target.stores.memory import MemoryStore
from vscsi.transport.call import CallInitiator
from vscsi.transport.hba import Hba
from vscsi.wire.lun import encode

STALE = 0xEE
"""What the kernel's buffers hold where a command has put nothing."""


@dataclass
class Sent:
    """A command as the kernel got it."""

    cdb: bytes
    direction: int
    length: int
    flags: int = 0
    timeout_ms: int = 0
    data: bytes = b""
    """Data-out."""
    iovecs: int = 0


@dataclass
class Reply:
    """What the kernel answers."""

    data: bytes = b""
    status: int = 0
    sense: bytes = b""
    host: int = 0
    driver: int = 0
    residual: int | None = None
    """None: what data lacks of the length, 0 if there is none."""


@dataclass
class FakeNode:
    """An sg node whose commands `execute` executes; a command with no reply stays the kernel's."""

    execute: object = lambda sent: Reply()
    device_type: int = 0
    max_bytes: int = 1 << 20
    max_pages: int = 256
    direct_io: bool = False
    max_reserve: int = 1 << 20
    sent: list = field(default_factory=list)
    resets: list = field(default_factory=list)
    reserves: dict = field(default_factory=dict)
    commands: dict = field(default_factory=dict)
    opened: int = 0
    reset_error: OSError | None = None
    open_error: OSError | None = None

    def open(self):
        """Open it: a thread is the kernel's side."""
        if self.open_error is not None:
            raise self.open_error
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        self.opened += 1
        descriptor = ours.detach()
        if descriptor in self.commands:  # closed, and given out anew
            self.commands[descriptor].put(None)
        commands = self.commands[descriptor] = queue.SimpleQueue()
        arguments = (theirs, descriptor, commands)
        threading.Thread(target=self._serve, args=arguments, daemon=True).start()
        return descriptor

    def submit(self, descriptor, header):
        """Take a command and all that it names."""
        taken = Header.from_buffer_copy(header)
        sent = self._take(taken)
        self.sent.append(sent)
        self.commands[descriptor].put((taken, sent))

    def traits(self, descriptor):
        """Tell what was said at making it."""
        return Traits(self.device_type, self.max_bytes, self.max_pages)

    def reserve(self, descriptor, size):
        """Map a buffer that both sides have."""
        if size > self.max_reserve:
            raise OSError(12, "Cannot allocate memory")
        self.reserves[descriptor] = buffer = mmap.mmap(-1, size)
        return buffer

    def reset(self, descriptor):
        """Note it."""
        if self.reset_error is not None:
            raise self.reset_error
        self.resets.append(descriptor)

    def native(self):
        """Have nothing to do with C, which needs a real one."""

    def stop(self):
        """End the kernel's side."""
        for commands in self.commands.values():
            commands.put(None)

    def _serve(self, theirs, descriptor, commands):
        with theirs:
            while (command := commands.get()) is not None:
                header, sent = command
                reply = self.execute(sent)
                if reply is not None:
                    self._give(header, reply, descriptor)
                    with contextlib.suppress(BrokenPipeError):
                        theirs.send(bytes(header))

    def _take(self, header):
        assert header.interface_id == ord("S")
        data = b""
        if header.dxfer_direction == TO_DEVICE:
            if header.iovec_count:
                vectors = (Iovec * header.iovec_count).from_address(header.dxferp)
                data = b"".join(ctypes.string_at(each.base, each.length) for each in vectors)
            else:
                data = ctypes.string_at(header.dxferp, header.dxfer_len)
            assert len(data) == header.dxfer_len
        return Sent(
            ctypes.string_at(header.cmdp, header.cmd_len),
            header.dxfer_direction,
            header.dxfer_len,
            header.flags,
            header.timeout,
            data,
            header.iovec_count,
        )

    def _give(self, header, reply, descriptor):
        if header.dxfer_direction == FROM_DEVICE:
            whole = reply.data[: header.dxfer_len].ljust(header.dxfer_len, bytes([STALE]))
            if header.flags & MMAP_IO:
                assert not header.dxferp
                self.reserves[descriptor][: len(whole)] = whole
            elif header.flags & DIRECT_IO:
                ctypes.memmove(header.dxferp, reply.data, len(reply.data))
            else:
                ctypes.memmove(header.dxferp, whole, len(whole))
        header.status = reply.status
        header.host_status = reply.host
        header.driver_status = reply.driver
        count = min(len(reply.sense), header.mx_sb_len)
        ctypes.memmove(header.sbp, reply.sense, count)
        header.sb_len_wr = count
        missing = header.dxfer_len - len(reply.data) if reply.data else 0
        header.resid = missing if reply.residual is None else reply.residual


@pytest.fixture
def make_node():
    """Make a fake sg node."""
    with contextlib.ExitStack() as stack:

        def make(*arguments, **options):
            node = FakeNode(*arguments, **options)
            stack.callback(node.stop)
            return node

        yield make


@pytest.fixture
def make_device():
    """Make an SgDevice on a fake node; all are closed in the end."""
    with contextlib.ExitStack() as stack:

        def make(node):
            device = SgDevice(node, "/dev/sg0")
            stack.callback(device.close)
            return device

        yield make


@pytest.fixture
def reply():
    """What a fake node answers."""
    return Reply


@pytest.fixture
def page_buffer():
    """Make page-aligned memory."""
    return lambda size: memoryview(mmap.mmap(-1, size))


class DiskBehind:
    """Executes what reaches a fake node on an embedded disk.

    A buffer that is not what the CDB's data are fails the test: the disk would have moved more, or
    would have moved all and left some.
    """

    def __init__(self, router, nexus):
        self.router, self.nexus = router, nexus
        router.attach(nexus)
        self(Sent(bytes(6), NO_DATA, 0))  # power on

    def __call__(self, sent):
        """Execute a command."""
        finished = queue.SimpleQueue()
        room = bytearray(sent.length if sent.direction == FROM_DEVICE else 0)
        task = Task(
            self.nexus,
            encode(0),
            threading.get_ident(),
            sent.cdb,
            finished.put,
            data_out=[memoryview(sent.data)] if sent.data else (),
            data_in=[memoryview(room)] if room else (),
        )
        self.router.submit(task)
        finished.get(timeout=30)
        assert task.overflow == 0, f"{sent} does not fit its CDB"
        if sent.direction == TO_DEVICE:
            assert task.moved in (0, len(sent.data)), f"{sent} does not fit its CDB"
        data = bytes(room[: task.moved])
        return Reply(data, task.status, task.sense, residual=sent.length - task.moved)


class FakePort:
    """Gives each nexus an sg node of its own."""

    def __init__(self, make_execute, **options):
        self.make_execute = make_execute
        self.options = options
        self.nodes = {}
        self.gone = []
        self.error = None
        self.full = False

    def attach(self, nexus):
        """Make a node; its "path" is the nexus."""
        if self.error is not None:
            raise self.error
        if nexus not in self.nodes:
            self.nodes[nexus] = FakeNode(self.make_execute(nexus), **self.options)
        return nexus

    def detach(self, nexus):
        """Note it."""
        self.gone.append(nexus)

    def may_register(self, nexus):
        """Say whether there is room."""
        return not self.full

    def stop(self):
        """End all nodes."""
        for node in self.nodes.values():
            node.stop()

    def open_device(self, path):
        """Open a node."""
        return SgDevice(self.nodes[path], str(path))


@dataclass
class Setup:
    """A target with one LIO unit, and what is below it."""

    router: TaskRouter
    unit: LioUnit
    port: FakePort

    def hba(self, name="a", *, attentions=False):
        """Return a new initiator's HBA; its `node` is the sg node of its nexus."""
        nexus = Nexus(name, "target")
        hba = Hba(CallInitiator(self.router, nexus))
        hba.nexus = nexus
        hba.node = self.port.nodes.get(nexus)
        if not attentions:
            hba.command(encode(0), bytes(6))
        return hba


@pytest.fixture
def make_setup():
    """Make a target with one LIO unit: over an embedded disk, or over `execute` for each nexus."""
    with contextlib.ExitStack() as stack:

        def make(execute=None, *, blocks=4096, block_size=512, depth=4, timeout_s=20.0, **options):
            below = TaskRouter()
            below.add(0, Disk(MemoryStore(blocks * block_size), block_size=block_size))

            def make_execute(nexus):
                return execute or DiskBehind(below, nexus)

            port = FakePort(make_execute, **options)
            unit = LioUnit(port, depth=depth, timeout_s=timeout_s, open_device=port.open_device)
            router = TaskRouter()
            router.add(0, unit)
            stack.callback(port.stop)
            stack.callback(unit.close)
            stack.callback(router.close)
            return Setup(router, unit, port)

        yield make
