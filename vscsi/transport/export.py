# SPDX-License-Identifier: MIT
"""Serving a target: for each domain that attaches, the devices of all three protocols."""

import hashlib
import json
import logging
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from vscsi.domain.base import StoreClient, StoreError, StoreOperations
from vscsi.domain.keys import read_state, transact
from vscsi.domain.local import BACKEND_DOMAIN, Answer, LocalHost, LocalMessage, LocalPeer
from vscsi.domain.toolstack import VBD, VSCSI, VSRP, Device, create
from vscsi.domain.xenbus import Backend, Reader, XenbusState
from vscsi.target.base import Nexus
from vscsi.target.disk import Disk
from vscsi.target.logical_unit import LogicalUnit
from vscsi.target.refusals import CAPACITY_CHANGED, REPORTED_LUNS_CHANGED
from vscsi.target.router import TaskRouter
from vscsi.transport.backend import Connection, RingBackend
from vscsi.transport.blkif.backend import BlkifBackend
from vscsi.transport.blkif.frontend import FIRST_VBD
from vscsi.transport.srp.backend import SrpBackend
from vscsi.transport.srp.port import SrpPort
from vscsi.transport.tap import TapSwitch
from vscsi.transport.vscsiif.backend import VscsiifBackend
from vscsi.wire.blkif import NATIVE, Layout
from vscsi.wire.lun import encode
from vscsi.wire.sense import Sense

VBD_STEP = 16
"""Between the virtual device numbers of two disks (io/blkif.h)."""
MAX_WARNINGS = 16
"""Of one domain: it can have its channels closed as often as it likes."""

log = logging.getLogger(__name__)


class Turns:
    """A thread that calls what it is given, in order; one a domain.

    Tearing a device down waits for what runs on it. Here a guest waits for itself alone.
    """

    def __init__(self, name: str) -> None:
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def post(self, call: Callable[[], None]) -> None:
        """Have something called, after what was posted before; any thread, does not wait."""
        self._queue.put(call)

    def end(self) -> None:
        """End the thread after what was posted before; any thread, does not wait."""
        self._queue.put(None)

    @property
    def alive(self) -> bool:
        """Whether the thread has not ended."""
        return self._thread.is_alive()

    def join(self) -> None:
        """Wait for the thread to end."""
        self._thread.join()

    def _run(self) -> None:
        while (call := self._queue.get()) is not None:
            try:
                call()
            except Exception:  # one device's trouble is not the next one's
                log.exception("%s", self._thread.name)


class WatchingStore:
    """A store client whose watch callbacks are called by a domain's own thread."""

    def __init__(self, store: StoreClient, turns: Turns) -> None:
        self._store = store
        self._turns = turns
        self.read = store.read
        self.write = store.write
        self.mkdir = store.mkdir
        self.rm = store.rm
        self.directory = store.directory
        self.get_perms = store.get_perms
        self.set_perms = store.set_perms
        self.transaction = store.transaction

    def watch(self, path: str, callback: Callable[[str], None]) -> Callable[[], None]:
        """Watch a path; an event that waits for the domain's thread is not posted twice."""
        waiting: set[str] = set()  # as long as what the guest has below the path (XSA-349)

        def call(changed: str) -> None:
            waiting.discard(changed)
            callback(changed)

        def fire(changed: str) -> None:
            if changed not in waiting:
                waiting.add(changed)
                self._turns.post(partial(call, changed))

        return self._store.watch(path, fire)


@dataclass(slots=True)
class Served:
    """One device of one domain."""

    device: Device
    end: RingBackend
    half: Backend


class Guest:
    """One attached domain and its devices."""

    def __init__(self, export: "Export", peer: LocalPeer) -> None:
        self.peer = peer
        self.devices: list[Served] = []
        self._export = export
        self._warnings = 0
        self._turns = Turns(f"domain-{peer.domain}")
        self._store = WatchingStore(export.host.store, self._turns)
        self._plug()

    def _plug(self) -> None:
        export, peer = self._export, self.peer
        vscsi_units = {
            f"vscsi-devs/dev-{at}/{key}": value
            for at, number in enumerate(export.units)
            for key, value in (
                ("p-dev", str(number)),
                ("v-dev", f"0:0:0:{number}"),
                ("state", str(int(XenbusState.INITIALISING))),
            )
        }
        self._serve(VSRP, 0, SrpBackend(peer, 0, export.tap, export.port), {})
        vscsi = Device(VSCSI, peer.domain, 0)
        own_keys = partial(Reader, self._store, vscsi.backend_path)
        port = export.port.port_id.hex()
        self._serve(
            VSCSI,
            0,
            VscsiifBackend(peer, 0, export.tap, export.router, port, own_keys),
            vscsi_units,
        )
        for at, number in enumerate(export.units):
            disk = export.vbds.get(number)
            if disk is None:
                continue
            handle = FIRST_VBD + VBD_STEP * at
            end = BlkifBackend(peer, at, export.tap, disk, export.blkif_layout)
            mode = "r" if disk.write_protected else "w"
            self._serve(VBD, handle, end, {"mode": mode})

    def _serve(self, kind: str, handle: int, end: RingBackend, keys: Mapping[str, str]) -> None:
        device = Device(kind, self.peer.domain, handle)
        create(self._store, device, backend_keys=keys)
        half = Backend(self._store, device.backend_path, end, partial(self._changed, device))
        end.on_failure = lambda reason: self._turns.post(
            partial(self._failed, end, end.connection, half, reason)
        )
        self.devices.append(Served(device, end, half))
        self._turns.post(half.start)

    def _changed(self, device: Device, state: XenbusState, reason: str) -> None:
        level = logging.INFO
        if reason and state is XenbusState.CLOSING and self._warnings < MAX_WARNINGS:
            level = logging.WARNING
            self._warnings += 1
        log.log(level, "%s: %s %s", device.backend_path, state.name, reason)

    def _failed(
        self, end: RingBackend, connection: Connection | None, half: Backend, reason: str
    ) -> None:
        if end.connection is connection:  # else the frontend was faster, and has another one
            half.fail(reason)

    def resized(self, disk: Disk) -> None:
        """Publish the size that a disk has now on its vbd; any thread, does not wait."""
        for served in self.devices:
            if isinstance(served.end, BlkifBackend) and served.end.disk is disk:
                self._turns.post(partial(self._publish_size, served.device, served.end))

    def _publish_size(self, device: Device, end: BlkifBackend) -> None:
        """Rewrite the size, and the state so that its watch fires (io/blkif.h, resize)."""
        state = f"{device.backend_path}/state"

        def body(operations: StoreOperations) -> None:
            if read_state(operations, device.backend_path) is XenbusState.CONNECTED:
                for key, value in end.geometry().items():
                    operations.write(f"{device.backend_path}/{key}", value)
                operations.write(state, str(int(XenbusState.CONNECTED)))

        transact(self._store, body)

    def gone(self) -> None:
        """Take the domain's devices down; any thread, does not wait."""
        self._turns.post(self._unplug)
        self._turns.end()

    def _unplug(self) -> None:
        try:
            for served in self.devices:
                served.half.stop()
            self.peer.close()
        finally:
            self._forget()

    def _forget(self) -> None:
        """Remove what the store has of the domain."""
        domain, ours = self.peer.domain, f"/local/domain/{BACKEND_DOMAIN}"
        kinds = sorted({served.device.kind for served in self.devices})
        for path in (
            f"/local/domain/{domain}",
            *(f"{ours}/backend/{kind}/{domain}" for kind in kinds),
            *(f"{ours}/error/backend/{kind}/{domain}" for kind in kinds),
        ):
            try:
                self._store.rm(path)
            except StoreError as error:
                log.debug("domain %d: %s", domain, error)

    @property
    def alive(self) -> bool:
        """Whether the domain's devices are up, or on their way down."""
        return self._turns.alive

    def join(self) -> None:
        """Wait until the domain's devices are down."""
        self._turns.join()


class Export:
    """A target served in a directory over SRP and vscsiif, and what of it is blocks over blkif."""

    def __init__(
        self,
        directory: Path,
        units: Mapping[int, LogicalUnit],
        *,
        vbds: Mapping[int, Disk] | None = None,
        workers: int = 0,
        blkif_layout: Layout = NATIVE,
    ) -> None:
        """units: by logical unit number; they and their stores stay the caller's.

        A unit that is a `Disk` is a vbd as well. vbds: what is the vbd beside other units, on the
        blocks that they have themselves; the n-th unit's is the n-th vbd, whether others are there
        or not.
        """
        self.units = dict(units)
        self.vbds = {number: unit for number, unit in units.items() if isinstance(unit, Disk)}
        self.vbds |= vbds or {}
        self.tap = TapSwitch()
        self.router = TaskRouter(workers=workers)
        for number, unit in units.items():
            self.router.add(number, unit)
        self._end_observing = [
            *(
                unit.attentions.observe(partial(self._attention, encode(number)))
                for number, unit in units.items()
            ),
            *(
                disk.attentions.observe(partial(self._disk_attention, disk))
                for disk in self.vbds.values()
            ),
        ]
        port_id = hashlib.sha256(str(directory.resolve()).encode()).digest()[:16]
        self.port = SrpPort(self.router, port_id)
        self.blkif_layout = blkif_layout
        self.host = LocalHost(
            directory,
            on_domain=self._domain,
            on_domain_gone=self._domain_gone,
        )
        self.host.answers[LocalMessage.STATISTICS] = self._statistics
        self._guests: dict[int, Guest] = {}
        self._leaving: list[Guest] = []

    def start(self) -> None:
        """Serve; SetupError if the directory cannot be."""
        self.host.start()

    def stop(self) -> None:
        """Close all channels and stop; returns when nobody uses a unit any more."""
        self.host.stop()
        for guest in self._leaving:
            guest.join()
        self.router.close()
        for end_observing in self._end_observing:
            end_observing()

    def _attention(self, lun: bytes, condition: Sense, nexuses: Sequence[Nexus]) -> None:
        """Tell at once what the next command would be told: the configuration has changed."""
        if condition in (CAPACITY_CHANGED, REPORTED_LUNS_CHANGED):
            self.port.report_event(nexuses, lun, condition.build())

    def _disk_attention(self, disk: Disk, condition: Sense, _nexuses: Sequence[Nexus]) -> None:
        """Have every guest's vbd follow the size of a disk."""
        if condition == CAPACITY_CHANGED:
            for guest in list(self._guests.values()):
                guest.resized(disk)

    def _domain(self, peer: LocalPeer) -> None:
        log.info("domain %d attached", peer.domain)
        self._guests[peer.domain] = Guest(self, peer)

    def _domain_gone(self, peer: LocalPeer) -> None:
        log.info("domain %d is gone", peer.domain)
        guest = self._guests.pop(peer.domain)
        self._leaving = [each for each in self._leaving if each.alive] + [guest]
        guest.gone()

    def _statistics(self, domain: int, payload: bytes) -> Answer:
        """Answer with one device's report; a domain may ask for its own.

        staged_bytes is that of all units and vbds, for whomever.
        """
        guest = self._guests.get(domain)
        device = payload.decode("ascii", "replace")
        staged = sum(unit.staged_bytes for unit in {*self.units.values(), *self.vbds.values()})
        if guest is not None:
            for served in guest.devices:
                name = f"{served.device.kind} {served.device.handle}"
                if name == device and served.end.connection is not None:
                    report = {**served.end.report(), "staged_bytes": staged}
                    return json.dumps(report).encode(), ()
        raise StoreError("ENOENT")
