# SPDX-License-Identifier: MIT
"""`vscsi bench` as it is typed: consent, words, table, JSON, exit status."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from vscsi.bench import machine
from vscsi.bench.workload import MODES
from vscsi.cli.bench import bench
from vscsi.target.disk import Disk
from vscsi.target.stores.memory import MemoryStore
from vscsi.transport.export import Export

DOCUMENT = Path(__file__).parents[2] / "docs" / "bench.md"
SHORT = ("--runtime", "0.02", "--rounds", "2", "--ramp-time", "0.005")
MAIN = (sys.executable, "-c", "from vscsi.cli.main import main; main()")


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(bench, [*arguments, *SHORT])


@pytest.mark.parametrize("mode", [mode for mode in MODES if not mode.endswith("read")])
def test_a_workload_that_writes_needs_consent_before_anything_is_opened(
    mode: str, served: Path, store
) -> None:
    result = invoke(f"srp:{served}", "--rw", mode)
    assert result.exit_code == 2
    assert "--yes-overwrite" in result.output
    assert store.asked == []
    assert invoke(f"srp:{served}", "--rw", mode, "--yes-overwrite").exit_code == 0
    assert any(what == "write" for what, _, _ in store.asked)


@pytest.mark.parametrize("mode", ["read", "randread"])
def test_a_workload_that_reads_needs_none_and_writes_nothing(mode: str, served: Path, store):
    assert invoke(f"blkif:{served}", "--rw", mode, "--yes-overwrite").exit_code == 0
    assert {what for what, _, _ in store.asked} == {"read"}


def test_the_help_says_that_data_is_destroyed() -> None:
    text = " ".join(CliRunner().invoke(bench, ["--help"]).output.split())
    assert "All but read and randread overwrite what is there: see --yes-overwrite." in text
    assert "Agree that data on all PATHs (and in the --limit FILE) is destroyed." in text


def test_sizes_are_fios() -> None:
    result = invoke("call:memory:1M", "--bs", "8K", "--offset", "64k", "--json", "-")
    workload = json.loads(result.output)["workload"]
    assert workload["block_bytes"] == 8192
    assert (workload["offset_bytes"], workload["size_bytes"]) == (65536, (1 << 20) - 65536)


def test_the_table_names_every_path_the_machine_and_what_was_negotiated(
    served: Path, tmp_path: Path
) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    result = invoke(
        f"srp:{served}", f"vscsiif:{served}", "call:memory:1M", "--limit", str(image), "--iodepth",
        "32", "--rw", "randrw", "--rwmixread", "25", "--yes-overwrite",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert "randrw, blocks of 4096, depth 32, 25 % reads; 2 rounds of 0.01 s" in lines[0]
    heads = f"srp:{served} vscsiif:{served} call:memory:1M preadv:{image}"
    assert lines[1].split() == heads.split()
    rows = {line[:24].strip(): line[24:].split() for line in lines[3:] if line.strip()}
    assert rows["effective depth"][1:] == ["15", "1", "1"]
    assert rows["request limit"] == ["60", "-", "-", "-"]
    assert rows["errors"] == ["0"] * 4
    assert rows["backend CPU us/cmd"][2:] == ["-", "-"]
    assert all(int(number.replace(",", "")) > 0 for number in rows["operations"])
    assert machine.describe()["python"] in lines[-1]


def keys_of(value: object) -> set[str]:
    """Return all keys of a JSON value, but those that are data (parameters, reasons)."""
    if isinstance(value, list):
        return set().union(*map(keys_of, value))
    if not isinstance(value, dict):
        return set()
    inner = (keys_of(each) for key, each in value.items() if key not in ("parameters", "errors"))
    return set(value).union(*inner)


def test_the_json_has_the_documented_keys_and_no_others(served: Path, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    paths = [f"{ring}:{served}" for ring in ("srp", "vscsiif", "blkif")]
    result = invoke(
        *paths, "--limit", str(image), "--rw", "rw", "--yes-overwrite", "--json", "-"
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    told = json.loads(result.output)
    section = DOCUMENT.read_text().partition("## JSON")[2].partition("## From")[0]
    documented = set(re.findall(r"`([a-z0-9_.]+)`", section)) | {"median", "low", "high"}
    assert keys_of(told) == documented
    assert (told["format"], told["version"]) == ("vscsi-bench", 1)
    assert told["machine"] == machine.describe() | {"load_average": told["machine"]["load_average"]}
    assert told["workload"]["size_bytes"] == 1 << 20
    assert [path["path"] for path in told["paths"]] == [*paths, f"preadv:{image}"]
    for path in told["paths"]:
        assert path["operations"] == path["reads"] + path["writes"]
        assert path["operations"] == sum(each["operations"] for each in path["rounds"])
        assert len(path["rounds"]) == 2
        spread = path["operations_per_s"]
        assert 0 < spread["low"] <= spread["median"] <= spread["high"]
        latency = path["latency_us"]["all"]
        ranks = [latency[key] for key in ("min", "p50", "p90", "p99", "p99.9", "max")]
        assert ranks == sorted(ranks)
        assert path["failure"] is None
        assert path["errors"] == {}


def test_the_json_file_is_replaced_and_the_table_is_shown_too(served: Path, tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    out.write_text("x" * 100_000)
    result = invoke(f"srp:{served}", "--json", str(out))
    assert "operations/s" in result.output
    assert json.loads(out.read_text())["paths"][0]["path"] == f"srp:{served}"


def test_failed_commands_are_shown_and_make_the_exit_status_1(served: Path, store) -> None:
    store.bad_offsets = set(range(0, 1 << 20, 8192))
    result = invoke(f"srp:{served}", "--rw", "read")
    assert result.exit_code == 1
    assert re.search(r"^errors +[1-9]", result.output, re.MULTILINE)
    assert re.search(
        rf"^vscsi bench: srp:{served}: \d+ commands failed, as in: MEDIUM ERROR",
        result.output,
        re.MULTILINE,
    )


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*MAIN, "bench", *arguments, *SHORT],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["srp:{dir}/nobody"], "{dir}/nobody"),
        (["call:memory:1M", "call:{dir}/nothing"], "{dir}/nothing"),
        (["call:memory:1M", "--lun", "3"], "LOGICAL UNIT NOT SUPPORTED"),
        (["lio:nothing"], "find unit nothing: there is none"),
        (["call:memory:1M", "sg:{dir}/sg0"], "open {dir}/sg0: No such file"),
        (["sg:/dev/null"], "open /dev/null: Inappropriate ioctl for device"),
        (["call:memory:1M", "--limit", "{dir}"], "neither a regular file"),
        (["call:memory:1M", "--json", "{dir}/no/file"], "No such file"),
        (["call:memory:1M", "--size", "4kb"], "is no size"),
        (["call:memory:1M", "--size", "2M"], "it has 1048576 bytes"),
        (["call:memory:1M", "--rw", "trim"], "trim"),
        (["call:memory:1M", "--rwmixread", "10"], "goes with rw and randrw"),
        (["call:memory:1M", "--iodepth", "0"], "--iodepth"),
        (["call:memory:1M", "--rate", "0"], "--rate"),
        (["call:memory:1M", "--rate", "10"], "needs a ring"),
        (["call:memory:1M", "--rate", "10", "--limit", "{dir}"], "not with --rate"),
        (["call:memory:1M", "--load", "rust"], "--load"),
        (["nonsense"], "nonsense"),
        ([], "PATH"),
    ],
)
def test_what_cannot_begin_ends_in_one_line_and_status_2(
    tmp_path: Path, arguments: list[str], words: str
) -> None:
    result = run(*(argument.replace("{dir}", str(tmp_path)) for argument in arguments))
    assert result.returncode == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert words.replace("{dir}", str(tmp_path)) in line


@pytest.mark.parametrize("generator", ["native", "python"])
def test_the_load_of_a_ring_is_generated_where_the_user_says(served: Path, generator: str) -> None:
    paths = (f"srp:{served}", "call:memory:1M")
    result = invoke(*paths, "--load", generator, "--json", "-")
    ring, call = json.loads(result.output)["paths"]
    assert ring["parameters"].get("load") == {"native": "native", "python": None}[generator]
    assert call["parameters"] == {}
    assert ring["late"] is ring["unsent"] is None


def test_with_a_rate_the_table_tells_what_was_late(served: Path, store) -> None:
    """A million commands a second, from a store in Python: most stay unsent."""
    paths = (f"srp:{served}", f"blkif:{served}")
    result = invoke(*paths, "--rate", "1000000", "--iodepth", "4")
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert "randread, blocks of 4096, depth 4, 1,000,000 commands/s; 2 rounds" in lines[0]
    rows = {line[:24].strip(): line[24:].split() for line in lines[3:] if line.strip()}
    unsent, sent = (
        [int(number.replace(",", "")) for number in rows[row]] for row in ("unsent", "operations")
    )
    for left, done in zip(unsent, sent, strict=True):
        assert left > 0
        assert left + done == 20_000
    result = invoke(*paths, "--rate", "1000000", "--json", "-")
    told = json.loads(result.output)
    assert told["workload"]["rate_per_s"] == 1_000_000
    for path in told["paths"]:
        assert path["unsent"] == sum(turn["unsent"] for turn in path["rounds"]) > 0
        assert path["late"] == sum(turn["late"] for turn in path["rounds"])


def test_a_cpu_that_is_not_ours_is_refused(served: Path) -> None:
    result = invoke(f"srp:{served}", "--pin", "4096")
    assert result.exit_code != 0
    assert "CPU 4096 is not ours" in f"{result.output}{result.exception}"


@pytest.mark.parametrize("ring", ["srp", "vscsiif", "blkif"])
def test_lun_names_the_same_disk_over_every_ring(tmp_path: Path, ring: str) -> None:
    stores = [MemoryStore(1 << 20), MemoryStore(1 << 20)]
    export = Export(tmp_path / "run", {number: Disk(each) for number, each in enumerate(stores)})
    export.start()
    result = invoke(f"{ring}:{tmp_path}/run", "--lun", "1", "--rw", "write", "--yes-overwrite")
    export.stop()
    assert result.exit_code == 0, result.output
    block = memoryview(bytearray(4096))
    stores[0].readv(0, [block])
    assert not any(block)
    stores[1].readv(0, [block])
    assert any(block)


def start_on_terminal(*arguments: str) -> tuple[subprocess.Popen[bytes], int]:
    """Start the bench with a terminal for standard error; return it and the terminal's end."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*MAIN, "bench", *arguments, "--json", "-"],
        stdout=subprocess.PIPE,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "200"},
    )
    os.close(theirs)
    return process, ours


def read_terminal(terminal: int, until: bytes | None = None) -> bytes:
    """Return what is shown until some words or the end."""
    shown = b""
    try:
        while (until is None or until not in shown) and (part := os.read(terminal, 4096)):
            shown += part
    except OSError:  # EIO: the other end is closed
        pass
    return shown


def test_progress_is_silent_without_a_terminal_and_shown_on_one() -> None:
    quiet = run("call:memory:1M", "--json", "-")
    assert (quiet.returncode, quiet.stderr) == (0, "")
    process, terminal = start_on_terminal("call:memory:1M", *SHORT)
    shown = read_terminal(terminal)
    os.close(terminal)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert json.loads(out)["format"] == "vscsi-bench"
    assert b"call:memory:1M" in shown


@pytest.mark.parametrize("kind", ["srp", "vscsiif", "blkif", "call"])
def test_an_interrupt_ends_it_at_once_and_cleanly(served: Path, kind: str) -> None:
    path = "call:memory:1M" if kind == "call" else f"{kind}:{served}"
    process, terminal = start_on_terminal(path, "--runtime", "1000", "--iodepth", "8")
    shown = read_terminal(terminal, until=path.encode())
    process.send_signal(signal.SIGINT)
    shown += read_terminal(terminal)
    os.close(terminal)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130, shown.decode()
    assert out == b""
    assert b"Traceback" not in shown


def test_the_cpu_model_is_read_where_the_kernel_tells_it(tmp_path: Path) -> None:
    told = tmp_path / "cpuinfo"
    told.write_text("processor\t: 0\nmodel name\t: A Processor @ 1 GHz\nmodel name\t: B\n")
    assert machine.cpu_model(told) == "A Processor @ 1 GHz"
    assert machine.cpu_model(tmp_path / "missing") == ""
    assert machine.describe(tmp_path / "missing")["cpu"]
