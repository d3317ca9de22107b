# SPDX-License-Identifier: MIT
"""An SRP channel unit by unit: login, data, residuals, MADs, and how it ends."""

import pytest

from vscsi.domain.base import PAGE_SIZE
from vscsi.domain.keys import XenbusState
from vscsi.target.base import Status
from vscsi.wire import mad, srp
from vscsi.wire.cdb import build
from vscsi.wire.formats import build as build_format
from vscsi.wire.formats import parse, text
from vscsi.wire.sense import parse_sense
from vscsi.wire.srp import IuType, LoginRejectReason, RspCode, RspFlags
from vscsi.wire.srp_ring import SlotFormat, build_slot

HANDLE = 1


@pytest.fixture
def channel(raw):
    """A logged-in channel with four pages registered as handle 1, its unit attentions seen."""
    channel = raw("srp").connect()
    assert channel.login().type is IuType.LOGIN_RSP
    frames = channel.region(HANDLE)
    channel.data = channel.memory.view(frames[0], len(frames))
    return channel.ready()


class Recorder:
    """A target in front of another that shows what comes, and can answer instead."""

    def __init__(self, target):
        self.target = target
        self.tasks = []
        self.outcome = None
        """Called with a task that is not passed on."""

    def __getattr__(self, name):
        return getattr(self.target, name)

    def submit(self, task):
        self.tasks.append(task)
        if self.outcome is None:
            self.target.submit(task)
        else:
            self.outcome(task)


@pytest.fixture
def recorder(server):
    server.export.port.target = recorder = Recorder(server.export.port.target)
    return recorder


def direct(address, length, handle=HANDLE):
    return {"address": address, "handle": handle, "length": length}


def indirect(descriptors, local=None, table=None, total=None):
    """An indirect descriptor, of whose table the first `local` entries are in the unit."""
    return {
        "table": table or direct(0, 16 * len(descriptors), 0),
        "total_length": sum(d["length"] for d in descriptors) if total is None else total,
        "descriptors": descriptors if local is None else descriptors[:local],
    }


def code_of(rsp):
    assert rsp.type is IuType.RSP
    return srp.rsp_code(rsp)


# Login


def test_a_login_grants_the_request_limit_and_echoes_the_tag(raw, server):
    channel = raw("srp").connect()
    rsp = channel.login(tag=0xFEED_0000_0000_0001)
    assert rsp.type is IuType.LOGIN_RSP
    assert rsp.tag == 0xFEED_0000_0000_0001
    assert rsp.request_limit_delta == 12  # 16 slots, four kept for what no request pays for
    assert (rsp.max_it_iu_length, rsp.max_ti_iu_length) == (124, 124)
    assert rsp.supported_buffer_formats == 6
    assert rsp.flags == 0  # no other channel existed, and no solicited notification


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"requested_max_it_iu_length": 125}, LoginRejectReason.REQUESTED_IT_IU_LENGTH_TOO_LARGE),
        ({"requested_max_it_iu_length": 63}, LoginRejectReason.REQUESTED_IT_IU_LENGTH_TOO_LARGE),
        ({"target_port_id": b"somebody else's."}, LoginRejectReason.UNABLE_TO_ASSOCIATE_CHANNEL),
        ({"required_buffer_formats": 0}, LoginRejectReason.UNSUPPORTED_BUFFER_FORMAT),
        ({"required_buffer_formats": 0x0E}, LoginRejectReason.UNSUPPORTED_BUFFER_FORMAT),
        ({"flags": 2}, LoginRejectReason.MULTI_CHANNEL_UNSUPPORTED),
    ],
)
def test_a_rejected_login_says_why_and_what_would_do(raw, fields, reason):
    channel = raw("srp").connect()
    rej = channel.login(tag=3, **fields)
    assert (rej.type, rej.tag, rej.reason) == (IuType.LOGIN_REJ, 3, reason)
    assert rej.supported_buffer_formats == 6
    assert channel.login().type is IuType.LOGIN_RSP


def test_the_port_is_named_by_its_key_or_by_zeros(raw):
    channel = raw("srp").connect()
    port = bytes.fromhex(channel.published("target-port-id"))
    assert channel.login(target_port_id=port).type is IuType.LOGIN_RSP


def test_a_second_login_on_a_live_channel_is_rejected(channel):
    assert channel.login().reason == LoginRejectReason.CHANNEL_LIMIT_REACHED
    assert channel.execute(bytes(6)).status == Status.GOOD


@pytest.mark.parametrize("kind", [IuType.CMD, IuType.TSK_MGMT, IuType.I_LOGOUT, IuType.CRED_RSP])
def test_nothing_but_a_login_comes_first(raw, kind):
    channel = raw("srp").connect()
    assert channel.ask(kind).type is IuType.T_LOGOUT
    assert "before a login" in channel.closed()


@pytest.mark.parametrize(
    "unit",
    [
        b"\x04" + bytes(47),  # no such type
        bytes([IuType.RSP]) + bytes(47),  # a target's
        b"\x02" + bytes(46),  # cut short
        b"",
    ],
)
def test_a_unit_that_is_none_ends_the_channel(channel, unit):
    channel.put(build_slot(SlotFormat.SRP, unit))
    logout = channel.receive()
    assert (logout.type, logout.reason) == (IuType.T_LOGOUT, srp.TLogoutReason.INVALID_IU_TYPE)
    assert channel.closed()


# Data


def test_a_direct_buffer_begins_anywhere_in_its_region(channel, server):
    server.store.content[1024:1536] = bytes(range(256)) * 2
    channel.data[:] = b"\xa5" * len(channel.data)
    rsp = channel.execute(build("READ(10)", lba=2, blocks=1), data_in=direct(4000, 512))
    assert (rsp.status, rsp.flags) == (Status.GOOD, 0)
    assert channel.data[4000:4512] == bytes(range(256)) * 2
    assert set(channel.data[:4000]) == set(channel.data[4512:]) == {0xA5}


def test_an_indirect_buffer_is_taken_in_the_order_of_its_table(channel, server):
    channel.data[:] = bytes(range(256)) * (len(channel.data) // 256)
    parts = [direct(5000, 100), direct(3, 200), direct(9, 0), direct(8192, 212)]
    expected = b"".join(
        bytes(channel.data[d["address"] : d["address"] + d["length"]]) for d in parts
    )
    table = b"".join(build_format(srp.MemoryDescriptor, part) for part in parts)
    channel.data[12288 : 12288 + len(table)] = table
    for lba, (local, where) in enumerate(
        [
            (0, direct(12288, 64)),  # all in memory
            (1, direct(12288, 64)),  # the first in the unit
            (2, direct(12288, 64)),
        ]
    ):
        rsp = channel.execute(
            build("WRITE(10)", lba=lba, blocks=1), data_out=indirect(parts, local, where)
        )
        assert (rsp.status, rsp.flags) == (Status.GOOD, 0)
        assert server.store.content[lba * 512 : (lba + 1) * 512] == expected


def test_a_table_that_is_in_the_unit_needs_no_address(channel, server):
    channel.data[:512] = b"x" * 512
    parts = [direct(0, 500), direct(0, 12)]
    rsp = channel.execute(
        build("WRITE(10)", lba=9, blocks=1), data_out=indirect(parts, table=direct(1 << 60, 32, 99))
    )
    assert rsp.status == Status.GOOD
    assert server.store.content[9 * 512 : 10 * 512] == b"x" * 512


def test_the_total_length_cuts_the_table_off(channel):
    rsp = channel.execute(
        build("INQUIRY", allocation_length=96),
        data_in=indirect([direct(0, 30), direct(100, 30)], total=36),
    )
    assert rsp.flags == RspFlags.DIOVER
    assert rsp.data_in_residual == 96 - 36
    assert not any(channel.data[106:130])


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"data_in": direct(0, 512, 2)}, "a handle that is not registered"),
        ({"data_in": direct(4 * PAGE_SIZE - 511, 512)}, "the end of the region"),
        ({"data_in": direct(1 << 63, 512)}, "a huge address"),
        ({"data_in": direct(0, 0xFFFF_FFFF)}, "a huge length"),
        ({"data_in": direct((1 << 64) - 1, 2)}, "an address that wraps"),
        ({"data_out": direct(0, 512), "data_out_format": 3}, "immediate data"),
        ({"data_in": indirect([direct(0, 9)], table=direct(0, 15, 0))}, "an odd table"),
        ({"data_in": indirect([direct(0, 9)] * 2, table=direct(0, 16, 0))}, "more than the table"),
        ({"data_in": indirect([], table=direct(0, 257 * 16))}, "too many descriptors"),
        ({"data_in": indirect([], table=direct(0, 16 * 16, 5))}, "a table that is nowhere"),
        ({"data_in": indirect([direct(0, 9)], total=(32 << 20) + 1)}, "more than a command moves"),
        ({"data_in": direct(0, 512), "attribute": 3}, "a reserved attribute"),
        ({"additional_cdb_length": 1}, "reserved bits"),
    ],
)
def test_bad_fields_refuse_the_command_and_nothing_else(channel, server, fields, what):
    server.store.log.clear()
    if fields.get("data_out_format") == 3:  # an immediate descriptor has another size: by hand
        unit = bytearray(srp.build_iu(IuType.CMD, tag=5, cdb=build("WRITE(10)").ljust(16, b"\0")))
        unit[5] = 0x30
        channel.put(build_slot(SlotFormat.SRP, bytes(unit) + bytes(8)))
        rsp = channel.receive()
    else:
        rsp = channel.execute(build("READ(10)", lba=0, blocks=1), 5, **fields)
    assert (rsp.tag, code_of(rsp)) == (5, RspCode.REQUEST_FIELDS_INVALID), what
    assert rsp.request_limit_delta == 1
    assert not server.store.log
    assert channel.execute(bytes(6)).status == Status.GOOD


def test_a_region_granted_read_only_is_not_written(channel, server):
    frames = channel.region(2, 2, readonly=True)
    view = channel.memory.view(frames[0], 2)
    view[:] = b"r" * len(view)
    rsp = channel.execute(build("READ(10)", lba=0, blocks=1), data_in=direct(0, 512, 2))
    assert code_of(rsp) == RspCode.REQUEST_FIELDS_INVALID
    assert set(view) == {ord("r")}
    rsp = channel.execute(build("WRITE(10)", lba=0, blocks=1), data_out=direct(512, 512, 2))
    assert rsp.status == Status.GOOD
    assert server.store.content[:512] == b"r" * 512


def test_a_long_cdb_arrives_whole_and_descriptors_follow_it(channel, recorder):
    cdb = build("INQUIRY", allocation_length=36).ljust(16, b"\0") + bytes(range(16))
    rsp = channel.execute(cdb, data_in=direct(0, 36))
    assert rsp.status == Status.GOOD
    assert recorder.tasks[-1].cdb == cdb
    assert bytes(channel.data[8:13]) == b"VSCSI"
    rsp = channel.execute(b"\x7f".ljust(32, b"\0"))
    assert parse_sense(rsp.sense_data).asc == 0x20


# Residuals


@pytest.mark.parametrize(
    ("cdb", "fields", "flags", "out", "into"),
    [
        (build("INQUIRY", allocation_length=36), {"data_in": 100}, RspFlags.DIUNDER, 0, 64),
        (build("INQUIRY", allocation_length=36), {"data_in": 36}, 0, 0, 0),
        (build("READ(10)", blocks=1), {"data_in": 100}, RspFlags.DIOVER, 0, 412),
        (build("READ(10)", blocks=1), {}, RspFlags.DIOVER, 0, 512),
        (build("WRITE(10)", blocks=1), {"data_out": 1024}, RspFlags.DOUNDER, 512, 0),
        (build("WRITE(10)", blocks=2), {"data_out": 512}, RspFlags.DOOVER, 512, 0),
        (build("READ(10)", lba=1 << 30, blocks=1), {"data_in": 512}, RspFlags.DIUNDER, 0, 512),
        (build("TEST UNIT READY"), {"data_in": 8, "data_out": 9}, 0x28, 9, 8),
    ],
)
def test_residuals_of_either_direction(channel, cdb, fields, flags, out, into):
    rsp = channel.execute(cdb, **{name: direct(0, length) for name, length in fields.items()})
    assert rsp.flags & ~RspFlags.SNSVALID == flags
    assert (rsp.data_out_residual, rsp.data_in_residual) == (out, into)
    assert bool(rsp.sense_data) == (rsp.status == Status.CHECK_CONDITION)


def test_sense_is_cut_to_the_unit_and_says_so(channel, recorder):
    def outcome(task):
        task.status = Status.CHECK_CONDITION
        task.sense = bytes(range(252))
        task.done(task)

    recorder.outcome = outcome
    rsp = channel.execute(bytes(6))
    assert rsp.sense_data == bytes(range(124 - 36))
    assert rsp.sense_data_length == 88


# MADs


def buffer_of(address, handle=HANDLE):
    return handle << 32 | address


def test_both_ends_tell_each_other_who_they_are(channel, server):
    mine = {"partition_name": b"a test".ljust(96, b"\0"), "mad_version": 1}
    channel.data[100:248] = build_format(mad.AdapterInfoData, mine)
    reply = channel.mad(mad.MadType.ADAPTER_INFO, length=148, buffer=buffer_of(100))
    assert (reply.status, reply.tag) == (mad.MadStatus.SUCCESS, 7)
    theirs = parse(mad.AdapterInfoData, bytes(channel.data[100:248]), "adapter info")
    assert (theirs.srp_version, text(theirs.partition_name)) == (mad.SRP_VERSION, "vscsi")
    assert theirs.port_max_transfer[0] == 32 << 20
    assert server.end(channel.domain, "vsrp")._mads.partner == "a test"


@pytest.mark.parametrize("length", [92, 80])
def test_no_capability_is_claimed(channel, length):
    asked = build_format(
        mad.CapabilitiesData,
        {
            "migration": {"type": 1, "length": 12, "server_support": 1},
            "reserve": {"type": 2, "length": 12, "server_support": 1},
        },
    )[:length]
    channel.data[:length] = asked
    reply = channel.mad(mad.MadType.CAPABILITIES, length=length, buffer=buffer_of(0))
    assert reply.status == mad.MadStatus.SUCCESS
    told = parse(mad.CapabilitiesData, bytes(channel.data[:length]), "capabilities")
    assert told.migration.server_support == 0
    assert told.reserve is None if length == 80 else told.reserve.server_support == 0


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (mad.MadType.ENABLE_FAST_FAIL, mad.MadStatus.SUCCESS),
        (mad.MadType.EMPTY_IU, mad.MadStatus.NOT_SUPPORTED),
        (mad.MadType.HOST_CONFIG, mad.MadStatus.NOT_SUPPORTED),
        (0x1234_5678, mad.MadStatus.NOT_SUPPORTED),
    ],
)
def test_mads_that_are_not_served_are_answered_so(channel, kind, status):
    assert channel.mad(kind).status == status


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (mad.MadType.ADAPTER_INFO, {"length": 147, "buffer": 1 << 32}),
        (mad.MadType.ADAPTER_INFO, {"length": 148, "buffer": 1 << 32 | 4 * PAGE_SIZE - 147}),
        (mad.MadType.ADAPTER_INFO, {"length": 148, "buffer": 9 << 32}),
        (mad.MadType.CAPABILITIES, {"length": 79, "buffer": 1 << 32}),
        (mad.MadType.UNREGISTER_REGION, {"handle": 9}),
        (mad.MadType.REGISTER_REGION, {"handle": 1, "pages": 1, "directory": [8]}),  # in use
        (mad.MadType.REGISTER_REGION, {"handle": 2, "pages": 0, "directory": []}),
        (mad.MadType.REGISTER_REGION, {"handle": 2, "pages": 1025, "directory": [8]}),
        (mad.MadType.REGISTER_REGION, {"handle": 2, "pages": 0xFFFF_FFFF, "directory": [8]}),
        (mad.MadType.REGISTER_REGION, {"handle": 2, "pages": 1, "directory": [0xFFFF_FFFF]}),
    ],
)
def test_mads_with_bad_fields_fail_and_nothing_else(channel, server, kind, fields):
    mapped = server.mapped(channel.domain)
    assert channel.mad(kind, **fields).status == mad.MadStatus.FAILED
    assert server.mapped(channel.domain) == mapped
    assert channel.execute(bytes(6)).status == Status.GOOD


def test_a_region_is_unregistered_when_no_command_names_it(channel, server):
    mapped = server.mapped(channel.domain)
    channel.region(2, 3)
    assert server.mapped(channel.domain) == mapped + 3
    server.store.hold("read")
    channel.command(build("READ(10)", blocks=1), 5, data_in=direct(0, 512, 2))
    server.store.wait_held()
    reply = channel.mad(mad.MadType.UNREGISTER_REGION, handle=2)
    assert reply.status == mad.MadStatus.FAILED
    server.store.release()
    assert channel.receive().tag == 5
    assert channel.mad(mad.MadType.UNREGISTER_REGION, handle=2).status == mad.MadStatus.SUCCESS
    assert server.mapped(channel.domain) == mapped
    rsp = channel.execute(build("READ(10)", blocks=1), data_in=direct(0, 512, 2))
    assert code_of(rsp) == RspCode.REQUEST_FIELDS_INVALID


# The end


def test_a_logout_ends_the_nexus_but_not_the_registrations(channel, server, eventually):
    server.store.hold("read")
    channel.command(build("READ(10)", blocks=1), 5, data_in=direct(0, 512))
    server.store.wait_held()
    channel.send(IuType.I_LOGOUT, tag=6)
    eventually(lambda: server.end(channel.domain, "vsrp")._nexus is None)
    server.store.release()
    rsp = channel.login(tag=8)  # what was in flight is not answered any more
    assert (rsp.type, rsp.tag, rsp.request_limit_delta) == (IuType.LOGIN_RSP, 8, 12)
    sense = parse_sense(channel.execute(bytes(6)).sense_data)
    assert (sense.asc, sense.ascq) == (0x29, 0x01)  # a new nexus: power on
    rsp = channel.execute(build("READ(10)", blocks=1), data_in=direct(0, 512))
    assert rsp.status == Status.GOOD


def test_an_orderly_close_unmaps_everything_and_can_be_undone(channel, server):
    channel.publish(XenbusState.CLOSING)
    channel.wait(XenbusState.CLOSING)
    assert server.mapped(channel.domain) == 0
    assert channel.error() is None
    channel.reopen()
    channel.connect()
    assert channel.login().type is IuType.LOGIN_RSP
