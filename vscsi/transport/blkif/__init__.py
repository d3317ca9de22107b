# SPDX-License-Identifier: MIT
"""blkif: Xen's block ring protocol (io/blkif.h), byte for byte, and CDBs over it."""
