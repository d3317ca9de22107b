# SPDX-License-Identifier: MIT
"""The dashboard and the alerting rules, against a scrape of a real server, Prometheus' own tools
and a Prometheus that scrapes it.
"""

import json
import re
import socket
import subprocess
import time
import urllib.parse
from collections import defaultdict
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

import vscsi
from tests.analysis.test_metrics import get
from tests.debian import unpacked
from vscsi.target.base import Function
from vscsi.wire.cdb import build

PLACE = Path(__file__).parents[2] / "docs" / "grafana"
DASHBOARD = json.loads((PLACE / "vscsi.json").read_text())
ALERTS = PLACE / "alerts.yml"
HANG_S = 60
SIZE = 8 << 20
VARIABLES = {
    "$__rate_interval": "1m",
    **{f"${each['name']}": ".*" for each in DASHBOARD["templating"]["list"]},
}
SUFFIXES = {
    "histogram": ("_bucket", "_count", "_sum"),
    "counter": ("_total",),
    "info": ("_info",),
    "gauge": ("",),
}
OF_PROMETHEUS = {"instance", "job", "le"}


def expressions():
    """Return every PromQL expression of the dashboard, and of the alerting rules."""
    panels = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    lines = ALERTS.read_text().splitlines()
    rules = []
    for number, line in enumerate(lines):
        if (match := re.match(r"( +)expr: (.*)", line)) is None:
            continue
        indent, expression = len(match[1]), match[2]
        if expression == "|":
            rest = lines[number + 1 :]
            deeper = (each for each in rest)
            expression = ""
            for each in deeper:
                if len(each) - len(each.lstrip()) <= indent:
                    break
                expression += each + "\n"
        rules.append(expression)
    return panels, rules


def filled(expression):
    """Return an expression with Grafana's variables in place."""
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    return expression


@pytest.fixture(scope="module")
def served(start, tmp_path_factory):
    """A server on which each kind of metric has something to say; yields the metrics' URL."""
    place = tmp_path_factory.mktemp("grafana")
    image = place / "disk.img"
    image.write_bytes(bytes(SIZE))
    server = start("serve", image, "--dir", place / "run", "--metrics", "0")
    (line,) = (line for line in server.output if line.startswith("  metrics  "))
    with (
        vscsi.connect(f"srp:{place / 'run'}") as one,
        vscsi.connect(f"vscsiif:{place / 'run'}") as two,
        vscsi.connect(f"blkif:{place / 'run'}") as three,
    ):
        for hba in (one, two, three):
            hba.lun(0).write(8, bytes(4096))
            hba.lun(0).read(8, 8)
        one.command(one.lun(0), build("READ(10)", lba=SIZE // 512, blocks=1), data_in=512)
        one.manage(one.lun(0), Function.LOGICAL_UNIT_RESET)
        yield line.split()[1]


@pytest.fixture(scope="module")
def labels_of(served):
    """Return the labels of each metric that the server has, by the names that PromQL has for it."""
    found = defaultdict(set)
    for family in text_string_to_metric_families(get(served)[1]):
        for suffix in SUFFIXES[family.type]:
            found[family.name + suffix] |= {"le"} if suffix == "_bucket" else set()
        for sample in family.samples:
            found[sample.name] |= sample.labels.keys()
    return found


@pytest.fixture(scope="session")
def tools():
    """Where Debian's prometheus and promtool are."""
    return unpacked("prometheus") / "usr" / "bin"


# The files.


def test_the_dashboard_is_what_grafana_imports():
    """The fields of the dashboard JSON model, and no panel over another."""
    assert {"title", "uid", "schemaVersion", "panels", "templating", "time"} <= DASHBOARD.keys()
    assert DASHBOARD.get("id") is None  # Grafana gives one at the import
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    taken = set()
    for panel in DASHBOARD["panels"]:
        assert panel["type"] in ("timeseries", "stat", "heatmap")
        assert {"title", "targets", "fieldConfig", "options"} <= panel.keys()
        place = panel["gridPos"]
        assert 0 <= place["x"] < place["x"] + place["w"] <= 24
        cells = {
            (place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])
        }
        assert not cells & taken
        taken |= cells
        refs = [target["refId"] for target in panel["targets"]]
        assert len(set(refs)) == len(refs)
        for each in (panel, *panel["targets"]):
            assert each["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert all(target["expr"] for target in panel["targets"])


def test_its_variables_are_those_that_it_uses():
    text = json.dumps(DASHBOARD["panels"])
    used = set(re.findall(r"\$\{?(\w+)", text)) - {"__rate_interval"}
    assert used == {each["name"] for each in DASHBOARD["templating"]["list"]}


def test_every_metric_and_label_that_they_use_exists(labels_of):
    panels, rules = expressions()
    queries = [
        each["definition"] for each in DASHBOARD["templating"]["list"] if "definition" in each
    ]
    assert len(rules) == ALERTS.read_text().count("alert:")
    seen = set()
    for expression in (*panels, *rules, *queries):
        names = re.findall(r"\b(?:vscsi|process)_\w+", expression)
        assert names, expression
        seen |= set(names)
        for name in names:
            assert name in labels_of, f"{name} in {expression}"
        for name, selector in re.findall(r"\b(vscsi_\w+)\{([^}]*)\}", expression):
            for label in re.findall(r"(\w+) *(?:=~|!~|!=|=)", selector):
                assert label in labels_of[name], f"{name} has no {label}"
        grouped = re.findall(r"\b(?:by|on) *\(([^)]*)\)", expression)
        some = set().union(*(labels_of[name] for name in names)) | OF_PROMETHEUS
        for label in (each.strip() for group in grouped for each in group.split(",")):
            assert label in some, f"{label} in {expression}"
    for name, label in re.findall(r"label_values\((\w+), (\w+)\)", " ".join(queries)):
        assert label in labels_of[name]
    for text in re.findall(r"\{\{(\w+)\}\}", json.dumps(DASHBOARD)):
        assert text in set().union(*labels_of.values())
    # And nothing that is counted is left out of sight.
    shown = {name for name in labels_of if name.startswith("vscsi_")}
    unseen = {"vscsi_build_info", "vscsi_unit_info", "vscsi_guests", "vscsi_rings"}
    unseen |= {"vscsi_unit_size_bytes", "vscsi_staged_bytes_total", "vscsi_deferred_commands_total"}
    unseen |= {"vscsi_notifications_sent_total", "vscsi_notifications_received_total"}
    unseen |= {"vscsi_command_size_bytes_count", "vscsi_command_latency_seconds_sum"}
    assert shown - seen == unseen


# Prometheus' own tools.


def test_promtool_has_nothing_to_say_about_the_metrics(served, tools):
    done = subprocess.run(
        [tools / "promtool", "check", "metrics"],
        input=get(served, "text/plain")[1],
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_promtool_takes_the_rules_and_every_expression(tools, tmp_path):
    panels, rules = expressions()
    recorded = [
        {"record": f"expression{number}", "expr": filled(expression)}
        for number, expression in enumerate((*panels, *rules))
    ]
    every = tmp_path / "every.yml"  # JSON is YAML
    every.write_text(json.dumps({"groups": [{"name": "every", "rules": recorded}]}))
    for path, count in ((ALERTS, len(rules)), (every, len(recorded))):
        done = subprocess.run(
            [tools / "promtool", "check", "rules", "--lint=all", "--lint-fatal", path],
            capture_output=True,
            text=True,
            timeout=HANG_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert f"SUCCESS: {count} rules found" in done.stdout


LATENCY = "vscsi_command_latency_seconds"
RING = 'instance="h",guest="1",path="srp",device="0"'
UNIT = 'instance="h",guest="1",path="srp",lun="0"'
ALERTED = {
    "VscsiStuck": [
        (f"vscsi_commands_in_flight{{{RING}}}", "3x30"),
        (f'{LATENCY}_count{{{UNIT},opcode="READ(10)"}}', "7x30"),
    ],
    "VscsiSlow": [
        (f'{LATENCY}_bucket{{{UNIT},opcode="READ(10)",le="0.5"}}', "0x30"),
        (f'{LATENCY}_bucket{{{UNIT},opcode="READ(10)",le="1.0"}}', "0+5x30"),
        (f'{LATENCY}_bucket{{{UNIT},opcode="READ(10)",le="+Inf"}}', "0+5x30"),
    ],
    "VscsiVerySlowCommand": [
        (f'vscsi_command_latency_max_seconds{{{UNIT},opcode="READ(10)"}}', "16x30"),
    ],
    "VscsiMediumErrors": [
        (
            f'vscsi_commands_failed_total{{{UNIT},status="CHECK_CONDITION",'
            'sense_key="MEDIUM_ERROR"}',
            "0x8 1x30",
        ),
    ],
    "VscsiResets": [
        (
            'vscsi_task_management_total{instance="h",guest="1",path="srp",'
            'function="LOGICAL_UNIT_RESET",response="FUNCTION_COMPLETE"}',
            "0x8 1x30",
        ),
    ],
    "VscsiFrontendBreaksRules": [(f"vscsi_wire_errors_total{{{RING}}}", "0x8 1x30")],
    "VscsiCaptureIncomplete": [(f"vscsi_capture_dropped_messages_total{{{RING}}}", "0x8 9x30")],
}
BUSY = [
    (f"vscsi_commands_in_flight{{{RING}}}", "3x30"),
    (f'{LATENCY}_count{{{UNIT},opcode="READ(10)"}}', "0+60x30"),
    *(
        (f'{LATENCY}_bucket{{{UNIT},opcode="READ(10)",le="{le}"}}', "0+60x30")
        for le in (0.5, "+Inf")
    ),
    (f'vscsi_command_latency_max_seconds{{{UNIT},opcode="READ(10)"}}', "0.1x30"),
    (
        f'vscsi_commands_failed_total{{{UNIT},status="CHECK_CONDITION",sense_key="UNIT_ATTENTION"}}',
        "1x30",
    ),
    (f"vscsi_wire_errors_total{{{RING}}}", "0x30"),
]


def test_each_alert_fires_for_what_it_is_about_and_none_for_a_busy_disk(tools, tmp_path):
    """By `promtool test rules`, which evaluates them over made-up series."""
    names = re.findall(r"alert: (\w+)", ALERTS.read_text())
    firing = 'alertstate="firing"'
    assert set(names) == ALERTED.keys()
    tests = []
    for fires, series in (*ALERTED.items(), (None, BUSY)):
        tests.append(
            {
                "interval": "1m",
                "input_series": [{"series": name, "values": values} for name, values in series],
                "promql_expr_test": [
                    {
                        "expr": f'count(ALERTS{{{firing},alertname="{name}"}}) or vector(0)',
                        "eval_time": "12m",
                        "exp_samples": [{"labels": "{}", "value": int(name == fires)}],
                    }
                    for name in names
                ],
            }
        )
    path = tmp_path / "test.yml"
    path.write_text(
        json.dumps({"rule_files": [str(ALERTS)], "evaluation_interval": "1m", "tests": tests})
    )
    done = subprocess.run(
        [tools / "promtool", "test", "rules", path],
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


# A Prometheus.


class Prometheus:
    """One of Debian's, that scrapes a server every 100 ms."""

    def __init__(self, program, place, url):
        target = urllib.parse.urlsplit(url)
        configuration = {
            "global": {"scrape_interval": "100ms", "scrape_timeout": "100ms"},
            "rule_files": [str(ALERTS)],
            "scrape_configs": [
                {"job_name": "vscsi", "static_configs": [{"targets": [target.netloc]}]}
            ],
        }
        (place / "prometheus.yml").write_text(json.dumps(configuration))
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/api/v1"
        self.log = (place / "log").open("wb")
        self.process = subprocess.Popen(
            [
                program,
                f"--config.file={place / 'prometheus.yml'}",
                f"--storage.tsdb.path={place / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=self.log,
            stderr=self.log,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.log.close()

    def ask(self, what, **arguments):
        """Return an answer's data; None if nobody answers yet."""
        try:
            _, text = get(f"{self.url}/{what}?{urllib.parse.urlencode(arguments)}")
        except OSError:
            assert self.process.poll() is None, "prometheus ended"
            return None
        if text.startswith("Service Unavailable"):
            return None
        answer = json.loads(text)
        assert answer["status"] == "success", answer
        return answer["data"]

    def query(self, expression):
        """Return an expression's values now."""
        data = self.ask("query", query=expression)
        return None if data is None else data["result"]


def test_a_prometheus_takes_the_scrapes_and_every_panel_has_an_answer(served, tools, tmp_path):
    panels, rules = expressions()
    with Prometheus(tools / "prometheus", tmp_path, served) as prometheus:
        end = time.monotonic() + HANG_S
        ready = f"count_over_time({LATENCY}_count[1m]) >= 2"
        while not prometheus.query(ready):
            assert time.monotonic() < end, Path(tmp_path, "log").read_text()
        (target,) = prometheus.ask("targets")["activeTargets"]
        assert target["health"] == "up", target["lastError"]
        (group,) = prometheus.ask("rules")["groups"]
        assert len(group["rules"]) == len(rules)
        empty = [each for each in panels if not prometheus.query(filled(each))]
        # Nothing has happened since the first scrape: what is above zero is nothing.
        assert all(each.endswith("> 0") for each in empty)
        for rule in group["rules"]:
            assert prometheus.query(rule["query"]) is not None
        assert len(prometheus.query(f"count by (path) ({LATENCY}_count)")) == 3
