# SPDX-License-Identifier: MIT
"""Where a logical unit's blocks live. One file a kind; `base` is what they have in common."""
