# SPDX-License-Identifier: MIT
"""What the analysis of each capture in captures/ must say, counted without it.

    .venv/bin/python -m tests.analysis.expected     # writes captures/*.expected.json

`vscsi capture show --json` has a line a command, made by the declarations of the formats one by
one; here its lines are counted by loops. The analysis has its columns from numpy instead. The
captures of iSCSI are counted from what tshark says of them.
"""

import gzip
import json
import re
import subprocess
import sys
import tempfile
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.capture import recorded, traces
from vscsi.wire.cdb import lookup, service_action_of

CAPTURES = recorded.CAPTURES
SUFFIX = ".expected.json"

# vscsiStats -p all, which has odd sizes between the usual ones.
LENGTHS = [512, 1024, 2048, 4095, 4096, 8191, 8192, 16383, 16384, 32768, 49152, 65535, 65536]
LENGTHS += [81920, 131072, 262144, 524288]
TIMES_US = [1, 10, 100, 500, 1000, 5000, 15000, 30000, 50000, 100000]
PERCENTILES = {"p50": 50, "p90": 90, "p99": 99, "p999": 99.9}
_MOVES = re.compile(r"(?:INDIRECT )?(READ|WRITE)\b.* (?:blocks|sectors) \d")

Line = dict[str, Any]


def names() -> list[str]:
    """Return the captures, by file name."""
    packed = [path.name for path in sorted(CAPTURES.glob("*.pcapng.gz"))]
    return [*recorded.NAMES, *packed, *traces.NAMES]


def expectation(name: str) -> Path:
    """Return the file with what a capture's analysis must say."""
    return CAPTURES / f"{name.partition('.')[0]}{SUFFIX}"


def as_file(name: str, directory: Path) -> Path:
    """Return a capture as a file that can be analysed."""
    if name not in recorded.NAMES:
        return CAPTURES / name
    path = directory / f"{name}.pcapng"
    path.write_bytes(recorded.capture(name))
    return path


def lines(path: Path) -> list[Line]:
    """Return what `vscsi capture show` says of a capture."""
    if path.name in traces.NAMES:
        return list(traces.lines(path, words))
    if path.suffix == ".gz":
        oracle = path.with_name(path.name.replace(".pcapng", ".oracle.jsonl"))
        if oracle.exists():
            return list(of_tshark(oracle))
        with tempfile.NamedTemporaryFile(suffix=".pcapng") as unpacked:
            unpacked.write(gzip.decompress(path.read_bytes()))
            unpacked.flush()
            return lines(Path(unpacked.name))
    command = [str(Path(sys.executable).with_name("vscsi")), "capture", "show", "--json"]
    shown = subprocess.run([*command, str(path)], capture_output=True, text=True, check=True)
    return [json.loads(line) for line in shown.stdout.splitlines()]


def of_tshark(oracle: Path) -> Iterator[Line]:
    """Yield the same of what tshark says of iSCSI PDUs, as far as it is counted."""
    open_: dict[tuple[int, str], Line] = {}
    for text in gzip.decompress(oracle.read_bytes()).decode().splitlines():
        pdu = json.loads(text)
        fields = pdu["iscsi"]
        opcode, tag = fields["iscsi.opcode"], fields["iscsi.initiatortasktag"]
        if opcode == "0x01":
            cdb = bytes.fromhex(pdu["cdb"])
            line: Line = {"kind": "command", "cdb": cdb.hex(), "answered": False, "fate": None}
            line |= {"request": words(cdb), "bytes": None, "sense": None, "status": None}
            line["data_in"] = int(fields["iscsi.scsicommand.expecteddatatransferlength"])
            line["data_out"] = 0  # it is one or the other
            open_[pdu["s"], tag] = line
            continue
        if opcode == "0x25" and fields["iscsi.scsidata.S"] == "1":
            status, left = fields["iscsi.scsiresponse.status"], "iscsi.scsidata.readresidualcount"
        elif opcode == "0x21":
            status, left = fields["iscsi.scsiresponse.status"], "iscsi.scsiresponse.residualcount"
        else:
            continue
        line = open_.pop((pdu["d"], tag))
        line["answered"] = True
        line["status"] = {"0x00": "GOOD", "0x02": "CHECK CONDITION"}[status]
        line["bytes"] = max(0, line["data_in"] - int(fields[left]))
        line["latency_ns"] = round(float(fields["iscsi.time"]) * 1e9)
        if status == "0x02":
            sense = bytes.fromhex(pdu["rsp"][0])  # of fixed format
            line["sense"] = {"key": sense[2] & 15, "asc": sense[12], "ascq": sense[13]}
        yield line
    yield from open_.values()


def words(cdb: bytes) -> str:
    """Return a CDB's name and blocks, as far as lengths are counted from them."""
    row = lookup(cdb)
    if row is None or "blocks" not in row.fields:
        return row.name if row is not None else ""
    unmaps = "unmap" in row.fields and row.fields["unmap"].get(cdb)
    return f"{row.name} blocks {row.fields['blocks'].get(cdb)}{' UNMAP' if unmaps else ''}"


def kind(line: Line) -> tuple[int | None, int | None, str]:
    """Return opcode, service action and name of a command."""
    if "name" in line:  # of a block layer
        return None, None, line["name"]
    if line["cdb"] is None:
        operation = re.match(r"[A-Z ]+(?= sector)", line["request"])
        assert operation is not None, line
        words = operation[0].removeprefix("INDIRECT ")  # it is the one that it stands for
        codes = ["READ", "WRITE", "WRITE BARRIER", "FLUSH DISKCACHE", "", "DISCARD"]
        return codes.index(words), None, f"blkif {words}"
    cdb = bytes.fromhex(line["cdb"])
    row = lookup(cdb)
    name = row.name if row is not None else f"opcode 0x{cdb[0]:02x}"
    return cdb[0], service_action_of(cdb), name


def length(line: Line) -> tuple[str, int] | None:
    """Return whether a command reads or writes, and its buffers' bytes; None for all others."""
    match = _MOVES.match(line["request"])
    if match is None or "UNMAP" in line["request"]:
        return None
    return match[1].lower(), line["data_out"] + line["data_in"]


def failed(line: Line) -> bool:
    """Whether a command was answered, and not well."""
    return line["answered"] and line["status"] not in ("GOOD", "CONDITION MET", "OKAY")


def latency(values: Sequence[int]) -> dict[str, float] | None:
    """Return the figures of latencies, in microseconds."""
    if not values:
        return None
    us = np.array(values) / 1000
    found = {"count": len(us), "min": us.min(), "mean": us.mean(), "max": us.max()}
    found |= {name: np.percentile(us, share) for name, share in PERCENTILES.items()}
    return {name: round(float(value), 3) for name, value in found.items()}


def histogram(values: Iterable[float], bounds: Sequence[int]) -> dict[str, list[int]]:
    """Return vscsiStats' counts: a bucket's bound belongs to it."""
    counts = [0] * (len(bounds) + 1)
    for value in values:
        counts[bisect_left(bounds, value)] += 1
    return {"bounds": list(bounds), "counts": counts}


def count(shown: Sequence[Line]) -> dict[str, Any]:
    """Return what the analysis of these lines must say."""
    commands = [line for line in shown if line["kind"] == "command"]
    by_kind = defaultdict(list)
    for line in commands:
        by_kind[kind(line)].append(line)
    senses: dict[tuple[int, int, int], int] = defaultdict(int)
    for line in commands:
        if line["status"] == "CHECK CONDITION" and line["sense"]:
            sense = line["sense"]
            senses[sense["key"], sense["asc"], sense["ascq"]] += 1
    return {
        "commands": [
            {
                "opcode": opcode,
                "service_action": action,
                "name": name,
                "count": len(some),
                "bytes": sum(line["bytes"] or 0 for line in some),
                "errors": sum(map(failed, some)),
                "unanswered": sum(not line["answered"] for line in some),
                "latency_us": latency([line["latency_ns"] for line in some if line["answered"]]),
            }
            for (opcode, action, name), some in sorted(by_kind.items(), key=lambda each: each[0][2])
        ],
        "sense": [
            {"key": key, "asc": asc, "ascq": ascq, "count": times}
            for (key, asc, ascq), times in sorted(senses.items())
        ],
        "unanswered": sum(not line["answered"] and not line["fate"] for line in commands),
        "management": sum(line["kind"] == "task management" for line in shown),
        "histograms": dict(histograms(commands)),
    }


def histograms(commands: Sequence[Line]) -> Iterator[tuple[str, Any]]:
    """Yield vscsiStats' two that need no order: of lengths, and of latencies."""
    moved = [(*found, line) for line in commands if (found := length(line)) is not None]
    classes = {"all": ("read", "write"), "read": ("read",), "write": ("write",)}
    yield (
        "io_length_bytes",
        {
            name: histogram((size for way, size, _ in moved if way in ways), LENGTHS)
            for name, ways in classes.items()
        },
    )
    answered = [line for line in commands if line["answered"]]
    yield (
        "latency_us",
        {"all": histogram((line["latency_ns"] / 1000 for line in answered), TIMES_US)},
    )


def main() -> None:
    """Write every expectation."""
    with tempfile.TemporaryDirectory() as directory:
        for name in names():
            told = count(lines(as_file(name, Path(directory))))
            expectation(name).write_text(json.dumps(told, indent=1) + "\n")
            print(expectation(name).name, sum(each["count"] for each in told["commands"]))


if __name__ == "__main__":
    main()
