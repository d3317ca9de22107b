# SPDX-License-Identifier: MIT
"""A direct access block device (SBC-3, claimed as such) over a store."""

import hashlib
import uuid
from collections.abc import Callable, Mapping, Sequence

from vscsi.ring import Unit
from vscsi.target import blocks, disk_inquiry, provisioning
from vscsi.target.base import Function, Management, ServiceResponse, Status, Task
from vscsi.target.exclusion import SharedLock
from vscsi.target.logical_unit import LogicalUnit, Outcome
from vscsi.target.mode_commands import MODE_COMMANDS
from vscsi.target.mode_pages import ModePages
from vscsi.target.primary import PRIMARY, entry
from vscsi.target.refusals import (
    CAPACITY_CHANGED,
    SOFTWARE_WRITE_PROTECTED,
    STOPPED,
    WRITE_PROTECTED,
    bad_field,
    out_of_range,
    write_failed,
)
from vscsi.target.stores.base import Store
from vscsi.wire.cdb import Cdb
from vscsi.wire.errors import SetupError
from vscsi.wire.formats import build
from vscsi.wire.mode import (
    DeviceSpecific,
    LongBlockDescriptor,
    ModePage,
    ShortBlockDescriptor,
    body,
)
from vscsi.wire.opcodes import DeviceType
from vscsi.wire.parameters import ReadCapacity10, ReadCapacity16
from vscsi.wire.sense import Sense

_MAXIMUM_TRANSFER_BYTES = 32 << 20
_MAXIMUM_COMPARE_BLOCKS = 32
_MAXIMUM_UNMAP_DESCRIPTORS = 4095  # what a parameter list of 65,535 bytes holds


class Disk(LogicalUnit):
    """A disk of `block_size` bytes a block (512 to 4096) on a store, which stays the caller's.

    `identity` is what makes it this disk and no other (an image's real path): serial number and
    NAA designator derive from it. Without one they are random. `write_cache` is WCE's default.

    Raises SetupError if the store does not consist of whole blocks, or needs larger ones;
    ValueError if `product` is not ASCII of at most 16 characters.
    """

    device_type = DeviceType.DISK
    maximum_compare_blocks = _MAXIMUM_COMPARE_BLOCKS
    maximum_unmap_blocks = 0xFFFF_FFFF
    maximum_unmap_descriptors = _MAXIMUM_UNMAP_DESCRIPTORS

    def __init__(
        self,
        store: Store,
        *,
        block_size: int = 512,
        identity: str | None = None,
        product: str = "DISK",
        write_cache: bool = True,
    ) -> None:
        name = identity or "the store"
        if block_size not in (512, 1024, 2048, 4096):
            raise SetupError(
                "serve", name, f"no blocks of {block_size} bytes", "take 512, 1024, 2048 or 4096"
            )
        if store.size_bytes == 0 or store.size_bytes % block_size:
            raise SetupError(
                "serve",
                name,
                f"{store.size_bytes} bytes are not a whole number of {block_size}-byte blocks",
                "`truncate -s` changes the size, another block size may fit",
            )
        if store.alignment > block_size:
            raise SetupError(
                "serve",
                name,
                f"O_DIRECT wants {store.alignment}-byte blocks there, not {block_size}",
                f"take a block size of {store.alignment}, or leave O_DIRECT out",
            )
        super().__init__(_mode_pages(write_cache))
        self.store = store
        self.block_size = block_size
        self.blocks = store.size_bytes // block_size
        self.thin = store.can_discard and not store.readonly
        self.maximum_transfer_blocks = _MAXIMUM_TRANSFER_BYTES // block_size
        self.maximum_write_same_blocks = _MAXIMUM_TRANSFER_BYTES // block_size
        self.writing = SharedLock()
        self._started = True
        self.product = product
        digest = hashlib.sha256((identity or uuid.uuid4().hex).encode()).hexdigest()
        self.serial_number = digest[:20]
        self.naa = bytes.fromhex(f"3{digest[:15]}")  # NAA 3h: locally assigned (SPC-5 7.7.6.6.3)
        self.commands = {
            row: implemented
            for row, implemented in _COMMANDS.items()
            if self.thin or row.name != "UNMAP"
        }
        self.standard_inquiry()  # says whether `product` fits
        if store.native is not None:
            self.native = Unit(
                store.native,
                block_size,
                _MAXIMUM_TRANSFER_BYTES,
                max_unmap_blocks=self.maximum_unmap_blocks,
                max_unmap_descriptors=self.maximum_unmap_descriptors,
            )
        self._tell_native()

    # State.

    def _tell_native(self) -> None:
        if self.native is not None:
            self.native.set(
                self.blocks,
                ready=self._started,
                writable=not self.write_protected,
                write_cache=self.write_cache_enabled,
                thin=self.thin,
            )

    def resize(self) -> None:
        """Take over the size that the store has now; every nexus hears of it."""
        self.blocks = self.store.size_bytes // self.block_size
        self._tell_native()
        self.attentions.establish(CAPACITY_CHANGED)

    def managed(self, request: Management, affected: Sequence[Task]) -> ServiceResponse:
        """Reset, if asked to: a write cache that this switches off is emptied."""
        response = super().managed(request, affected)
        reset = request.function is Function.LOGICAL_UNIT_RESET
        if reset and self.flush_if_write_through() is not None:
            return ServiceResponse.FAILED
        return response

    def reset(self) -> None:
        """Return to the state after power on."""
        self._started = True
        super().reset()
        self._tell_native()

    @property
    def staged_bytes(self) -> int:
        """Bytes that the store staged since it was opened, for whomever."""
        return self.store.staged_bytes

    @property
    def write_protected(self) -> bool:
        """Whether the store, or SWP in the control mode page, lets nothing be written."""
        return self.store.readonly or bool(self.modes.field(ModePage.CONTROL, "swp"))

    @property
    def write_cache_enabled(self) -> bool:
        """WCE: without it every write is durable when it is answered."""
        return bool(self.modes.field(ModePage.CACHING, "wce"))

    def flush(self) -> Sense | None:
        """Put what was written on stable storage; the sense if that fails."""
        try:
            self.store.flush()
        except OSError as error:
            return write_failed(error)
        return None

    def flush_if_write_through(self) -> Sense | None:
        """Flush unless there is a write cache."""
        return None if self.write_cache_enabled else self.flush()

    def modes_changed(self) -> Sense | None:
        """Empty the write cache if it was just switched off (SBC-4 6.5.5)."""
        self._tell_native()
        return self.flush_if_write_through()

    # Refusals.

    def refuse_not_ready(self) -> Sense | None:
        """Return LOGICAL UNIT NOT READY after START STOP UNIT has stopped it."""
        return None if self._started else STOPPED

    def refuse_medium_access(self, cdb: Cdb, *, writes: bool = False) -> Sense | None:
        """Return why a command may not touch its blocks, if it may not.

        A command without blocks may name the LBA behind the last one (SBC-4 4.4.1).
        """
        if not self._started:
            return STOPPED
        if cdb.protect:
            return bad_field(cdb, "protect")
        if cdb.lba + cdb.blocks > self.blocks:
            return out_of_range(cdb)
        if writes and self.store.readonly:
            return WRITE_PROTECTED
        if writes and self.modes.field(ModePage.CONTROL, "swp"):
            return SOFTWARE_WRITE_PROTECTED
        return None

    def refuse_transfer(self, cdb: Cdb, *, writes: bool = False) -> Sense | None:
        """Return why a command may not move its blocks, if it may not."""
        refusal = self.refuse_medium_access(cdb, writes=writes)
        if refusal is None and cdb.blocks > self.maximum_transfer_blocks:
            return bad_field(cdb, "blocks")
        return refusal

    # What it says of itself.

    def standard_inquiry(self) -> bytes:
        """Return standard INQUIRY data."""
        return disk_inquiry.standard(self)

    def vpd_pages(self) -> Mapping[int, Callable[[], bytes]]:
        """Return what builds each VPD page."""
        return disk_inquiry.vpd_pages(self)

    def device_specific_parameter(self) -> int:
        """Return WP, by the store or by SWP, and DPOFUA."""
        return DeviceSpecific.DPOFUA | (DeviceSpecific.WP if self.write_protected else 0)

    def block_descriptor(self, *, long: bool) -> bytes:
        """Return number and length of the blocks; the short form ends at 2**32 - 1 blocks."""
        count = self.blocks if long else min(self.blocks, 0xFFFF_FFFF)
        form = LongBlockDescriptor if long else ShortBlockDescriptor
        return build(form, {"blocks": count, "block_length": self.block_size})

    # Commands that concern the disk as a whole.

    def read_capacity_10(self, task: Task, cdb: Cdb) -> Outcome:
        """READ CAPACITY(10)."""
        if cdb.lba and not cdb.field("pmi"):
            return bad_field(cdb, "lba")
        last = min(self.blocks - 1, 0xFFFF_FFFF)
        return build(ReadCapacity10, {"last_lba": last, "block_length": self.block_size})

    def read_capacity_16(self, task: Task, cdb: Cdb) -> Outcome:
        """READ CAPACITY(16)."""
        if cdb.lba and not cdb.field("pmi"):
            return bad_field(cdb, "lba")
        values = {"last_lba": self.blocks - 1, "block_length": self.block_size}
        return build(ReadCapacity16, {**values, "lbpme": self.thin, "lbprz": self.thin})

    def start_stop_unit(self, task: Task, cdb: Cdb) -> Outcome:
        """START STOP UNIT: no power conditions, nothing to eject."""
        for name in ("power_condition", "loej"):
            if cdb.field(name):
                return bad_field(cdb, name)
        start = bool(cdb.field("start"))
        if not start and not cdb.field("no_flush"):
            refusal = self.flush()
            if refusal is not None:
                return refusal
        self._started = start
        self._tell_native()
        return Status.GOOD

    def send_diagnostic(self, task: Task, cdb: Cdb) -> Outcome:
        """SEND DIAGNOSTIC: the default self-test, which passes; no pages."""
        for name in ("self_test_code", "parameter_list_length"):
            if cdb.field(name):
                return bad_field(cdb, name)
        return Status.GOOD


def _mode_pages(write_cache: bool) -> ModePages:
    return ModePages(
        {
            ModePage.READ_WRITE_ERROR_RECOVERY: body(ModePage.READ_WRITE_ERROR_RECOVERY),
            ModePage.CACHING: body(ModePage.CACHING, wce=write_cache),
            ModePage.CONTROL: body(
                ModePage.CONTROL, queue_algorithm_modifier=1, tas=1, busy_timeout_period=0xFFFF
            ),
            ModePage.INFORMATIONAL_EXCEPTIONS: body(ModePage.INFORMATIONAL_EXCEPTIONS),
        },
        {
            ModePage.CACHING: body(ModePage.CACHING, wce=1),
            ModePage.CONTROL: body(ModePage.CONTROL, d_sense=1, swp=1),
        },
    )


_COMMANDS = (
    PRIMARY
    | MODE_COMMANDS
    | dict(
        (
            entry("READ(6)", blocks.read),
            entry("READ(10)", blocks.read, "group"),
            entry("READ(12)", blocks.read, "group"),
            entry("READ(16)", blocks.read, "group"),
            entry("WRITE(6)", blocks.write),
            entry("WRITE(10)", blocks.write, "group"),
            entry("WRITE(12)", blocks.write, "group"),
            entry("WRITE(16)", blocks.write, "group"),
            entry("WRITE AND VERIFY(10)", blocks.write_and_verify, "group"),
            entry("WRITE AND VERIFY(12)", blocks.write_and_verify, "group"),
            entry("WRITE AND VERIFY(16)", blocks.write_and_verify, "group"),
            entry("VERIFY(10)", blocks.verify, "group"),
            entry("VERIFY(12)", blocks.verify, "group"),
            entry("VERIFY(16)", blocks.verify, "group"),
            entry("COMPARE AND WRITE", blocks.compare_and_write, "group"),
            entry("PRE-FETCH(10)", blocks.pre_fetch, "group", "immed"),
            entry("PRE-FETCH(16)", blocks.pre_fetch, "group", "immed"),
            entry("SYNCHRONIZE CACHE(10)", blocks.synchronize_cache, "group", "immed"),
            entry("SYNCHRONIZE CACHE(16)", blocks.synchronize_cache, "group", "immed"),
            entry("WRITE SAME(10)", provisioning.write_same, "group"),
            entry("WRITE SAME(16)", provisioning.write_same, "group"),
            entry("UNMAP", provisioning.unmap, "group"),
            entry("FORMAT UNIT", provisioning.format_unit, "cmplst", "defect_list_format"),
            entry("READ CAPACITY(10)", Disk.read_capacity_10),
            entry("READ CAPACITY(16)", Disk.read_capacity_16),
            entry("START STOP UNIT", Disk.start_stop_unit, "immed", "power_condition_modifier"),
            entry("SEND DIAGNOSTIC", Disk.send_diagnostic, "selftest", "pf", "devoffl", "unitoffl"),
        )
    )
)
"""Disk commands."""
