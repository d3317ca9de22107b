# SPDX-License-Identifier: MIT
"""Registered memory: what a handle in an SRP memory descriptor names, and how it is resolved."""

import threading
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate

from construct import Container, GreedyRange

from vscsi.domain.base import PAGE_SIZE, GrantMapper, Mapping
from vscsi.ring import Service
from vscsi.target.buffers import gather
from vscsi.wire.errors import WireError
from vscsi.wire.formats import parse
from vscsi.wire.mad import REFERENCES_PER_PAGE, parse_directory
from vscsi.wire.srp import BufferFormat, MemoryDescriptor

MAX_REGIONS = 64
MAX_REGION_PAGES = 24 * REFERENCES_PER_PAGE
"""What one REGISTER_REGION can name: 24 directory pages of 1024 references (96 MiB)."""
DESCRIPTOR_BYTES: int = MemoryDescriptor.sizeof()
DescriptorTable = GreedyRange(MemoryDescriptor)


class InvalidDescriptor(WireError):
    """A command's buffer descriptor cannot be resolved; the command is refused, not the channel."""


@dataclass(slots=True)
class Region:
    """A registered region, mapped until it is unregistered; `users` commands name it now."""

    mapping: Mapping
    runs: Sequence[memoryview]
    """The region's memory, in order."""
    starts: list[int]
    """Where each run begins in the region, and last the region's size."""
    readonly: bool
    users: int = 0

    @property
    def size_bytes(self) -> int:
        """Bytes of the region."""
        return self.starts[-1]

    def views(self, address: int, length: int) -> list[memoryview]:
        """Return views of a range that lies within the region."""
        views = []
        run = bisect_right(self.starts, address) - 1
        while length:
            offset = address - self.starts[run]
            view = self.runs[run][offset : offset + length]
            views.append(view)
            address += len(view)
            length -= len(view)
            run += 1
        return views


class Regions:
    """The regions of one channel. One thread calls it; `release` may be called from any."""

    def __init__(self, grants: GrantMapper, max_descriptors: int, max_bytes: int) -> None:
        """max_descriptors and max_bytes: of one command's buffer."""
        self._grants = grants
        self._max_descriptors = max_descriptors
        self._max_bytes = max_bytes
        self._regions: dict[int, Region] = {}
        self._service: Service | None = None
        self._users_lock = threading.Lock()

    def share(self, service: Service) -> None:
        """Have the C path know all regions as well."""
        self._service = service

    def register(self, handle: int, directory: list[int], pages: int, *, readonly: bool) -> None:
        """Map the pages whose references stand in the directory pages, under `handle`.

        Raises WireError (and maps nothing) if the handle is in use, a count is out of bounds, or a
        grant does not permit it.
        """
        if handle in self._regions or len(self._regions) >= MAX_REGIONS:
            raise WireError(f"region {handle}: the handle is in use, or {MAX_REGIONS} regions are")
        needed = -(-pages // REFERENCES_PER_PAGE)
        if not 0 < pages <= MAX_REGION_PAGES or len(directory) != needed:
            raise WireError(f"region {handle}: {pages} pages in {len(directory)} directory pages")
        listing = self._grants.map(directory, readonly=True)
        try:
            copy = b"".join(bytes(page) for page in listing.pages)
        finally:
            listing.unmap()
        references = [
            reference
            for at in range(0, len(copy), PAGE_SIZE)
            for reference in parse_directory(copy[at : at + PAGE_SIZE])
        ]
        mapping = self._grants.map(references[:pages], readonly=readonly)
        runs = mapping.runs()
        self._regions[handle] = Region(
            mapping, runs, list(accumulate(map(len, runs), initial=0)), readonly
        )
        if self._service is not None:
            self._service.add_region(handle, runs, readonly=readonly)

    def unregister(self, handle: int) -> None:
        """Unmap a region; WireError if there is none, or a command still names it."""
        region = self._regions.get(handle)
        if region is None or region.users:
            raise WireError(f"region {handle} is {'in use' if region else 'not registered'}")
        self._drop(handle)

    def close(self) -> None:
        """Unmap all; nothing may be in flight."""
        for handle in list(self._regions):
            self._drop(handle)

    def _drop(self, handle: int) -> None:
        if self._service is not None:
            self._service.remove_region(handle)
        self._regions.pop(handle).mapping.unmap()

    def resolve(
        self, form: int, area: Container | None, *, writable: bool, used: list[Region]
    ) -> list[memoryview]:
        """Return views of the memory that a CMD's descriptor area names, in order.

        Each region is appended to `used` and counted; give them to `release`, also after an error.
        Raises InvalidDescriptor.
        """
        if form == BufferFormat.NONE or area is None:
            return []
        if form == BufferFormat.DIRECT:
            return self._views([area], area["length"], writable=writable, used=used)
        if form == BufferFormat.INDIRECT:
            return self._views(
                self._table(area, used), area.total_length, writable=writable, used=used
            )
        raise InvalidDescriptor(f"buffer format {form} is not supported")

    def release(self, used: list[Region]) -> None:
        """Undo the counting of `resolve`."""
        with self._users_lock:
            for region in used:
                region.users -= 1
        used.clear()

    @contextmanager
    def at(self, address: int, length: int, *, writable: bool) -> Iterator[list[memoryview]]:
        """Give views of a MAD's buffer: handle in address bits 63:32, offset in bits 31:0."""
        used: list[Region] = []
        try:
            yield self._range(address >> 32, address & 0xFFFF_FFFF, length, writable, used)
        finally:
            self.release(used)

    def _table(self, area: Container, used: list[Region]) -> list[Container]:
        """Return an indirect descriptor's whole table: from the IU, or else from memory, once."""
        count, odd = divmod(area.table.length, DESCRIPTOR_BYTES)
        local = area.descriptors
        if odd or count > self._max_descriptors or len(local) > count:
            raise InvalidDescriptor(
                f"a table of {area.table.length} bytes, {len(local)} descriptors in the unit "
                f"(at most {self._max_descriptors})"
            )
        if len(local) == count:
            return list(local)
        table = area.table
        views = self._range(table.handle, table.address, table.length, False, used)
        copy = gather(views, table.length)
        rest = copy[len(local) * DESCRIPTOR_BYTES :]
        return [*local, *parse(DescriptorTable, rest, "descriptor table")]

    def _views(
        self, descriptors: list[Container], total: int, *, writable: bool, used: list[Region]
    ) -> list[memoryview]:
        if total > self._max_bytes:
            raise InvalidDescriptor(f"{total} bytes, more than the {self._max_bytes} of a command")
        views: list[memoryview] = []
        for each in descriptors:  # by keys: attributes of a Container take ten times as long
            length = each["length"]
            part = min(length, total)
            views += self._range(each["handle"], each["address"], length, writable, used, part)
            total -= part
        return views

    def _range(
        self,
        handle: int,
        address: int,
        length: int,
        writable: bool,
        used: list[Region],
        wanted: int | None = None,
    ) -> list[memoryview]:
        """Return views of a range; of its first `wanted` bytes alone if that is given."""
        region = self._regions.get(handle)
        if region is None:
            raise InvalidDescriptor(f"memory handle {handle} is not registered")
        if writable and region.readonly:
            raise InvalidDescriptor(f"memory handle {handle} was granted read-only")
        if address + length > region.size_bytes:
            raise InvalidDescriptor(
                f"{length} bytes at {address} are not within the {region.size_bytes} of {handle}"
            )
        with self._users_lock:
            region.users += 1
        used.append(region)
        return region.views(address, length if wanted is None else wanted)
