# SPDX-License-Identifier: MIT
"""Who executes a task: task router, task sets, logical units and the stores below them.

`base` names the interface (`Task`, `Target`) that the embedded target, LIO and every filter share.
Nothing here knows a transport: no ring, no grant, no information unit.
"""
