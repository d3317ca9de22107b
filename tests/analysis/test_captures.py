# SPDX-License-Identifier: MIT
"""The analysis of every recorded capture says what was counted without it (expected.py)."""

import json

import pytest

from tests.analysis import expected


def near(found, wanted):
    """Compare what is wanted: of objects the members that it has, numbers to a nanosecond."""
    if isinstance(wanted, dict):
        return {name: near(found[name], value) for name, value in wanted.items()}
    if isinstance(wanted, list):
        assert len(found) == len(wanted), (found, wanted)
        return [near(*pair) for pair in zip(found, wanted, strict=True)]
    if isinstance(wanted, float):
        assert found == pytest.approx(wanted, abs=0.001)
    else:
        assert found == wanted
    return wanted


def by(name, rows):
    """Return rows by a member, or more."""
    return {tuple(row[each] for each in name.split()): row for row in rows}


@pytest.mark.parametrize("name", expected.names())
def test_the_analysis_of_a_capture_says_what_was_counted(cli, tmp_path, name):
    wanted = json.loads(expected.expectation(name).read_text())
    done = cli("analyze", "--json", expected.as_file(name, tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    for key, member in (("commands", "name"), ("sense", "key asc ascq")):
        near(by(member, found[key]), by(member, wanted[key]))
        assert len(found[key]) == len(wanted[key])
    near(found["histograms"], wanted["histograms"])
    assert found["unanswered"] == wanted["unanswered"]
    assert sum(event["management"] for event in found["events"]) == wanted["management"]


@pytest.mark.parametrize("name", expected.names())
def test_the_expectations_are_what_is_counted_now(tmp_path, name):
    counted = expected.count(expected.lines(expected.as_file(name, tmp_path)))
    assert json.loads(json.dumps(counted)) == json.loads(expected.expectation(name).read_text())


def test_every_expectation_has_its_capture():
    known = {expected.expectation(name) for name in expected.names()}
    assert known == set(expected.CAPTURES.glob(f"*{expected.SUFFIX}"))
