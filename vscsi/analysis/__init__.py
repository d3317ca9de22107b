# SPDX-License-Identifier: MIT
"""What a capture says: order-dependent columns in a stream, then aggregates as Ibis expressions.

`run.analyze` reads sources and returns an `Analysis` (`result`), which `terminal`, `report` and
JSON show. Nothing here prints or knows a file's format.
"""
