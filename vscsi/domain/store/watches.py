# SPDX-License-Identifier: MIT
"""Registered watches, and which of them a change concerns."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vscsi.domain.base import StoreError
from vscsi.domain.store import paths

if TYPE_CHECKING:
    from vscsi.domain.store.session import Session


@dataclass(frozen=True, slots=True)
class Watch:
    """One client's interest in a path and all below it."""

    owner: "Session"
    path: str
    """Absolute, or a special name."""
    token: bytes
    prefix: str = field(default="", compare=False)
    """What the client left out of its (relative) path; left out of the events as well."""

    def shown(self, path: str) -> str:
        """Return a path at or below the watched one as the client wants to see it."""
        return path[len(self.prefix) :]


class WatchTable:
    """All watches of a store, by path."""

    def __init__(self) -> None:
        self._by_path: dict[str, list[Watch]] = {}

    def add(self, watch: Watch) -> None:
        """Register; StoreError("EEXIST") if its owner has that path and token already."""
        there = self._by_path.setdefault(watch.path, [])
        if watch in there:
            raise StoreError("EEXIST", watch.path)
        there.append(watch)

    def remove(self, watch: Watch) -> None:
        """Forget; StoreError("ENOENT") if there is no such watch."""
        there = self._by_path.get(watch.path, [])
        if watch not in there:
            raise StoreError("ENOENT", watch.path)
        there.remove(watch)
        if not there:
            del self._by_path[watch.path]

    def concerned(self, path: str, *, exact: bool) -> Iterator[Watch]:
        """Yield the watches on a changed path and, unless exact, on those above it."""
        for watched in (path,) if exact else paths.upwards(path):
            yield from self._by_path.get(watched, ())
