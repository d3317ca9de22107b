# SPDX-License-Identifier: MIT
"""Files of `vscsi lio save` and `targetctl save`: ours is taken out, the rest is left."""

import copy
import json
from contextlib import suppress

import pytest

from tgt_glue import names
from tgt_glue.backing import Backing
from tgt_glue.plan import Wanted
from tgt_glue.saved import load
from vscsi.wire.errors import SetupError


@pytest.fixture
def document(tmp_path):
    """What rtslib saves, with the fields that matter; one unit of ours and one of others'."""
    image = tmp_path / "a.img"
    image.write_bytes(bytes(1 << 20))
    lun = {"index": 0, "storage_object": "/backstores/fileio/vscsi-a", "alias": "vm1"}
    return {
        "storage_objects": [
            {
                "name": "vscsi-a",
                "plugin": "fileio",
                "wwn": names.serial("a"),
                "dev": str(image),
                "size": 1 << 20,
                "attributes": {"emulate_tpu": 1},
            },
            {"name": "disk", "plugin": "block", "wwn": "x", "dev": "/dev/none"},
            {"name": "vscsi-b", "plugin": "ramdisk", "wwn": "x", "size": 4096},
            {"name": "t", "plugin": "user", "config": "x/y"},
        ],
        "targets": [
            {"fabric": "loopback", "wwn": names.target_wwn("a", "vm1"), "tpgs": [{"luns": [lun]}]},
            {"fabric": "loopback", "wwn": "naa.5001405000000001", "tpgs": [{"luns": [lun]}]},
            {"fabric": "iscsi", "wwn": "iqn.2003-01.org.x:1", "tpgs": [{"luns": [lun]}]},
        ],
    }


@pytest.fixture
def saved(tmp_path):
    def write(document):
        path = tmp_path / "saved.json"
        path.write_text(document if isinstance(document, str) else json.dumps(document))
        return path

    return write


def test_units_and_initiators_are_read(document, saved, tmp_path):
    assert load(saved(document)) == [
        Wanted(
            "a",
            Backing("fileio", str(tmp_path / "a.img"), 1 << 20),
            {"emulate_tpu": "1"},
            ("vm1",),
            exact_nexus=True,
        )
    ]


def test_a_ramdisk_is_read(document, saved):
    document["storage_objects"][2]["wwn"] = names.serial("b")
    assert load(saved(document))[1] == Wanted(
        "b", Backing("ramdisk", "", 4096), {}, (), exact_nexus=True
    )


def test_an_image_that_is_gone_does_not_come_back_empty(document, saved, tmp_path):
    (tmp_path / "a.img").unlink()
    with pytest.raises(SetupError, match=r"a\.img: no such file"):
        load(saved(document))


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "{}", '{"storage_objects": 3}', '"x"'])
def test_what_is_no_saved_configuration_is_refused(saved, text):
    with pytest.raises(SetupError, match="not a saved configuration"):
        load(saved(text))


def damaged(document):
    """Yield copies with one value missing or of another type."""
    for path in paths(document):
        for replacement in (None, 3, "x", [], {}):
            copied = copy.deepcopy(document)
            *parents, last = path
            place = copied
            for key in parents:
                place = place[key]
            if replacement is None:
                del place[last]
            else:
                place[last] = replacement
            yield copied


def paths(value, at=()):
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, each in list(items):
        yield (*at, key)
        if isinstance(each, dict | list):
            yield from paths(each, (*at, key))


def test_a_damaged_file_is_refused_or_read_but_never_a_traceback(document, saved):
    for each in damaged(document):
        with suppress(SetupError):
            load(saved(each))


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(SetupError, match="No such file or directory; `vscsi lio save` writes it"):
        load(tmp_path / "none")
