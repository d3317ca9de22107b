# SPDX-License-Identifier: MIT
"""Whose object is it: every name that we give in configfs follows from the user's name.

    storage object      vscsi-NAME
    its serial number   a UUID made from NAME
    its backstore       fileio_N (or iblock_N, ...): N is HBA_BASE and a hash of NAME
    loopback target     naa.5001405 UUUUU IIII: hashes of NAME and of INITIATOR
    its I_T nexus       naa.5001405 NNNNNNNNN: a hash of the target's name
    its LUN 0           a link called INITIATOR to the storage object

So a second run finds what the first one made, a reservation that outlives a reboot finds its
initiator, and nothing else is ever ours: a storage object with our prefix and another serial
number is someone else's, as is a target whose name and link do not belong together. rtslib, which
counts backstores from 0, does not come near ours.
"""

import hashlib
import re
import uuid

from vscsi.wire.errors import SetupError

PREFIX = "vscsi-"
HOST = "host"
"""The initiator that `create` attaches: this machine's own SCSI midlayer."""

HBA_BASE = 1 << 19
"""Where our backstores' numbers begin; 2**20 is where rtslib's end."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}")
_OUI = "naa.5001405"
"""NAA 5 (IEEE registered) with the OUI that LIO's tools take; 36 bits are left to us."""
_UNIT_DIGITS, _INITIATOR_DIGITS = 5, 4
_SPACE = uuid.UUID("6f1d8a52-5f0e-5c55-9d5c-7673637369ff")


def check_name(what: str, name: str) -> str:
    """Return a unit's or an initiator's name if it can be one; raises SetupError."""
    if not _NAME.fullmatch(name):
        raise SetupError(
            f"name {what}",
            repr(name),
            "not 1 to 32 letters, digits, `.`, `_`, `-`, the first a letter or digit",
            "take another name",
        )
    return name


def storage_name(name: str) -> str:
    """Return the storage object's name."""
    return PREFIX + name


def unit_name(storage: str) -> str | None:
    """Return the unit whose storage object has this name, None if it is not by our rule."""
    name = storage.removeprefix(PREFIX)
    return name if storage.startswith(PREFIX) and _NAME.fullmatch(name) else None


def serial(name: str) -> str:
    """Return the unit serial number, from which LIO also makes the unit's NAA designator."""
    return str(uuid.uuid5(_SPACE, name))


def hba_index(name: str) -> int:
    """Return the number of a unit's backstore; the next ones serve where it is taken."""
    return HBA_BASE + (int(_digits("backstore", name, 5), 16) & (HBA_BASE - 1))


def target_wwn(name: str, initiator: str) -> str:
    """Return the name of the loopback target through which an initiator sees a unit."""
    return target_prefix(name) + _digits("initiator", initiator, _INITIATOR_DIGITS)


def target_prefix(name: str) -> str:
    """Return what the names of all targets of a unit begin with."""
    return _OUI + _digits("unit", name, _UNIT_DIGITS)


def nexus_wwn(target: str) -> str:
    """Return the initiator's name in a target's nexus."""
    return _OUI + _digits("nexus", target, _UNIT_DIGITS + _INITIATOR_DIGITS)


def _digits(role: str, text: str, count: int) -> str:
    return hashlib.sha256(f"vscsi {role} {text}".encode()).hexdigest()[:count]
