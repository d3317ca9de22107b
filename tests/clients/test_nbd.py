# SPDX-License-Identifier: MIT
"""Real programs on `vscsi nbd`: qemu-img, qemu-io, nbdcopy, nbdinfo and fio, over every path."""

import hashlib
import json
import os
import shlex
import signal
import socket
import subprocess
import threading

import pytest

from vscsi.domain.base import StoreError
from vscsi.domain.local import connect_store

PATHS = ("srp", "vscsiif", "blkif")
HANG_S = 60
MIB = 1 << 20


class Served:
    """One server: LUN 0 an image, LUN 1 another, both files."""

    def __init__(self, cli, start, home, *options, **how):
        self.cli = cli
        self.home = home
        self.run = home / "run"
        self.images = [home / "a.img", home / "b.img"]
        for image in self.images:
            image.write_bytes(hashlib.shake_128(image.name.encode()).digest(8 * MIB))
        self.server = start("serve", *self.images, "--dir", self.run, *options, **how)

    def on(self, kind, command, lun=0, *options):
        """Run a command on the device; its output if it succeeds."""
        done = self.fails_on(kind, command, lun, *options)
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout

    def fails_on(self, kind, command, lun=0, *options):
        """Run a command on the device, whatever comes of it."""
        path = f"{kind}:{self.run}"
        return self.cli("nbd", path, "--lun", lun, "--run", command, *options, cwd=self.home)


@pytest.fixture(scope="module")
def servers(cli, start, tmp_path_factory):
    """A server with 512-byte blocks, and one with 4096-byte blocks."""
    homes = {block: tmp_path_factory.mktemp(f"nbd-{block}") for block in (512, 4096)}
    return {
        block: Served(cli, start, home, "--block-size", block, "--workers", 2)
        for block, home in homes.items()
    }


@pytest.fixture
def served(servers):
    return servers[512]


EACH_PATH = pytest.mark.parametrize(
    ("kind", "block"), [("srp", 512), ("vscsiif", 4096), ("blkif", 512)]
)


def qemu_io(*commands):
    """Return a command line with which qemu-io checks what it does."""
    return " ".join(["qemu-io -f raw", *(f"-c {shlex.quote(each)}" for each in commands), '"$uri"'])


@EACH_PATH
def test_nbdinfo_sees_what_the_unit_can(servers, kind, block):
    served = servers[block]
    (export,) = json.loads(served.on(kind, 'nbdinfo --no-content --json "$uri"'))["exports"]
    assert export["export-size"] == 8 * MIB
    for ability in ("can_flush", "can_fua", "can_multi_conn", "can_trim", "can_zero"):
        assert export[ability] is True, ability
    assert export["is_read_only"] is False
    assert export["block_size_minimum"] == 1  # unaligned requests are taken


@EACH_PATH
@pytest.mark.parametrize(
    "copy", ['nbdcopy "$uri" out.img', 'qemu-img convert -f raw -O raw "$uri" out.img']
)
def test_an_image_copied_out_is_the_image(servers, kind, block, copy):
    served = servers[block]
    served.on(kind, copy, 1)
    assert (served.home / "out.img").read_bytes() == served.images[1].read_bytes()


@EACH_PATH
@pytest.mark.parametrize(
    "copy", ['nbdcopy --flush in.img "$uri"', 'qemu-img convert -n -f raw -O raw in.img "$uri"']
)
def test_an_image_copied_in_is_the_image(servers, kind, block, copy):
    """Half of it zeros, so that what writes zeros in other ways than as data does so."""
    served = servers[block]
    content = hashlib.shake_128((kind + copy).encode()).digest(4 * MIB) + bytes(4 * MIB)
    (served.home / "in.img").write_bytes(content)
    served.on(kind, copy)
    assert served.images[0].read_bytes() == content


@pytest.mark.parametrize("block", [512, 4096])
@pytest.mark.parametrize("kind", PATHS)
def test_unaligned_requests_touch_nothing_beside_them(servers, kind, block):
    served = servers[block]
    shown = served.on(
        kind,
        qemu_io(
            "write -P 0x11 0 64k",
            "write -P 0x22 1000 5000",
            "read -P 0x11 0 1000",
            "read -P 0x22 1000 5000",
            "read -P 0x11 6000 10000",
            "write -P 0x33 8191 2",
            "read -P 0x33 8191 2",
            "read -P 0x11 8193 1000",
            "write -P 0x44 65537 1",
            "flush",
        ),
    )
    assert "Pattern verification failed" not in shown
    content = served.images[0].read_bytes()
    expected = bytearray(b"\x11" * 65536)
    expected[1000:6000] = b"\x22" * 5000
    expected[8191:8193] = b"\x33" * 2
    assert content[:65536] == expected
    assert content[65537] == 0x44


@EACH_PATH
def test_requests_beyond_the_longest_transfer_are_split(servers, kind, block):
    served = servers[block]
    shown = served.on(
        kind, qemu_io("write -P 0x5a 4k 7M", "read -P 0x5a 4k 7M", "read -P 0x5a 1M 1025k")
    )
    assert "Pattern verification failed" not in shown
    assert served.images[0].read_bytes()[4096 : 4096 + 7 * MIB] == b"\x5a" * (7 * MIB)


@EACH_PATH
def test_zeros_are_written_and_discarded_blocks_given_back(servers, kind, block):
    served = servers[block]
    served.on(kind, qemu_io("write -P 0x66 0 8M", "write -z 512 1M", "write -z 3000000 100"))
    content = served.images[0].read_bytes()
    assert content[512 : 512 + MIB] == bytes(MIB)
    assert content[3000000:3000100] == bytes(100)
    assert content.count(0x66) == 8 * MIB - MIB - 100
    before = served.images[0].stat().st_blocks
    served.on(kind, qemu_io("discard 4M 2M"))
    assert served.images[0].stat().st_blocks <= before - (2 * MIB) // 512
    assert served.images[0].read_bytes()[4 * MIB : 6 * MIB] == bytes(2 * MIB)


@EACH_PATH
def test_many_requests_in_flight_all_land(servers, kind, block):
    """fio writes blocks of many sizes in random order, then reads each and checks its checksum."""
    served = servers[block]
    served.on(
        kind,
        'fio --name=check --ioengine=nbd --uri="$uri" --rw=randwrite --bsrange=512-128k '
        "--iodepth=16 --size=8M --verify=crc32c --do_verify=1 --verify_fatal=1",
    )


def test_an_image_without_any_ring_is_a_device_too(cli, tmp_path):
    """Where there is no ring there is no second channel for small requests."""
    image = tmp_path / "alone.img"
    image.write_bytes(bytes(MIB))
    done = cli(
        "nbd",
        f"call:{image}",
        "--run",
        qemu_io("write -P 7 4096 8192", "read -P 7 4096 8192", "read -P 0 0 4096"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert image.read_bytes()[4096:12288] == b"\x07" * 8192


def test_flush_and_fua_cross_as_such(cli, start, tmp_path):
    served = Served(cli, start, tmp_path, "--capture", tmp_path / "all.pcapng")
    served.on("srp", qemu_io("write -f -P 1 0 3M", "flush"))
    served.server.end(signal.SIGTERM)
    shown = cli("capture", "show", tmp_path / "all.pcapng").stdout
    writes = [line for line in shown.splitlines() if "WRITE(16)" in line]
    assert len(writes) == 3  # of 1 MiB each
    assert all("blocks 2048 FUA" in line for line in writes)
    assert "SYNCHRONIZE CACHE(16)" in shown


def test_a_read_only_unit_is_a_read_only_device(cli, start, tmp_path):
    served = Served(cli, start, tmp_path, "--read-only")
    for kind in PATHS:
        assert json.loads(served.on(kind, 'nbdinfo --no-content --json "$uri"'))["exports"][0][
            "is_read_only"
        ]
        assert served.fails_on(kind, qemu_io("write 0 512")).returncode != 0


def test_a_writable_unit_can_be_exported_read_only(served):
    shown = served.on("srp", 'nbdinfo --no-content --json "$uri"', 0, "--read-only")
    assert json.loads(shown)["exports"][0]["is_read_only"] is True


# Errors from below.


def test_an_unreadable_place_is_eio_and_the_rest_reads_on(cli, start, tmp_path):
    served = Served(cli, start, tmp_path)
    os.truncate(served.images[0], 4 * MIB)
    for kind in PATHS:
        done = served.fails_on(kind, qemu_io("read 6M 4k", "read 0 4M"))
        assert "read failed: Input/output error" in done.stdout + done.stderr
        assert "read 4194304/4194304" in done.stdout
        assert "Traceback" not in done.stderr


FULL = 'mount -t tmpfs -o size=1000k none "$0" && truncate -s 8M "$0/disk.img" && exec "$@"'


def test_a_full_disk_is_enospc(cli, start, tmp_path):
    place = tmp_path / "small"
    place.mkdir()
    unshare = ["unshare", "--map-root-user", "--mount"]
    if subprocess.run([*unshare, "mount", "-t", "tmpfs", "none", place], check=False).returncode:
        pytest.skip("this kernel lets nobody mount in a namespace of their own")
    prefix = [*unshare, "sh", "-c", FULL, place]
    run = tmp_path / "run"
    start("serve", place / "disk.img", "--dir", run, prefix=prefix)
    # blkif's answer has no room for a reason.
    reasons = {"srp": "No space left on device", "vscsiif": "No space left on device"}
    for kind in PATHS:
        command = qemu_io("discard 0 8M", "write -P 3 0 512k", "write 0 4M", "read -P 3 0 4k")
        done = cli("nbd", f"{kind}:{run}", "--run", command)
        shown = done.stdout + done.stderr
        assert f"write failed: {reasons.get(kind, 'Input/output error')}" in shown
        assert "Traceback" not in shown


# Beginnings and ends.


def test_it_says_where_the_device_is(served, start):
    path, place = f"srp:{served.run}", served.home / "s"
    device = start("nbd", path, "--socket", place)
    uri = f"nbd+unix:///?socket={place}"
    assert any(line.strip() == uri for line in device.output)
    example = next(line for line in device.output if "qemu-img info" in line)
    info = subprocess.run(example.strip(), shell=True, capture_output=True, text=True, check=True)  # noqa: S602
    assert f"({8 * MIB} bytes)" in info.stdout
    assert place.stat().st_mode & 0o022 == 0  # whoever may write to it may connect
    status, errors = device.end(signal.SIGTERM)
    assert (status, errors) == (0, "")
    assert not place.exists()


@pytest.mark.parametrize("status", [0, 7])
def test_run_ends_with_the_commands_status(served, status):
    done = served.fails_on("srp", f"exit {status}")
    assert (done.returncode, done.stderr) == (status, "")


def test_a_socket_in_use_is_refused_and_a_stale_one_replaced(served, start):
    path, place = f"srp:{served.run}", served.home / "taken"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place))
        listener.listen()
        done = served.cli("nbd", path, "--socket", place)
        assert done.returncode == 2
        assert done.stderr == (
            f"vscsi: serve on {place}: another server uses it; take another --socket\n"
        )
    device = start("nbd", path, "--socket", place)
    assert device.end(signal.SIGINT) == (0, "")


def test_without_nbdkit_it_names_the_packages(served, tmp_path):
    done = served.cli("nbd", "call:null:1M", "--run", "true", env={"PATH": str(tmp_path)})
    assert done.returncode == 2
    assert done.stderr == (
        "vscsi: run nbdkit: it is not installed; `apt install nbdkit nbdkit-plugin-python`\n"
    )


@EACH_PATH
def test_a_unit_that_is_not_there_is_one_line(servers, kind, block):
    served = servers[block]
    done = served.fails_on(kind, "true", 9)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("kind", PATHS)
def test_a_killed_server_ends_an_idle_device(cli, start, tmp_path, kind):
    served = Served(cli, start, tmp_path)
    device = start("nbd", f"{kind}:{served.run}", "--socket", tmp_path / "s")
    served.server.end(signal.SIGKILL)
    assert device.ended() == (1, "vscsi: the server is gone\n")
    assert not (tmp_path / "s").exists()


def test_a_killed_server_ends_a_busy_device(cli, start, tmp_path):
    run = tmp_path / "run"
    server = start("serve", "null:1T", "--dir", run)
    command = 'echo busy; nbdcopy "$uri" null:'
    device = start("nbd", f"srp:{run}", "--run", command, wait_on="busy")
    server.end(signal.SIGKILL)
    status, errors = device.ended()
    assert status == 1
    assert errors.endswith("vscsi: the server is gone\n")
    assert "Traceback" not in errors


def test_a_killed_device_leaves_no_domain_behind(served, start):
    store = connect_store(served.run)

    def attached():
        try:
            return set(store.directory("/local/domain"))
        except StoreError:  # there never was one, or the last one took it along
            return set()

    before = attached()
    place = served.home / "killed"
    device = start("nbd", f"srp:{served.run}", "--socket", place)
    domains = attached() - before - {"0"}
    assert domains
    gone = threading.Event()

    def changed(_path):
        if not domains & attached():
            gone.set()

    for domain in domains:
        store.watch(f"/local/domain/{domain}", changed)
    device.process.kill()
    assert gone.wait(HANG_S)  # nbdkit ends with its parent
    store.close()
    assert served.on("srp", "true") == ""


def test_two_devices_of_one_unit_show_the_same(served, start):
    place = served.home / "first"
    start("nbd", f"srp:{served.run}", "--socket", place)
    first = shlex.quote(f"nbd+unix:///?socket={place}")
    write = qemu_io("write -P 0x99 0 64k").replace('"$uri"', first)
    shown = served.on("vscsiif", f"{write} && {qemu_io('read -P 0x99 0 64k')}")
    assert "Pattern verification failed" not in shown
