# SPDX-License-Identifier: MIT
"""Which paths there are (xenstore.txt, introduction) and how they nest."""

import re
from collections.abc import Iterator

from vscsi.domain.base import StoreError
from vscsi.wire.xenstore import ABS_PATH_MAX, REL_PATH_MAX

ROOT = "/"
_VALID = re.compile(r"[A-Za-z0-9\-/_@]+")


def domain_path(domain: int) -> str:
    """Return a domain's home, to which its relative paths are relative."""
    return f"/local/domain/{domain}"


def is_special(path: str) -> bool:
    """Tell whether a path names one of xenstored's own events (@introduceDomain, ...)."""
    return path.startswith("@")


def resolve(path: str, domain: int) -> str:
    """Return the absolute form of a path that a domain sent; StoreError("EINVAL") if malformed.

    A special name stays what it is; whether it is allowed is the caller's question.
    """
    if not _VALID.fullmatch(path) or "//" in path or (path.endswith("/") and path != ROOT):
        raise StoreError("EINVAL", path)
    if len(path) > (ABS_PATH_MAX if path.startswith("/") else REL_PATH_MAX):
        raise StoreError("EINVAL", path)
    if path.startswith("/") or is_special(path):
        return path
    return f"{domain_path(domain)}/{path}"


def parent(path: str) -> str:
    """Return the path one level up; the root's is the root."""
    return path.rpartition("/")[0] or ROOT


def name(path: str) -> str:
    """Return the last component of a path."""
    return path.rpartition("/")[2]


def child(path: str, leaf: str) -> str:
    """Return the path of a child."""
    return f"/{leaf}" if path == ROOT else f"{path}/{leaf}"


def upwards(path: str) -> Iterator[str]:
    """Yield a path and everything above it, the root last; a special name is alone."""
    yield path
    while path != ROOT and not is_special(path):
        path = parent(path)
        yield path
