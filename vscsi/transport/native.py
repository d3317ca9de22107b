# SPDX-License-Identifier: MIT
"""Which logical units a channel's C path may execute commands on, kept up to date."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial

from vscsi.ring import Service
from vscsi.target.base import Nexus
from vscsi.target.logical_unit import LogicalUnit
from vscsi.transport.tally import RingCounts
from vscsi.wire.sense import Sense


class NativeUnits:
    """The units of one nexus that the C path knows, by the protocol's addresses (8 bytes).

    A unit with a unit attention for the nexus is Python's until that has been reported. Methods
    are called by the ring's thread, which does not run the service meanwhile; conditions are
    established by any.
    """

    def __init__(
        self,
        service: Service,
        nexus: Nexus,
        units: Mapping[bytes, LogicalUnit],
        counts: RingCounts,
    ) -> None:
        """Start with these units; others are Python's. counts: of all that the ring is about."""
        counts.keep(set(units.values()))
        self.of = units
        self._service = service
        self._nexus = nexus
        native = {at: unit.native_for(nexus) for at, unit in units.items()}
        self._units = {at: unit for at, unit in units.items() if native[at] is not None}
        self._told = set(self._units)
        """Addresses whose units may have a condition to report."""
        self._held = ExitStack()
        service.clear_units()
        for address, each in native.items():
            if each is not None:
                service.put_unit(address, each, counts.scsi(units[address]).tally)
                end = units[address].attentions.observe(partial(self._established, address))
                self._held.callback(end)

    def _established(self, address: bytes, _condition: Sense, nexuses: Sequence[Nexus]) -> None:
        """Stop the C path before whoever caused the condition is answered."""
        if self._nexus in nexuses:
            self._service.set_attention(address, True)
            self._told.add(address)

    def refresh(self) -> None:
        """Let the C path have the units that have nothing to report (any more)."""
        for address in list(self._told):
            self._told.discard(address)
            self._service.set_attention(address, False)
            # In this order: a condition that is established meanwhile is seen here or sets it.
            if self._units[address].attentions.pending(self._nexus):
                self._service.set_attention(address, True)
                self._told.add(address)

    def close(self) -> None:
        """Take all units from the C path."""
        self._held.close()
        self._service.clear_units()
