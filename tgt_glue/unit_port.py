# SPDX-License-Identifier: MIT
"""A port of each nexus' own to a unit that `vscsi lio create` made."""

import hashlib
from pathlib import Path

from tgt_glue import units
from tgt_glue.nodes import sg_node
from vscsi.target.base import Nexus
from vscsi.wire.errors import SetupError

_NODE_TIMEOUT_S = 10


class UnitPort:
    """A `lio_unit.Port`: attaches each nexus to a unit as an initiator of its own.

    The initiator's name follows from the nexus, so a reservation finds it again.
    """

    def __init__(self, unit: str) -> None:
        self.unit = unit

    def attach(self, nexus: Nexus) -> Path:
        """Have the nexus attached; return its sg node. Raises SetupError."""
        initiator = initiator_name(nexus)
        for found in units.attach(self.unit, initiator).units:
            attachment = found.attachment(initiator)
            if attachment is not None:
                return sg_node(attachment.hctl, timeout_s=_NODE_TIMEOUT_S)
        raise SetupError("attach to unit", self.unit, "it left", "`vscsi lio list`")

    def detach(self, nexus: Nexus) -> None:
        """Have the nexus not attached; raises SetupError."""
        units.detach(self.unit, initiator_name(nexus))


def initiator_name(nexus: Nexus) -> str:
    """Return what a nexus' initiator is called in `vscsi lio list`."""
    text = f"{nexus.initiator_port} {nexus.target_port}"
    return f"nexus-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
