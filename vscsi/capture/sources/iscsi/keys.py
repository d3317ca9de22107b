# SPDX-License-Identifier: MIT
"""What login PDUs say: text keys (RFC 7143 6.2), and what came of the login."""

from vscsi.capture.sources.iscsi.framing import UNKNOWN
from vscsi.wire.iscsi import DIGEST_BYTES, LoginStatus

TEXT_BYTES = 1 << 13
"""Of a PDU's text that are looked at; keys are at most 63 characters, most values 255."""
_MAX_VALUE = 255
_NAMES = frozenset(
    {
        "InitiatorName",
        "TargetName",
        "SessionType",
        "HeaderDigest",
        "DataDigest",
        "ImmediateData",
        "InitialR2T",
        "MaxConnections",
        "MaxRecvDataSegmentLength",
        "MaxBurstLength",
        "FirstBurstLength",
        "MaxOutstandingR2T",
        "ErrorRecoveryLevel",
    }
)
"""Those that are kept. So what is kept is bounded."""
_BOTH_DECLARE = "MaxRecvDataSegmentLength"


class Keys:
    """What the two ends of a connection declared and agreed on."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        """The last that was said of each: the answer, where one side offers and one chooses."""
        self.isid = b""

    def take(self, text: bytes, *, of_target: bool) -> None:
        """Take the keys in a data segment."""
        for pair in text.split(b"\0"):
            name, equals, value = pair.decode("utf-8", "replace").partition("=")
            if equals and name in _NAMES:
                if name == _BOTH_DECLARE:
                    name = f"{'Target' if of_target else 'Initiator'}{name}"
                self.values[name] = _printable(value[:_MAX_VALUE])

    def digest(self, name: str) -> int:
        """Return the bytes of a digest, by its key."""
        value = self.values.get(name, "None")
        if "," in value:  # offered, and the answer is not in the capture
            return UNKNOWN
        return DIGEST_BYTES if value == "CRC32C" else 0

    @property
    def initiator_port(self) -> str:
        """Return the initiator port's name (RFC 7143 4.4.1); empty if it is not known."""
        name = self.values.get("InitiatorName", "")
        return f"{name},i,0x{self.isid.hex()}" if name else ""

    @property
    def parameters(self) -> tuple[tuple[str, str], ...]:
        """Return what was said, for the channel."""
        isid = (("ISID", self.isid.hex()),) if self.isid else ()
        return (*isid, *sorted(self.values.items()))

    def words(self) -> str:
        """Return one line for humans about a login."""
        initiator = self.values.get("InitiatorName", "unknown")
        target = self.values.get("TargetName") or self.values.get("SessionType", "unknown")
        return f"LOGIN {initiator} to {target}, ISID {self.isid.hex()}"


def outcome(status_class: int, detail: int) -> str:
    """Return one line for humans about a login's answer."""
    if status_class == LoginStatus.SUCCESS:
        return "ACCEPTED"
    try:
        words = LoginStatus(status_class).name.replace("_", " ")
    except ValueError:
        words = f"class 0x{status_class:02x}"
    return f"REJECTED, {words} 0x{detail:02x}"


def _printable(text: str) -> str:
    return "".join(each if each.isprintable() else "\ufffd" for each in text)
