# SPDX-License-Identifier: MIT
"""A port of each nexus' own to a unit that `vscsi lio create` made."""

import hashlib
import threading
from pathlib import Path

from tgt_glue import units
from tgt_glue.configfs import registered
from tgt_glue.nodes import sg_node
from vscsi.target.base import Nexus
from vscsi.wire.errors import SetupError

MAX_REGISTERED = 32
"""Initiators that a unit keeps registrations of, and so ports for those that have left."""
_NODE_TIMEOUT_S = 10


class UnitPort:
    """A `lio_unit.Port`: attaches each nexus to a unit as an initiator of its own. Thread-safe.

    The initiator's name follows from the nexus, so a reservation finds it again. LIO forgets a
    registration with the port that it was made through; but it is to outlive the nexus (SPC-5
    5.14.1). So the port of a registered nexus is kept, until it is seen that another has taken the
    registration away.
    """

    def __init__(self, unit: str) -> None:
        self.unit = unit
        self._kept: set[Nexus] = set()
        self._lock = threading.Lock()

    def attach(self, nexus: Nexus) -> Path:
        """Have the nexus attached; return its sg node. Raises SetupError."""
        initiator = initiator_name(nexus)
        with self._lock:
            self._kept.discard(nexus)
            for found in units.attach(self.unit, initiator).units:
                attachment = found.attachment(initiator)
                if attachment is not None:
                    return sg_node(attachment.hctl, timeout_s=_NODE_TIMEOUT_S)
        raise SetupError("attach to unit", self.unit, "it left", "`vscsi lio list`")

    def detach(self, nexus: Nexus) -> None:
        """Have no nexus attached that has left and is not registered; raises SetupError."""
        with self._lock:
            self._kept.add(nexus)
            known = self._registered()
            if known is None:
                return
            for each in [each for each in self._kept if initiator_name(each) not in known]:
                self._kept.discard(each)
                units.detach(self.unit, initiator_name(each))

    def may_register(self, nexus: Nexus) -> bool:
        """Tell whether a nexus is registered, or there is room for another that is."""
        known = self._registered()
        if known is None:
            return False
        return len(known) < MAX_REGISTERED or initiator_name(nexus) in known

    def _registered(self) -> set[str] | None:
        """Return the initiators that are registered, by name or as LIO calls them.

        None: there are more than can be known.
        """
        unit = units.look_up(self.unit)
        if unit is None or unit.storage is None:  # it left, with all that it kept
            return set()
        known = registered(unit.storage)
        if known is None:
            return None
        ours = {each.nexus: each.initiator for each in unit.attachments}
        return {ours.get(nexus, nexus) for nexus in known}


def initiator_name(nexus: Nexus) -> str:
    """Return what a nexus' initiator is called in `vscsi lio list`."""
    text = f"{nexus.initiator_port} {nexus.target_port}"
    return f"nexus-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
