# SPDX-License-Identifier: MIT
"""`python -m vscsi.bench.figures` from end to end, short and on a small file."""

import json
import os

import pytest
from click.testing import CliRunner

from vscsi.bench.figures import bed
from vscsi.bench.figures.__main__ import main
from vscsi.bench.figures.catalogue import FIGURES
from vscsi.bench.figures.figure import Result
from vscsi.bench.figures.report import BEGIN, END, page, rewrite, table, write_json
from vscsi.wire.errors import SetupError

RESULTS = [
    Result(FIGURES[0].name, 0.95, 0.9, 1.0, ">= 0.90", True, "ratio", "95/s against 100/s"),
    Result(FIGURES[1].name, None, None, None, ">= 0.85", False, "ratio", "not measured: no store"),
]


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="a machine with one CPU")
def test_figures_are_measured_written_and_shown(monkeypatch, tmp_path):
    monkeypatch.setattr(bed, "WANTED_BYTES", 4 << 20)
    affinity, left = os.sched_getaffinity(0), set(bed.SHARED_MEMORY.iterdir())
    target, doc = tmp_path / "figures.json", tmp_path / "page.md"
    doc.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    names = ["srp_read4k_qd32_vs_preadv", "srp_null_qd32_vs_ring", "capture_histograms"]
    done = CliRunner().invoke(
        main,
        [*names, "--rounds", "1", "--runtime", "0.02", "--json", str(target), "--page", str(doc)],
    )
    assert done.exit_code == 0, done.output
    rows = json.loads(target.read_text())
    keys = {"name", "value", "low", "high", "goal", "met", "unit", "note"}
    assert all(set(row) == keys for row in rows)
    assert {row["name"] for row in rows} == set(names)
    by_name = {row["name"]: row for row in rows}
    assert by_name["srp_read4k_qd32_vs_preadv"]["value"] > 0
    assert by_name["srp_null_qd32_vs_ring"]["value"] > 0
    text = doc.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert all(name in text and name in done.output for name in names)
    assert os.sched_getaffinity(0) == affinity
    assert set(bed.SHARED_MEMORY.iterdir()) <= left


def test_an_unknown_figure_is_refused(tmp_path):
    done = CliRunner().invoke(main, ["nonsense", "--json", str(tmp_path / "figures.json")])
    assert done.exit_code == 2
    assert "no figure nonsense" in done.output


def test_every_figure_has_a_name_of_its_own():
    names = [figure.name for figure in FIGURES]
    assert len(set(names)) == len(names)


def test_json_has_nothing_for_what_was_not_measured(tmp_path):
    write_json(RESULTS, tmp_path / "figures.json")
    first, second = json.loads((tmp_path / "figures.json").read_text())
    assert first["value"] == 0.95
    assert second["value"] is None
    assert second["met"] is False


def test_the_page_tells_machine_settings_and_each_figure():
    text = page(FIGURES[:2], RESULTS, {"CPU": "some"}, "7 rounds")
    assert "| CPU | some |" in text
    assert "7 rounds" in text
    assert "0.95 | 0.90 to 1.00 | >= 0.90 | yes |" in text
    assert "not measured: no store" in text
    assert table(RESULTS, "").row_count == 2


def test_a_page_without_a_place_for_figures_stays_as_it_is(tmp_path):
    doc = tmp_path / "page.md"
    doc.write_text("text\n")
    with pytest.raises(SetupError, match="lacks"):
        rewrite(doc, "figures")
    assert doc.read_text() == "text\n"
