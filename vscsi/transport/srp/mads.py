# SPDX-License-Identifier: MIT
"""MADs at the target's end: who is there, and the registration of memory (PAPR VSCSI, and ours)."""

from construct import Container

from vscsi.target.buffers import gather, scatter
from vscsi.transport.srp.regions import InvalidDescriptor, Regions
from vscsi.wire.errors import WireError
from vscsi.wire.formats import build, parse, text
from vscsi.wire.mad import (
    MAD_VERSION,
    SRP_VERSION,
    AdapterInfoData,
    CapabilitiesData,
    MadStatus,
    MadType,
    OsType,
    RegionFlags,
    build_mad,
    parse_mad,
)

ADAPTER_INFO_BYTES = AdapterInfoData.sizeof()
CAPABILITIES_BYTES = 92


class MadServer:
    """Answers MADs. What the initiator says of itself is in `partner` afterwards."""

    def __init__(self, regions: Regions, max_transfer_bytes: int) -> None:
        self.partner = ""
        self._regions = regions
        self._max_transfer_bytes = max_transfer_bytes

    def answer(self, unit: bytes) -> bytes:
        """Return the answer to a MAD: the same unit with its status. WireError if it is cut."""
        mad = parse_mad(unit)
        try:
            status = self._perform(mad)
        except WireError:  # a bad region or grant: the MAD fails, the channel goes on
            status = MadStatus.FAILED
        return build_mad(mad.type, **{**mad, "status": int(status)})

    def _perform(self, mad: Container) -> MadStatus:
        if mad.type == MadType.REGISTER_REGION:
            readonly = bool(mad.flags & RegionFlags.READ_ONLY)
            self._regions.register(mad.handle, list(mad.directory), mad.pages, readonly=readonly)
        elif mad.type == MadType.UNREGISTER_REGION:
            self._regions.unregister(mad.handle)
        elif mad.type == MadType.ADAPTER_INFO:
            self._adapter_info(mad)
        elif mad.type == MadType.CAPABILITIES:
            self._capabilities(mad)
        elif mad.type != MadType.ENABLE_FAST_FAIL:
            return MadStatus.NOT_SUPPORTED
        return MadStatus.SUCCESS

    def _adapter_info(self, mad: Container) -> None:
        """Take the initiator's adapter info and put ours into its place."""
        if mad.length < ADAPTER_INFO_BYTES:
            raise InvalidDescriptor(f"adapter info of {mad.length} bytes")
        with self._regions.at(mad.buffer, ADAPTER_INFO_BYTES, writable=True) as views:
            theirs = parse(AdapterInfoData, gather(views, ADAPTER_INFO_BYTES), "adapter info")
            self.partner = text(theirs.partition_name)
            ours = build(
                AdapterInfoData,
                {
                    "srp_version": SRP_VERSION,
                    "partition_name": b"vscsi".ljust(96, b"\0"),
                    "mad_version": MAD_VERSION,
                    "os_type": OsType.LINUX,
                    "port_max_transfer": [self._max_transfer_bytes] + [0] * 7,
                },
            )
            scatter(ours, views)

    def _capabilities(self, mad: Container) -> None:
        """Say that we have none of the capabilities that were asked for."""
        length = min(mad.length, CAPABILITIES_BYTES)
        with self._regions.at(mad.buffer, length, writable=True) as views:
            asked = parse(CapabilitiesData, gather(views, length), "capabilities")
            asked.migration.server_support = 0
            if asked.reserve is not None:
                asked.reserve.server_support = 0
            scatter(build(CapabilitiesData, asked), views)
