# SPDX-License-Identifier: MIT
"""Files, devices and memory that cannot be what they are named for are refused with a reason."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from tgt_glue import backing
from tgt_glue.backing import (
    Backing,
    block_backing,
    check_free,
    file_backing,
    in_use,
    pscsi_backing,
    ramdisk_backing,
)
from tgt_glue.configfs import Storage
from tgt_glue.steps import MakeFile
from vscsi.wire.errors import SetupError


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(1 << 20))
    return path


def storage(device, title="vscsi-x"):
    return Storage(Path("core/fileio_0", title), "fileio", str(device), 512, "s", True, False)


def test_a_file_is_used_whole_or_in_part(image):
    assert file_backing(image) == Backing("fileio", str(image), 1 << 20)
    assert file_backing(image, 512) == Backing("fileio", str(image), 512)


def test_a_path_is_made_absolute_and_stays_a_link(image, monkeypatch):
    image.with_name("link").symlink_to(image)
    monkeypatch.chdir(image.parent)
    found = file_backing("link")
    assert found.device == str(image.with_name("link"))
    assert found.differences(replace(storage(image), size_bytes=1 << 20)) == []


@pytest.mark.parametrize("empty", [False, True])
def test_a_file_of_a_size_is_made(tmp_path, empty):
    path = tmp_path / "new.img"
    if empty:
        path.touch()
    assert file_backing(path, 4096) == Backing("fileio", str(path), 4096, new_file=True)
    step = MakeFile(str(path), 4096)
    step.do()
    assert (path.stat().st_size, path.stat().st_blocks) == (4096, 8)
    assert file_backing(path, 4096) == Backing("fileio", str(path), 4096)
    step.undo()
    assert path.exists() == empty
    assert not empty or path.stat().st_size == 0


def test_a_file_without_space_is_not_left_behind(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "posix_fallocate", full)
    path = tmp_path / "new.img"
    with pytest.raises(SetupError, match="No space left on device; name another --file"):
        MakeFile(str(path), 4096).do()
    assert not path.exists()


@pytest.mark.parametrize(
    ("name", "size", "reason"),
    [
        ("none.img", None, "no such file; --size SIZE makes one"),
        ("empty.img", None, "it is empty; --size SIZE gives it one"),
        ("disk.img", 2 << 20, "too small: 1048576 bytes, not 2097152; `truncate -s 2097152`"),
        ("disk.img", 1000, "1000 bytes are no whole number of blocks"),
        ("disk.img", 0, "0 bytes are no whole number"),
        ("disk.img/x", None, "Not a directory"),
        (".", None, "it is no regular file"),
        ("a,b", 512, "the kernel takes no paths with commas"),
        ("a\nb", 512, "the kernel takes no paths with commas"),
        ("a" * 255, 512, "or over 255 bytes"),
    ],
)
def test_a_file_that_cannot_be_a_disk_is_refused(image, name, size, reason):
    image.with_name("empty.img").touch()
    with pytest.raises(SetupError, match=reason):
        file_backing(image.parent / name, size)


def test_a_file_is_no_block_device(image):
    with pytest.raises(SetupError, match="it is none; use --file"):
        block_backing(image)
    with pytest.raises(SetupError, match="No such file"):
        block_backing(image.with_name("none"))


@pytest.mark.parametrize(
    ("device", "reason"),
    [
        ("/dev/null", "it is no SCSI device"),
        ("/dev/none", "No such file"),
        ("99999:0:0:0", "no such SCSI device"),
    ],
)
def test_what_is_no_scsi_device_is_not_passed_through(device, reason):
    with pytest.raises(SetupError, match=reason):
        pscsi_backing(device)


def test_a_ramdisk_has_whole_pages():
    assert ramdisk_backing(4097) == Backing("ramdisk", "", 8192)
    with pytest.raises(SetupError, match="whole number"):
        ramdisk_backing(0)


def test_memory_that_is_not_there_is_not_asked_for():
    check_free(Backing("ramdisk", "", 4096), [])
    with pytest.raises(SetupError, match=r"only .* kB of memory are available"):
        check_free(Backing("ramdisk", "", 1 << 60), [])


def test_one_file_is_not_served_twice(image):
    image.with_name("link").symlink_to(image)
    used = [storage(image.with_name("link"))]
    with pytest.raises(SetupError, match="busy: LIO's fileio/vscsi-x uses it"):
        check_free(Backing("fileio", str(image), 512), used)
    check_free(Backing("fileio", str(image), 512), [storage("/srv/other"), storage("")])


def test_a_file_below_a_loop_device_is_busy(image, tmp_path, monkeypatch):
    loop = tmp_path / "sys/block/loop3/loop"
    loop.mkdir(parents=True)
    loop.joinpath("backing_file").write_text(f"{image}\n")
    monkeypatch.setattr(backing, "SYSFS", tmp_path / "sys")
    with pytest.raises(SetupError, match="busy: /dev/loop3 stands on it"):
        check_free(Backing("fileio", str(image), 512), [])


def test_what_is_no_block_device_is_not_in_use(image):
    assert not in_use(image)
    assert not in_use(image.with_name("none"))
