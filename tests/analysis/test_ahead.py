# SPDX-License-Identifier: MIT
"""Reading ahead changes nothing but when."""

import threading
from collections.abc import Iterator

import pytest

from vscsi.analysis.ahead import ahead


def test_items_come_in_their_order() -> None:
    assert list(ahead(range(100))) == list(range(100))
    assert list(ahead([])) == []
    assert list(ahead([0, None, ()])) == [0, None, ()]


def test_an_error_comes_where_it_would_have_come() -> None:
    def numbers() -> Iterator[int]:
        yield 1
        yield 2
        raise ValueError("three")

    reader = ahead(numbers())
    assert [next(reader), next(reader)] == [1, 2]
    with pytest.raises(ValueError, match="three"):
        next(reader)


def test_the_thread_ends_with_its_reader() -> None:
    asked = []

    def endless() -> Iterator[int]:
        while True:
            asked.append(threading.current_thread())
            yield len(asked)

    reader = ahead(endless())
    assert next(reader) == 1
    reader.close()
    assert not asked[0].is_alive()
    assert len(asked) <= 5
