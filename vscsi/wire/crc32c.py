# SPDX-License-Identifier: MIT
"""CRC32C (Castagnoli; RFC 7143 13.1 and B.4): iSCSI's digests."""

_POLYNOMIAL = 0x82F63B78


def _entry(value: int) -> int:
    for _ in range(8):
        value = value >> 1 ^ (_POLYNOMIAL if value & 1 else 0)
    return value


_TABLE = tuple(map(_entry, range(256)))


def crc32c(data: bytes | memoryview) -> bytes:
    """Return the digest of some bytes as iSCSI sends it."""
    value = 0xFFFF_FFFF
    for byte in data:
        value = value >> 8 ^ _TABLE[(value ^ byte) & 0xFF]
    return (value ^ 0xFFFF_FFFF).to_bytes(4, "little")
