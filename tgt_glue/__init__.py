# SPDX-License-Identifier: MIT
"""A target behind the same interface as `vscsi.target`: LIO, configured through configfs."""
