# SPDX-License-Identifier: MIT
"""vscsiif: Xen's SCSI ring protocol (io/vscsiif.h), byte for byte."""
