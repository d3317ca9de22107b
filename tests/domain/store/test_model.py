# SPDX-License-Identifier: MIT
"""The tree with its transactions against a plain dict, and against serial execution."""

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from vscsi.domain.base import StoreError
from vscsi.domain.store.permissions import Access
from vscsi.domain.store.transaction import Transaction
from vscsi.domain.store.tree import Quota, Tree

PATHS = st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map(lambda p: "/" + "/".join(p))
VALUES = st.sampled_from([b"", b"1", b"2"])
OPERATIONS = st.one_of(
    st.tuples(st.just("write"), PATHS, VALUES),
    st.tuples(st.sampled_from(["mkdir", "rm", "read", "directory"]), PATHS),
)

Model = dict[str, bytes]


def on_model(model: Model, verb: str, path: str, *value: bytes) -> Any:
    """Execute an operation on a dict of paths and values; the result, or the error's name."""
    parent = path.rpartition("/")[0] or "/"
    if verb in ("write", "mkdir"):
        steps = path.split("/")[1:]
        for depth in range(1, len(steps) + 1):
            model.setdefault("/" + "/".join(steps[:depth]), b"")
        if verb == "write":
            model[path] = value[0]
        return None
    if verb == "rm" and path not in model:
        return None if parent in model else "ENOENT"
    if path not in model:
        return "ENOENT"
    if verb == "read":
        return model[path]
    if verb == "directory":
        return sorted(p[len(path) + 1 :] for p in model if p.rpartition("/")[0] == path)
    for below in [p for p in model if p == path or p.startswith(path + "/")]:
        del model[below]
    return None


def on_tree(transaction: Transaction, verb: str, *arguments: Any) -> Any:
    try:
        if verb == "read":
            return transaction.node(*arguments, Access.READ).value
        if verb == "directory":
            return sorted(transaction.node(*arguments, Access.READ).children)
        return getattr(transaction, verb)(*arguments)
    except StoreError as error:
        return error.code


class Machine(RuleBasedStateMachine):
    """Single requests of one client between the requests of other clients' transactions."""

    transactions = Bundle("transactions")

    def __init__(self) -> None:
        super().__init__()
        self.tree = Tree(Quota())
        self.model: Model = {"/": b""}
        self.commits = 0

    @rule(operation=OPERATIONS)
    def single(self, operation):
        transaction = Transaction(self.tree, 0, isolated=False)
        result = on_tree(transaction, *operation)
        if transaction.commit():
            self.commits += 1
        assert result == on_model(self.model, *operation)

    @rule(target=transactions)
    def start(self):
        return (Transaction(self.tree, 0, isolated=True), dict(self.model), [], self.commits)

    @rule(running=transactions, operation=OPERATIONS)
    def inside(self, running, operation):
        transaction, snapshot, log, _ = running
        result = on_tree(transaction, *operation)
        assert result == on_model(snapshot, *operation)
        log.append((operation, result))

    @rule(running=consumes(transactions))
    def commit(self, running):
        """A commit that succeeds is as if all had been asked just now, one after the other."""
        transaction, _, log, started_at = running
        outcome = on_tree(transaction, "commit")
        if outcome == "EAGAIN":
            assert self.commits > started_at, "a conflict with nobody"
            return
        for operation, result in log:
            assert on_model(self.model, *operation) == result
        self.commits += bool(outcome)

    @rule(running=consumes(transactions))
    def abort(self, running):
        """Nothing of it is seen, says the invariant."""

    @invariant()
    def same(self):
        assert {path: node.value for path, node in self.tree.nodes.items()} == self.model
        assert self.tree.is_consistent()


Machine.TestCase.settings = settings(deadline=None, max_examples=60, stateful_step_count=40)
test_transactions_are_serialisable = Machine.TestCase
