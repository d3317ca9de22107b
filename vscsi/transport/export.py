# SPDX-License-Identifier: MIT
"""Serving a target: for each domain that attaches, the devices of all three protocols."""

import hashlib
import json
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from vscsi.domain.base import StoreError, StoreOperations
from vscsi.domain.keys import read_state, transact
from vscsi.domain.local import BACKEND_DOMAIN, Answer, LocalHost, LocalMessage, LocalPeer
from vscsi.domain.toolstack import KINDS, VBD, VSCSI, VSRP, Device, create, remove
from vscsi.domain.xenbus import Backend, Reader, XenbusState
from vscsi.target.base import Nexus
from vscsi.target.disk import Disk
from vscsi.target.logical_unit import LogicalUnit
from vscsi.target.refusals import CAPACITY_CHANGED, REPORTED_LUNS_CHANGED
from vscsi.target.router import TaskRouter
from vscsi.transport.backend import POLL_NS, Connection, RingBackend
from vscsi.transport.blkif.backend import BlkifBackend
from vscsi.transport.blkif.frontend import FIRST_VBD
from vscsi.transport.queues import Queues
from vscsi.transport.srp.backend import SrpBackend
from vscsi.transport.srp.port import SrpPort
from vscsi.transport.tap import Geometry, RingPath, TapSwitch
from vscsi.transport.turns import Turns, WatchingStore
from vscsi.transport.vscsiif.backend import VscsiifBackend
from vscsi.transport.vscsiif.units import UnitList
from vscsi.wire.blkif import NATIVE, Layout
from vscsi.wire.lun import encode
from vscsi.wire.record import Protocol
from vscsi.wire.sense import Sense

VBD_STEP = 16
"""Between the virtual device numbers of two disks (io/blkif.h)."""
MAX_WARNINGS = 16
"""Of one domain: it can have its channels closed as often as it likes."""

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Served:
    """One device of one domain."""

    device: Device
    queues: Queues
    half: Backend

    @property
    def disk(self) -> Disk | None:
        """What a vbd is of."""
        end = self.queues.ends[0]
        return end.disk if isinstance(end, BlkifBackend) else None


class Guest:
    """One attached domain and its devices."""

    def __init__(self, export: "Export", peer: LocalPeer) -> None:
        self.peer = peer
        self.devices: tuple[Served, ...] = ()  # replaced, never changed
        self._export = export
        self._warnings = 0
        self._turns = Turns(f"domain-{peer.domain}")
        self._store = WatchingStore(export.host.store, self._turns)
        self._vscsi = Device(VSCSI, peer.domain, 0)
        self._units = UnitList(self._store, self._vscsi)
        self._plug()

    def _plug(self) -> None:
        export, peer = self._export, self.peer
        logins = threading.Lock()
        self._serve(
            VSRP,
            0,
            [
                SrpBackend(peer, 0, export.tap, export.port, queue=queue, logins=logins)
                for queue in range(export.queues)
            ],
            {},
        )
        own_keys = partial(Reader, self._store, self._vscsi.backend_path)
        port = export.port.port_id.hex()
        self._serve(
            VSCSI,
            0,
            [VscsiifBackend(peer, 0, export.tap, export.router, port, own_keys)],
            self._units.keys(export.offered),
        )
        self._plug_disks()

    def _plug_disks(self) -> None:
        """Give the domain a vbd for each disk that has none yet."""
        export = self._export
        handles = {served.device.handle for served in self.devices if served.device.kind == VBD}
        for at, disk in export.disks.items():
            handle = FIRST_VBD + VBD_STEP * at
            if handle not in handles:
                ends = [
                    BlkifBackend(self.peer, at, export.tap, disk, export.blkif_layout, queue=queue)
                    for queue in range(export.queues)
                ]
                self._serve(VBD, handle, ends, {"mode": "r" if disk.write_protected else "w"})

    def follow(self) -> threading.Event:
        """Have the devices be what the export has now; any thread, does not wait.

        Returns what is set when no device uses a disk that has gone.
        """
        done = threading.Event()
        self._turns.post(self._follow)
        self._turns.post(done.set)
        return done

    def _follow(self) -> None:
        disks = set(self._export.disks.values())
        for served in self.devices:
            if served.disk is not None and served.disk not in disks:
                # At once, as when a disk is pulled: a guest that does not agree is not waited for.
                served.half.stop()
                remove(self._store, served.device)
                self.devices = tuple(each for each in self.devices if each is not served)
        self._plug_disks()
        self._units.follow(self._export.offered)

    def _serve(
        self, kind: str, handle: int, ends: Sequence[RingBackend], keys: Mapping[str, str]
    ) -> None:
        cpus = self._export.cpus
        for end in ends:
            end.poll_ns = self._export.poll_ns
            end.histograms = self._export.histograms
            end.cpu = cpus[end.queue % len(cpus)] if cpus else None
        queues = Queues(ends)
        device = Device(kind, self.peer.domain, handle)
        create(self._store, device, backend_keys=keys)
        half = Backend(self._store, device.backend_path, queues, partial(self._changed, device))
        queues.on_failure = lambda reason: self._turns.post(
            partial(self._failed, queues, queues.connection, half, reason)
        )
        self.devices += (Served(device, queues, half),)
        self._turns.post(half.start)

    def _changed(self, device: Device, state: XenbusState, reason: str) -> None:
        level = logging.INFO
        if reason and state is XenbusState.CLOSING and self._warnings < MAX_WARNINGS:
            level = logging.WARNING
            self._warnings += 1
        log.log(level, "%s: %s %s", device.backend_path, state.name, reason)
        if device == self._vscsi and state is XenbusState.CONNECTED:  # ready for the next change
            self._turns.post(lambda: self._units.follow(self._export.offered))

    def _failed(
        self, queues: Queues, connection: Connection | None, half: Backend, reason: str
    ) -> None:
        if queues.connection is connection:  # else the frontend was faster, and has another one
            half.fail(reason)

    def resized(self, disk: Disk) -> None:
        """Publish the size that a disk has now on its vbd; any thread, does not wait."""
        for served in self.devices:
            end = served.queues.ends[0]
            if isinstance(end, BlkifBackend) and end.disk is disk:
                self._turns.post(partial(self._publish_size, served.device, end))

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
        for path in (
            f"/local/domain/{domain}",
            *(f"{ours}/backend/{kind}/{domain}" for kind in KINDS),
            *(f"{ours}/error/backend/{kind}/{domain}" for kind in KINDS),
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
        poll_ns: int = POLL_NS,
        histograms: bool = True,
        queues: int = 1,
        cpus: Sequence[int] = (),
    ) -> None:
        """units: by logical unit number; they and their stores stay the caller's.

        A unit that is a `Disk` is a vbd as well. vbds: what is the vbd beside other units, on the
        blocks that they have themselves; the n-th unit's is the n-th vbd, whether others are there
        or not. poll_ns: how long a ring that was busy is watched before its thread sleeps (0: not
        at all). histograms: whether the C path keeps them; what that costs can be measured so.
        queues: how many a frontend of SRP or blkif may use, each served by a thread of its own.
        cpus: where those run, a device's first queue on the first, and so on; none: anywhere.
        """
        self.units: Mapping[int, LogicalUnit] = {}  # replaced, never changed, as the next one
        self.vbds: Mapping[int, Disk] = {}
        self.tap = TapSwitch(self._reached)
        self.router = TaskRouter(workers=workers)
        port_id = hashlib.sha256(str(directory.resolve()).encode()).digest()[:16]
        self.port = SrpPort(self.router, port_id)
        self.blkif_layout = blkif_layout
        self.poll_ns = poll_ns
        self.histograms = histograms
        self.queues = queues
        self.cpus = tuple(cpus)
        self.host = LocalHost(
            directory,
            on_domain=self._domain,
            on_domain_gone=self._domain_gone,
        )
        self.host.answers[LocalMessage.STATISTICS] = self._statistics
        self._places: dict[int, int] = {}
        """By logical unit number: which unit it is, the first being 0; kept when it leaves."""
        self._end_observing: dict[int, list[Callable[[], None]]] = {}
        self._guests: dict[int, Guest] = {}
        self._leaving: list[Guest] = []
        self._lock = threading.Lock()
        """Of what is served and to whom, so that every guest gets all of it."""
        for number, unit in units.items():
            self._take_in(number, unit, (vbds or {}).get(number))

    def start(self) -> None:
        """Serve; SetupError if the directory cannot be."""
        self.host.start()

    def stop(self) -> None:
        """Close all channels and stop; returns when nobody uses a unit any more."""
        self.host.stop()
        for guest in self._leaving:
            guest.join()
        self.router.close()
        for number in list(self._end_observing):
            self._observe_no_more(number)

    def add(self, number: int, unit: LogicalUnit, disk: Disk | None = None) -> None:
        """Take a logical unit in while others are served: initiators hear that the LUNs changed.

        disk: its vbd, as in `vbds`. Both stay the caller's, until `remove` or `stop`. ValueError if
        the number is taken.
        """
        with self._lock:
            self._take_in(number, unit, disk)
            for guest in self._guests.values():
                guest.follow()

    def remove(self, number: int) -> None:
        """Let go of a logical unit: its tasks end with TASK ABORTED, its vbds are closed.

        Returns when nobody uses it or its disk any more. KeyError if there is none.
        """
        with self._lock:
            self.units = {key: kept for key, kept in self.units.items() if key != number}
            self.vbds = {key: kept for key, kept in self.vbds.items() if key != number}
            followed = [guest.follow() for guest in self._guests.values()]
            leaving = list(self._leaving)
        self.router.remove(number)
        for each in followed:
            each.wait()
        for guest in leaving:
            guest.join()
        self._observe_no_more(number)

    def devices(self) -> list[tuple[int, Served]]:
        """Return the devices that there are now, each with its domain; waits for nobody."""
        guests = list(self._guests.items())
        return [(domain, served) for domain, guest in guests for served in guest.devices]

    @property
    def offered(self) -> dict[int, int]:
        """The logical unit numbers by place, which names a unit in protocols without LUNs."""
        return {self._places[number]: number for number in self.units}

    @property
    def disks(self) -> dict[int, Disk]:
        """The disks for blkif by place."""
        return {self._places[number]: disk for number, disk in self.vbds.items()}

    def _reached(self, path: RingPath) -> list[Geometry]:
        """Return the units that can be reached over a ring."""
        offered = self.offered
        numbers = (
            [offered.get(path.device)] if path.protocol is Protocol.BLKIF else list(self.units)
        )
        found = []
        for number in numbers:
            unit = self.units.get(number) if number is not None else None
            if number is not None and unit is not None:
                disk = self.vbds.get(number)
                size = (disk.block_size, disk.blocks) if disk is not None else (None, None)
                found.append(Geometry(number, unit.device_type, *size))
        return found

    def _take_in(self, number: int, unit: LogicalUnit, disk: Disk | None) -> None:
        self.router.add(number, unit)
        self._places.setdefault(number, len(self._places))
        observing = [unit.attentions.observe(partial(self._attention, encode(number)))]
        disk = unit if isinstance(unit, Disk) else disk
        if disk is not None:
            observing.append(disk.attentions.observe(partial(self._disk_attention, disk)))
            self.vbds = {**self.vbds, number: disk}
        self._end_observing[number] = observing
        self.units = {**self.units, number: unit}

    def _observe_no_more(self, number: int) -> None:
        for end in self._end_observing.pop(number):
            end()

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
        with self._lock:
            self._guests[peer.domain] = Guest(self, peer)

    def _domain_gone(self, peer: LocalPeer) -> None:
        log.info("domain %d is gone", peer.domain)
        with self._lock:
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
                if name == device and served.queues.connection is not None:
                    report = {**served.queues.report(), "staged_bytes": staged}
                    return json.dumps(report).encode(), ()
        raise StoreError("ENOENT")
