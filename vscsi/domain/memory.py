# SPDX-License-Identifier: MIT
"""Guest memory between processes: a sealed memfd with a version 1 grant table in its first pages.

`GuestMemory` is the domain that owns it (a frontend's side); `GuestAccess` is another domain's way
in (a backend's side), and there the kernel of one machine stands in for the hypervisor: what the
grant table does not permit is refused by this module, not by the hardware.

A view of mapped pages keeps the memory itself mapped as long as the view exists, so a late access
meets old bytes or ValueError (a released view) and never a hole.
"""

import fcntl
import os
import threading
from collections import Counter
from collections.abc import Iterable, Sequence

from vscsi.domain.base import PAGE_SIZE, DomainError, GrantError
from vscsi.ring._core import GrantAccess, PageMap, grant_end, grant_set
from vscsi.wire.errors import WireError

TABLE_PAGES = 64
"""Pages of the grant table, as Xen's default for a domain: 32768 references."""
GRANTS_PER_PAGE = PAGE_SIZE // 8
RESERVED_REFERENCES = 8
"""The first references are the toolstack's (console, xenstore; grant_table.h)."""

DEFAULT_BYTES = 16 << 20
MAX_BYTES = 1 << 30
MAX_MAPPED = 1 << 16


class OutOfMemoryError(DomainError):
    """A guest has no pages or no grant references left; some come back as commands finish."""


class GuestMemory:
    """A guest's own memory: pages, and grants of them to other domains. Thread-safe.

    Frames are page numbers from the start of the memory; the first TABLE_PAGES are the grant
    table and never handed out.
    """

    def __init__(self, size_bytes: int = DEFAULT_BYTES) -> None:
        """Create the memory, sealed at its size: whole pages, more than the grant table's."""
        pages = size_bytes // PAGE_SIZE
        if size_bytes % PAGE_SIZE or pages <= TABLE_PAGES:
            raise ValueError(f"{size_bytes} bytes are not whole pages beyond the grant table's")
        self.size_bytes = size_bytes
        self._fd = os.memfd_create("vscsi-guest", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self._fd, size_bytes)
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
            fcntl.fcntl(self._fd, fcntl.F_ADD_SEALS, seals)
            self._memory = memoryview(PageMap(self._fd, range(pages), readonly=False))
        except OSError:
            os.close(self._fd)
            raise
        self._table = self._memory[: TABLE_PAGES * PAGE_SIZE]
        self._used = bytearray(b"\1" * TABLE_PAGES + bytes(pages - TABLE_PAGES))
        self._references = list(
            range(TABLE_PAGES * GRANTS_PER_PAGE - 1, RESERVED_REFERENCES - 1, -1)
        )
        self._granted: dict[int, int] = {}
        self._grants_of: Counter[int] = Counter()
        self._lock = threading.Lock()
        self._closed = False

    def fileno(self) -> int:
        """Return the descriptor to hand to a backend; it stays ours."""
        return self._fd

    @property
    def table(self) -> memoryview:
        """The grant table, for C that makes and ends grants of references which `grant` gave."""
        return self._table[:]

    def alloc(self, pages: int, *, contiguous: bool = False) -> list[int]:
        """Return frames of zeroed pages, ascending; consecutive if there is such a run.

        Raises OutOfMemoryError if there are not as many free, or with `contiguous` not in one run.
        """
        if pages <= 0:
            raise ValueError(f"{pages} pages cannot be allocated")
        with self._lock:
            frames = self._free_frames(pages, contiguous=contiguous)
            for frame in frames:
                self._used[frame] = 1
        for frame in frames:
            self.view(frame)[:] = bytes(PAGE_SIZE)  # what was there is not the peer's to see
        return frames

    def _free_frames(self, pages: int, *, contiguous: bool) -> list[int]:
        first = self._used.find(bytes(pages))
        if first >= 0:
            return list(range(first, first + pages))
        if contiguous or self._used.count(0) < pages:
            raise OutOfMemoryError(
                f"no {pages} {'consecutive ' if contiguous else ''}pages in a guest's memory of "
                f"{len(self._used)}, of which {self._used.count(0)} are free"
            )
        return [frame for frame, used in enumerate(self._used) if not used][:pages]

    def free(self, frames: Iterable[int]) -> None:
        """Give pages back; ValueError, and none is, if one is not allocated or still granted."""
        with self._lock:
            returned = sorted(frames)
            for i, frame in enumerate(returned):
                allocated = TABLE_PAGES <= frame < len(self._used) and self._used[frame]
                if not allocated or self._grants_of[frame] or frame in returned[i + 1 : i + 2]:
                    raise ValueError(f"frame {frame} is not ours to free, or still granted")
            for frame in returned:
                self._used[frame] = 0

    def view(self, frame: int, pages: int = 1) -> memoryview:
        """Return writable memory of `pages` consecutive frames, outside the grant table."""
        if frame < TABLE_PAGES or pages <= 0 or frame + pages > len(self._used):
            raise ValueError(f"{pages} pages from frame {frame} on are not in the memory")
        return self._memory[frame * PAGE_SIZE : (frame + pages) * PAGE_SIZE]

    def grant(self, frames: Sequence[int], domain: int, *, readonly: bool) -> list[int]:
        """Permit `domain` access to pages; return a reference for each, in order.

        Raises OutOfMemoryError, and grants nothing, if the table has not as many free references.
        """
        with self._lock:
            if len(frames) > len(self._references):
                raise OutOfMemoryError(
                    f"no {len(frames)} grant references, {len(self._references)} are free"
                )
            for frame in frames:
                if not (TABLE_PAGES <= frame < len(self._used) and self._used[frame]):
                    raise ValueError(f"frame {frame} is not allocated")
            references = [self._references.pop() for _ in frames]
            for reference, frame in zip(references, frames, strict=True):
                grant_set(self._table, reference, domain, frame, readonly=readonly)
                self._granted[reference] = frame
                self._grants_of[frame] += 1
            return references

    def end_access(self, references: Sequence[int]) -> list[int]:
        """Revoke grants; return those refused because the other domain has the page mapped.

        A refused one stays granted, and its page must not be reused; try again later.
        """
        with self._lock:
            for reference in references:
                if reference not in self._granted:
                    raise ValueError(f"reference {reference} is not granted")
            refused = grant_end(self._table, references)
            for reference in set(references).difference(refused):
                frame = self._granted.pop(reference)
                self._grants_of[frame] -= 1
                self._references.append(reference)
            return refused

    def close(self) -> None:
        """Let go of the memory; views handed out keep it mapped here. A second call is nothing."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._table.release()
            self._memory.release()
            os.close(self._fd)


class GuestMapping:
    """Pages of a guest mapped through `GuestAccess.map` (implements domain.base.Mapping)."""

    def __init__(
        self, access: "GuestAccess", references: Sequence[int], frames: list[int], *, readonly: bool
    ) -> None:
        self.references = tuple(references)
        self.readonly = readonly
        self._access = access
        self._frames = frames
        self._mapped = True
        self._whole: memoryview | None = None
        self._runs: list[memoryview] = []
        self.pages: Sequence[memoryview] = [
            access.slice_of(frame, 1, readonly=readonly) for frame in frames
        ]

    def contiguous(self) -> memoryview:
        """Return all pages as one view; the same object at each call until `unmap`.

        Raises OSError if the kernel has no room for one more mapping, ValueError after `unmap`.
        """
        if not self._mapped:
            raise ValueError("the pages are unmapped")
        if self._whole is None:
            first, count = self._frames[0], len(self._frames)
            if self._frames == list(range(first, first + count)):
                self._whole = self._access.slice_of(first, count, readonly=self.readonly)
            else:
                self._whole = self._access.join(self._frames, readonly=self.readonly)
        return self._whole

    def runs(self) -> Sequence[memoryview]:
        """Return a view of each run of consecutive frames; the same objects until `unmap`."""
        if not self._runs:
            starts = [
                at
                for at, frame in enumerate(self._frames)
                if at == 0 or frame != self._frames[at - 1] + 1
            ]
            self._runs = [
                self._access.slice_of(self._frames[start], end - start, readonly=self.readonly)
                for start, end in zip(starts, [*starts[1:], len(self._frames)], strict=True)
            ]
        return self._runs

    def unmap(self) -> None:
        """Release the views, then the grants; a second call does nothing.

        Raises BufferError, and the grants stay in use, while something works on a view (a ring
        end that is not closed, a system call in progress).
        """
        self._mapped = False
        for view in (*self.pages, *self._runs, self._whole):
            if view is not None:
                view.release()
        self._access.unpin(self)


class GuestAccess:
    """A backend domain's access to one guest's memory (implements domain.base.GrantMapper).

    Thread-safe. The whole memory is mapped once, readable and, apart from that, writable; a
    mapping hands out slices of it, of the read-only one for a read-only mapping. `native` is what
    the C path maps by; who uses which reference stands there for both.
    """

    def __init__(
        self, fd: int, domain: int, *, max_bytes: int = MAX_BYTES, max_mapped: int = MAX_MAPPED
    ) -> None:
        """Take a descriptor received from the guest (it is ours from now on, whatever happens).

        domain is the id that the guest's grants must name; max_mapped bounds the pages mapped at
        a time. Raises WireError unless the file is a memfd of ordinary pages, sealed against
        shrinking (touching pages that are gone kills a process), writable, of whole pages, and
        larger than its grant table and not larger than max_bytes.
        """
        self._fd = fd
        self.native: GrantAccess | None = None
        self._mappings: set[GuestMapping] = set()
        self._lock = threading.RLock()
        try:
            frames = range(_checked_pages(fd, max_bytes))
            writable, readonly = (PageMap(fd, frames, readonly=each) for each in (False, True))
        except OSError as error:
            os.close(fd)
            raise WireError(f"the guest's memory cannot be mapped: {error.strerror}") from error
        except WireError:
            os.close(fd)
            raise
        self._memory = {False: memoryview(writable), True: memoryview(readonly)}
        self.native = GrantAccess(
            writable,
            readonly,
            references=TABLE_PAGES * GRANTS_PER_PAGE,
            domain=domain,
            limit=max_mapped,
        )

    @property
    def mapped(self) -> int:
        """Pages mapped at the moment, by `map` and by the C path."""
        return self.native.mapped if self.native is not None else 0

    def map(self, references: Sequence[int], *, readonly: bool) -> GuestMapping:
        """Map pages; raise GrantError (and map none) if any reference does not permit it.

        References may repeat. One that is mapped already keeps its frame, whatever the guest
        wrote into its entry since.
        """
        with self._lock:
            if self.native is None:
                raise GrantError("the guest's memory is closed")
            if not references:
                raise GrantError("no references to map")
            frames = self.native.map(references, readonly=readonly)
            mapping = GuestMapping(self, references, frames, readonly=readonly)
            self._mappings.add(mapping)
            return mapping

    def unpin(self, mapping: GuestMapping) -> None:
        """Take a mapping's marks out of the grant table (for `GuestMapping.unmap`)."""
        with self._lock:
            if self.native is not None and mapping in self._mappings:
                self._mappings.remove(mapping)
                self.native.unmap(mapping.references, readonly=mapping.readonly)

    def slice_of(self, frame: int, pages: int, *, readonly: bool) -> memoryview:
        """Return a new view of consecutive frames (for `GuestMapping`)."""
        return self._memory[readonly][frame * PAGE_SIZE : (frame + pages) * PAGE_SIZE]

    def join(self, frames: Sequence[int], *, readonly: bool) -> memoryview:
        """Return a view of frames that are not consecutive (for `GuestMapping`)."""
        return memoryview(PageMap(self._fd, frames, readonly=readonly))

    def close(self) -> None:
        """Unmap everything; a second call does nothing. Raises BufferError as `unmap` does."""
        with self._lock:
            for mapping in list(self._mappings):
                mapping.unmap()
            if self.native is not None:
                self.native = None  # one that a service still works with keeps the memory
                for view in self._memory.values():
                    view.release()
                os.close(self._fd)


def _checked_pages(fd: int, max_bytes: int) -> int:
    """Return the pages of a guest's memory file; WireError if it is not fit to be one."""
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError as error:
        raise WireError("the guest's memory is not a memfd") from error
    if not seals & fcntl.F_SEAL_SHRINK:
        raise WireError("the guest's memory is not sealed against shrinking")
    # Huge pages can run out when they are touched, which kills the process as shrinking would.
    if os.fstatvfs(fd).f_bsize != PAGE_SIZE:
        raise WireError("the guest's memory has pages of another size")
    size = os.fstat(fd).st_size
    if size % PAGE_SIZE or not TABLE_PAGES * PAGE_SIZE < size <= max_bytes:
        raise WireError(f"the guest's memory has {size} bytes, beyond its limits")
    return size // PAGE_SIZE
