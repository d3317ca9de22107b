# SPDX-License-Identifier: MIT
"""Binary traces of the block layer, record by record, as linux/blktrace_api.h has them."""

import struct
from dataclasses import dataclass, field

QUEUE, GETRQ, REQUEUE, ISSUE, COMPLETE, PLUG = 1, 4, 6, 7, 8, 9
INSERT, SPLIT, REMAP = 12, 13, 15
READ, WRITE, FLUSH, SYNC, ISSUED, COMPLETED = 1, 2, 4, 8, 64, 128
PC, NOTIFY, DISCARD, FUA = 1 << 9, 1 << 10, 1 << 13, 1 << 15
PROCESS, TIMESTAMP, MESSAGE = 0, 1, 2
SDA, DM0 = 8 << 20, 253 << 20


@dataclass
class Trace:
    """One file's records."""

    order: str = "<"
    records: list[bytes] = field(default_factory=list)
    sequence: int = 0

    def add(
        self,
        time_ns=0,
        action=ISSUE,
        category=READ,
        sector=0,
        length=0,
        device=SDA,
        cpu=0,
        error=0,
        payload=b"",
    ):
        """Append a record; notifications have no number of their own."""
        self.sequence += not category & NOTIFY
        self.records.append(
            struct.pack(
                self.order + "IIQQIIIIIHH",
                0x65617407,
                0 if category & NOTIFY else self.sequence,
                time_ns,
                sector,
                length,
                category << 16 | action,
                697,
                device,
                cpu,
                error & 0xFFFF,
                len(payload),
            )
            + payload
        )
        return self

    def begin(self, seconds=1_700_000_000, nanoseconds=123_456_789):
        """Append what blktrace begins with."""
        self.add(
            action=TIMESTAMP,
            category=NOTIFY,
            payload=struct.pack(self.order + "II", seconds, nanoseconds),
        )
        return self.add(category=NOTIFY, action=PROCESS, payload=b"kjournald".ljust(16, b"\0"))

    def command(self, time_ns, category, sector, length, latency_ns=1000, error=0, **more):
        """Append a command's issue and its completion."""
        self.add(time_ns, ISSUE, category, sector, length, **more)
        return self.add(time_ns + latency_ns, COMPLETE, category, sector, length, error=error)

    def bytes(self):
        """Return the file's content."""
        return b"".join(self.records)


def one_of_each(order="<"):
    """Commands of every kind on a disk, with all that is on the way to them."""
    trace = Trace(order).begin()
    trace.add(1000, QUEUE, WRITE, 223490, 4096)
    trace.add(1100, GETRQ, WRITE, 223490, 4096)
    trace.add(1200, INSERT, WRITE, 223490, 4096)
    trace.add(1300, ISSUE, WRITE | SYNC, 223490, 4096)
    trace.add(1400, ISSUE, READ, 8, 512)
    trace.add(1450, REMAP, READ, 8, 512, payload=struct.pack(">IIQ", SDA, SDA + 1, 1000))
    trace.add(1460, SPLIT, READ, 8, 512, payload=struct.pack(">Q", 1008))
    trace.add(1470, MESSAGE, NOTIFY, payload=b"a message")
    trace.add(1500, COMPLETE, READ, 8, 512, error=-5)
    trace.add(2300, COMPLETE, WRITE | SYNC, 223490, 4096)
    trace.command(2400, READ | FLUSH, 0, 0)
    trace.command(4600, WRITE | DISCARD, 4096, 1 << 20)
    trace.add(7800, ISSUE, WRITE | FUA, 7000, 512)
    trace.add(7850, REQUEUE, WRITE | FUA, 7000, 512)
    trace.command(7900, WRITE | FUA, 7000, 512)
    inquiry = bytes.fromhex("120000002400")
    trace.add(9100, ISSUE, READ | PC, 0, 36, payload=inquiry)
    trace.add(9200, COMPLETE, READ | PC, 0, 36, payload=inquiry)
    trace.command(9300, READ | PC, 0, 96)
    trace.add(11500, ISSUE, READ, 99, 512)
    trace.add(11500, PLUG, 0)
    return trace.bytes()


ONE_OF_EACH = [
    # time, operation, lba, blocks, data_in, data_out, fua, outstanding, fate, latency
    (1400, 1, 8, 1, 512, 0, False, 1, 1, 100),
    (1300, 2, 223490, 8, 0, 4096, False, 0, 0, 1000),
    (2400, 3, None, None, 0, 0, False, 0, 0, 1000),
    (4600, 4, 4096, 2048, 0, 0, False, 0, 0, 1000),
    (7900, 2, 7000, 1, 0, 512, True, 0, 0, 1000),
    (9100, 0, None, None, 36, 0, False, 0, 0, 100),
    (9300, 0, None, None, 96, 0, False, 0, 0, 1000),
    (11500, 1, 99, 1, 512, 0, False, 0, 4, None),
]
"""What commands they are, in the order of their ends."""
