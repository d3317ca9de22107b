# SPDX-License-Identifier: MIT
"""Who uses which grant: against a model that counts by hand, and from several threads."""

import struct
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vscsi.ring._core import GrantAccess, grant_end
from vscsi.wire.errors import GrantError

PERMIT, READONLY, READING, WRITING = 1, 4, 8, 16
PAGES, REFERENCES, DOMAIN, LIMIT = 4, 6, 5, 7


class Refused(Exception):
    """A reference may not be mapped."""


class Model:
    """The rules, one reference at a time, on a copy of the table."""

    def __init__(self) -> None:
        self.table = [[0, 0, 0] for _ in range(REFERENCES)]
        self.frame: dict[int, int] = {}
        self.users: dict[int, list[bool]] = {}
        """Of each reference in use: a `readonly` for each mapping."""

    def map(self, references: list[int], readonly: bool) -> list[int]:
        if sum(map(len, self.users.values())) + len(references) > LIMIT:
            raise Refused
        done: list[int] = []
        try:
            for reference in references:
                self._pin(reference, readonly)
                done.append(reference)
        except Refused:
            self.unmap(done, readonly)
            raise
        return [self.frame[reference] for reference in references]

    def _pin(self, reference: int, readonly: bool) -> None:
        if reference >= REFERENCES:
            raise Refused
        users = self.users.get(reference, [])
        if not users or not (readonly or False in users):
            flags, domain, frame = self.table[reference]
            permitted = flags & 3 == PERMIT and domain == DOMAIN
            if not permitted or not (readonly or not flags & READONLY):
                raise Refused
            if not users and frame >= PAGES:
                # The marks are set before the frame is looked at, and taken back after.
                self.table[reference][0] &= ~(READING if readonly else READING | WRITING)
                raise Refused
            self.table[reference][0] |= READING if readonly else READING | WRITING
            self.frame.setdefault(reference, frame)
        self.users.setdefault(reference, []).append(readonly)

    def unmap(self, references: list[int], readonly: bool) -> None:
        for reference in references:
            users = self.users[reference]
            users.remove(readonly)
            if not users:
                del self.users[reference], self.frame[reference]
                self.table[reference][0] &= ~(READING | WRITING)
            elif not readonly and False not in users:
                self.table[reference][0] &= ~WRITING

    def end(self, references: list[int]) -> list[int]:
        in_use = [n for n in references if self.table[n][0] & (READING | WRITING)]
        for reference in set(references) - set(in_use):
            self.table[reference][0] = self.table[reference][1] = 0
        return in_use

    def packed(self) -> bytes:
        return b"".join(struct.pack("<HHI", *each) for each in self.table)


numbers = st.integers(0, REFERENCES - 1)
operations = st.one_of(
    st.tuples(
        st.just("map"),
        st.lists(numbers | st.just(REFERENCES), min_size=1, max_size=3) | st.lists(numbers),
        st.booleans(),
    ),
    st.tuples(st.just("unmap"), st.integers(0, 9)),
    st.tuples(st.just("end"), st.lists(numbers, unique=True)),
    st.tuples(  # anything, marks included
        st.just("write"),
        numbers,
        st.sampled_from([PERMIT] * 4 + [0, 3, PERMIT | READONLY, PERMIT | WRITING, 0xFFFF]),
        st.sampled_from([DOMAIN] * 4 + [4]),
        st.sampled_from([*range(PAGES)] * 2 + [PAGES, 0xFFFF_FFFF]),
    ),
)


@settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=st.lists(operations, max_size=40))
def test_a_table_that_changes_at_any_time_is_used_as_the_model_says(
    shared_pages: Callable[[int], memoryview], steps: list[tuple]
) -> None:
    memory = shared_pages(PAGES)
    table = memory[: REFERENCES * 8]
    access = GrantAccess(memory, memory, references=REFERENCES, domain=DOMAIN, limit=LIMIT)
    model, mappings = Model(), []
    for step in [("write", n, PERMIT, DOMAIN, n % PAGES) for n in range(REFERENCES)] + steps:
        operation, *arguments = step
        if operation == "map":
            references, readonly = arguments
            try:
                expected = model.map(references, readonly)
            except Refused:
                with pytest.raises(GrantError):
                    access.map(references, readonly=readonly)
            else:
                assert access.map(references, readonly=readonly) == expected
                mappings.append((references, readonly))
        elif operation == "unmap" and mappings:
            references, readonly = mappings.pop(arguments[0] % len(mappings))
            model.unmap(references, readonly)
            access.unmap(references, readonly=readonly)
        elif operation == "end":
            assert grant_end(table, arguments[0]) == model.end(arguments[0])
        elif operation == "write":
            reference, *values = arguments
            model.table[reference] = values
            struct.pack_into("<HHI", table, reference * 8, *values)
        assert table == model.packed()
        assert access.mapped == sum(map(len, model.users.values()))


@pytest.mark.parametrize("sanitizer", ["plain", "thread", "address"])
@pytest.mark.parametrize("domain", ["honest", "hostile"])
def test_threads_map_what_a_domain_takes_back_meanwhile(
    program: Callable[..., str], domain: str, sanitizer: str
) -> None:
    program("grants", sanitizer, 30_000, domain)
