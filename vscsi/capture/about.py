# SPDX-License-Identifier: MIT
"""What a source says beside its commands, as JSON: its channels, disks, events and troubles."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, TypeVar

from vscsi.capture.commands import MAX_EVENTS, Channel, Disk, Event, Source, Troubles
from vscsi.target.base import Function
from vscsi.wire.errors import WireError
from vscsi.wire.opcodes import DeviceType

MAX_TEXT = 64 << 20
"""Characters."""
MAX_NAMES = 1 << 16
"""Channels or disks."""
MAX_NUMBER = 1 << 62
_T = TypeVar("_T")


def to_json(source: Source) -> str:
    """Return what a source that has been read to its end says, on one line."""
    return json.dumps(
        {
            "format": source.format,
            "channels": [asdict(channel) for channel in source.channels],
            "disks": [
                {**asdict(disk), "lun": disk.lun.hex() if disk.lun is not None else None}
                for disk in source.disks
            ],
            "events": [asdict(event) for event in source.events],
            "events_dropped": source.events_dropped,
            "troubles": asdict(source.troubles),
        }
    )


def from_json(text: bytes | str, about: Source) -> None:
    """Fill a source's channels, disks, events and troubles; WireError for anything else.

    The text is untrusted.
    """
    if len(text) > MAX_TEXT:
        raise WireError(f"{len(text)} characters")
    try:
        found = json.loads(text)
        about.channels.extend(_each(found["channels"], MAX_NAMES, _channel))
        about.disks.extend(_each(found["disks"], MAX_NAMES, _disk))
        about.events.extend(_each(found["events"], MAX_EVENTS, _event))
        about.events_dropped = _number(found, "events_dropped")
        _fill(about.troubles, found["troubles"])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise WireError(f"{type(error).__name__} {error}"[:200]) from error


def _each(found: Any, most: int, make: Callable[[Mapping[str, Any]], _T]) -> list[_T]:
    if not isinstance(found, list) or len(found) > most:
        raise ValueError(f"no list of at most {most}")
    return [make(each) for each in found]


def _channel(found: Mapping[str, Any]) -> Channel:
    parameters = tuple(
        (_text({"": name}, ""), _text({"": value}, "")) for name, value in found["parameters"]
    )
    return Channel(_text(found, "name"), _text(found, "protocol"), parameters)


def _disk(found: Mapping[str, Any]) -> Disk:
    lun = None if found["lun"] is None else bytes.fromhex(_text(found, "lun"))
    if lun is not None and len(lun) != 8:
        raise ValueError(f"a LUN of {len(lun)} bytes")
    block_bytes = _number(found, "block_bytes")
    if not 1 <= block_bytes <= 1 << 24:
        raise ValueError(f"blocks of {block_bytes} bytes")
    return Disk(
        _text(found, "name"),
        lun,
        block_bytes,
        _perhaps(found, "block_count"),
        DeviceType(_number(found, "device_type")),
    )


def _event(found: Mapping[str, Any]) -> Event:
    function = _perhaps(found, "function")
    return Event(
        _number(found, "time_ns"),
        _number(found, "channel"),
        _text(found, "words"),
        _text(found, "outcome"),
        None if function is None else Function(function),
        _perhaps(found, "disk"),
        _perhaps(found, "managed_tag", 1 << 64),
        _perhaps(found, "latency_ns"),
    )


def _fill(troubles: Troubles, found: Mapping[str, Any]) -> None:
    troubles.broken = _text(found, "broken")
    troubles.skipped = _number(found, "skipped")
    troubles.first_skipped = _text(found, "first_skipped")
    troubles.dropped = _number(found, "dropped")
    notes = found["notes"]
    troubles.notes.extend(_each(notes, MAX_NAMES, lambda note: _text({"": note}, "")))


def _text(found: Mapping[str, Any], name: str) -> str:
    """Return a text without control characters: it may be shown on a terminal."""
    text = found[name]
    if not isinstance(text, str):
        raise TypeError(f"{name} is no text")
    return text if text.isprintable() else text.encode("unicode_escape").decode()


def _number(found: Mapping[str, Any], name: str, limit: int = MAX_NUMBER) -> int:
    number = found[name]
    if type(number) is not int or abs(number) >= limit:
        raise ValueError(f"{name} is no number that is possible")
    return number


def _perhaps(found: Mapping[str, Any], name: str, limit: int = MAX_NUMBER) -> int | None:
    return None if found[name] is None else _number(found, name, limit)
