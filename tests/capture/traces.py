# SPDX-License-Identifier: MIT
"""Recorded traces of Linux, read line by line with no code of ours: what they have to give."""

import gzip
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

EVENTS = ("linux-scsi-events.txt.gz", "linux-scsi-timeouts.txt.gz", "linux-trace-cmd.txt.gz")
BLOCKS = ("linux-blkparse.txt.gz", "linux-blktrace.bin.gz")
NAMES = (*EVENTS, *BLOCKS)
_EVENT = re.compile(
    r" (\d+\.\d+): scsi_dispatch_cmd_(start|done|timeout): .* driver_tag=(\d+) .*raw=([^)]*)\)"
    r"(?:.* status=(\w+)\))?"
)
_BLOCK = re.compile(
    r" *8,0 +\d+ +\d+ +(\d+\.\d+) +\d+ +([DC]) +(\w+) (?:(\d+)(?: \+ (\d+))? )?\[(.*)\]"
)
_STATUSES = {"SAM_STAT_GOOD": "GOOD", "0x0": "GOOD", "SAM_STAT_CHECK_CONDITION": "CHECK CONDITION"}

Line = dict[str, Any]


def lines(path: Path, words: Callable[[bytes], str]) -> Iterator[Line]:
    """Yield what `vscsi capture show` would say of their commands, as far as it is counted.

    words: what the line of a CDB says. blkparse's output stands for the binary file, too.
    """
    if path.name in BLOCKS:
        path = path.with_name(BLOCKS[0])
    text = gzip.decompress(path.read_bytes()).decode().splitlines()
    return _blocks(text) if path.name in BLOCKS else _events(text, words)


def _events(text: list[str], words: Callable[[bytes], str]) -> Iterator[Line]:
    waiting: dict[str, Line] = {}
    for entry in text:
        event = _EVENT.search(entry)
        if event is None:
            continue
        time, what, tag, raw, status = event.groups()
        if what == "start":
            request = words(bytes.fromhex(raw))
            blocks = re.search(r" blocks (\d+)", request)
            size = 512 * int(blocks[1]) if blocks else 0
            if request.startswith("UNMAP"):
                size = int.from_bytes(bytes.fromhex(raw)[7:9], "big")
            elif request.startswith("WRITE SAME"):
                size = 512
            elif request.startswith("SYNCHRONIZE"):
                size = 0
            waiting[tag] = {
                "kind": "command",
                "cdb": bytes.fromhex(raw).hex(),
                "request": request,
                "data_in": size if request.startswith("READ") else 0,
                "data_out": 0 if request.startswith("READ") else size,
                "time": time,
                "sense": None,
                "status": None,
                "bytes": None,
            }
            continue
        line = waiting.pop(tag)
        line["answered"] = what == "done"
        line["fate"] = None if what == "done" else "aborted"
        if what == "done":
            line["status"] = _STATUSES[status]
            line["latency_ns"] = _ns(time) - _ns(line["time"])
            line["bytes"] = line["data_in"] + line["data_out"]
        yield line


def _blocks(text: list[str]) -> Iterator[Line]:
    waiting: dict[tuple[str, bool], Line] = {}
    for entry in text:
        event = _BLOCK.match(entry)
        if event is None:
            continue
        time, what, rwbs, sector, sectors, ended = event.groups()
        size = 512 * int(sectors or 0)
        key = sector or "0", bool(size)
        if what == "D":
            name = "flush" if rwbs == "FN" else {"R": "read", "W": "write", "D": "unmap"}[rwbs[0]]
            moved = size if name in ("read", "write") else 0
            waiting[key] = {
                "kind": "command",
                "cdb": None,
                "name": name,
                "request": f"{name.upper()} sectors {sectors}" if moved else name,
                "data_in": moved if name == "read" else 0,
                "data_out": moved if name == "write" else 0,
                "time": time,
                "sense": None,
                "answered": True,
                "fate": None,
            }
        elif size or rwbs == "FN":  # others of no sectors are the ends of what was queued
            line = waiting.pop(key)
            line["latency_ns"] = _ns(time) - _ns(line["time"])
            line["status"] = "GOOD" if ended == "0" else "failed"
            line["bytes"] = line["data_in"] + line["data_out"] if ended == "0" else 0
            yield line
    assert not waiting


def _ns(time: str) -> int:
    seconds, _, fraction = time.partition(".")
    return int(seconds + fraction.ljust(9, "0"))
