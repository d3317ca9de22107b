# SPDX-License-Identifier: MIT
"""serve: what it says, what it refuses, and how it and its clients survive each other's ends."""

import json
import os
import re
import signal
import subprocess
import sys
import threading

import pytest

import vscsi
from vscsi.domain.base import StoreError
from vscsi.domain.local import connect_store
from vscsi.transport.hba import ScsiError
from vscsi.transport.initiator import TransportError
from vscsi.transport.queues import MAX_QUEUES
from vscsi.wire import cdb as cdbs

PATHS = ("srp", "vscsiif", "blkif")
HANG_S = 60


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(1 << 20))
    return path


@pytest.fixture
def run(tmp_path):
    return tmp_path / "run"


# What it says.


def test_it_says_what_it_serves_and_how_to_look_at_it(cli, start, image, run):
    server = start("serve", image, "null:3G", "--dir", run, "--block-size", 4096)
    shown = "".join(server.output)
    assert f"process {server.process.pid}" in shown
    assert re.search(rf"LUN 0 +{image} +1 MiB +4096-byte blocks +writable", shown)
    assert re.search(r"LUN 1 +null:3G +3 GiB +4096-byte blocks +writable", shown)
    assert all(f"{kind}:{run}" in shown for kind in PATHS)
    example = next(line for line in server.output if line.strip().startswith("vscsi ls"))
    assert cli(*example.split()[1:]).returncode == 0
    assert server.end(signal.SIGTERM) == (0, "")


def test_queues_and_their_cpus_are_asked_for(cli, start, image, run):
    ours = sorted(os.sched_getaffinity(0))
    cpus = f"{ours[0]},{ours[-1]}"
    start("serve", image, "--dir", run, "--queues", MAX_QUEUES, "--cpus", cpus)
    for kind in ("srp", "blkif"):
        with vscsi.connect(f"{kind}:{run}?queues={MAX_QUEUES}") as hba:
            assert hba.parameters()["queues"] == MAX_QUEUES
            assert hba.lun(0).read(0, 1) == bytes(512)
            assert len(hba.initiator.backend_statistics()["queues"]) == MAX_QUEUES
    absent = max(ours) + 1000
    for wrong in (f"{absent}", "0-", "", "x", f"{ours[0]}-{absent}"):
        refused = cli("serve", image, "--dir", f"{run}2", "--cpus", wrong)
        assert refused.returncode == 2
        assert "CPUs" in refused.stderr
    assert cli("serve", image, "--dir", f"{run}2", "--queues", 0).returncode == 2
    assert "queues is 1 to" in cli("ls", f"srp:{run}?queues=0").stderr


def test_for_programs_it_is_one_line(start, image, run):
    server = start("serve", image, "--dir", run, "--read-only", "--json", wait_on="{")
    document = json.loads(server.ready)
    assert document["ready"] is True
    assert document["pid"] == server.process.pid
    assert document["paths"] == [f"{kind}:{run}" for kind in PATHS]
    (unit,) = document["units"]
    assert (unit["lun"], unit["size_bytes"], unit["read_only"]) == (0, 1 << 20, True)
    with vscsi.connect(unit["blkif"]) as hba:
        assert hba.lun(0).capacity().blocks == 2048
    server.process.terminate()
    assert server.process.stdout.read() == b""


def test_readiness_is_told_to_a_descriptor(start, image, run):
    ready, ready_write = os.pipe()
    server = start(
        *("serve", image, "--dir", run, "--ready-fd", ready_write), pass_fds=[ready_write]
    )
    os.close(ready_write)
    with os.fdopen(ready) as pipe:
        assert pipe.read() == f"ready: serving {run}\n"  # and it is closed after that
    assert server.end(signal.SIGTERM) == (0, "")


def test_a_capture_holds_what_crossed(cli, start, image, run, tmp_path):
    capture = tmp_path / "all.pcapng"
    server = start("serve", image, "--dir", run, "--capture", capture)
    assert cli("cdb", f"srp:{run}", "28000000000700000100", "--in", 512).returncode == 0
    assert server.end(signal.SIGINT) == (0, "")
    shown = cli("capture", "show", capture)
    assert shown.returncode == 0, shown.stderr
    assert "READ(10) lba 7 blocks 1" in shown.stdout


# What its options do.


def test_read_only_images_refuse_writes(cli, start, image, run, tmp_path):
    start("serve", image, "--dir", run, "--read-only")
    (tmp_path / "block").write_bytes(b"x" * 512)
    for kind in PATHS:
        done = cli("cdb", f"{kind}:{run}", "2a000000000000000100", "--out", tmp_path / "block")
        assert done.returncode == 1
        assert "DATA PROTECT, WRITE PROTECTED (7/27/00)" in done.stdout
    assert image.read_bytes() == bytes(1 << 20)


def test_workers_and_direct_change_nothing_that_is_seen(start, image, run):
    start("serve", image, "--dir", run, "--workers", 3, "--direct", "--block-size", 4096)
    with vscsi.connect(f"srp:{run}") as hba:
        unit = hba.lun(0)
        unit.write(1, b"\x5a" * 8192)
        assert unit.read(0, 4) == bytes(4096) + b"\x5a" * 8192 + bytes(4096)


@pytest.mark.parametrize("layout", ["x86_64-abi", "x86_32-abi"])
def test_blkif_layout_is_what_an_unnamed_protocol_means(start, image, run, layout):
    """The frontend that publishes none finds out by a probe, as xenvbd did."""
    start("serve", image, "--dir", run, "--blkif-layout", layout)
    with vscsi.connect(f"blkif:{run}?protocol=probe") as hba:
        assert hba.parameters()["layout"] == layout
        hba.lun(0).write(5, b"\xa5" * 512)
    assert image.read_bytes()[5 * 512 : 6 * 512] == b"\xa5" * 512


# How it ends.


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_in_order(start, image, run, number):
    server = start("serve", image, "--dir", run)
    with vscsi.connect(f"srp:{run}") as hba:
        hba.lun(0).write(0, b"\x11" * 512)
        assert server.end(number) == (0, "")
        with pytest.raises(TransportError):
            hba.lun(0).read(0, 1)
    assert image.read_bytes()[:512] == b"\x11" * 512
    assert list(run.iterdir()) == []


def test_hangup_reads_the_sizes_again(start, image, run):
    server = start("serve", image, "null:1M", "--dir", run)
    with vscsi.connect(f"srp:{run}") as hba:
        assert hba.lun(0).capacity().blocks == 2048
        os.truncate(image, 3 << 20)
        server.process.send_signal(signal.SIGHUP)
        line = server.wait_for("vscsi serve: LUN 0", "stderr")
        assert line.endswith(": 1 MiB -> 3 MiB\n")
        reply = hba.command(hba.lun(0), cdbs.build("TEST UNIT READY"))
        sense = reply.decoded_sense
        assert sense is not None
        assert (sense.key, sense.asc, sense.ascq) == (6, 0x2A, 0x09)  # CAPACITY DATA HAS CHANGED
        unit = hba.lun(0)
        assert unit.capacity().blocks == 3 * 2048
        assert unit.read(3 * 2048 - 1, 1) == bytes(512)

        os.truncate(image, 0)
        server.process.send_signal(signal.SIGHUP)
        assert "it is empty" in server.wait_for("vscsi serve:", "stderr")
        with pytest.raises(ScsiError, match="MEDIUM ERROR"):
            unit.read(0, 1)
    assert server.end(signal.SIGTERM) == (0, "")


# What it refuses.

REFUSALS = [
    ("--dir run", "Missing argument 'IMAGE...', or --lio NAME"),
    ("--lio nothing --dir run", "find unit nothing: there is none"),
    ("--lio a --lio-new ramdisk:1M --lio a --dir run", "unit a is named twice"),
    ("--lio a --read-only --dir run", "--read-only goes with IMAGEs alone"),
    ("--lio-new tape:1 --dir run", "'tape:1' is neither file:PATH nor ramdisk:SIZE"),
    ("--lio-new file:missing.img --dir run", "missing.img: no such file"),
    ("disk.img", "Missing option '--dir'"),
    ("missing.img --dir run", "missing.img: No such file or directory"),
    (". --dir run", "neither a regular file nor a block device"),
    ("/dev/null --dir run", "neither a regular file nor a block device"),
    ("empty.img --dir run", "it is empty"),
    ("odd.img --dir run", "1000 bytes are not a whole number of 512-byte blocks"),
    ("blocks.img --dir run --block-size 4096", "not a whole number of 4096-byte blocks"),
    ("disk.img disk.img --dir run", "it is being served already"),
    ("disk.img missing.img --dir run", "missing.img: No such file or directory"),
    ("memory:0 --dir run", "0 bytes are not a whole number"),
    ("memory:999999T --dir run", "too large"),
    ("memory:1X --dir run", "memory:1X: No such file"),
    ("disk.img --dir run --block-size 1000", "'1000' is not one of"),
    ("disk.img --dir run --workers 1000", "not in the range"),
    ("disk.img --dir run --blkif-layout pdp11", "'pdp11' is not one of"),
    ("disk.img --dir odd.img", "is a file"),
    ("disk.img --dir odd.img/run", "odd.img/run: Not a directory"),
    (f"disk.img --dir {'d' * 120}", "bytes, of 107 at most"),
    ("disk.img --dir run --capture no/where", "capture to no/where: No such file or directory"),
    ("disk.img --dir run --capture disk.img", "it is a served image"),
    ("disk.img --dir run --ready-fd 77", "Bad file descriptor"),
    ("disk.img --dir run --ready-fd 1", "not in the range"),
]


@pytest.mark.parametrize(("line", "reason"), REFUSALS, ids=[line for line, _ in REFUSALS])
def test_what_cannot_be_served_is_one_line_and_status_2(cli, image, tmp_path, line, reason):
    for name, size in (("empty.img", 0), ("odd.img", 1000), ("blocks.img", 512 * 9)):
        (tmp_path / name).write_bytes(bytes(size))
    done = cli("serve", *line.split(), cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == "" or "--capture" in line or "--ready-fd" in line
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("vscsi")
    assert reason in done.stderr
    assert list(tmp_path.rglob("socket")) == []
    assert image.read_bytes() == bytes(1 << 20)


def test_a_directory_has_one_server(cli, start, image, run):
    start("serve", image, "--dir", run)
    second = cli("serve", "null:1M", "--dir", run, "--capture", run / "c.pcapng")
    assert second.returncode == 2
    assert second.stderr == (
        f"vscsi: cannot serve {run}: another server uses it; choose another --dir\n"
    )
    assert [path.name for path in run.iterdir()] == ["socket"]
    assert cli("ls", f"srp:{run}").returncode == 0


def test_an_image_has_one_server(cli, start, image, run, tmp_path):
    start("serve", image, "--dir", run)
    second = cli("serve", image, "--dir", tmp_path / "other")
    assert second.returncode == 2
    assert f"lock {image}: it is being served already" in second.stderr
    assert second.stderr.count("\n") == 1
    assert not (tmp_path / "other").exists()


# Clients.


def test_clients_on_all_paths_share_the_disks(cli, start, image, run):
    start("serve", image, "memory:1M", "--dir", run)
    with (
        vscsi.connect(f"srp:{run}") as srp,
        vscsi.connect(f"vscsiif:{run}") as vscsiif,
        vscsi.connect(f"blkif:{run}?disk=1") as blkif,
    ):
        srp.lun(1).write(0, b"\x01" * 512)
        vscsiif.lun(1).write(1, b"\x02" * 512)
        blkif.lun(0).write(2, b"\x03" * 512)
        wanted = b"\x01" * 512 + b"\x02" * 512 + b"\x03" * 512
        for unit in (srp.lun(1), vscsiif.lun(1), blkif.lun(0)):
            assert unit.read(0, 3) == wanted
        done = cli("cdb", f"srp:{run}", "28000000000000000300", "--lun", 1, "--in", 1536, "-r",
                   text=False)  # fmt: skip
        assert done.stdout == wanted


CLIENT = """
import sys, vscsi
with vscsi.connect(sys.argv[1]) as hba:
    hba.lun(0).capacity()
    print("domain", hba.initiator.guest.domain, flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("kind", PATHS)
def test_a_killed_client_is_cleaned_up_after(cli, start, image, run, kind):
    start("serve", image, "--dir", run)
    client = subprocess.Popen(
        [sys.executable, "-c", CLIENT, f"{kind}:{run}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    domain = client.stdout.readline().split()[1]
    assert f"/local/domain/{domain} = " in xenstore_ls(run)
    gone = threading.Event()
    store = connect_store(run)

    def changed(_path):
        try:
            store.read(f"/local/domain/{domain}")
        except StoreError:
            gone.set()

    store.watch(f"/local/domain/{domain}", changed)
    client.kill()
    client.communicate()
    assert gone.wait(HANG_S)
    store.close()
    listing = xenstore_ls(run)
    assert f"/domain/{domain}" not in listing
    assert f"/{domain}/" not in listing.replace("/local/domain/0", "")  # nor at its backends
    assert cli("ls", f"{kind}:{run}").returncode == 0


def xenstore_ls(run):
    """Return what Xen's own tool sees."""
    environment = {**os.environ, "XENSTORED_PATH": str(run / "socket")}
    return subprocess.run(
        ["xenstore-ls", "-f"], env=environment, capture_output=True, text=True, check=True
    ).stdout


def test_after_a_killed_server_the_next_can_start(cli, start, image, run):
    server = start("serve", image, "--dir", run)
    with vscsi.connect(f"srp:{run}") as hba:
        hba.lun(0).write(0, b"\x77" * 512)
        server.end(signal.SIGKILL)
        with pytest.raises(TransportError, match="the server is gone"):
            hba.lun(0).read(0, 1)
    done = cli("ls", f"srp:{run}")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert f"is `vscsi serve IMAGE --dir {run}` running?" in done.stderr
    start("serve", image, "--dir", run)
    with vscsi.connect(f"srp:{run}") as hba:
        assert hba.lun(0).read(0, 1) == b"\x77" * 512


# A full disk.

CHUNK = 128 << 10
FULL = 'mount -t tmpfs -o size=1000k none "$0" && truncate -s 8M "$0/disk.img" && exec "$@"'


def in_small_file_system(place):
    """Return a command prefix: what follows sees a file system of 1000 KiB at `place`, alone."""
    unshare = ["unshare", "--map-root-user", "--mount"]
    if subprocess.run([*unshare, "mount", "-t", "tmpfs", "none", place], check=False).returncode:
        pytest.skip("this kernel lets nobody mount in a namespace of their own")
    return [*unshare, "sh", "-c", FULL, place]


def test_a_full_disk_has_its_own_sense_and_keeps_what_it_acknowledged(cli, start, run, tmp_path):
    place = tmp_path / "small"
    place.mkdir()
    start("serve", place / "disk.img", "--dir", run, prefix=in_small_file_system(place))
    for kind in PATHS:
        with vscsi.connect(f"{kind}:{run}") as hba:
            unit = hba.lun(0)
            unit.unmap(0, unit.capacity().blocks)
            acknowledged = write_until_refused(unit)
            assert 0 < len(acknowledged) < 8  # 1 MiB would be 8
            for lba, data in acknowledged.items():
                assert unit.read(lba, CHUNK // 512) == data
    (tmp_path / "block").write_bytes(b"y" * 4096)
    done = cli("cdb", f"srp:{run}", "2a000000380000000800", "--out", tmp_path / "block")
    assert done.returncode == 1
    assert "DATA PROTECT, SPACE ALLOCATION FAILED WRITE PROTECT (7/27/07)" in done.stdout


def write_until_refused(unit):
    """Write chunks one after the other; return the acknowledged ones by LBA."""
    acknowledged = {}
    for lba in range(0, unit.capacity().blocks, CHUNK // 512):
        data = bytes([lba // 256 % 255 + 1]) * CHUNK
        try:
            unit.write(lba, data)
        except ScsiError as error:
            sense = error.reply.decoded_sense
            # blkif's answer has no room for a reason.
            assert (sense.key, sense.asc, sense.ascq) in ((7, 0x27, 0x07), (3, 0x0C, 0x00))
            return acknowledged
        acknowledged[lba] = data
    raise AssertionError("nothing was refused")
