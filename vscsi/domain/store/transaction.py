# SPDX-License-Identifier: MIT
"""Reads and writes as one domain, on the tree or on a snapshot of it, and their commit."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise, takewhile

from vscsi.domain.base import StoreError
from vscsi.domain.store import paths
from vscsi.domain.store.permissions import PRIVILEGED, Access, Permissions
from vscsi.domain.store.tree import Node, Tree
from vscsi.wire.xenstore import PAYLOAD_MAX


@dataclass(frozen=True, slots=True)
class Change:
    """What a commit did to one path: the matter of watch events."""

    path: str
    before: Node | None
    after: Node | None
    exact: bool
    """Only a watch on this very path fires: the node went away with one above it."""

    def visible_to(self, domain: int) -> bool:
        """Tell whether a domain may read the node as it was or as it is (XSA-115)."""
        return any(
            node is not None and node.permissions.allow(domain, Access.READ)
            for node in (self.before, self.after)
        )


class Transaction:
    """Operations of one domain, invisible to others until `commit`; they see each other.

    An isolated transaction works on a snapshot, and its commit fails with EAGAIN if anything
    that it read or wrote has changed since. One that is not isolated is a single request and
    must be committed before anyone else touches the tree.

    Every operation takes an absolute path, and raises StoreError with xenstored's codes.
    """

    def __init__(self, tree: Tree, domain: int, *, isolated: bool) -> None:
        self._tree = tree
        self._domain = domain
        self._bound = domain != PRIVILEGED
        self._isolated = isolated
        # Nodes are immutable, so a snapshot is a copy of the table and not of the nodes.
        self._base = dict(tree.nodes) if isolated else tree.nodes
        self._changed: dict[str, Node | None] = {}
        self._accessed: set[str] = set()
        self._owned: Counter[int] = Counter()
        self._exact: dict[str, bool] = {}

    def node(self, path: str, wanted: Access) -> Node:
        """Return a node that the domain may use as wanted; raise ENOENT or EACCES."""
        node = self._find(path, wanted)
        if node is None:
            raise StoreError("ENOENT", path)
        return node

    def write(self, path: str, value: bytes) -> None:
        """Create or replace a node, with the parents that it lacks."""
        if len(path) + 1 + len(value) > PAYLOAD_MAX:  # what no message could have carried
            raise StoreError("E2BIG", path)
        node = self._find(path, Access.WRITE)
        if node is None:
            self._create(path, value)
        else:
            self._replace(path, replace(node, value=value))
        self._exact[path] = False

    def mkdir(self, path: str) -> None:
        """Create an empty node unless it exists."""
        if self._find(path, Access.WRITE) is None:
            self._create(path, b"")
            self._exact[path] = False

    def rm(self, path: str) -> None:
        """Remove a node and all below it; absent is good unless its parent is absent too."""
        if path == paths.ROOT:
            raise StoreError("EINVAL", path)
        if self._find(path, Access.WRITE) is None:
            self.node(paths.parent(path), Access.NONE)
            return
        above, node = self._nearest(paths.parent(path))
        removed = list(self._below(path))
        leaves = tuple(leaf for leaf in node.children if leaf != paths.name(path))
        self._put(above, replace(node, children=leaves))
        for gone in removed:
            self._put(gone, None)
            self._exact.setdefault(gone, True)
        self._exact[path] = False

    def set_permissions(self, path: str, permissions: Permissions) -> None:
        """Replace a node's permissions: for its owner, and a new owner only for domain 0."""
        node = self.node(path, Access.WRITE)
        if not node.permissions.owned_by(self._domain):
            raise StoreError("EACCES", path)
        if self._bound:
            if permissions.owner != node.permissions.owner:
                raise StoreError("EPERM", path)
            if 1 + len(permissions.others) > self._tree.quota.node_permissions:
                raise StoreError("ENOSPC", path)
        self._replace(path, replace(node, permissions=permissions))
        self._exact[path] = False

    def commit(self) -> list[Change]:
        """Apply everything to the tree at once, or raise EAGAIN or ENOSPC and apply nothing."""
        nodes = self._tree.nodes
        if self._isolated and any(
            nodes.get(path) is not self._base.get(path) for path in self._accessed
        ):
            raise StoreError("EAGAIN")
        self._check_count(0)
        changes = []
        for path, exact in self._exact.items():
            before, after = nodes.get(path), self._changed.get(path)
            if before is not None or after is not None:  # else made and removed again
                changes.append(Change(path, before, after, exact))
        for path, node in self._changed.items():
            before = nodes.get(path)
            if node is None:
                nodes.pop(path, None)
            elif before is None or path in self._exact or not node.looks_like(before):
                nodes[path] = node  # else a child came and went again: no conflict with anybody
        self._tree.owned.update(self._owned)
        return changes

    def _get(self, path: str) -> Node | None:
        if self._isolated and path not in self._accessed:
            if self._bound and len(self._accessed) >= self._tree.quota.transaction_nodes:
                raise StoreError("ENOSPC", path)
            self._accessed.add(path)
        if path in self._changed:
            return self._changed[path]
        return self._base.get(path)

    def _put(self, path: str, node: Node | None) -> None:
        """Set or remove (None) a node that has been looked at with `_get` before."""
        old = self._get(path)
        if old is not None:
            self._owned[old.permissions.owner] -= 1
        if node is not None:
            self._owned[node.permissions.owner] += 1
            node = replace(node, generation=self._tree.new_generation())
        self._changed[path] = node

    def _replace(self, path: str, node: Node) -> None:
        self._check_size(path, node)
        self._put(path, node)

    def _nearest(self, path: str) -> tuple[str, Node]:
        """Return the node at a path or, absent, the first above it, and where it is."""
        for candidate in paths.upwards(path):
            node = self._get(candidate)
            if node is not None:
                return candidate, node
        raise StoreError("EINVAL", path)  # a special name: it has no nodes above it

    def _find(self, path: str, wanted: Access) -> Node | None:
        """Return a node, None if it is absent, or raise EACCES.

        Whether a node exists is told only to those who could use it where it would be.
        """
        if not self._bound and not paths.is_special(path):
            return self._get(path)
        where, node = self._nearest(path)
        if not node.permissions.allow(self._domain, wanted):
            raise StoreError("EACCES", path)
        return node if where == path else None

    def _create(self, path: str, value: bytes) -> None:
        """Create an absent node and its absent parents."""
        where, node = self._nearest(path)
        missing = list(takewhile(lambda candidate: candidate != where, paths.upwards(path)))
        self._check_count(len(missing))
        permissions = node.permissions.inherited_by(self._domain)
        made = {path: Node(value, (), permissions, 0)}
        for below, above in pairwise(missing):
            made[above] = Node(b"", (paths.name(below),), permissions, 0)
        made[where] = replace(node, children=(*node.children, paths.name(missing[-1])))
        for new in made.values():
            self._check_size(path, new)
        for at, new in made.items():
            self._put(at, new)

    def _check_size(self, path: str, node: Node) -> None:
        if self._bound and node.size_bytes > self._tree.quota.node_bytes:
            raise StoreError("ENOSPC", path)

    def _check_count(self, more: int) -> None:
        if not self._bound:
            return
        growth = self._owned[self._domain] + more
        if growth > 0 and self._tree.owned[self._domain] + growth > self._tree.quota.nodes:
            raise StoreError("ENOSPC")

    def _below(self, path: str) -> Iterator[str]:
        """Yield a path and all nodes below it; without recursion, a tree may be very deep."""
        waiting = [path]
        while waiting:
            path = waiting.pop()
            yield path
            node = self._get(path)
            if node is not None:
                waiting.extend(paths.child(path, leaf) for leaf in node.children)
