# SPDX-License-Identifier: MIT
"""The command line: one file a verb, `main` collects them. Only here is anything printed."""
