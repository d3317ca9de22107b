# SPDX-License-Identifier: MIT
"""The other process of test_stress.py: takes every message and sends it back reversed.

Arguments: layout, wait, pages, slot size, messages, ring descriptor, incoming and outgoing eventfd.
"""

import os
import select
import sys

from vscsi.domain.events import EventChannel
from vscsi.ring._core import PageMap, RingEnd

layout, wait = sys.argv[1:3]
pages, slot_size, messages, ring_fd, incoming_fd, outgoing_fd = map(int, sys.argv[3:])

memory = memoryview(PageMap(ring_fd, range(2 * pages), readonly=False))
requests, responses = memory[: pages * 4096], memory[pages * 4096 :]
if layout == "xen":
    end = RingEnd.back(requests, slot_size)
else:
    end = RingEnd.pair_back(requests, responses, slot_size)
channel = EventChannel(1, incoming_fd, outgoing_fd)

done = 0
while done < messages:
    taken = end.take(limit=1 + done % 40)
    for message in taken:
        if not end.put(message[::-1]):
            sys.exit("no room for a response")
    done += len(taken)
    if end.publish():
        channel.notify()
    if taken:
        continue
    if wait == "poll":
        os.sched_yield()
    elif not end.arm():
        if not select.select([channel], [], [], 30)[0]:
            sys.exit("lost wake-up")
        channel.clear()
