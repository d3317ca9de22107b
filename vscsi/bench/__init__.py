# SPDX-License-Identifier: MIT
"""One workload over several paths, with statistics."""
