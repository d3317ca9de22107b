# SPDX-License-Identifier: MIT
"""Bounds of histograms' buckets: vscsiStats', powers of two, or the user's own.

A bound is the greatest value of its bucket; one more bucket has what is above the last.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from vscsi.analysis.result import MEASURES
from vscsi.wire.errors import SetupError

MAX_BOUNDS = 256
"""Of one measure: each costs a column of an aggregate."""

_TIMES_US = (1, 10, 100, 500, 1000, 5000, 15000, 30000, 50000, 100000)
_FAR = (1, 2, 4, 6, 8, 16, 32, 64, 128, 500, 5000, 50000, 500000)
_DISTANCES = (*(-each for each in reversed(_FAR)), 0, *_FAR)
_ESX: Mapping[str, tuple[float, ...]] = {
    # Odd sizes have buckets between the usual ones: 4095 and 8191, as vscsiStats -p prints them.
    "io_length_bytes": (
        *(512, 1024, 2048, 4095, 4096, 8191, 8192, 16383, 16384, 32768, 49152, 65535, 65536),
        *(81920, 131072, 262144, 524288),
    ),
    "seek_distance_blocks": _DISTANCES,
    "closest_of_16_distance_blocks": _DISTANCES,
    "outstanding": (1, 2, 4, 6, 8, 12, 16, 20, 24, 28, 32, 64),
    "latency_us": _TIMES_US,
    "interarrival_us": _TIMES_US,
}

_POWERS = tuple(1 << n for n in range(0, 33, 2))
_POW2: Mapping[str, tuple[float, ...]] = {
    "io_length_bytes": tuple(1 << n for n in range(9, 25)),
    "seek_distance_blocks": (*(-each for each in reversed(_POWERS)), 0, *_POWERS),
    "closest_of_16_distance_blocks": (*(-each for each in reversed(_POWERS)), 0, *_POWERS),
    "outstanding": (0, *(1 << n for n in range(11))),
    "latency_us": tuple(1 << n for n in range(27)),
    "interarrival_us": tuple(1 << n for n in range(27)),
}
SETS = {"esx": _ESX, "pow2": _POW2}
RUNS = tuple(1 << n for n in range(17))
"""Lengths of sequential runs, whatever the set: they have no bounds of vscsiStats'."""


@dataclass(frozen=True, slots=True)
class Buckets:
    """Bounds for each of MEASURES, ascending."""

    name: str
    bounds: Mapping[str, tuple[float, ...]]


def parse(words: Sequence[str] = ()) -> Buckets:
    """Return the buckets that options name, each of them one of

    a set (esx, pow2), numbers for all measures (1,2,4), or numbers for one (latency_us=50,100).

    What is not named is esx. Raises SetupError.
    """
    bounds = dict(_ESX)
    for word in words:
        measure, equals, numbers = word.rpartition("=")
        if equals:
            if measure not in MEASURES:
                reason = f"no measure {measure!r}"
                raise SetupError("use buckets", word, reason, f"there is {', '.join(MEASURES)}")
            bounds[measure] = _numbers(word, numbers)
        elif word in SETS:
            bounds.update(SETS[word])
        else:
            bounds.update(dict.fromkeys(MEASURES, _numbers(word, word)))
    return Buckets(" ".join(words) or "esx", bounds)


def _numbers(word: str, text: str) -> tuple[float, ...]:
    try:
        numbers = tuple(int(each) for each in text.split(","))
    except ValueError:
        raise _refused(word, "neither a set nor whole numbers") from None
    if any(after <= before for before, after in pairwise(numbers)):
        raise _refused(word, "bounds have to ascend")
    if len(numbers) > MAX_BOUNDS or max(map(abs, numbers)) >= 1 << 62:
        raise _refused(word, f"at most {MAX_BOUNDS} bounds, of 62 bits")
    return numbers


def _refused(word: str, reason: str) -> SetupError:
    sets = " or ".join(SETS)
    return SetupError("use buckets", word, reason, f"{sets}, 1,2,4 or latency_us=50,100,500")
