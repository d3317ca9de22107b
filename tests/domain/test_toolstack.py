# SPDX-License-Identifier: MIT
"""Making and removing the nodes of a device."""

import pytest

from vscsi.domain import toolstack
from vscsi.domain.base import StoreError
from vscsi.domain.toolstack import Device

BACK = "/local/domain/0/backend/vbd/1/51712"
FRONT = "/local/domain/1/device/vbd/51712"
XVDA = Device("vbd", 1, 51712)


@pytest.fixture
def store(memory_store):
    return memory_store()


@pytest.fixture
def dom0(store):
    return store.client(0)


def test_a_vbd_has_the_keys_and_permissions_that_stock_frontends_expect(dom0):
    toolstack.create(dom0, XVDA, backend_keys={"mode": "r", "params": "disk.img"})
    back = {name: dom0.read(f"{BACK}/{name}") for name in dom0.directory(BACK)}
    front = {name: dom0.read(f"{FRONT}/{name}") for name in dom0.directory(FRONT)}
    assert back == {
        "frontend": FRONT,
        "frontend-id": "1",
        "online": "1",
        "state": "1",
        "mode": "r",
        "device-type": "disk",
        "removable": "0",
        "bootable": "1",
        "params": "disk.img",
    }
    assert front == {
        "backend": BACK,
        "backend-id": "0",
        "state": "1",
        "virtual-device": "51712",
        "device-type": "disk",
    }
    assert dom0.get_perms(BACK) == dom0.get_perms(f"{BACK}/state") == ["n0", "r1"]
    assert dom0.get_perms(FRONT) == dom0.get_perms(f"{FRONT}/state") == ["n1", "r0"]


def test_each_domain_writes_its_own_directory_and_reads_the_other(store, dom0):
    toolstack.create(dom0, XVDA)
    guest, stranger = store.client(1), store.client(2)
    guest.write(f"{FRONT}/state", "3")
    assert guest.read(f"{BACK}/state") == "1"
    for client, operation in (
        (guest, lambda c: c.write(f"{BACK}/state", "5")),
        (stranger, lambda c: c.read(f"{BACK}/state")),
        (stranger, lambda c: c.read(f"{FRONT}/state")),
        (stranger, lambda c: c.write(f"{FRONT}/state", "1")),
    ):
        with pytest.raises(StoreError, match="EACCES"):
            operation(client)


def test_keys_with_slashes_make_directories(dom0):
    device = Device("vscsi", 1, 0)
    toolstack.create(
        dom0, device, backend_keys={"vscsi-devs/dev-0/state": "1", "vscsi-devs/dev-0/v-dev": "0:0"}
    )
    assert sorted(dom0.directory(f"{device.backend_path}/vscsi-devs/dev-0")) == ["state", "v-dev"]
    assert dom0.get_perms(f"{device.backend_path}/vscsi-devs/dev-0/state") == ["n0", "r1"]


@pytest.mark.parametrize("path", [BACK, FRONT])
def test_a_device_that_is_there_is_not_made_again(dom0, path):
    dom0.write(f"{path}/state", "4")
    with pytest.raises(StoreError, match="EEXIST") as refused:
        toolstack.create(dom0, XVDA)
    assert path in str(refused.value)
    assert dom0.read(f"{path}/state") == "4"


def test_remove_takes_both_directories_and_what_is_below(dom0):
    toolstack.create(dom0, XVDA, backend_keys={"a/b": "c"})
    toolstack.remove(dom0, XVDA)
    assert toolstack.devices(dom0) == []
    for path in (BACK, FRONT):
        with pytest.raises(StoreError, match="ENOENT"):
            dom0.read(path)
    toolstack.remove(dom0, XVDA)  # nothing there is no error
    toolstack.create(dom0, XVDA)


def test_unplug_takes_the_backend_offline_and_asks_it_to_close(dom0):
    toolstack.create(dom0, XVDA)
    toolstack.unplug(dom0, XVDA)
    assert dom0.read(f"{BACK}/online") == "0"
    assert dom0.read(f"{BACK}/state") == "5"


def test_unplugging_what_is_not_there_makes_no_nodes(dom0):
    with pytest.raises(StoreError, match="ENOENT"):
        toolstack.unplug(dom0, XVDA)
    assert toolstack.devices(dom0) == []


def test_devices_are_listed_in_order_and_strange_names_left_out(dom0):
    made = [
        Device("vscsi", 1, 0),
        Device("vbd", 2, 51712),
        Device("vbd", 1, 51728),
        Device("vsrp", 1, 0),
        Device("vbd", 1, 51712),
    ]
    for device in made:
        toolstack.create(dom0, device)
    toolstack.create(dom0, Device("vbd", 2, 1, backend_id=1))
    dom0.write("/local/domain/0/backend/vbd/x/51712/state", "1")
    dom0.write("/local/domain/0/backend/vbd/1/-1/state", "1")
    assert toolstack.devices(dom0) == sorted(made)
    assert toolstack.devices(dom0, backend_id=1) == [Device("vbd", 2, 1, backend_id=1)]


def test_another_writer_in_between_costs_a_retry_and_no_key(store, dom0):
    rival = store.client(0)
    writes = iter(range(3))

    def hook(client):
        if client is dom0 and (number := next(writes, None)) is not None:
            rival.write(BACK, str(number))
            rival.rm(BACK)

    store.hook = hook
    toolstack.create(dom0, XVDA)
    assert dom0.conflicts == 1
    assert toolstack.devices(dom0) == [XVDA]


@pytest.mark.parametrize(
    "wrong",
    [("vif", 1, 0), ("vbd", -1, 0), ("vbd", 0x7FF0, 0), ("vbd", 1, -1), ("vbd", 1, 1 << 32)],
)
def test_a_name_that_is_no_device_is_refused(wrong):
    with pytest.raises(ValueError, match=r"is n|does not fit"):
        Device(*wrong)
