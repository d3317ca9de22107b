# SPDX-License-Identifier: MIT
"""Logical units without a device: the one that is not there, and the REPORT LUNS one."""

from vscsi.target.logical_unit import LogicalUnit
from vscsi.target.primary import ALWAYS, PRIMARY
from vscsi.target.refusals import LOGICAL_UNIT_NOT_SUPPORTED
from vscsi.wire.inquiry import Version, VersionDescriptor, build_standard
from vscsi.wire.opcodes import DeviceType
from vscsi.wire.sense import Sense

VENDOR = "VSCSI"
REVISION = "0001"


class _Deviceless(LogicalUnit):
    product: str

    def standard_inquiry(self) -> bytes:
        """Return standard INQUIRY data."""
        return build_standard(
            vendor=VENDOR,
            product=self.product,
            revision=REVISION,
            peripheral_qualifier=self.qualifier,
            peripheral_device_type=self.device_type,
            version=Version.SPC_4,
            hisup=1,
            cmdque=1,
            version_descriptors=[VersionDescriptor.SAM_5, VersionDescriptor.SPC_4],
        )


class MissingUnit(_Deviceless):
    """What answers for a LUN that names nothing (SAM-6 4.7.4): "no device can be here"."""

    device_type = DeviceType.NONE
    qualifier = 0b011
    product = "NO LOGICAL UNIT"
    commands = ALWAYS
    unknown_command = LOGICAL_UNIT_NOT_SUPPORTED

    def sense_without_attention(self) -> Sense:
        """Return LOGICAL UNIT NOT SUPPORTED."""
        return LOGICAL_UNIT_NOT_SUPPORTED


class ReportLunsUnit(_Deviceless):
    """The REPORT LUNS well known logical unit (SPC-5 8.2)."""

    device_type = DeviceType.WELL_KNOWN
    product = "REPORT LUNS"
    commands = PRIMARY
