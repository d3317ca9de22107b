# SPDX-License-Identifier: MIT
"""Captured commands sent again, over any path.

A source's rows go through `order` (back into the order of sending), become steps (`step`, task
management among them), are translated for the unit that gets them (`translate`), wait until `pace`
lets them go, and are sent by `run`, which has `judge` compare the answers. `survey` reads a capture
beforehand: what it would do to the disk, which `preflight` looks at. Memory does not grow with the
capture.
"""
