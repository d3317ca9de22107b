# SPDX-License-Identifier: MIT
"""Big captures, quickly: a made-up disk load as one of our pcapng files, and what is in it.

    from tests.capture.synthetic import write_srp
    with open("/tmp/big.pcapng", "wb") as stream:
        truth = write_srp(stream, 1_000_000)        # about a second, 240 MB

or `python -m tests.capture.synthetic FILE COMMANDS`.
"""

import sys
from typing import IO

import numpy as np

from vscsi.wire import pcapng, record, srp
from vscsi.wire.c_header import offsets
from vscsi.wire.cdb import build as build_cdb
from vscsi.wire.cdb import named
from vscsi.wire.lun import encode
from vscsi.wire.record import Protocol, Way, build_record
from vscsi.wire.srp import IuType, RspFlags, build_iu, cdb_fields
from vscsi.wire.srp_ring import SLOT_SIZE, SlotFormat, SlotHeader, build_slot

START_NS = 1_700_000_000_000_000_000
BLOCK_BYTES = 512
DISK_BLOCKS = 1 << 24
CHUNK = 1 << 16
_SENSE = bytes.fromhex("700003000000000a00000000110000000000")
"""MEDIUM ERROR, UNRECOVERED READ ERROR."""
_NS_PER_US = 1000

WORKLOAD = np.dtype(
    [
        ("time_ns", "<i8"),
        ("latency_ns", "<i8"),
        ("lba", "<u4"),
        ("blocks", "<u2"),
        ("write", "?"),
        ("failed", "?"),
        ("outstanding", "<u4"),
    ]
)
"""What is known of each command, in the order in which they were sent."""


def make_workload(commands: int, seed: int = 1) -> np.ndarray:
    """Return WORKLOAD rows: runs and jumps, reads and writes, some ten commands under way."""
    random = np.random.default_rng(seed)
    load = np.zeros(commands, WORKLOAD)
    load["time_ns"] = START_NS + np.cumsum(random.exponential(10 * _NS_PER_US, commands)).astype(
        int
    )
    load["latency_ns"] = random.gamma(2.0, 50 * _NS_PER_US, commands).astype(int) + _NS_PER_US
    load["blocks"] = random.choice([1, 8, 8, 8, 16, 64, 128, 256, 1024], commands)
    jumps = random.random(commands) < 0.3
    away = random.integers(0, DISK_BLOCKS, commands)
    ends = np.cumsum(load["blocks"].astype(np.int64))
    begins = ends - load["blocks"]
    last_jump = np.maximum.accumulate(np.where(jumps, np.arange(commands), 0))
    load["lba"] = (away[last_jump] + begins - begins[last_jump]) % (DISK_BLOCKS - 2048)
    load["write"] = random.random(commands) < 0.3
    load["failed"] = random.random(commands) < 0.001
    ended = np.sort(load["time_ns"] + load["latency_ns"])
    load["outstanding"] = np.arange(commands) - np.searchsorted(ended, load["time_ns"])
    return load


def write_srp(stream: IO[bytes], commands: int, seed: int = 1) -> np.ndarray:
    """Write a capture of one SRP channel; returns what it holds (WORKLOAD).

    Messages are in the order of their times; READ(10) and WRITE(10) with one direct descriptor;
    one command in a thousand ends in CHECK CONDITION with nothing moved.
    """
    load = make_workload(commands, seed)
    stream.write(pcapng.section("synthetic"))
    stream.write(pcapng.interface("srp-1-0", ""))
    left: tuple[np.ndarray, np.ndarray] | None = None
    for first in range(0, commands, CHUNK):
        part = load[first : first + CHUNK]
        left = _write_chunk(stream, part, first, left, last=first + CHUNK >= commands)
    return load


def _write_chunk(stream, load, first, left, *, last):
    """Write a chunk's requests and the answers due before its end; return the other answers."""
    numbers = np.arange(first, first + len(load), dtype=np.uint64)
    asked = _requests(load, numbers)
    answer_times = load["time_ns"] + load["latency_ns"]
    answers = _answers(load, numbers)
    sizes = np.where(load["failed"], len(_answer_packet(_SENSE)), len(_answer_packet(b"")))
    if left is not None:
        answers = np.vstack([left[0], answers])
        answer_times = np.concatenate([left[1]["time"], answer_times])
        sizes = np.concatenate([left[1]["size"], sizes])
    due = np.ones(len(answers), bool) if last else answer_times <= load["time_ns"][-1]
    times = np.concatenate([load["time_ns"], answer_times[due]])
    lengths = np.concatenate([np.full(len(load), asked.shape[1]), sizes[due]])
    order = np.argsort(times, kind="stable")
    at = np.empty(len(order), np.int64)
    at[order] = np.cumsum(lengths[order]) - lengths[order]
    out = np.zeros(lengths.sum(), np.uint8)
    out[at[: len(load), None] + np.arange(asked.shape[1])] = asked
    for size in np.unique(sizes[due]):
        these = sizes[due] == size
        out[at[len(load) :][these, None] + np.arange(size)] = answers[due][these, :size]
    stream.write(out)
    rest = np.zeros(int((~due).sum()), [("time", "<i8"), ("size", "<i8")])
    rest["time"], rest["size"] = answer_times[~due], sizes[~due]
    return answers[~due], rest


_PACKET_AT = pcapng.HEAD_SIZE
_RECORD_AT = _PACKET_AT + pcapng.LITTLE.packet.sizeof()
_MESSAGE_AT = _RECORD_AT + offsets(record.Record)["message"]
_UNIT_AT = _MESSAGE_AT + SlotHeader.sizeof()


def _packet(way: Way, unit: bytes, size: int = 0) -> bytes:
    message = build_slot(SlotFormat.SRP, unit).ljust(size, b"\0")
    data = build_record(protocol=Protocol.SRP, direction=way, domain=1, message=message)
    return pcapng.packet(0, START_NS, data)


def _answer_packet(sense: bytes) -> bytes:
    flags = RspFlags.SNSVALID if sense else 0
    unit = build_iu(IuType.RSP, request_limit_delta=1, flags=flags, sense_data=sense)
    return _packet(Way.TO_INITIATOR, unit)


def _put(packets: np.ndarray, at: int, values: np.ndarray, code: str) -> None:
    """Put a number into each packet."""
    data = np.ascontiguousarray(values.astype(code)).view(np.uint8)
    width = np.dtype(code).itemsize
    packets[:, at : at + width] = data.reshape(-1, width)


def _put_times(packets: np.ndarray, times: np.ndarray) -> None:
    at = {name: _PACKET_AT + where for name, where in offsets(pcapng.LITTLE.packet).items()}
    _put(packets, at["time_high"], times >> 32, "<u4")
    _put(packets, at["time_low"], times & 0xFFFF_FFFF, "<u4")


def _requests(load: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    buffer = {"address": 0, "handle": 1, "length": 0}
    lun = encode(0)
    read, write = (
        _packet(
            Way.TO_TARGET,
            build_iu(IuType.CMD, lun=lun, **cdb_fields(build_cdb(name)), **{side: buffer}),
            SLOT_SIZE,
        )
        for name, side in (("READ(10)", "data_in"), ("WRITE(10)", "data_out"))
    )
    both = np.frombuffer(read + write, np.uint8).reshape(2, -1)
    packets = both[load["write"].astype(int)]
    at = offsets(srp.Cmd)
    fields = named("READ(10)").fields
    cdb_at = _UNIT_AT + at["cdb"]
    _put_times(packets, load["time_ns"])
    _put(packets, _UNIT_AT + at["tag"], numbers, ">u8")
    _put(packets, cdb_at + fields["lba"].offset, load["lba"], ">u4")
    _put(packets, cdb_at + fields["blocks"].offset, load["blocks"], ">u2")
    length_at = _UNIT_AT + srp.CMD_BYTES + offsets(srp.MemoryDescriptor)["length"]
    _put(packets, length_at, load["blocks"].astype(int) * BLOCK_BYTES, ">u4")
    in_record = offsets(record.Record)
    _put(packets, _RECORD_AT + in_record["ring_index"], numbers, "<u4")
    _put(packets, _RECORD_AT + in_record["in_flight"], load["outstanding"], "<u2")
    return packets


def _answers(load: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    good, bad = _answer_packet(b""), _answer_packet(_SENSE)
    both = np.frombuffer(good.ljust(len(bad), b"\0") + bad, np.uint8).reshape(2, -1)
    packets = both[load["failed"].astype(int)]
    at = offsets(srp.Rsp)
    _put_times(packets, load["time_ns"] + load["latency_ns"])
    _put(packets, _UNIT_AT + at["tag"], numbers, ">u8")
    _put(packets, _UNIT_AT + at["status"], load["failed"] * 2, "u1")
    moved = np.where(load["failed"], load["blocks"].astype(int) * BLOCK_BYTES, 0)
    under = np.where(load["write"], RspFlags.DOUNDER, RspFlags.DIUNDER) | RspFlags.SNSVALID
    _put(packets, _UNIT_AT + at["flags"], np.where(load["failed"], under, 0), "u1")
    for side, these in (("data_out_residual", load["write"]), ("data_in_residual", ~load["write"])):
        _put(packets, _UNIT_AT + at[side], np.where(these, moved, 0), ">u4")
    return packets


if __name__ == "__main__":
    with open(sys.argv[1], "wb") as file:
        write_srp(file, int(sys.argv[2]))
