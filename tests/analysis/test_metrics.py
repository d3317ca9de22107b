# SPDX-License-Identifier: MIT
"""vscsi serve --metrics: the numbers against a capture of the same traffic, the rules of
OpenMetrics by the official parser, and what a hostile guest or client can make of it.
"""

import contextlib
import http.client
import importlib.metadata
import json
import os
import re
import socket
import subprocess
import time
import urllib.parse
from collections import Counter

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.parser import text_string_to_metric_families as parse_old

import vscsi
from vscsi.target.base import Function
from vscsi.wire.cdb import build, lookup
from vscsi.wire.opcodes import COMMANDS, DeviceType
from vscsi.wire.sense import SenseKey

PATHS = ("srp", "vscsiif", "blkif")
HANG_S = 60
MIB = 1 << 20
TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"


@pytest.fixture
def run(tmp_path):
    return tmp_path / "run"


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(8 * MIB))
    return path


@pytest.fixture
def serve(start, run):
    """Start a server with metrics; returns it and their URL."""

    def make(*arguments, address="127.0.0.1:0"):
        server = start("serve", *arguments, "--dir", run, "--metrics", address)
        (line,) = (line for line in server.output if line.startswith("  metrics  "))
        return server, line.split()[1]

    return make


def get(url, accept=None):
    """Return content type and text."""
    headers = {} if accept is None else {"Accept": accept}
    address = urllib.parse.urlsplit(url)
    server = http.client.HTTPConnection(address.hostname, address.port, timeout=HANG_S)
    with contextlib.closing(server):
        server.request("GET", f"{address.path}?{address.query}", headers=headers)
        answer = server.getresponse()
        return answer.headers["Content-Type"], answer.read().decode()


def samples(text):
    """Return every sample by name and labels; what breaks a rule of OpenMetrics raises."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in found, "a sample twice"
            found[key] = sample.value
    return found


def scrape(url):
    return samples(get(url)[1])


def select(found, name, *wanted, **labels):
    """Return values by the values of the wanted labels, of samples that have the others."""
    result = {}
    for (each, pairs), value in found.items():
        known = dict(pairs)
        if each == name and labels.items() <= known.items():
            result[tuple(known[label] for label in wanted)] = value
    return result


def sums(found, name, wanted, **labels):
    """Return the sums of values by one label's values."""
    told = Counter()
    for (each, pairs), value in found.items():
        known = dict(pairs)
        if each == name and labels.items() <= known.items():
            told[known[wanted]] += value
    return told


def eventually(attempt):
    """Return the first true value of an attempt; what is counted is so after it is answered."""
    end = time.monotonic() + HANG_S
    while not (value := attempt()):
        assert time.monotonic() < end, "it does not come about"
    return value


# The numbers.

BLKIF_OPCODES = {"FLUSH DISKCACHE": "FLUSH_DISKCACHE", "INDIRECT READ": "READ"}


def captured(cli, capture):
    """Return the commands of a capture, told by `vscsi capture show`."""
    shown = cli("capture", "show", "--json", capture)
    assert shown.returncode == 0, shown.stderr
    lines = [json.loads(line) for line in shown.stdout.splitlines()]
    return [line for line in lines if line["kind"] == "command"]


def opcode(command):
    """Return the label that a captured command has."""
    if command["cdb"] is not None:
        row = lookup(bytes.fromhex(command["cdb"]))
        return row.name if row is not None else "other"
    words = re.match(r"[A-Z ]+(?= sector)", command["request"])[0]
    return BLKIF_OPCODES.get(words, words.replace("INDIRECT ", ""))


def commands_by(found, path):
    """Return how many commands are counted, by guest, LUN and opcode."""
    wanted = ("guest", "lun", "opcode")
    counts = select(found, "vscsi_command_latency_seconds_count", *wanted, path=path)
    return Counter({key: int(count) for key, count in counts.items()})


LOAD = [
    *(f"read {at}k 4k" for at in range(0, 400, 8)),
    *(f"write -P 7 {at}k 16k" for at in range(0, 400, 16)),
    *("write -z 1M 64k", "discard 2M 128k", "flush", "read 4M 1M"),
]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("options", [(), ("--workers", "2"), ("--queues", "2")])
def test_every_command_that_was_captured_is_counted_once(
    cli, start, serve, run, image, tmp_path, path, options
):
    """A load by a real program through NBD: what C executes, and what Python does."""
    capture, socket_path = tmp_path / "all.pcapng", tmp_path / "nbd.sock"
    _, url = serve(image, "memory:1M", "--capture", capture, *options)
    url_of_path = f"{path}:{run}{'?queues=2' if options[:1] == ('--queues',) else ''}"
    if path == "vscsiif":
        url_of_path = f"{path}:{run}"
    start("nbd", url_of_path, "--socket", socket_path)
    load = [argument for each in LOAD for argument in ("-c", each)]
    subprocess.run(
        ["qemu-io", "-f", "raw", *load, f"nbd+unix:///?socket={socket_path}"],
        check=True,
        stdout=subprocess.DEVNULL,
        timeout=HANG_S,
    )

    def compare():
        exchanges = [each for each in captured(cli, capture) if each["path"] == path]
        lun = {"blkif": "0"}.get(path)
        keys = [
            (str(each["domain"]), lun or each["lun"].rpartition(":")[2], opcode(each))
            for each in exchanges
        ]
        found = scrape(url)
        present = {guest for guest, _, _ in commands_by(found, path)}
        told = Counter(key for key in keys if key[0] in present)
        return told == commands_by(found, path) and told.total() >= len(LOAD) and (found, exchanges)

    found, exchanges = eventually(compare)
    present = {guest for guest, _, _ in commands_by(found, path)}
    exchanges = [each for each in exchanges if str(each["domain"]) in present]
    moved = Counter()
    for each in exchanges:
        if re.match(r"(INDIRECT )?(READ|WRITE)( SAME)?(\(\d+\))? (lba|sector)", each["request"]):
            moved[opcode(each)] += each["bytes"]
    assert sums(found, "vscsi_command_size_bytes_sum", "opcode", path=path) == +moved
    failed = Counter(each["sense"]["key"] for each in exchanges if each["sense"])
    told = +sums(found, "vscsi_commands_failed_total", "sense_key", path=path)
    assert {SenseKey[key]: count for key, count in told.items()} == failed
    longest = select(
        found, "vscsi_command_latency_max_seconds", "guest", "lun", "opcode", path=path
    )
    assert longest.keys() == commands_by(found, path).keys()
    assert all(value > 0 for value in longest.values())


@pytest.mark.parametrize("path", ["srp", "vscsiif"])
def test_what_a_guest_makes_up_makes_no_labels(serve, run, image, path):
    """Opcodes that nobody knows, and logical units that there are not."""
    _, url = serve(image)
    known = {row.name for row in COMMANDS[DeviceType.DISK]} | {
        row.name for rows in COMMANDS.values() for row in rows
    }
    with vscsi.connect(f"{path}:{run}") as hba:
        for number in range(256):
            hba.command(hba.lun(0), bytes([number]).ljust(16, b"\0"))
        if path == "srp":
            for number in range(300):
                hba.command(hba.lun(number), build("TEST UNIT READY"))

        def all_there():
            found = scrape(url)
            return commands_by(found, path).total() >= 256 + 300 * (path == "srp") and found

        found = eventually(all_there)
    luns = {lun for _, lun, _ in commands_by(found, path)}
    assert luns == ({"0", "other"} if path == "srp" else {"0"})
    names = {name for _, _, name in commands_by(found, path)}
    assert "other" in names
    assert names <= known | {"other"}
    buckets = select(found, "vscsi_command_latency_seconds_bucket", "lun", "opcode", "le")
    assert len(buckets) == len(commands_by(found, path)) * 23


def test_errors_are_counted_by_status_and_sense_key(serve, run, image):
    _, url = serve(image, "--read-only")
    end = 8 * MIB // 512
    with vscsi.connect(f"srp:{run}") as hba, vscsi.connect(f"blkif:{run}") as disk:
        unit = hba.lun(0)
        hba.command(unit, build("TEST UNIT READY"))  # POWER ON OCCURRED
        for _ in range(3):
            hba.command(unit, build("READ(10)", lba=end, blocks=1), data_in=512)
        hba.command(unit, build("WRITE(10)", blocks=1), data_out=bytes(512))
        assert disk.lun(0).read(0, 1) == bytes(512)

        def failures():
            wanted = ("status", "sense_key")
            return +Counter(select(scrape(url), "vscsi_commands_failed_total", *wanted))

        expected = {
            ("CHECK_CONDITION", "UNIT_ATTENTION"): 1,
            ("CHECK_CONDITION", "ILLEGAL_REQUEST"): 3,
            ("CHECK_CONDITION", "DATA_PROTECT"): 1,
        }
        eventually(lambda: failures() == expected)


def test_resets_are_counted_and_so_is_what_is_aborted(serve, run, image):
    _, url = serve(image)
    with vscsi.connect(f"srp:{run}") as hba, vscsi.connect(f"vscsiif:{run}") as other:
        hba.manage(hba.lun(0), Function.LOGICAL_UNIT_RESET)
        hba.manage(hba.lun(7), Function.ABORT_TASK_SET)
        other.manage(other.lun(0), Function.LOGICAL_UNIT_RESET)
        wanted = ("path", "function", "response")
        expected = {
            ("srp", "LOGICAL_UNIT_RESET", "FUNCTION_COMPLETE"): 1,
            ("srp", "ABORT_TASK_SET", "INCORRECT_LOGICAL_UNIT"): 1,
            ("vscsiif", "LOGICAL_UNIT_RESET", "FUNCTION_COMPLETE"): 1,
        }
        eventually(
            lambda: (
                +Counter(select(scrape(url), "vscsi_task_management_total", *wanted)) == expected
            )
        )


def test_a_guest_that_has_gone_is_shown_no_more(serve, run, image):
    _, url = serve(image)
    with vscsi.connect(f"srp:{run}") as hba:
        hba.lun(0).read(0, 1)
        found = eventually(lambda: commands_by(scrape(url), "srp") and scrape(url))
        assert select(found, "vscsi_guests") == {(): 1}
        assert sum(select(found, "vscsi_rings", "path").values()) == 1
        assert ("srp",) in select(found, "vscsi_commands_in_flight_max", "path")
    eventually(lambda: not any("guest" in dict(labels) for _, labels in scrape(url)))
    assert select(scrape(url), "vscsi_guests") == {(): 0}


def test_what_is_served_is_told(serve, image):
    _, url = serve(image, "null:1G", "--block-size", "4096")
    found = scrape(url)
    told = select(found, "vscsi_unit_info", "lun", "name", "type")
    assert set(told) == {("0", str(image), "disk"), ("1", "null:1G", "disk")}
    assert select(found, "vscsi_unit_size_bytes", "lun") == {("0",): 8 * MIB, ("1",): 1 << 30}
    assert set(select(found, "vscsi_build_info", "version")) == {(vscsi_version(),)}
    assert select(found, "process_resident_memory_bytes")[()] > 0


def vscsi_version():
    """Return the installed version."""
    return importlib.metadata.version("vscsi")


# The command line.


@pytest.mark.parametrize(
    ("given", "where"),
    [
        ("127.0.0.1:0", r"http://127\.0\.0\.1:[1-9]\d*/metrics"),
        ("0", r"http://127\.0\.0\.1:[1-9]\d*/metrics"),
        ("[::1]:0", r"http://\[::1\]:[1-9]\d*/metrics"),
    ],
)
def test_the_address_that_was_taken_is_told(serve, image, given, where):
    _, url = serve(image, address=given)
    assert re.fullmatch(where, url)
    assert select(scrape(url), "vscsi_guests") == {(): 0}


def test_for_programs_the_address_is_in_the_line(start, image, run):
    server = start(*("serve", image, "--dir", run, "--metrics", "0", "--json"), wait_on="{")
    assert scrape(json.loads(server.ready)["metrics"])


@pytest.mark.parametrize(
    "given", ["", "localhost:9100", "127.0.0.1", "::1:9100", "[::1]", "127.0.0.1:65536", "a:b:c"]
)
def test_what_is_no_address_is_refused_in_one_line(cli, image, run, given):
    done = cli("serve", image, "--dir", run, "--metrics", given)
    assert done.returncode == 2
    assert re.fullmatch(r"vscsi serve: .*--metrics.*\n", done.stderr)
    assert not run.exists()


def test_a_port_that_is_taken_is_told_in_one_line(cli, image, run):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = cli("serve", image, "--dir", run, "--metrics", f"127.0.0.1:{port}")
    assert done.returncode == 2
    assert re.fullmatch(
        rf"vscsi: .*127\.0\.0\.1 port {port}: Address already in use; .*\n", done.stderr
    )


@pytest.mark.parametrize("given", ["192.0.2.1:0", "999.1.1.1:0"])
def test_an_address_that_is_not_here_is_told_in_one_line(cli, image, run, given):
    done = cli("serve", image, "--dir", run, "--metrics", given)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


def test_without_the_library_the_line_names_the_extra(cli, image, run, tmp_path):
    stub = tmp_path / "prometheus_client.py"
    stub.write_text("raise ModuleNotFoundError('no such thing', name='prometheus_client')\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = cli("serve", image, "--dir", run, "--metrics", "0", env=environment)
    assert done.returncode == 2
    expected = (
        "vscsi: serve --metrics: no Python module prometheus_client; pip install 'vscsi[metrics]'\n"
    )
    assert done.stderr == expected


def test_metrics_need_histograms(cli, image, run):
    done = cli("serve", image, "--dir", run, "--metrics", "0", "--no-histograms")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


# What is asked.


def test_the_form_is_openmetrics_unless_only_the_old_one_is_taken(serve, image):
    _, url = serve(image)
    assert get(url)[0] == OPENMETRICS
    assert get(url, "*/*")[0] == OPENMETRICS
    prometheus = (
        "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
    )
    kind, text = get(url, prometheus)
    assert kind == OPENMETRICS
    assert text.endswith("# EOF\n")
    kind, text = get(url, "text/plain")
    assert kind == TEXT
    assert {family.name for family in parse_old(text)} >= {"vscsi_guests", "vscsi_build_info"}
