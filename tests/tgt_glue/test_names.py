# SPDX-License-Identifier: MIT
"""Names follow from the user's, are what LIO and rtslib take, and never change."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tgt_glue import names
from vscsi.wire.errors import SetupError

UNITS = st.from_regex(names._NAME, fullmatch=True)
RTSLIB_NAA = re.compile(r"naa\.[125c-fC-F][0-9a-fA-F]{15}$")  # rtslib_fb.utils.normalize_wwn


def test_names_never_change():
    """They are in people's saved configurations, and in the files of their reservations."""
    assert names.storage_name("disk0") == "vscsi-disk0"
    assert names.serial("disk0") == "2697cd3c-dfb4-5e9c-8521-c014ade9bb38"
    assert names.target_wwn("disk0", "host") == "naa.5001405b948fa9e6"
    assert names.nexus_wwn("naa.5001405000000001") == "naa.5001405938219dcb"
    assert names.hba_index("disk0") == 860181


@given(UNITS, UNITS)
def test_every_name_makes_names_that_rtslib_takes(name, initiator):
    target = names.target_wwn(name, initiator)
    assert RTSLIB_NAA.match(target)
    assert RTSLIB_NAA.match(names.nexus_wwn(target))
    assert target.startswith(names.target_prefix(name))
    assert names.HBA_BASE <= names.hba_index(name) < 2 * names.HBA_BASE <= 1048576
    assert names.unit_name(names.storage_name(name)) == name


@pytest.mark.parametrize(
    "storage", ["disk0", "vscsi-", "vscsi-a b", "VSCSI-a", "vscsi-" + "a" * 33]
)
def test_other_storage_objects_are_nobodys_unit(storage):
    assert names.unit_name(storage) is None


@pytest.mark.parametrize("name", ["", "-a", ".a", "a/b", "a b", "a\n", "ä", "a" * 33])
def test_a_name_that_cannot_be_is_refused(name):
    with pytest.raises(SetupError, match="take another name"):
        names.check_name("unit", name)
