# SPDX-License-Identifier: MIT
"""What a capture keeps of what crosses: which rings, which commands, how much of their data.

`Filter` is the one predicate for both: `ring_filter` makes the C core's of it, for messages as they
cross; `vscsi.capture.filtered` applies it to commands that were read from a file.
"""

import contextlib
from dataclasses import dataclass, field
from functools import cached_property

from vscsi.ring import TapFilter
from vscsi.target.base import Status
from vscsi.transport.tap import NOTHING_WANTED, RingPath
from vscsi.wire import blkif
from vscsi.wire.cdb import named
from vscsi.wire.opcodes import COMMANDS
from vscsi.wire.record import MAX_PAYLOAD, PayloadKind, Protocol

MAX_CONDITIONS = 64
"""Logical units, and opcodes, of a filter."""
MAX_LUN = (1 << 24) - 1
_ANY_ACTION = 1 << 16
_CLASSES = {
    "read": {"READ", "READ CD"},
    "write": {
        *("WRITE", "WRITE AND VERIFY", "WRITE ATOMIC", "WRITE SAME"),
        *("ORWRITE", "COMPARE AND WRITE"),
    },
    "flush": {"SYNCHRONIZE CACHE"},
    "unmap": {"UNMAP"},
}
"""Words for several opcodes: their names without the length of the CDB."""
OPERATIONS_OF_BLKIF = {
    "read": {blkif.Operation.READ},
    "write": {blkif.Operation.WRITE, blkif.Operation.WRITE_BARRIER},
    "flush": {blkif.Operation.FLUSH_DISKCACHE},
    "unmap": {blkif.Operation.DISCARD},
}
"""What the same words mean where there is no opcode."""
_FINE = {Status.GOOD, Status.CONDITION_MET}


@dataclass(frozen=True, slots=True)
class Payload:
    """How much a capture keeps of the data of commands."""

    head_bytes: int = 0
    hashed: bool = False

    @classmethod
    def parse(cls, word: str) -> "Payload":
        """Return what a number of first bytes, "hash" or "none" means; ValueError for others."""
        if word in ("hash", "none"):
            return cls(hashed=word == "hash")
        if word.isdecimal() and word.isascii() and len(word) < 8 and 0 < int(word) <= MAX_PAYLOAD:
            return cls(int(word))
        raise ValueError(f"{word!r} is neither hash nor a number of bytes up to {MAX_PAYLOAD}")

    def __str__(self) -> str:
        return "hash" if self.hashed else str(self.head_bytes or "none")

    @property
    def wanted(self) -> tuple[int, bool]:
        """What a tap is asked for."""
        return (self.head_bytes, self.hashed) if self else NOTHING_WANTED

    @property
    def kind(self) -> PayloadKind:
        """What records hold."""
        if self.hashed:
            return PayloadKind.XXH64
        return PayloadKind.HEAD if self.head_bytes else PayloadKind.NONE

    def __bool__(self) -> bool:
        return self.hashed or bool(self.head_bytes)


@dataclass(frozen=True)
class Filter:
    """Which commands are kept: those that meet each of the conditions that there are.

    Raises ValueError for what is no condition. Opcodes are read, write, flush, unmap, a command's
    name or an opcode's number; statuses are those of SAM as in check-condition, a number, or
    "error", which is all but GOOD and CONDITION MET, and what was not executed or not answered.
    A command without an address has none in a range of LBAs; blkif's are sectors of 512 bytes.
    """

    luns: tuple[int, ...] = ()
    opcodes: tuple[str, ...] = ()
    lba: tuple[int, int] | None = None
    """The first and the last."""
    statuses: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.luns) > MAX_CONDITIONS or len(self.codes) > MAX_CONDITIONS:
            raise ValueError(f"more than {MAX_CONDITIONS} conditions of one kind")
        if not all(0 <= lun <= MAX_LUN for lun in self.luns):
            raise ValueError(f"a logical unit number beyond {MAX_LUN}")
        if self.lba is not None and not 0 <= self.lba[0] <= self.lba[1] < 1 << 64:
            raise ValueError("the range of LBAs ends before it begins")
        _ = self.codes, self.status_codes

    def __bool__(self) -> bool:
        return bool(self.luns or self.opcodes or self.lba or self.statuses)

    @cached_property
    def codes(self) -> frozenset[tuple[int, int | None]]:
        """Opcodes, each with its service action, or None for whichever it has."""
        return frozenset(code for word in self.opcodes for code in _codes(word))

    @cached_property
    def operations(self) -> frozenset[int]:
        """Operations of blkif, which has no opcodes."""
        return frozenset(
            int(each) for word in self.opcodes for each in OPERATIONS_OF_BLKIF.get(word.lower(), ())
        )

    @cached_property
    def status_codes(self) -> frozenset[int]:
        """Statuses that are kept."""
        return frozenset(code for word in self.statuses for code in _statuses(word))

    @property
    def failed(self) -> bool:
        """Whether commands are kept that were not executed or have no answer."""
        return "error" in map(str.lower, self.statuses)

    @property
    def words(self) -> list[tuple[str, str]]:
        """The conditions as `from_words` takes them."""
        words = [("lun", str(lun)) for lun in self.luns]
        words += [("opcode", _word(opcode)) for opcode in self.opcodes]
        if self.lba is not None:
            words.append(("lba", f"{self.lba[0]}-{self.lba[1]}"))
        return words + [("status", _word(status)) for status in self.statuses]

    def ring_filter(self, path: RingPath) -> TapFilter:
        """Return a filter for the messages of a ring; one of blkif has one logical unit, or none
        that is meant.
        """
        codes = [
            opcode << 24 | (_ANY_ACTION if action is None else action)
            for opcode, action in sorted(self.codes, key=str)
        ]
        return TapFilter(
            path.protocol,
            path.layout,
            luns=self.luns or None,
            opcodes=codes if self.opcodes else None,
            operations=sum(1 << each for each in self.operations),
            lba=self.lba,
            statuses=sorted(self.status_codes) if self.statuses else None,
            failed=self.failed,
        )


@dataclass(frozen=True, slots=True)
class Choice:
    """All that a capture is asked for; as words, it crosses to a server."""

    only: Protocol | None = None
    """One protocol's rings."""
    payload: Payload = field(default_factory=Payload)
    filter: Filter = field(default_factory=Filter)

    def encode(self) -> bytes:
        """Return it as words."""
        words = [("payload", str(self.payload)), *self.filter.words]
        if self.only is not None:
            words.insert(0, ("protocol", self.only.name.lower()))
        return " ".join(f"{key}={value}" for key, value in words).encode()

    @classmethod
    def parse(cls, data: bytes) -> "Choice":
        """Return what words mean; ValueError for others."""
        found: dict[str, list[str]] = {}
        for word in data.decode("ascii").split():
            key, _, value = word.partition("=")
            found.setdefault(key, []).append(value)
        protocols = [_protocol(word) for word in found.pop("protocol", [])]
        payloads = [Payload.parse(word) for word in found.pop("payload", [])]
        return cls(
            only=protocols[0] if protocols else None,
            payload=payloads[0] if payloads else Payload(),
            filter=_filter(found),
        )


def parse_range(word: str) -> tuple[int, int]:
    """Return first and last of "A-B" or "A"; ValueError for anything else."""
    first, dash, last = word.partition("-")
    numbers = [first, last if dash else first]
    if not all(each.isascii() and each.isdecimal() and len(each) <= 20 for each in numbers):
        raise ValueError(f"{word!r} is no range such as 0-2047")
    return int(numbers[0]), int(numbers[1])


def _filter(found: dict[str, list[str]]) -> Filter:
    luns = [parse_range(word)[0] for word in found.pop("lun", [])]
    ranges = [parse_range(word) for word in found.pop("lba", [])]
    opcodes, statuses = found.pop("opcode", []), found.pop("status", [])
    if found:
        raise ValueError(f"no condition {min(found)!r}")
    return Filter(tuple(luns), tuple(opcodes), ranges[0] if ranges else None, tuple(statuses))


def _protocol(word: str) -> Protocol:
    try:
        return Protocol[word.upper()]
    except KeyError:
        raise ValueError(f"no protocol {word!r}") from None


def _number(word: str) -> int | None:
    """Return a byte's value, decimal or hexadecimal."""
    try:
        number = int(word, 0)
    except ValueError:
        return None
    return number if 0 <= number < 256 else None


def _codes(word: str) -> set[tuple[int, int | None]]:
    names = _CLASSES.get(word.lower())
    if names is not None:
        rows = (row for table in COMMANDS.values() for row in table)
        return {
            (row.opcode, row.service_action) for row in rows if row.name.partition("(")[0] in names
        }
    number = _number(word)
    if number is not None:
        return {(number, None)}
    for name in (word.upper(), word.upper().replace("-", " ")):
        with contextlib.suppress(ValueError):
            row = named(name)
            return {(row.opcode, row.service_action)}
    raise ValueError(f"{word!r} is no opcode such as read, write, flush, unmap, READ(10) or 0x28")


def _statuses(word: str) -> set[int]:
    if word.lower() == "error":
        return set(range(256)) - {int(status) for status in _FINE}
    name = word.upper().replace("-", "_").replace(" ", "_")
    number = int(Status[name]) if name in Status.__members__ else _number(word)
    if number is None:
        raise ValueError(f"{word!r} is no status: good, check-condition, busy, ..., 0x02 or error")
    return {number}


def _word(text: str) -> str:
    """Return an opcode's or a status' name in one word."""
    return text.lower().replace(" ", "-")
