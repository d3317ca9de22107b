# SPDX-License-Identifier: MIT
"""Commands that wait for a disk: the loop over a ring in a program under the sanitizers."""

import pytest

ROUNDS = 5
COMMANDS = 81
"""Of a round: writes, a flush, reads."""


@pytest.mark.parametrize("sanitizer", ["thread", "address"])
def test_the_threads_of_a_ring_execute_what_waits(program, sanitizer, tmp_path):
    """Without io_uring, as where it is not found at build time."""
    image = tmp_path / "image"
    image.write_bytes(bytes(40 * 512))
    total = ROUNDS * COMMANDS
    assert program("deferred", sanitizer, image, ROUNDS) == f"{total} of {total}\n"
