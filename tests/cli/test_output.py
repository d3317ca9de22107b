# SPDX-License-Identifier: MIT
"""Results in files: whole or not at all, and never in the place of what is read."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import HANG_S
from vscsi.cli import output
from vscsi.cli.output import OutputError, written
from vscsi.wire.errors import SetupError


@pytest.fixture(params=["unnamed", "named"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have files without a name, or a file system that has none."""
    if request.param == "named":
        monkeypatch.setattr(output, "_unnamed", lambda _directory: None)


@pytest.mark.usefixtures("kind")
def test_a_result_takes_the_place_of_the_last_one_when_it_is_whole(tmp_path: Path) -> None:
    file, link = tmp_path / "report", tmp_path / "link"
    file.write_text("yesterday")
    file.chmod(0o640)
    link.symlink_to(file)
    with written(str(link)) as stream:
        stream.write(b"today")
        stream.flush()
        assert file.read_text() == "yesterday"
    assert file.read_text() == "today"
    assert file.stat().st_mode & 0o777 == 0o640
    assert link.is_symlink()
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.usefixtures("kind")
def test_without_an_end_nothing_has_changed(tmp_path: Path) -> None:
    file = tmp_path / "report"
    file.write_text("yesterday")
    for name in (file, tmp_path / "new"):
        with pytest.raises(RuntimeError):
            _fail(name)
    assert file.read_text() == "yesterday"
    assert list(tmp_path.iterdir()) == [file]


def _fail(file: Path) -> None:
    with written(str(file)) as stream:
        stream.write(b"today")
        raise RuntimeError


def test_a_process_that_is_killed_leaves_nothing(tmp_path: Path) -> None:
    file = tmp_path / "report"
    file.write_text("yesterday")
    program = (
        "import sys; from vscsi.cli.output import written\n"
        f"with written({str(file)!r}) as stream:\n"
        "    stream.write(b'today'); stream.flush(); print('there', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"there\n"
    process.kill()
    process.communicate(timeout=HANG_S)
    assert process.returncode == -signal.SIGKILL
    assert file.read_text() == "yesterday"
    assert list(tmp_path.iterdir()) == [file]


def test_new_files_have_the_usual_mode(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    with written(str(tmp_path / "new")):
        pass
    modes = {file.stat().st_mode for file in tmp_path.iterdir()}
    assert len(modes) == 1


def test_special_files_are_written_as_they_are(tmp_path: Path) -> None:
    with written("/dev/null") as stream:
        stream.write(b"gone")
    assert Path("/dev/null").is_char_device()
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    with written(str(fifo)) as stream:
        stream.write(b"through")
    assert os.read(reader, 100) == b"through"
    os.close(reader)


def test_what_does_not_fit_names_the_file() -> None:
    with pytest.raises(OutputError) as caught, written("/dev/full") as stream:
        stream.write(b"much")
    assert (caught.value.filename, caught.value.errno) == ("/dev/full", errno.ENOSPC)


@pytest.mark.parametrize("name", ["", ".", "none/report"])
def test_what_is_no_file_cannot_be_one(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with (
        pytest.raises(SetupError, match="name another file for --html"),
        written(name, own="--html"),
    ):
        pass


def test_what_is_read_is_not_written(tmp_path: Path) -> None:
    file, other = tmp_path / "capture", tmp_path / "other"
    file.write_text("commands")
    other.hardlink_to(file)
    with pytest.raises(SetupError, match="it is what is read"), written(str(other), [str(file)]):
        pass
    assert file.read_text() == "commands"
