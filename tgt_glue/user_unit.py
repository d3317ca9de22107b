# SPDX-License-Identifier: MIT
"""A unit of the kernel's that a process of ours answers for: made, served and removed as a whole.

Serving begins before the initiator is attached, since the kernel then asks the unit what it is,
and ends after it is detached, since the disk driver then flushes it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from tgt_glue import names
from tgt_glue.backing import Backing, users_of
from tgt_glue.configfs import Attachment, attributes, read_state
from tgt_glue.kernel import check_root, exclusive, prepare
from tgt_glue.nodes import all_nodes
from tgt_glue.plan import Wanted, apply, to_have, to_remove
from tgt_glue.steps import Attach, set_transport
from tgt_glue.tcmu import TcmuDevice, is_served, reset_ring, uio_of
from vscsi.wire.errors import RingError, SetupError

PLUGIN = "user"
GIVEN_UP_AFTER_S = 45
"""When the kernel fails a command by itself that got no answer. It comes after the SCSI layer's own
30 s (of a disk: /sys/block/X/device/timeout), at which it first has the command aborted.
"""
ATTRIBUTES = {
    # Reservations and port groups are the unit's own, not LIO's: others may reach it elsewhere.
    "pgr_support": "0",
    "alua_support": "0",
    "tmr_notification": "1",
    "cmd_time_out": str(GIVEN_UP_AFTER_S),
}
"""Of every such unit's storage object."""


class Service(Protocol):
    """Answers a ring's commands in a thread of its own."""

    def stop(self) -> None:
        """End, and let go of the device. A second call does nothing."""


def prepare_kernel() -> None:
    """Load and mount what user-backed units need; raises SetupError."""
    check_root()
    prepare([PLUGIN])


def serve(
    name: str,
    path: str,
    size_bytes: int,
    block_bytes: int,
    start: Callable[[TcmuDevice], Service],
) -> tuple[Service, Attachment]:
    """Have a unit that `start` serves, attached to the host; or, if something fails, nothing.

    One that a killed process left behind is taken over: what waited on its ring has failed.

    path: what it is behind, for `vscsi lio list`. Raises SetupError.
    """
    names.check_name("unit", name)
    backing = Backing(PLUGIN, path, size_bytes, block_bytes=block_bytes)
    wanted = Wanted(name, backing, ATTRIBUTES, (names.HOST,))
    with exclusive():
        state = read_state(asked=[name])
        unit = state.units.get(name)
        storage = unit.storage if unit else None
        if storage is not None and is_served(storage.path):
            raise SetupError("make unit", name, "another `vscsi hba` serves it", "--name another")
        now = attributes(storage) if storage else {}
        if now.get("hw_block_size", str(block_bytes)) != str(block_bytes):
            raise SetupError(
                "make unit",
                name,
                f"name in use: it has blocks of {now['hw_block_size']} bytes, not {block_bytes}",
                f"`vscsi lio remove {name}` first",
            )
        begin = _Begin(name, start)
        steps = to_have(wanted, state, now)
        apply(
            [
                *(step for step in steps if not isinstance(step, Attach)),
                begin,
                *(step for step in steps if isinstance(step, Attach)),
            ]
        )
        found = read_state(asked=[name]).units.get(name)
    attachment = found.attachment(names.HOST) if found else None
    if attachment is None or begin.service is None:
        raise SetupError("find unit", name, "it left", "`vscsi lio list`")
    return begin.service, attachment


def remove(name: str, service: Service | None, *, force: bool) -> None:
    """Have nothing left of a unit; its service stops in between.

    service: None if none answers any more. Raises SetupError if its disk is in use, unless `force`.
    """
    with exclusive():
        unit = read_state(asked=[name]).units.get(name)
        if unit is not None:
            let_go = _End(service) if service is not None else None
            apply(to_remove(unit, force=force, let_go=let_go))


def users(attachment: Attachment) -> list[str]:
    """Return who uses an attached unit's disk, in words."""
    found = []
    for node in all_nodes(attachment.hctl):
        try:
            found += [f"{node} {user}" for user in users_of(node)]
        except OSError:
            continue  # leaving
    return found


@dataclass
class _Begin:
    """Serve a unit that is there, as after `MakeStorage`."""

    name: str
    start: Callable[[TcmuDevice], Service]
    service: Service | None = None

    def describe(self) -> str:
        """Return what it does."""
        return f"serve {self.name}"

    def do(self) -> None:
        """Open its ring and start the service."""
        unit = read_state(asked=[self.name]).units.get(self.name)
        uio = uio_of(unit.storage.path) if unit and unit.storage else None
        if unit is None or unit.storage is None or uio is None:
            raise SetupError("serve", self.name, "it has no UIO device", "see `dmesg`")
        reset_ring(unit.storage.path)
        try:
            self.service = self.start(TcmuDevice(uio))
        except RingError as error:
            raise SetupError("serve", self.name, str(error), "use another kernel") from error
        for each in unit.attachments:
            set_transport(each, "online")

    def undo(self) -> None:
        """Stop it."""
        if self.service is not None:
            self.service.stop()


@dataclass
class _End:
    """Stop a service."""

    service: Service

    def describe(self) -> str:
        """Return what it does."""
        return "stop serving"

    def do(self) -> None:
        """Stop it."""
        self.service.stop()

    def undo(self) -> None:
        """Nothing is lost with it."""
