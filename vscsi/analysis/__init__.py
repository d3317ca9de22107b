# SPDX-License-Identifier: MIT
"""Histograms and tables from a capture or a live tap."""
