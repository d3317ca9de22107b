# SPDX-License-Identifier: MIT
"""Who may do what with a node: an owner, a default, and exceptions by domain id."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Flag

from vscsi.domain.base import StoreError

PRIVILEGED = 0
"""Domain 0: may do everything, and no quota applies to it."""

_ENTRY = re.compile(r"([nrwb])([0-9]{1,5})")


class Access(Flag):
    """What an entry grants."""

    NONE = 0
    READ = 1
    WRITE = 2
    BOTH = 3


_LETTERS = {"n": Access.NONE, "r": Access.READ, "w": Access.WRITE, "b": Access.BOTH}
_LETTER_OF = {access: letter for letter, access in _LETTERS.items()}


@dataclass(frozen=True, slots=True)
class Permissions:
    """A node's permissions; a value.

    On the wire they are a list such as n5, r1: the first entry's domain is the owner, its letter
    is the default for every domain that no later entry names.
    """

    owner: int
    default: Access = Access.NONE
    others: tuple[tuple[int, Access], ...] = ()

    @staticmethod
    def parse(entries: Sequence[str]) -> "Permissions":
        """Read the wire's form; StoreError("EINVAL") if an entry is malformed or none is there."""
        parsed = []
        for entry in entries:
            match = _ENTRY.fullmatch(entry)
            if match is None or int(match[2]) > 0xFFFF:
                raise StoreError("EINVAL")
            parsed.append((int(match[2]), _LETTERS[match[1]]))
        if not parsed:
            raise StoreError("EINVAL")
        return Permissions(*parsed[0], tuple(parsed[1:]))

    def format(self) -> list[str]:
        """Return the wire's form."""
        return [
            f"{_LETTER_OF[access]}{domain}"
            for domain, access in ((self.owner, self.default), *self.others)
        ]

    def owned_by(self, domain: int) -> bool:
        """Tell whether a domain has the owner's rights."""
        return domain in (PRIVILEGED, self.owner)

    def allow(self, domain: int, wanted: Access) -> bool:
        """Tell whether a domain has the wanted access; the first entry that names it decides."""
        if self.owned_by(domain):
            return True
        for named, access in self.others:
            if named == domain:
                return wanted in access
        return wanted in self.default

    def inherited_by(self, creator: int) -> "Permissions":
        """Return what a child gets: its parent's, but a guest owns what it creates."""
        if creator == PRIVILEGED:
            return self
        return Permissions(creator, self.default, self.others)
