# SPDX-License-Identifier: MIT
"""What a disk says of itself: standard INQUIRY data and vital product data (SBC-4 6.6)."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from vscsi.target.wellknown import REVISION, VENDOR
from vscsi.wire.inquiry import (
    Association,
    CodeSet,
    DesignatorType,
    ProvisioningType,
    Version,
    VersionDescriptor,
    VpdPage,
    build_standard,
)

if TYPE_CHECKING:
    from vscsi.target.disk import Disk

_FILE_SYSTEM_BLOCK_BYTES = 4096
_NON_ROTATING = 1
_LBPRZ_ZEROS = 0b001


def standard(disk: "Disk") -> bytes:
    """Return standard INQUIRY data.

    SPC-4 and SBC-3: what a version byte of 7 or a later claim breaks, no guest thanks us for.
    """
    return build_standard(
        vendor=VENDOR,
        product=disk.product,
        revision=REVISION,
        peripheral_device_type=disk.device_type,
        version=Version.SPC_4,
        hisup=1,
        cmdque=1,
        version_descriptors=[
            VersionDescriptor.SAM_5,
            VersionDescriptor.SRP,
            VersionDescriptor.SPC_4,
            VersionDescriptor.SBC_3,
        ],
    )


def vpd_pages(disk: "Disk") -> Mapping[int, Callable[[], bytes]]:
    """Return what builds each VPD page that this disk has."""
    builders: dict[int, Callable[[Disk], bytes]] = {
        VpdPage.UNIT_SERIAL_NUMBER: _unit_serial_number,
        VpdPage.DEVICE_IDENTIFICATION: _device_identification,
        VpdPage.EXTENDED_INQUIRY: _extended_inquiry,
        VpdPage.BLOCK_LIMITS: _block_limits,
        VpdPage.BLOCK_DEVICE_CHARACTERISTICS: _block_device_characteristics,
    }
    if disk.thin:
        builders[VpdPage.LOGICAL_BLOCK_PROVISIONING] = _logical_block_provisioning
    return {page: partial(build, disk) for page, build in builders.items()}


def _unit_serial_number(disk: "Disk") -> bytes:
    return disk.vpd(VpdPage.UNIT_SERIAL_NUMBER, serial_number=disk.serial_number.encode())


def _device_identification(disk: "Disk") -> bytes:
    name = f"{VENDOR:8}{disk.product:16}{disk.serial_number}".encode()
    designators = (
        (CodeSet.BINARY, DesignatorType.NAA, disk.naa),
        (CodeSet.ASCII, DesignatorType.T10_VENDOR_ID, name),
    )
    return disk.vpd(
        VpdPage.DEVICE_IDENTIFICATION,
        designators=[
            {
                "code_set": code_set,
                "association": Association.LOGICAL_UNIT,
                "designator_type": kind,
                "designator": designator,
            }
            for code_set, kind, designator in designators
        ],
    )


def _extended_inquiry(disk: "Disk") -> bytes:
    return disk.vpd(VpdPage.EXTENDED_INQUIRY, headsup=1, ordsup=1, simpsup=1, v_sup=1)


def _block_limits(disk: "Disk") -> bytes:
    granularity = max(1, _FILE_SYSTEM_BLOCK_BYTES // disk.block_size)
    thin = {
        "maximum_unmap_lba_count": disk.maximum_unmap_blocks,
        "maximum_unmap_block_descriptor_count": disk.maximum_unmap_descriptors,
        "optimal_unmap_granularity": granularity,
        "ugavalid": 1,
    }
    return disk.vpd(
        VpdPage.BLOCK_LIMITS,
        wsnz=1,
        maximum_compare_and_write_length=disk.maximum_compare_blocks,
        optimal_transfer_length_granularity=granularity,
        maximum_transfer_length=disk.maximum_transfer_blocks,
        maximum_write_same_length=disk.maximum_write_same_blocks,
        **(thin if disk.thin else {}),
    )


def _block_device_characteristics(disk: "Disk") -> bytes:
    return disk.vpd(VpdPage.BLOCK_DEVICE_CHARACTERISTICS, medium_rotation_rate=_NON_ROTATING)


def _logical_block_provisioning(disk: "Disk") -> bytes:
    return disk.vpd(
        VpdPage.LOGICAL_BLOCK_PROVISIONING,
        lbpu=1,
        lbpws=1,
        lbpws10=1,
        lbprz=_LBPRZ_ZEROS,
        provisioning_type=ProvisioningType.THIN,
    )
