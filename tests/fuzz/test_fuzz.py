# SPDX-License-Identifier: MIT
"""The C core against a hostile peer: each target over its corpus and a little beyond, always the
same, under ASan and UBSan; the loop with a second thread under TSan. See docs/fuzzing.md.
"""

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuzz.seeds import all_inputs, text
from tests.fuzz.targets import CORPUS, TARGETS, Builder, Target, unpack

HANG_S = 300
OPTIONS = {"TSAN_OPTIONS": "halt_on_error=1", "UBSAN_OPTIONS": "print_stacktrace=1"}


@pytest.fixture(scope="session")
def builder(tmp_path_factory: pytest.TempPathFactory) -> Builder:
    return Builder(tmp_path_factory.mktemp("fuzz"))


@pytest.fixture
def run(builder: Builder, tmp_path: Path) -> Callable[..., tuple[int, int]]:
    """Run a target; returns how often what it is about has happened, and in how many inputs."""

    def run(target: Target, *arguments: object) -> tuple[int, int]:
        command = [str(builder.build(target)), "-timeout=60", *map(str, arguments)]
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env={**os.environ, **OPTIONS},
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            timeout=HANG_S,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stderr[-5000:]}"
        counts = re.search(r"^counts: (\d+) of (\d+)$", done.stderr, re.MULTILINE)
        assert counts is not None
        return int(counts[1]), int(counts[2])

    return run


def name_of(target: Target) -> str:
    return target.name


@pytest.mark.parametrize("target", [each for each in TARGETS if not each.races], ids=name_of)
def test_a_hostile_peer_breaks_no_rule_of_ours(
    target: Target, run: Callable[..., tuple[int, int]], tmp_path: Path
) -> None:
    inputs = unpack(target, tmp_path / "corpus")
    reached, _ = run(target, *sorted(inputs.iterdir()))
    assert reached, "the corpus does not get to what the target is about"
    run(target, "-seed=1", f"-runs={target.runs}", "-max_len=1024", inputs)


@pytest.mark.parametrize("target", [each for each in TARGETS if each.races], ids=name_of)
def test_threads_that_race_with_the_loop_find_it_in_order(
    target: Target, run: Callable[..., tuple[int, int]], tmp_path: Path
) -> None:
    inputs = unpack(target, tmp_path / "corpus")
    reached, _ = run(target, f"-runs={target.runs}", *sorted(inputs.iterdir()))
    assert reached, "the corpus does not get to what the target is about"


def test_the_seeds_are_what_the_formats_build() -> None:
    for name, inputs in all_inputs().items():
        assert (CORPUS / f"{name}.seeds").read_text() == text(inputs), (
            f"{name}: run python -m tests.fuzz.seeds"
        )


@pytest.mark.parametrize("name", ["decode_srp", "decode_vscsiif", "decode_blkif64"])
def test_the_memory_of_a_decoder_is_closed_but_for_copies(
    name: str, builder: Builder, tmp_path: Path
) -> None:
    """The check itself: with the hooks turned off, each look at the guest's memory is found."""
    target = next(each for each in TARGETS if each.name == name)
    bare = Target(f"{name}-bare", target.source, 0, (*target.defines, "-DBARE"), hooked=True)
    table = next(unpack(target, tmp_path / "corpus").glob("table"), None)
    table = table or tmp_path / "corpus" / "indirect-READ"
    done = subprocess.run(
        [builder.build(bare), table], cwd=tmp_path, stderr=subprocess.PIPE, text=True, check=False
    )
    assert "use-after-poison" in done.stderr
