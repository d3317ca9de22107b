# SPDX-License-Identifier: MIT
"""HTML that can be nested but not injected into: text is escaped unless it is `Html` already."""

from collections.abc import Iterable
from html import escape
from typing import TypeAlias

_VOID = frozenset(("input", "meta"))


class Html(str):
    """Text that is HTML. Only this module makes it of text that it has escaped, and the plots."""

    __slots__ = ()


Child: TypeAlias = "str | Iterable[Child] | None"


def tag(name: str, /, *children: Child, **attributes: object) -> Html:
    """Return an element; str children are escaped, None is left out, iterables are laid out.

    Names of attributes lose a trailing _, and have - for every other _; their values are escaped;
    None leaves one out.
    """
    told = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{clean(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID:
        return Html(f"<{name}{told}>")
    return Html(f"<{name}{told}>{join(children)}</{name}>")


def join(children: Iterable[Child]) -> Html:
    """Return children behind each other."""
    return Html("".join(_child(each) for each in children))


def clean(text: str) -> str:
    """Return a text escaped, and without the control characters that HTML does not allow."""
    return escape("".join(each if each.isprintable() else "\ufffd" for each in text))


def _child(child: Child) -> str:
    if child is None:
        return ""
    if isinstance(child, str):
        return child if isinstance(child, Html) else clean(child)
    return join(child)
