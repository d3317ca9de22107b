# SPDX-License-Identifier: MIT
"""Bytes to values and back: no I/O, no clock, nothing above the standard library and construct.

Each wire format is declared once, in construct; each table (opcodes, sense codes, pages) is rows
that cite their clause. Whatever a peer's bytes contain, a parser here returns a value or raises
`WireError`.
"""
