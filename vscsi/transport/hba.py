# SPDX-License-Identifier: MIT
"""The Python interface of an initiator: `Hba` and its logical units."""

import threading
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from types import TracebackType

from vscsi.domain.base import DomainError
from vscsi.target.base import Attribute, Function, ServiceResponse, Status
from vscsi.transport.initiator import (
    Buffer,
    Command,
    Initiator,
    ManagementCommand,
    TransportError,
)
from vscsi.wire import cdb as cdbs
from vscsi.wire import inquiry, parameters
from vscsi.wire.lun import encode as encode_lun
from vscsi.wire.sense import Sense, SenseKey, parse_sense

COMMAND_TIMEOUT_S = 30.0
UNIT_ATTENTION_RETRIES = 8


@dataclass(frozen=True, slots=True)
class Reply:
    """How a command ended. data is what arrived, without the part that did not."""

    status: Status
    sense: bytes
    residual: int
    data: bytes

    @property
    def decoded_sense(self) -> Sense | None:
        """The sense data as a value, None if there is none."""
        return parse_sense(self.sense) if self.sense else None


class ScsiError(Exception):
    """A command ended with a status other than GOOD; `reply` has it all."""

    def __init__(self, cdb: bytes, reply: Reply) -> None:
        sense = reply.decoded_sense
        detail = f": {sense.describe()}" if sense else ""
        super().__init__(f"{cdbs.describe(cdb)}: {reply.status.name}{detail}")
        self.reply = reply


class Hba:
    """A host bus adapter: the initiator end of one path, usable from any thread.

    Use as a context manager, or `close` it. Commands run concurrently up to the path's depth;
    more wait their turn.
    """

    def __init__(self, initiator: Initiator) -> None:
        self.initiator = initiator

    def __enter__(self) -> "Hba":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the path; what is in flight ends with TransportError."""
        self.initiator.close()

    def lun(self, number: int) -> "Lun":
        """Return a logical unit by number; nothing is sent yet."""
        return Lun(self, encode_lun(number))

    def parameters(self) -> Mapping[str, object]:
        """Return what both ends negotiated."""
        return self.initiator.parameters()

    def start(
        self,
        lun: "Lun | bytes",
        cdb: bytes,
        *,
        data_out: bytes | bytearray | memoryview = b"",
        data_in: int = 0,
        attribute: Attribute = Attribute.SIMPLE,
    ) -> "CommandFuture":
        """Send a command and return a future for its reply (await it with asyncio.wrap_future).

        data_in is the size of the buffer for data-in, in bytes. The future raises TransportError
        where there is no SCSI status; `future.command` is the command, for ABORT TASK. Raises
        TransportError if the path cannot carry the command, or has no memory for its data.
        """
        future = CommandFuture()
        send, receive = self._buffers(data_out, data_in)

        def done(command: Command) -> None:
            data = b""
            if receive is not None and command.error is None:
                data = bytes(receive.view[: data_in - max(0, min(command.residual, data_in))])
            for buffer in (send, receive):
                if buffer is not None:
                    self.initiator.free(buffer)
            if command.error is not None:
                future.set_exception(command.error)
            else:
                future.set_result(Reply(command.status, command.sense, command.residual, data))

        command = Command(
            lun=lun.address if isinstance(lun, Lun) else lun,
            cdb=bytes(cdb),
            done=done,
            data_out=(send,) if send is not None else (),
            data_in=(receive,) if receive is not None else (),
            attribute=attribute,
        )
        future.command = command
        future.set_running_or_notify_cancel()
        try:
            self.initiator.submit(command)
        except TransportError:
            for buffer in (send, receive):
                if buffer is not None:
                    self.initiator.free(buffer)
            raise
        return future

    def _buffers(
        self, data_out: bytes | bytearray | memoryview, data_in: int
    ) -> tuple[Buffer | None, Buffer | None]:
        """Return a buffer with data_out and one for data_in, None for an empty one."""
        send = receive = None
        try:
            if data_out:
                send = self.initiator.alloc(len(data_out))
                send.view[:] = data_out
            if data_in:
                receive = self.initiator.alloc(data_in)
        except DomainError as error:
            if send is not None:
                self.initiator.free(send)
            raise TransportError(str(error)) from error
        return send, receive

    def command(
        self,
        lun: "Lun | bytes",
        cdb: bytes,
        *,
        data_out: bytes | bytearray | memoryview = b"",
        data_in: int = 0,
        attribute: Attribute = Attribute.SIMPLE,
        timeout_s: float = COMMAND_TIMEOUT_S,
    ) -> Reply:
        """Send a command and wait for its reply, whatever its status.

        After timeout_s the command is aborted and TransportError raised.
        """
        future = self.start(lun, cdb, data_out=data_out, data_in=data_in, attribute=attribute)
        try:
            return future.result(timeout_s)
        except TimeoutError:
            pass
        address = lun.address if isinstance(lun, Lun) else lun
        came_to = self.manage(address, Function.ABORT_TASK, managed=future.command)
        raise TransportError(
            f"no answer to {cdbs.describe(cdb)} within {timeout_s:g} s; "
            f"ABORT TASK: {came_to.name.lower().replace('_', ' ')}"
        )

    def manage(
        self,
        lun: "Lun | bytes",
        function: Function,
        *,
        managed: Command | None = None,
        timeout_s: float = COMMAND_TIMEOUT_S,
    ) -> ServiceResponse:
        """Perform a task management function and return what it came to."""
        finished = threading.Event()
        request = ManagementCommand(
            lun=lun.address if isinstance(lun, Lun) else lun,
            function=function,
            done=lambda _: finished.set(),
            managed=managed,
        )
        self.initiator.manage(request)
        if not finished.wait(timeout_s):
            raise TransportError(f"no answer to {function.name} within {timeout_s:g} s")
        if request.error is not None:
            raise request.error
        return request.response

    def report_luns(self) -> list[bytes]:
        """Return the target's LUNs (8 bytes each), as REPORT LUNS gives them."""
        cdb = cdbs.build("REPORT LUNS", allocation_length=16 * 1024)
        data = self._good(encode_lun(0), cdb, data_in=16 * 1024)
        return list(parameters.parse_report_luns(data))

    def _good(
        self, lun: bytes, cdb: bytes, *, data_out: bytes | memoryview = b"", data_in: int = 0
    ) -> bytes:
        """Send a command until no unit attention is in its way; ScsiError unless GOOD."""
        for _ in range(UNIT_ATTENTION_RETRIES):
            reply = self.command(lun, cdb, data_out=data_out, data_in=data_in)
            if reply.status == Status.GOOD:
                return reply.data
            sense = reply.decoded_sense
            if sense is None or sense.key != SenseKey.UNIT_ATTENTION:
                break
        raise ScsiError(cdb, reply)


class CommandFuture(Future[Reply]):
    """A future for a reply that knows its command."""

    command: Command


class Lun:
    """A logical unit as an initiator sees it. Methods raise ScsiError unless the status is GOOD.

    Unit attentions that are pending are consumed and the command sent again, as every initiator
    does; `Hba.command` shows them.
    """

    def __init__(self, hba: Hba, address: bytes) -> None:
        self.hba = hba
        self.address = address
        self._capacity: parameters.Capacity | None = None

    def inquiry(self) -> inquiry.StandardInquiry:
        """Return the standard INQUIRY data, decoded."""
        cdb = cdbs.build("INQUIRY", allocation_length=255)
        return inquiry.parse_standard(self.command(cdb, data_in=255))

    def vpd(self, page: int) -> bytes:
        """Return a vital product data page as bytes."""
        cdb = cdbs.build("INQUIRY", evpd=1, page_code=page, allocation_length=4096)
        return self.command(cdb, data_in=4096)

    def capacity(self) -> parameters.Capacity:
        """Return READ CAPACITY(16)'s answer (asked once)."""
        if self._capacity is None:
            cdb = cdbs.build("READ CAPACITY(16)", allocation_length=32)
            self._capacity = parameters.parse_capacity_16(self.command(cdb, data_in=32))
        return self._capacity

    def read(self, lba: int, blocks: int) -> bytes:
        """Return `blocks` blocks from `lba` on."""
        length = blocks * self.capacity().block_length
        return self.command(cdbs.build("READ(16)", lba=lba, blocks=blocks), data_in=length)

    def write(self, lba: int, data: bytes | memoryview, *, fua: bool = False) -> None:
        """Write whole blocks from `lba` on; with fua they are on stable storage afterwards."""
        blocks, rest = divmod(len(data), self.capacity().block_length)
        if rest:
            raise ValueError(f"{len(data)} bytes are no multiple of the block length")
        self.command(cdbs.build("WRITE(16)", lba=lba, blocks=blocks, fua=fua), data_out=data)

    def flush(self) -> None:
        """SYNCHRONIZE CACHE: all acknowledged writes are on stable storage afterwards."""
        self.command(cdbs.build("SYNCHRONIZE CACHE(16)"))

    def unmap(self, lba: int, blocks: int) -> None:
        """Deallocate blocks."""
        data = parameters.build_unmap([(lba, blocks)])
        self.command(cdbs.build("UNMAP", parameter_list_length=len(data)), data_out=data)

    def command(self, cdb: bytes, *, data_out: bytes | memoryview = b"", data_in: int = 0) -> bytes:
        """Send any CDB to this unit; return its data-in."""
        return self.hba._good(self.address, cdb, data_out=data_out, data_in=data_in)


__all__ = ["Buffer", "Hba", "Lun", "Reply", "ScsiError", "TransportError"]
