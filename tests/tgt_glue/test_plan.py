# SPDX-License-Identifier: MIT
"""What is wanted and what is there make the steps between; steps are done all or not at all."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tgt_glue import names
from tgt_glue.backing import Backing
from tgt_glue.configfs import CONFIGFS, Attachment, State, Storage, Unit
from tgt_glue.nodes import Hctl
from tgt_glue.plan import Wanted, apply, to_detach, to_have, to_remove
from tgt_glue.steps import (
    Attach,
    Detach,
    DropShell,
    MakeFile,
    MakeStorage,
    RemoveStorage,
    SetAttributes,
)
from vscsi.wire.errors import SetupError

FILE = Backing("fileio", "/srv/a.img", 1 << 20)
RAMDISK = Backing("ramdisk", "", 1 << 20)
EMPTY = State({}, ())


def storage(name="a", backing=FILE, *, enabled=True, buffered=False):
    return Storage(
        path=CONFIGFS / "core" / f"x_{names.hba_index(name)}" / names.storage_name(name),
        plugin=backing.plugin,
        device=backing.device,
        size_bytes=backing.size_bytes,
        serial=names.serial(name) if enabled else "",
        enabled=enabled,
        buffered=buffered,
    )


def attachment(initiator, name="a", nexus=None):
    target = names.target_wwn(name, initiator)
    return Attachment(initiator, target, nexus or names.nexus_wwn(target), Hctl(9, 0, 1, 0))


def state(*units, others=()):
    return State({unit.name: unit for unit in units}, others)


def test_a_unit_that_is_not_there_is_made_from_the_bottom_up():
    wanted = Wanted("a", FILE, {"emulate_tpu": "1"}, ("host",))
    assert to_have(wanted, EMPTY, {}) == [
        MakeStorage("a", FILE, write_back=False),
        SetAttributes("a", "fileio", {"emulate_tpu": "1"}),
        Attach("a", "fileio", "host"),
    ]


def test_a_new_file_is_made_first():
    backing = replace(FILE, new_file=True)
    steps = to_have(Wanted("a", backing), EMPTY, {})
    assert steps == [MakeFile("/srv/a.img", 1 << 20), MakeStorage("a", backing, False)]


def test_a_write_cache_is_asked_for_when_the_file_is_opened():
    (make, _) = to_have(Wanted("a", FILE, {"emulate_write_cache": "1"}), EMPTY, {})
    assert make == MakeStorage("a", FILE, write_back=True)


def test_only_what_differs_is_done():
    unit = Unit("a", storage(), (attachment("host"),))
    wanted = Wanted("a", FILE, {"emulate_tpu": "1", "emulate_caw": "1"}, ("host", "vm1"))
    assert to_have(wanted, state(unit), {"emulate_tpu": "0", "emulate_caw": "1"}) == [
        SetAttributes("a", "fileio", {"emulate_tpu": "1"}),
        Attach("a", "fileio", "vm1"),
    ]
    assert to_have(Wanted("a", FILE, {}, ("host",)), state(unit), {}) == []


def test_what_is_half_made_is_removed_and_made_again():
    unit = Unit("a", storage(enabled=False), shells=("loopback/naa.1",))
    assert to_have(Wanted("a", FILE, {}, ("host",)), state(unit), {}) == [
        DropShell("loopback/naa.1"),
        RemoveStorage(unit.storage),
        MakeStorage("a", FILE, False),
        Attach("a", "fileio", "host"),
    ]


@pytest.mark.parametrize(
    ("backing", "reason"),
    [
        (RAMDISK, "it is fileio, not ramdisk"),
        (replace(FILE, device="/srv/b.img"), "it is on /srv/a.img, not on /srv/b.img"),
        (replace(FILE, size_bytes=512), "it has 1048576 bytes, not 512"),
    ],
)
def test_a_name_that_stands_for_something_else_is_refused(backing, reason):
    with pytest.raises(SetupError, match=f"make unit a: name in use: {reason}; take another"):
        to_have(Wanted("a", backing), state(Unit("a", storage())), {})


def test_anothers_storage_object_of_that_name_is_refused():
    other = replace(storage(), serial="x")
    with pytest.raises(SetupError, match="name in use: fileio/vscsi-a was not made by vscsi"):
        to_have(Wanted("a", FILE), state(others=(other,)), {})


def test_a_write_cache_is_not_denied_while_the_file_has_one():
    unit = Unit("a", storage(buffered=True))
    with pytest.raises(SetupError, match="written through the page cache"):
        to_have(Wanted("a", None, {"emulate_write_cache": "0"}), state(unit), {})


@pytest.mark.parametrize(
    ("units", "reason"),
    [((), "there is none"), ((Unit("a", storage(enabled=False)),), "it is half made")],
)
def test_attaching_needs_a_unit(units, reason):
    with pytest.raises(SetupError, match=reason):
        to_have(Wanted("a", initiators=("vm1",)), state(*units), {})


@pytest.mark.parametrize("exact", [False, True])
def test_a_made_up_nexus_is_put_right_when_that_is_wanted(exact):
    made_up = attachment("host", nexus="naa.5001405999999999")
    unit = Unit("a", storage(), (made_up,))
    steps = to_have(Wanted("a", FILE, {}, ("host",), exact), state(unit), {})
    if exact:
        assert steps == [Detach("a", "fileio", made_up, False), Attach("a", "fileio", "host")]
    else:
        assert steps == []


def test_a_unit_is_removed_from_the_top_down():
    unit = Unit("a", storage(), (attachment("host"), attachment("vm1")), ("core/fileio_9",))
    assert to_remove(unit, force=True) == [
        Detach("a", "fileio", attachment("host"), True),
        Detach("a", "fileio", attachment("vm1"), True),
        DropShell("core/fileio_9"),
        RemoveStorage(unit.storage),
    ]


def test_leftovers_are_removed_without_their_storage_object():
    unit = Unit("a", None, shells=("loopback/naa.1", "core/fileio_9"))
    assert to_remove(unit, force=False) == [DropShell(place) for place in unit.shells]


def test_what_others_use_is_not_removed():
    user = Path("/x/iscsi/iqn.x/tpgt_1/lun/lun_0")
    unit = Unit("a", storage(), (attachment("host"),), users=(user,))
    with pytest.raises(SetupError, match=f"remove a: in use: {user} was not made by vscsi"):
        to_remove(unit, force=True)
    assert to_detach(unit, "host", force=False) != []


def test_a_target_that_others_put_luns_into_is_not_removed():
    own = attachment("host")
    user = Path("/x/loopback", own.target, "tpgt_1/lun/lun_1")
    unit = Unit("a", storage(), (own,), users=(user,))
    with pytest.raises(SetupError, match="in use"):
        to_detach(unit, "host", force=True)


def test_detaching_who_is_not_attached_is_nothing():
    assert to_detach(Unit("a", storage()), "vm1", force=False) == []


def carry_out(steps, unit, values):
    """Do steps to a unit's description; return it, None if nothing is left, and its attributes."""
    unit, values = unit or Unit("a", None), dict(values)
    for step in steps:
        match step:
            case MakeStorage(name, backing):
                assert unit.storage is None
                unit, values = replace(unit, storage=storage(name, backing)), {"emulate_tpu": "0"}
            case SetAttributes():
                assert unit.storage.complete
                values |= step.values
            case Attach(name, _, initiator):
                assert unit.storage.complete
                assert unit.attachment(initiator) is None
                ways = (*unit.attachments, attachment(initiator, name))
                unit = replace(unit, attachments=ways)
            case Detach():
                left = tuple(each for each in unit.attachments if each != step.attachment)
                assert len(left) < len(unit.attachments)
                unit = replace(unit, attachments=left)
            case DropShell(place):
                assert place in unit.shells
                unit = replace(unit, shells=tuple(each for each in unit.shells if each != place))
            case RemoveStorage():
                assert not unit.attachments
                assert unit.storage == step.storage
                unit = replace(unit, storage=None)
            case MakeFile():
                pass
    return (unit if unit.storage or unit.shells else None), values


NEXUSES = st.sampled_from([None, "naa.5001405999999999"])
WAYS = st.dictionaries(st.sampled_from(["host", "vm1", "vm2"]), NEXUSES).map(
    lambda found: tuple(attachment(initiator, nexus=nexus) for initiator, nexus in found.items())
)
SHELLS = st.sets(st.sampled_from(["loopback/naa.1", "core/fileio_9"])).map(tuple)
UNITS = st.none() | st.one_of(
    st.builds(Unit, st.just("a"), st.just(storage()), WAYS, SHELLS),
    st.builds(Unit, st.just("a"), st.just(storage(enabled=False)), st.just(()), SHELLS),
    st.builds(Unit, st.just("a"), st.none(), st.just(()), SHELLS.filter(bool)),
)
WANTED = st.builds(
    Wanted,
    st.just("a"),
    st.just(FILE),
    st.dictionaries(st.just("emulate_tpu"), st.sampled_from("01")),
    st.lists(st.sampled_from(["host", "vm1"]), unique=True).map(tuple),
    st.booleans(),
)


@given(UNITS, WANTED)
def test_from_any_state_the_wanted_one_is_reached_and_a_second_run_changes_nothing(unit, wanted):
    before = state(*([unit] if unit else []))
    after, values = carry_out(to_have(wanted, before, {"emulate_tpu": "0"}), unit, {})
    assert after.whole
    assert set(wanted.initiators) <= {each.initiator for each in after.attachments}
    values = {"emulate_tpu": "0"} | values
    assert wanted.attributes.items() <= values.items()
    assert to_have(wanted, state(after), values) == []
    assert carry_out(to_remove(after, force=False), after, {})[0] is None


class Recorded:
    """A step that says what happens to it, and fails if told."""

    def __init__(self, log, name, *, error=None, undo_error=None):
        self.log, self.name, self.error, self.undo_error = log, name, error, undo_error

    def describe(self):
        return f"make {self.name}"

    def do(self):
        if self.error:
            raise self.error
        self.log.append(f"+{self.name}")

    def undo(self):
        if self.undo_error:
            raise self.undo_error
        self.log.append(f"-{self.name}")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            OSError(16, "Device or resource busy"),
            r"^configfs refused to make c: \[Errno 16\] Device or resource busy; find who uses it",
        ),
        (SetupError("do", "c", "reason", "step"), "^do c: reason; step$"),
    ],
)
def test_a_step_that_fails_takes_those_before_it_back(error, message):
    log = []
    steps = [Recorded(log, "a"), Recorded(log, "b"), Recorded(log, "c", error=error)]
    with pytest.raises(SetupError, match=message):
        apply([*steps, Recorded(log, "d")])
    assert log == ["+a", "+b", "-b", "-a"]


def test_an_interrupt_takes_everything_back_and_goes_on():
    log = []
    with pytest.raises(KeyboardInterrupt):
        apply([Recorded(log, "a"), Recorded(log, "b", error=KeyboardInterrupt())])
    assert log == ["+a", "-a"]


def test_what_cannot_be_undone_is_told_with_the_first_reason():
    log = []
    steps = [
        Recorded(log, "a"),
        Recorded(log, "b", undo_error=OSError(16, "busy")),
        Recorded(log, "c", error=SetupError("do", "c", "reason", "step")),
    ]
    with pytest.raises(SetupError, match=r"undo make b: .*busy: after: do c: reason; step; `vscsi"):
        apply(steps)
    assert log == ["+a", "+b", "-a"]


def test_the_kernels_own_reason_is_found_below_rtslibs():
    try:
        try:
            raise OSError(28, "No space left on device")
        except OSError:
            raise LookupError("Could not create X in configFS") from None
    except LookupError as error:
        found = error
    with pytest.raises(SetupError, match="Could not create X in configFS; free space"):
        apply([Recorded([], "a", error=found)])
