# SPDX-License-Identifier: MIT
"""The database: nodes as values under their absolute paths, and who owns how many."""

from collections import Counter
from dataclasses import dataclass

from vscsi.domain.store import paths
from vscsi.domain.store.permissions import PRIVILEGED, Permissions


@dataclass(frozen=True, slots=True)
class Quota:
    """xenstored's defaults; they bind every domain but domain 0."""

    nodes: int = 1000
    """Nodes that a domain owns."""
    node_bytes: int = 2048
    """Value, names of the children and permissions of one node."""
    node_permissions: int = 5
    watches: int = 128
    transactions: int = 10
    transaction_nodes: int = 1024
    """Nodes that one transaction reads or writes."""


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One node. Never modified, only replaced: two looks at the same object saw no change."""

    value: bytes
    children: tuple[str, ...]
    permissions: Permissions
    generation: int
    """Differs between any two nodes that ever were at a path (DIRECTORY_PART's gencnt)."""

    def looks_like(self, other: "Node") -> bool:
        """Tell whether nobody could tell the two apart but by generation."""
        return (self.value, self.children, self.permissions) == (
            other.value,
            other.children,
            other.permissions,
        )

    @property
    def size_bytes(self) -> int:
        """What the node counts against Quota.node_bytes; a permission counts 8, as in C."""
        names = sum(len(child) + 1 for child in self.children)
        return len(self.value) + names + 8 * (1 + len(self.permissions.others))


class Tree:
    """All nodes. Changed by transactions alone (`transaction.Transaction.commit`)."""

    def __init__(self, quota: Quota) -> None:
        self.quota = quota
        self.nodes = {paths.ROOT: Node(b"", (), Permissions(PRIVILEGED), 0)}
        self.owned: Counter[int] = Counter({PRIVILEGED: 1})
        """Nodes by owner."""
        self._generation = 0

    def new_generation(self) -> int:
        """Return a number that no node has had yet."""
        self._generation += 1
        return self._generation

    def is_consistent(self) -> bool:
        """Check that children and nodes name each other and that the counts are right."""
        named = {paths.ROOT}
        for path, node in self.nodes.items():
            named.update(paths.child(path, leaf) for leaf in node.children)
        links = 1 + sum(len(node.children) for node in self.nodes.values())
        counted = Counter(node.permissions.owner for node in self.nodes.values())
        return named == self.nodes.keys() and links == len(named) and counted == self.owned
