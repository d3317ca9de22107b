# SPDX-License-Identifier: MIT
"""What a hypervisor lends: guest memory with a grant table, event channels, xenstore, xenbus.

`base` names the interfaces; `local` provides them between processes of one machine (memfd,
eventfd, a UNIX socket). Nothing here knows a disk protocol.
"""
