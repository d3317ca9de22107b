# SPDX-License-Identifier: MIT
"""SCSI over a shared-memory ring, beside blkif, on one disk.

The way of one command, and the folders in the order it passes them (a module imports only from
folders above its own in this list):

    wire/       bytes <-> values: SRP, vscsiif, blkif, CDBs, sense, LUNs
    ring/       shared rings (the C core)
    domain/     what a hypervisor lends: grants, event channels, xenstore, xenbus
    target/     who executes a task: router, task sets, disk, stores
    transport/  how a task crosses: srp, vscsiif, blkif, call; each with both ends
    capture/    the tap, pcapng, scapy layers
    analysis/   tables from captures
    bench/      one workload over several paths
    cli/        one file a verb

An initiator calls `connect(url)`, gets an `Hba`, and its frontend end puts a message on a ring;
the backend end in `vscsi serve` takes it, makes a `Task`, and a `Target` executes it on a store.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vscsi.transport.hba import Hba

__version__ = "0.1.0"


def connect(url: str) -> "Hba":
    """Connect to a path such as "srp:DIR"; see `vscsi.transport.connect.connect`."""
    from vscsi.transport.connect import connect as connect_path  # the wire needs no transport

    return connect_path(url)
