# SPDX-License-Identifier: MIT
"""SRP over a pair of one-way rings: information units in slots, regions registered by MAD."""
