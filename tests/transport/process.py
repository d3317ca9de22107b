# SPDX-License-Identifier: MIT
"""One half in a process of its own, to be killed: `serve DIR` or `connect URL`."""

import sys
import threading
from pathlib import Path

import vscsi
from vscsi.target.disk import Disk
from vscsi.target.stores.memory import MemoryStore
from vscsi.transport.export import Export
from vscsi.wire.cdb import build


class StuckStore(MemoryStore):
    """Reads beyond the first block never end."""

    def __init__(self, size_bytes):
        super().__init__(size_bytes)
        self.native = None  # all of it goes through here

    def readv(self, offset, views):
        if offset:
            threading.Event().wait()
        super().readv(offset, views)


def serve(directory):
    Export(Path(directory), {0: Disk(StuckStore(1 << 20))}, workers=4).start()


def connect(url):
    hba = vscsi.connect(url)
    lun = hba.lun(0)
    lun.capacity()
    for lba in range(4):
        hba.start(lun, build("READ(10)", lba=lba, blocks=8), data_in=4096)


{"serve": serve, "connect": connect}[sys.argv[1]](sys.argv[2])
print("ready", flush=True)
threading.Event().wait()
