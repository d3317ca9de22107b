# SPDX-License-Identifier: MIT
"""The toolstack's part of a vscsi device: the list of its units, and their hot plug.

Each has a directory vscsi-devs/dev-N with p-dev, v-dev and a state (io/vscsiif.h). While the device
is connected, the toolstack adds one as Initialising, or makes one Closing, and sets the backend to
Reconfiguring; the halves do the rest, up to the unit's Connected or Closed.
"""

from collections.abc import Collection, Mapping

from vscsi.domain.base import StoreClient, StoreOperations
from vscsi.domain.keys import XenbusState, read_state, transact
from vscsi.domain.toolstack import Device

_IN_USE = (XenbusState.CONNECTED, XenbusState.RECONFIGURING, XenbusState.RECONFIGURED)


class UnitList:
    """The units of one device, as its backend's directory lists them. For one thread.

    What others add to the list, or take from it, is left alone.
    """

    def __init__(self, store: StoreClient, device: Device) -> None:
        self._store = store
        self._path = device.backend_path
        self._listed: Collection[str] = ()
        """What we have put into the list, and not taken out again."""
        self._closing: Collection[str] = ()
        """Those of them that the frontend shall let go of."""

    def keys(self, units: Mapping[int, int]) -> dict[str, str]:
        """Return the keys of a list to begin with; units: logical unit numbers by dev-N's N."""
        self._listed = {_name(at) for at in units}
        return {
            f"vscsi-devs/{_name(at)}/{key}": value
            for at, number in units.items()
            for key, value in _entry(number).items()
        }

    def follow(self, units: Mapping[int, int]) -> None:
        """Have the list name these units; StoreError.

        Call it again when the backend is Connected: a number that shall mean another unit does so
        when the frontend has let go of the one before.
        """
        wanted = {_name(at): number for at, number in units.items()}
        closing: set[str] = set()

        def body(operations: StoreOperations) -> None:
            closing.clear()
            backend = read_state(operations, self._path)
            if backend is XenbusState.UNKNOWN:  # removed
                return
            changed = False
            for name in sorted({*self._listed, *wanted}):
                entry = f"{self._path}/vscsi-devs/{name}"
                state = read_state(operations, entry)
                if name in wanted and name in self._listed and name not in self._closing:
                    continue
                if name in self._listed and state is not XenbusState.UNKNOWN:
                    if backend in _IN_USE and state is not XenbusState.CLOSED:
                        closing.add(name)
                        if state is not XenbusState.CLOSING:
                            operations.write(f"{entry}/state", _number(XenbusState.CLOSING))
                            changed = True
                        continue
                    operations.rm(entry)
                if name in wanted:
                    for key, value in _entry(wanted[name]).items():
                        operations.write(f"{entry}/{key}", value)
                    changed = True
            if changed and backend in _IN_USE and backend is not XenbusState.RECONFIGURING:
                operations.write(f"{self._path}/state", _number(XenbusState.RECONFIGURING))

        transact(self._store, body)
        self._listed, self._closing = {*wanted, *closing}, closing


def _name(at: int) -> str:
    return f"dev-{at}"


def _entry(number: int) -> dict[str, str]:
    return {
        "p-dev": str(number),
        "v-dev": f"0:0:0:{number}",
        "state": _number(XenbusState.INITIALISING),
    }


def _number(state: XenbusState) -> str:
    return str(int(state))
