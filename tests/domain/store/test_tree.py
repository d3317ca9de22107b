# SPDX-License-Identifier: MIT
"""Nodes, permissions, quotas and conflicts, on the tree itself."""

import pytest

from vscsi.domain.base import StoreError
from vscsi.domain.store import paths
from vscsi.domain.store.permissions import Access, Permissions
from vscsi.domain.store.transaction import Change, Transaction
from vscsi.domain.store.tree import Quota, Tree


class Database:
    """Single requests and transactions of any domain."""

    def __init__(self, **quota: int) -> None:
        self.tree = Tree(Quota(**quota))

    def begin(self, domain: int = 0) -> Transaction:
        return Transaction(self.tree, domain, isolated=True)

    def write(self, path: str, value: bytes = b"", domain: int = 0) -> list[Change]:
        single = Transaction(self.tree, domain, isolated=False)
        single.write(path, value)
        return single.commit()

    def rm(self, path: str, domain: int = 0) -> list[Change]:
        single = Transaction(self.tree, domain, isolated=False)
        single.rm(path)
        return single.commit()

    def read(self, path: str, domain: int = 0) -> bytes:
        return Transaction(self.tree, domain, isolated=False).node(path, Access.READ).value

    def perms(self, path: str, *entries: str, domain: int = 0) -> list[str]:
        single = Transaction(self.tree, domain, isolated=False)
        if entries:
            single.set_permissions(path, Permissions.parse(entries))
            single.commit()
        return self.tree.nodes[path].permissions.format()

    def home(self, domain: int) -> str:
        """Make a guest's directory, as a toolstack does: its own, and all in it."""
        path = paths.domain_path(domain)
        self.write(path)
        self.perms(path, f"n{domain}")
        return path


def refused(code: str) -> "pytest.RaisesExc[StoreError]":
    return pytest.raises(StoreError, match=f"^{code}")


def test_write_creates_the_missing_parents_empty():
    db = Database()
    db.write("/a/b/c", b"1")
    assert db.read("/a") == db.read("/a/b") == b""
    assert db.tree.nodes["/a"].children == ("b",)
    assert db.tree.is_consistent()


def test_rm_takes_all_below_and_is_quiet_about_the_absent():
    db = Database()
    db.write("/a/b/c/d", b"1")
    db.rm("/a/b")
    assert set(db.tree.nodes) == {"/", "/a"}
    assert db.rm("/a/b") == []
    with refused("ENOENT"):
        db.rm("/a/b/c")
    with refused("EINVAL"):
        db.rm("/")
    assert db.tree.is_consistent()


def test_a_very_deep_tree_is_made_and_removed_without_recursion():
    db = Database()
    db.write("/a" * 1536, b"1")
    db.rm("/a")
    assert set(db.tree.nodes) == {"/"}


@pytest.mark.parametrize(
    "path", ["", "//", "/a/", "a//b", "/a b", "/ü", "/a\0b", "/" + "a" * 3072, "a" * 2049, "/a\n"]
)
def test_malformed_paths_are_refused(path):
    with refused("EINVAL"):
        paths.resolve(path, 0)


def test_relative_paths_are_relative_to_the_domains_home():
    assert paths.resolve("x/y", 3) == "/local/domain/3/x/y"
    assert paths.resolve("/x", 3) == "/x"
    assert paths.resolve("@releaseDomain", 3) == "@releaseDomain"


def test_a_guest_owns_what_it_creates_and_inherits_the_rest():
    db = Database()
    home = db.home(5)
    db.perms(home, "n5", "r7", domain=5)
    db.write(f"{home}/a/b", domain=5)
    assert db.perms(f"{home}/a") == db.perms(f"{home}/a/b") == ["n5", "r7"]
    db.write(f"{home}/c", domain=0)
    assert db.perms(f"{home}/c") == ["n5", "r7"]


def test_guests_have_no_access_but_what_they_are_given():
    db = Database()
    db.write("/backend/1", b"secret")
    for path in ("/backend/1", "/backend/2", "/backend/1/x", "/nothing"):
        with refused("EACCES"):  # no way to tell which of them exist
            db.read(path, domain=5)
        with refused("EACCES"):
            db.write(path, domain=5)
        with refused("EACCES"):
            db.rm(path, domain=5)
    db.perms("/backend/1", "n0", "r5", "b6", "w7")
    assert db.read("/backend/1", domain=5) == b"secret"
    with refused("EACCES"):
        db.write("/backend/1", b"x", domain=5)
    with refused("ENOENT"):
        db.read("/backend/1/x", domain=5)
    db.write("/backend/1", b"by 6", domain=6)
    db.write("/backend/1", b"by 7", domain=7)
    with refused("EACCES"):
        db.read("/backend/1", domain=7)
    with refused("EACCES"):
        db.read("/backend/1", domain=8)


def test_the_first_letter_is_the_default_for_domains_that_are_not_named():
    db = Database()
    db.write("/open", b"1")
    db.perms("/open", "r0", "n5")
    assert db.read("/open", domain=9) == b"1"
    with refused("EACCES"):
        db.read("/open", domain=5)


def test_permissions_are_set_by_the_owner_and_the_owner_by_domain_0():
    db = Database()
    home = db.home(5)
    db.write("/other")
    db.perms("/other", "n0", "b5")
    with refused("EACCES"):
        db.perms("/other", "b5", domain=5)
    with refused("EPERM"):
        db.perms(home, "n6", domain=5)
    assert db.perms(home, "b5", "r6", domain=5) == ["b5", "r6"]
    db.perms(home, "n6")
    assert db.tree.owned[5] == 0
    assert db.tree.is_consistent()


@pytest.mark.parametrize("entries", [(), ("x1",), ("r",), ("r-1",), ("r65536",), ("r1x",), ("r٣",)])
def test_malformed_permissions_are_refused(entries):
    with refused("EINVAL"):
        Permissions.parse(entries)


def test_a_guest_owns_a_bounded_number_of_nodes():
    db = Database(nodes=10)
    home = db.home(5)
    for number in range(8):
        db.write(f"{home}/{number}", domain=5)
    with refused("ENOSPC"):
        db.write(f"{home}/x/y", domain=5)
    db.write(f"{home}/x", domain=5)
    with refused("ENOSPC"):
        db.write(f"{home}/y", domain=5)
    db.write(f"{home}/x", b"a new value is no new node", domain=5)
    for number in range(50):
        db.write(f"/mine/{number}", domain=0)
    db.rm(f"{home}/x", domain=5)
    db.write(f"{home}/y", domain=5)
    assert db.tree.is_consistent()


def test_transactions_together_do_not_get_past_the_quota():
    db = Database(nodes=3)
    home = db.home(5)
    db.write(f"{home}/a", domain=5)
    first, second = db.begin(5), db.begin(5)
    first.write(f"{home}/b", b"")
    with refused("ENOSPC"):
        first.write(f"{home}/c", b"")
    second.write(f"{home}/a/d", b"")
    first.commit()
    with refused("ENOSPC"):
        second.commit()
    assert db.tree.owned[5] == 3
    assert db.tree.is_consistent()


def test_a_guests_nodes_are_of_bounded_size():
    db = Database(node_bytes=100)
    home = db.home(5)
    with refused("ENOSPC"):
        db.write(f"{home}/a", bytes(93), domain=5)
    db.write(f"{home}/a", bytes(92), domain=5)
    with refused("ENOSPC"):  # names of children count for their parent
        db.write(f"{home}/{'x' * 95}", domain=5)
    db.write(f"{home}/a", bytes(3000))
    with refused("E2BIG"):  # more than a READ could answer
        db.write("/a", bytes(4094))


def test_a_guests_transaction_reads_a_bounded_number_of_nodes():
    db = Database(transaction_nodes=4)
    home = db.home(5)
    transaction = db.begin(5)
    for _ in range(10):
        transaction.node(home, Access.READ)
    with refused("ENOSPC"):
        transaction.write(f"{home}/a/b/c/d", b"")


def test_a_transaction_sees_its_own_writes_and_nobody_elses():
    db = Database()
    db.write("/a", b"1")
    transaction = db.begin()
    db.write("/a", b"2")
    db.write("/b", b"2")
    transaction.write("/c/d", b"3")
    assert transaction.node("/a", Access.READ).value == b"1"
    assert transaction.node("/c", Access.READ).children == ("d",)
    with refused("ENOENT"):
        transaction.node("/b", Access.READ)
    with refused("ENOENT"):
        db.read("/c")


@pytest.mark.parametrize("other", ["write", "rm", "child", "perms"])
@pytest.mark.parametrize("mine", ["read", "write"])
def test_a_commit_fails_if_what_it_used_has_changed(mine, other):
    db = Database()
    db.write("/a/b", b"1")
    transaction = db.begin()
    if mine == "read":
        transaction.node("/a/b", Access.READ)
        transaction.write("/mine", b"1")
    else:
        transaction.write("/a/b", b"2")
    if other == "write":
        db.write("/a/b", b"1")
    elif other == "rm":
        db.rm("/a")
    elif other == "child":
        db.write("/a/b/c")
    else:
        db.perms("/a/b", "n0", "r1")
    before = dict(db.tree.nodes)
    with refused("EAGAIN"):
        transaction.commit()
    assert db.tree.nodes == before


def test_a_commit_succeeds_beside_changes_elsewhere():
    db = Database()
    db.write("/a/b", b"1")
    db.write("/c/d", b"1")
    transaction = db.begin()
    transaction.write("/a/b", transaction.node("/a/b", Access.READ).value + b"+")
    db.write("/c/d", b"2")
    db.write("/c/e", b"2")
    transaction.commit()
    assert (db.read("/a/b"), db.read("/c/d")) == (b"1+", b"2")


def test_looking_for_an_absent_node_conflicts_with_its_creation():
    db = Database()
    transaction = db.begin()
    with refused("ENOENT"):
        transaction.node("/a/b", Access.READ)
    db.write("/a/b")
    with refused("EAGAIN"):
        transaction.commit()


def test_changes_name_what_happened_once():
    db = Database()
    assert [(c.path, c.exact) for c in db.write("/a/b/c")] == [("/a/b/c", False)]
    transaction = db.begin()
    transaction.write("/x", b"1")
    transaction.write("/x", b"2")
    transaction.write("/made/and/removed", b"")
    transaction.rm("/made")
    transaction.rm("/a/b")
    assert {(c.path, c.exact) for c in transaction.commit()} == {
        ("/x", False),
        ("/a/b", False),
        ("/a/b/c", True),
    }
