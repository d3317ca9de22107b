# SPDX-License-Identifier: MIT
"""From what a user names to a store."""

import re
from pathlib import Path

from vscsi.target.stores.base import Store
from vscsi.target.stores.file import FileStore
from vscsi.target.stores.memory import MemoryStore
from vscsi.target.stores.null import NullStore
from vscsi.wire.errors import SetupError

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def open_store(name: str | Path, *, readonly: bool = False, direct: bool = False) -> Store:
    """Open an image or block device by its path, or make `memory:SIZE` or `null:SIZE`.

    SIZE is a number of bytes, with K, M, G or T (powers of 1024). `mmap:PATH` maps the image
    instead of reading and writing it. `direct` (O_DIRECT) concerns the other files alone. Raises
    SetupError.
    """
    kind_of_file, colon, path = str(name).partition("mmap:")
    if colon and not kind_of_file:
        return FileStore(path, readonly=readonly, mapped=True)
    match = re.fullmatch(r"(memory|null):(\d+)([KMGT]?)", str(name))
    if match is None:
        return FileStore(name, readonly=readonly, direct=direct)
    size_bytes = int(match[2]) * _UNITS[match[3]]
    kind = MemoryStore if match[1] == "memory" else NullStore
    try:
        return kind(size_bytes, readonly=readonly)
    except (MemoryError, OverflowError) as error:
        raise SetupError("allocate", str(name), "too large", "name a smaller size") from error
