# SPDX-License-Identifier: MIT
"""The mode pages of a logical unit: defaults, what may be changed, what it is now."""

import threading
from collections.abc import Iterable, Mapping

from vscsi.target.refusals import bad_parameter
from vscsi.wire.mode import Page, PageControl
from vscsi.wire.sense import Sense


class ModePages:
    """Pages by code (no subpages), each with a mask of its changeable bits. Thread-safe.

    Nothing is saved: after a reset the current values are the default ones again.
    """

    def __init__(self, defaults: Mapping[int, bytes], changeable: Mapping[int, bytes]) -> None:
        self._defaults = dict(sorted(defaults.items()))
        self._changeable = {code: bytes(len(body)) for code, body in defaults.items()}
        self._changeable.update(changeable)
        self._lock = threading.Lock()
        self._current: dict[int, Page] = {}
        self._fields: dict[int, Mapping[str, int]] = {}
        self.reset()

    def reset(self) -> None:
        """Make the default values the current ones."""
        with self._lock:
            self._set(Page(code, body) for code, body in self._defaults.items())

    def codes(self) -> list[int]:
        """Return the codes of the pages, ascending."""
        return list(self._defaults)

    def field(self, code: int, name: str) -> int:
        """Return a field's current value, 0 if there is no such page."""
        fields = self._fields.get(code)
        return fields[name] if fields else 0

    def page(self, code: int, control: PageControl) -> Page:
        """Return a page's current, changeable or default values."""
        if control is PageControl.CHANGEABLE:
            return Page(code, self._changeable[code])
        if control is PageControl.DEFAULT:
            return Page(code, self._defaults[code])
        return self._current[code]

    def select(self, pages: Iterable[tuple[int, Page]]) -> Sense | bool:
        """Take new values, from pages with their offsets in a parameter list: all or none.

        Returns whether anything has changed, or the sense of a refusal (SPC-5 6.15).
        """
        with self._lock:
            wanted = list(pages)
            for offset, page in wanted:
                refusal = self._refuse(offset, page)
                if refusal is not None:
                    return refusal
            before = dict(self._current)
            self._set(Page(page.code, page.body) for _, page in wanted)
            return self._current != before

    def _refuse(self, offset: int, page: Page) -> Sense | None:
        current = self._current.get(page.code)
        if current is None or page.subpage is not None:
            return bad_parameter(offset, 5)
        if len(page.body) != len(current.body):
            return bad_parameter(offset + 1)
        masks = self._changeable[page.code]
        for index, (old, new, mask) in enumerate(zip(current.body, page.body, masks, strict=True)):
            if (old ^ new) & ~mask:
                return bad_parameter(offset + 2 + index, ((old ^ new) & ~mask).bit_length() - 1)
        return None

    def _set(self, pages: Iterable[Page]) -> None:
        for page in pages:
            self._current[page.code] = page
            self._fields[page.code] = page.fields()
