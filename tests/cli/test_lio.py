# SPDX-License-Identifier: MIT
"""`vscsi lio` on the command line: what is refused before LIO is asked (see tests/lio)."""

import pytest


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("create a", "give one of --file, --block, --ramdisk, --pscsi"),
        ("create a --ramdisk 1M --file x", "give one of --file, --block, --ramdisk, --pscsi"),
        ("create a --ramdisk 1M --size 1M", "--size goes with --file"),
        ("create a --ramdisk 1X", "'1X' is no size"),
        ("create a --ramdisk 1M --attr emulate_tpu", "'emulate_tpu' is not like emulate_tpu=1"),
        ("create a --ramdisk 1M --attr ../x=1", "'../x=1' is not like emulate_tpu=1"),
        ("create a/b --ramdisk 1M", "name unit 'a/b': not 1 to 32 letters"),
        ("attach a -- -x", "name initiator '-x': not 1 to 32 letters"),
        ("create a --file none.img", "none.img: no such file; --size SIZE makes one"),
        ("create a --block none", "none: No such file or directory"),
        ("create a --pscsi /dev/null", "pass through /dev/null: it is no SCSI device"),
        ("show no-such-unit", "find unit no-such-unit: there is none; `vscsi lio list`"),
        ("restore none.json", "restore from none.json: No such file or directory"),
    ],
)
def test_a_bad_order_is_one_line_and_status_2(cli, tmp_path, words, message):
    done = cli("lio", *words.split(), cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_help_names_all_orders(cli):
    text = cli("lio", "--help").stdout
    for order in ("create", "list", "show", "remove", "attach", "detach", "save", "restore"):
        assert f"\n  {order} " in text
