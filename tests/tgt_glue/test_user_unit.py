# SPDX-License-Identifier: MIT
"""User-backed units: told apart, removed in order, and their rings reset, without a kernel."""

from dataclasses import dataclass, field

import pytest

from tgt_glue import names, tcmu
from tgt_glue.backing import Backing
from tgt_glue.configfs import CONFIGFS, Attachment, Storage, Unit, read_state
from tgt_glue.nodes import Hctl
from tgt_glue.plan import to_remove
from tgt_glue.steps import Abandon, Detach, MakeStorage, RemoveStorage
from tgt_glue.tcmu import reset_ring
from vscsi.wire.errors import SetupError

INFO = """Status: ACTIVATED  Max Queue Depth: 128  SectorSize: 4096  HwMaxSectors: 128
        Config: vscsi/a Size: 1048576 MaxDataAreaMB: 1024 DataPagesPerBlk: 1
"""
STORAGE = Storage(
    CONFIGFS / "core/user_524289/vscsi-a",
    "user",
    "srp:/run/a LUN 0",
    1 << 20,
    names.serial("a"),
    enabled=True,
    buffered=False,
)
TARGET = names.target_wwn("a", "host")
WAY = Attachment("host", TARGET, names.nexus_wwn(TARGET), Hctl(9, 0, 1, 0))
UNIT = Unit("a", STORAGE, (WAY,))


@dataclass
class LetGo:
    """Ends the serving."""

    done: list = field(default_factory=list)

    def describe(self):
        return "let go"

    def do(self):
        self.done.append("do")

    def undo(self):
        self.done.append("undo")


def test_it_is_read_as_the_kernel_shows_it(tmp_path):
    path = tmp_path / "core/user_524289/vscsi-a"
    (path / "wwn").mkdir(parents=True)
    path.joinpath("info").write_text(INFO)
    path.joinpath("udev_path").write_text("srp:/run/a LUN 0")
    path.joinpath("enable").write_text("1\n")
    path.joinpath("wwn/vpd_unit_serial").write_text(
        f"T10 VPD Unit Serial Number: {names.serial('a')}\n"
    )
    unit = read_state(tmp_path).units["a"]
    assert unit.whole
    assert unit.storage == Storage(
        path,
        "user",
        "srp:/run/a LUN 0",
        1 << 20,
        names.serial("a"),
        enabled=True,
        buffered=False,
    )
    for size in (1 << 20, 2 << 20):  # which may have changed
        assert Backing("user", "srp:/run/a LUN 0", size).differences(unit.storage) == []
    assert Backing("user", "srp:/run/b LUN 0", 1 << 20).differences(unit.storage)


def test_what_nobody_serves_fails_its_commands_before_it_is_removed():
    assert to_remove(UNIT, force=False) == [
        Abandon("a", STORAGE, (WAY,)),
        Detach("a", "user", WAY, False),
        RemoveStorage(STORAGE),
    ]


def test_it_is_served_until_nobody_is_attached():
    let_go = LetGo()
    assert to_remove(UNIT, force=True, let_go=let_go) == [
        Detach("a", "user", WAY, True),
        let_go,
        RemoveStorage(STORAGE),
    ]


def test_a_half_made_one_is_made_again(monkeypatch):
    half = Storage(STORAGE.path, "user", "", 0, "", enabled=False, buffered=False)
    assert to_remove(Unit("a", half), force=False) == [RemoveStorage(half)]
    make = MakeStorage("a", Backing("user", "srp:/run/a LUN 0", 4096), write_back=False)
    assert make.describe() == (
        "make storage object vscsi-a: user of 4096 bytes of srp:/run/a LUN 0"
    )


def test_one_that_is_served_is_not_abandoned(monkeypatch):
    monkeypatch.setattr(tcmu, "is_served", lambda path: True)
    with pytest.raises(SetupError, match="remove a: `vscsi hba` serves it"):
        Abandon("a", STORAGE, (WAY,)).do()


def test_a_ring_is_reset_while_it_is_blocked(tmp_path, monkeypatch):
    action = tmp_path / "action"
    action.mkdir()
    written = []
    real = type(action).write_text

    def write(path, text):
        written.append((path.name, text))
        return real(path, text)

    monkeypatch.setattr(type(action), "write_text", write)
    reset_ring(tmp_path)
    assert written == [("block_dev", "1"), ("reset_ring", "1"), ("block_dev", "0")]
