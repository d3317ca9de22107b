# SPDX-License-Identifier: MIT
"""What a toolstack does to xenstore for a device: make, list, unplug and remove its directories.

The backend's directory is readable by the frontend's domain, and the other way round; each half
writes only its own (spec: docs/misc/xenstore-paths, as libxl does it).
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from vscsi.domain.base import StoreClient, StoreError, StoreOperations
from vscsi.domain.keys import XenbusState, fetch, transact

VBD, VSCSI, VSRP = "vbd", "vscsi", "vsrp"
KINDS = (VBD, VSCSI, VSRP)

_BACKEND_KEYS: Mapping[str, Mapping[str, str]] = {
    VBD: {"mode": "w", "device-type": "disk", "removable": "0", "bootable": "1"},
    VSCSI: {},
    VSRP: {},
}


@dataclass(frozen=True, slots=True, order=True)
class Device:
    """A device's name: its kind, the domains of its halves, and its number in the frontend's.

    For vbd the handle is the virtual device number (51712 for xvda); ValueError if anything is
    out of range.
    """

    kind: str
    frontend_id: int
    handle: int
    backend_id: int = 0

    def __post_init__(self) -> None:
        """Refuse what could not be a path or a domain."""
        if self.kind not in KINDS:
            raise ValueError(f"device kind {self.kind!r} is none of {', '.join(KINDS)}")
        for domain in (self.frontend_id, self.backend_id):
            if not 0 <= domain < 0x7FF0:  # DOMID_FIRST_RESERVED
                raise ValueError(f"domain id {domain} is not in 0 to {0x7FEF}")
        if not 0 <= self.handle < 1 << 32:
            raise ValueError(f"device handle {self.handle} does not fit 32 bits")

    @property
    def backend_path(self) -> str:
        """The backend's directory."""
        home = f"/local/domain/{self.backend_id}"
        return f"{home}/backend/{self.kind}/{self.frontend_id}/{self.handle}"

    @property
    def frontend_path(self) -> str:
        """The frontend's directory."""
        return f"/local/domain/{self.frontend_id}/device/{self.kind}/{self.handle}"


def create(
    store: StoreClient,
    device: Device,
    *,
    backend_keys: Mapping[str, str] | None = None,
    frontend_keys: Mapping[str, str] | None = None,
) -> None:
    """Make both directories in one transaction, both halves Initialising, online.

    The extra keys may have slashes ("vscsi-devs/dev-0/state"). StoreError("EEXIST") if either
    directory is there.
    """
    initialising = str(int(XenbusState.INITIALISING))
    backend = {
        "frontend": device.frontend_path,
        "frontend-id": str(device.frontend_id),
        "online": "1",
        **_BACKEND_KEYS[device.kind],
        **(backend_keys or {}),
        "state": initialising,
    }
    frontend = {
        "backend": device.backend_path,
        "backend-id": str(device.backend_id),
        **(frontend_keys or {}),
        "state": initialising,
    }
    if device.kind == VBD:
        frontend = {"virtual-device": str(device.handle), "device-type": "disk", **frontend}
    mine, theirs = device.backend_id, device.frontend_id

    def body(operations: StoreOperations) -> None:
        for path, owner, reader, keys in (
            (device.backend_path, mine, theirs, backend),
            (device.frontend_path, theirs, mine, frontend),
        ):
            if fetch(operations, path) is not None:
                raise StoreError("EEXIST", path)
            operations.mkdir(path)
            operations.set_perms(path, [f"n{owner}", f"r{reader}"])
            for key, value in keys.items():  # new nodes inherit the directory's permissions
                operations.write(f"{path}/{key}", value)

    transact(store, body)


def unplug(store: StoreClient, device: Device) -> None:
    """Ask both halves to close for good: offline and Closing, in one transaction.

    StoreError("ENOENT") if there is no such device. `remove` it when both are Closed.
    """

    def body(operations: StoreOperations) -> None:
        operations.read(f"{device.backend_path}/state")
        operations.write(f"{device.backend_path}/online", "0")
        operations.write(f"{device.backend_path}/state", str(int(XenbusState.CLOSING)))

    transact(store, body)


def remove(store: StoreClient, device: Device) -> None:
    """Remove both directories in one transaction, whatever their state; none is no error."""

    def body(operations: StoreOperations) -> None:
        for path in (device.frontend_path, device.backend_path):
            if fetch(operations, path) is not None:
                operations.rm(path)

    transact(store, body)


def devices(store: StoreClient, backend_id: int = 0) -> list[Device]:
    """Return the devices of our kinds that this backend domain serves, in order.

    Directories whose names are no numbers are left out.
    """
    found = []
    home = f"/local/domain/{backend_id}/backend"
    for kind in KINDS:
        for domain in _names(store, f"{home}/{kind}"):
            for handle in _names(store, f"{home}/{kind}/{domain}"):
                with suppress(ValueError):
                    found.append(Device(kind, int(domain), int(handle), backend_id))
    return sorted(found)


def _names(store: StoreClient, path: str) -> list[str]:
    try:
        return store.directory(path)
    except StoreError as error:
        if error.code != "ENOENT":
            raise
        return []
