# SPDX-License-Identifier: MIT
"""From a path's URL to an `Hba`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from vscsi.target.base import Nexus
from vscsi.target.disk import Disk
from vscsi.target.router import TaskRouter
from vscsi.target.stores.open import open_store
from vscsi.transport.blkif.frontend import FIRST_VBD
from vscsi.transport.blkif.initiator import BlkifInitiator
from vscsi.transport.call import CallInitiator
from vscsi.transport.export import VBD_STEP
from vscsi.transport.frontend import RingInitiator
from vscsi.transport.hba import Hba
from vscsi.transport.queues import MAX_QUEUES
from vscsi.transport.srp.frontend import SrpInitiator
from vscsi.transport.vscsiif.frontend import VscsiifInitiator
from vscsi.wire.blkif import LAYOUTS
from vscsi.wire.errors import SetupError

USAGE = "a path is srp:DIR, vscsiif:DIR, blkif:DIR or call:IMAGE (README.md has their options)"


def connect(url: str) -> Hba:
    """Connect to a served directory over the path that a URL names.

    Raises SetupError for a URL that is none, or if nobody serves the directory; TransportError if
    the device cannot be connected.
    """
    kind, colon, rest = url.partition(":")
    path, _, query = rest.partition("?")
    make = PATHS.get(kind)
    if make is None or not colon or not path:
        raise SetupError("use", repr(url), "it is no path", USAGE)
    try:
        options = dict(parse_qsl(query, strict_parsing=True)) if query else {}
        initiator = make(Path(path), options)
    except (ValueError, KeyError) as error:
        raise SetupError("use", repr(url), f"bad options ({error})", USAGE) from error
    if options:
        initiator.close()
        raise SetupError("use", repr(url), f"no option {', '.join(options)}", USAGE)
    try:
        initiator.open()
    except BaseException:
        initiator.close()
        raise
    return Hba(initiator)


def _order(options: dict[str, str], default: int) -> int:
    order = int(options.pop("ring-order", default))
    if not 0 <= order <= 4:
        raise ValueError("ring-order is 0 to 4")
    return order


def _queues(options: dict[str, str]) -> int:
    queues = int(options.pop("queues", 1))
    if not 1 <= queues <= MAX_QUEUES:
        raise ValueError(f"queues is 1 to {MAX_QUEUES}")
    return queues


def _srp(directory: Path, options: dict[str, str]) -> SrpInitiator:
    return SrpInitiator(directory, ring_order=_order(options, 2), queues=_queues(options))


def _vscsiif(directory: Path, _options: dict[str, str]) -> VscsiifInitiator:
    return VscsiifInitiator(directory)


def _blkif(directory: Path, options: dict[str, str]) -> BlkifInitiator:
    protocol = options.pop("protocol", "x86_64-abi")
    if protocol != "probe" and protocol not in LAYOUTS:
        raise ValueError(f"protocol {protocol}")
    segments = options.pop("segments", "indirect")
    if segments not in ("indirect", "blocks"):
        raise ValueError(f"segments {segments}")
    return BlkifInitiator(
        directory,
        handle=FIRST_VBD + VBD_STEP * int(options.pop("disk", 0)),
        ring_order=_order(options, 1),
        protocol=None if protocol == "probe" else protocol,
        indirect=segments == "indirect",
        queues=_queues(options),
    )


class CallPath(CallInitiator):
    """An image and a target of our own, called."""

    def __init__(self, image: Path, options: dict[str, str]) -> None:
        self._store = open_store(image)
        try:
            block_size = int(options.pop("block-size", 512))
            router = TaskRouter()
            router.add(0, Disk(self._store, block_size=block_size, identity=str(image)))
            super().__init__(router, Nexus("call", "call"))
        except (SetupError, ValueError):
            self._store.close()
            raise

    def open(self) -> None:
        """Do nothing: it is open."""

    def close(self) -> None:
        """End the nexus and close the image."""
        super().close()
        self._store.close()


PATHS: dict[str, Callable[[Path, dict[str, str]], RingInitiator[Any] | CallPath]] = {
    "srp": _srp,
    "vscsiif": _vscsiif,
    "blkif": _blkif,
    "call": CallPath,
}
