# SPDX-License-Identifier: MIT
"""What a server counts, as OpenMetrics 1.0, by the official client library.

A scrape reads what the rings' own threads count; it takes no lock of theirs. What a guest can make
it say is bounded: by its rings, the logical units that are served, the commands that they know.
"""

import platform
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.exposition import generate_latest as as_text
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST
from prometheus_client.openmetrics.exposition import generate_latest as as_openmetrics
from prometheus_client.utils import floatToGoString

from vscsi import __version__
from vscsi.ring import Tally
from vscsi.target.base import Function, ServiceResponse, Status
from vscsi.target.logical_unit import LogicalUnit
from vscsi.transport.backend import RingBackend
from vscsi.transport.export import Export
from vscsi.transport.tally import OTHER
from vscsi.wire.blkif import RspStatus
from vscsi.wire.sense import SenseKey

PATHS = {"vsrp": "srp", "vscsi": "vscsiif", "vbd": "blkif"}
"""The value of the label `path` by the kind of a device."""
_NS = 1e9
_LATENCIES_NS, _SIZES = Tally.bounds()
_edge: Callable[[float], str] = floatToGoString
_LATENCY_EDGES = [*(_edge(bound / _NS) for bound in _LATENCIES_NS), "+Inf"]
_SIZE_EDGES = [*map(_edge, _SIZES), "+Inf"]

Labels = tuple[str, ...]
_RING = ("guest", "path", "device")
_UNIT = ("guest", "path", "lun")
_COMMAND = (*_UNIT, "opcode")

_COUNTERS = {
    "vscsi_commands_failed": (
        (*_UNIT, "status", "sense_key"),
        "Commands that ended with an error; they are in the histogram of latencies too.",
    ),
    "vscsi_commands_aborted": (_UNIT, "Commands that were aborted; they are in no histogram."),
    "vscsi_task_management": (
        ("guest", "path", "function", "response"),
        "Task management functions that are done.",
    ),
    "vscsi_wire_errors": (_RING, "Messages of the frontend that broke a rule."),
    "vscsi_native_commands": (_RING, "Commands that were executed in C."),
    "vscsi_deferred_commands": (_RING, "Those of them that had to wait for a device."),
    "vscsi_notifications_sent": (_RING, "Events to the frontend."),
    "vscsi_notifications_received": (_RING, "Events from the frontend."),
    "vscsi_capture_dropped_messages": (_RING, "Messages that captures lack."),
    "vscsi_ring_cpu_seconds": (_RING, "CPU time of the threads that serve the rings."),
}
"""By name: labels and help."""
_ON_MEDIUM = [
    (Status.CHECK_CONDITION.name, key.name)
    for key in (SenseKey.MEDIUM_ERROR, SenseKey.HARDWARE_ERROR)
]
_FAILURES = {"srp": _ON_MEDIUM, "vscsiif": _ON_MEDIUM, "blkif": [(RspStatus.ERROR.name, "")]}
"""By path: status and sense key that are shown as 0, too: `increase` overlooks a first 1."""
_MANAGES = ("srp", "vscsiif")
_GAUGES = {
    "vscsi_rings": (_RING, "Rings that are connected."),
    "vscsi_commands_in_flight": (_RING, "Commands without an answer, when it was looked last."),
    "vscsi_commands_in_flight_max": (_RING, "The most of each ring's in the last minute, added."),
}


@dataclass(slots=True)
class _Row:
    """One kind of command, over all queues of a device."""

    latencies: list[int] = field(default_factory=lambda: [0] * len(_LATENCY_EDGES))
    sizes: list[int] = field(default_factory=lambda: [0] * len(_SIZE_EDGES))
    latency_ns: int = 0
    length: int = 0
    longest_ns: int = 0


class _Sums:
    """What all rings have counted, by metric and labels."""

    def __init__(self) -> None:
        self.rows: dict[Labels, _Row] = {}
        self.of: dict[str, dict[Labels, float]] = {name: {} for name in (*_COUNTERS, *_GAUGES)}

    def add(self, name: str, labels: Labels, count: float) -> None:
        """Add to a counter or gauge."""
        known = self.of[name]
        known[labels] = known.get(labels, 0) + count

    def take(self, guest: str, end: RingBackend, lun_of: Mapping[LogicalUnit | None, str]) -> None:
        """Add what one ring counts, if it is connected."""
        connection, counts = end.connection, end.counts
        if connection is None:
            return
        service, path = connection.service, PATHS[end.kind]
        ring = guest, path, str(end.device)
        for unit, of_unit in list(counts.units.items()):
            if unit not in lun_of:  # it has gone
                continue
            at = guest, path, lun_of[unit]
            for row in of_unit.tally.read():
                self._add_row((*at, of_unit.names[row[0]]), row)
            self.add("vscsi_commands_aborted", at, 0)
            for words in _FAILURES[path]:
                self.add("vscsi_commands_failed", (*at, *words), 0)
        for (unit, *failure), count in list(counts.failures.items()):
            if unit in lun_of:
                self.add("vscsi_commands_failed", (guest, path, lun_of[unit], *failure), count)
        for unit, count in list(counts.aborted.items()):
            if unit in lun_of:
                self.add("vscsi_commands_aborted", (guest, path, lun_of[unit]), count)
        for function in Function if path in _MANAGES else ():
            complete = ServiceResponse.FUNCTION_COMPLETE.name
            self.add("vscsi_task_management", (guest, path, function.name, complete), 0)
        for managed, count in list(counts.managed.items()):
            self.add("vscsi_task_management", (guest, path, *managed), count)
        self.add("vscsi_wire_errors", ring, end.statistics.wire_errors)
        self.add("vscsi_native_commands", ring, service.executed)
        self.add("vscsi_deferred_commands", ring, service.deferred)
        self.add("vscsi_notifications_sent", ring, service.notifications_sent)
        self.add("vscsi_notifications_received", ring, service.notifications_received)
        self.add("vscsi_capture_dropped_messages", ring, end.tap_dropped)
        self.add("vscsi_ring_cpu_seconds", ring, end.cpu_ns() / _NS)
        self.add("vscsi_rings", ring, 1)
        self.add("vscsi_commands_in_flight", ring, service.in_flight)
        self.add("vscsi_commands_in_flight_max", ring, service.most_in_flight)

    def _add_row(
        self,
        labels: Labels,
        told: tuple[int, tuple[int, ...], tuple[int, ...], int, int, int],
    ) -> None:
        _, latencies, sizes, latency_ns, length, longest_ns = told
        row = self.rows.setdefault(labels, _Row())
        row.latencies = [sum(pair) for pair in zip(row.latencies, latencies, strict=True)]
        row.sizes = [sum(pair) for pair in zip(row.sizes, sizes, strict=True)]
        row.latency_ns += latency_ns
        row.length += length
        row.longest_ns = max(row.longest_ns, longest_ns)

    def metrics(self) -> Iterator[Metric]:
        """Yield them."""
        latency = HistogramMetricFamily(
            "vscsi_command_latency_seconds",
            "From when a command was seen on the ring until its answer was there.",
            labels=_COMMAND,
            unit="seconds",
        )
        size = HistogramMetricFamily(
            "vscsi_command_size_bytes",
            "What commands moved from or to the medium.",
            labels=_COMMAND,
            unit="bytes",
        )
        longest = GaugeMetricFamily(
            "vscsi_command_latency_max_seconds",
            "The longest latency of the last minute.",
            labels=_COMMAND,
            unit="seconds",
        )
        for labels, row in self.rows.items():
            counts = zip(_LATENCY_EDGES, accumulate(row.latencies), strict=True)
            latency.add_metric(labels, list(counts), row.latency_ns / _NS)
            longest.add_metric(labels, row.longest_ns / _NS)
            if row.length:
                counts = zip(_SIZE_EDGES, accumulate(row.sizes), strict=True)
                size.add_metric(labels, list(counts), row.length)
        yield from (latency, size, longest)
        for name, (names, words) in _COUNTERS.items():
            unit = "seconds" if name.endswith("_seconds") else ""
            counter = CounterMetricFamily(name, words, labels=names, unit=unit)
            for labels, count in self.of[name].items():
                counter.add_metric(labels, count)
            yield counter
        for name, (names, words) in _GAUGES.items():
            gauge = GaugeMetricFamily(name, words, labels=names)
            for labels, count in self.of[name].items():
                gauge.add_metric(labels, count)
            yield gauge


class ExportMetrics:
    """A collector of the client library, for one `Export`."""

    def __init__(self, export: Export, names: Callable[[], Mapping[int, str]]) -> None:
        """names: what the logical units that are served are called, by number."""
        self._export = export
        self._names = names

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics as they are now."""
        devices = self._export.devices()
        yield InfoMetricFamily(
            "vscsi_build",
            "The server.",
            {"version": __version__, "python": platform.python_version()},
        )
        guests = {domain for domain, _ in devices}
        yield GaugeMetricFamily("vscsi_guests", "Domains that are attached.", len(guests))
        yield from self._about_units()
        lun_of: dict[LogicalUnit | None, str] = {None: OTHER}
        for units in (self._export.units, self._export.vbds):
            lun_of |= {unit: str(number) for number, unit in units.items()}
        sums = _Sums()
        for domain, served in devices:
            for end in served.queues.ends:
                sums.take(str(domain), end, lun_of)
        yield from sums.metrics()

    def _about_units(self) -> Iterator[Metric]:
        info = InfoMetricFamily("vscsi_unit", "A logical unit that is served.", labels=("lun",))
        size = GaugeMetricFamily(
            "vscsi_unit_size_bytes", "Its size.", labels=("lun",), unit="bytes"
        )
        staged = CounterMetricFamily(
            "vscsi_staged_bytes",
            "What had to be copied on its way, over all paths.",
            labels=("lun",),
            unit="bytes",
        )
        names, vbds = self._names(), self._export.vbds
        for number, unit in self._export.units.items():
            lun = str(number)
            kind = unit.device_type.name.lower()
            info.add_metric((lun,), {"name": names.get(number, ""), "type": kind})
            disk = vbds.get(number)
            if disk is not None:
                size.add_metric((lun,), disk.blocks * disk.block_size)
            beside = disk.staged_bytes if disk is not None and disk is not unit else 0
            staged.add_metric((lun,), unit.staged_bytes + beside)
        yield from (info, size, staged)


def registry(collector: ExportMetrics) -> CollectorRegistry:
    """Return what a scrape shows: the collector's metrics, and the process' own."""
    # Without `auto_describe` nothing is collected before somebody asks.
    made = CollectorRegistry(auto_describe=False)
    made.register(collector)
    ProcessCollector(registry=made)
    return made


def render(metrics: CollectorRegistry, accept: str) -> tuple[str, bytes]:
    """Return content type and text: OpenMetrics, unless just the older text format is accepted."""
    if "application/openmetrics-text" not in accept and "text/plain" in accept:
        return CONTENT_TYPE_PLAIN_0_0_4, as_text(metrics)
    text: bytes = as_openmetrics(metrics)  # type: ignore[no-untyped-call]
    return CONTENT_TYPE_LATEST, text
