# SPDX-License-Identifier: MIT
"""TCMU's ring, against a kernel's side of it in memory, laid out a second time here."""

import os
import re
import struct
import subprocess
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tgt_glue.tcmu_kernel import CMD, DATA_BYTES, PAD, READ_10, RING_AT, TMR, Kernel
from tgt_glue import tcmu
from tgt_glue.tcmu import Answer, TcmuRing
from vscsi.wire.errors import RingError


@pytest.fixture
def kernel():
    return Kernel()


def ring_of(kernel):
    return TcmuRing(memoryview(kernel.memory))


def test_the_layout_is_the_kernel_headers(tmp_path):
    fields = {
        ("tcmu_mailbox", "flags"): 2,
        ("tcmu_mailbox", "cmdr_off"): 4,
        ("tcmu_mailbox", "cmdr_size"): 8,
        ("tcmu_mailbox", "cmd_head"): 12,
        ("tcmu_mailbox", "cmd_tail"): tcmu.CMD_TAIL,
        ("tcmu_cmd_entry", "req.iov_cnt"): 8,
        ("tcmu_cmd_entry", "req.cdb_off"): 24,
        ("tcmu_cmd_entry", "req.iov"): 48,
        ("tcmu_cmd_entry", "rsp.scsi_status"): 8,
        ("tcmu_cmd_entry", "rsp.read_len"): 12,
        ("tcmu_cmd_entry", "rsp.sense_buffer"): 16,
        ("tcmu_tmr_entry", "tmr_type"): 8,
        ("tcmu_tmr_entry", "cmd_cnt"): 12,
        ("tcmu_tmr_entry", "cmd_ids"): 32,
    }
    checks = [
        f'_Static_assert(offsetof(struct {name}, {field}) == {offset}, "{field}");'
        for (name, field), offset in fields.items()
    ]
    numbers = {
        "sizeof(struct tcmu_cmd_entry)": tcmu.ENTRY_BYTES,
        "TCMU_MAILBOX_VERSION": tcmu.VERSION,
        "TCMU_SENSE_BUFFERSIZE": tcmu.SENSE_BYTES,
        "TCMU_OP_ALIGN_SIZE": tcmu.ALIGNMENT,
        "TCMU_UFLAG_UNKNOWN_OP": tcmu.UserFlags.UNKNOWN_OP,
        "TCMU_UFLAG_READ_LEN": tcmu.UserFlags.READ_LEN,
        "TCMU_MAILBOX_FLAG_CAP_OOOC": tcmu.MailboxFlags.OUT_OF_ORDER,
        "TCMU_MAILBOX_FLAG_CAP_READ_LEN": tcmu.MailboxFlags.READ_LENGTH,
    }
    checks += [f'_Static_assert({name} == {int(n)}, "{name}");' for name, n in numbers.items()]
    source = tmp_path / "layout.c"
    includes = "#include <stddef.h>\n#include <linux/target_core_user.h>\n"
    source.write_text(includes + "\n".join(checks))
    compiler = os.environ.get("CC", "cc")
    done = subprocess.run(
        [compiler, "-fsyntax-only", source], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_command_is_taken_with_its_cdb_and_buffer(kernel):
    areas = [(kernel.data_at, 4096), (kernel.data_at + 8192, 12)]
    kernel.put(7, areas=areas)
    ring = ring_of(kernel)
    (entry,) = ring.take()
    assert (entry.cmd_id, entry.cdb[:10], entry.fault) == (7, READ_10, "")
    assert entry.length == 4108
    first, second = ring.views(entry)
    first[:], second[:] = b"a" * 4096, b"b" * 12
    assert kernel.memory[kernel.data_at + 4095] == ord("a")
    assert kernel.memory[kernel.data_at + 8192 : kernel.data_at + 8205] == b"b" * 12 + b"\0"
    assert ring.take() == []


def test_answers_go_out_of_order_over_the_oldest_entries(kernel):
    for cmd_id in (1, 2, 3):
        kernel.put(cmd_id)
    ring = ring_of(kernel)
    ring.take()
    sense = bytes(range(120))
    ring.answer(3, Answer(2, sense))
    assert kernel.take() == [(3, 0, 2, 0, sense[:96])]
    ring.answer(1, Answer(0, read_bytes=512))
    ring.answer(2, Answer(0))
    assert kernel.take() == [(1, 2, 0, 512, bytes(96)), (2, 0, 0, 0, bytes(96))]
    assert (kernel.tail, ring.outstanding) == (kernel.head, 0)


def test_the_read_length_is_told_only_to_a_kernel_that_reads_it():
    kernel = Kernel(flags=1)
    kernel.put(1)
    ring = ring_of(kernel)
    ring.take()
    ring.answer(1, Answer(0, read_bytes=512))
    assert kernel.take() == [(1, 0, 0, 0, bytes(96))]


def test_only_outstanding_commands_are_answered_and_once(kernel):
    kernel.put(1)
    ring = ring_of(kernel)
    with pytest.raises(ValueError, match="no command 1"):
        ring.answer(1, Answer(0))
    ring.take()
    ring.answer(1, Answer(0))
    with pytest.raises(ValueError, match="no command 1"):
        ring.answer(1, Answer(0))


def test_commands_that_the_kernel_gives_up_still_want_an_answer(kernel):
    for cmd_id in (1, 2, 0x1234):
        kernel.put(cmd_id)
    ring = ring_of(kernel)
    ring.take()
    ring.answer(2, Answer(0))
    kernel.put_tmr(2, 0x1234, 77)
    assert (ring.given_up(), ring.take()) == ([], [])
    assert (ring.given_up(), ring.given_up()) == ([0x1234], [])
    ring.answer(1, Answer(0))
    ring.answer(0x1234, Answer(2))
    assert [answer[0] for answer in kernel.take()] == [2, 1, 0x1234]
    assert kernel.tail == kernel.head


def test_unknown_entries_are_marked_and_others_passed(kernel):
    kernel.put_raw(struct.pack("<IHBB", 32 | TMR, 0, 0, 0).ljust(32, b"\0"))
    kernel.put_raw(struct.pack("<IHBB", 8 | 5, 9, 0, 0x80))
    kernel.put(1)
    kernel.put_raw(struct.pack("<IHBB", 16 | PAD, 0, 0, 0).ljust(16, b"\0"))
    ring = ring_of(kernel)
    assert [entry.cmd_id for entry in ring.take()] == [1]
    assert kernel.take() == [(9, 0x81, None, 0, b"")]
    ring.answer(1, Answer(0))
    assert [answer[0] for answer in kernel.take()] == [1]
    assert kernel.tail == kernel.head


@given(data=st.data())
def test_every_command_is_answered_once_round_and_round(data):
    kernel = Kernel(size=data.draw(st.sampled_from([512, 520, 1024, 2056])))
    ring = ring_of(kernel)
    waiting, answered, sent, ours = deque(), [], 0, []
    for _ in range(data.draw(st.integers(1, 60))):
        areas = [(kernel.data_at, 8)] * data.draw(st.integers(0, 9))
        cdb = bytes([0x7F]) + os.urandom(data.draw(st.sampled_from([5, 15, 31])))
        if data.draw(st.booleans()) and kernel.put(sent, cdb, areas):
            waiting.append((sent, cdb, areas))
            sent += 1
        if data.draw(st.booleans()):
            for entry in ring.take():
                cmd_id, cdb, areas = waiting.popleft()
                assert entry.cmd_id == cmd_id
                assert entry.cdb.startswith(cdb)
                assert entry.areas == tuple(areas)
                ours.append(cmd_id)
        if ours and data.draw(st.booleans()):
            ring.answer(ours.pop(data.draw(st.integers(0, len(ours) - 1))), Answer(0))
            answered += [answer[0] for answer in kernel.take()]
    ours += [entry.cmd_id for entry in ring.take()]
    for cmd_id in ours:
        ring.answer(cmd_id, Answer(0))
    answered += [answer[0] for answer in kernel.take()]
    assert sorted(answered) == list(range(sent))
    assert kernel.tail == kernel.head


DATA_AT = RING_AT + 1024
FAULTS = {
    "before the data area": {"areas": [(DATA_AT - 8, 8)]},
    "in the mailbox": {"areas": [(0, 64)]},
    "beyond the map": {"areas": [(DATA_AT + DATA_BYTES - 8, 16)]},
    "round the address space": {"areas": [(DATA_AT, 2**64 - 1)]},
    "at the end of addresses": {"areas": [(2**64 - 8, 16)]},
    "more than there is": {"areas": [(DATA_AT, DATA_BYTES)] * 2},
    "more iovecs than the entry": {"count": 2**32 - 1},
    "iovecs over the CDB": {"count": 5},
    "CDB before the entry": {"cdb_at": 0},
    "CDB in the header": {"cdb_at": RING_AT + 8},
    "CDB behind the entry": {"cdb_at": RING_AT + 512},
    "CDB beyond all": {"cdb_at": 2**64 - 1},
    "two buffers": {"areas": [(DATA_AT, 8)], "bidi": 1},
    "protection": {"areas": [(DATA_AT, 8)], "dif": 1},
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_command_that_makes_no_sense_can_be_answered(kernel, fault):
    kernel.put(1, **fault)
    kernel.put(2)
    ring = ring_of(kernel)
    bad, good = ring.take()
    assert bad.fault
    assert ring.views(bad) == []
    assert not good.fault
    ring.answer(1, Answer(2))
    assert kernel.take()[0][:3] == (1, 0, 2)


BROKEN = {
    "no length": struct.pack("<IHBB", 0 | PAD, 0, 0, 0),
    "longer than what is there": struct.pack("<IHBB", 64 | PAD, 0, 0, 0),
    "longer than the ring": struct.pack("<IHBB", (1 << 30) | CMD, 0, 0, 0),
    "a TMR cut short": struct.pack("<IHBB", 24 | TMR, 0, 0, 0).ljust(24, b"\0"),
    "a TMR of more commands than there are": struct.pack(
        "<IHBBIIQQ", 32 | TMR, 0, 0, 0, 1, 1, 0, 0
    ),
    "too short for an answer": struct.pack("<IHBB", 8 | CMD, 0, 0, 0),
}


@pytest.mark.parametrize("entry", BROKEN.values(), ids=BROKEN)
def test_an_entry_of_no_possible_length_breaks_the_ring(kernel, entry):
    kernel.put_raw(entry)
    with pytest.raises(RingError):
        ring_of(kernel).take()


@pytest.mark.parametrize("head", [1024, 4, 1 << 31])
def test_a_head_beyond_the_ring_breaks_it(kernel, head):
    ring = ring_of(kernel)
    kernel.head = head
    with pytest.raises(RingError, match="cmd_head"):
        ring.take()


def test_a_command_twice_breaks_the_ring(kernel):
    kernel.put(1)
    kernel.put(1)
    with pytest.raises(RingError, match="twice"):
        ring_of(kernel).take()


def test_what_changes_after_it_was_taken_changes_nothing(kernel):
    kernel.put(1)
    kernel.put(2)
    ring = ring_of(kernel)
    ring.take()
    head = kernel.head
    kernel.memory[RING_AT : RING_AT + 1024] = b"\xff" * 1024
    ring.answer(1, Answer(0))
    ring.answer(2, Answer(0))
    assert kernel.tail == head
    assert [answer[0] for answer in kernel.take()] == [1, 2]


@given(entries=st.binary(max_size=512), head=st.integers(0, 512), tail=st.integers(0, 512))
def test_no_bytes_do_more_than_break_the_ring(entries, head, tail):
    kernel = Kernel(size=512)
    kernel.memory[RING_AT : RING_AT + len(entries)] = entries
    kernel.head, kernel.tail = head, tail
    try:
        ring = ring_of(kernel)
        found = ring.take()
    except RingError:
        return
    for entry in found:
        assert entry.length <= DATA_BYTES
        ring.answer(entry.cmd_id, Answer(0))
    assert kernel.tail == head


MAILBOXES = [
    ({"version": 1}, "version 1"),
    ({"version": 3}, "version 3"),
    ({"flags": 0}, "flags 0x0"),
]


@pytest.mark.parametrize(("options", "reason"), MAILBOXES)
def test_another_mailbox_is_refused(options, reason):
    with pytest.raises(RingError, match=re.escape(reason)):
        ring_of(Kernel(**options))


@pytest.mark.parametrize(
    ("offset", "size"), [(0, 1024), (64, 1024), (4096, 0), (4097, 1024), (4096, 1020), (2**31, 8)]
)
def test_a_ring_where_none_can_be_is_refused(kernel, offset, size):
    struct.pack_into("<II", kernel.memory, 4, offset, size)
    with pytest.raises(RingError):
        ring_of(kernel)


def test_a_map_of_a_few_bytes_is_refused():
    with pytest.raises(RingError):
        TcmuRing(memoryview(bytearray(64)))


def test_the_uio_device_is_found_by_its_name(tmp_path, monkeypatch):
    monkeypatch.setattr(tcmu, "SYSFS_UIO", tmp_path)
    for number, name in enumerate(
        ["eth", "tcm-user/5/vscsi-a/vscsi/a", "tcm-user/6/vscsi-ab/vscsi/ab"]
    ):
        (tmp_path / f"uio{number}").mkdir()
        (tmp_path / f"uio{number}" / "name").write_text(f"{name}\n")
    core = tmp_path / "core"
    assert tcmu.uio_of(core / "user_5" / "vscsi-a") == "uio1"
    assert tcmu.uio_of(core / "user_6" / "vscsi-ab") == "uio2"
    assert tcmu.uio_of(core / "user_6" / "vscsi-a") is None
    assert not tcmu.is_served(core / "user_6" / "vscsi-a")
