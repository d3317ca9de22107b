# SPDX-License-Identifier: MIT
"""How a task crosses from an initiator to a target: one folder a protocol, both ends in each.

A backend end is a loop: take, copy, decode, check, submit, answer. A frontend end turns an `Hba`'s
commands into messages. `call` is the transport without a ring, the floor for every overhead.
"""
